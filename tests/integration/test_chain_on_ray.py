"""The real chain on two Ray nodes: the result of one machine, and kills of a worker and of the driver in describing and fusing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import FOREIGN, PROJECT, Deployment
from tests.integration.test_chain_kills import SECOND_SHARD, data_files, few_urls, undisturbed  # noqa: F401  (fixtures)
from tests.ray_cluster import cluster_of

KILLING = str(PROJECT / "tests" / "killing")


def environment_of(own: Deployment, urls: dict[str, str], address: str) -> dict[str, str]:
    ray = {"VECLIP_EXECUTOR": "ray", "VECLIP_RAY_ADDRESS": address, "VECLIP_THREADS": "1"}
    return {**FOREIGN, **own.environment, **urls, **ray, "PYTHONPATH": str(PROJECT)}


def start(own: Deployment, urls: dict[str, str], address: str) -> "subprocess.Popen[bytes]":
    with open(own.root / "chain.log", "ab") as log:
        command = [sys.executable, "-m", "tests.chain"]
        environment = environment_of(own, urls, address)
        return subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=log, stderr=log, start_new_session=True)


def log_of(own: Deployment) -> str:
    return (own.root / "chain.log").read_text()[-4000:]


def a_worker_dies(stage: str, own: Deployment, urls: dict[str, str], memory: Path) -> None:
    """Run the chain; the actor that publishes the second shard of the stage is killed before its marker, once."""
    killing = {"VECLIP_TEST_KILL": f"{stage}:{SECOND_SHARD}:before_marker:worker", "VECLIP_TEST_KILLED": str(memory)}
    with cluster_of(2, PYTHONPATH=KILLING, **killing) as cluster:
        assert start(own, urls, cluster.address).wait(400) == 0, log_of(own)
    assert memory.exists(), "nobody was killed: the test shows nothing"


def the_driver_dies(stage: str, own: Deployment, urls: dict[str, str]) -> None:
    """Kill the driver when the stage's first shard is done; then the same command on the same cluster."""
    with cluster_of(2) as cluster:
        driver = start(own, urls, cluster.address)
        end = time.monotonic() + 300
        while not list(own.root.rglob(f"{stage}/*/part-*/*.success.json")) and time.monotonic() < end:
            assert driver.poll() is None, log_of(own)
            time.sleep(0.05)
        assert list(own.root.rglob(f"{stage}/*/part-*/*.success.json")), log_of(own)
        os.killpg(driver.pid, signal.SIGKILL)
        assert driver.wait(30) == -signal.SIGKILL
        before = {path: path.stat().st_mtime_ns for path in own.root.rglob("*.success.json")}
        assert start(own, urls, cluster.address).wait(400) == 0, log_of(own)
    after = {path: path.stat().st_mtime_ns for path in own.root.rglob("*.success.json")}
    assert after.items() >= before.items(), "finished shards were done again"


@pytest.mark.parametrize("stage", ["fuse", pytest.param("describe", marks=pytest.mark.slow)])
def test_a_worker_killed_on_ray(
    deployment: Deployment,
    few_urls: dict[str, str],  # noqa: F811
    undisturbed: Deployment,  # noqa: F811
    tmp_path: Path,
    stage: str,
) -> None:
    own = deployment.with_root(tmp_path / "root")
    a_worker_dies(stage, own, few_urls, tmp_path / "killed")
    assert data_files(own.root) == data_files(undisturbed.root)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["describe", "fuse"])
def test_the_driver_killed_on_ray(
    deployment: Deployment,
    few_urls: dict[str, str],  # noqa: F811
    undisturbed: Deployment,  # noqa: F811
    tmp_path: Path,
    stage: str,
) -> None:
    own = deployment.with_root(tmp_path / "root")
    the_driver_dies(stage, own, few_urls)
    assert data_files(own.root) == data_files(undisturbed.root)
