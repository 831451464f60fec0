"""Captions for a folder of one's own pictures, without a chain: a parquet table and a page to look at.

The AltText of `cat.jpg` is what `cat.txt` beside it says, where there is one; it is fused as in the chain. Without it the
description stands alone.
"""

import base64
import hashlib
import io
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from veclip_core.captioning.describe import Describer, decode
from veclip_core.captioning.engines.base import EngineRuntime, opened
from veclip_core.captioning.fuse import Candidate, FuseConfig, fuse_rows
from veclip_core.captioning.quality import QualityThresholds
from veclip_core.captioning.select import choose_caption
from veclip_core.mendable import Mendable
from veclip_core.samples import clean_alt_text
from veclip_core.storage import fatal_errors_named, publish_file, write_bytes

logger = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
SCHEMA = pa.schema(
    [
        (name, pa.string())
        for name in ("file", "sha256", "alt_text", "vec", "vecap", "status", "reason", "error", "vec_model")
    ]
)
BATCH = 8
"""Decoded at a time: eight pictures of a phone are some 600 MB."""
PAGE_PICTURES = 200
PAGE_PIXELS = 240


class FolderError(Mendable, ValueError):
    """The folder can't be captioned; the message says why."""


@dataclass(frozen=True)
class FolderReport:
    """What was made of a folder."""

    pictures: int
    captioned: int
    errors: dict[str, int]
    table: Path
    page: Path


def caption_folder(
    folder: Path,
    out: Path,
    describer: AbstractContextManager[Describer],
    fuse: FuseConfig,
    runtime: EngineRuntime,
) -> FolderReport:
    """Caption every picture below `folder`; `captions.parquet` and `captions.html` in `out`.

    Raises:
        FolderError: when there is no picture.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise FolderError(f"there is no picture in {folder}: it looks for {', '.join(SUFFIXES)}")
    # Before the work: a place that can't be written is better known now.
    with fatal_errors_named(str(out)):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    rows: list[dict[str, Any]] = []
    thumbnails: dict[str, bytes] = {}
    with describer as opened_describer:
        for row, thumbnail in _described(files, folder, opened_describer):
            rows.append(row)
            if thumbnail is not None and len(thumbnails) < PAGE_PICTURES:
                thumbnails[row["file"]] = thumbnail
    _fuse(rows, fuse, runtime)
    unfinished = out / ".captions.parquet.tmp"
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), unfinished)
    publish_file(unfinished, str(out / "captions.parquet"))
    write_bytes(str(out / "captions.html"), _page(folder, rows, thumbnails).encode())
    errors = Counter(row["error"] for row in rows if row["error"])
    return FolderReport(
        len(rows), len(rows) - errors.total(), dict(errors), out / "captions.parquet", out / "captions.html"
    )


def _described(files: list[Path], folder: Path, describer: Describer) -> Iterator[tuple[dict[str, Any], bytes | None]]:
    from tqdm import tqdm

    for start in tqdm(range(0, len(files), BATCH), desc="describing", unit="batch"):
        chunk = files[start : start + BATCH]
        contents = [_content(file) for file in chunk]
        images = [decode(content) for content in contents]
        descriptions = iter(describer.describe([image for image in images if image is not None]))
        for file, content, image in zip(chunk, contents, images, strict=True):
            beside = file.with_suffix(".txt")
            alt_text = clean_alt_text(_content(beside).decode("utf-8", "replace")) if beside.is_file() else ""
            row = dict.fromkeys(SCHEMA.names) | {
                "file": os.fsencode(file.relative_to(folder)).decode("utf-8", "replace"),
                "sha256": hashlib.sha256(content).hexdigest(),
                "alt_text": alt_text,
                "vec": "",
                "vec_model": describer.model_id,
            }
            if image is None:
                yield row | {"status": "error", "error": "undecodable" if content else "unreadable"}, None
                continue
            thumbnail = io.BytesIO()
            image.thumbnail((PAGE_PIXELS, PAGE_PIXELS))
            image.save(thumbnail, "JPEG", quality=85)
            yield row | {"vec": next(descriptions).text}, thumbnail.getvalue()


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        logger.warning("%s can't be read: %s", file, error)
        return b""


def _fuse(rows: list[dict[str, Any]], config: FuseConfig, runtime: EngineRuntime) -> None:
    good = [row for row in rows if row["status"] != "error"]
    candidates: list[list[Candidate]] = [[] for _ in good]
    if any(row["alt_text"] for row in good):
        with opened(config.engine, runtime) as engine:
            candidates = fuse_rows([(row["alt_text"], row["vec"]) for row in good], engine, config)
    for row, found in zip(good, candidates, strict=True):
        choice = choose_caption(row["alt_text"], row["vec"], [vars(one) for one in found], QualityThresholds())
        failed = choice.status == "error"
        row.update(vecap=choice.vecap, status=choice.status)
        row.update(error=choice.reason if failed else None, reason=None if failed else choice.reason)


def _page(folder: Path, rows: list[dict[str, Any]], thumbnails: dict[str, bytes]) -> str:
    from jinja2 import Environment

    template = Environment(autoescape=True).from_string(_TEMPLATE)
    shown = [
        row | {"picture": "data:image/jpeg;base64," + base64.b64encode(thumbnails[row["file"]]).decode()}
        for row in rows
        if row["file"] in thumbnails
    ]
    model = rows[0]["vec_model"]
    return template.render(
        folder=folder.name, rows=shown, total=len(rows), model=model, stand_in=model.startswith("concepts-")
    )


_TEMPLATE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Captions of {{ folder }}</title>
<style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1.5rem }
figure { margin: 0 } img { width: 100%; height: 12rem; object-fit: contain; background: #fff; border-radius: .4rem }
figcaption { font-size: .9rem } small { opacity: .7; display: block; overflow-wrap: anywhere }
</style>
<h1>Captions of {{ folder }}</h1>
<p>{{ total }} pictures, described by {{ model }}.
{% if stand_in %}<strong>This describer is a stand-in</strong>: a tagger fitted on emoji drawings, wrong more often than not.
{% endif %}</p>
<div class="grid">{% for row in rows %}
<figure><img src="{{ row.picture }}" alt=""><figcaption>{{ row.vecap }}
<small>{{ row.file }} · {{ row.status }}{% if row.alt_text %} · AltText: {{ row.alt_text }}{% endif %}</small></figcaption></figure>
{% endfor %}</div></html>
"""
