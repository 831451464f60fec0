"""What a stage made, as Dagster, MLflow and the command line tell it: sums over the markers of its shards."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from veclip_core.config import digest_of
from veclip_core.samples import ShardKey
from veclip_core.shards import ShardSet, Totals


@dataclass(frozen=True)
class StageReport:
    """What a stage made, summed over its shards. Equal, but for the timings, however often it was interrupted."""

    stage: str
    scale: str
    identity: str
    uri: str
    digest: str
    """Of the content of all shards."""
    parts: int
    shards: int
    shards_made_now: int
    shards_quarantined: int
    rows_in: int
    rows_ok: int
    fallbacks: int
    errors: Mapping[str, int]
    extra: Mapping[str, float]
    bytes: int
    worker_seconds: float
    """Summed over shards, those made in earlier runs included."""
    seconds: float
    """Of this run, on the clock."""
    partial: bool
    """True when a limit left parts of the scale out."""

    def metrics(self) -> dict[str, float]:
        """The numbers of the report by name, as MLflow and Dagster both show them."""
        numbers: dict[str, float] = {
            "rows_in": self.rows_in,
            "rows_ok": self.rows_ok,
            "ok_share": self.rows_ok / self.rows_in if self.rows_in else 0.0,
            "fallbacks": self.fallbacks,
            "shards": self.shards,
            "shards_made_now": self.shards_made_now,
            "shards_quarantined": self.shards_quarantined,
            "bytes": self.bytes,
            "worker_seconds": self.worker_seconds,
            "rows_per_worker_second": self.rows_in / self.worker_seconds if self.worker_seconds else 0.0,
            "seconds": self.seconds,
        }
        numbers |= {f"errors/{reason}": count for reason, count in self.errors.items()}
        return {f"{self.stage}/{name}": float(value) for name, value in (numbers | dict(self.extra)).items()}

    @classmethod
    def of(
        cls,
        output: ShardSet,
        scale: str,
        parts: int,
        done: Mapping[ShardKey, Mapping[str, Any]],
        *,
        made: int,
        quarantined: int,
        seconds: float,
        partial: bool,
    ) -> Self:
        """The sums over `done`, shard to marker; `made` of them in this run, in `seconds` on the clock."""
        totals = Totals.of(done.values())
        return cls(
            stage=output.stage,
            scale=scale,
            identity=output.identity,
            uri=output.uri,
            digest=digest_of({str(key): marker["sha256"] for key, marker in done.items()}),
            parts=parts,
            shards=len(done),
            shards_made_now=made,
            shards_quarantined=quarantined,
            rows_in=totals.rows_in,
            rows_ok=totals.rows_ok,
            fallbacks=totals.fallbacks,
            errors=totals.errors,
            extra=totals.extra,
            bytes=totals.bytes,
            worker_seconds=totals.worker_seconds,
            seconds=round(seconds, 3),
            partial=partial,
        )
