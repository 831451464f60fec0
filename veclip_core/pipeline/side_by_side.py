"""Several trainings at once, a process and a share of the cores each: small models don't fill the cores one by one."""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from queue import Empty
from typing import TYPE_CHECKING, Any

from veclip_core.mendable import Mendable
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.training import Trained, recipe_of, train_arm
from veclip_core.processes import command_script_hidden, stop_workers, worker_pool
from veclip_core.scales import Scale
from veclip_core.settings import Settings

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

logger = logging.getLogger(__name__)

POLL_S = 0.5
SAVES_WITHIN_S = 30
"""How long a training that is told to stop may take to save its checkpoint."""

Training = tuple[str, int]
"""Arm and seed."""


class TrainingsFailed(Mendable):
    """Some of the trainings did not come to their end; the others did, and are kept."""


def train_side_by_side(
    chain: Chain,
    trainings: Sequence[Training],
    *,
    overrides: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    on_progress: Callable[[Training, int, Mapping[str, float]], None] = lambda training, step, numbers: None,
    on_trained: Callable[[Trained], None] = lambda trained: None,
) -> list[Trained]:
    """Train every (arm, seed), or go on where each was stopped; in the given order.

    Args:
        on_progress: called with the training, its step and its metrics at every logged step.
        on_trained: called with each as it is done.

    Raises:
        TrainingsFailed: after the others are done, with what became of each that failed.
    """
    from tqdm import tqdm

    workers = max(1, min(chain.settings.train_workers, len(trainings)))
    settings = chain.settings.model_copy(update={"threads": max(1, chain.settings.threads // workers)})
    told: Queue[tuple[Training, int, Mapping[str, float]]] = get_context("spawn").Queue()
    pool = worker_pool(workers, {"OMP_NUM_THREADS": str(settings.threads)}, _start, told)
    with command_script_hidden():  # the pool starts its processes as work is handed to it
        running = {
            pool.submit(_train, settings, chain.scale, training, dict(overrides or {}), dict(tags or {})): training
            for training in trainings
        }
    steps = {training: recipe_of(chain, *training, overrides).steps for training in trainings}
    done: dict[Training, Trained] = {}
    failed: dict[Training, BaseException] = {}
    bar = tqdm(total=sum(steps.values()), desc=f"{len(trainings)} trainings", unit="step", file=sys.stderr)
    reached = dict.fromkeys(trainings, 0)
    try:
        while running:
            _pass_on(told, bar, reached, on_progress)
            for future in [future for future in running if future.done()]:
                training = running.pop(future)
                found = _result_of(future)
                if isinstance(found, Trained):
                    done[training] = found
                    bar.update(steps[training] - reached[training])
                    reached[training] = steps[training]
                    bar.set_postfix_str(f"{len(done)} done")
                    on_trained(found)
                else:
                    failed[training] = found
    finally:
        bar.close()
        stop_workers(pool, SAVES_WITHIN_S, terminate=bool(running))
        told.close()
    if failed:
        reasons = "; ".join(f"{arm} seed {seed}: {error}" for (arm, seed), error in failed.items())
        raise TrainingsFailed(
            f"{len(failed)} of {len(trainings)} trainings failed ({reasons}). Run the same again: what is done is kept, and the"
            " rest goes on from its last checkpoint."
        ) from next(iter(failed.values()))
    return [done[training] for training in trainings]


def _pass_on(
    told: "Queue[tuple[Training, int, Mapping[str, float]]]",
    bar: Any,
    reached: dict[Training, int],
    on_progress: Callable[[Training, int, Mapping[str, float]], None],
) -> None:
    """Hand on what the workers tell, until they are silent for a moment."""
    while True:
        try:
            training, step, numbers = told.get(timeout=POLL_S)
        except Empty:
            return
        bar.update(step - reached[training])
        reached[training] = step
        on_progress(training, step, numbers)


def _result_of(future: "Future[Trained]") -> Trained | BaseException:
    try:
        return future.result()
    except BrokenProcessPool:
        return RuntimeError(
            "its process died; the usual cause is memory: fewer at once (VECLIP_TRAIN_WORKERS) need less"
        )
    except Exception as error:
        logger.error("a training failed", exc_info=error)
        return error


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
    return made
