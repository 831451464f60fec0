"""What MLflow hears of the data stages: one run a materialisation, in an experiment of its own, with its rates while it runs."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.training import tracker_of
from veclip_core.samples import ShardKey
from veclip_core.shards import ShardSet
from veclip_core.stage_report import StageReport
from veclip_core.tracking import Tracker


class LiveStages:
    """An open run: rates shard by shard, sums at the end."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._done: Counter[str] = Counter()

    @property
    def run_id(self) -> str | None:
        return self._tracker.run_id

    def on_shard(self, stage: str, output: ShardSet, key: ShardKey, marker: Mapping[str, Any]) -> None:
        """`Chain.on_shard`: the rates of a shard, by the number of shards done."""
        self._done[stage] += 1
        self._tracker.log_metrics(
            {f"{stage}/shard/{name}": value for name, value in rates(marker).items()}, step=self._done[stage]
        )

    def log(self, reports: Sequence[StageReport], name: str, context: str, prefix: str = "") -> None:
        """The sums of all stages, and what they made as a dataset."""
        for report in reports:
            self._tracker.log_metrics({f"{prefix}{metric}": value for metric, value in report.metrics().items()})
        self._tracker.log_dataset(reports[-1].uri, name, reports[-1].digest, context)


def rates(marker: Mapping[str, Any]) -> dict[str, float]:
    """Of one shard: rows and tokens a second, and the share of candidates that passed the check."""
    extra, seconds = marker["extra"], marker["seconds"]
    found: dict[str, float] = {}
    if seconds:
        found["rows_per_second"] = marker["rows_in"] / seconds
        if "completion_tokens" in extra:
            found["tokens_per_second"] = extra["completion_tokens"] / seconds
    if extra.get("candidates"):
        rejected = sum(count for name, count in extra.items() if name.startswith("rejected_"))
        found["accepted_share"] = 1 - rejected / extra["candidates"]
    return found


@contextmanager
def tracked_stages(chain: Chain, asset: str, tags: Mapping[str, str] | None = None) -> Iterator[LiveStages]:
    """A run for the length of a with block; ended as failed when the block raises."""
    tracker = tracker_of(chain)
    tracker.start_run(
        f"veclip {chain.scale.name} {asset}",
        f"{asset}_{chain.scale.name}",
        {"veclip.scale": chain.scale.name, "veclip.asset": asset, **(tags or {})},
    )
    try:
        yield LiveStages(tracker)
    except BaseException:
        tracker.finish("FAILED")
        raise
    tracker.finish()
