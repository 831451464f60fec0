"""What lies in storage: the shards of one stage under one configuration, and which of them is current for a scale."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from veclip_core import storage
from veclip_core.mendable import Mendable
from veclip_core.samples import Grid, ShardKey

LINK = "link.json"
"""Suffix of the file that stands for a tar which lies elsewhere."""


@dataclass(frozen=True)
class ShardSet:
    """The output of one stage under one configuration."""

    root: str
    source: str
    stage: str
    identity: str

    @property
    def uri(self) -> str:
        return storage.join(self.root, self.source, self.stage, self.identity)

    def file(self, key: ShardKey, suffix: str) -> str:
        return storage.join(self.uri, key.part_name, f"{key.name}.{suffix}")

    def relative_file(self, key: ShardKey, suffix: str) -> str:
        """The file's path below `{root}/{source}`, as manifests name it."""
        return f"{self.stage}/{self.identity}/{key}.{suffix}"

    def read_table(self, key: ShardKey, columns: list[str] | None = None) -> pa.Table:
        # A shard's table is small. Without Arrow's thread pools, which now and then abort a short process as it exits.
        table = pa.BufferReader(storage.read_bytes(self.file(key, "parquet")))
        return pq.read_table(table, columns=columns, use_threads=False, pre_buffer=False)

    def address_of_tar(self, key: ShardKey) -> str:
        """As manifests name it: below `{root}/{source}`, or the whole address of a tar that lies elsewhere."""
        if storage.exists(self.file(key, LINK)):  # sources/own_pictures.py
            return str(storage.read_json(self.file(key, LINK))["tar"])
        return self.relative_file(key, "tar")

    def open(self, key: ShardKey, suffix: str) -> IO[bytes]:
        """One file of a shard, wherever its tar lies."""
        if suffix == "tar" and "://" in (address := self.address_of_tar(key)):
            return storage.open_read(address)
        return storage.open_read(self.file(key, suffix))

    def marker(self, key: ShardKey) -> dict[str, Any] | None:
        try:
            return dict(storage.read_json(self.file(key, "success.json")))
        except FileNotFoundError:
            return None

    def markers(self, keys: Iterable[ShardKey]) -> dict[ShardKey, dict[str, Any]]:
        """The success markers that are there, by one listing and one concurrent read."""
        names = set(storage.list_files(self.uri))
        done = {self.file(key, "success.json"): key for key in keys if f"{key}.success.json" in names}
        contents = storage.read_many(list(done))
        return {done[uri]: json.loads(content) for uri, content in contents.items()}

    def quarantined(self, keys: Iterable[ShardKey]) -> dict[ShardKey, dict[str, Any]]:
        names = set(storage.list_files(self.uri))
        found = [key for key in keys if f"{key}.quarantine.json" in names and f"{key}.success.json" not in names]
        return {key: storage.read_json(self.file(key, "quarantine.json")) for key in found}


@dataclass(frozen=True)
class Totals:
    """Sums over the markers of a stage."""

    rows_in: int
    rows_ok: int
    fallbacks: int
    errors: Mapping[str, int]
    extra: Mapping[str, float]
    bytes: int
    worker_seconds: float

    @classmethod
    def of(cls, markers: Iterable[Mapping[str, Any]]) -> "Totals":
        found = list(markers)
        errors: Counter[str] = Counter()
        extra: Counter[str] = Counter()
        for marker in found:
            errors.update(marker["errors"])
            extra.update(marker["extra"])
        return cls(
            rows_in=sum(marker["rows_in"] for marker in found),
            rows_ok=sum(marker["rows_ok"] for marker in found),
            fallbacks=sum(marker["fallbacks"] for marker in found),
            errors=dict(errors.most_common()),
            extra=dict(extra),
            bytes=sum(marker["bytes"] for marker in found),
            worker_seconds=round(sum(marker["seconds"] for marker in found), 3),
        )


class NotMadeYet(Mendable):
    """An asset is needed that is not there; the message names the command that makes it."""


@dataclass(frozen=True)
class Current:
    """What downstream reads: the latest output of a stage that succeeded for a scale."""

    stage: str
    scale: str
    identity: str
    digest: str
    """Of the content of its shards."""
    grid_parts: int
    shards_per_part: int
    parts: int
    """The first so many parts of the grid are made."""
    partial: bool
    inputs: Mapping[str, str]
    """Stage to identity, of everything upstream of it."""
    rows_ok: int

    @property
    def grid(self) -> Grid:
        return Grid(self.grid_parts, self.shards_per_part)

    def shard_set(self, root: str, source: str) -> ShardSet:
        return ShardSet(root, source, self.stage, self.identity)

    def input(self, root: str, source: str, stage: str) -> ShardSet:
        """Raises NotMadeYet where an older version made this without that stage."""
        if stage not in self.inputs:
            raise NotMadeYet(
                f"{self.stage} of scale {self.scale} was made by an older version, without `{stage}`: make its asset again"
            )
        return ShardSet(root, source, stage, self.inputs[stage])

    def shard_keys(self) -> list[ShardKey]:
        return self.grid.keys(self.parts)


def _current_uri(root: str, source: str, stage: str, scale: str) -> str:
    return storage.join(root, source, stage, "current", f"{scale}.json")


def promote(root: str, source: str, current: Current, shards_made: int) -> bool:
    """Let downstream read this one from now on, the one before stays where it is; whether it was done.

    A trial on some parts that found them all made (`shards_made` is 0) leaves a larger one of the same configuration current.
    """
    before = read_current(root, source, current.stage, current.scale)
    if before is not None and shards_made == 0:
        larger = before.parts > current.parts and before.grid == current.grid
        if larger and (before.identity, before.inputs) == (current.identity, current.inputs):
            return False
    storage.write_json(_current_uri(root, source, current.stage, current.scale), asdict(current))
    return True


def read_current(root: str, source: str, stage: str, scale: str) -> Current | None:
    try:
        return Current(**storage.read_json(_current_uri(root, source, stage, scale)))
    except FileNotFoundError:
        return None
