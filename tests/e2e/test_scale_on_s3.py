"""A large scale with its data in a bucket, from a list of some hundred URLs: by the command line, and from Dagster's page."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import Deployment, deployment_at
from tests.e2e.browser import CHROMIUM, opened_page, serving
from tests.object_store import ObjectStore
from tests.picture_server import PictureServer, picture_server
from veclip_core import storage
from veclip_core.scales import SCALES
from veclip_core.shards import read_current

ASSETS = ("raw_urls_3m", "shards_3m", "vecap_3m", "manifest_3m")
SOURCE = SCALES["3m"].source.name
PICTURES = 300
MISSING = 5
RUN_WITHIN_S = 300

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[PictureServer]:
    with picture_server() as running:
        yield running


@pytest.fixture(scope="module")
def listed(server: PictureServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = [str(n) for n in range(PICTURES)] + [f"missing-{n}" for n in range(MISSING)]
    file = tmp_path_factory.mktemp("list") / "urls.parquet"
    columns = {
        "url": [f"http://{server.origin}/{name}.png" for name in names],
        "alt_text": [f"picture {name}" for name in names],
        "released_caption": [f"A noisy square, number {name}." for name in names],
    }
    pq.write_table(pa.table(columns), file)
    return file


def in_bucket(store: ObjectStore, prefix: str, server: PictureServer, listed: Path, folder: Path) -> Deployment:
    return deployment_at(
        folder,
        folder / "cache",
        **store.environment,
        VECLIP_ROOT=f"{store.root}/{prefix}",
        VECLIP_URLS=str(listed),
        VECLIP_ALLOW_HOSTS=server.origin,
        VECLIP_CAPTIONER="released",
    )


def rows_of_manifest(root: str) -> list[dict[str, Any]]:
    manifest = read_current(root, SOURCE, "mix", "3m")
    assert manifest is not None
    assert not manifest.partial
    shards = manifest.shard_set(root, SOURCE)
    return [row for key in manifest.shard_keys() for row in shards.read_table(key).to_pylist()]


def assert_whole(root: str) -> None:
    rows = rows_of_manifest(root)
    assert len({row["sample_id"] for row in rows}) == len(rows) == PICTURES
    assert all(row["vecap"].startswith("A noisy square, number ") for row in rows)
    tars: dict[str, bytes] = {row["tar"]: b"" for row in rows}
    tars = {tar: storage.read_bytes(storage.join(root, SOURCE, tar)) for tar in tars}
    assert all(tars[row["tar"]][row["offset"] :].startswith(b"\xff\xd8") for row in rows)


def test_the_command_line_makes_it_and_again_nothing(
    store: ObjectStore, server: PictureServer, listed: Path, tmp_path: Path
) -> None:
    own = in_bucket(store, "command", server, listed, tmp_path)
    root = own.environment["VECLIP_ROOT"]
    command = ("dagster", "asset", "materialize", "--select", ",".join(ASSETS), "-m", "veclip_dagster.definitions")
    done = own.run(*command, DAGSTER_MODULE_NAME="")
    assert done.returncode == 0, done.stdout[-4000:]
    assert_whole(root)
    fs, path = storage.filesystem(f"{root}/{SOURCE}")
    tables = [name for name in storage.list_files(f"{root}/{SOURCE}") if name.endswith((".parquet", ".tar"))]
    before = {name: fs.info(f"{path}/{name}")["LastModified"] for name in tables}
    server.asked.clear()
    done = own.run(*command, DAGSTER_MODULE_NAME="")
    assert done.returncode == 0, done.stdout[-4000:]
    assert {name: fs.info(f"{path}/{name}")["LastModified"] for name in tables} == before
    assert server.asked == []


@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium: apt-get install chromium")
def test_dagsters_page_makes_it_and_shows_it(
    store: ObjectStore, server: PictureServer, listed: Path, tmp_path: Path
) -> None:
    own = in_bucket(store, "page", server, listed, tmp_path)
    with serving(own) as ui, opened_page() as page:
        page.goto(f"{ui.dagster}/locations/veclip_dagster/asset-groups/scale_3m")
        page.get_by_text(ASSETS[-1], exact=True).first.click()
        page.get_by_text(ASSETS[0], exact=True).first.click(modifiers=["Shift"])  # and all between them
        page.get_by_role("button", name=re.compile(r"Materialize selected \(4\)")).click()
        until, runs = time.monotonic() + RUN_WITHIN_S, []
        while time.monotonic() < until:
            asked = ui.ask("{ runsOrError(limit: 5) { ... on Runs { results { runId status } } } }")
            runs = asked["runsOrError"]["results"]
            if runs and runs[0]["status"] in ("SUCCESS", "FAILURE", "CANCELED"):
                break
            page.wait_for_timeout(1000)
        assert [run["status"] for run in runs] == ["SUCCESS"], runs
        assert_whole(own.environment["VECLIP_ROOT"])
        for asset in ASSETS:
            page.goto(f"{ui.dagster}/assets/{asset}?view=overview")
            page.get_by_text(f"{own.environment['VECLIP_ROOT']}/{SOURCE}/").first.wait_for()
            page.screenshot(path=str(tmp_path / f"{asset}.png"))
