"""The spine on S3: the same contracts as on a disk, against a real server."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.object_store import BUCKET, ObjectStore
from veclip_core import storage
from veclip_core.leases import Lease

ROOT = Path(__file__).parents[2]


def data_files(root: str) -> dict[str, bytes]:
    names = [name for name in storage.list_files(root) if name.endswith(".parquet")]
    return {name: storage.read_bytes(storage.join(root, name)) for name in names}


def run_program(store: ObjectStore, root: str, kill: str = "") -> int:
    paths = os.pathsep.join([str(ROOT / "tests" / "killing"), str(ROOT)])
    environment = {**os.environ, **store.environment, "PYTHONPATH": paths, "VECLIP_TEST_KILL": kill}
    return subprocess.run(
        [sys.executable, "-m", "tests.counting", root], cwd=ROOT, env=environment, timeout=120
    ).returncode


def test_create_is_first_come_first_served(store: ObjectStore) -> None:
    uri = f"{store.root}/create/one.json"
    assert storage.create_json(uri, {"who": 1})
    assert not storage.create_json(uri, {"who": 2})
    assert storage.read_json(uri) == {"who": 1}


def test_a_lease_is_one_owners(store: ObjectStore) -> None:
    first = Lease.acquire(f"{store.root}/leases", "part-00000")
    assert first is not None
    assert Lease.acquire(f"{store.root}/leases", "part-00000") is None
    first.release()
    second = Lease.acquire(f"{store.root}/leases", "part-00000")
    assert second is not None
    second.release()


@pytest.fixture(scope="module")
def undisturbed(store: ObjectStore) -> str:
    root = f"{store.root}/undisturbed"
    assert run_program(store, root) == 0
    return root


@pytest.mark.parametrize(
    "point",
    ["before_marker", *(pytest.param(point, marks=pytest.mark.slow) for point in ("before_move", "after_marker"))],
)
def test_a_killed_run_goes_on_where_it_stopped(store: ObjectStore, undisturbed: str, point: str) -> None:
    disturbed = f"{store.root}/disturbed-{point}"
    assert run_program(store, disturbed, kill=f"squares:part-00001/00001:{point}") == -9
    half = {name for name in storage.list_files(disturbed) if name.endswith(".success.json")}
    assert half
    fs, path = storage.filesystem(disturbed)
    before = {name: fs.info(f"{path}/{name}")["LastModified"] for name in half}
    assert run_program(store, disturbed) == 0
    assert data_files(disturbed) == data_files(undisturbed)
    assert {name: fs.info(f"{path}/{name}")["LastModified"] for name in half} == before, (
        "finished shards were done again"
    )


def test_the_bucket_changes_only_where_logs_go() -> None:
    """Dagster's settings stand in two files, which must not drift apart."""
    local, bucket = (yaml.safe_load((ROOT / name).read_text()) for name in ("dagster.yaml", "docker/dagster-s3.yaml"))
    del bucket["compute_logs"]
    assert bucket == local


def test_what_runs_print_is_kept_in_the_bucket(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dagster as dg

    shutil.copy(ROOT / "docker" / "dagster-s3.yaml", tmp_path / "dagster.yaml")
    monkeypatch.setenv("VECLIP_LOG_BUCKET", BUCKET)

    @dg.asset
    def speaks(context: dg.AssetExecutionContext) -> None:
        context.log.info("hello from an asset")

    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert dg.materialize([speaks], instance=instance).success
    logs = f"{store.root}/dagster-logs"
    kept = b"".join(storage.read_bytes(storage.join(logs, name)) for name in storage.list_files(logs))
    assert b"hello from an asset" in kept
