"""`veclip reproduce` and `veclip evaluate` from files to page and MLflow, on stand-ins of the release and sets written on the fly.

A stand-in's weights are random (tests/released_clip.py): what is looked at is which score stands beside which, and what is said.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from typer.testing import CliRunner, Result

from tests.conftest import deployment_at
from tests.evaluation_files import picture, write_class_tars, write_folder_and_csv, write_retrieval_tars
from tests.released_clip import write_folder, write_t5, write_zip
from tests.servers import free_port
from tests.unit.clip_models import write_huggingface_clip
from tests.unit.saved_checkpoints import write_checkpoint
from tests.unit.training_world import TINY
from veclip_core.captioning.engines.weights import WeightsMissing
from veclip_core.cli import app
from veclip_core.evaluation.paper import PAPER_SETS, RELEASED
from veclip_core.evaluation.sets import EvaluationSetError
from veclip_core.mendable import Mendable
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.models import ModelNameError, models_named
from veclip_core.pipeline.models_evaluation import EXPERIMENT, EvaluationError, report_name, sets_named
from veclip_core.pipeline.report_names import LONGEST_NAME, as_file_name
from veclip_core.pipeline.trained import Trained, record
from veclip_core.scales import SCALES
from veclip_core.settings import Settings, SettingsError
from veclip_core.shards import NotMadeYet
from veclip_core.tracking import MlflowTracker, client_for
from veclip_core.training.model import architecture
from veclip_core.training.texts import SampleTokenizer, TokenizerMissing
from veclip_dagster.released_assets import released_checkpoints, released_report
from veclip_dagster.resources import VeclipResource

Veclip = Callable[..., Result]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two released zips, T5's tokenizer, a retrieval set, a classification set, and a folder with a csv."""
    folder = tmp_path_factory.mktemp("files")
    write_t5(folder / "t5")
    for seed, name in enumerate(("veclip_b16_3m", "vecapdfn_clip_b16")):
        weights = write_folder(folder / f"weights-{seed}", seed=seed)
        write_zip(folder / "zips" / f"{name}.zip", weights, name)
    write_retrieval_tars(folder / "mscoco")
    write_class_tars(folder / "wds_imagenet1k")
    write_folder_and_csv(folder / "mine")
    return folder


@pytest.fixture
def settings(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in {
        "ROOT": tmp_path / "root",
        "CACHE": tmp_path / "cache",
        "T5_TOKENIZER": files / "t5",
        "THREADS": 1,
    }.items():
        monkeypatch.setenv(f"VECLIP_{name}", str(value))
    for name in ("MLFLOW", "RELEASED_CHECKPOINTS", "EVALUATION_SETS"):
        monkeypatch.delenv(f"VECLIP_{name}", raising=False)
    return Settings.from_environment()


@pytest.fixture
def veclip(settings: Settings) -> Veclip:
    """The command in this process; what a person can mend is raised."""

    def run(*words: object) -> Result:
        result = CliRunner().invoke(app, [str(word) for word in words])
        if isinstance(result.exception, Mendable):
            raise result.exception
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return result

    return run


def results_of(settings: Settings, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(settings.root) / "reports" / f"{name}.json").read_text())
    return found


def embedded(settings: Settings) -> dict[str, int]:
    """The files of embeddings, and when each was written."""
    found = Path(settings.root).glob("evaluation/*/embed/**/*.success.json")
    times = {str(path): path.stat().st_mtime_ns for path in found}
    assert times
    return times


def test_nothing_given_is_said_with_every_command(veclip: Veclip, settings: Settings) -> None:
    result = veclip("reproduce")
    assert result.exit_code == 0
    assert "Nothing was evaluated: no checkpoint and no set" in result.output
    for name, one in RELEASED.items():
        assert (
            f"curl -fL --create-dirs -o {settings.root}/released/checkpoints/{name}.zip {one.address}" in result.output
        )
    for name in ("wds_mscoco_captions", "wds_flickr30k", "wds_imagenet1k", "wds_imagenetv2"):
        assert f"hf download clip-benchmark/{name} --repo-type dataset" in result.output
    assert not (Path(settings.root) / "reports").exists()


def as_published(monkeypatch: pytest.MonkeyPatch, **pictures: int) -> None:
    """As if the published sets were as small as those written here."""
    for name, number in pictures.items():
        monkeypatch.setitem(PAPER_SETS, name, replace(PAPER_SETS[name], pictures=number))


def test_what_is_given_stands_beside_the_papers_rows(
    files: Path, veclip: Veclip, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECLIP_RELEASED_CHECKPOINTS", str(files / "zips"))
    sets = ("--set", f"coco={files / 'mscoco'}", "--set", f"imagenet={files / 'wds_imagenet1k'}")
    result = veclip("reproduce", *sets)
    assert result.exit_code == 0, "sets of another size don't say that a number does not hold"
    assert result.output.count("no verdict: a set of another size") == 6
    assert "measured on 12 pictures, published on 5,000" in result.output
    assert "no verdict" in (Path(settings.root) / "reports" / "released.html").read_text()

    as_published(monkeypatch, coco=12, imagenet=24)
    result = veclip("reproduce", *sets)
    assert result.exit_code == 1, "random weights do not have the published scores"
    found = results_of(settings, "released")
    assert found["models"] == ["veclip_b16_3m", "vecapdfn_clip_b16"]
    assert {name: one["pictures"] for name, one in found["sets"].items()} == {"coco": 12, "imagenet": 24}
    assert [(one["model"], one["column"], one["published"]) for one in found["verdicts"]] == [
        ("veclip_b16_3m", "coco_i2t_r1", 22.30), ("veclip_b16_3m", "coco_t2i_r1", 13.01), ("veclip_b16_3m", "imagenet", 15.98),
        ("vecapdfn_clip_b16", "coco_i2t_r1", 66.28), ("vecapdfn_clip_b16", "coco_t2i_r1", 45.12),
        ("vecapdfn_clip_b16", "imagenet", 76.19),
    ]  # fmt: skip
    assert not any(one["holds"] for one in found["verdicts"])
    assert result.output.count("does not hold") == 6
    assert "measured on" not in result.output
    assert "DFN 62.96, VeCap 300M 64.74" in result.output, "three rows link to this zip"
    page = (Path(settings.root) / "reports" / "released.html").read_text()
    assert "22.30" in page
    assert "does not hold" in page
    # what is not given, to the folder that was named
    assert f"-o {files / 'zips'}/veclip_b16_12m.zip" in result.output
    assert "hf download clip-benchmark/wds_flickr30k" in result.output
    assert "veclip_b16_3m.zip https" not in result.output
    assert "wds_mscoco_captions" not in result.output

    # Where the published scores are those that were measured, all hold.
    for name in found["models"]:
        measured = {one["column"]: one["measured"] for one in found["verdicts"] if one["model"] == name}
        near = {"coco_i2t_r1": 0.29, "coco_t2i_r1": -0.29, "imagenet": 0.0}
        row = replace(RELEASED[name].row, **{column: value + near[column] for column, value in measured.items()})
        monkeypatch.setitem(RELEASED, name, replace(RELEASED[name], row=row))
    kept = embedded(settings)
    again = veclip("reproduce", *sets)
    assert again.exit_code == 0
    assert embedded(settings) == kept, "nothing is embedded twice"
    assert [one["holds"] for one in results_of(settings, "released")["verdicts"]] == [True] * 6


def test_what_lies_where_the_commands_put_it_is_found(files: Path, veclip: Veclip, settings: Settings) -> None:
    released = Path(settings.root) / "released"
    (released / "sets").mkdir(parents=True)
    (released / "checkpoints").symlink_to(files / "zips")
    (released / "sets" / "coco").symlink_to(files / "mscoco")
    assert veclip("reproduce").exit_code == 0
    found = results_of(settings, "released")
    assert (list(found["sets"]), found["models"]) == (["coco"], ["veclip_b16_3m", "vecapdfn_clip_b16"])


def test_names_that_are_not_the_releases_are_refused(
    files: Path, veclip: Veclip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match="the paper's sets are coco, flickr30k, imagenet, imagenetv2"):
        veclip("reproduce", "--set", f"mine={files / 'mine'}")
    other = tmp_path / "another.zip"
    other.write_bytes((files / "zips" / "veclip_b16_3m.zip").read_bytes())
    monkeypatch.setenv("VECLIP_RELEASED_CHECKPOINTS", str(other))
    with pytest.raises(SettingsError, match=r"another\.zip has no name of the release's; there are veclip_b16_3m"):
        veclip("reproduce")


def test_own_folder_and_csv_by_the_command_line(files: Path, tmp_path: Path) -> None:
    """As a person types it, in a process of its own; the second time nothing is embedded."""
    model = write_huggingface_clip(tmp_path / "a model")
    deployment = deployment_at(
        tmp_path / "root", tmp_path / "cache", VECLIP_T5_TOKENIZER=str(files / "t5"), VECLIP_MLFLOW="off"
    )
    command = (
        "veclip", "evaluate", "--model", f"theirs={model}", "--model", str(files / "zips" / "veclip_b16_3m.zip"),
        "--set", f"mine={files / 'mine' / 'captions.csv'}", "--name", "first",
    )  # fmt: skip
    done = deployment.run(*command)
    assert done.returncode == 0, done.stdout
    assert "mine: 12 pictures, 18 captions" in done.stdout
    assert "veclip_b16_3m minus theirs" in done.stdout
    page = (tmp_path / "root" / "reports" / "first.html").read_text()
    assert "veclip evaluate --model" in page
    kept = embedded(Settings(root=str(tmp_path / "root")))
    again = deployment.run(*command, "--json")
    assert again.returncode == 0, again.stdout
    assert embedded(Settings(root=str(tmp_path / "root"))) == kept, "nothing is embedded twice"
    printed = json.loads(again.stdout[again.stdout.index("{\n") :])
    assert printed["summary"] == json.loads((tmp_path / "root" / "reports" / "first.json").read_text())["summary"]
    missing = deployment.run("veclip", "evaluate", "--model", str(model), "--set", "mine=/no/such/folder")
    assert missing.returncode == 1
    assert "Traceback" not in missing.stdout
    assert "/no/such/folder" in missing.stdout


def test_what_is_missing_is_said(files: Path, veclip: Veclip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, model = f"mine={files / 'mine' / 'captions.csv'}", files / "zips" / "veclip_b16_3m.zip"
    with pytest.raises(ModelNameError, match=r"there is no model 'nothing'.*training's asset such as veclip_sample"):
        veclip("evaluate", "--model", "nothing", "--set", own)
    with pytest.raises(WeightsMissing, match=r"no/such\.zip"):
        veclip("evaluate", "--model", "/no/such.zip", "--set", own)
    with pytest.raises(NotMadeYet, match="veclip run clip --scale 3m --seed 2"):
        veclip("evaluate", "--model", "clip_3m", "--seed", 2, "--set", own)
    with pytest.raises(EvaluationSetError, match="nowhere"):
        veclip("evaluate", "--model", model, "--set", tmp_path / "nowhere")
    with pytest.raises(ModelNameError, match="two models are called 'veclip_b16_3m'"):
        veclip("evaluate", "--model", model, "--model", model, "--set", own)
    with pytest.raises(EvaluationError, match="no model 'clip' to compare with; there are veclip_b16_3m"):
        veclip("evaluate", "--model", model, "--set", own, "--baseline", "clip")
    with pytest.raises(EvaluationError, match="a name of scale sample's own reports"):
        veclip("evaluate", "--model", model, "--set", own, "--name", "sample-experiment")
    with pytest.raises(EvaluationError, match="two sets are called 'mine'"):
        veclip("evaluate", "--model", model, "--set", own, "--set", own)
    with pytest.raises(EvaluationSetError, match="'a photo' has no place for the class"):
        veclip("evaluate", "--model", model, "--set", own, "--template", "a photo")
    monkeypatch.setenv("VECLIP_T5_TOKENIZER", str(tmp_path))
    with pytest.raises(TokenizerMissing, match="VECLIP_T5_TOKENIZER"):
        veclip("evaluate", "--model", model, "--set", own)


def train(
    settings: Settings, arm: str, seed: int, folder: Path, *, scale: str = "sample", tracked: bool = True
) -> Trained:
    """A training as evaluation finds it, with its run in MLflow."""
    run_id = None
    if tracked:
        tracker = MlflowTracker(str(settings.tracking_uri), artifact_root=settings.artifact_folder)
        run_id = tracker.start_run(f"veclip {scale}", f"{arm} {seed}")
        tracker.log_metrics({"loss": 2.5}, step=1)
        tracker.finish()
    tokenizer = SampleTokenizer.of_texts(["a red square, number 7 of the 1th kind"], TINY.context_length)
    checkpoint = write_checkpoint(folder / f"{arm}-{seed}", TINY, architecture(TINY, tokenizer.vocab_size), tokenizer)
    report = {"history": [{"step": 1, "loss": 2.5}]}
    made = Trained(scale, arm, seed, f"{arm}{seed}", checkpoint, run_id, "ab" * 32, partial=False, report=report)
    record(Chain(settings, SCALES[scale]), made, trial=False)
    return made


def test_trained_assets_by_name_get_their_scores_beside_their_losses(
    files: Path, veclip: Veclip, settings: Settings, tmp_path: Path
) -> None:
    made = {(arm, seed): train(settings, arm, seed, tmp_path) for arm in ("clip", "veclip") for seed in (0, 1)}
    own = files / "mine" / "captions.csv"
    result = veclip(
        "evaluate", "--model", "clip_sample", "--model", "ours=veclip_sample", "--seed", 0, "--seed", 1, "--set", f"mine={own}",
        "--name", "arms",
    )  # fmt: skip
    assert result.exit_code == 0
    found = results_of(settings, "arms")
    assert (found["models"], found["seeds"], found["baseline"]) == (["clip_sample", "ours"], [0, 1], "clip_sample")
    client = client_for(str(settings.tracking_uri))
    for (arm, seed), training in made.items():
        model = "ours" if arm == "veclip" else "clip_sample"
        score = next(
            row for row in found["scores"] if (row["model"], row["seed"], row["metric"]) == (model, seed, "i2t_r@5")
        )
        run = client.get_run(training.run_id)
        assert run.data.metrics["mine/all/i2t_r_at_5"] == pytest.approx(score["value"])
        assert run.data.metrics["loss"] == 2.5
    experiment = client.get_experiment_by_name(EXPERIMENT)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "arms"
    assert run.data.params["model ours seed 1"].startswith("veclip_sample (checkpoint")
    assert "12 pictures" in run.data.params["set mine"]
    summary = next(row for row in found["summary"] if (row["model"], row["metric"]) == ("ours", "mean_recall"))
    assert run.data.metrics["ours/mine/all/mean_recall"] == pytest.approx(summary["value"])
    assert {one.path for one in client.list_artifacts(run.info.run_id)} == {"report.html", "results.json"}


def test_an_evaluation_repeated_goes_on_with_its_runs(
    files: Path, veclip: Veclip, settings: Settings, tmp_path: Path
) -> None:
    """Also the run of a training that was out of MLflow's reach. It is on data of the paper's size, and the set is the paper's."""
    train(settings, "clip", 0, tmp_path, scale="3m", tracked=False)
    told = ("evaluate", "--model", "clip_3m", "--set", f"coco={files / 'mscoco'}")
    for name in ("mine", "mine", "other"):
        veclip(*told, "--name", name)
    client = client_for(str(settings.tracking_uri))
    runs = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["mine", "other"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    (run,) = client.search_runs([client.get_experiment_by_name("veclip 3m").experiment_id])
    assert {"coco/all/mean_recall", "loss"} <= run.data.metrics.keys()
    found = results_of(settings, "mine")
    (told_of,) = found["evaluated"]
    assert told_of["run_id"] == run.info.run_id
    assert told_of["alt_text_only"]
    assert told_of["millions"] == pytest.approx(3, rel=0.1)
    veclip("report", "mine", "other")
    for page in ("mine", "models"):
        assert "clip_3m, here" in (Path(settings.root) / "reports" / f"{page}.html").read_text()


def test_without_mlflow_nothing_but_the_run_is_lost(
    files: Path, veclip: Veclip, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VECLIP_MLFLOW", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(MlflowTracker, "finish", _finish_soon(MlflowTracker.finish))
    with caplog.at_level(logging.WARNING):
        result = veclip(
            "evaluate",
            "--model",
            files / "zips" / "veclip_b16_3m.zip",
            "--set",
            files / "mine" / "captions.csv",
            "--name",
            "kept",
        )
    assert result.exit_code == 0
    assert results_of(settings, "kept")["models"] == ["veclip_b16_3m"]
    assert "the scores are not in MLflow" in caplog.text


def _finish_soon(finish: Callable[..., None]) -> Callable[..., None]:
    def soon(tracker: MlflowTracker, *given: Any) -> None:
        tracker.finish_deadline_s = 1.0
        finish(tracker, *given)

    return soon


def test_a_model_is_named_as_it_is_told(files: Path, settings: Settings, tmp_path: Path) -> None:
    folder = write_huggingface_clip(tmp_path / "a=b")
    named = models_named([str(folder), f"mine={folder}", str(files / "zips" / "veclip_b16_3m.zip")], settings)
    assert [one.candidate.name for one in named] == ["a=b", "mine", "veclip_b16_3m"], "a path may have a = in it"
    assert len({one.candidate.network.identity() for one in named[:2]}) == 1
    seeds = models_named([str(folder)], settings, (0, 1))
    assert [one.candidate.seed for one in seeds] == [0, 1], "one without seeds is paired with each of the others'"


def test_evaluations_with_long_names_stay_apart(files: Path, settings: Settings) -> None:
    folder = str(files / "zips" / "veclip_b16_3m.zip")
    models = models_named([f"a model of a rather long name number {number}={folder}" for number in range(4)], settings)
    mine = sets_named([f"{name}={files / 'mine'}" for name in ("coco", "flickr30k")], settings)
    names = {report_name(models, [one]) for one in mine}
    assert len(names) == 2, "though the sets stand behind the cut"
    assert all(len(name) == LONGEST_NAME for name in names)
    assert report_name(models[:1], mine[:1]) == "a_model_of_a_rather_long_name_number_0_on_coco"
    assert LONGEST_NAME - 3 < len(as_file_name("\u732b" * 200).encode()) <= LONGEST_NAME, (
        "bytes are what file systems count"
    )
    assert as_file_name("\u732b" * 33) == "\u732b" * 33
    assert as_file_name("\udc80/..") == "evaluation"


def test_other_names_and_baselines_do_not_take_a_pages_place(files: Path, veclip: Veclip, settings: Settings) -> None:
    zip_ = files / "zips" / "veclip_b16_3m.zip"
    pages = Path(settings.root) / "evaluation_reports"
    told = ("--set", f"mine={files / 'mine'}", "--name", "mine")
    for first, second, baseline in (("a", "b", "a"), ("a", "b", "b"), ("a", "c", "a"), ("a", "b", "a")):
        veclip("evaluate", "--model", f"{first}={zip_}", "--model", f"{second}={zip_}", *told, "--baseline", baseline)
    kept = [json.loads(file.read_text()) for file in pages.glob("*/results.json")]
    assert len({one["identity"] for one in kept}) == 1
    assert sorted((*one["models"], one["baseline"]) for one in kept) == [
        ("a", "b", "a"),
        ("a", "b", "b"),
        ("a", "c", "a"),
    ]


def test_classes_of_ones_own_are_named_by_templates_of_photographs(
    files: Path, veclip: Veclip, settings: Settings
) -> None:
    folder = Path(settings.root) / "by class"
    for number in range(12):
        place = folder / ("red things", "blue things")[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(picture(number))
    model = files / "zips" / "veclip_b16_3m.zip"
    first = veclip("evaluate", "--model", model, "--set", f"mine={folder}", "--name", "simple", "--json")
    found = json.loads(first.stdout[first.stdout.index("{\n") :])
    assert found["config"]["templates"][0] == "itap of a {}."
    assert found["summary"][0]["metric"].startswith("zeroshot_top1_")
    (classes,) = found["sets"]["mine"]["classes"].values()
    assert classes == 2
    veclip("evaluate", "--model", model, "--set", f"mine={folder}", "--name", "told", "--template", "a thing: {}")
    assert results_of(settings, "told")["config"]["templates"] == ["a thing: {}"]


def test_dagster_shows_checkpoints_and_verdicts(
    files: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resources = {"veclip": VeclipResource()}

    def failure(asset: dg.AssetsDefinition) -> str:
        with pytest.raises(dg.Failure) as raised:
            dg.materialize([asset], resources=resources)
        return str(raised.value.description)

    assert "curl -fL" in failure(released_checkpoints)
    assert "hf download" in failure(released_report)
    catalogue = tmp_path / "sets.yaml"
    catalogue.write_text(f"coco: {files / 'mscoco'}\nmine: {files / 'mine'}\n")
    monkeypatch.setenv("VECLIP_EVALUATION_SETS", str(catalogue))
    as_published(monkeypatch, coco=12)
    zips = ",".join(str(path) for path in (files / "zips").iterdir())
    monkeypatch.setenv("VECLIP_RELEASED_CHECKPOINTS", zips)
    result = dg.materialize([released_checkpoints, released_report], resources=resources)
    made = {
        event.materialization.asset_key.to_user_string(): event.materialization.metadata
        for event in result.get_asset_materialization_events()
    }
    (pinned, report) = made["released_checkpoints"], made["released_report"]
    rows = [record.data for record in pinned["checkpoints"].records]
    assert {row["checkpoint"] for row in rows} == {"veclip_b16_3m", "vecapdfn_clip_b16"}
    assert all(str(row["revision"]).startswith("sha256:") and Path(str(row["folder"])).is_dir() for row in rows)
    verdicts = [record.data for record in report["verdicts"].records]
    assert len(verdicts) == 4
    assert {row["verdict"] for row in verdicts} == {"does not hold"}
    assert (report["hold"].value, report["do_not_hold"].value) == (0, 4)
    missing = {record.data["missing"] for record in report["missing"].records}
    assert {"veclip_b16_12m", "imagenetv2"} <= missing
    assert not {"veclip_b16_3m", "coco"} & missing
    assert Path(str(report["report"].value)).is_file()
