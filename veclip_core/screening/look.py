"""The stage `look`: each good picture is decoded once, and every check that is on notes what it sees. Nothing is decided here."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
from pydantic import Field, SerializeAsAny

from veclip_core.captioning.describe import decoded_ahead, pictures_in
from veclip_core.config import Config
from veclip_core.samples import UNDECODABLE
from veclip_core.screening.checks import Looks, PictureCheck
from veclip_core.stage import RowCounts, ShardTask

if TYPE_CHECKING:
    from PIL.Image import Image

BATCH = 64
"""Pictures that a check sees at a time."""


class LookConfig(Config):
    """What decides the columns."""

    checks: tuple[SerializeAsAny[Config], ...]
    max_side_px: int = Field(1024, ge=32)
    """A larger picture is scaled down to this first."""


@dataclass(frozen=True)
class LookOperation:
    """Input: `download`, its table and its tar."""

    name: ClassVar[str] = "look"
    checks: tuple[PictureCheck, ...]

    @property
    def config(self) -> LookConfig:
        return LookConfig(checks=tuple(check.config for check in self.checks))

    @property
    def needs_engine(self) -> bool:
        return any(check.needs_network for check in self.checks)

    @contextmanager
    def open(self) -> Iterator[Callable[[ShardTask], RowCounts]]:
        loaded = [check.open() for check in self.checks]
        yield lambda task: look_shard(task, self.checks, loaded, self.config.max_side_px)


def look_shard(
    task: ShardTask, checks: Sequence[PictureCheck], loaded: Sequence[Looks], max_side_px: int = 1024
) -> RowCounts:
    """Write one row for each good picture of `download`: looked at, or an error with its reason."""
    downloaded = task.read("download", ["url_id", "status", "offset", "bytes"]).to_pylist()
    places = {row["url_id"]: (row["offset"], row["bytes"]) for row in downloaded if row["status"] == "ok"}
    rows: dict[str, dict[str, Any]] = {}
    with task.inputs["download"].open(task.key, "tar") as tar:
        pictures = decoded_ahead(pictures_in(tar, places), max_side_px)
        while some := list(islice(pictures, BATCH)):
            good = [(url_id, image) for url_id, image in some if image is not None]
            rows |= {url_id: _error(url_id, UNDECODABLE) for url_id, image in some if image is None}
            rows |= _looked_at([url_id for url_id, _ in good], [image for _, image in good], loaded)
    rows |= {url_id: _error(url_id, "missing_in_tar") for url_id in places.keys() - rows.keys()}
    ordered = [rows[url_id] for url_id in sorted(rows)]
    task.write(pa.Table.from_pylist(ordered, schema=look_schema(checks)))
    errors = Counter(row["error"] for row in ordered if row["error"])
    return RowCounts(len(ordered), len(ordered) - errors.total(), dict(errors))


def look_schema(checks: Sequence[PictureCheck]) -> pa.Schema:
    """The table of `look`: ids and status, then the columns of its checks."""
    fields = [pa.field(name, pa.string()) for name in ("url_id", "status", "error")]
    return pa.schema([*fields, *(column for check in checks for column in check.columns)])


def _looked_at(url_ids: Sequence[str], images: "Sequence[Image]", loaded: Sequence[Looks]) -> dict[str, dict[str, Any]]:
    if not images:
        return {}
    columns = {name: values for look in loaded for name, values in look(images).items()}
    return {
        url_id: {"url_id": url_id, "status": "ok", "error": None, **dict(zip(columns, values, strict=True))}
        for url_id, *values in zip(url_ids, *columns.values(), strict=True)
    }


def _error(url_id: str, reason: str) -> dict[str, Any]:
    return {"url_id": url_id, "status": "error", "error": reason}
