"""vLLM's engine in a process of its own, as beside a GPU: killed, and its worker killed, in the middle of fusing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.conftest import FOREIGN, PROJECT, Deployment
from tests.integration.test_chain_kills import few_urls  # noqa: F401  (a fixture)
from veclip_core.captioning.engines.vllm_engine import OWN_PROCESS

pytestmark = pytest.mark.slow


def within(seconds: float, found: Callable[[], object]) -> bool:
    end = time.monotonic() + seconds
    while not found() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(found())


def engine_of(run: "subprocess.Popen[bytes]") -> psutil.Process | None:
    """vLLM names its process so."""
    for process in psutil.Process(run.pid).children(recursive=True):
        try:
            if "EngineCore" in " ".join([process.name(), *process.cmdline()]):
                return process
        except psutil.Error:
            continue
    return None


@pytest.mark.parametrize("few_urls", ["vllm"], indirect=True)
@pytest.mark.parametrize("who", ["engine", "worker"])
def test_one_of_them_dies_and_the_other_does_not_stay(
    deployment: Deployment,
    few_urls: dict[str, str],  # noqa: F811
    tmp_path: Path,
    who: str,
) -> None:
    own = deployment.with_root(tmp_path)
    environment = {**FOREIGN, **own.environment, **few_urls, OWN_PROCESS: "1", "PYTHONPATH": str(PROJECT)}
    with open(tmp_path / "chain.log", "wb") as log:
        command = [sys.executable, "-m", "tests.chain"]
        run = subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:

        def first_fused() -> list[Path]:
            assert run.poll() is None, (tmp_path / "chain.log").read_text()[-4000:]
            return list(tmp_path.rglob("fuse/*/part-*/*.success.json"))

        assert within(300, first_fused), (tmp_path / "chain.log").read_text()[-4000:]
        engine = engine_of(run)
        assert engine is not None, "the engine has no process of its own: the test shows nothing"
        worker = engine.parent()
        assert worker is not None
        os.kill(engine.pid if who == "engine" else worker.pid, signal.SIGKILL)
        for gone in (engine, worker):
            assert within(20, lambda gone=gone: not gone.is_running() or gone.status() == psutil.STATUS_ZOMBIE), (
                f"the {'engine' if gone is engine else 'worker'} stays, and holds its device's memory"
            )
        assert run.wait(400) == 0, (tmp_path / "chain.log").read_text()[-4000:]
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    markers = [path.name for path in tmp_path.rglob("mix/*/part-*/*.success.json")]
    assert len(markers) == 2
    assert not list(tmp_path.rglob("*.quarantine.json"))
