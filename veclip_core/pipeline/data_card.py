"""The report's data card: where everything came from, what was lost on the way and why, and what is a stand-in."""

import json
from collections.abc import Mapping
from typing import Any

from veclip_core.captioning.corruptions import Fused, false_acceptance
from veclip_core.captioning.fuse import FuseConfig
from veclip_core.evaluation.report.inputs import DataCard, Source, StageRows, StandIn
from veclip_core.pipeline import engines
from veclip_core.pipeline.data import Chain
from veclip_core.shards import ShardSet, Totals

CHECKED_CAPTIONS = 500
"""Accepted captions in which faults are planted, to state what the check lets pass."""
STAGES = ("list_urls", "download", "describe", "check", "fuse", "select", "mix")


def of(chain: Chain) -> DataCard:
    """The card of what the scale's manifest was made from."""
    current = chain.current("mix", "manifest")
    totals = {
        stage: Totals.of(
            ShardSet(chain.root, chain.source, stage, current.inputs[stage]).markers(current.shard_keys()).values()
        )
        for stage in STAGES
    }
    statuses = {
        name.removeprefix("status_"): int(count)
        for name, count in totals["select"].extra.items()
        if name.startswith("status_")
    }
    world = _world(chain)
    return DataCard(
        sources=_sources(chain, world),
        stages=[
            StageRows(stage, total.rows_in, total.rows_ok, dict(total.errors), total.fallbacks)
            for stage, total in totals.items()
        ],
        caption_statuses=statuses,
        stand_ins=_stand_ins(chain),
        notes=[*_notes(world), _refusals_note(totals["check"]), _check_note(chain)],
    )


def _refusals_note(check: Totals) -> str:
    """What was taken out before fusion, by text and reason."""
    told = ", ".join(
        f"{name.replace('_refused_', ' by ').replace('_', ' ')}: {int(count):,}" for name, count in check.extra.items()
    )
    return f"Texts refused before fusion, of {check.rows_in:,} samples: {told or 'none'}. They are in no prompt and in no manifest."


def captioner_accuracy(chain: Chain) -> dict[str, float | str]:
    """How often the stand-in is right on the evaluation artist; empty where a real captioner describes."""
    if engines.describer_of(chain.scale, chain.settings) != engines.STAND_IN:
        return {}
    found = engines.stand_in_accuracy(chain.settings)
    on = f"{found['fitted_pictures']:,} OpenMoji drawings of concepts it was fitted on (by another artist)"
    accuracy: dict[str, float | str] = {
        f"right concept first, of {found['concepts']:,}: {on}": found["fitted_recall"]["1"],
        "right concept among the first 5": found["fitted_recall"]["5"],
        "right concept among the first 10": found["fitted_recall"]["10"],
        "right subgroup": found["fitted_subgroup"],
        f"right subgroup: {found['unseen_pictures']:,} drawings of held-out concepts": found["unseen_subgroup"],
    }
    return accuracy


def _check_note(chain: Chain) -> str:
    """What the check of fused captions lets pass, measured on this very data."""
    current = chain.current("mix", "manifest")
    captions = current.input(chain.root, chain.source, "select")
    rows: list[Fused] = []
    for key in sorted(captions.markers(current.shard_keys())):
        table = captions.read_table(key, ["alt_text", "vec", "vecap", "status"]).to_pylist()
        rows += [Fused(row["alt_text"], row["vec"], row["vecap"]) for row in table if row["status"] == "fused"]
        if len(rows) >= CHECKED_CAPTIONS:
            break
    config = engines.fusing_config(engines.captioner_of(chain.scale, chain.settings))
    if not isinstance(config, FuseConfig):
        return "Captions are made in one pass: there is no VeC to hold them against, and their faithfulness is not checked."
    rates = false_acceptance(rows[:CHECKED_CAPTIONS], config.prompts, config.thresholds)
    told = "; ".join(f"{rate.fault}: {rate.accepted:,} of {rate.planted:,}" for rate in rates) or "no fused caption"
    told_of = "Faults planted in accepted captions, and how many the check let pass"
    return f"{told_of}: {told}. It is blind to words put together wrongly."


def _world(chain: Chain) -> Mapping[str, Any] | None:
    file = chain.settings.cache_folder / "world" / "world.json"
    if chain.source != "openclipart" or not file.exists():
        return None
    return dict(json.loads(file.read_text()))


def _sources(chain: Chain, world: Mapping[str, Any] | None) -> list[Source]:
    if world is None:
        return [Source("URL list", "pictures and AltText", "the user's own to state", note="given by VECLIP_URLS")]
    listed = sum(world["rows"].values())
    return [
        Source("OpenClipArt 0.18", "training pictures; uploaders' titles as AltText", "public domain", items=listed),
        Source("Noto Color Emoji", "what the stand-in captioner is fitted on", "OFL / Apache-2.0"),
        Source(
            f"OpenMoji {world['evaluation']['version']}",
            "evaluation pictures; their Unicode names as captions",
            world["evaluation"]["licence"],
            items=world["evaluation"]["items"],
        ),
        Source("EfficientNet-Lite0 (ImageNet)", "the stand-in captioner's features", "Apache-2.0"),
        Source("SmolLM2-135M-Instruct", "fuses AltText and VeC", "Apache-2.0"),
        Source("Unicode emoji-test", "names and groups of the emoji", "Unicode licence"),
    ]


def _stand_ins(chain: Chain) -> list[StandIn]:
    found = []
    if engines.describer_of(chain.scale, chain.settings) == engines.STAND_IN:
        found.append(
            StandIn(
                "describing",
                "a tagger on frozen EfficientNet-Lite0 features, fitted on Noto's emoji, put into words",
                "a vision-language model of LLaVA's class",
                "it names one of some 1,300 concepts and colours, and is wrong more often than not",
            )
        )
    if engines.captioner_of(chain.scale, chain.settings).fuser == engines.SMALL_FUSER:
        found.append(
            StandIn(
                "fusing",
                "SmolLM2-135M-Instruct",
                "Vicuna-1.1 or another instruction model a hundred times its size",
                "a real language model, but a very small one: it follows examples, not instructions",
            )
        )
    return found


def _notes(world: Mapping[str, Any] | None) -> list[str]:
    if world is None:
        return []
    left_out = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in world["pictures"].items())
    return [
        f"Of the pictures in the packages: {left_out}.",
        f"The URL list: {', '.join(f'{count:,} {kind}' for kind, count in world['rows'].items())}.",
        "The captioner knows ImageNet and emoji names, as any captioner knows its training data; the evaluation artist and a "
        "fifth of the concepts are unseen by it.",
    ]
