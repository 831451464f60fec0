"""The commands as people type them."""

import json
from collections.abc import Iterator

import pyarrow.parquet as pq
import pytest

from tests.conftest import Deployment
from veclip_core.scales import SCALES
from veclip_core.shards import read_current
from veclip_core.sources.sample_server import SampleServer
from veclip_core.sources.sample_world import build_world

LARGE = SCALES["300m"]
# transformers loads in a third of vLLM's time; `veclip caption` below goes the usual way.
STAND_INS = {"VECLIP_DESCRIBER": "concepts", "VECLIP_FUSER": "smollm2", "VECLIP_ENGINE": "transformers"}


@pytest.fixture(scope="module")
def list_of_one_part(deployment: Deployment) -> Iterator[dict[str, str]]:
    """What makes the largest scale run here: a small list, served locally, and the stand-ins."""
    world = build_world(deployment.cache / "packages", deployment.cache / "world")
    with SampleServer(deployment.cache / "world"):
        yield {**STAND_INS, "VECLIP_URLS": str(world.urls), "VECLIP_ALLOW_HOSTS": f"127.0.0.1:{world.port}"}


def test_without_its_upstream_an_asset_names_what_to_run_first(deployment: Deployment) -> None:
    done = deployment.run("dagster", "asset", "materialize", "--select", "vecap_300m")
    assert done.returncode == 1
    assert "shards_300m is not made yet" in done.stdout
    assert "dagster asset materialize --select shards_300m" in done.stdout


def test_a_large_scale_without_a_list_says_how_to_give_one(deployment: Deployment) -> None:
    done = deployment.run("dagster", "asset", "materialize", "--select", "raw_urls_300m")
    assert done.returncode == 1
    assert "raw_urls_300m needs a URL list: set VECLIP_URLS" in done.stdout


def test_the_largest_scale_runs_on_a_list_of_one_part(deployment: Deployment, list_of_one_part: dict[str, str]) -> None:
    rows = json.dumps({"ops": {"raw_urls_300m": {"config": {"rows": 40}}}})
    for asset, *config in (
        ("raw_urls_300m", "--config-json", rows),
        ("shards_300m",),
        ("vecap_300m",),
        ("manifest_300m",),
    ):
        done = deployment.run("dagster", "asset", "materialize", "--select", asset, *config, **list_of_one_part)
        assert done.returncode == 0, done.stdout[-4000:]
    manifest = read_current(str(deployment.root), LARGE.source.name, "mix", "300m")
    assert manifest is not None
    assert manifest.partial, "a limited list makes everything downstream partial"
    shards = manifest.shard_set(str(deployment.root), LARGE.source.name)
    ids = [one for key in manifest.shard_keys() for one in shards.read_table(key)["sample_id"].to_pylist()]
    captions = manifest.input(str(deployment.root), LARGE.source.name, "select")
    ok = [
        row["sample_id"]
        for key in manifest.shard_keys()
        for row in captions.read_table(key, ["sample_id", "status"]).to_pylist()
        if row["status"] != "error"
    ]
    assert ids
    assert len(set(ids)) == len(ids)
    assert sorted(ids) == sorted(ok), "the manifest holds exactly the ok ones"


def test_a_second_run_makes_nothing(deployment: Deployment, list_of_one_part: dict[str, str]) -> None:
    files = sorted((deployment.root / LARGE.source.name).rglob("*.parquet"))
    times = {file: file.stat().st_mtime_ns for file in files}
    assert times
    done = deployment.run("dagster", "asset", "materialize", "--select", "vecap_300m", **list_of_one_part)
    assert done.returncode == 0, done.stdout[-4000:]
    assert {
        file: file.stat().st_mtime_ns for file in sorted((deployment.root / LARGE.source.name).rglob("*.parquet"))
    } == times


def test_dg_launch_works_in_its_own_shell(deployment: Deployment, list_of_one_part: dict[str, str]) -> None:
    done = deployment.run(
        "dg", "launch", "--assets", "manifest_300m", **{**list_of_one_part, "DAGSTER_MODULE_NAME": ""}
    )
    assert done.returncode == 0, done.stdout[-4000:]


def test_veclip_status_and_captions(deployment: Deployment, list_of_one_part: dict[str, str]) -> None:
    status = deployment.run("veclip", "status", "--scale", "300m")
    assert status.returncode == 0, status.stdout
    rows = {line.split()[0]: line.split()[1:] for line in status.stdout.splitlines()[1:]}
    assert rows["select"][:3] == ["1", "0", "0"], status.stdout
    shown = deployment.run("veclip", "captions", "show", "--scale", "300m", "--count", "2")
    assert shown.returncode == 0
    assert shown.stdout.count("VeCap    ") == 2


def test_veclip_says_in_one_line_what_is_missing(deployment: Deployment) -> None:
    done = deployment.run("veclip", "run", "vecap", "--scale", "12m")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    assert "veclip: shards_12m is not made yet" in done.stdout


def test_veclip_caption_a_folder_of_ones_own(deployment: Deployment, list_of_one_part: dict[str, str]) -> None:
    world = json.loads((deployment.cache / "world" / "world.json").read_text())
    pictures = (deployment.cache / "world" / world["png_root"]).resolve()
    folder = deployment.root / "my pictures"
    folder.mkdir()
    some = sorted(pictures.rglob("animals/bugs/*.png"))[:3]
    for number, picture in enumerate(some):
        (folder / f"{number}.png").write_bytes(picture.read_bytes())
    (folder / "0.txt").write_text("my favourite beetle <script>alert(1)</script>")
    (folder / "broken.jpg").write_bytes(b"no picture")
    done = deployment.run("veclip", "caption", str(folder), VECLIP_ENGINE="auto")
    assert done.returncode == 0, done.stdout[-3000:]
    rows = {row["file"]: row for row in pq.read_table(folder / "captions" / "captions.parquet").to_pylist()}
    assert len(rows) == 4
    assert rows["broken.jpg"]["error"] == "undecodable"
    assert all(rows[f"{number}.png"]["vec"].startswith("a drawing of") for number in range(3))
    page = (folder / "captions" / "captions.html").read_text()
    assert "<script>" not in page
    assert "stand-in" in page
