"""A sweep by the command, on a small world: trainings, report, figure, and all of it in MLflow's runs and registry."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.integration.test_training_arms import OVERRIDES, SAMPLE, chain  # noqa: F401  (a fixture)
from tests.unit.evaluation_world import write_openmoji
from veclip_core import storage
from veclip_core.cli import app
from veclip_core.evaluation.report.inputs import Captions, DataCard
from veclip_core.evaluation.report.words import MODEL_NAMES
from veclip_core.pipeline import data_card, evaluation, sweeps
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.evaluation import make_report
from veclip_core.pipeline.publishing import publish
from veclip_core.pipeline.registered_scores import REPORT_TAG, main_scores
from veclip_core.pipeline.sweeps import report_sweep, train_sweep
from veclip_core.pipeline.trained import trained
from veclip_core.pipeline.training import train_arm
from veclip_core.tracking import client_for, metric_name
from veclip_core.training.arms import FIRST_LOOK
from veclip_core.training.sweeps import SWEEPS


@pytest.fixture
def world(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chain:  # noqa: F811
    """With an evaluation set, tracked in a sqlite store; of a manifest without the stages that the page shows captions of."""
    write_openmoji(tmp_path / "cache" / "world" / "openmoji")
    monkeypatch.setattr(evaluation, "_captions", lambda chain, comparison: Captions([]))
    monkeypatch.setattr(data_card, "of", lambda chain: DataCard([], []))
    monkeypatch.setattr(data_card, "captioner_accuracy", lambda chain: {})
    settings = chain.settings.model_copy(update={"mlflow": "", "cache": str(tmp_path / "cache")})
    return Chain(settings, SAMPLE)


def scores_of(results: dict[str, Any], model: str, seed: int) -> dict[str, float]:
    rows = [row for row in results["scores"] if (row["model"], row["seed"]) == (model, seed)]
    return {metric_name(f"{row['set']}/{row['split']}/{row['metric']}"): row["value"] for row in rows}


def test_the_command_makes_a_sweep(world: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "ROOT": world.root,
        "CACHE": world.settings.cache,
        "THREADS": "1",
        "TRAIN_WORKERS": "1",
    }.items():
        monkeypatch.setenv(f"VECLIP_{name}", value)
    command = ["sweep", "mix", "--steps", "2", "--seeds", "0", "--arms", "clip,mix_25,veclip"]
    figure = tmp_path / "figures" / "mix.png"
    done = CliRunner().invoke(app, [*command, "--figure", str(figure)], catch_exceptions=False)
    assert done.exit_code == 0
    page = Path(world.root) / "reports" / "sample-mix-arms-clip+mix_25+veclip-seeds-0-trial.html"
    assert f"Report: {page}" in done.stdout, "a trial does not take the whole sweep's place"
    assert "veclip minus clip, 1 seed(s)" in done.stdout
    assert f"Figure: {figure}" in done.stdout
    with Image.open(figure) as picture:
        assert picture.format == "PNG"
    results = json.loads(page.with_suffix(".json").read_text())
    assert results["models"] == ["clip", "mix_25", "veclip"]
    shown = page.read_text()
    chart = re.search(r'aria-label="(How much VeCap in the mix\.[^"]*)"', shown)
    assert chart is not None
    for row in results["summary"]:
        if row["split"] == "all" and row["metric"] in results["headline"]["metrics"]:
            assert f"{MODEL_NAMES[row['model']]} {row['value']:.2f} ({row['low']:.2f} to {row['high']:.2f})" in chart[1]
    assert "veclip sweep mix --scale sample --arms clip,mix_25,veclip --seeds 0 --steps 2" in shown
    before = {file: file.stat().st_mtime_ns for file in Path(world.root, world.source, "train").rglob("*.safetensors")}
    again = CliRunner().invoke(app, command, catch_exceptions=False)
    assert again.exit_code == 0
    after = {file: file.stat().st_mtime_ns for file in Path(world.root, world.source, "train").rglob("*.safetensors")}
    assert before == after, "nothing is trained again"
    assert before


def test_only_a_whole_sweep_has_its_name(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(sweeps, "make_report", lambda chain, of, name, **other: told.append((name, other["command"])))
    whole = SWEEPS["mix"]
    for sweep in (
        whole,
        whole.of(seeds=[2, 1, 0]),
        whole.of(["mix_25", "clip"]),
        whole.of(seeds=[0]),
        whole.of(seeds=range(99)),
    ):
        report_sweep(chain, sweep, [])
    report_sweep(chain, whole.of(["clip"], [0]), [], steps=5)
    names, commands = zip(*told, strict=True)
    assert names[:2] == ("sample-mix", "sample-mix")
    assert names[2:4] == ("sample-mix-arms-clip+mix_25", "sample-mix-seeds-0")
    assert len(names[4]) == 100
    assert commands[0] == "veclip sweep mix --scale sample"
    assert commands[2] == "veclip sweep mix --scale sample --arms clip,mix_25"
    assert commands[-1] == "veclip sweep mix --scale sample --arms clip --seeds 0 --steps 5"


def test_a_data_sweep_reads_parts_and_is_one_row_a_training_in_mlflow(world: Chain) -> None:
    sweep = SWEEPS["data"].of(["clip_50pct", "veclip_50pct", "clip", "veclip"], [0])
    trainings = train_sweep(world, sweep, overrides=OVERRIDES)
    rows = {one.arm: one.report["rows"] for one in trainings}
    assert rows["clip"] == rows["veclip"] == 96
    assert 30 < rows["clip_50pct"] == rows["veclip_50pct"] < 66
    assert len({one.report["samples"] for one in trainings}) == 1, "equal compute"
    made = report_sweep(world, sweep, trainings)
    client = client_for(str(world.settings.tracking_uri))
    for one in trainings:
        run = client.get_run(one.run_id).data
        assert (
            scores_of(dict(made.results), one.arm, 0).items()
            <= {k: pytest.approx(v) for k, v in run.metrics.items()}.items()
        )
        assert len(client.get_metric_history(one.run_id, "loss")) == len(one.report["history"])
        assert run.params["data_fraction"] == ("0.5" if one.arm.endswith("50pct") else "1.0")
        assert run.params["rows"] == str(rows[one.arm])
        assert run.tags[REPORT_TAG] == made.report_uri
    assert not client.search_registered_models(), "a sweep's trainings are not for others to load"


def test_a_registered_version_carries_its_scores(world: Chain) -> None:
    for arm in ("clip", "veclip"):
        train_arm(world, arm, overrides=OVERRIDES, progress_bar=False)
    client = client_for(str(world.settings.tracking_uri))
    assert publish(world, trained(world, "veclip")).version == "veclip_sample/1"
    assert REPORT_TAG not in client.get_model_version("veclip_sample", "1").tags, "not evaluated yet"
    first = make_report(world, FIRST_LOOK)
    assert publish(world, trained(world, "clip")).version == "clip_sample/1", "registered after the report"
    for arm in ("clip", "veclip"):
        scores = scores_of(dict(first.results), arm, 0)
        tags = client.get_model_version(f"{arm}_sample", "1").tags
        assert tags.items() >= main_scores(scores).items()
        assert tags["openmoji/mean_recall"] == f"{scores['openmoji/all/mean_recall']:.2f}"
        assert {"openmoji/i2t_r_at_1", "openmoji/zeroshot_top1_subgroup", "identity"} <= tags.keys()
        assert tags[REPORT_TAG] == first.report_uri
        assert not any("unseen" in name for name in tags)
    client.set_model_version_tag("clip_sample", "1", "openmoji/mean_recall", "of an older evaluation")
    train_arm(world, "mix_25", overrides=OVERRIDES, progress_bar=False)
    sweep = SWEEPS["mix"].of(["clip", "mix_25", "veclip"], [0])
    second = report_sweep(world, sweep, [trained(world, arm) for arm in sweep.axis])
    tags = client.get_model_version("clip_sample", "1").tags
    assert (
        tags["openmoji/mean_recall"] == f"{scores_of(dict(second.results), 'clip', 0)['openmoji/all/mean_recall']:.2f}"
    )
    assert tags[REPORT_TAG] == second.report_uri != first.report_uri


def test_what_mlflow_missed_is_mended_by_the_same_report(world: Chain, caplog: pytest.LogCaptureFixture) -> None:
    untracked = Chain(world.settings.model_copy(update={"mlflow": "off"}), SAMPLE)
    lost = Chain(world.settings.model_copy(update={"mlflow": "http://127.0.0.1:9"}), SAMPLE)
    for arm in ("clip", "veclip"):
        train_arm(untracked, arm, overrides=OVERRIDES, progress_bar=False)
        assert trained(world, arm).run_id is None
    made = make_report(lost, FIRST_LOOK)
    assert "make the report again when it is back" in caplog.text
    assert storage.exists(made.page_uri), "the report itself is not lost"
    assert made.run_ids == {}
    mended = make_report(world, FIRST_LOOK)
    assert mended.results["identity"] == made.results["identity"]
    client = client_for(str(world.settings.tracking_uri))
    assert len(mended.run_ids) == 2
    for name, run_id in mended.run_ids.items():
        one = trained(world, name.split()[0])
        run = client.get_run(run_id)
        losses = {point.step: point.value for point in client.get_metric_history(run_id, "loss")}
        assert losses == {point["step"]: pytest.approx(point["loss"]) for point in one.report["history"]}
        assert run.info.run_name == f"{one.arm}_sample seed 0"
        assert run.data.params["identity"].startswith(one.identity)
        assert run.data.params["learning_rate"] == str(OVERRIDES["learning_rate"])
        assert {"openmoji/all/mean_rank", "loss"} <= run.data.metrics.keys()
    assert make_report(world, FIRST_LOOK).run_ids == mended.run_ids, "found again, not made once more"
    assert publish(world, trained(world, "clip")).version == "clip_sample/1", "and can be registered"
    assert client.get_model_version("clip_sample", "1").run_id == mended.run_ids["clip seed 0"]


def test_what_a_run_lacks_of_the_losses_is_written(world: Chain) -> None:
    """As when MLflow went out of reach half-way, and came back after the training had given up."""
    for arm in ("clip", "veclip"):
        train_arm(world, arm, overrides={**OVERRIDES, "steps": 20}, progress_bar=False)
    whole = trained(world, "clip")
    point = {"step": 15, "loss": 3.25, "lr": 0.5}
    longer = replace(whole, report={**whole.report, "history": [*whole.report["history"], point]})
    storage.write_json(
        storage.join(world.root, world.source, "train", "current", "sample-clip-seed-0.json"), asdict(longer)
    )
    make_report(world, FIRST_LOOK)
    client = client_for(str(world.settings.tracking_uri))
    losses = {one.step: one.value for one in client.get_metric_history(whole.run_id, "loss")}
    assert losses[15] == 3.25
    assert len(losses) == len(longer.report["history"])
    assert len(client.get_metric_history(whole.run_id, "loss")) == len(losses), "and the others not twice"
