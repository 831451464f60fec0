"""Runs shards in worker processes of this machine, each a pool of one process of its own."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from veclip_core.execution.slots import Bench, Task, run_in_slots
from veclip_core.processes import command_script_hidden, stop_workers, worker_pool
from veclip_core.samples import ShardKey
from veclip_core.stage import ShardDone, ShardJob

CLOSE_S = 10.0
"""What an engine may take to let go of its device."""


@dataclass(frozen=True)
class LocalExecutor:
    """`workers` processes, each with its own engine."""

    workers: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables set in each worker before anything is imported there, such as OMP_NUM_THREADS."""
    gpus: tuple[tuple[str, ...], ...] = ()
    """The GPUs of each worker, by their CUDA numbers; without, all workers see all."""

    advice = (
        "The usual cause is memory: see the kernel's log (`dmesg`), take fewer workers (VECLIP_CAPTION_WORKERS,"
        " VECLIP_DOWNLOAD_WORKERS) or a smaller model."
    )

    waiting = "still loading what a worker needs"

    def workers_at_once(self) -> int:
        return self.workers

    def run(self, job: ShardJob, tasks: Sequence[Task], more: Callable[[], bool]) -> Iterable[ShardDone]:
        return run_in_slots(job, tasks, self, self.workers, more)

    def hire(self, job: ShardJob, place: int) -> "_LocalWorker":
        own = {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus[place])} if self.gpus else {}
        return _LocalWorker(job, {**self.environment, **own})


class _LocalWorker:
    def __init__(self, job: ShardJob, environment: Mapping[str, str]) -> None:
        self._pool = worker_pool(1, environment, _start, job)
        self._last: Future[Any] | None = None

    def open(self, after_s: float) -> "Future[ShardDone | None]":
        with command_script_hidden():  # the pool starts its process now
            self._last = self._pool.submit(_open, after_s)
            return self._last

    def make(self, task: Task) -> "Future[ShardDone]":
        key, input_digests = task
        self._last = self._pool.submit(_make, key, dict(input_digests))
        return self._last

    def died(self, error: BaseException) -> bool:
        return isinstance(error, BrokenProcessPool)

    def stop(self) -> None:
        if self._last is not None and self._last.done():  # in the middle of a shard it is killed
            with suppress(BrokenProcessPool):
                wait([self._pool.submit(_close)], timeout=CLOSE_S)
        stop_workers(self._pool)


_bench: Bench


def _start(job: ShardJob) -> None:
    global _bench
    _bench = Bench(job)


def _open(after_s: float) -> ShardDone | None:
    return _bench.open(after_s)


def _close() -> None:
    _bench.close()


def _make(key: ShardKey, input_digests: Mapping[str, str]) -> ShardDone:
    return _bench.make(key, input_digests)
