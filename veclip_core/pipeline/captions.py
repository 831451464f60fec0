"""The captions of a scale: the stages from a picture to its VeCap, for the scale itself, for further styles and for the control."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from veclip_core.captioning.preview import lot
from veclip_core.captioning.shuffle import ShuffleOperation
from veclip_core.captioning.styles import Style, style_named
from veclip_core.pipeline import engines, executors
from veclip_core.pipeline.budget import Limit
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.parts import first_parts, is_limited, keys_in
from veclip_core.pipeline.screening import lineage_of, screened
from veclip_core.samples import PartRange, ShardKey
from veclip_core.screening.verdicts import SCREEN
from veclip_core.settings import SettingsError
from veclip_core.shards import Current, NotMadeYet, ShardSet, read_current
from veclip_core.stage import Operation, output_of
from veclip_core.stage_report import StageReport

SHARED_BY_STYLES = ("list_urls", "download", "describe", "check")
"""Inputs of a style that has no description of its own."""
MADE_BESIDE = "vecap"
"""In a style's lineage: the scale's captions that it stands beside."""


@dataclass(frozen=True)
class Captions:
    """What captioning stages made, and where."""

    reports: list[StageReport]
    sets: Mapping[str, ShardSet]
    keys: list[ShardKey]


def make_captions(
    chain: Chain, parts: int | None = None, limit: Limit | None = None, only: PartRange | None = None
) -> list[StageReport]:
    """Describe, check, fuse, select; the reports of the four. What is current moves when the last of them succeeds.

    Args:
        parts: the first so many, which makes it partial.
        only: these parts, by which nothing becomes current.
        limit: of hours and money, for this and whatever is made beside it; by default the settings', from now on.

    Raises:
        SettingsError: for a style that can't be made afterwards, before anything is paid for.
    """
    engines.styles_of(chain.scale, chain.settings)
    downloads = chain.current("download", "shards")
    count, trial = first_parts(parts, downloads), is_limited(parts, downloads)
    inputs = _downloaded(chain, downloads)
    if (screen := screened(chain, downloads.identity)) is not None:
        count, trial = min(count, screen.parts), trial or screen.partial
    keys = keys_in(only, downloads) if only else None
    return _make(
        chain, "vecap", _operations(chain), inputs, downloads, count, trial or only is not None, only=keys, limit=limit
    ).reports


def make_styles(chain: Chain, parts: int | None = None, limit: Limit | None = None) -> dict[str, list[StageReport]]:
    """The further captions that settings ask for, of the scale's captioned samples: style to the reports of its stages."""
    limit = limit or Limit.of(chain.settings)
    captions = chain.current("select", "vecap")
    count, trial = first_parts(parts, captions), is_limited(parts, captions)
    made = {}
    for style in engines.styles_of(chain.scale, chain.settings):
        operations, shared = _operations_of_style(chain, style)
        inputs = {name: captions.input(chain.root, chain.source, name) for name in shared}
        inputs |= _screen_beside(chain, captions)
        beside = {MADE_BESIDE: captions.identity}
        made[style.name] = _make(
            chain, style.column, operations, inputs, captions, count, trial, beside=beside, limit=limit
        ).reports
    return made


def captions_of(chain: Chain, style: str = "") -> Current:
    """What is current of a scale's captions, or of a style's.

    Raises:
        NotMadeYet: with the command that makes it.
        SettingsError: when there is no such style.
    """
    if not style:
        return chain.current("select", "vecap")
    try:
        style_named(style)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    scale = chain.scale.name
    found = read_current(chain.root, chain.source, "select", f"{scale}-{style}")
    if found is None:
        raise NotMadeYet(
            f"the captions `{style}` of scale {scale} are not made yet at {chain.root}. Set VECLIP_STYLES={style} and run"
            f" `dagster asset materialize --select vecap_{scale}` (or `veclip run vecap --scale {scale}`) first."
        )
    return found


def make_canary(chain: Chain, share: float) -> tuple[Captions, dict[str, Captions]]:
    """The captions of `share` of the shards that are downloaded, chosen by a hash; the scale's own, and those of styles by name.

    They count: the whole run finds them done. Nothing becomes current by it.
    """
    styles, limit = engines.styles_of(chain.scale, chain.settings), Limit.of(chain.settings)
    downloads = chain.current("download", "shards")
    done = sorted(
        downloads.shard_set(chain.root, chain.source).markers(downloads.shard_keys()), key=lambda key: lot(str(key))
    )
    keys = frozenset(done[: max(1, math.ceil(share * len(done)))])
    inputs = _downloaded(chain, downloads)
    parts = downloads.parts
    own = _make(chain, "vecap", _operations(chain), inputs, downloads, parts, True, only=keys, limit=limit)
    styled = {}
    for style in styles:
        operations, shared = _operations_of_style(chain, style)
        takes = {name: shards for name, shards in own.sets.items() if name in (*shared, SCREEN)}
        styled[style.name] = _make(
            chain, style.column, operations, takes, downloads, parts, True, only=keys, limit=limit
        )
    return own, styled


def make_control(chain: Chain) -> list[StageReport]:
    """The control's captions: AltText fused with another picture's VeC. The reports of shuffle, check, fuse and select."""
    captions = chain.current("select", "vecap")
    inputs = {name: captions.input(chain.root, chain.source, name) for name in ("list_urls", "download", "describe")}
    inputs |= _screen_beside(chain, captions)
    operations = [ShuffleOperation(), *_operations(chain)[1:]]
    return _make(chain, "vecap_control", operations, inputs, captions, captions.parts, captions.partial).reports


def _operations(chain: Chain) -> list[Operation]:
    engines.require_models(chain.scale, chain.settings)
    return [
        engines.describe_operation(chain.scale, chain.settings),
        engines.check_operation(chain.scale, chain.settings),
        engines.fuse_operation(chain.scale, chain.settings),
        engines.select_operation(chain.scale, chain.settings),
    ]


def _operations_of_style(chain: Chain, style: Style) -> tuple[list[Operation], tuple[str, ...]]:
    """A style's stages, and which outputs of the scale's own captions they take."""
    anew = engines.own_description(engines.captioner_of(chain.scale, chain.settings), style)
    first = [engines.describe_operation, engines.check_operation] if anew else []
    makers = [*first, engines.fuse_operation, engines.select_operation]
    operations = [make(chain.scale, chain.settings, style) for make in makers]
    return operations, SHARED_BY_STYLES[:2] if anew else SHARED_BY_STYLES


def _downloaded(chain: Chain, downloads: Current) -> dict[str, ShardSet]:
    found = {
        "list_urls": downloads.input(chain.root, chain.source, "list_urls"),
        "download": downloads.shard_set(chain.root, chain.source),
    }
    if (screen := screened(chain, downloads.identity)) is not None:
        found[SCREEN] = screen.shard_set(chain.root, chain.source)
    return found


def _screen_beside(chain: Chain, captions: Current) -> dict[str, ShardSet]:
    """The screening for what is made beside captions: the one that is current where settings ask for one, else theirs, if any."""
    if (screen := screened(chain, captions.inputs["download"])) is not None:
        return {SCREEN: screen.shard_set(chain.root, chain.source)}
    return {SCREEN: captions.input(chain.root, chain.source, SCREEN)} if SCREEN in captions.inputs else {}


def _make(
    chain: Chain,
    asset: str,
    operations: Sequence[Operation],
    inputs: Mapping[str, ShardSet],
    upstream: Current,
    parts: int,
    trial: bool,
    *,
    only: frozenset[ShardKey] | None = None,
    limit: Limit | None = None,
    beside: Mapping[str, str] | None = None,
) -> Captions:
    """Run captioning stages one after the other. What is current moves when the last succeeds, unless `only` some are made."""
    limit = limit or Limit.of(chain.settings)
    made, reports = dict(inputs), []
    for operation in operations:
        takes = {name: made[name] for name in engines.inputs_of(operation)}
        if SCREEN in made and engines.reads_pictures(operation):
            takes[SCREEN] = made[SCREEN]
        if "shuffle" in made:
            takes = {name: made["shuffle"] if name == "describe" else shards for name, shards in takes.items()}
        executor = executors.for_captions(chain.settings, operation)
        run = partial(chain.run, operation, upstream.grid, parts, takes, executor, trial, only)
        if executors.needs_engine(operation) and limit.set:
            run = partial(run, may_go_on=limit.allows(executors.devices(chain.settings, executor)))
        reports.append(run())
        made[operation.name] = output_of(operation, chain.root, chain.source, takes)
    lineage = {**(beside or {}), **{name: shards.identity for name, shards in made.items()}}
    if SCREEN in made:
        lineage |= lineage_of(made[SCREEN])
    for report in reports if only is None else ():
        chain.promote(asset, report, upstream.grid, lineage)
    return Captions(reports, made, sorted(only or upstream.grid.keys(parts)))
