"""A stage's bar on the terminal: shards done, rows, their rate and how many fell back."""

import sys
from collections.abc import Mapping
from typing import Any

from veclip_core.samples import ShardKey


class StageProgress:
    """One bar; `finished` and `failed` move it by a shard."""

    def __init__(self, stage: str, scale: str, shards: int) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=shards, desc=f"{stage} {scale}", unit="shard", file=sys.stderr, leave=True)
        self._rows = self._fallbacks = 0
        self._seconds = 0.0

    def finished(self, marker: Mapping[str, Any]) -> None:
        self._rows += marker["rows_in"]
        self._fallbacks += marker["fallbacks"]
        self._seconds += marker["seconds"]
        told = f"{self._rows:,} rows"
        if self._seconds:
            told += f", {self._rows / self._seconds:,.1f} a worker's second"
        if self._fallbacks:
            told += f", {self._fallbacks / self._rows:.0%} fallbacks"
        self._bar.set_postfix_str(told)
        self._bar.update()

    def failed(self, key: ShardKey, error: str) -> None:
        self._bar.write(f"{key} is set aside: {error}", file=sys.stderr)
        self._bar.update()

    def close(self) -> None:
        self._bar.close()
