"""Hands shards to workers, whatever they run on.

A slot is the place of one worker: it opens the operation once (loading its engine), takes one shard at a time, and when its
worker dies, killed for memory, by a crash in a decoder or with its machine, only that shard is lost for this attempt and a fresh
worker takes over. The executors differ in what a worker is.
"""

import logging
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Protocol

from veclip_core.mendable import Mendable
from veclip_core.samples import ShardKey
from veclip_core.stage import ShardDone, ShardJob, Work
from veclip_core.storage import StorageError

logger = logging.getLogger(__name__)

OPENINGS = 3
"""How often a place is tried when its workers die or fail while they open the operation."""
PAUSE_S = 5.0
"""Before a second opening, and twice that before a third: what the dead one held (a GPU's memory) may take a moment to be free."""

PATIENCE_S = 60.0
"""After so long without any worker somebody is told why."""

Task = tuple[ShardKey, Mapping[str, str]]


class Worker(Protocol):
    """One worker, on its way or there."""

    def open(self, after_s: float) -> "Future[ShardDone | None]":
        """Load what every shard needs, after a pause; the result is None, or why no shard can be made."""
        ...

    def make(self, task: Task) -> "Future[ShardDone]": ...

    def died(self, error: BaseException) -> bool:
        """Whether a future's error means that the worker is gone."""
        ...

    def stop(self) -> None:
        """End it, in the middle of its work too: work is resumable."""
        ...


class Workers(Protocol):
    """Where workers come from."""

    @property
    def advice(self) -> str:
        """What a person can do when workers keep dying while they load."""
        ...

    @property
    def waiting(self) -> str:
        """What to say when no worker has come for a while."""
        ...

    def hire(self, job: ShardJob, place: int) -> Worker:
        """A worker for a place, 0 to `at_most` - 1: a replacement gets what its predecessor had."""
        ...


def run_in_slots(
    job: ShardJob, tasks: Sequence[Task], workers: Workers, at_most: int, more: Callable[[], bool]
) -> Iterable[ShardDone]:
    """Yields each shard's result as it comes, in any order, and begins none after `more` says no.

    A worker that comes late, or never, holds nothing up.
    """
    queue = deque(tasks)
    slots = [_Slot(job, workers, place) for place in range(min(at_most, len(tasks)))]
    opening: dict[Future[Any], _Slot] = {slot.open(): slot for slot in slots}
    running: dict[Future[Any], tuple[_Slot, ShardKey]] = {}
    worked = False
    try:
        while running or (opening and queue and more()):
            finished, _ = wait([*opening, *running], timeout=PATIENCE_S, return_when=FIRST_COMPLETED)
            if not finished and not running:
                logger.info("%s", workers.waiting)
            for future in finished:
                if future in opening:
                    slot = opening.pop(future)
                    failure = slot.failure_of_opening(future)
                    worked = worked or slot.is_open
                    if failure is not None:
                        if not (opening or running) or (failure.mendable and not worked):
                            yield replace(failure, key=tasks[0][0])
                        # One machine without room or network is no reason to stop the others.
                        logger.warning("a worker does not start, the others go on: %s", failure.error)
                        continue
                else:
                    slot, key = running.pop(future)
                    yield slot.result_of(future, key)
                if not queue or not more():
                    continue
                if slot.is_open:
                    task = queue.popleft()
                    running[slot.make(task)] = (slot, task[0])
                else:
                    opening[slot.open()] = slot
    finally:
        for slot in slots:
            slot.stop()


class _Slot:
    """The place of one worker and of its replacements."""

    def __init__(self, job: ShardJob, workers: Workers, place: int) -> None:
        self._job, self._workers, self._place = job, workers, place
        self._worker = workers.hire(job, place)
        self._openings = 0
        self.is_open = False

    def open(self) -> "Future[Any]":
        pause_s = PAUSE_S * self._openings
        self._openings += 1
        return self._worker.open(pause_s)

    def failure_of_opening(self, future: "Future[Any]") -> ShardDone | None:
        """None when the operation is open, or when opening is to be tried again; else what no shard is to blame for."""
        try:
            failure: ShardDone | None = future.result()
        except Exception as error:
            if not self._worker.died(error):
                raise
            failure = ShardDone(
                NO_SHARD,
                None,
                error=f"the worker died {OPENINGS} times while it loaded what it needs. {self._workers.advice}",
                trace=str(error),
                fatal=True,
            )
        if failure is None:
            self._openings, self.is_open = 0, True
            return None
        self._replace()
        return None if self._openings < OPENINGS and not failure.mendable else failure

    def make(self, task: Task) -> "Future[Any]":
        try:
            return self._worker.make(task)
        except Exception as error:  # it died while it had nothing to do
            if not self._worker.died(error):
                raise
            lost: Future[Any] = Future()
            lost.set_exception(error)
            return lost

    def result_of(self, future: "Future[Any]", key: ShardKey) -> ShardDone:
        try:
            result: ShardDone = future.result()
        except Exception as error:
            if not self._worker.died(error):
                raise
            result = ShardDone(key, None, error="its worker process died", trace=str(error))
        if result.marker is None:
            # What broke on this shard may have broken the engine for the next ones.
            self._replace()
        return result

    def _replace(self) -> None:
        self._worker.stop()
        self._worker, self.is_open = self._workers.hire(self._job, self._place), False

    def stop(self) -> None:
        self._worker.stop()


NO_SHARD = ShardKey(0, 0)


class Bench:
    """What a worker does in its own process: the operation, opened once, and its shards."""

    def __init__(self, job: ShardJob) -> None:
        self._job = job
        self._opened = ExitStack()
        self._work: Work | None = None

    def open(self, after_s: float) -> ShardDone | None:
        """None, or why no shard can be made."""
        time.sleep(after_s)
        try:
            self._work = self._opened.enter_context(self._job.operation.open())
        except Exception as error:
            trace, mendable = traceback.format_exc(), isinstance(error, Mendable)
            return ShardDone(NO_SHARD, None, error=_line(error), trace=trace, fatal=True, mendable=mendable)
        return None

    def close(self) -> None:
        """Let go of what was opened: an engine may have processes of its own."""
        self._opened.close()

    def make(self, key: ShardKey, input_digests: Mapping[str, str]) -> ShardDone:
        assert self._work is not None
        try:
            return ShardDone(key, self._job.make(self._work, key, input_digests))
        except StorageError as error:
            return ShardDone(key, None, error=str(error), trace=traceback.format_exc(), fatal=True)
        except Exception as error:
            return ShardDone(key, None, error=_line(error), trace=traceback.format_exc())


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
