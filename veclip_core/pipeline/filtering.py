"""The data-filtering network of a scale, its scores, and what is kept by them."""

from veclip_core.mixing.manifest import ScoreColumn
from veclip_core.mixing.score import DECIMALS, ScoreConfig, ScoreOperation, Scores
from veclip_core.networks import NetworkConfig
from veclip_core.pipeline import executors
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.networks import network_named
from veclip_core.pipeline.parts import first_parts, is_limited, keys_in
from veclip_core.pipeline.screening import screened
from veclip_core.pipeline.trained import trained
from veclip_core.samples import PartRange
from veclip_core.scales import Scale
from veclip_core.screening.verdicts import SCREEN
from veclip_core.settings import Settings, SettingsError
from veclip_core.shards import Current, NotMadeYet
from veclip_core.stage_report import StageReport
from veclip_core.training.arms import ARMS, TRAINED_AT_EVERY_SCALE


def network_name(scale: Scale, settings: Settings) -> str:
    """The scale's network unless settings name another.

    Raises:
        SettingsError: for an arm that is not trained on the scale's own manifest, or not at every scale.
    """
    name = settings.dfn or scale.network
    if name in ARMS and name not in TRAINED_AT_EVERY_SCALE:
        raise SettingsError(
            f"VECLIP_DFN={name}: of the arms only {' and '.join(TRAINED_AT_EVERY_SCALE)} can filter; others are trained for"
            " comparisons, or on what was filtered"
        )
    return name


def network_of(chain: Chain) -> NetworkConfig:
    """The network, pinned.

    Raises:
        NotMadeYet: when it is an arm that is not trained.
        WeightsMissing: when it is a model that can't be had.
    """
    name = network_name(chain.scale, chain.settings)
    if name in ARMS:
        made = trained(chain, name)
        if made.manifest_digest != chain.current("mix", "manifest").digest:
            arm = f"{name}_{chain.scale.name}"
            raise NotMadeYet(
                f"{arm}, which is to score, was trained on another manifest than the current one. Run `dagster asset materialize"
                f" --select {arm}` (or `veclip run {name} --scale {chain.scale.name}`) first."
            )
        return NetworkConfig(
            kind="checkpoint", model=f"{name}_{chain.scale.name}", revision=made.identity, folder=made.checkpoint
        )
    return network_named(name, chain.settings)


def _is_trial(chain: Chain) -> bool:
    """Whether the network is an arm that was trained for a trial only."""
    name = network_name(chain.scale, chain.settings)
    return name in ARMS and trained(chain, name).partial


def make_scores(chain: Chain, parts: int | None = None, only: PartRange | None = None) -> StageReport:
    """Score every AltText with its picture. `parts`: the first so many; `only`: these, by which nothing becomes current."""
    downloads = chain.current("download", "shards")
    inputs = {
        "list_urls": downloads.input(chain.root, chain.source, "list_urls"),
        "download": downloads.shard_set(chain.root, chain.source),
    }
    count, partial = first_parts(parts, downloads), is_limited(parts, downloads)
    lineage = dict(downloads.inputs)
    if (screen := screened(chain, downloads.identity)) is not None:
        inputs[SCREEN], lineage = screen.shard_set(chain.root, chain.source), {**lineage, **screen.inputs}
        count, partial = min(count, screen.parts), partial or screen.partial
    partial = partial or _is_trial(chain)
    operation = ScoreOperation(ScoreConfig(network=network_of(chain)), chain.settings.threads)
    executor = executors.for_captions(chain.settings, operation)
    if only is not None:
        keys = keys_in(only, downloads)
        return chain.run(operation, downloads.grid, downloads.parts, inputs, executor, True, keys)
    report = chain.run(operation, downloads.grid, count, inputs, executor, partial)
    chain.promote("dfn_scores", report, downloads.grid, {**lineage, "score": report.identity})
    return report


def scores_of(chain: Chain) -> tuple[Current, Scores]:
    """The scale's scores, all of them. Raises NotMadeYet."""
    current = chain.current("score", "dfn_scores")
    shards = current.shard_set(chain.root, chain.source)
    return current, Scores.of(shards, shards.markers(current.shard_keys()))


def kept_by(scores: Scores, settings: Settings) -> ScoreColumn:
    """From which score on samples are kept. Raises NotMadeYet when nothing has a score."""
    if settings.dfn_least is not None:
        return ScoreColumn(least=round(settings.dfn_least, DECIMALS))
    if not scores.total:
        raise NotMadeYet("no sample has a score: there is no picture with an AltText among those that were scored")
    return ScoreColumn(least=scores.lowest_of_top(settings.dfn_top))


def scores_wanted(scale: Scale, settings: Settings) -> bool:
    """Whether a scale's own manifest waits for scores."""
    return settings.dfn_in_manifest != "no" and scale.name != "own" and network_name(scale, settings) not in ARMS


def score_column(chain: Chain) -> tuple[ScoreColumn, Current] | None:
    """What settings ask of a scale's own manifest: None for no scores in it.

    Raises:
        SettingsError: when the network is trained on that very manifest.
    """
    if chain.settings.dfn_in_manifest == "no" or chain.scale.name == "own":  # one's own pictures are not filtered
        return None
    if network_name(chain.scale, chain.settings) in ARMS:
        raise SettingsError(
            "VECLIP_DFN_IN_MANIFEST: the network is an arm that is trained on this very manifest. Name another by VECLIP_DFN, or"
            " use the manifest of its own, dfn_manifest"
        )
    current, scores = scores_of(chain)
    return (kept_by(scores, chain.settings) if chain.settings.dfn_in_manifest == "keep" else ScoreColumn()), current
