"""What people see, in a real headless Chromium: Dagster's UI and MLflow's."""

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Deployment
from tests.e2e.browser import CHROMIUM, Ui, opened_page, serving

RUN_WITHIN_S = 300

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def ui(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    """`make ui` on a root whose URLs are listed and downloaded."""
    own = deployment.with_root(
        tmp_path_factory.mktemp("ui"), VECLIP_ENGINE="transformers"
    )  # starts in a third of the time
    for asset in ("raw_urls", "shards"):
        arguments = ("--rows", "30") if asset == "raw_urls" else ()
        done = own.run("veclip", "run", asset, *arguments)
        assert done.returncode == 0, done.stdout[-3000:]
    with serving(own) as running:
        yield running


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with opened_page() as opened:
        yield opened


def test_an_asset_is_materialised_and_shows_captions_with_pictures(ui: Ui, page: Any, tmp_path: Path) -> None:
    page.goto(f"{ui.dagster}/locations/veclip_dagster/asset-groups/scale_sample")
    page.get_by_text("vecap_sample", exact=True).first.click()
    page.get_by_role("button", name="Materialize selected").click()
    confirm = page.get_by_role("button", name="Confirm")
    until = time.monotonic() + RUN_WITHIN_S
    runs: list[dict[str, str]] = []
    while time.monotonic() < until:
        if confirm.count() and confirm.first.is_visible():
            confirm.first.click()
        runs = ui.ask("{ runsOrError(limit: 1) { ... on Runs { results { runId status } } } }")["runsOrError"][
            "results"
        ]
        if runs and runs[0]["status"] in ("SUCCESS", "FAILURE", "CANCELED"):
            break
        page.wait_for_timeout(1000)
    assert runs
    assert runs[0]["status"] == "SUCCESS", runs
    page.goto(f"{ui.dagster}/assets/vecap_sample?view=overview")
    page.get_by_text("written_by_the_llm").first.wait_for()
    row = page.locator("tr", has=page.get_by_text("captions", exact=True)).first
    row.get_by_text("[Show Markdown]").click()
    pictures = page.locator("img[src^='data:image/jpeg;base64,']")
    pictures.first.wait_for()
    assert pictures.count() >= 5
    assert page.get_by_text("a drawing of").count() >= 5
    broken = pictures.evaluate_all("pictures => pictures.filter(p => !(p.complete && p.naturalWidth > 0)).length")
    assert broken == 0
    page.screenshot(path=str(tmp_path / "captions.png"), full_page=True)
    page.keyboard.press("Escape")
    to_mlflow = page.locator(f"a[href^='{ui.mlflow}/#/experiments/']").first.get_attribute("href")
    page.goto(to_mlflow)
    page.get_by_text(f"run {runs[0]['runId'][:8]}").first.wait_for()
    back = page.locator(f"a[href='{ui.dagster}/runs/{runs[0]['runId']}']")
    assert back.count(), "MLflow's run links back to Dagster's"


def test_mlflow_compares_the_two_trainings(ui: Ui, page: Any, tmp_path: Path) -> None:
    done = ui.deployment.run("veclip", "run", "manifest")
    assert done.returncode == 0, done.stdout[-3000:]
    for command in (("run", "clip"), ("train", "--arm", "veclip")):
        done = ui.deployment.run("veclip", *command, "--steps", "10")
        assert done.returncode == 0, done.stdout[-3000:]
    done = ui.deployment.run("veclip", "run", "eval_report")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "mean_recall" in done.stdout
    results = json.loads((ui.deployment.root / "reports" / "sample.json").read_text())
    ids = [training["run_id"] for training in results["trainings"]]
    with urllib.request.urlopen(f"{ui.mlflow}/api/2.0/mlflow/runs/get?run_id={ids[0]}", timeout=30) as answer:
        run = json.loads(answer.read())["run"]
    names = {metric["key"] for metric in run["data"]["metrics"]}
    assert "loss" in names
    assert "openmoji/all/mean_recall" in names, "losses and scores are in one run"
    assert run["inputs"]["dataset_inputs"], "the manifest is the run's input"
    experiment = run["info"]["experiment_id"]
    quoted = urllib.request.quote(json.dumps(ids))  # type: ignore[attr-defined]
    page.goto(f'{ui.mlflow}/#/compare-runs?runs={quoted}&experiments=["{experiment}"]')
    page.get_by_text("Comparing 2 Runs").first.wait_for()
    page.get_by_text("openmoji/all/mean_recall").first.wait_for()
    page.screenshot(path=str(tmp_path / "compare.png"), full_page=True)


def test_the_experiment_fills_its_grid_and_its_report_fits_a_phone_and_paper(ui: Ui, page: Any, tmp_path: Path) -> None:
    steps = tmp_path / "steps.yaml"
    steps.write_text(json.dumps({"ops": {"arms_sample": {"config": {"steps": 3}}}}))
    job = ("dagster", "job", "execute", "-m", "veclip_dagster.definitions", "-j", "experiment_sample")
    done = ui.deployment.run(*job, "--config", str(steps), DAGSTER_MODULE_NAME="")
    assert done.returncode == 0, done.stdout[-4000:]
    status = "partitionStats { numMaterialized numPartitions }"
    grid = ui.ask(
        f'{{ assetNodeOrError(assetKey: {{path: ["arms_sample_trainings"]}}) {{ ... on AssetNode {{ {status} }} }} }}'
    )
    assert grid["assetNodeOrError"]["partitionStats"] == {"numMaterialized": 18, "numPartitions": 18}
    results = json.loads((ui.deployment.root / "reports" / "sample-experiment.json").read_text())
    assert results["seeds"] == [0, 1, 2]
    assert len(results["models"]) == 6
    assert {tuple(pair) for pair in results["headline"]["contrasts"]} >= {("veclip", "clip"), ("control", "clip")}
    assert results["partial"], "trainings of 3 steps are a trial"
    with urllib.request.urlopen(
        f"{ui.mlflow}/api/2.0/mlflow/runs/get?run_id={results['trainings'][-1]['run_id']}"
    ) as answer:
        names = {metric["key"] for metric in json.loads(answer.read())["run"]["data"]["metrics"]}
    assert {"loss", "openmoji/unseen/mean_rank"} <= names
    report = (ui.deployment.root / "reports" / "sample-experiment.html").as_uri()
    for name, width in (("phone", 375), ("desk", 1200)):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(report)
        page.get_by_role("heading", name="Seed by seed").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"the page scrolls sideways on a {name}"
        broken = page.locator("img").evaluate_all("all => all.filter(p => p.complete && !p.naturalWidth).length")
        assert broken == 0
        page.screenshot(path=str(tmp_path / f"{name}.png"), full_page=True)
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 760, "height": 1000})  # A4's width within its margins
    wide = page.locator("table").evaluate_all("all => all.filter(t => t.scrollWidth > 760).length")
    page.emulate_media(media="screen")
    assert wide == 0, "a table is cut off in print"
