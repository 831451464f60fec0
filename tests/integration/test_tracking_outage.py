"""A real MLflow server is killed and started again in the middle of a run, and a reply is lost: nothing is lost, nothing twice."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import FOREIGN
from tests.faulty_proxy import proxy_before
from tests.servers import free_port
from veclip_core import outbox
from veclip_core.tracking import MlflowTracker, client_for

STARTS_WITHIN_S = 120
STEPS = 300


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[str]:
    """On the folder's sqlite store, until the block ends, which is as sudden as a power cut."""
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    environment = {**FOREIGN, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with open(folder / "server.log", "ab") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        until = time.monotonic() + STARTS_WITHIN_S
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None, (folder / "server.log").read_text()[-3000:]
            assert time.monotonic() < until, (folder / "server.log").read_text()[-3000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.slow
def test_a_server_that_goes_down_in_the_middle_has_all_points_once_and_in_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "RETRY_MAX_S", 2.0)
    caplog.set_level(logging.WARNING, "veclip_core")
    port = free_port()
    with proxy_before(f"http://127.0.0.1:{port}") as proxy:
        tracker = MlflowTracker(f"http://127.0.0.1:{proxy.server_port}")
        slowest = 0.0
        in_the_middle, came_back = threading.Event(), threading.Event()

        def log_all() -> None:
            nonlocal slowest
            for step in range(1, STEPS + 1):
                if step == 100:
                    in_the_middle.set()
                if step == 200:
                    came_back.wait(STARTS_WITHIN_S)
                before = time.monotonic()
                tracker.log_metrics({"loss": 1 / step, "lr": step}, step)
                slowest = max(slowest, time.monotonic() - before)
                time.sleep(0.01)

        with mlflow_server(tmp_path, port):
            proxy.once_each("POST", "lose_reply")
            begun = tracker.start_run("training", "run", {"arm": "clip"}, {"steps": STEPS})
            assert begun is None, "training does not wait for a run"
            assert tracker.flush(60)
            training = threading.Thread(target=log_all)
            training.start()
            assert in_the_middle.wait(60)
        with mlflow_server(tmp_path, port) as address:
            came_back.set()
            training.join(60)
            tracker.finish()
            client = client_for(address)
            (run,) = client.search_runs([client.get_experiment_by_name("training").experiment_id])
            assert (run.info.status, run.info.run_id) == ("FINISHED", tracker.run_id)
            assert (run.data.params["steps"], run.data.tags["arm"]) == (str(STEPS), "clip")
            expected = {"loss": lambda step: 1 / step, "lr": float}
            for name, value in expected.items():
                points = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
                assert points == [(step, value(step)) for step in range(1, STEPS + 1)]
    lost = {"/".join(path.split("/")[-2:]) for path in proxy.faults}
    assert lost >= {"experiments/create", "runs/create", "runs/log-batch", "runs/update"}
    assert slowest < 0.5, "training never waits for tracking"
    said = [record.message for record in caplog.records]
    assert any("can't be reached" in message for message in said)
    assert any("answers again" in message for message in said)
    assert not any("refused" in message and "left out" in message for message in said)
