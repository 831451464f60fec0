"""Several trainings at once, a process and a share of the cores each: small models don't fill the cores one by one."""

import logging
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from queue import Empty
from typing import TYPE_CHECKING, Any

from veclip_core.mendable import Mendable
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.trained import Trained
from veclip_core.pipeline.training import recipe_of, require_manifest, train_arm
from veclip_core.processes import command_script_hidden, stop_workers, worker_pool
from veclip_core.scales import Scale
from veclip_core.settings import Settings

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

logger = logging.getLogger(__name__)

POLL_S = 0.5
ATTEMPTS = 2
"""How often a training is begun whose process dies; each goes on from the last checkpoint."""
SAVES_WITHIN_S = 30
"""How long a training that is told to stop may take to save its checkpoint."""

Training = tuple[str, int]
"""Arm and seed."""
OnProgress = Callable[[Training, int, Mapping[str, float]], None]


class TrainingsFailed(Mendable):
    """Some of the trainings did not come to their end; the others did, and are kept."""


def train_side_by_side(
    chain: Chain,
    trainings: Sequence[Training],
    *,
    overrides: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    on_progress: OnProgress = lambda training, step, numbers: None,
    on_trained: Callable[[Trained], None] = lambda trained: None,
) -> list[Trained]:
    """Train every (arm, seed), or go on where each was stopped; in the given order.

    Args:
        on_progress: called with the training, its step and its metrics at every logged step.
        on_trained: called with each as it is done.

    Raises:
        NotMadeYet: before anything is begun, where a manifest is missing.
        TrainingsFailed: after the others are done, with what became of each that failed.
    """
    from tqdm import tqdm

    for arm in dict.fromkeys(arm for arm, _ in trainings):
        require_manifest(chain, arm)
    steps = {training: recipe_of(chain, *training, overrides).steps for training in trainings}
    # Ranks fill the machine, or the cluster, with one training.
    workers = chain.settings.train_workers if chain.settings.train_ranks is None else 1
    count = max(1, min(workers, len(trainings)))
    settings = chain.settings.model_copy(update={"threads": max(1, chain.settings.threads // count)})
    waiting = deque((training, 1) for training in trainings)
    idle = [_Worker.new(settings.threads) for _ in range(count)]
    running: dict[Future[Trained], tuple[_Worker, Training, int]] = {}
    done: dict[Training, Trained] = {}
    failed: dict[Training, str] = {}
    progress = _Progress(
        tqdm(total=sum(steps.values()), desc=f"{len(trainings)} trainings", unit="step", file=sys.stderr)
    )
    try:
        with _terminated_as_interrupted():
            while waiting or running:
                while waiting and idle:
                    training, attempt = waiting.popleft()
                    worker = idle.pop()
                    job = (settings, chain.scale, training, dict(overrides or {}), dict(tags or {}))
                    with command_script_hidden():  # the pool starts its process now
                        running[worker.pool.submit(_train, *job)] = (worker, training, attempt)
                progress.pass_on([worker for worker, _, _ in running.values()], on_progress)
                for future in [future for future in running if future.done()]:
                    worker, training, attempt = running.pop(future)
                    try:
                        done[training] = future.result()
                        progress.pass_on_rest(worker, on_progress)
                    except BrokenProcessPool:
                        logger.warning("the process of %s seed %d died, attempt %d of %d", *training, attempt, ATTEMPTS)
                        stop_workers(worker.pool)
                        worker = _Worker.new(settings.threads)
                        if attempt < ATTEMPTS:
                            waiting.append((training, attempt + 1))
                        else:
                            failed[training] = _DIED
                    except Mendable as error:
                        failed[training] = str(error)
                    except Exception as error:
                        logger.exception("%s seed %d failed", *training)
                        failed[training] = f"{type(error).__name__}: {error}"
                    else:
                        progress.reached(training, steps[training])
                        on_trained(done[training])
                    idle.append(worker)
    finally:
        progress.bar.close()
        for worker in idle:
            stop_workers(worker.pool)
        for worker, _, _ in running.values():
            worker.terminate()
        for worker, _, _ in running.values():
            stop_workers(worker.pool, SAVES_WITHIN_S)
    if failed:
        reasons: dict[str, list[str]] = {}
        for (arm, seed), reason in failed.items():
            reasons.setdefault(reason, []).append(f"{arm} seed {seed}")
        told = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
        raise TrainingsFailed(
            f"{len(failed)} of {len(trainings)} trainings failed ({told}). Run the same again: what is done is kept, and the"
            " rest goes on from its last checkpoint."
        )
    return [done[training] for training in trainings]


_DIED = (
    f"its process died {ATTEMPTS} times; the usual cause is memory: see the kernel's log (`dmesg`), or take fewer at once"
    " (VECLIP_TRAIN_WORKERS)"
)


@dataclass(frozen=True)
class _Worker:
    """A process of its own, so that a death costs one training one attempt; and what it tells."""

    pool: ProcessPoolExecutor
    told: "Queue[tuple[Training, int, Mapping[str, float]]]"

    @classmethod
    def new(cls, threads: int) -> "_Worker":
        told: Queue[tuple[Training, int, Mapping[str, float]]] = get_context("spawn").Queue()
        return cls(worker_pool(1, {"OMP_NUM_THREADS": str(threads)}, _start, told), told)

    def terminate(self) -> None:
        """Ask for a checkpoint and an end."""
        for process in (self.pool._processes or {}).values():
            process.terminate()


class _Progress:
    """A bar over the steps of all trainings."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar
        self._steps: dict[Training, int] = {}

    def reached(self, training: Training, step: int) -> None:
        self.bar.update(max(0, step - self._steps.get(training, 0)))
        self._steps[training] = max(step, self._steps.get(training, 0))

    def pass_on(self, workers: Sequence[_Worker], on_progress: OnProgress) -> None:
        """Hand on what the workers tell, then wait a moment."""
        for worker in workers:
            while self._pass_on_one(worker, on_progress, timeout_s=0):
                pass
        time.sleep(POLL_S)

    def pass_on_rest(self, worker: _Worker, on_progress: OnProgress) -> None:
        """What a worker has told of a training that is done, to its end."""
        while self._pass_on_one(worker, on_progress, timeout_s=POLL_S):
            pass

    def _pass_on_one(self, worker: _Worker, on_progress: OnProgress, timeout_s: float) -> bool:
        """False where nothing comes, or a training's last word."""
        try:
            training, step, numbers = worker.told.get(timeout=timeout_s)
        except Empty:
            return False
        if step == _LAST_WORD:
            return False
        self.reached(training, step)
        on_progress(training, step, numbers)
        return True


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, where nobody handles it (Dagster does), ends this process as Ctrl-C does, so that trainings save what they have."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


_LAST_WORD = -1
_told: "Queue[tuple[Training, int, Mapping[str, float]]]"


def _start(told: "Queue[tuple[Training, int, Mapping[str, float]]]") -> None:
    global _told
    _told = told


def _train(
    settings: Settings, scale: Scale, training: Training, overrides: dict[str, Any], tags: dict[str, str]
) -> Trained:
    arm, seed = training
    _, made = train_arm(
        Chain(settings, scale),
        arm,
        seed,
        overrides=overrides,
        tags=tags,
        progress_bar=False,
        on_progress=lambda step, numbers: _told.put((training, step, dict(numbers))),
    )
    _told.put((training, _LAST_WORD, {}))
    return made
