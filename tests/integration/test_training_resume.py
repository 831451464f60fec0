"""A training that is killed, stopped or interrupted, and started again, ends where an undisturbed one does: bit for bit."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.training_process import MANIFEST, run, shards_of
from tests.object_store import ObjectStore
from tests.unit.training_world import TINY, write_world
from veclip_core import storage
from veclip_core.tracking import client_for, initialise
from veclip_core.training import checkpoint as checkpoints
from veclip_core.training.loop import train
from veclip_core.training.manifest_table import load_manifest
from veclip_core.training.report import Runtime


def contents(folder: Path) -> dict[str, object]:
    """Everything of the last checkpoint that must not depend on interruptions: weights, optimizer, counts, losses."""
    last = checkpoints.find(str(folder))
    done = last.state()["done"]
    return {
        "step": last.step,
        "weights": {name: tensor.numpy().tobytes() for name, tensor in last.weights().items()},
        "training": shards_of(last),
        "counts": (done["samples"], done["fallbacks"], done["choices"]),
        "losses": [entry["loss"] for entry in done["history"]],
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_world(tmp_path_factory.mktemp("source"), 40)[0]


@pytest.fixture(scope="module")
def undisturbed(source: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run(source, folder)[0] == 0
    return contents(folder)


@pytest.mark.parametrize(
    ("point", "resumed_at"),
    # The checkpoint of step 8 is written while later steps are taken, and may be there when step 10 is.
    [
        ("at_step_10", {4, 8}),
        ("before_move", {4}),
        ("between_files", {4}),
        ("before_marker", {4}),
        ("after_marker", {8}),
    ],
)
def test_killed_and_started_again(
    source: str, undisturbed: dict[str, object], tmp_path: Path, point: str, resumed_at: set[int]
) -> None:
    folder = tmp_path / "run"
    assert run(source, folder, point)[0] == -signal.SIGKILL
    exit_code, (*steps, report) = run(source, folder)
    assert exit_code == 0
    assert report["resumed_at"] in resumed_at
    assert steps == list(range(report["resumed_at"] + 1, 13)), "finished steps are not done again"
    assert contents(folder) == undisturbed
    assert not list((folder / ".scratch").iterdir()), "nothing of the killed run stays"


def test_two_at_once_train_once(source: str, undisturbed: dict[str, object], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(run, source, folder, name) for name in ("one", "other")]
        (code, (*steps, report)), (other_code, (*other_steps, other_report)) = (one.result() for one in both)
    assert code == other_code == 0
    assert sorted(steps + other_steps) == list(range(1, 13)), "no step is taken twice"
    assert sorted([report["resumed_at"], other_report["resumed_at"]]) == [0, 12]
    assert contents(folder) == undisturbed


def test_sigterm_saves_first(source: str, undisturbed: dict[str, object], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run(source, folder, "sigterm_at_step_6")[0] == -signal.SIGTERM
    saved = checkpoints.latest(str(folder))
    assert saved is not None
    assert saved.step in (6, 7), "not at a regular checkpoint"
    assert run(source, folder)[1][-1]["resumed_at"] == saved.step
    assert contents(folder) == undisturbed


def test_other_threads_do_not_change_what_is_read(source: str, undisturbed: dict[str, object], tmp_path: Path) -> None:
    """Streamed pictures, other checkpoints, another process: the same weights."""
    manifest = load_manifest(source, MANIFEST)
    runtime = Runtime(threads=1, loader_threads=3, log_every_steps=1, checkpoint_every_steps=5, device="cpu")
    train(TINY, manifest, tmp_path / "run", runtime=runtime)
    assert contents(tmp_path / "run") == undisturbed


def test_mlflow_keeps_one_run_through_a_kill(source: str, tmp_path: Path) -> None:
    """The resumed training goes on with the same MLflow run, and every step's loss is there."""
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    folder = tmp_path / "run"
    initialise(database)
    assert run(source, folder, "after_marker", database)[0] == -signal.SIGKILL
    assert run(source, folder, "never", database)[0] == 0

    client = client_for(database)
    (run_found,) = client.search_runs([client.get_experiment_by_name("training").experiment_id])
    assert run_found.info.status == "FINISHED"
    assert run_found.info.run_id == checkpoints.find(str(folder)).state()["done"]["run_id"]
    steps = {metric.step for metric in client.get_metric_history(run_found.info.run_id, "loss")}
    assert {9, 10, 11, 12} <= steps <= set(range(1, 13))
    (dataset,) = run_found.inputs.dataset_inputs[:1]
    assert dataset.dataset.digest == load_manifest(source, MANIFEST).digest[:36]
    assert time.time() * 1000 > run_found.info.end_time


@pytest.mark.slow
def test_a_training_in_a_bucket_goes_on_from_there(
    source: str, undisturbed: dict[str, object], store: ObjectStore
) -> None:
    """Its shards are fetched and compared with their digests."""

    def interrupt(step: int, _: object) -> None:
        if step == 7:
            raise InterruptedError

    manifest, folder = load_manifest(source, MANIFEST), f"{store.root}/training"
    runtime = Runtime(threads=1, log_every_steps=1, checkpoint_every_steps=2, device="cpu")
    with pytest.raises(InterruptedError):
        train(TINY, manifest, folder, runtime=runtime, on_progress=interrupt)
    assert train(TINY, manifest, folder, runtime=runtime).resumed_at == 6
    last = checkpoints.find(folder)
    weights = {name: tensor.numpy().tobytes() for name, tensor in last.weights().items()}
    assert weights == undisturbed["weights"], "bit for bit"
    assert {name.split("/")[0] for name in storage.list_files(folder)} == {
        "leases", "step-000010", "step-000010.success.json", "step-000012", "step-000012.success.json",
    }  # fmt: skip
