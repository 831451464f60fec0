"""The trainings of a scale, by arm and seed: `clip_S`, the paper's baseline on AltText alone, `veclip_S`, on the mix, and the
experiment's further arms."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from veclip_core import storage
from veclip_core.mixing.choose import further_columns
from veclip_core.pipeline.data import Chain
from veclip_core.shards import Current, NotMadeYet
from veclip_core.tracking import MlflowTracker, NoTracker, Tracker
from veclip_core.training.arms import TRAINED_AT_EVERY_SCALE, arm_named
from veclip_core.training.data import ManifestTable, load_manifest
from veclip_core.training.loop import RunLabels, Runtime, TrainReport, train, training_identity
from veclip_core.training.recipe import RECIPES, Recipe

logger = logging.getLogger(__name__)

MANIFESTS_IN_MEMORY_ROWS = 2_000_000


@dataclass(frozen=True)
class Trained:
    """A finished training of one arm and seed, as evaluation finds it."""

    scale: str
    arm: str
    seed: int
    identity: str
    checkpoint: str
    run_id: str | None
    manifest_digest: str
    partial: bool
    report: Mapping[str, Any]


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
    _record(chain, trained, trial=bool(overrides))
    return report, trained


def _record(chain: Chain, made: "Trained", trial: bool) -> None:
    """Let evaluation find it. A trial with other recipe fields does not take the place of a whole training on its manifest."""
    uri = _trained_uri(chain, made.arm, made.seed)
    if trial and storage.exists(uri):
        before = Trained(**storage.read_json(uri))
        if not before.partial and before.manifest_digest == made.manifest_digest:
            logger.info("%s seed %d: the trial leaves the whole training in its place", made.arm, made.seed)
            return
    storage.write_json(uri, asdict(made))


def trained(chain: Chain, arm: str, seed: int = 0) -> Trained:
    """Raises NotMadeYet with the command that makes it."""
    try:
        return Trained(**storage.read_json(_trained_uri(chain, arm, seed)))
    except FileNotFoundError:
        scale = chain.scale.name
        asset = f"{arm}_{scale}" if arm in TRAINED_AT_EVERY_SCALE else f"arms_{scale}"
        raise NotMadeYet(
            f"{arm}_{scale} (seed {seed}) is not trained yet at {chain.root}. Run `dagster asset materialize --select {asset}`"
            f" (or `veclip run {arm} --scale {scale} --seed {seed}`) first."
        ) from None


def tracker_of(chain: Chain) -> Tracker:
    """MLflow where settings name it."""
    uri = chain.settings.tracking_uri
    return NoTracker() if uri is None else MlflowTracker(uri, artifact_root=chain.settings.artifact_folder)


def manifest_of(chain: Chain, arm: str) -> Current:
    """What is current of the manifest that an arm reads. Raises NotMadeYet with the command that makes it."""
    return chain.current("mix", arm_named(arm).manifest)


def manifest_table(chain: Chain, arm: str, weights: Mapping[str, float]) -> tuple[ManifestTable, bool]:
    """The manifest that an arm reads, with the columns that have weights, and whether it is partial.

    Raises NotMadeYet with the command that makes it.
    """
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


def _trained_uri(chain: Chain, arm: str, seed: int) -> str:
    return storage.join(chain.root, chain.source, "train", "current", f"{chain.scale.name}-{arm}-seed-{seed}.json")
