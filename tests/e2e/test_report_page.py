"""The page on models and sets in a real browser: nothing from outside, nothing run, and fit for a phone, paper and the dark."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.browser import CHROMIUM, opened_page
from tests.unit.evaluation_world import HOSTILE, PlantedModel, hostile_set, openmoji
from veclip_core.evaluation.evaluate import EvaluationConfig, compare, evaluate
from veclip_core.evaluation.paper import PaperVerdict
from veclip_core.evaluation.report import Contamination, HowTo, retrieval_examples, write_models_page
from veclip_core.evaluation.report.gain_figure import gain_chart

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium: apt-get install chromium")

WIDTHS = {"phone": 390, "tablet": 820, "desk": 1200}


@pytest.fixture(scope="module", params=[3, 9], ids=["three-models", "nine-models"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    sets = [hostile_set(folder / "coco"), openmoji(folder / "openmoji", 24)]
    names = ["clip", "veclip", *(f"hf-hub:some/very-long_model-name-{n}" for n in range(request.param - 2))]
    found = [
        evaluate(PlantedModel(one, 0.3 * (number + 1), number), name, one, seed=0, checkpoint=name,
                 config=EvaluationConfig(draws=100))
        for one in sets for number, name in enumerate(names)
    ]  # fmt: skip
    results = json.loads(json.dumps(compare(found)))
    results["sets"]["coco"]["notes"] = dict(sets[0].notes)
    return write_models_page(
        results, folder / "page.html", title=f"A title {HOSTILE}",
        howto=HowTo([f"veclip evaluate {HOSTILE}"], {"machine": "x" * 300}),
        charts=[gain_chart()],
        examples=[retrieval_examples(found[0], found[1])],
        contamination=[Contamination("coco", 20, None, f"veclip run screen {HOSTILE}")],
        verdicts=[PaperVerdict("veclip", "coco", "coco_i2t_r1", "i2t_r@1", 20.0, 22.30, 0.3, None)],
        labels={names[-1]: f"Named {HOSTILE}"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with opened_page() as opened:
        yield opened


def test_the_page_asks_nobody_and_runs_nothing(written: Path, page: Any) -> None:
    said: list[str] = []
    asked: list[str] = []

    def answer(route: Any) -> None:
        if route.request.url.startswith(("file:", "data:")):
            route.continue_()
        else:
            asked.append(route.request.url)
            route.abort()

    page.route("**/*", answer)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.goto(written.as_uri())
    page.wait_for_load_state("networkidle")
    assert asked == []
    assert said == []
    figures = page.locator("figure svg").evaluate_all(
        "all => all.map(f => [f.getBoundingClientRect().width, f.getBoundingClientRect().height])"
    )
    assert len(figures) >= 6
    assert all(width > 200 and height > 60 for width, height in figures)
    broken = page.locator("img").evaluate_all("all => all.filter(p => !(p.complete && p.naturalWidth > 0)).length")
    assert (page.locator("img").count() > 5, broken) == (True, 0)
    assert page.locator("script, iframe, object, img[onerror], [onclick]").count() == 0
    shown = page.locator("body").inner_text()
    assert shown.count("<script>alert(1)</script>") > 5
    assert "{{7*7}}" in shown
    assert "\u202e" not in shown


def test_the_page_fits_every_width_and_paper(written: Path, page: Any, tmp_path: Path) -> None:
    for width in WIDTHS.values():
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(written.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"it scrolls sideways at {width} px"
        # What is wider than the page is in a box of its own that scrolls; nothing is laid over its neighbour.
        loose = page.locator("main *").evaluate_all(
            "all => all.filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll, pre, svg')).length"
        )
        assert loose == 0
        page.screenshot(path=str(tmp_path / f"{width}.png"), full_page=True)
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 703, "height": 1000})  # A4 within margins of 12 mm
    wide = page.locator("table").evaluate_all("all => all.filter(t => t.scrollWidth > 704).length")
    assert wide == 0, "a table is cut off on paper"
    page.emulate_media(media="screen")
    printed = page.pdf(path=str(tmp_path / "page.pdf"), format="A4")
    assert printed.startswith(b"%PDF")
    assert len(printed) > 20_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(written: Path, page: Any, scheme: str) -> None:
    page.set_viewport_size({"width": 1200, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.goto(written.as_uri())
    ground, low = page.evaluate(
        """() => {
            const numbers = text => text.match(/[\\d.]+/g).map(Number);
            const light = rgb => rgb.slice(0, 3).map(v => v / 255)
                .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
                .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
            const ground = light(numbers(getComputedStyle(document.body).backgroundColor));
            const low = [];
            for (const e of document.querySelectorAll("h1, h2, p, td, th, b, .ci, .hint, figure svg text")) {
                const style = getComputedStyle(e);
                const ink = light(numbers(e.closest("svg") ? style.fill : style.color));
                const contrast = (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
                if (contrast < 4.5 && e.textContent.trim()) low.push([e.tagName, e.textContent.slice(0, 40), contrast]);
            }
            return [ground, low];
        }"""
    )
    page.emulate_media(color_scheme="light")
    assert (ground < 0.05) == (scheme == "dark")
    assert low == []
