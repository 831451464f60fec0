"""Takes removed pictures and texts out of what is stored: the one operation that changes data that is done.

Tables keep the row with its ids, `error` `removed` and nothing else; in a tar the picture's bytes become zeros, so that every other
picture stays where manifests say it is. Markers stay as they were: what was made from a shard stands, and is not made again.
"""

import shutil
import tarfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from veclip_core import storage
from veclip_core.mixing.removals import REMOVED, Removals
from veclip_core.shards import LINK

KEPT = ("url_id", "sample_id", "tar", "offset", "candidate")
"""Columns of a removed row that stay: where it was, and not what."""
KEYS_OF_TARS = {"download": "url_id", "export": "sample_id"}
"""Stages with pictures, and the column that names their tars' members."""
BLOCK = 1 << 20


@dataclass
class Removed:
    """What was taken out."""

    urls: int = 0
    rows: int = 0
    """Of tables, at all stages."""
    pictures: int = 0
    elsewhere: list[str] = field(default_factory=list)
    """Tars that are not ours to change."""


def remove(root: str, source: str, removals: Removals) -> Removed:
    """Take out what `removals` name of every stage and configuration of a source, finished shards and trials alike."""
    # What a killed removal was copying holds the very pictures that are to go.
    storage.remove_dead_scratch(root)
    base = storage.join(root, source)
    storage.remove_dead_temporaries(base)
    tables = [name for name in storage.list_files(base) if name.endswith(".parquet")]
    removed, urls = Removed(), _urls_named(base, tables, removals)
    # A table that is done tells no domain any more: after a kill the note still does.
    note = storage.join(base, "removals", f"{removals.digest[:16]}.json")
    if storage.exists(note):
        urls |= set(storage.read_json(note))
    storage.write_json(note, sorted(urls))
    removed.urls = len(urls)
    for name in tables:
        table = _read(base, name)
        named = _named(table, urls, removals.ids)
        if not named.any():
            continue
        if (key := KEYS_OF_TARS.get(name.partition("/")[0])) is not None:
            pictures = set(table.filter(pa.array(named))[key].to_pylist())
            tar = storage.join(base, name.removesuffix("parquet") + "tar")
            if storage.exists(tar):
                removed.pictures += _blank_members(root, tar, pictures)
            elif storage.exists(link := storage.join(base, name.removesuffix("parquet") + LINK)):
                removed.elsewhere.append(str(storage.read_json(link)["tar"]))
        removed.rows += int(named.sum())
        _write(base, name, _blanked(table, named))
    return removed


def _urls_named(base: str, tables: Collection[str], removals: Removals) -> set[str]:
    """The url_ids of all URLs that are named, by themselves or by their domain."""
    found = set[str]()
    for name in tables:
        if name.startswith("download/"):
            found |= removals.url_ids(_read(base, name, ["url_id", "url"]))
    return found


def _named(table: pa.Table, urls: Collection[str], ids: Collection[str]) -> np.ndarray:
    named = np.zeros(table.num_rows, bool)
    for column, wanted in (("url_id", {*urls, *ids}), ("sample_id", set(ids))):
        if column in table.column_names:
            named |= np.asarray(pc.is_in(table[column], value_set=pa.array(sorted(wanted), pa.string())))
    return named


def _blanked(table: pa.Table, named: np.ndarray) -> pa.Table:
    mask = pa.array(named)
    for place, column in enumerate(table.schema):
        if column.name in KEPT:
            continue
        told = {"status": "error", "error": REMOVED}.get(column.name)
        blank = pa.scalar(told if told else "" if column.type == pa.string() else None, column.type)
        table = table.set_column(place, column, pc.if_else(mask, blank, table[column.name]))
    return table


def _blank_members(root: str, uri: str, url_ids: Collection[str]) -> int:
    """Overwrite the members of some pictures, and of what is said of them, with zeros; how many pictures there were."""
    with _changed(root, uri) as file:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            members = [member for member in tar if member.name.partition(".")[0] in url_ids]
        for member in members:
            file.seek(member.offset_data)
            left = member.size
            while left:
                left -= file.write(bytes(min(left, BLOCK)))
    return sum(member.name.endswith(".jpg") for member in members)


@contextmanager
def _changed(root: str, uri: str) -> Iterator[IO[bytes]]:
    """A copy of a file to change, that takes the file's place when the with block ends well."""
    with storage.scratch_folder(root) as folder:
        copy = folder / "copy"
        with storage.open_read(uri) as source, open(copy, "wb") as target:
            shutil.copyfileobj(source, target, BLOCK)
        with open(copy, "r+b") as file:
            yield file
        storage.publish_file(copy, uri)


def _read(base: str, name: str, columns: list[str] | None = None) -> pa.Table:
    return pq.read_table(
        pa.BufferReader(storage.read_bytes(storage.join(base, name))), columns=columns, use_threads=False
    )


def _write(base: str, name: str, table: pa.Table) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    storage.write_bytes(storage.join(base, name), buffer.getvalue().to_pybytes())
