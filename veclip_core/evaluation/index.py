"""What is to be embedded, as shards that workers read: where an evaluation set's pictures lie, its captions, or the texts of
classes.

    00000.parquet           row, address, offset, length      the pictures; no row for texts
    00000.texts.parquet     item, text                        item is a caption or a class; a class has a text for each template

An index is known by its content alone: a set keeps its pictures' embeddings in another folder, under another name, with other
captions and templates, and only what changed is embedded.
"""

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from veclip_core import storage
from veclip_core.config import digest_of
from veclip_core.evaluation.sets import EvaluationSet, Labelling
from veclip_core.evaluation.zeroshot import in_template
from veclip_core.samples import Grid, ShardKey
from veclip_core.shards import ShardSet

FOLDER = "evaluation"
"""Below the root."""
TEXTS = "texts.parquet"
PICTURES_A_SHARD = 1_000
TEXTS_A_SHARD = 5_000
"""A class's own are never parted."""

PICTURES_SCHEMA = pa.schema(
    [("row", pa.int32()), ("address", pa.string()), ("offset", pa.int64()), ("length", pa.int64())]
)
TEXTS_SCHEMA = pa.schema([("item", pa.int32()), ("text", pa.string())])


@dataclass(frozen=True)
class Index:
    """A written index."""

    shards: ShardSet
    grid: Grid

    def shard_keys(self) -> list[ShardKey]:
        return self.grid.keys()

    def keys_of(self, rows: Iterable[int]) -> list[ShardKey]:
        """The shards that hold these pictures."""
        return [ShardKey(0, shard) for shard in sorted({row // PICTURES_A_SHARD for row in rows})]


def index_pictures(root: str, evaluation_set: EvaluationSet) -> Index:
    """Write where the set's pictures lie, where that is not written yet or they lay elsewhere then."""
    places = [(_anywhere(place.address), place.offset, place.length) for place in evaluation_set.pictures]
    starts = range(0, len(places), PICTURES_A_SHARD)

    def shards() -> Iterator[tuple[pa.Table, pa.Table]]:
        for start in starts:
            rows = enumerate(places[start : start + PICTURES_A_SHARD], start)
            yield _table(PICTURES_SCHEMA, [(row, *place) for row, place in rows]), _texts(())

    content = digest_of(["pictures", evaluation_set.pictures_digest or evaluation_set.content, PICTURES_A_SHARD])
    return _written(root, "pictures", content, digest_of(places), len(starts), shards())


def index_captions(root: str, captions: Sequence[str]) -> Index:
    """Write the captions."""
    starts = range(0, len(captions), TEXTS_A_SHARD)
    shards = (enumerate(captions[start : start + TEXTS_A_SHARD], start) for start in starts)
    content = digest_of(["captions", list(captions), TEXTS_A_SHARD])
    return _written(root, "captions", content, "", len(starts), map(_texts_alone, shards))


def index_classes(root: str, labelling: Labelling, templates: Sequence[str]) -> Index:
    """Write the texts of the classes, each class in every template; sets with the same classes share them."""
    each = max(1, TEXTS_A_SHARD // len(templates))
    starts = range(0, len(labelling.classes), each)
    shards = (
        (
            (number, in_template(template, name))
            for number, name in enumerate(labelling.classes[start : start + each], start)
            for template in templates
        )
        for start in starts
    )
    content = digest_of(["classes", labelling.classes, list(templates), TEXTS_A_SHARD])
    return _written(root, "classes", content, "", len(starts), map(_texts_alone, shards))


def read(shards: ShardSet, key: ShardKey, suffix: str) -> pa.Table:
    """One of a shard's tables."""
    content = pa.BufferReader(storage.read_bytes(shards.file(key, suffix)))
    return pq.read_table(content, use_threads=False, pre_buffer=False)


def _written(
    root: str, name: str, content: str, places: str, count: int, shards: Iterator[tuple[pa.Table, pa.Table]]
) -> Index:
    index = Index(ShardSet(root, f"{FOLDER}/{name}", "index", content[:16]), Grid(1, count))
    found = index.shards.markers(index.shard_keys())
    if len(found) == count and all(marker["places"] == places for marker in found.values()):
        return index
    for key, (pictures, texts) in zip(index.shard_keys(), shards, strict=True):
        for suffix, table in (("parquet", pictures), (TEXTS, texts)):
            file = io.BytesIO()
            pq.write_table(table, file, compression="zstd")
            storage.write_bytes(index.shards.file(key, suffix), file.getvalue())
        marker = {"stage": "index", "sha256": digest_of([content, key.shard]), "places": places}
        storage.write_json(index.shards.file(key, "success.json"), marker)
    return index


def _anywhere(address: str) -> str:
    """As any worker finds it, whatever folder it works in."""
    return address if "://" in address else os.path.abspath(address)


def _table(schema: pa.Schema, rows: Sequence[tuple[object, ...]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema)


def _texts_alone(items: Iterable[tuple[int, str]]) -> tuple[pa.Table, pa.Table]:
    return _table(PICTURES_SCHEMA, []), _texts(items)


def _texts(items: Iterable[tuple[int, str]]) -> pa.Table:
    """A lone surrogate is no text that a file or a tokenizer takes."""
    return _table(TEXTS_SCHEMA, [(item, text.encode("utf-8", "replace").decode()) for item, text in items])
