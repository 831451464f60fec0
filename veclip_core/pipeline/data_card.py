"""The data card: where everything came from, what was lost on the way and why, and what is a stand-in."""

import json
from collections.abc import Mapping
from typing import Any

from veclip_core import storage
from veclip_core.captioning.corruptions import Fused, false_acceptance
from veclip_core.captioning.fuse import FuseConfig
from veclip_core.captioning.released import ReleasedConfig
from veclip_core.evaluation.report.card import as_markdown
from veclip_core.evaluation.report.inputs import DataCard, Source, StageRows, StandIn
from veclip_core.pipeline import engines
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.provenance import Provenance, sources_of
from veclip_core.pipeline.screening import LOOK
from veclip_core.pipeline.screening_note import screening_note
from veclip_core.scales import OF_ITS_OWN
from veclip_core.screening.verdicts import SCREEN
from veclip_core.shards import Current, ShardSet, Totals

CHECKED_CAPTIONS = 500
"""Accepted captions in which faults are planted, to state what the check lets pass."""
STAGES = ("list_urls", "download", LOOK, SCREEN, "describe", "check", "fuse", "select", "score", "mix")
"""In the order of the card; those that a manifest is made from stand in it."""


def of(chain: Chain, manifest: Current | None = None) -> DataCard:
    """The card of what a manifest was made from; by default the scale's own that is current."""
    current = manifest or chain.current("mix", "manifest")
    totals = {
        stage: Totals.of(
            ShardSet(chain.root, chain.source, stage, current.inputs[stage]).markers(current.shard_keys()).values()
        )
        for stage in STAGES
        if stage in current.inputs
    }
    captioned = "select" in totals
    statuses = {
        name.removeprefix("status_"): int(count)
        for name, count in (totals["select"].extra.items() if captioned else ())
        if name.startswith("status_")
    }
    world = _world(chain)
    provenance = sources_of(current.input(chain.root, chain.source, "list_urls"))
    notes = [*_notes(world, captioned), *_notes_of_list(provenance), screening_note(chain, current)]
    if captioned:
        notes += [_refusals_note(totals["check"]), _check_note(chain, current)]
    stand_ins = _stand_ins(chain) if captioned else []
    if "score" in totals:
        network, note = _filtered(chain, current)
        notes.append(note)
        stand_ins += [_OWN_NETWORK] if network == f"{OF_ITS_OWN}_{chain.scale.name}" else []
    return DataCard(
        sources=_sources(provenance, chain.settings.licence, world, captioned),
        stages=[
            StageRows(stage, total.rows_in, total.rows_ok, dict(total.errors), total.fallbacks)
            for stage, total in totals.items()
        ],
        caption_statuses=statuses,
        stand_ins=stand_ins,
        notes=notes,
    )


def write_card(chain: Chain, manifest: Current, title: str, manifest_json: str) -> None:
    """Write a manifest's card as markdown beside its JSON."""
    text = as_markdown(of(chain, manifest), title)
    storage.write_bytes(card_address(manifest_json), text.encode())


def card_address(manifest_json: str) -> str:
    return f"{manifest_json.removesuffix('.manifest.json')}.card.md"


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


def _check_note(chain: Chain, current: Current) -> str:
    """What the check of fused captions lets pass, measured on this very data."""
    captions = current.input(chain.root, chain.source, "select")
    rows: list[Fused] = []
    for key in sorted(captions.markers(current.shard_keys())):
        table = captions.read_table(key, ["alt_text", "vec", "vecap", "status"]).to_pylist()
        rows += [Fused(row["alt_text"], row["vec"], row["vecap"]) for row in table if row["status"] == "fused"]
        if len(rows) >= CHECKED_CAPTIONS:
            break
    config = engines.fusing_config(engines.captioner_of(chain.scale, chain.settings))
    if isinstance(config, ReleasedConfig):
        return "The captions were made elsewhere and came with the list: their faithfulness is not checked."
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


_OWN_NETWORK = StandIn(
    "filtering",
    "the scale's own baseline, trained on the very pairs that it scores",
    "a data-filtering network, trained on other data of high quality",
)


def _filtered(chain: Chain, manifest: Current) -> tuple[str, str]:
    """The network by whose scores samples were kept, and what to say of that."""

    def config(shards: ShardSet) -> dict[str, Any]:
        return dict(storage.read_json(storage.join(shards.uri, "config.json"))["config"])

    network = config(manifest.input(chain.root, chain.source, "score"))["network"]
    least = config(manifest.shard_set(chain.root, chain.source))["scores"]["least"]
    kept = "their scores are a column, and none was left out by them" if least is None else f"kept from {least:g} on"
    of = f"{network['model']} ({network['kind']}, {network['revision'] or 'no revision known'})"
    return network["model"], f"AltTexts were scored with their pictures by {of}: {kept}."


def _notes_of_list(provenance: Provenance | None) -> list[str]:
    if provenance is None or not provenance.blocked_domains:
        return []
    return [f"Domains that were not asked: those of {provenance.blocked_domains}."]


def _sources(
    provenance: Provenance | None, licence: str, world: Mapping[str, Any] | None, captioned: bool
) -> list[Source]:
    if world is None:
        places = provenance.places if provenance else ("a URL list",)
        licence = licence or (provenance.licence if provenance else "") or "not stated (VECLIP_LICENCE)"
        return [Source(place, "pictures and AltText", licence) for place in places]
    listed = sum(world["rows"].values())
    drawings = Source(
        "OpenClipArt 0.18", "training pictures; uploaders' titles as AltText", "public domain", items=listed
    )
    if not captioned:
        return [drawings]
    return [
        drawings,
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


def _notes(world: Mapping[str, Any] | None, captioned: bool) -> list[str]:
    if world is None:
        return []
    left_out = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in world["pictures"].items())
    notes = [
        f"Of the pictures in the packages: {left_out}.",
        f"The URL list: {', '.join(f'{count:,} {kind}' for kind, count in world['rows'].items())}.",
    ]
    if captioned:
        notes.append(
            "The captioner knows ImageNet and emoji names, as any captioner knows its training data; the evaluation artist and a "
            "fifth of the concepts are unseen by it."
        )
    return notes
