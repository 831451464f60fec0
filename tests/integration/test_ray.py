"""Stages on a real Ray cluster of two nodes: the same results as here, whatever dies in the middle."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.counting import GRID, SquaresConfig, run_both
from tests.integration.test_stage import data_files
from tests.ray_cluster import PROJECT, cluster_of
from veclip_core.execution.ray_cluster import NoCluster, RayExecutor

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where workers note the shard, their process and their node's process."""
    return tmp_path_factory.mktemp("ray") / "made.txt"


@pytest.fixture(scope="module")
def cluster(log: Path) -> Iterator[Any]:
    with cluster_of(2, VECLIP_TEST_MADE=str(log)) as two_nodes:
        yield two_nodes


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("undisturbed")
    run_both(str(root), SquaresConfig())
    return root


@pytest.fixture(autouse=True)
def a_fresh_log(log: Path) -> None:
    log.write_text("")


def made(log: Path) -> list[tuple[str, int, int]]:
    """Shard, worker's process, node's process."""
    return [(shard, int(pid), int(node)) for shard, pid, node in map(str.split, log.read_text().splitlines())]


def when(true: Callable[[], bool], then: Callable[[], None], within_s: float = 60) -> threading.Thread:
    def wait() -> None:
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            if true():
                then()
                return
            time.sleep(0.05)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_two_nodes_make_what_one_machine_makes(cluster: Any, log: Path, tmp_path: Path, undisturbed: Path):
    handler = signal.getsignal(signal.SIGTERM)
    _, report = run_both(str(tmp_path), SquaresConfig(seconds=0.3), executor=RayExecutor(cluster.address))
    assert signal.getsignal(signal.SIGTERM) == handler, "what ends this process is not Ray's business"
    assert (report.shards, report.shards_made_now) == (6, 6)
    assert [shard for shard, _, _ in sorted(made(log))] == list(map(str, GRID.keys())), "each shard once"
    assert len({node for _, _, node in made(log)}) == 2, "both nodes take part"
    # Shards that take their time have another configuration, and the same content.
    assert sorted(data_files(tmp_path).values()) == sorted(data_files(undisturbed).values())


def test_a_killed_actor_costs_its_shard_one_attempt(cluster: Any, log: Path, tmp_path: Path):
    killer = when(lambda: bool(made(log)), lambda: os.kill(made(log)[0][1], signal.SIGKILL))
    _, report = run_both(str(tmp_path), SquaresConfig(seconds=0.6), executor=RayExecutor(cluster.address, workers=2))
    killer.join()
    assert (report.shards, report.shards_quarantined) == (6, 0)
    assert len(made(log)) == 7, "one shard twice, because its worker was killed"


def test_a_poisoned_shard_is_set_aside_with_its_trace(cluster: Any, tmp_path: Path):
    poisoned = SquaresConfig(refuse_shard="part-00001/00000", breaks=True)
    output, report = run_both(str(tmp_path), poisoned, executor=RayExecutor(cluster.address, workers=2))
    assert (report.shards, report.shards_quarantined) == (5, 1)
    ((key, why),) = output.quarantined(GRID.keys()).items()
    assert str(key) == "part-00001/00000"
    assert "ValueError: poison" in why["error"]
    assert "Traceback" in why["trace"]


def test_a_killed_driver_leaves_what_is_done_and_no_worker(cluster: Any, log: Path, tmp_path: Path, undisturbed: Path):
    command = [sys.executable, "-m", "tests.counting", str(tmp_path), cluster.address]
    driver = subprocess.Popen(command, cwd=PROJECT, start_new_session=True)
    try:
        done = when(lambda: bool(list(tmp_path.rglob("squares/**/*.success.json"))), driver.kill)
        done.join()
        assert driver.wait(60) == -signal.SIGKILL
    finally:
        driver.kill()
    workers = {pid for _, pid, _ in made(log)}
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()], "actors end with their driver"
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.success.json")}
    assert [path for path in finished if "squares" in str(path)], "it died before anything was done"
    assert subprocess.run(command, cwd=PROJECT, timeout=120).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "finished shards were done again"
    assert sorted(data_files(tmp_path).values()) == sorted(data_files(undisturbed).values())


@pytest.mark.slow
def test_a_node_that_dies_takes_no_shard_along_and_one_that_joins_helps(log: Path, tmp_path: Path):
    with cluster_of(2, VECLIP_TEST_MADE=str(log)) as growing, ThreadPoolExecutor(1) as beside:
        executor = RayExecutor(growing.address, workers=4)
        run = beside.submit(run_both, str(tmp_path), SquaresConfig(seconds=10), executor=executor)
        end = time.monotonic() + 60
        while len({node for _, _, node in made(log)}) < 2:
            assert time.monotonic() < end, "the second machine does not take part: the test shows nothing"
            time.sleep(0.05)
        second = next(node for node in growing.list_all_nodes() if node is not growing.head_node)
        growing.remove_node(second, allow_graceful=False)
        growing.add_node(num_cpus=2)  # only in the main thread: a node handles signals
        _, report = run.result(120)
    assert (report.shards, report.shards_quarantined) == (6, 0)
    assert len({node for _, _, node in made(log)}) == 3, "the one that joined helps"


def test_no_cluster_is_one_clear_error(tmp_path: Path):
    code = (
        "import sys; from tests.counting import *; from veclip_core.execution.ray_cluster import *\n"
        "try: run_both(sys.argv[1], SquaresConfig(), executor=RayExecutor('127.0.0.1:1'))\n"
        "except NoCluster as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=PROJECT, capture_output=True, text=True)
    assert "Start one with `ray start --head`" in done.stdout, done.stderr[-2000:]


def test_an_actor_that_can_never_fit_is_one_clear_error(cluster: Any, tmp_path: Path):
    with pytest.raises(NoCluster, match="no machine of the Ray cluster has the 64 CPUs"):
        run_both(str(tmp_path), SquaresConfig(), executor=RayExecutor(cluster.address, cpus=64))
