"""One's own pictures from end to end, without Dagster: listed, described, checked, fused, selected; a table and a page."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from veclip_core import storage
from veclip_core.pipeline import engines, quality
from veclip_core.pipeline.budget import Limit
from veclip_core.pipeline.captions import captions_of, make_captions, make_styles
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.screening import make_screen
from veclip_core.scales import SCALES
from veclip_core.settings import Settings

CAPTIONS_SCHEMA = pa.schema(
    [
        (name, pa.string())
        for name in (
            "file", "url_id", "sample_id", "alt_text", "vec", "vecap", "status", "reason", "refused", "error", "vec_model", "model",
        )
    ]
)  # fmt: skip
"""One row a picture and AltText. `vecap` is the caption; `status` says what it is: fused, concatenated, vec, alt or error.

A style's follow: `vec_<style>`, `vecap_<style>`, `status_<style>`.
"""


@dataclass(frozen=True)
class OwnReport:
    """What was made of them."""

    rows: int
    captioned: int
    errors: dict[str, int]
    table: str
    page: str
    stand_in: bool
    """Whether the describer was the sample's stand-in."""


def caption(settings: Settings, pictures: str, table: str, out: str) -> OwnReport:
    """Caption every picture at `pictures`; `captions.parquet` and `captions.html` in `out`. Run again, it goes on where it stopped.

    Raises:
        OwnPicturesError: when there is nothing to caption.
        SettingsError: for a style that is not there.
        ListError: when the table of AltTexts can't be read.
    """
    own = settings.model_copy(
        update={"root": out, "pictures": pictures, "alt_texts": table, "cache": str(settings.cache_folder)}
    )
    chain = Chain(own, SCALES["own"])
    limit = Limit.of(own)
    engines.styles_of(chain.scale, own)  # what can't be made is said before pictures are packed
    chain.raw_urls()
    chain.shards()
    if own.screen:
        make_screen(chain)
    make_captions(chain, limit=limit)
    make_styles(chain, limit=limit)
    return export(chain)


def export(chain: Chain) -> OwnReport:
    """Write the current captions of a scale as one table with the files' names, and the page about their quality."""
    current = captions_of(chain)
    sets = {name: current.input(chain.root, chain.source, name) for name in ("list_urls", "download", "select")}
    styles = engines.styles_of(chain.scale, chain.settings)
    styled = {style.name: captions_of(chain, style.name).shard_set(chain.root, chain.source) for style in styles}
    schema = CAPTIONS_SCHEMA
    for style in styled:
        for column in ("vec", "vecap", "status"):
            schema = schema.append(pa.field(f"{column}_{style}", pa.string()))
    uri = storage.join(chain.root, "captions.parquet")
    errors: Counter[str] = Counter()
    rows = 0
    with storage.scratch_folder(chain.root) as scratch:
        unfinished = scratch / "captions.parquet"
        with pq.ParquetWriter(unfinished, schema, compression="zstd") as writer:
            markers = {name: shards.markers(current.shard_keys()) for name, shards in sets.items()}
            for key in sorted(markers["list_urls"]):
                listed = {row["sample_id"]: row for row in sets["list_urls"].read_table(key).to_pylist()}
                downloaded = sets["download"].read_table(key).to_pylist() if key in markers["download"] else []
                selected = sets["select"].read_table(key).to_pylist() if key in markers["select"] else []
                pictures = {row["url_id"]: row for row in downloaded}
                made = {row["sample_id"]: row for row in selected}
                table = [
                    _row(sample, pictures.get(sample["url_id"], {}), made.get(sample_id, {}))
                    for sample_id, sample in listed.items()
                ]
                for style, shards in styled.items():
                    _add_style(table, style, shards.read_table(key).to_pylist() if shards.marker(key) else [])
                errors.update(row["error"] for row in table if row["error"])
                rows += len(table)
                writer.write_table(pa.Table.from_pylist(table, schema))
        storage.publish_file(Path(unfinished), uri)
    pages = quality.write_pages(chain)
    page, found = pages[""]
    return OwnReport(rows, rows - errors.total(), dict(errors.most_common()), uri, page, found.stand_in)


def _add_style(table: list[dict[str, str | None]], style: str, selected: list[dict[str, str]]) -> None:
    made = {row["sample_id"]: row for row in selected}
    for row in table:
        found = made.get(str(row["sample_id"]), {})
        row |= {f"{column}_{style}": found.get(column) for column in ("vec", "vecap", "status")}


def _row(sample: dict[str, str], picture: dict[str, str], made: dict[str, str]) -> dict[str, str | None]:
    """One row of the table: what became of one AltText, wherever it was lost."""
    error = sample["error"] or picture.get("error") or made.get("error")
    lost = "error" if error or not made else made["status"]
    return {
        "file": sample["url"],
        "url_id": sample["url_id"],
        "sample_id": sample["sample_id"],
        "alt_text": sample["alt_text"],
        "vec": made.get("vec"),
        "vecap": made.get("vecap"),
        "status": lost,
        "reason": made.get("reason"),
        "refused": made.get("refused"),
        "error": error or (None if made else "shard_set_aside"),
        "vec_model": made.get("vec_model"),
        "model": made.get("model"),
    }
