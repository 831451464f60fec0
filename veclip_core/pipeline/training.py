"""The trainings of a scale, by arm and seed: `clip_S`, the paper's baseline on AltText alone, `veclip_S`, on the mix, and the
experiment's further arms."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from veclip_core import storage
from veclip_core.mixing.choose import further_columns
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.mixtures import current_mixture
from veclip_core.pipeline.trained import Trained, record
from veclip_core.shards import Current
from veclip_core.tracking import MlflowTracker, NoTracker, Tracker
from veclip_core.training.arms import MIXTURE, arm_named
from veclip_core.training.loop import RunLabels, Runtime, TrainReport, train, training_identity
from veclip_core.training.manifest_table import ManifestTable, load_manifest, load_mixture
from veclip_core.training.recipe import RECIPES, Recipe

MANIFESTS_IN_MEMORY_ROWS = 2_000_000


def recipe_of(chain: Chain, arm: str, seed: int, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The scale's recipe for one arm. The arms differ in the caption weights alone."""
    weights = dict(arm_named(arm).weights)
    fields = RECIPES[chain.scale.recipe].model_dump() | {"weights": weights, "seed": seed} | dict(overrides or {})
    return Recipe(**fields)


def train_arm(
    chain: Chain,
    arm: str,
    seed: int = 0,
    *,
    overrides: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    progress_bar: bool = True,
    on_progress: Callable[[int, Mapping[str, float]], None] | None = None,
) -> tuple[TrainReport, Trained]:
    """Train one arm, or go on where it was stopped; its report, and what evaluation finds of it.

    `overrides`: recipe fields for a smaller trial.

    Raises:
        NotMadeYet: without a manifest.
    """
    recipe = recipe_of(chain, arm, seed, overrides)
    manifest, partial = manifest_table(chain, arm, recipe.weights)
    identity = training_identity(recipe, manifest)[:16]
    folder = storage.join(chain.root, chain.source, "train", identity)
    report = train(
        recipe,
        manifest,
        folder,
        runtime=Runtime(
            cache_folder=chain.settings.cache_folder / "pictures",
            max_tar_cache_bytes=round(chain.settings.tar_cache_gb * 1e9),
            threads=chain.settings.threads,
            progress_bar=progress_bar,
        ),
        tracker=tracker_of(chain),
        labels=RunLabels(
            experiment=f"veclip {chain.scale.name}",
            name=f"{arm}_{chain.scale.name} seed {seed}",
            tags={"veclip.scale": chain.scale.name, "veclip.arm": arm, "veclip.seed": str(seed), **(tags or {})},
        ),
        on_progress=on_progress,
    )
    trained = Trained(
        chain.scale.name, arm, seed, identity, report.checkpoint, report.run_id, report.manifest_digest,
        partial or bool(overrides), asdict(report),
    )  # fmt: skip
    record(chain, trained, trial=bool(overrides))
    return report, trained


def tracker_of(chain: Chain) -> Tracker:
    """MLflow where settings name it."""
    uri = chain.settings.tracking_uri
    return NoTracker() if uri is None else MlflowTracker(uri, artifact_root=chain.settings.artifact_folder)


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
