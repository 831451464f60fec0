"""Tracking: what MLflow ends up with, and that nobody waits for it."""

import logging
import multiprocessing
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.servers import free_port
from veclip_core.outbox import Outbox
from veclip_core.tracking import MlflowTracker, NoTracker, Tracker, client_for, initialise, metric_name


class Unreachable(Exception):
    pass


class Post:
    """The other side of an outbox, with a switch."""

    def __init__(self) -> None:
        self.up = threading.Event()
        self.got: list[list[int]] = []

    def deliver(self, items: list[int]) -> None:
        if not self.up.is_set():
            raise Unreachable("connection refused\nlong trace")
        if 13 in items:
            raise ValueError("unlucky")
        self.got.append(items)

    def outbox(self, max_buffered: int = 100, together: int = 1) -> Outbox[int]:
        return Outbox(
            "the post",
            self.deliver,
            is_outage=lambda error: isinstance(error, Unreachable),
            together=lambda pending: min(together, len(pending)),
            expendable=lambda item: item < 100,
            max_buffered=max_buffered,
        )


def test_an_outage_is_said_once_and_everything_arrives_in_order(caplog: pytest.LogCaptureFixture) -> None:
    post = Post()
    outbox = post.outbox(together=4)
    began = time.monotonic()
    for number in range(12):
        outbox.put(number)
    assert time.monotonic() - began < 0.5, "putting never waits"
    assert not outbox.flush(2.5)
    post.up.set()
    assert outbox.flush(20)
    assert [item for items in post.got for item in items] == list(range(12))
    assert len(post.got) < 12
    said = [record.message for record in caplog.records if "can't be reached" in record.message]
    assert said == [
        "the post can't be reached (connection refused). Work goes on; what is sent is buffered and delivered later."
    ]
    assert any("answers again" in record.message for record in caplog.records)
    outbox.close(5)


def test_a_full_buffer_drops_the_oldest_expendable_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    post = Post()
    outbox = post.outbox(max_buffered=5)
    outbox.put(100)
    outbox.flush(5, or_outage=True)
    for number in (1, 2, 101, 3, 4, 5, 6):
        outbox.put(number)
    post.up.set()
    assert outbox.flush(20)
    outbox.close(5)
    assert [item for items in post.got for item in items] == [100, 101, 4, 5, 6]
    assert outbox.dropped == 3
    assert any("3 items for the post were dropped" in record.message for record in caplog.records)


def test_what_is_refused_is_left_out_and_the_rest_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    post = Post()
    post.up.set()
    outbox = post.outbox()
    for number in (12, 13, 14):
        outbox.put(number)
    assert outbox.flush(20)
    outbox.close(5)
    assert post.got == [[12], [14]]
    assert outbox.refused == 1
    assert any("refused 13" in record.message for record in caplog.records)


def test_what_stays_undelivered_is_said(caplog: pytest.LogCaptureFixture) -> None:
    outbox = Post().outbox()
    outbox.put(1)
    outbox.close(0.3)
    assert any("1 items were not delivered" in record.message for record in caplog.records)


def test_mlflow_has_all_of_a_run_and_evaluation_goes_on_with_it(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'a folder' / 'mlflow.db'}"
    note = tmp_path / "note.txt"
    note.write_text("hello")
    tracker = MlflowTracker(uri, artifact_root=str(tmp_path / "artifacts"))
    run_id = tracker.start_run(
        "training", "veclip_sample", {"veclip.scale": "sample"}, {"steps": 300, "weights": {"alt": 1}}
    )
    assert run_id is not None
    for step in range(1, 1201):
        tracker.log_metrics({"loss": 1 / step, "i2t_r@1": 0.5}, step)
    tracker.log_artifact(note)
    tracker.log_dataset("s3://bucket/manifest", "manifest_sample", "d" * 64, "training")
    tracker.finish()

    assert tracker.start_run("ignored", "ignored", {"evaluated": "yes"}, run_id=run_id) == run_id
    tracker.log_metrics({"zeroshot_top1_group": 0.25})
    tracker.finish()

    client = client_for(uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "veclip_sample"
    assert run.data.params == {"steps": "300", "weights": "{'alt': 1}"}
    assert run.data.tags["veclip.scale"] == "sample"
    assert run.data.tags["evaluated"] == "yes"
    assert run.data.metrics[metric_name("i2t_r@1")] == 0.5
    assert run.data.metrics["zeroshot_top1_group"] == 0.25
    assert [metric.step for metric in client.get_metric_history(run_id, "loss")] == list(range(1, 1201))
    (lineage,) = run.inputs.dataset_inputs
    assert (lineage.dataset.name, lineage.dataset.digest) == ("manifest_sample", "d" * 36)
    assert [artifact.path for artifact in client.list_artifacts(run_id)] == ["note.txt"]
    assert not (Path.cwd() / "mlruns").exists()


def test_processes_may_meet_a_fresh_database_at_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=initialise, args=(uri,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(180)
    assert [process.exitcode for process in processes] == [0, 0]


def test_work_goes_on_without_a_server(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "veclip_core")
    tracker = MlflowTracker(f"http://127.0.0.1:{free_port()}", connect_deadline_s=60, finish_deadline_s=1)
    assert tracker.start_run("training", "run") is None
    began = time.monotonic()
    for step in range(500):
        tracker.log_metrics({"loss": 1.0}, step)
    assert time.monotonic() - began < 1
    tracker.finish()
    assert len([record for record in caplog.records if "can't be reached" in record.message]) == 1
    assert any("were not delivered" in record.message for record in caplog.records)


def test_misuse_is_refused() -> None:
    tracker: Tracker = MlflowTracker("sqlite:////nowhere/mlflow.db")
    with pytest.raises(RuntimeError, match="no run is open"):
        tracker.log_metrics({"loss": 1.0}, 1)
    nothing: Tracker = NoTracker()
    assert nothing.start_run("training", "run") is None


def test_importing_the_modules_imports_nothing_heavy() -> None:
    code = (
        "import sys, veclip_core.tracking, veclip_core.training.loop, veclip_core.training.export;"
        "print(sorted({'torch', 'mlflow', 'open_clip', 'PIL', 'tqdm'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
