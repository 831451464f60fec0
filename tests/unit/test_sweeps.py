"""The sweeps: what they compare, and that their figures show what was measured."""

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.unit.evaluation_world import PlantedModel, openmoji
from veclip_core.cli import app
from veclip_core.evaluation.evaluate import EvaluationConfig, compare, evaluate
from veclip_core.evaluation.report import sweep_figures
from veclip_core.evaluation.report.inputs import Captions, DataCard, HowTo
from veclip_core.evaluation.report.page import write_report
from veclip_core.evaluation.report.sweep_figures import CLAIMS, NoFigureFile, figure_of
from veclip_core.evaluation.report.words import MODEL_NAMES, MODEL_NOTES, metric_name
from veclip_core.pipeline.trained import Trained, asset_that_trains, how_to_train
from veclip_core.training.arms import ARMS
from veclip_core.training.sweeps import SWEEPS, Sweep, UnknownPoint


@pytest.mark.parametrize("sweep", SWEEPS.values(), ids=SWEEPS)
def test_a_sweep_is_fixed_before_it_runs(sweep: Sweep) -> None:
    compared = sweep.comparison
    assert compared.seeds == (0, 1, 2)
    assert tuple(sweep.axis) == compared.arms
    assert set(compared.arms) <= ARMS.keys() & MODEL_NAMES.keys() & MODEL_NOTES.keys()
    assert compared.contrasts[0] == ("veclip", "clip"), "the page's question"
    assert all(set(pair) <= set(compared.arms) for pair in compared.contrasts)
    assert compared.metrics == ("mean_recall", "mean_rank", "zeroshot_top1_subgroup"), (
        "retrieval never without the other"
    )


def test_the_axes_are_what_the_arms_read() -> None:
    assert list(SWEEPS["mix"].axis.values()) == [0, 0.25, 0.5, 0.75, 1]
    assert list(SWEEPS["sources"].axis) == ["clip", "vec_only", "vecap_only", "veclip"]
    assert sorted(SWEEPS["data"].axis.values()) == [0.25, 0.25, 0.5, 0.5, 1, 1]
    drawn = [arm for line in SWEEPS["data"].lines.values() for arm in line]
    assert sorted(drawn) == sorted(SWEEPS["data"].axis)
    for name, line in SWEEPS["data"].lines.items():
        assert {tuple(ARMS[arm].weights) for arm in line} == {("alt",) if name == "AltText only" else ("alt", "vecap")}


def test_a_part_of_a_sweep() -> None:
    part = SWEEPS["data"].of(["veclip", "clip", "clip_25pct"], [4])
    assert part.comparison.arms == tuple(part.axis) == ("clip_25pct", "clip", "veclip"), "in the sweep's order"
    assert part.comparison.seeds == (4,)
    assert part.comparison.contrasts == (("veclip", "clip"),)
    assert SWEEPS["mix"].of() == SWEEPS["mix"]
    with pytest.raises(UnknownPoint, match="the sweep mix has no arm 'control'; it has clip, mix_25"):
        SWEEPS["mix"].of(["control"])


def results_of(sweep: Sweep, arms: list[str] | None = None) -> dict[str, Any]:
    """As `compare` makes them, with numbers that tell their row."""
    rows = [
        {
            "set": "openmoji", "split": split, "model": arm, "metric": metric, "chance": chance,
            "value": value, "low": value - 0.3, "high": value + 0.4,
        }
        for place, arm in enumerate(arms if arms is not None else sweep.axis)
        for metric, chance in zip(sweep.comparison.metrics, (0.21, 50.0, 1.04), strict=True)
        for split in ("all", "unseen")
        for value in (chance + 2 + place / 7 + (split == "unseen"),)
    ]  # fmt: skip
    return {"sets": {"openmoji": {}}, "summary": rows, "seeds": [0, 1, 2], "config": {"confidence": 0.95}}


@pytest.mark.parametrize("name", SWEEPS)
def test_a_figure_tells_every_value(name: str) -> None:
    sweep = SWEEPS[name]
    results = results_of(sweep)
    chart = getattr(sweep_figures, f"{name}_chart")(results, sweep)
    assert chart == figure_of(results, sweep).chart(), "the same bytes every time"
    told = re.search('aria-label="([^"]*)"', chart.svg)
    assert told is not None
    for row in results["summary"]:
        value = f"{MODEL_NAMES[row['model']]} {row['value']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        assert (value in told[1]) == (row["split"] == "all")
    for metric in sweep.comparison.metrics:
        assert metric_name(metric) in chart.svg
    assert "3 seeds" in chart.note
    assert "var(--ours)" in chart.svg, "in the page's colours"
    assert not re.search("#0[0-9]0[0-9]0[0-9]", chart.svg)
    assert chart.title == sweep.title


def test_the_papers_claims_stand_in_the_figure_and_are_called_the_papers() -> None:
    chart = sweep_figures.data_chart(results_of(SWEEPS["data"]), SWEEPS["data"])
    for claim in CLAIMS.values():
        assert chart.svg.count(claim) >= 1
    assert set(CLAIMS) == {0.11, 0.14}
    assert "at full scale, not ours" in chart.note
    for other in ("mix", "sources"):
        assert "full scale" not in figure_of(results_of(SWEEPS[other]), SWEEPS[other]).note


def test_what_was_not_trained_is_left_out_of_a_figure() -> None:
    sweep = SWEEPS["data"]
    chart = sweep_figures.data_chart(results_of(sweep, ["clip", "veclip_25pct"]), sweep)
    assert MODEL_NAMES["veclip_25pct"] in chart.svg
    assert MODEL_NAMES["clip_50pct"] not in chart.svg


def test_a_figure_is_written_on_white(tmp_path: Path) -> None:
    sweep = SWEEPS["mix"]
    with Image.open(figure_of(results_of(sweep), sweep).save(tmp_path / "new" / "mix.png")) as picture:
        assert picture.format == "PNG"
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert (31, 111, 209) in colours, "the page's blue"
    svg = figure_of(results_of(sweep), sweep).save(tmp_path / "mix.svg").read_text()
    assert "var(" not in svg, "a file knows no page's colours"
    assert "#1f6fd1" in svg
    assert figure_of(results_of(sweep), sweep).save(tmp_path / "again.svg").read_text() == svg
    with pytest.raises(NoFigureFile, match=r"neither SVG nor PNG: name a file that ends in \.svg or \.png"):
        figure_of(results_of(sweep), sweep).save(tmp_path / "mix.jpg")


def training(arm: str, scale: str = "sample") -> Trained:
    return Trained(scale, arm, 1, "i", "c", None, "m", False, {})


def test_what_trains_an_arm_is_named() -> None:
    made_by = {arm: asset_that_trains(arm, "sample") for arm in ARMS}
    assert made_by["veclip"] == "veclip_sample"
    assert made_by["vec_only"] == "arms_sample"
    assert made_by["mix_75"] == "sweep_mix_sample"
    assert made_by["clip_50pct"] == "sweep_data_sample"
    assert None not in made_by.values()
    assert asset_that_trains("mix_75", "3m") is None
    assert how_to_train(training("clip"), training("mix_25")) == (
        "`dagster asset materialize --select clip_sample,sweep_mix_sample`"
    )
    assert how_to_train(training("clip", "3m"), training("mix_25", "3m")) == (
        "`veclip run clip --scale 3m --seed 1` and `veclip run mix_25 --scale 3m --seed 1`"
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["mixes"], "there is no sweep 'mixes'"),
        (["all", "--arms", "clip"], "for one sweep"),
        (["mix", "--seeds", "0,x"], "different whole numbers"),
        (["mix", "--seeds", "1,1"], "different whole numbers"),
        (["mix", "--scale", "4m"], "4m"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(arguments: list[str], told: str) -> None:
    done = CliRunner().invoke(app, ["sweep", *arguments])
    assert done.exit_code == 2
    assert told in done.output


def test_the_figure_stands_on_the_page_of_a_real_comparison(tmp_path: Path) -> None:
    evaluation_set = openmoji(tmp_path / "openmoji")
    config = EvaluationConfig(draws=50)
    sweep = SWEEPS["mix"].of(["clip", "mix_25", "veclip"], [0])
    found = [
        evaluate(PlantedModel(evaluation_set, 0.5 * number), arm, evaluation_set, seed=0, checkpoint=arm, config=config)
        for number, arm in enumerate(sweep.axis)
    ]
    compared = sweep.comparison
    results = compare(
        found, headline=compared.contrasts, headline_metrics=compared.metrics, headline_splits=compared.splits
    )
    chart = figure_of(results, sweep).chart()
    page = write_report(
        results, tmp_path / "page.html", curves=[], captions=Captions([]), data_card=DataCard([], []),
        captioner_accuracy={}, howto=HowTo(["veclip sweep mix"]), charts=[chart],
    ).read_text()  # fmt: skip
    assert chart.svg in page
    assert sweep.title in page
    for arm in sweep.axis:
        assert f"{MODEL_NAMES[arm]} {found[list(sweep.axis).index(arm)].metric('mean_recall'):.2f}" in chart.svg
        assert MODEL_NOTES[arm] in page
