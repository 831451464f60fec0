"""The report: what it claims, that hostile captions stay text, and that it needs nothing from outside."""

import copy
import json
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.unit.evaluation_world import PlantedModel, openmoji
from veclip_core.evaluation.evaluate import Evaluation, EvaluationConfig, compare, evaluate
from veclip_core.evaluation.report import (
    CaptionExample,
    Captions,
    DataCard,
    HowTo,
    LossCurve,
    Source,
    StageRows,
    StandIn,
    retrieval_examples,
    write_report,
)
from veclip_core.evaluation.report.words import answer, why_open

HOSTILE = "<script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>\"'&{{7*7}} \u202egnp.exe\x00"
LABELS = {"clip": "AltText only", "veclip": "Mixed"}


class Page(HTMLParser):
    """Tags, attributes and text of a page, as a browser would see them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Evaluation]:
    evaluation_set = openmoji(tmp_path_factory.mktemp("set") / "openmoji", 60)
    return [
        evaluate(PlantedModel(evaluation_set, signal, seed), name, evaluation_set, seed=seed, checkpoint=f"{name}{seed}",
                 config=EvaluationConfig(draws=300))
        for name, signal in (("clip", 0.2), ("veclip", 1.5))
        for seed in (0, 1)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def results(found: list[Evaluation]) -> dict[str, Any]:
    return json.loads(json.dumps(compare(found)))


def rest(found: list[Evaluation]) -> dict[str, Any]:
    picture = BytesIO()
    Image.new("RGB", (300, 200), "teal").save(picture, "JPEG")
    return {
        "curves": [LossCurve(m, 0, list(range(50)), np.linspace(5, 4, 50).tolist()) for m in ("clip", "veclip")],
        "captions": Captions(
            [
                CaptionExample(picture.getvalue(), HOSTILE, HOSTILE, HOSTILE, "concatenated", HOSTILE),
                CaptionExample(picture.getvalue(), "x" * 100_000, "", "a fox", "fused"),
            ],
            {HOSTILE: [CaptionExample(picture.getvalue(), HOSTILE, "", HOSTILE, "concatenated", HOSTILE, HOSTILE)]},
            asked=12,
            fused=0.93,
            control={"fused": 0.88, "same_text": 7.0},
            control_rows=[CaptionExample(picture.getvalue(), HOSTILE, HOSTILE, "tea with a dog", "fused")],
            accepted={HOSTILE: 5},
            refused={HOSTILE: 7},
        ),
        "data_card": DataCard(
            [Source("OpenClipArt", "training", "public domain", 3604)],
            [StageRows("download", 10, 8, {HOSTILE: 2})],
            {"fused": 3, "concatenated": 5},
            [StandIn("Captioner", "EfficientNet-Lite0", "LLaVA")],
        ),
        "captioner_accuracy": {"OpenMoji": 0.259},
        "howto": HowTo(["make demo"], {"machine": "2 cores"}),
        "retrieval_examples": retrieval_examples(found[0], found[2]),
    }


def test_a_page_is_whole_and_needs_nothing_from_outside(
    tmp_path: Path, found: list[Evaluation], results: dict[str, Any]
) -> None:
    path = write_report(results, tmp_path, **rest(found))
    page = Page(path.read_text())
    assert path == tmp_path / "report.html"
    assert path.stat().st_size < 3_000_000
    for needed in (
        "Mixed",
        "AltText only",
        "Chance",
        "25.9",
        "88.0 %",
        "Answers that were refused",
        "make demo",
        "‡",
        "290.6",
        "public domain",
        "LLaVA",
    ):
        assert needed in page.text
    row = next(r for r in results["differences"] if r["metric"] == "mean_rank" and r["split"] == "all")
    assert f"{abs(row['value']):.1f}" in page.text
    addresses = [
        value or "" for name, value in page.attributes if name in ("src", "href", "data", "srcset", "xlink:href")
    ]
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert page.tags.count("svg") == 7
    assert not re.search(r"@import|url\((?!#)", path.read_text())


def test_a_trial_is_called_one(tmp_path: Path, found: list[Evaluation], results: dict[str, Any]) -> None:
    for partial in (True, False):
        text = write_report({**results, "partial": partial}, tmp_path, **rest(found)).read_text()
        assert ("A trial" in text) == partial


def test_hostile_captions_stay_text(tmp_path: Path, found: list[Evaluation], results: dict[str, Any]) -> None:
    text = write_report(results, tmp_path, **rest(found)).read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    # A row: three texts and a reason; a control row: two; a card: three and its reason; a prompt, a reason; a stage's reason.
    assert page.text.count("<script>alert(1)</script>") == 13
    assert "{{7*7}}" in page.text
    assert "\u202e" not in text
    assert "\x00" not in text
    assert "x" * 400 not in text
    assert "(100,000 characters)" in page.text


def test_equal_arguments_give_equal_bytes(tmp_path: Path, found: list[Evaluation], results: dict[str, Any]) -> None:
    first, second = (write_report(results, tmp_path / name, **rest(found)) for name in ("a.html", "b.html"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("recall", "rank", "expected"),
    [
        ((0.6, 0.2, 1.0), (-5.0, -7.0, -4.0), "Yes"),
        ((0.6, -0.2, 1.0), (-1.0, -3.0, 1.0), "Not resolved"),
        ((0.6, -0.2, 1.0), (-5.0, -7.0, -4.0), "In part: mean rank is better"),
        ((0.6, 0.2, 1.0), (5.0, 4.0, 7.0), "disagree"),
        ((-0.6, -1.0, -0.2), (5.0, 4.0, 7.0), "No:"),
    ],
)
def test_the_answer_claims_what_the_intervals_resolve(
    results: dict[str, Any], recall: tuple[float, ...], rank: tuple[float, ...], expected: str
) -> None:
    changed = copy.deepcopy(results)
    for row in changed["differences"]:
        if row["metric"] in ("mean_recall", "mean_rank"):
            row["value"], row["low"], row["high"] = recall if row["metric"] == "mean_recall" else rank
            row["resolved"] = row["low"] > 0 or row["high"] < 0
            good = (row["value"] > 0) == (row["better"] == "higher")
            row["favours"] = ("veclip" if good else "clip") if row["resolved"] else None
    short, sentences = answer(changed, LABELS, "openmoji")
    assert expected in short
    assert len(sentences) == 3
    unresolved = sum(low <= 0 <= high for _, low, high in (recall, rank))
    assert sentences[0].count("not resolved") == unresolved
    assert sentences[2].count("not resolved") == 2 * unresolved, "on concepts the captioner knows and on held-out ones"
    assert ("held out" in short) == (expected != "Yes"), "a yes that holds on unseen concepts too needs no word more"


@pytest.fixture(scope="module")
def with_control(found: list[Evaluation]) -> dict[str, Any]:
    evaluation_set = found[0].evaluation_set
    control = [
        evaluate(PlantedModel(evaluation_set, 0.2, 10 + seed), "control", evaluation_set, seed=seed, checkpoint=f"control{seed}",
                 config=EvaluationConfig(draws=300))
        for seed in (0, 1)
    ]  # fmt: skip
    pairs = (("veclip", "clip"), ("control", "clip"), ("veclip", "control"))
    compared = compare([*found, *control], headline=pairs, headline_splits=("all", "fitted", "unseen"))
    return dict(json.loads(json.dumps(compared)))


@pytest.mark.parametrize(
    ("control", "expected"),
    [
        ((0.1, -0.2, 0.4), "made from another picture\u2019s description it is not resolved."),
        ((0.4, 0.2, 0.6), "made from another picture\u2019s description it is better in part."),
        ((-0.4, -0.6, -0.2), "Captions from another picture\u2019s description do better still."),
    ],
)
def test_the_control_is_part_of_the_answer(
    with_control: dict[str, Any], control: tuple[float, ...], expected: str
) -> None:
    changed = copy.deepcopy(with_control)
    for row in changed["differences"]:
        if (row["model"], row["baseline"], row["split"]) == ("veclip", "control", "all"):
            row["value"], row["low"], row["high"] = control if row["metric"] == "mean_recall" else (0.0, -1.0, 1.0)
            row["resolved"] = row["low"] > 0 or row["high"] < 0
            row["favours"] = ("veclip" if row["value"] > 0 else "control") if row["resolved"] else None
    short, sentences = answer(changed, {**LABELS, "control": "Control"}, "openmoji")
    assert short.startswith("Yes, at this size."), "the control's own gain is no part of the answer"
    assert expected in short
    assert len(sentences) == 3
    assert "pictures and 2 seeds" in sentences[2]


@pytest.mark.parametrize(
    ("pictures", "half_width", "expected"),
    [((0.1, 0.7), 0.5, "More seeds"), ((-0.1, 0.9), 0.2, "More pictures"), ((-0.1, 0.9), 0.5, "Neither")],
)
def test_why_a_difference_is_open(pictures: tuple[float, float], half_width: float, expected: str) -> None:
    parts = {
        "pictures": {"low": pictures[0], "high": pictures[1]},
        "seed_deviation": 0.2,
        "seed_half_width": half_width,
    }
    told = why_open({"value": 0.4, "seeds": [0, 1, 2], "spread": parts})
    assert expected in told
    assert "3 seeds leave open" in told


def test_comparisons_are_counted(with_control: dict[str, Any]) -> None:
    counted, rows = with_control["comparisons"], with_control["differences"]
    chosen = [row for row in rows if row["metric"] in ("mean_recall", "mean_rank")]
    assert len({(row["model"], row["baseline"]) for row in rows}) == 3
    assert (counted["made"], counted["headline"]) == (len(rows), len(chosen))
    assert len(chosen) == 3 * 2 * 3
    assert counted["resolved"] == sum(row["low"] > 0 or row["high"] < 0 for row in rows)
    for pair in (("veclip", "clip"), ("veclip", "control")):
        row = next(
            r for r in rows if (r["model"], r["baseline"], r["split"], r["metric"]) == (*pair, "all", "mean_rank")
        )
        assert row["resolved"]
        assert row["favours"] == "veclip"


def test_a_page_with_a_control_shows_every_pair(
    tmp_path: Path, found: list[Evaluation], with_control: dict[str, Any]
) -> None:
    page = Page(write_report(with_control, tmp_path, **rest(found)).read_text())
    for title in ("Mixed − AltText only", "Control − AltText only", "Mixed − Control", "Seed by seed"):
        assert title in page.text
    assert f"{with_control['comparisons']['made']} differences were computed" in " ".join(page.text.split())
    assert page.tags.count("svg") == 7


def test_examples_are_picked_by_outcome_and_not_by_eye(found: list[Evaluation]) -> None:
    base, ours = found[0], found[2]
    picked = retrieval_examples(base, ours, each=2, hit_within=5)
    assert picked == retrieval_examples(base, ours, each=2, hit_within=5)
    for direction, counts in picked.counts.items():
        assert sum(counts.values()) == 60
        for example in (e for e in picked.examples if e.direction == direction):
            hits = [answer.rank <= 5 for answer in example.answers]
            expected = {"both": [True, True], "only_ours": [False, True], "only_baseline": [True, False]}
            assert hits == expected.get(example.outcome, [False, False])
            assert [any(a.right) for a in example.answers] == hits  # five are shown
    assert {e.outcome for e in picked.examples} >= {"only_ours", "neither"}
    with pytest.raises(ValueError, match="same seed"):
        retrieval_examples(base, found[3])


def test_one_model_alone_is_reported_without_a_claim(tmp_path: Path, found: list[Evaluation]) -> None:
    alone = rest(found) | {"retrieval_examples": None, "curves": [], "captions": Captions([])}
    text = write_report(compare(found[2:]), tmp_path, **alone).read_text()
    assert "No comparison." in text
    assert "beats" not in text
