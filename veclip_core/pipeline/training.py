"""The trained assets of a scale: `clip_S`, the paper's baseline on AltText alone, and `veclip_S`, on the mix."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from veclip_core import storage
from veclip_core.pipeline.data import Chain
from veclip_core.shards import NotMadeYet
from veclip_core.tracking import MlflowTracker, NoTracker, Tracker
from veclip_core.training.data import ManifestTable, load_manifest
from veclip_core.training.loop import RunLabels, Runtime, TrainReport, train, training_identity
from veclip_core.training.recipe import ALT_TEXT_ONLY, MIXED, RECIPES, Recipe

Arm = Literal["clip", "veclip"]
ARMS: tuple[Arm, ...] = ("clip", "veclip")
WEIGHTS: dict[Arm, dict[str, float]] = {"clip": ALT_TEXT_ONLY, "veclip": MIXED}
MANIFESTS_IN_MEMORY_ROWS = 2_000_000


@dataclass(frozen=True)
class Trained:
    """A finished training of one arm and seed, as evaluation finds it."""

    scale: str
    arm: Arm
    seed: int
    identity: str
    checkpoint: str
    run_id: str | None
    manifest_digest: str
    partial: bool
    report: Mapping[str, Any]


def recipe_of(chain: Chain, arm: Arm, seed: int, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The scale's recipe for one arm. Both arms differ in the caption weights alone."""
    fields = RECIPES[chain.scale.recipe].model_dump() | {"weights": WEIGHTS[arm], "seed": seed} | dict(overrides or {})
    return Recipe(**fields)


def train_arm(
    chain: Chain,
    arm: Arm,
    seed: int = 0,
    *,
    overrides: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    on_progress: Callable[[int, Mapping[str, float]], None] | None = None,
) -> tuple[TrainReport, Trained]:
    """Train one arm, or go on where it was stopped; its report, and what evaluation finds of it.

    `overrides`: recipe fields for a smaller trial.

    Raises:
        NotMadeYet: without a manifest.
    """
    manifest, partial = _manifest(chain)
    recipe = recipe_of(chain, arm, seed, overrides)
    identity = training_identity(recipe, manifest)[:16]
    folder = storage.join(chain.root, chain.source, "train", identity)
    report = train(
        recipe,
        manifest,
        folder,
        runtime=Runtime(cache_folder=chain.settings.cache_folder / "pictures", threads=chain.settings.threads),
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
    storage.write_json(_trained_uri(chain, arm, seed), asdict(trained))
    return report, trained


def trained(chain: Chain, arm: Arm, seed: int = 0) -> Trained:
    """Raises NotMadeYet with the command that makes it."""
    try:
        return Trained(**storage.read_json(_trained_uri(chain, arm, seed)))
    except FileNotFoundError:
        name = f"{arm}_{chain.scale.name}"
        raise NotMadeYet(
            f"{name} (seed {seed}) is not trained yet at {chain.root}. Run `dagster asset materialize --select {name}`"
            f" (or `veclip run {arm} --scale {chain.scale.name}`) first."
        ) from None


def tracker_of(chain: Chain) -> Tracker:
    """MLflow where settings name it."""
    uri = chain.settings.tracking_uri
    return NoTracker() if uri is None else MlflowTracker(uri, artifact_root=chain.settings.artifact_folder)


def _manifest(chain: Chain) -> tuple[ManifestTable, bool]:
    current = chain.current("mix", "manifest")
    shards = current.shard_set(chain.root, chain.source)
    mapped = chain.settings.cache_folder / "manifests" if current.rows_ok > MANIFESTS_IN_MEMORY_ROWS else None
    table = load_manifest(
        storage.join(chain.root, chain.source),
        # Of a shard that was set aside there is no file.
        [shards.file(key, "parquet") for key in sorted(shards.markers(current.shard_keys()))],
        digest=current.digest,
        cache_folder=mapped,
    )
    return table, current.partial


def _trained_uri(chain: Chain, arm: Arm, seed: int) -> str:
    return storage.join(chain.root, chain.source, "train", "current", f"{chain.scale.name}-{arm}-seed-{seed}.json")
