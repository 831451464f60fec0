"""The manifests of a scale: its own, with the captions of styles, the data-filtering network's, and the experiment's, with the
control's."""

from collections.abc import Mapping
from typing import Any

from veclip_core import storage
from veclip_core.mixing.choose import CONTROL
from veclip_core.mixing.manifest import (
    CONTROL_MIX,
    MixConfig,
    MixOperation,
    ScoreColumn,
    manifest_address,
    mix_of,
    write_manifest_json,
)
from veclip_core.mixing.removals import Removals, read_removals
from veclip_core.pipeline import engines, executors
from veclip_core.pipeline.captions import MADE_BESIDE, captions_of
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.data_card import write_card
from veclip_core.pipeline.filtering import kept_by, score_column, scores_of
from veclip_core.pipeline.parts import first_parts, is_limited
from veclip_core.pipeline.screening import SCREENING, lineage_of, screened
from veclip_core.scales import Scale
from veclip_core.screening.verdicts import SCREEN
from veclip_core.settings import Settings
from veclip_core.shards import Current, NotMadeYet, ShardSet, promote
from veclip_core.stage_report import StageReport


def mix_config(scale: Scale, settings: Settings) -> MixConfig:
    """The columns that a scale's own manifest will have."""
    captioner, styles = engines.captioner_of(scale, settings), engines.styles_of(scale, settings)
    return mix_of(styles, [style.name for style in styles if engines.own_description(captioner, style)])


def make_manifest(chain: Chain, parts: int | None = None) -> tuple[StageReport, str]:
    """Join captions with pictures; the report and the address of the manifest's JSON."""
    captions = chain.current("select", "vecap")
    inputs, lineage = _inputs(chain, captions), dict(captions.inputs)
    count, partial = first_parts(parts, captions), is_limited(parts, captions)
    if (screen := screened(chain, captions.inputs["download"])) is not None:
        inputs[SCREEN], lineage = screen.shard_set(chain.root, chain.source), {**lineage, **screen.inputs}
        count, partial = min(count, screen.parts), partial or screen.partial
    styles, described_anew = engines.styles_of(chain.scale, chain.settings), []
    for style in styles:
        styled = captions_of(chain, style.name)
        _require_made_beside(chain, captions, styled, style.name)
        if styled.inputs["describe"] != captions.inputs["describe"]:
            described_anew.append(style.name)
        inputs[style.column] = styled.shard_set(chain.root, chain.source)
        lineage[style.column] = styled.identity
        count, partial = min(count, styled.parts), partial or styled.partial
    config = mix_of(styles, described_anew)
    if (found := score_column(chain)) is not None:
        column, scored = found
        _require_same_pictures(chain, captions, scored)
        config = config.model_copy(update={"scores": column})
        inputs["score"], lineage["score"] = scored.shard_set(chain.root, chain.source), scored.identity
        count, partial = min(count, scored.parts), partial or scored.partial
    return _make(chain, "manifest", config, captions, inputs, lineage, count, partial)


def make_dfn_manifest(chain: Chain) -> tuple[StageReport, str]:
    """The manifest of the AltTexts that the data-filtering network keeps, with no caption besides; the report and the address of
    its JSON."""
    scored, scores = scores_of(chain)
    config = MixConfig(captioned=False, scores=kept_by(scores, chain.settings))
    inputs = {name: scored.input(chain.root, chain.source, name) for name in ("list_urls", "download", "score")}
    lineage, count, partial = dict(scored.inputs), scored.parts, scored.partial
    if (screen := screened(chain, scored.inputs["download"])) is not None:
        inputs[SCREEN], lineage = screen.shard_set(chain.root, chain.source), {**lineage, **screen.inputs}
        count, partial = min(count, screen.parts), partial or screen.partial
    return _make(chain, "dfn_manifest", config, scored, inputs, lineage, count, partial)


def address_of_manifest(chain: Chain, asset: str = "manifest") -> str:
    """The JSON of one of the scale's current manifests."""
    return manifest_address(chain.root, chain.source, chain.current("mix", asset))


def make_control_manifest(chain: Chain) -> tuple[StageReport, str]:
    """The manifest with the control's captions as one more column: the same rows in the same order."""
    captions, control = chain.current("select", "vecap"), chain.current("select", "vecap_control")
    _require_same_captions(chain, captions, control)
    inputs = {**_inputs(chain, captions), CONTROL: control.shard_set(chain.root, chain.source)}
    lineage = {**captions.inputs, CONTROL: control.identity}
    # The same rows as in the manifest beside it, by the same verdicts and scores.
    manifest, config = chain.current("mix", "manifest"), CONTROL_MIX
    if SCREEN in manifest.inputs:
        inputs[SCREEN] = manifest.input(chain.root, chain.source, SCREEN)
        lineage |= lineage_of(inputs[SCREEN])
    if "score" in manifest.inputs:
        inputs["score"] = manifest.input(chain.root, chain.source, "score")
        lineage["score"] = manifest.inputs["score"]
        made = storage.read_json(storage.join(manifest.shard_set(chain.root, chain.source).uri, "config.json"))
        config = config.model_copy(update={"scores": ScoreColumn.model_validate(made["config"]["scores"])})
    partial = captions.partial or control.partial
    return _make(chain, "manifest_control", config, captions, inputs, lineage, captions.parts, partial)


def _inputs(chain: Chain, captions: Current) -> dict[str, ShardSet]:
    return {name: captions.input(chain.root, chain.source, name) for name in ("download", "select")}


def _make(
    chain: Chain,
    asset: str,
    config: MixConfig,
    samples: Current,
    inputs: Mapping[str, ShardSet],
    lineage: Mapping[str, str],
    parts: int,
    partial: bool,
) -> tuple[StageReport, str]:
    removals = read_removals(chain.settings.removed) if chain.settings.removed else Removals()
    if removals:
        config = config.model_copy(update={"removed": removals.digest})
    report = chain.run(MixOperation(config, removals), samples.grid, parts, inputs, executors.one_process(), partial)
    current = chain.made(asset, report, samples.grid, {**lineage, "mix": report.identity})
    uri = write_manifest_json(chain.root, chain.source, current, report, config)
    promote(chain.root, chain.source, current, report.shards_made_now)
    write_card(chain, current, f"{asset}_{chain.scale.name}", uri)
    return report, uri


def _require_same_pictures(chain: Chain, captions: Current, scored: Current) -> None:
    """Raises NotMadeYet where the scores are of another list or of other downloads: their samples would have none."""
    if any(scored.inputs[stage] != captions.inputs[stage] for stage in ("list_urls", "download")):
        s = chain.scale.name
        raise NotMadeYet(
            f"dfn_scores_{s} are of other pictures than the current vecap_{s}. Run `dagster asset materialize --select"
            f" dfn_scores_{s}` (or `veclip run dfn_scores --scale {s}`) first."
        )


def _require_made_beside(chain: Chain, captions: Current, styled: Current, style: str) -> None:
    """Raises NotMadeYet where a style was made beside other captions (of other pictures, descriptions, models or settings), or
    lacks shards: the manifest would lose their rows."""
    s = chain.scale.name
    again = f"Run `dagster asset materialize --select vecap_{s}` (or `veclip run vecap --scale {s}`) with VECLIP_STYLES={style}"
    if styled.inputs[MADE_BESIDE] != captions.identity:
        raise NotMadeYet(
            f"the captions `{style}` were made beside other captions than the current vecap_{s}. {again} first."
        )
    keys = styled.shard_keys()
    own, of_style = (len(made.shard_set(chain.root, chain.source).markers(keys)) for made in (captions, styled))
    if of_style < own:
        raise NotMadeYet(
            f"{own - of_style} shards of the captions `{style}` are set aside, and the manifest would lose their rows. {again}"
            f" again, or leave the style out (`veclip status --scale {s}` says what went wrong)."
        )


def _require_same_captions(chain: Chain, captions: Current, control: Current) -> None:
    """Whether the control's captions belong beside the others: their ids would match in any case.

    Raises NotMadeYet where the control, or the manifest that it is to stand beside, is made from other captions.
    """
    s, manifest = chain.scale.name, chain.current("mix", "manifest")
    # A manifest may have been screened anew since.
    of_captions = {stage: identity for stage, identity in captions.inputs.items() if stage not in SCREENING}
    if any(manifest.inputs[stage] != identity for stage, identity in of_captions.items()):
        raise NotMadeYet(
            f"manifest_{s} is made from other captions than the current vecap_{s}. Run `dagster asset materialize --select"
            f" manifest_{s}` (or `veclip run manifest --scale {s}`) first."
        )

    def config_of(made: Current, stage: str) -> Any:
        shards = made.input(chain.root, chain.source, stage)
        return storage.read_json(storage.join(shards.uri, "config.json"))["config"]

    same_pictures = all(
        control.inputs[stage] == captions.inputs[stage] for stage in ("list_urls", "download", "describe")
    )
    same_settings = all(
        config_of(control, stage) == config_of(captions, stage) for stage in ("check", "fuse", "select")
    )
    if not (same_pictures and same_settings and control.parts == captions.parts):
        what = "other descriptions" if same_settings else "other settings"
        raise NotMadeYet(
            f"vecap_control_{s} is made with {what} than the current vecap_{s}. Run `dagster asset materialize --select"
            f" vecap_control_{s}` (or `veclip run vecap_control --scale {s}`) with the same models first."
        )
