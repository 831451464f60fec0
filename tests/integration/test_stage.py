"""The resumable map: sums, resumption, quarantine, kills at each point, two runs at once."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from tests.counting import GRID, Numbers, NumbersConfig, Squares, SquaresConfig, run_both
from veclip_core import storage
from veclip_core.leases import Lease
from veclip_core.stage import RowCounts, ShardJob, ShardTask, StageFailed, output_of
from veclip_core.storage import StorageError

ROOT = Path(__file__).parents[2]
POINTS = ("before_move", "before_marker", "after_marker")


def data_files(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((root / "numbers").rglob("*.parquet"))
    }


def run_program(root: Path, **environment: str) -> subprocess.Popen[bytes]:
    paths = os.pathsep.join([str(ROOT / "tests" / "killing"), str(ROOT)])
    command = [sys.executable, "-m", "tests.counting", str(root)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths, **environment})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("undisturbed")
    run_both(str(root), SquaresConfig())
    return root


def test_rows_must_add_up() -> None:
    with pytest.raises(ValueError, match="don't add up"):
        RowCounts(3, 1, {"bad": 1})


def test_report_sums_and_a_second_run_makes_nothing(tmp_path: Path) -> None:
    output, first = run_both(str(tmp_path), SquaresConfig())
    assert (first.rows_in, first.rows_ok, first.errors) == (60, 48, {"multiple_of_5": 12})
    assert first.extra == {"tokens": 18.0}
    assert first.shards_made_now == len(GRID.keys()) == 6
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    _, second = run_both(str(tmp_path), SquaresConfig())
    assert second.shards_made_now == 0
    assert (second.digest, second.rows_ok, second.errors) == (first.digest, first.rows_ok, first.errors)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == times
    assert output.read_table(GRID.keys()[-1]).num_rows == 8


def test_a_larger_scale_contains_the_smaller_one(tmp_path: Path) -> None:
    _, small = run_both(str(tmp_path), SquaresConfig(), parts=1)
    assert (small.shards, small.partial) == (2, True)
    _, whole = run_both(str(tmp_path), SquaresConfig())
    assert (whole.shards, whole.shards_made_now, whole.partial) == (6, 4, False)


def test_another_configuration_leaves_the_first_one_alone(tmp_path: Path) -> None:
    first, _ = run_both(str(tmp_path), SquaresConfig())
    before = data_files(tmp_path)
    second, _ = run_both(str(tmp_path), SquaresConfig(power=3))
    assert first.identity != second.identity
    assert before.items() <= data_files(tmp_path).items()


def test_a_poisoned_shard_is_set_aside_and_tried_again_next_time(tmp_path: Path) -> None:
    output, report = run_both(str(tmp_path), SquaresConfig(refuse_shard="part-00001/00000"))
    assert (report.shards, report.shards_quarantined) == (5, 1)
    ((key, why),) = output.quarantined(GRID.keys()).items()
    assert str(key) == "part-00001/00000"
    assert "ValueError: poison" in why["error"]
    assert "Traceback" in why["trace"]


def test_a_shard_that_breaks_its_engine_takes_no_other_shard_along(tmp_path: Path) -> None:
    output, report = run_both(str(tmp_path), SquaresConfig(refuse_shard="part-00000/00001", breaks=True), workers=1)
    assert (report.shards, report.shards_quarantined) == (5, 1)
    assert [str(key) for key in output.quarantined(GRID.keys())] == ["part-00000/00001"]


def test_an_engine_that_does_not_load_stops_the_run_and_quarantines_nothing(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="no weights at /nowhere"):
        run_both(str(tmp_path), SquaresConfig(load_fails=True))
    assert not list(tmp_path.rglob("*.quarantine.json"))


def test_a_root_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "numbers").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="Set VECLIP_ROOT to a folder or bucket that can"):
        run_both(str(tmp_path), SquaresConfig())


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_one_clear_error_and_what_was_done_is_kept(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(tmp_path)], check=False).returncode:
        pytest.skip("may not mount here: a container without CAP_SYS_ADMIN")
    try:
        with pytest.raises((StageFailed, StorageError), match="the disk is full"):
            run_both(str(tmp_path), SquaresConfig(padding=40_000), workers=1)
        assert list(tmp_path.rglob("*.success.json"))
        assert not list(tmp_path.rglob("*.quarantine.json"))
        subprocess.run(["mount", "-o", "remount,size=10m", str(tmp_path)], check=True)
        _, report = run_both(str(tmp_path), SquaresConfig(padding=40_000), workers=1)
        assert report.shards == 6
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path, undisturbed: Path, point: str) -> None:
    process = run_program(tmp_path, VECLIP_TEST_KILL=f"squares:part-00001/00001:{point}")
    assert process.wait(60) == -9
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.success.json")}
    assert finished, "it died before anything was done: the test shows nothing"
    assert run_program(tmp_path).wait(60) == 0
    assert data_files(tmp_path) == data_files(undisturbed)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "finished shards were done again"
    storage.remove_dead_scratch(str(tmp_path))  # a worker may outlive its killed run by a moment
    storage.remove_dead_temporaries(str(tmp_path))
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list((tmp_path / ".scratch").iterdir())


def test_a_dead_worker_costs_one_attempt(tmp_path: Path, undisturbed: Path) -> None:
    memory = tmp_path / "killed"
    root = tmp_path / "root"
    process = run_program(
        root, VECLIP_TEST_KILL="squares:part-00001/00000:before_marker:worker", VECLIP_TEST_KILLED=str(memory)
    )
    assert process.wait(60) == 0
    assert memory.exists()
    assert data_files(root) == data_files(undisturbed)


def test_workers_that_die_while_loading_stop_the_run(tmp_path: Path) -> None:
    """Six shards, three attempts each: without the stop a model of minutes would be loaded eighteen times."""
    with pytest.raises(StageFailed, match="died 3 times while it loaded"):
        run_both(str(tmp_path), SquaresConfig(load_kills=True))
    assert not list(tmp_path.rglob("*.quarantine.json")), "no shard is to blame"


def test_a_late_worker_does_not_replace_what_another_run_finished(tmp_path: Path) -> None:
    """A run that was suspended wakes up in the middle of a shard that another has taken over, finished and built upon."""
    output, _ = run_both(str(tmp_path), SquaresConfig())
    key = GRID.keys()[0]
    numbers = output_of(Numbers(NumbersConfig()), str(tmp_path), "numbers", {})
    before, data = output.marker(key), data_files(tmp_path)
    made_by_numbers = numbers.marker(key)
    assert before is not None
    assert made_by_numbers is not None

    def late(task: ShardTask) -> RowCounts:
        task.write(pa.table({"number": [7], "power": [8]}))
        return RowCounts(1, 1)

    job = ShardJob(Squares(SquaresConfig()), {"numbers": numbers}, output)
    assert job.make(late, key, {"numbers": made_by_numbers["sha256"]}) == before
    assert output.marker(key) == before
    assert data_files(tmp_path) == data


def test_two_runs_at_once_share_the_work(tmp_path: Path, undisturbed: Path) -> None:
    log = tmp_path / "made.txt"
    processes = [run_program(tmp_path, VECLIP_TEST_MADE=str(log)) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    made = [line.split()[0] for line in log.read_text().splitlines()]
    assert sorted(made) == sorted(map(str, GRID.keys())), "each shard is made, and paid for, once"
    assert data_files(tmp_path) == data_files(undisturbed)
    assert not list(tmp_path.rglob("*.quarantine.json"))


def test_one_that_looked_long_ago_takes_no_lease_of_anothers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its look and its file two others held it, the second of whom tidied the first one's number away."""
    folder, create = str(tmp_path), storage.create_json
    later: list[Lease | None] = []

    def after_two_others(uri: str, value: object) -> bool:
        monkeypatch.setattr(storage, "create_json", create)
        for _ in range(2):
            later.append(Lease.acquire(folder, "table"))
            if len(later) == 1 and later[0] is not None:
                later[0].release()
        return create(uri, value)

    monkeypatch.setattr(storage, "create_json", after_two_others)
    assert Lease.acquire(folder, "table") is None
    assert later[1] is not None
    assert len(list(tmp_path.iterdir())) == 1, "of the one that holds it"
    later[1].release()
    assert Lease.acquire(folder, "table") is not None


def test_a_lease_is_one_owners_until_it_ends(tmp_path: Path) -> None:
    folder = str(tmp_path)
    first = Lease.acquire(folder, "part-00000")
    assert first is not None
    assert Lease.acquire(folder, "part-00000") is None
    assert Lease.acquire(folder, "part-00001") is not None
    first.release()
    assert Lease.acquire(folder, "part-00000") is not None


def test_the_lease_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    code = "import os, sys; from veclip_core.leases import Lease; Lease.acquire(sys.argv[1], 'part-00000'); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    started = time.monotonic()
    assert Lease.acquire(str(tmp_path), "part-00000") is not None
    assert time.monotonic() - started < 5


def test_unfinished_files_go_when_their_writer_is_dead(tmp_path: Path) -> None:
    code = (
        "import os, sys; from veclip_core import storage\n"
        "storage.os.replace = lambda source, target: os.kill(os.getpid(), 9)\n"
        "storage.write_json(sys.argv[1], {})"
    )
    target = tmp_path / "part-00000" / "00000.success.json"
    died = subprocess.run([sys.executable, "-c", code, str(target)], cwd=Path(__file__).parents[2], check=False)
    assert died.returncode == -9
    (left,) = tmp_path.rglob("*.tmp")
    mine = storage.beside(target)
    mine.write_text("{}")
    storage.remove_dead_temporaries(str(tmp_path))
    assert list(tmp_path.rglob("*.tmp")) == [mine], "what is being written stays"
    assert not left.exists()
