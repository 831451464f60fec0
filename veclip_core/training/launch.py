"""Starting the ranks of a training: on this machine as torchrun does, or on a Ray cluster by Ray Train.

What each rank does is a function `work(world, tell, *arguments)`, importable by its name; what it tells comes back here, and so
does the first error that says something.
"""

import logging
import pickle
import signal
import tempfile
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, get_context
from pathlib import Path
from queue import Empty
from typing import Any

from veclip_core.execution.ray_cluster import connect
from veclip_core.mendable import Mendable
from veclip_core.processes import command_script_hidden, end_with_parent, quiet_logging
from veclip_core.training.process import TrainingInterrupted
from veclip_core.training.world import World

logger = logging.getLogger(__name__)

POLL_S = 0.2
HEARD_WITHIN_S = 10
"""For what was told before the ranks ended."""

Tell = Callable[[Any], None]
Work = Callable[..., None]
"""work(world, tell, *arguments)"""


class RanksFailed(Mendable):
    """A rank died, or failed in a way that it could not explain; the others were stopped."""


@dataclass(frozen=True)
class _Failure:
    """What a rank says of the error that ends it."""

    rank: int
    error: Exception | None
    """None where it can't be passed between processes."""
    trace: str


def on_this_machine(work: Work, arguments: Sequence[Any], ranks: int, on_told: Tell, stop_s: int = 60) -> None:
    """Run `work` in so many processes, which end with this one. SIGTERM and SIGINT are passed on to them, and then delivered here.

    Args:
        stop_s: how long ranks that are told to stop may take for their step and a checkpoint, before they are killed.

    Raises:
        RanksFailed: when one dies.
        Exception: what the first rank to fail raised, where that says what mends it.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    context = get_context("spawn")
    # One pipe a rank: a killed process can leave a shared queue locked.
    pipes = [context.Pipe(duplex=False) for _ in range(ranks)]
    readers, writers = [reader for reader, _ in pipes], [writer for _, writer in pipes]

    def next_told() -> Any:
        ready = set(connection.wait(readers, POLL_S))
        for reader in readers:
            if reader in ready:
                return reader.recv()
        raise Empty

    told = _Told(next_told, on_told)
    stopped: int | None = None
    with tempfile.TemporaryDirectory(prefix="veclip-ranks-") as logs, _handlers_kept(), command_script_hidden():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=ranks,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            signals_to_handle="SIGTERM,SIGINT",
            shutdown_timeout=stop_s,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            with told:
                elastic_launch(config, _local_rank)(work, tuple(arguments), writers)
        except SignalException as error:
            stopped = int(error.sigval)
        except ChildFailedError as error:
            rank, first = error.get_first_failure()
            how = f"was ended by signal {-first.exitcode}" if first.exitcode < 0 else f"ended with {first.exitcode}"
            raise told.explained(f"rank {rank} of {ranks} {how}") from error
    if stopped is not None:
        signal.raise_signal(stopped)
    told.refuse_stop(stopped is not None)


def on_ray(
    work: Work,
    arguments: Sequence[Any],
    ranks: int,
    on_told: Tell,
    *,
    address: str,
    cpus: int,
    gpu: bool,
    folder: Path,
) -> None:
    """Run `work` in so many actors of a Ray cluster, of `cpus` and perhaps a GPU each.

    Args:
        folder: where Ray Train keeps its notes.

    Raises:
        NoCluster: when there is none at `address`.
        RanksFailed: when an actor dies.
        Exception: what the first rank to fail raised, where that says what mends it.
    """
    connect(address)
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError
    from ray.util.queue import Queue

    queue = Queue()
    told = _Told(lambda: queue.get(timeout=POLL_S), on_told)
    given = tuple(arguments)

    def each_rank() -> None:
        quiet_logging()
        _run_rank(work, given, queue.put)

    trainer = TorchTrainer(
        each_rank,
        scaling_config=ScalingConfig(num_workers=ranks, use_gpu=gpu, resources_per_worker={"CPU": cpus}),
        run_config=RunConfig(name=uuid.uuid4().hex, storage_path=str(folder)),
    )
    try:
        with _handlers_kept(), told:
            trainer.fit()
    except TrainingFailedError as error:
        raise told.explained(str(error).strip().splitlines()[-1]) from error
    finally:
        queue.shutdown()
    told.refuse_stop()


class _Told:
    """Passes on what ranks tell, in a thread, and remembers how they failed."""

    def __init__(self, following: Callable[[], Any], on_told: Tell) -> None:
        self._next, self._on_told = following, on_told
        self._failures: list[_Failure] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="told by ranks", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(HEARD_WITHIN_S)

    def explained(self, otherwise: str) -> Exception:
        """The first error that a person can act upon; one that follows from another's death is none."""
        for failure in self._failures:
            if failure.error is not None:
                return failure.error
        for failure in self._failures:
            logger.error("rank %d: %s", failure.rank, failure.trace)
        return RanksFailed(
            f"{otherwise}. See the log above; where a process was killed the usual cause is memory (the kernel's log tells:"
            " `dmesg`). Run the same again: it goes on from the last checkpoint."
        )

    def refuse_stop(self, stopped: bool = False) -> None:
        """Raises what ranks said that stopped before the last step, or were stopped before they could."""
        if self._failures or stopped:
            raise self.explained("the ranks were stopped")

    def _listen(self) -> None:
        while True:
            try:
                said = self._next()
            except Empty:
                if self._over.is_set():
                    return
                continue
            if isinstance(said, _Failure):
                self._failures.append(said)
                continue
            try:
                self._on_told(said)
            except Exception:  # ranks would wait for ever to be heard
                logger.exception("what a rank told could not be passed on")


def _local_rank(work: Work, arguments: tuple[Any, ...], writers: "list[connection.Connection]") -> None:
    from torch.distributed import get_node_local_rank

    quiet_logging()
    end_with_parent()
    _run_rank(work, arguments, writers[get_node_local_rank()].send)


def _run_rank(work: Work, arguments: tuple[Any, ...], tell: Tell) -> None:
    with World.joined() as world:
        try:
            work(world, tell, *arguments)
        except TrainingInterrupted as error:  # all ranks agreed to stop: none of them has failed
            tell(_Failure(world.rank, error, ""))
        except Exception as error:
            tell(_Failure(world.rank, _passed_on(error), traceback.format_exc()))
            raise


def _passed_on(error: Exception) -> Exception | None:
    """The error, if it says what to do and can be passed between processes."""
    if not isinstance(error, (Mendable, ValueError)):
        return None
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever an error's class makes of it
        return None
    return error


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Launchers put handlers of their own for signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
