"""The trainings of a scale, by arm and seed: `clip_S`, the paper's baseline on AltText alone, `veclip_S`, on the mix, and the
experiment's further arms."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from veclip_core import storage
from veclip_core.mixing.choose import further_columns
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.executors import CPUS_BESIDE_GPUS
from veclip_core.pipeline.mixtures import current_mixture
from veclip_core.pipeline.trained import Trained, record
from veclip_core.pipeline.training_rates import note_training
from veclip_core.scales import Scale
from veclip_core.settings import Settings
from veclip_core.shards import Current
from veclip_core.tracking import MlflowTracker, NoTracker, Tracker
from veclip_core.training import checkpoint as checkpoints
from veclip_core.training.arms import MIXTURE, arm_named
from veclip_core.training.launch import Tell, on_ray, on_this_machine
from veclip_core.training.loop import (
    Progress,
    RunLabels,
    Runtime,
    TrainReport,
    finished_report,
    train,
    training_identity,
)
from veclip_core.training.manifest_table import ManifestTable, load_manifest, load_mixture
from veclip_core.training.recipe import RECIPES, Recipe
from veclip_core.training.texts import T5_HUB
from veclip_core.training.world import World

MANIFESTS_IN_MEMORY_ROWS = 2_000_000


def recipe_of(chain: Chain, arm: str, seed: int, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The scale's recipe for one arm. The arms differ in the caption weights and in how much of the data they read; neither can be
    overridden."""
    read = arm_named(arm)
    of_arm = {"weights": dict(read.weights), "data_fraction": read.data_fraction, "seed": seed}
    return Recipe(**{**RECIPES[chain.scale.recipe].model_dump(), **(overrides or {}), **of_arm})


def train_arm(
    chain: Chain,
    arm: str,
    seed: int = 0,
    *,
    overrides: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    progress_bar: bool = True,
    on_progress: Progress | None = None,
) -> tuple[TrainReport, Trained]:
    """Train one arm, or go on where it was stopped; its report, and what evaluation finds of it.

    `overrides`: recipe fields for a smaller trial.

    Raises:
        NotMadeYet: without a manifest.
    """
    job = _Job(chain.settings, chain.scale, arm, seed, dict(overrides or {}), dict(tags or {}), progress_bar)
    prepared = _prepared(job)
    identity, folder, partial = prepared.identity, prepared.folder, prepared.partial
    if chain.settings.train_ranks is None:
        report = _train(job, prepared, None, on_progress)
    else:
        found = checkpoints.latest(folder)
        _launch(job, lambda told: on_progress(*told) if on_progress is not None else None)
        report = finished_report(folder, resumed_at=found.step if found is not None else 0)
    trained = Trained(
        chain.scale.name, arm, seed, identity, report.checkpoint, report.run_id, report.manifest_digest,
        partial or bool(overrides), asdict(report),
    )  # fmt: skip
    record(chain, trained, trial=bool(overrides))
    if progress_bar:  # side by side, trainings share the machine, and their rates say little
        note_training(chain.settings, prepared.recipe, report)
    return report, trained


@dataclass(frozen=True)
class _Job:
    """What a rank must be told to do its share of a training."""

    settings: Settings
    scale: Scale
    arm: str
    seed: int
    overrides: dict[str, Any]
    tags: dict[str, str]
    progress_bar: bool


@dataclass(frozen=True)
class _Prepared:
    recipe: Recipe
    manifest: ManifestTable
    partial: bool
    identity: str
    folder: str


def _prepared(job: _Job) -> _Prepared:
    chain = Chain(job.settings, job.scale)
    recipe = recipe_of(chain, job.arm, job.seed, job.overrides)
    manifest, partial = manifest_table(chain, job.arm, recipe.weights)
    identity = training_identity(recipe, manifest, job.settings.t5_tokenizer or T5_HUB)[:16]
    return _Prepared(recipe, manifest, partial, identity, storage.join(chain.root, chain.source, "train", identity))


def _train(job: _Job, prepared: _Prepared, world: World | None, on_progress: Progress | None) -> TrainReport:
    settings = job.settings
    return train(
        prepared.recipe,
        prepared.manifest,
        prepared.folder,
        runtime=Runtime(
            cache_folder=settings.cache_folder / "pictures",
            max_tar_cache_bytes=round(settings.tar_cache_gb * 1e9),
            threads=settings.threads,
            progress_bar=job.progress_bar,
            max_piece_bytes=round(settings.train_read_ahead_gb * 1e9),
            loader_threads=settings.train_loader_threads or max(2, settings.threads),
            t5_tokenizer=settings.t5_tokenizer or T5_HUB,
            checkpoint_every_steps=settings.train_checkpoint_steps or max(50, prepared.recipe.steps // 500),
            micro_batch=settings.train_micro_batch,
            checkpoint_activations=settings.train_checkpoint_activations,
            compile=settings.train_compile,
            parallel=settings.train_parallel,
        ),
        tracker=tracker_of(Chain(settings, job.scale)),
        labels=labels_of(job.scale.name, job.arm, job.seed, job.tags),
        on_progress=on_progress,
        world=world,
    )


def labels_of(scale: str, arm: str, seed: int, tags: Mapping[str, str]) -> RunLabels:
    return RunLabels(
        experiment=f"veclip {scale}",
        name=f"{arm}_{scale} seed {seed}",
        tags={"veclip.scale": scale, "veclip.arm": arm, "veclip.seed": str(seed), **tags},
    )


def _launch(job: _Job, on_told: Tell) -> None:
    """Train on the ranks that settings ask for."""
    settings, ranks = job.settings, job.settings.train_ranks or 1
    if settings.executor == "ray":
        cpus = min(settings.threads, CPUS_BESIDE_GPUS) if settings.gpus else settings.threads
        each = replace(job, settings=settings.model_copy(update={"threads": cpus}))
        on_ray(
            _train_rank, (each,), ranks, on_told,
            address=settings.ray_address, cpus=cpus, gpu=bool(settings.gpus), folder=settings.cache_folder / "ray",
        )  # fmt: skip
        return
    threads = max(1, settings.threads // ranks)
    each = replace(job, settings=settings.model_copy(update={"threads": threads}))
    on_this_machine(_train_rank, (each,), ranks, on_told, settings.train_stop_s)


def _train_rank(world: World, tell: Tell, job: _Job) -> None:
    _train(job, _prepared(job), world, lambda step, numbers: tell((step, dict(numbers))))


def tracker_of(chain: Chain) -> Tracker:
    """MLflow where settings name it."""
    return tracker_from(chain.settings)


def tracker_from(settings: Settings) -> Tracker:
    """The same, where there is no chain."""
    uri = settings.tracking_uri
    return NoTracker() if uri is None else MlflowTracker(uri, artifact_root=settings.artifact_folder)


def require_manifest(chain: Chain, arm: str) -> None:
    """Raises NotMadeYet, with the command that makes it, where there is no current manifest or mixture for an arm to read."""
    if arm_named(arm).manifest == MIXTURE:
        current_mixture(chain)
    else:
        manifest_of(chain, arm)


def manifest_of(chain: Chain, arm: str) -> Current:
    """What is current of the manifest that an arm reads, where that is no mixture. Raises NotMadeYet."""
    return chain.current("mix", arm_named(arm).manifest)


def manifest_table(chain: Chain, arm: str, weights: Mapping[str, float]) -> tuple[ManifestTable, bool]:
    """The manifest that an arm reads, with the columns that have weights, and whether it is partial.

    Raises NotMadeYet with the command that makes it.
    """
    if arm_named(arm).manifest == MIXTURE:
        mixture = current_mixture(chain)
        rows = sum(source.rows for source in mixture.sources)
        mapped = chain.settings.cache_folder / "manifests" if rows > MANIFESTS_IN_MEMORY_ROWS else None
        return load_mixture(mixture, mapped, further_columns(weights)), mixture.partial
    current = manifest_of(chain, arm)
    shards = current.shard_set(chain.root, chain.source)
    mapped = chain.settings.cache_folder / "manifests" if current.rows_ok > MANIFESTS_IN_MEMORY_ROWS else None
    table = load_manifest(
        storage.join(chain.root, chain.source),
        # Of a shard that was set aside there is no file.
        [shards.file(key, "parquet") for key in sorted(shards.markers(current.shard_keys()))],
        digest=current.digest,
        cache_folder=mapped,
        further_columns=further_columns(weights),
    )
    return table, current.partial
