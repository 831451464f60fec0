"""The stage `export`: a manifest's pictures and texts as WebDataset, for trainers that know nothing of manifests.

A sample is `<sample_id>.jpg`, `.txt` (one text, for those that read one) and `.json` with every text under its column's name. A
trainer that draws between texts of the json draws anew at each step; the `.txt` was drawn once.
"""

import json
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, ClassVar

import pyarrow as pa
from pydantic import Field, field_validator

from veclip_core import storage
from veclip_core.config import Config
from veclip_core.download.seal import add_member
from veclip_core.mixing.choose import caption_of
from veclip_core.mixing.manifest import SCORE
from veclip_core.mixing.removals import REMOVED
from veclip_core.stage import RowCounts, ShardTask, Work

EXPORT = "export"
PLACE_COLUMNS = ("tar", "offset", "bytes")


class ExportConfig(Config):
    """Which text is the `.txt`."""

    weights: dict[str, float] = Field({"vecap": 1.0})
    """Caption source to its share of the samples, as a recipe has them."""
    seed: int = Field(0, ge=0)

    @field_validator("weights")
    @classmethod
    def _are_ordered(cls, weights: dict[str, float]) -> dict[str, float]:
        return dict(sorted(weights.items()))


@dataclass(frozen=True)
class ExportOperation:
    """Copies the pictures of a manifest's shard out of its tars, and writes its texts beside them."""

    config: ExportConfig
    name: ClassVar[str] = EXPORT

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda task: _export(task, self.config)


def _export(task: ShardTask, config: ExportConfig) -> RowCounts:
    rows = task.read("mix").to_pylist()
    written: list[dict[str, Any]] = []
    fallbacks = 0
    with _TarReader(task) as tars, tarfile.open(task.out("tar"), "w", format=tarfile.USTAR_FORMAT) as tar:
        for row in rows:
            text, _, fell_back = caption_of(row, config.seed, 0, config.weights)
            if not text:
                continue  # taken out of the manifest after it was made
            fallbacks += fell_back
            key = row["sample_id"]
            offset = add_member(tar, f"{key}.jpg", tars.read(row))
            add_member(tar, f"{key}.txt", text.encode())
            add_member(tar, f"{key}.json", json.dumps(_texts(row), sort_keys=True, ensure_ascii=False).encode())
            written.append({"sample_id": key, "url_id": row["url_id"], "offset": offset, "bytes": row["bytes"]})
    task.write(pa.Table.from_pylist(written, EXPORT_SCHEMA))
    lost = len(rows) - len(written)
    return RowCounts(len(rows), len(written), {REMOVED: lost} if lost else {}, fallbacks)


EXPORT_SCHEMA = pa.schema(
    [("sample_id", pa.string()), ("url_id", pa.string()), ("offset", pa.int64()), ("bytes", pa.int64())]
)
"""What a tar holds, and where its pictures begin."""


def _texts(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the json of a sample says: ids, texts and scores, not where its picture came from."""
    told = {name: value for name, value in row.items() if name not in PLACE_COLUMNS}
    if told.get(SCORE) is not None:
        told[SCORE] = round(told[SCORE], 6)
    return told


class _TarReader:
    """The tars that a shard's rows name, read forwards."""

    def __init__(self, task: ShardTask) -> None:
        mix = task.inputs["mix"]
        self._base = storage.join(mix.root, mix.source)
        self._name = ""
        self._file: IO[bytes] | None = None

    def read(self, row: Mapping[str, Any]) -> bytes:
        name = row["tar"]
        if self._file is None or name != self._name:
            self.__exit__()
            uri = name if "://" in name or name.startswith("/") else storage.join(self._base, name)
            self._name, self._file = name, storage.open_read(uri)
        self._file.seek(row["offset"])
        return bytes(self._file.read(row["bytes"]))

    def __enter__(self) -> "_TarReader":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
