"""Checks of the data assets, made in the step that made the data (a step of its own would cost a process start each)."""

from collections.abc import Sequence

import dagster as dg

from veclip_core.samples import BLOCKED
from veclip_core.stage_report import StageReport

MIN_SUCCESS_RATE = 0.5
"""Below this a crawl is stopped before money is spent on captions: web lists lose 30 to 40 percent of their links in years."""

MAX_BLOCKED = 0.5
"""Above this a list, a threshold or a model is wrong, and captioning what is left would be money for the wrong data."""

DESCRIPTIONS = {
    "counts_add_up": "Rows in = rows ok + errors by reason, at every stage.",
    "some_rows_ok": "At least one row came through.",
    "success_rate": f"At least {MIN_SUCCESS_RATE:.0%} of the URLs gave a picture.",
    "no_shard_set_aside": "No shard kept failing.",
    "most_pictures_pass": f"Screening blocks at most {MAX_BLOCKED:.0%} of the pictures.",
    "llm_wrote_some": "The language model wrote at least one kept caption.",
    "ids_unique": "Every sample_id stands once.",
}
BLOCKING = {"counts_add_up", "some_rows_ok", "success_rate", "ids_unique", "most_pictures_pass"}


def specs(asset: str, *names: str) -> list[dg.AssetCheckSpec]:
    return [
        dg.AssetCheckSpec(name, asset=asset, description=DESCRIPTIONS[name], blocking=name in BLOCKING)
        for name in names
    ]


def of_stage(
    *reports: StageReport,
    success_rate: bool = False,
    unique: bool = False,
    llm_share: float | None = None,
    set_aside: bool = False,
) -> list[dg.AssetCheckResult]:
    """Results for the specs of one asset, from the reports of its stages."""
    last = reports[-1]
    odd = [report.stage for report in reports if report.rows_in != report.rows_ok + sum(report.errors.values())]
    results = [
        _result("counts_add_up", not odd, {"stages_off": ", ".join(odd)}),
        _result("some_rows_ok", last.rows_ok > 0, {"rows_ok": last.rows_ok}),
    ]
    if success_rate:
        rate = last.rows_ok / last.rows_in if last.rows_in else 0.0
        results.append(_result("success_rate", rate >= MIN_SUCCESS_RATE, {"rate": rate}))
    if unique:
        distinct = int(last.extra.get("distinct_ids", -1))
        results.append(_result("ids_unique", distinct == last.rows_ok, {"distinct": distinct, "rows": last.rows_ok}))
    else:
        results += _set_aside(reports, needed=set_aside or success_rate or llm_share is not None)
    if llm_share is not None:
        results.append(_result("llm_wrote_some", llm_share > 0, {"share": llm_share}, dg.AssetCheckSeverity.WARN))
    return results


def of_screening(look: StageReport, screen: StageReport) -> list[dg.AssetCheckResult]:
    """Results for the specs of `screen_S`."""
    blocked = sum(count for reason, count in screen.errors.items() if reason in BLOCKED)
    share = blocked / screen.rows_in if screen.rows_in else 0.0
    return [
        *of_stage(look, screen, set_aside=True),
        _result("most_pictures_pass", share <= MAX_BLOCKED, {"blocked_share": share, "blocked": blocked}),
    ]


def _set_aside(reports: Sequence[StageReport], needed: bool) -> list[dg.AssetCheckResult]:
    if not needed:
        return []
    count = max(report.shards_quarantined for report in reports)
    return [_result("no_shard_set_aside", count == 0, {"shards": count}, dg.AssetCheckSeverity.WARN)]


def _result(
    name: str,
    passed: bool,
    metadata: dict[str, str | int | float],
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(check_name=name, passed=bool(passed), severity=severity, metadata=dict(metadata))
