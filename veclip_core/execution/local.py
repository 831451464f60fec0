"""Runs shards in worker processes of this machine.

Each worker is a pool of one process of its own: it opens the operation once (loading its engine), and when it dies, killed for
memory or by a crash in a decoder, only its own shard is lost for that attempt and a fresh process takes over.
"""

import logging
import traceback
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from veclip_core.processes import command_script_hidden, stop_workers, worker_pool
from veclip_core.samples import ShardKey
from veclip_core.stage import ShardDone, ShardJob, Work
from veclip_core.storage import StorageError

logger = logging.getLogger(__name__)

OPENINGS = 3
"""How often a worker may die while it opens the operation, before any shard is handed to it."""

Task = tuple[ShardKey, Mapping[str, str]]


@dataclass(frozen=True)
class LocalExecutor:
    """`workers` processes, each with its own engine."""

    workers: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables set in each worker before anything is imported there, such as OMP_NUM_THREADS."""

    def run(self, job: ShardJob, tasks: Sequence[Task]) -> Iterable[ShardDone]:
        """Yields each shard's result as it comes, in any order."""
        queue = deque(tasks)
        slots = [_Slot(job, self.environment) for _ in range(min(self.workers, len(tasks)))]
        opening: dict[Future[Any], _Slot] = {slot.open(): slot for slot in slots}
        running: dict[Future[Any], tuple[_Slot, ShardKey]] = {}
        try:
            while opening or running:
                finished, _ = wait([*opening, *running], return_when=FIRST_COMPLETED)
                for future in finished:
                    if future in opening:
                        slot = opening.pop(future)
                        failure = slot.failure_of_opening(future)
                        if failure is not None:
                            yield replace(failure, key=tasks[0][0])
                    else:
                        slot, key = running.pop(future)
                        result = slot.result_of(future, key)
                        yield result
                    if not queue:
                        continue
                    if slot.is_open:
                        task = queue.popleft()
                        running[slot.submit(task)] = (slot, task[0])
                    else:
                        opening[slot.open()] = slot
        finally:
            for slot in slots:
                slot.stop()


class _Slot:
    """One worker process and its replacement after a death."""

    def __init__(self, job: ShardJob, environment: Mapping[str, str]) -> None:
        self._job, self._environment = job, environment
        self._pool = self._new_pool()
        self._openings = 0
        self.is_open = False

    def _new_pool(self) -> ProcessPoolExecutor:
        return worker_pool(1, self._environment, _start, self._job)

    def open(self) -> "Future[Any]":
        self._openings += 1
        with command_script_hidden():  # the pool starts its process now
            return self._pool.submit(_open)

    def failure_of_opening(self, future: "Future[Any]") -> ShardDone | None:
        """None when the operation is open, or when opening is to be tried again; else what no shard is to blame for."""
        try:
            failure: ShardDone | None = future.result()
        except BrokenProcessPool:
            self._restart()
            if self._openings < OPENINGS:
                return None
            return ShardDone(
                _NO_SHARD,
                None,
                error=f"the worker died {OPENINGS} times while it loaded what it needs. The usual cause is memory: see the"
                " kernel's log (`dmesg`), take fewer workers (VECLIP_CAPTION_WORKERS, VECLIP_DOWNLOAD_WORKERS) or a smaller model.",
                fatal=True,
            )
        if failure is None:
            self._openings, self.is_open = 0, True
        return failure

    def submit(self, task: Task) -> "Future[Any]":
        key, input_digests = task
        return self._pool.submit(_run, key, dict(input_digests))

    def result_of(self, future: "Future[Any]", key: ShardKey) -> ShardDone:
        try:
            result: ShardDone = future.result()
        except BrokenProcessPool:
            result = ShardDone(key, None, error="its worker process died")
        if result.marker is None:
            # What broke on this shard may have broken the engine for the next ones.
            self._restart()
        return result

    def _restart(self) -> None:
        self._pool.shutdown(wait=False)
        self._pool, self.is_open = self._new_pool(), False

    def stop(self) -> None:
        stop_workers(self._pool)


_NO_SHARD = ShardKey(0, 0)
_job: ShardJob
_work: Work
_opened = ExitStack()


def _start(job: ShardJob) -> None:
    global _job
    _job = job


def _open() -> ShardDone | None:
    """None, or why no shard can be made."""
    global _work
    try:
        _work = _opened.enter_context(_job.operation.open())
    except Exception as error:
        return ShardDone(_NO_SHARD, None, error=_line(error), trace=traceback.format_exc(), fatal=True)
    return None


def _run(key: ShardKey, input_digests: Mapping[str, str]) -> ShardDone:
    try:
        return ShardDone(key, _job.make(_work, key, input_digests))
    except StorageError as error:
        return ShardDone(key, None, error=str(error), trace=traceback.format_exc(), fatal=True)
    except Exception as error:
        return ShardDone(key, None, error=_line(error), trace=traceback.format_exc())


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
