"""Hours and money: limits that stop between shards, and what a whole scale will take."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.counting import GRID, SquaresConfig, run_both
from veclip_core.captioning.text_statistics import statistics_of
from veclip_core.evaluation.report.caption_page import CaptionQuality
from veclip_core.pipeline.budget import Limit, estimate, rate_of
from veclip_core.pipeline.canary import objections
from veclip_core.scales import SCALES
from veclip_core.shards import Totals
from veclip_core.stage import LimitReached


def test_a_limit_lets_shards_under_way_finish_and_says_what_is_left(tmp_path: Path):
    asked = iter([True, True, True, False])
    with pytest.raises(
        LimitReached, match=r"squares: the limit is reached with \d of 6 shards done \(\d+ rows\); \d are left"
    ):
        run_both(str(tmp_path), SquaresConfig(), workers=1, may_go_on=lambda: next(asked, False))
    done = list((tmp_path / "numbers" / "squares").rglob("*.success.json"))
    assert 1 <= len(done) < len(GRID.keys())
    assert not list(tmp_path.rglob("*.quarantine.json"))
    _, report = run_both(str(tmp_path), SquaresConfig(), workers=1)
    assert (report.shards, report.shards_made_now) == (6, 6 - len(done))


def test_a_limit_counts_all_devices():
    hour_ago = Limit(hours=None, cost=10.0, device_hour_price=3.0, started=-1e9)
    assert not hour_ago.allows(1)()
    assert Limit(hours=None, cost=None, device_hour_price=3.0, started=-1e9).allows(8)()
    now = time.monotonic()
    assert Limit(2.0, None, 0.0, now - 3600).allows(1)()
    assert not Limit(2.0, None, 0.0, now - 7201).allows(1)()
    assert Limit(None, 10.0, 3.0, now - 3600).allows(3)()
    assert not Limit(None, 10.0, 3.0, now - 3600).allows(4)()


def test_an_estimate_is_rows_over_rates():
    found = estimate(
        SCALES["3m"], {"describe": 10.0, "fuse": 50.0}, pictures=3_600_000, samples=3_960_000, devices=4, device_hour_price=2.0,
        measured_on="t",
    )  # fmt: skip
    assert [stage.device_hours for stage in found.stages] == [100.0, 22.0]
    assert (found.device_hours, found.hours, found.cost) == (122.0, 30.5, 244.0)


def totals(rows: int, ok: int, seconds: float = 1.0, **extra: float) -> Totals:
    return Totals(rows, ok, 0, {"bad": rows - ok} if rows > ok else {}, extra, 0, seconds)


def quality_of(fused: int, described: int, refused: int) -> CaptionQuality:
    return CaptionQuality(
        scale="t", captioner="c", stand_in=False, statistics=statistics_of([]),
        totals={
            "download": totals(100, 100), "describe": totals(100, described, 10.0), 
            "check": replace(totals(100, 100, alt_refused_takeover=refused), fallbacks=refused),
            "fuse": totals(100, 100, 5.0), "select": totals(100, 100, status_fused=fused, status_vec=100 - fused),
        },
    )  # fmt: skip


def test_a_canary_objects_with_numbers():
    cheap = estimate(
        SCALES["3m"],
        {"describe": 10.0, "fuse": 20.0},
        pictures=36_000,
        samples=36_000,
        devices=1,
        device_hour_price=10.0,
        measured_on="t",
    )
    assert objections(quality_of(80, 99, 3), cheap, max_cost=100.0, max_hours=None) == []
    against = objections(quality_of(30, 90, 20), cheap, max_cost=12.0, max_hours=1.0)
    assert [
        text
        for text in ("30%", "10%", "20%", "would cost 15", "would take 1.5 hours")
        if not any(text in one for one in against)
    ] == []


def test_rates_count_devices():
    assert rate_of(totals(1_000, 1_000, 100.0), tensor_parallel=4) == 2.5
    assert rate_of(totals(0, 0, 0.0), tensor_parallel=1) == 0.0
