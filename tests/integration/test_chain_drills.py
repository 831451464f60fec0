"""raw_urls, shards and manifest on a disk and on S3, killed, at once, in any order: the bytes of an undisturbed run, none twice."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import FOREIGN, PROJECT
from tests.faulty_proxy import faulty_proxy
from tests.object_store import ObjectStore
from tests.picture_server import PictureServer, picture_server
from veclip_core import storage

PICTURES = 26
MISSING = 2
POINTS = ("before_move", "before_marker", "after_marker")
SECOND_SHARD = "part-00001/00000"
STAGES = ("list_urls/", "download/", "describe/", "check/", "fuse/", "select/", "mix/")


@dataclass(frozen=True)
class Place:
    """A root on a disk or on S3, with a cache and a folder for temporary files of its own, as one machine has them."""

    root: str
    local: Path
    environment: dict[str, str]

    def start(self, *assets: str, kill: str = "", **more: str) -> "subprocess.Popen[bytes]":
        temporary = self.local / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        environment = {
            **FOREIGN,
            **self.environment,
            "VECLIP_ROOT": self.root,
            "VECLIP_CACHE": str(self.local / "cache"),
            "TMPDIR": str(temporary),
            "PYTHONPATH": os.pathsep.join([str(PROJECT / "tests" / "killing"), str(PROJECT)]),
            "VECLIP_TEST_KILL": kill,
            **more,
        }
        with open(self.local / "chain.log", "ab") as log:
            command = [sys.executable, "-m", "tests.chain", *assets]
            return subprocess.Popen(
                command, cwd=PROJECT, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def run(self, *assets: str, kill: str = "", **more: str) -> int:
        process = self.start(*assets, kill=kill, **more)
        try:
            return process.wait(240)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise

    def said(self) -> str:
        return (self.local / "chain.log").read_text()[-3000:]

    def names(self) -> list[str]:
        """Everything that lies in the root of the source, but for leases, which count the runs."""
        return [name for name in storage.list_files(f"{self.root}/tiny") if "/leases/" not in name]

    def files(self) -> dict[str, str]:
        """Tables and tars, by their content."""
        names = [name for name in self.names() if name.endswith((".parquet", ".tar"))]
        return {name: hashlib.sha256(storage.read_bytes(f"{self.root}/tiny/{name}")).hexdigest() for name in names}

    def done(self) -> dict[str, str]:
        """When each shard that is done was."""
        fs, path = storage.filesystem(f"{self.root}/tiny")
        names = [name for name in self.names() if name.endswith(".success.json")]
        facts = {name: fs.info(f"{path}/{name}") for name in names}
        return {name: str(fact.get("LastModified") or fact.get("mtime")) for name, fact in facts.items()}

    def temporaries(self) -> list[Path]:
        """What is in the way of being written."""
        folders = [
            self.local / "tmp" / "veclip-scratch",
            self.local / "cache",
            Path(self.root) / ".scratch",
            Path(self.root),
        ]
        hidden = [
            path for folder in folders if folder.is_dir() for path in folder.rglob("*") if path.name.startswith(".")
        ]
        scratch = [
            path for folder in folders if "scratch" in folder.name and folder.is_dir() for path in folder.iterdir()
        ]
        return [path for path in {*hidden, *scratch} if path.name != ".scratch"]


@pytest.fixture(scope="module")
def server() -> Iterator[PictureServer]:
    with picture_server() as running:
        yield running


def rows_of(origin: str) -> list[dict[str, str]]:
    """Good pictures, missing ones, a row twice, a second AltText, no AltText, no URL."""
    rows = [
        {
            "url": f"http://{origin}/{n}.png",
            "alt_text": f"picture {n}",
            "released_caption": f"A noisy square, number {n}.",
        }
        for n in range(PICTURES)
    ]
    rows += [{"url": f"http://{origin}/missing-{n}.png", "alt_text": "nothing"} for n in range(MISSING)]
    rows += [rows[0], {**rows[1], "alt_text": "another text"}, {**rows[2], "alt_text": ""}]
    return [*rows, {"url": "notaurl", "alt_text": "no address"}]


@pytest.fixture(scope="module")
def environment(server: PictureServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    file = tmp_path_factory.mktemp("list") / "urls.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows_of(server.origin)))
    return {
        "VECLIP_URLS": str(file),
        "VECLIP_ALLOW_HOSTS": server.origin,
        "VECLIP_CAPTIONER": "released",
        "VECLIP_DOWNLOAD_WORKERS": "1",
    }


@pytest.fixture(scope="module")
def undisturbed(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(str(tmp_path_factory.mktemp("undisturbed")), tmp_path_factory.mktemp("machine"), environment)
    assert place.run() == 0, place.said()
    return place


@pytest.fixture(params=[pytest.param("disk", marks=pytest.mark.slow), "s3"])
def place(request: pytest.FixtureRequest, environment: dict[str, str], tmp_path: Path) -> Place:
    """An empty one. On a disk the short tests have kills too (test_chain_kills.py)."""
    if request.param == "disk":
        return Place(str(tmp_path / "root"), tmp_path, environment)
    store: ObjectStore = request.getfixturevalue("store")
    return Place(f"{store.root}/drills/{tmp_path.name}", tmp_path, {**environment, **store.environment})


def with_data_of(place: Place, made: Place, stages: tuple[str, ...] = STAGES) -> Place:
    """What some stages made elsewhere, put into an empty place."""
    for name in made.names():
        if name.startswith(stages):
            storage.write_bytes(f"{place.root}/tiny/{name}", storage.read_bytes(f"{made.root}/tiny/{name}"))
    return place


def kill_at(place: Place, assets: tuple[str, ...], kills: list[str]) -> None:
    """Kill the same command at each point, and run it to its end: what was done is not done again."""
    done: dict[str, str] = {}
    for kill in kills:
        assert place.run(*assets, kill=kill) == -signal.SIGKILL, f"{kill} did not kill: {place.said()}"
        assert place.done().items() >= done.items(), "what was done was done again"
        done = place.done()
    assert place.run(*assets) == 0, place.said()
    assert place.done().items() >= done.items(), "what was done was done again"


def manifest_of(place: Place) -> dict[str, Any]:
    (name,) = [name for name in place.names() if name.endswith("tiny.manifest.json")]
    return dict(storage.read_json(f"{place.root}/tiny/{name}"))


def assert_same(place: Place, undisturbed: Place, *stages: str) -> None:
    def of(names: list[str]) -> list[str]:
        return [name for name in names if name.startswith(stages)]

    made, expected = place.files(), undisturbed.files()
    assert {name: made[name] for name in of(list(made))} == {name: expected[name] for name in of(list(expected))}
    assert of(place.names()) == of(undisturbed.names())
    assert not place.temporaries()


LISTED_AND_FETCHED = ("list_urls/", "download/")


def test_killed_while_listing_and_fetching(place: Place, undisturbed: Place) -> None:
    kills = ["scan::sorting", f"list_urls:{SECOND_SHARD}:before_marker", f"download:{SECOND_SHARD}:before_move"]
    kill_at(place, ("raw_urls", "shards"), kills)
    assert_same(place, undisturbed, *LISTED_AND_FETCHED)


def test_killed_while_the_manifest_is_made(place: Place, undisturbed: Place) -> None:
    kill_at(with_data_of(place, undisturbed, STAGES[:-1]), ("manifest",), [f"mix:{SECOND_SHARD}:after_marker"])
    assert_same(place, undisturbed, "mix/")
    assert {**manifest_of(place), "tars_relative_to": ""} == {**manifest_of(undisturbed), "tars_relative_to": ""}


@pytest.mark.slow
def test_killed_at_every_other_point(place: Place, undisturbed: Place) -> None:
    kills = [f"scan::{point}" for point in ("reading", "sorted")]
    kills += [f"list_urls:{SECOND_SHARD}:{point}" for point in ("before_move", "after_marker")]
    kills += [f"download:{SECOND_SHARD}:{point}" for point in ("before_marker", "after_marker")]
    kill_at(place, ("raw_urls", "shards"), kills)
    assert_same(place, undisturbed, *LISTED_AND_FETCHED)
    kill_at(
        with_data_of(place, undisturbed, STAGES[:-1]),
        ("manifest",),
        [f"mix:{SECOND_SHARD}:{point}" for point in POINTS[:2]],
    )
    assert_same(place, undisturbed, *LISTED_AND_FETCHED, "mix/")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_changes(place: Place, undisturbed: Place, seed: int) -> None:
    draw, killed = random.Random(seed), 0
    for number in range(3):
        counted = str(place.local / f"changes-{number}")
        code = place.run("raw_urls", "shards", kill=f"change::{draw.randint(1, 28)}", VECLIP_TEST_CHANGES=counted)
        assert code in (0, -signal.SIGKILL), place.said()
        killed += code != 0
    assert killed, "no kill met the run: the test shows nothing"
    assert place.run("raw_urls", "shards") == 0, place.said()
    assert_same(place, undisturbed, *LISTED_AND_FETCHED)
    with_data_of(place, undisturbed, STAGES[:-1])
    counted = str(place.local / "changes-mix")
    place.run("manifest", kill=f"change::{draw.randint(1, 14)}", VECLIP_TEST_CHANGES=counted)
    assert place.run("manifest") == 0, place.said()
    assert_same(place, undisturbed, *LISTED_AND_FETCHED, "mix/")


@pytest.fixture(scope="module")
def removed(undisturbed: Place, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Where three pictures were taken out, undisturbed: two of the first part and one of the second."""
    listed = tmp_path_factory.mktemp("removed") / "list.txt"
    tables = sorted(name for name in undisturbed.files() if name.startswith("download/") and name.endswith(".parquet"))
    # The server has another port each time, so that any picture may be in any part, or in one past the scale's two.
    for name, count in zip(tables, (2, 1), strict=True):
        table = pq.read_table(f"{undisturbed.root}/tiny/{name}", filters=[("status", "=", "ok")])
        with open(listed, "a") as file:
            file.writelines(f"{url}\n" for url in table["url"].to_pylist()[:count])
    folder = tmp_path_factory.mktemp("removed-from")
    place = Place(str(folder / "root"), folder, {**environment, "VECLIP_REMOVED": str(listed)})
    with_data_of(place, undisturbed)
    assert place.run("removal") == 0, place.said()
    assert place.files() != undisturbed.files()
    return place


def kill_removals(place: Place, undisturbed: Place, removed: Place, kills: list[str]) -> None:
    listed = {"VECLIP_REMOVED": removed.environment["VECLIP_REMOVED"]}
    with_data_of(place, undisturbed)
    for number, kill in enumerate(kills):
        counted = str(place.local / f"changes-{number}")
        assert place.run("removal", kill=kill, VECLIP_TEST_CHANGES=counted, **listed) == -signal.SIGKILL, place.said()
    assert place.run("removal", **listed) == 0, place.said()
    assert place.files() == removed.files()
    assert place.names() == removed.names()
    assert not place.temporaries(), "a copy of what is to go"


def test_a_killed_removal_is_finished_by_the_next(place: Place, undisturbed: Place, removed: Place) -> None:
    """Killed when a tar is copied and not yet in the place of the one before, and after a table was written."""
    before, after = undisturbed.files(), removed.files()
    tar = next(name for name in after if name.endswith(".tar") and after[name] != before[name])
    shard = "/".join(tar.removesuffix(".tar").split("/")[-2:])
    kill_removals(place, undisturbed, removed, [f"download:{shard}:before_move", "change::7"])


@pytest.mark.slow
def test_a_removal_killed_at_each_change(place: Place, undisturbed: Place, removed: Place) -> None:
    kill_removals(place, undisturbed, removed, [f"change::{number}" for number in range(2, 13, 2)])


@pytest.mark.slow
def test_two_machines_at_once_fetch_each_picture_once(
    store: ObjectStore, environment: dict[str, str], undisturbed: Place, server: PictureServer, tmp_path: Path
) -> None:
    """Also where the reply of every put is lost once."""
    with faulty_proxy(store) as (proxy, seen):
        proxy.once_each("PUT", "lose_reply")
        machines = [
            Place(f"{store.root}/drills/two", tmp_path / name, {**environment, **seen.environment})
            for name in ("a", "b")
        ]
        server.asked.clear()
        running = [machine.start("raw_urls", "shards") for machine in machines]
        assert [process.wait(240) for process in running] == [0, 0], machines[0].said() + machines[1].said()
    fetched = [f"http://{server.origin}{path}" for path in server.asked if path != "/robots.txt"]
    tables = [name for name in undisturbed.files() if name.startswith("download/") and name.endswith(".parquet")]
    listed = [url for name in tables for url in pq.read_table(f"{undisturbed.root}/tiny/{name}")["url"].to_pylist()]
    assert sorted(fetched) == sorted(listed)
    for machine in machines:
        assert_same(machine, undisturbed, *LISTED_AND_FETCHED)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "steps"),
    [("2", ()), ("4", ("raw_urls", "shards:1-1", "shards:0-0", "shards", "vecap:1-1", "vecap", "manifest"))],
)
def test_any_number_of_workers_and_any_order_of_parts_give_one_manifest(
    environment: dict[str, str], undisturbed: Place, tmp_path: Path, workers: str, steps: tuple[str, ...]
) -> None:
    place = Place(str(tmp_path / "root"), tmp_path, {**environment, "VECLIP_DOWNLOAD_WORKERS": workers})
    assert place.run(*steps) == 0, place.said()
    assert_same(place, undisturbed, *STAGES)


@pytest.mark.slow
def test_a_list_in_another_order_gives_the_same_manifest(
    environment: dict[str, str], undisturbed: Place, server: PictureServer, tmp_path: Path
) -> None:
    rows = rows_of(server.origin)
    random.Random(0).shuffle(rows)
    (tmp_path / "shuffled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shuffled = {**environment, "VECLIP_URLS": str(tmp_path / "shuffled.jsonl")}
    place = Place(str(tmp_path / "root"), tmp_path, shuffled)
    assert place.run() == 0, place.said()
    assert manifest_of(place)["digest"] == manifest_of(undisturbed)["digest"]
