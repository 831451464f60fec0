"""What is to be embedded, as shards that workers read: where an evaluation set's pictures lie with their captions, or the texts of
classes.

    00000.parquet           row, address, offset, length      the pictures; no row for classes
    00000.texts.parquet     item, text                        item is a caption or a class; a class has a text for each template

An index is known by its content alone: a set that is moved to another folder keeps its embeddings.
"""

import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
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
"""Of classes; a class's own are never parted."""

PICTURES_SCHEMA = pa.schema(
    [("row", pa.int32()), ("address", pa.string()), ("offset", pa.int64()), ("length", pa.int64())]
)
TEXTS_SCHEMA = pa.schema([("item", pa.int32()), ("text", pa.string())])

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_NAME_CHARS = 60


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


def folder_name(name: str) -> str:
    """A set's name as one of a folder: other characters and leading dots go, and a digest then keeps names apart."""
    safe = _UNSAFE.sub("_", name).lstrip(".")[:_NAME_CHARS]
    return safe if safe == name else f"{safe or 'set'}-{digest_of(name)[:8]}"


def index_set(root: str, evaluation_set: EvaluationSet) -> Index:
    """Write the set's pictures and captions, where they are not written yet or lay elsewhere then."""
    order_M = np.argsort(evaluation_set.caption_picture_M, kind="stable")
    first_of = np.searchsorted(evaluation_set.caption_picture_M[order_M], np.arange(len(evaluation_set) + 1))
    places = [(_anywhere(place.address), place.offset, place.length) for place in evaluation_set.pictures]

    def shards() -> Iterator[tuple[pa.Table, pa.Table]]:
        for start in range(0, len(places), PICTURES_A_SHARD):
            rows = range(start, min(start + PICTURES_A_SHARD, len(places)))
            pictures = [(row, *places[row]) for row in rows]
            captions = order_M[first_of[rows.start] : first_of[rows.stop]].tolist()
            yield _table(PICTURES_SCHEMA, pictures), _texts((m, evaluation_set.captions[m]) for m in captions)

    content = digest_of(["pictures", evaluation_set.content, PICTURES_A_SHARD])
    count = -(-len(places) // PICTURES_A_SHARD)
    return _written(root, folder_name(evaluation_set.name), content, digest_of(places), count, shards())


def index_classes(root: str, labelling: Labelling, templates: Sequence[str]) -> Index:
    """Write the texts of the classes, each class in every template; sets with the same classes share them."""
    each = max(1, TEXTS_A_SHARD // len(templates))
    starts = range(0, len(labelling.classes), each)

    def shards() -> Iterator[tuple[pa.Table, pa.Table]]:
        for start in starts:
            classes = enumerate(labelling.classes[start : start + each], start)
            yield (
                _table(PICTURES_SCHEMA, []),
                _texts((number, in_template(template, name)) for number, name in classes for template in templates),
            )

    content = digest_of(["classes", labelling.classes, list(templates), TEXTS_A_SHARD])
    return _written(root, "classes", content, "", len(starts), shards())


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


def _texts(items: "Iterator[tuple[int, str]]") -> pa.Table:
    """A lone surrogate is no text that a file or a tokenizer takes."""
    return _table(TEXTS_SCHEMA, [(item, text.encode("utf-8", "replace").decode()) for item, text in items])
