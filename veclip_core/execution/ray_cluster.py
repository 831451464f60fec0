"""Runs shards on a Ray cluster: each worker is an actor that holds the CPUs and GPUs of one engine.

Ray is used for what it is good at, placing processes on machines and noticing their death. What is done, tried again or set
aside stays the stage's business (`veclip_core.stage`), so that both executors behave alike. Actors that find no room wait in
Ray's queue and join in when machines do; when the driver dies, Ray ends its actors.
"""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from veclip_core.execution.slots import Bench, Task, run_in_slots
from veclip_core.mendable import Mendable
from veclip_core.processes import quiet_logging
from veclip_core.samples import ShardKey
from veclip_core.stage import ShardDone, ShardJob

logger = logging.getLogger(__name__)


CONNECT_S = 10.0
CLOSE_S = 10.0
"""What an engine may take to let go of its device."""


class NoCluster(Mendable):
    """There is no Ray cluster to be reached, or none that could ever hold a worker."""


@dataclass(frozen=True)
class RayExecutor:
    """Actors on the cluster that `address` names."""

    address: str = "auto"
    """`auto` is the cluster that this machine belongs to (or RAY_ADDRESS names); else `host:port`."""
    workers: int | None = None
    """At most so many actors, also when the cluster grows; None takes what fits when the stage starts."""
    cpus: int = 1
    """CPUs that an actor holds."""
    gpus: int = 0
    """GPUs that an actor holds: the tensor-parallel group of its engine."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables set in each actor before anything is imported there, such as OMP_NUM_THREADS."""

    advice = (
        "The usual cause is memory: see `ray list workers --filter exit_type!=INTENDED_USER_EXIT` and the kernel's log of the"
        " machine, give an actor more CPUs (VECLIP_THREADS) so that fewer share a machine, or take a smaller model."
    )

    @property
    def waiting(self) -> str:
        import ray

        free = {name: amount for name, amount in ray.available_resources().items() if name in ("CPU", "GPU")}
        wait = f"waiting for Ray: an actor needs {self.cpus} CPUs and {self.gpus} GPUs of one machine, free are {free}"
        if " " in sys.executable:
            wait += f". Ray starts no worker from a path with a space: if the cluster runs from {sys.prefix}, move it"
        return wait

    def run(self, job: ShardJob, tasks: Sequence[Task], more: Callable[[], bool]) -> Iterable[ShardDone]:
        """Raises NoCluster with what mends it."""
        return run_in_slots(job, tasks, self, self.workers_at_once(), more)

    def workers_at_once(self) -> int:
        """Raises NoCluster with what mends it."""
        connect(self.address)
        return self._room() if self.workers is None else self.workers

    def hire(self, job: ShardJob, place: int) -> "_RayWorker":
        return _RayWorker(job, self)

    def _room(self) -> int:
        """How many actors fit on the machines that are there, whether or not something else runs on them now."""
        import ray

        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room = sum(
            int(min(machine.get("CPU", 0) // self.cpus, machine.get("GPU", 0) // self.gpus if self.gpus else 10**6))
            for machine in machines
        )
        if room == 0:
            raise NoCluster(
                f"no machine of the Ray cluster has the {self.cpus} CPUs and {self.gpus} GPUs that an actor needs"
                f" ({len(machines)} machines: {machines}). Lower VECLIP_THREADS or VECLIP_TENSOR_PARALLEL, or add machines."
            )
        return room


def connect(address: str) -> None:
    """Join the cluster, once a process.

    Raises:
        NoCluster: when there is none at `address`.
    """
    import ray

    if ray.is_initialized():  # a process belongs to one cluster
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        with _signals_kept():
            ray.init(address=address, logging_level=logging.WARNING, namespace="veclip")
    except (OSError, RuntimeError, ValueError) as error:
        raise NoCluster(
            f"no Ray cluster answers at {address!r} ({error}). Start one with `ray start --head` (and"
            " `ray start --address=HEAD:6379` on every further machine), or name it: VECLIP_RAY_ADDRESS=HEAD:6379."
        ) from error


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts a handler of its own for SIGTERM, which is Dagster's or the training's to handle."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _RayWorker:
    def __init__(self, job: ShardJob, executor: RayExecutor) -> None:
        import ray

        remote = ray.remote(
            num_cpus=executor.cpus,
            num_gpus=executor.gpus,
            # The stage replaces the dead and counts attempts: one place for that is enough.
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": dict(executor.environment)},
        )(_Actor)
        self._actor: Any = remote.remote(job)
        self._last: Future[Any] | None = None

    def open(self, after_s: float) -> "Future[ShardDone | None]":
        opened = cast("Future[ShardDone | None]", self._actor.open.remote(after_s).future())
        self._last = opened
        return opened

    def make(self, task: Task) -> "Future[ShardDone]":
        key, input_digests = task
        made = cast("Future[ShardDone]", self._actor.make.remote(key, dict(input_digests)).future())
        self._last = made
        return made

    def died(self, error: BaseException) -> bool:
        from ray.exceptions import RayError, RayTaskError

        return isinstance(error, RayError) and not isinstance(error, RayTaskError)

    def stop(self) -> None:
        import ray

        if self._last is not None and self._last.done():  # in the middle of a shard it is killed
            ray.wait([self._actor.close.remote()], timeout=CLOSE_S)
        ray.kill(self._actor)


class _Actor:
    """What runs in a process of the cluster."""

    def __init__(self, job: ShardJob) -> None:
        quiet_logging()
        self._bench = Bench(job)

    def open(self, after_s: float) -> ShardDone | None:
        return self._bench.open(after_s)

    def close(self) -> None:
        self._bench.close()

    def make(self, key: ShardKey, input_digests: Mapping[str, str]) -> ShardDone:
        return self._bench.make(key, input_digests)
