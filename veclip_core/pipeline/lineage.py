"""What MLflow hears of the data stages: one run a materialisation, in an experiment of its own."""

from collections.abc import Mapping, Sequence

from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.training import tracker_of
from veclip_core.stage_report import StageReport


def track_stages(
    chain: Chain, asset: str, reports: Sequence[StageReport], tags: Mapping[str, str] | None = None
) -> str | None:
    """Log the reports of one asset; the run's id, or None without tracking."""
    tracker = tracker_of(chain)
    last = reports[-1]
    tracker.start_run(
        f"veclip {chain.scale.name} {asset}",
        f"{asset}_{chain.scale.name}",
        {"veclip.scale": chain.scale.name, "veclip.asset": asset, **(tags or {})},
        {"identity": last.identity, "digest": last.digest, "uri": last.uri, "partial": last.partial},
    )
    for report in reports:
        tracker.log_metrics(report.metrics())
    tracker.log_dataset(last.uri, f"{asset}_{chain.scale.name}", last.digest, asset)
    tracker.finish()
    return tracker.run_id
