"""Tables of single shards on disk, for tests of what one stage makes of one shard."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from veclip_core.samples import ShardKey
from veclip_core.shards import ShardSet
from veclip_core.stage import ShardTask

KEY = ShardKey(0, 0)


def put(root: Path, stage: str, schema: pa.Schema, rows: list[dict[str, Any]]) -> ShardSet:
    """A stage's only shard; columns that a row lacks are null."""
    shards = ShardSet(str(root), "test", stage, "0" * 16)
    path = Path(shards.file(KEY, "parquet"))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return shards


def task(scratch: Path, inputs: dict[str, ShardSet]) -> ShardTask:
    scratch.mkdir()
    return ShardTask(KEY, dict(inputs), scratch)


def made(scratch: Path) -> pa.Table:
    return pq.read_table(scratch / f"{KEY.name}.parquet")
