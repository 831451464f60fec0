"""The quality page of a scale's captions: what they are like, what was refused and why, with pictures."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from veclip_core import storage
from veclip_core.captioning.describe import decode, pictures_in
from veclip_core.captioning.preview import SHARDS_DRAWN_FROM, CaptionPreview, drawn, lot
from veclip_core.captioning.text_statistics import statistics_of
from veclip_core.evaluation.report.caption_page import TEXT_NAMES, CaptionQuality, render
from veclip_core.evaluation.report.inputs import CaptionExample
from veclip_core.networks import NetworkConfig, cosines, open_network
from veclip_core.pipeline import engines
from veclip_core.pipeline.captions import captions_of
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.networks import network_named
from veclip_core.samples import ShardKey
from veclip_core.shards import ShardSet, Totals

if TYPE_CHECKING:
    from PIL.Image import Image

STAGES = ("download", "describe", "check", "fuse", "select")
ROWS_READ = 1_500
"""Of a large scale so many rows give lengths, words and shares."""
ROWS_SCORED = 400
"""By a CLIP model, where one is named."""
SCORED_PX = 512
"""What a CLIP model sees is smaller."""
RANDOM_ROWS, EXAMPLES_OF_REASON = 24, 4


def measure(
    chain: Chain, sets: Mapping[str, ShardSet], wanted: Sequence[ShardKey], partial: bool, style: str = ""
) -> CaptionQuality:
    """Counts over the `wanted` shards; lengths, words, shares and examples over a random lot of their rows."""
    markers = {name: sets[name].markers(wanted) for name in STAGES}
    keys = sorted(markers["select"])
    some = sorted(keys, key=lambda key: lot(str(key)))[:SHARDS_DRAWN_FROM]
    rows = [row for key in some for row in sets["select"].read_table(key).to_pylist() if row["status"] != "error"]
    rows = sorted(rows, key=lambda row: lot(row["sample_id"]))[:ROWS_READ]
    examples = drawn(sets["select"], sets["download"], sets["fuse"], keys, RANDOM_ROWS, EXAMPLES_OF_REASON)
    captioner = engines.captioner_of(chain.scale, chain.settings)
    scorer, similarity = chain.settings.clip_scorer, {}
    if scorer:
        similarity = _similarity(network_named(scorer, chain.settings), sets, some, with_vec=not captioner.one_pass)
    return CaptionQuality(
        scale=chain.scale.name,
        captioner=f"{captioner.describer} and {captioner.fuser}"
        if captioner.fuser
        else f"{captioner.describer}, in one pass",
        stand_in=captioner.describer == engines.STAND_IN,
        totals={name: Totals.of(found.values()) for name, found in markers.items()},
        statistics=statistics_of(rows),
        random=[_example(look) for look in examples.any],
        by_reason={reason: [_example(look) for look in looks] for reason, looks in examples.by_reason.items()},
        partial=partial,
        style=style,
        similarity=similarity,
        scorer=scorer,
    )


def _similarity(
    network: NetworkConfig, sets: Mapping[str, ShardSet], keys: Sequence[ShardKey], with_vec: bool
) -> dict[str, list[float]]:
    """Cosines under a CLIP model, over samples of a few random shards that have all texts (in one pass there is no VeC)."""
    images: list[Image] = []
    names = {name: shown for name, shown in TEXT_NAMES.items() if with_vec or name != "vec"}
    texts: dict[str, list[str]] = {shown: [] for shown in names.values()}
    for key in keys:
        rows = sorted(sets["select"].read_table(key).to_pylist(), key=lambda row: lot(row["sample_id"]))
        wanted = {row["url_id"]: row for row in rows if all((row[name] or "").strip() for name in names)}
        wanted = dict(list(wanted.items())[: -(-ROWS_SCORED // len(keys))])
        downloaded = sets["download"].read_table(key, ["url_id", "offset", "bytes"]).to_pylist()
        places = {row["url_id"]: (row["offset"], row["bytes"]) for row in downloaded if row["url_id"] in wanted}
        with sets["download"].open(key, "tar") as tar:
            for url_id, data in pictures_in(tar, places):
                if (image := decode(data)) is not None:
                    image.thumbnail((SCORED_PX, SCORED_PX))
                    images.append(image)
                    for name, shown in names.items():
                        texts[shown].append(wanted[url_id][name])
    return cosines(open_network(network), images, texts) if images else {}


def of_current(chain: Chain, style: str = "") -> CaptionQuality:
    """Of the scale's captions that are current, or of a style's."""
    current = captions_of(chain, style)
    sets = {name: current.input(chain.root, chain.source, name) for name in STAGES}
    return measure(chain, sets, current.shard_keys(), current.partial, style)


def write_pages(chain: Chain) -> dict[str, tuple[str, CaptionQuality]]:
    """Write the page of the current captions and one of each style that settings ask for: style (`""` for none) to address and
    numbers."""
    pages = {}
    for style in ("", *(style.name for style in engines.styles_of(chain.scale, chain.settings))):
        found = of_current(chain, style)
        pages[style] = (write_page(chain, found, f"captions-{style}" if style else "captions"), found)
    return pages


def write_page(chain: Chain, found: CaptionQuality, name: str = "captions") -> str:
    """Write the page and its numbers (`.json`) into the root's reports; the page's address."""
    uri = storage.join(chain.root, "reports", f"{chain.scale.name}-{name}")
    storage.write_json(f"{uri}.json", numbers_of(found))
    storage.write_bytes(f"{uri}.html", render(found).encode())
    return f"{uri}.html"


def numbers_of(found: CaptionQuality) -> dict[str, Any]:
    """What the page shows, but for the pictures, as JSON."""
    statistics = asdict(found.statistics)
    kept: Mapping[str, list[float]] = statistics["kept"]
    statistics["kept"] = {
        name: round(sum(shares) / len(shares), 4) if shares else None for name, shares in kept.items()
    }
    return {
        "scale": found.scale,
        "captioner": found.captioner,
        "style": found.style,
        "partial": found.partial,
        "verdict": found.verdict,
        "costs": list(found.costs),
        "shares": found.shares(),
        "similarity": _means(found.similarity),
        "stages": {name: asdict(totals) for name, totals in found.totals.items()},
        "statistics": json.loads(json.dumps(statistics)),
    }


def _means(similarity: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Mean cosine by text, and how much closer the VeCap is to its picture than the AltText."""
    means = {name: round(sum(values) / len(values), 4) for name, values in similarity.items() if values}
    if {"AltText", "VeCap"} <= means.keys():
        means["VeCap minus AltText"] = round(means["VeCap"] - means["AltText"], 4)
    return means


def _example(look: CaptionPreview) -> CaptionExample:
    return CaptionExample(look.picture, look.alt_text, look.vec, look.vecap, look.status, look.reason, look.rejected)
