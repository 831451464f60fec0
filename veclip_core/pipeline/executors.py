"""Which executor a stage runs on, by settings: processes of this machine, or actors of a Ray cluster."""

from veclip_core.execution.local import LocalExecutor
from veclip_core.execution.ray_cluster import RayExecutor
from veclip_core.settings import CPU_COUNT, Settings, SettingsError
from veclip_core.stage import Executor, Operation

CPUS_BESIDE_GPUS = 4
"""CPUs that an actor with GPUs holds, for decoding and for the engine's own threads."""
ON_ENGINES = ("describe", "fuse")
"""Stages whose workers hold an engine; the others compute on the CPU alone."""


def needs_engine(operation: Operation) -> bool:
    return bool(getattr(operation, "needs_engine", operation.name in ON_ENGINES))


def devices(settings: Settings, executor: Executor) -> int:
    """GPUs (or, without, machines' worth of engines) that captioning pays for at a time."""
    return executor.workers_at_once() * settings.tensor_parallel


def _caption_workers(settings: Settings) -> int:
    return settings.caption_workers or max(1, len(settings.gpus) // settings.tensor_parallel)


def one_process() -> Executor:
    """For stages that are done in moments."""
    return LocalExecutor(1)


def for_downloads(settings: Settings, here: bool) -> Executor:
    """`here`: on this machine in any case, because the server is this process."""
    if settings.executor == "ray" and not here:
        return RayExecutor(settings.ray_address, settings.download_workers)
    return LocalExecutor(settings.download_workers)


def for_captions(settings: Settings, operation: Operation) -> Executor:
    """An engine a worker for the stages that generate, plain processes for the rest."""
    if not needs_engine(operation):
        if settings.executor == "ray":
            return RayExecutor(settings.ray_address)
        return LocalExecutor(min(CPU_COUNT, 4))
    threads = {"OMP_NUM_THREADS": str(settings.threads)}
    if settings.executor == "ray":
        if settings.gpus:
            # The driver's cores say nothing of the machines', and an actor that asks for too many leaves GPUs idle.
            cpus = min(settings.threads, CPUS_BESIDE_GPUS)
            return RayExecutor(settings.ray_address, settings.caption_workers, cpus, settings.tensor_parallel, threads)
        return RayExecutor(settings.ray_address, settings.caption_workers, settings.threads, 0, threads)
    group = settings.tensor_parallel
    groups = tuple(settings.gpus[at : at + group] for at in range(0, len(settings.gpus) - group + 1, group))
    workers = _caption_workers(settings)
    if settings.gpus and workers > len(groups):
        raise SettingsError(
            f"{workers} captioning workers of {group} GPUs each need {workers * group} GPUs, and VECLIP_GPUS names"
            f" {len(settings.gpus)}: lower VECLIP_CAPTION_WORKERS or VECLIP_TENSOR_PARALLEL, or name more"
        )
    return LocalExecutor(workers, threads, groups)
