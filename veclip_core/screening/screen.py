"""The stage `screen`: which pictures may be captioned and trained on.

It reads what `look` noted, on a CPU, in moments: another threshold re-runs it alone."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from veclip_core.config import Config
from veclip_core.samples import BLOCKED, EVALUATION_COPY, KNOWN, NEAR_DUPLICATE, NSFW, SCREEN_SCHEMA
from veclip_core.screening.hashes import DISTANCE, MIN_QUALITY
from veclip_core.screening.known import KnownPictures
from veclip_core.stage import RowCounts, ShardTask, Work


class Thresholds(Config):
    """What VECLIP_SCREEN_THRESHOLDS may change."""

    duplicate_distance: int = Field(DISTANCE, ge=0, le=127)
    """Bits of 256 in which the PDQ hashes of two near-duplicates may differ."""
    known_distance: int = Field(DISTANCE, ge=0, le=127)
    """Bits in which a picture's PDQ hash may differ from a listed one."""
    min_quality: int = Field(MIN_QUALITY, ge=0, le=100)
    """PDQ hashes of a lower quality are not compared."""
    nsfw: float = Field(0.5, ge=0, le=1)
    """A picture with this score or more is blocked."""
    search: Literal["exact", "bands"] = "exact"
    """How near-duplicates are searched for (duplicates.py): every pair, or in a time that grows with the set and not its square."""


class ScreenConfig(Config):
    """What decides the verdicts, besides the tables."""

    checks: tuple[str, ...]
    """Those of VECLIP_SCREEN that are on."""
    thresholds: Thresholds = Thresholds()
    known: str | None = None
    """Digest of the list of known pictures."""


@dataclass(frozen=True)
class ScreenOperation:
    """Inputs: `download` (SHA-256), `look`, and `duplicates` where they are searched for."""

    name: ClassVar[str] = "screen"
    config: ScreenConfig
    known: KnownPictures | None = None
    """What `config.known` is the digest of."""

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda task: screen_shard(task, self.config, self.known)


def screen_shard(task: ShardTask, config: ScreenConfig, known: KnownPictures | None = None) -> RowCounts:
    """Write a verdict on each good picture of `download`; of one that is blocked, also what it copies."""
    looked = task.read("look").to_pylist()
    found: dict[str, Sequence[str | None]] = {}
    """Reason to what each row copies; null for what is no copy."""
    if known is not None:
        found[KNOWN] = _known(task, looked, known, config.thresholds)
    if "evaluation" in config.checks:
        found[EVALUATION_COPY] = [row["evaluation_copy"] for row in looked]
    if "nsfw" in config.checks:
        # Not a number is no proof of safety.
        found[NSFW] = [None if (row["nsfw"] or 0.0) < config.thresholds.nsfw else "" for row in looked]
    if "duplicates" in config.checks:
        copies = {row["url_id"]: row["copy_of"] for row in task.read("duplicates").to_pylist()}
        found[NEAR_DUPLICATE] = [copies.get(row["url_id"]) for row in looked]
    rows = [_verdict(row, {reason: copies[at] for reason, copies in found.items()}) for at, row in enumerate(looked)]
    task.write(pa.Table.from_pylist(rows, schema=SCREEN_SCHEMA))
    errors = Counter(row["error"] for row in rows if row["error"])
    return RowCounts(len(rows), len(rows) - errors.total(), dict(errors), extra=_seen(looked, config))


def _verdict(looked: Mapping[str, Any], copies: Mapping[str, str | None]) -> dict[str, Any]:
    row = {"url_id": looked["url_id"], "status": looked["status"], "error": looked["error"], "copy_of": None}
    if looked["status"] != "ok":
        return row
    for reason in BLOCKED:
        if (copy := copies.get(reason)) is not None:
            return row | {"status": "error", "error": reason, "copy_of": copy or None}
    return row


def _known(
    task: ShardTask, looked: Sequence[Mapping[str, Any]], known: KnownPictures, thresholds: Thresholds
) -> list[str | None]:
    files = {row["url_id"]: row["sha256"] for row in task.read("download", ["url_id", "sha256"]).to_pylist()}
    return known.find(
        [files.get(row["url_id"]) for row in looked],
        [row["pdq"] if (row["pdq_quality"] or 0) >= thresholds.min_quality else None for row in looked],
        thresholds.known_distance,
    )


def _seen(looked: Sequence[Mapping[str, Any]], config: ScreenConfig) -> dict[str, float]:
    """Sums that block nothing: hashes too poor to compare, and faces."""
    seen = {}
    if "duplicates" in config.checks or config.known:
        least = config.thresholds.min_quality
        seen["low_hash_quality"] = float(sum(row["status"] == "ok" and row["pdq_quality"] < least for row in looked))
    if "faces" in config.checks:
        faces = [len(json.loads(row["face_boxes"] or "[]")) for row in looked]
        seen |= {"faces": float(sum(faces)), "pictures_with_faces": float(sum(count > 0 for count in faces))}
    return seen
