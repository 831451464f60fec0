"""An S3 that loses replies, cuts bodies, refuses, falls silent or dies, and two writers: what is done is whole, and made once."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import FOREIGN, PROJECT
from tests.counting import GRID, SquaresConfig, run_both
from tests.faulty_proxy import Fault, FaultyProxy, faulty_proxy
from tests.object_store import ObjectStore
from veclip_core import storage
from veclip_core.leases import TTL_S

IMPATIENT = {"FSSPEC_S3": json.dumps({"config_kwargs": {"read_timeout": 1}}), "AWS_MAX_ATTEMPTS": "1"}
"""As it is, s3fs waits a quarter of a minute for an answer, and asks 25 times."""


def started(store: ObjectStore, root: str, **more: str) -> "subprocess.Popen[str]":
    environment = {**FOREIGN, **store.environment, "PYTHONPATH": str(PROJECT), **more}
    command = [sys.executable, "-m", "tests.counting", root]
    return subprocess.Popen(command, cwd=PROJECT, env=environment, stderr=subprocess.PIPE, text=True)


def run(store: ObjectStore, root: str, **more: str) -> tuple[int, str]:
    """The exit status, and what was said. In less time than a lease takes to run out: nobody waits for himself."""
    process = started(store, root, **more)
    try:
        _, said = process.communicate(timeout=TTL_S - 10)
    finally:
        process.kill()
    return process.returncode, said


def data_files(root: str) -> dict[str, bytes]:
    names = [name for name in storage.list_files(root) if name.endswith(".parquet")]
    return {name: storage.read_bytes(storage.join(root, name)) for name in names}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """On a disk: the same bytes."""
    root = str(tmp_path_factory.mktemp("undisturbed"))
    run_both(root, SquaresConfig())
    return data_files(root)


def assert_whole(root: str) -> None:
    """Whatever has a marker is there, and is what the marker says."""
    for name in storage.list_files(root):
        if name.endswith(".success.json"):
            marker = storage.read_json(storage.join(root, name))
            for suffix, told in marker["files"].items():
                data = storage.read_bytes(storage.join(root, name.replace("success.json", suffix)))
                assert (len(data), hashlib.sha256(data).hexdigest()) == (told["bytes"], told["sha256"])


def assert_done(root: str, undisturbed: dict[str, bytes]) -> None:
    assert data_files(root) == undisturbed
    assert_whole(root)
    assert not [name for name in storage.list_files(root) if name.endswith(".quarantine.json")]


def test_a_lost_reply_is_no_other_writer(store: ObjectStore, undisturbed: dict[str, bytes]) -> None:
    """Each put goes through, and is tried again because nothing was heard of it: also those that may only create."""
    root = f"{store.root}/faults/lost"
    with faulty_proxy(store) as (proxy, seen):
        proxy.once_each("PUT", "lose_reply")
        assert run(seen, root)[0] == 0
    leases = [path for path in proxy.faults if ".lease-" in path]
    assert len(leases) == 2 * GRID.parts
    assert len(proxy.faults) > len(leases) + 2 * 2 * len(GRID.keys())
    assert_done(root, undisturbed)


@pytest.mark.slow
def test_a_put_that_was_cut_off_is_none(store: ObjectStore, undisturbed: dict[str, bytes]) -> None:
    root = f"{store.root}/faults/cut"
    with faulty_proxy(store) as (proxy, seen):
        proxy.once_each("PUT", "cut_body")
        assert run(seen, root)[0] == 0
    assert len(proxy.faults) > 2 * 2 * len(GRID.keys())
    assert_done(root, undisturbed)


def test_two_runs_at_once_share_the_work(store: ObjectStore, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    root, log = f"{store.root}/faults/two", tmp_path / "made.txt"
    processes = [started(store, root, VECLIP_TEST_MADE=str(log)) for _ in range(2)]
    assert [(process.communicate(timeout=120), process.returncode)[1] for process in processes] == [0, 0]
    made = [line.split()[0] for line in log.read_text().splitlines()]
    assert sorted(made) == sorted(map(str, GRID.keys())), "each shard is made, and paid for, once"
    assert_done(root, undisturbed)


def test_wrong_keys_are_one_sentence(store: ObjectStore, tmp_path: Path) -> None:
    root = f"{store.root}/faults/refused"
    done = subprocess.run(
        [str(Path(sys.executable).with_name("veclip")), "run", "shards", "--scale", "3m"],
        cwd=PROJECT,
        env={
            **FOREIGN,
            **store.environment,
            "AWS_SECRET_ACCESS_KEY": "wrong",
            "VECLIP_ROOT": root,
            "VECLIP_CACHE": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"veclip: {root}/")
    assert "the object store refuses" in last
    assert "Check AWS_ACCESS_KEY_ID" in last
    assert "Traceback" not in done.stderr
    assert storage.list_files(root) == []


def dies_after(proxy: FaultyProxy, puts: int, fault: Fault) -> None:
    """So many PUTs more of tables go well, and nothing after them."""
    seen: list[str] = []

    def choose(method: str, path: str) -> Fault:
        if method == "PUT" and path.endswith(".parquet"):
            seen.append(path)
        return fault if len(seen) > puts else ""

    proxy.choose = choose


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["close", "hang", "slow_down"])
def test_a_store_that_dies_in_the_middle(store: ObjectStore, undisturbed: dict[str, bytes], fault: Fault) -> None:
    root = f"{store.root}/faults/dies-{fault}"
    with faulty_proxy(store) as (proxy, seen):
        dies_after(proxy, 9, fault)
        code, said = run(seen, root, **IMPATIENT)
        assert code == 1
        assert "StageFailed: squares: s3://" in said
        assert "the object store does not answer" in said
        assert "it resumes" in said
        assert_whole(root)
        assert 6 < len(data_files(root)) < len(undisturbed)
        proxy.choose = lambda method, path: ""
        assert run(seen, root)[0] == 0
    assert_done(root, undisturbed)
