"""Captions with their pictures, for people to look at: in Dagster, in the report, on the terminal."""

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from veclip_core.captioning.describe import decode
from veclip_core.samples import ShardKey
from veclip_core.shards import ShardSet

THUMBNAIL_PIXELS = 96
SHARDS_DRAWN_FROM = 20
"""Of a large scale not all are read."""
_AS_ENTITIES = {ord(char): f"&#{ord(char)};" for char in "&<>\"'\\`*_{}[]()#+!|~"}
"""What HTML or markdown would read as more than text."""


@dataclass(frozen=True)
class CaptionPreview:
    """One sample's texts and its picture as a small JPEG."""

    sample_id: str
    picture: bytes
    alt_text: str
    vec: str
    vecap: str
    status: str
    reason: str | None
    rejected: str | None
    """What the fusing model wrote last, where `select` refused it."""


def described(
    describe: ShardSet, list_urls: ShardSet, download: ShardSet, key: ShardKey, count: int
) -> list[CaptionPreview]:
    """The first descriptions of a shard, before anything is fused."""
    alt_of = {row["url_id"]: row["alt_text"] for row in list_urls.read_table(key, ["url_id", "alt_text"]).to_pylist()}
    rows = [row for row in describe.read_table(key).to_pylist() if row["status"] == "ok"][:count]
    pictures = thumbnails(download, key, [row["url_id"] for row in rows])
    return [
        CaptionPreview(
            row["url_id"], pictures[row["url_id"]], alt_of[row["url_id"]], row["vec"], "", "described", None, None
        )
        for row in rows
    ]


def selected(
    select: ShardSet,
    download: ShardSet,
    key: ShardKey,
    count: int,
    *,
    fuse: ShardSet | None = None,
    status: str | None = None,
) -> list[CaptionPreview]:
    """The first samples of a shard, of one status or of any; with `fuse`, refused candidates too."""
    rows = [row for row in _good_rows(select, key) if status in (None, row["status"])]
    return _previews(download, fuse, key, rows[:count])


@dataclass(frozen=True)
class Lot:
    """Samples drawn by a hash of their ids: nobody picked them."""

    any: list[CaptionPreview]
    by_reason: dict[str, list[CaptionPreview]]
    """Samples of which an answer was refused, by the reason; `rejected` is that answer."""


def drawn(
    select: ShardSet, download: ShardSet, fuse: ShardSet, keys: Sequence[ShardKey], count: int, each_reason: int
) -> Lot:
    """`count` random samples and up to `each_reason` of every reason for a refusal, out of at most a few random shards."""
    some = sorted(keys, key=lambda key: lot(str(key)))[:SHARDS_DRAWN_FROM]
    rows = {row["sample_id"]: (key, row) for key in some for row in _good_rows(select, key)}
    by_lot = sorted(rows, key=lot)
    refused: dict[str, dict[str, str]] = {}
    for key in some:
        for candidate in fuse.read_table(key, ["sample_id", "text", "rejected"]).to_pylist():
            if candidate["rejected"] and candidate["sample_id"] in rows:
                refused.setdefault(candidate["rejected"], {})[candidate["sample_id"]] = candidate["text"]
    of_reason = {reason: sorted(texts, key=lot)[:each_reason] for reason, texts in sorted(refused.items())}
    wanted = {*by_lot[:count], *(sample for samples in of_reason.values() for sample in samples)}
    looks = {
        look.sample_id: look
        for key in some
        for look in _previews(download, fuse, key, [rows[sample][1] for sample in wanted if rows[sample][0] == key])
    }
    return Lot(
        [looks[sample] for sample in by_lot[:count]],
        {
            reason: [replace(looks[sample], rejected=refused[reason][sample]) for sample in samples]
            for reason, samples in of_reason.items()
        },
    )


def _good_rows(select: ShardSet, key: ShardKey) -> list[dict[str, Any]]:
    return [row for row in select.read_table(key).to_pylist() if row["status"] != "error"]


def lot(name: str) -> bytes:
    """What samples and shards are drawn by: a hash of the name, the same in every run."""
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def _previews(
    download: ShardSet, fuse: ShardSet | None, key: ShardKey, rows: Sequence[dict[str, Any]]
) -> list[CaptionPreview]:
    pictures = thumbnails(download, key, [row["url_id"] for row in rows])
    refused: dict[str, str] = {}
    if fuse is not None:
        for candidate in fuse.read_table(key, ["sample_id", "text", "rejected"]).to_pylist():
            if candidate["rejected"]:
                refused[candidate["sample_id"]] = candidate["text"]
    return [
        CaptionPreview(
            row["sample_id"],
            pictures[row["url_id"]],
            row["alt_text"] or "",
            row["vec"] or "",
            row["vecap"] or "",
            row["status"],
            row["reason"],
            refused.get(row["sample_id"]) if row["status"] != "fused" else None,
        )
        for row in rows
    ]


def markdown_table(previews: Sequence[CaptionPreview]) -> str:
    """A table for Dagster's markdown: every text escaped, pictures as data URIs. About 4 kB a row."""
    lines = ["| picture | AltText | VeC | VeCap | status |", "|---|---|---|---|---|"]
    for preview in previews:
        status = preview.status if preview.reason is None else f"{preview.status} ({preview.reason})"
        cells = [escaped(text) for text in (preview.alt_text, preview.vec, preview.vecap, status)]
        lines.append(f"| {picture_cell(preview.picture)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture_cell(jpeg: bytes) -> str:
    """A picture as a data URI, for a table of markdown."""
    return f"![](data:image/jpeg;base64,{base64.b64encode(jpeg).decode()})"


def escaped(text: str, at_most: int = 300) -> str:
    """A text for a cell of a table of markdown."""
    shown = text if len(text) <= at_most else text[:at_most] + "…"
    return " ".join(shown.split()).translate(_AS_ENTITIES)


def thumbnails(download: ShardSet, key: ShardKey, of_urls: Sequence[str]) -> dict[str, bytes]:
    """Small JPEGs of some of a shard's pictures, by url_id."""
    from PIL import Image

    places = {
        row["url_id"]: (row["offset"], row["bytes"])
        for row in download.read_table(key, ["url_id", "offset", "bytes"]).to_pylist()
        if row["url_id"] in set(of_urls) and row["bytes"] is not None  # it was removed
    }
    thumbnails = {}
    with download.open(key, "tar") as tar:
        for of_url, (offset, size) in sorted(places.items(), key=lambda place: place[1]):
            tar.seek(offset)
            picture = decode(tar.read(size)) or Image.new("RGB", (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), "white")
            picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=80)
            thumbnails[of_url] = buffer.getvalue()
    return thumbnails
