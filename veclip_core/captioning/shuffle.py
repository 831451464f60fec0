"""The stage `shuffle`: every picture gets the VeC of another picture. What the control of the experiment is fused from.

A model that gains from captions made this way gains from longer or other texts, not from what the captioner saw.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import pyarrow as pa

from veclip_core.config import Config
from veclip_core.samples import DESCRIBE_SCHEMA
from veclip_core.stage import RowCounts, ShardTask

NO_OTHER = "no_other_picture"


class ShuffleConfig(Config):
    """What decides whose VeC a picture gets."""

    seed: int = 0


@dataclass(frozen=True)
class ShuffleOperation:
    """Input: `describe`; the output has the same columns and takes its place in `fuse` and `select`."""

    name: ClassVar[str] = "shuffle"
    config: ShuffleConfig = field(default_factory=ShuffleConfig)

    @contextmanager
    def open(self) -> Iterator[Callable[[ShardTask], RowCounts]]:
        yield lambda task: shuffle_shard(task, self.config)


def shuffle_shard(task: ShardTask, config: ShuffleConfig) -> RowCounts:
    """Hand each VeC of the shard to the next picture in a random circle, so that none keeps its own."""
    rows = task.read("describe").to_pylist()
    described = [row for row in rows if row["status"] == "ok"]
    circle = sorted(described, key=lambda row: _lot(config.seed, row["url_id"]))
    giver_of = {row["url_id"]: giver for row, giver in zip(circle, [*circle[-1:], *circle[:-1]], strict=True)}
    alone = len(circle) == 1
    shuffled = []
    for row in rows:
        if row["status"] != "ok":
            shuffled.append(row)
        elif alone:
            shuffled.append(row | {"vec": "", "status": "error", "error": NO_OTHER, "detail": "{}"})
        else:
            shuffled.append(giver_of[row["url_id"]] | {"url_id": row["url_id"]})
    task.write(pa.Table.from_pylist(shuffled, schema=DESCRIBE_SCHEMA))
    errors = Counter(row["error"] for row in shuffled if row["status"] != "ok")
    same = sum(giver_of[row["url_id"]]["vec"] == row["vec"] for row in described) if not alone else 0
    return RowCounts(len(rows), len(rows) - sum(errors.values()), dict(errors), extra={"same_text": float(same)})


def _lot(seed: int, url_id: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{url_id}".encode(), digest_size=8).digest()
