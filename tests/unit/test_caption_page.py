"""The page about captions: what it shows, and that strangers' texts stay texts."""

import io

from PIL import Image

from veclip_core.captioning.text_statistics import statistics_of
from veclip_core.evaluation.report.caption_page import CaptionQuality, render
from veclip_core.evaluation.report.inputs import CaptionExample
from veclip_core.shards import Totals

HOSTILE = "<script>alert(1)</script>\u202e"


def totals(rows: int, **extra: float) -> Totals:
    return Totals(rows, rows, 0, {}, extra, 0, 2.0)


def quality() -> CaptionQuality:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    fused = {"alt_text": HOSTILE, "vec": "a red square", "vecap": f"A red square, {HOSTILE}", "status": "fused"}
    example = CaptionExample(
        buffer.getvalue(), HOSTILE, "a red square", HOSTILE, "concatenated", "echo", "refused " + HOSTILE
    )
    return CaptionQuality(
        scale="own", captioner="concepts and smollm2", stand_in=True, statistics=statistics_of([fused]),
        totals={
            "download": totals(10), "describe": totals(10), "check": totals(10, alt_refused_takeover=3),
            "fuse": totals(10, candidates=12, rejected_echo=4), "select": totals(10, status_vec=2, status_fused=8),
        },
        random=[example], by_reason={"echo": [example]}, similarity={"AltText": [0.1, 0.2], "VeCap": [0.3, 0.4]}, scorer="my/clip",
        verdict="No go: dear.", costs=[{"stage": "describe", "cost": "7.00"}],
    )  # fmt: skip


def test_the_page_shows_rates_reasons_samples_and_the_verdict():
    page = render(quality())
    for shown in (
        "80.0 % of 10 VeCaps",
        "stand-in",
        "alt: takeover",
        "No go: dear.",
        "7.00",
        "Similarity by my/clip",
        "refused: ",
    ):
        assert shown in page, shown
    assert page.index(">fused<") < page.index(">vec<"), "the most frequent status comes first"
    assert render(quality()) == page


def test_texts_of_strangers_stay_texts():
    page = render(quality())
    assert "<script>" not in page
    assert "\u202e" not in page
    assert "default-src 'none'" in page
