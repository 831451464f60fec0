"""raw_urls to manifest of a synthetic list in Dagster, and how long its pages take then.

    source env.sh && python benchmarks/ten_million.py --rows 10000000

`raw_urls_12m` and `manifest_12m` are made for real. Pictures are not fetched, and captions (released ones, from the list)
not checked: before `shards_12m` and `vecap_12m` run, shards are put where they find them done.
"""
# ruff: noqa: T201

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from veclip_core.captioning.released import RELEASED_ID
from veclip_core.config import Config
from veclip_core.download.download import DownloadOperation
from veclip_core.download.seal import add_member
from veclip_core.execution.local import LocalExecutor
from veclip_core.pipeline import engines
from veclip_core.pipeline.data import Chain, download_config
from veclip_core.samples import CHECK_SCHEMA, DOWNLOAD_SCHEMA, FUSE_SCHEMA, SELECT_SCHEMA
from veclip_core.scales import SCALES
from veclip_core.settings import Settings
from veclip_core.stage import Operation, RowCounts, ShardTask, Work, output_of

SCALE = "12m"
PORT = 3717
PAGES = ("raw_urls_12m", "shards_12m", "shards_12m_parts", "vecap_12m", "manifest_12m")
ROWS_AT_ONCE = 500_000


@dataclass(frozen=True)
class Put:
    """In the place of a stage: the rows it would make of this list, all at once. One row in 20 has no picture, the others have one
    and the same."""

    name: str
    config: Config

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield {"download": _put_download, "check": _put_check, "fuse": _put_fuse, "select": _put_select}[self.name]


def _listed(task: ShardTask) -> tuple[pa.Table, np.ndarray]:
    """The list's good rows, each with a URL of its own, and which of them have a picture."""
    listed = task.read("list_urls", ["url_id", "sample_id", "url", "alt_text", "released_caption", "status"])
    listed = listed.filter(pc.equal(listed["status"], "ok"))
    return listed, np.arange(listed.num_rows) % 20 > 0


def _written(task: ShardTask, schema: pa.Schema, columns: dict[str, Any], extra: dict[str, float]) -> RowCounts:
    """All rows ok; a column that is not given is null, one value is everywhere."""
    rows = len(columns["url_id"])
    arrays = [
        value if isinstance(value, pa.ChunkedArray) else pa.repeat(pa.scalar(value, field.type), rows)
        for field in schema
        for value in [columns.get(field.name)]
    ]
    task.write(pa.table(arrays, schema=schema))
    return RowCounts(rows, rows, extra=extra)


def _put_download(task: ShardTask) -> RowCounts:
    from PIL import Image

    listed, good = _listed(task)
    jpg = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(jpg, "JPEG")
    with tarfile.open(task.out("tar"), "w", format=tarfile.USTAR_FORMAT) as tar:
        offset = add_member(tar, "0.jpg", jpg.getvalue())
    size = len(jpg.getvalue())
    facts = {"width": 64, "height": 64, "bytes": size, "offset": offset, "original_width": 64, "original_height": 64}
    columns: dict[str, Any] = {"url_id": listed["url_id"], "url": listed["url"]}
    columns["status"] = pa.chunked_array([pc.if_else(good, "ok", "error")])
    columns["error"] = pa.chunked_array([pc.if_else(good, pa.scalar(None, pa.string()), "http_404")])
    for name, value in facts.items():
        of = DOWNLOAD_SCHEMA.field(name).type
        columns[name] = pa.chunked_array([pc.if_else(good, pa.scalar(value, of), pa.scalar(None, of))])
    counts = _written(task, DOWNLOAD_SCHEMA, columns, {})
    return RowCounts(counts.rows_in, int(good.sum()), {"http_404": int((~good).sum())})


def _put_check(task: ShardTask) -> RowCounts:
    listed, good = _listed(task)
    kept = listed.filter(good)
    return _written(task, CHECK_SCHEMA, {"url_id": kept["url_id"], "sample_id": kept["sample_id"]}, {})


def _put_fuse(task: ShardTask) -> RowCounts:
    listed, good = _listed(task)
    kept = listed.filter(good)
    columns = {"url_id": kept["url_id"], "sample_id": kept["sample_id"], "text": kept["released_caption"], "candidate": 0,
               "finish_reason": "stop", "model": "released", "prompt_id": RELEASED_ID}  # fmt: skip
    return _written(task, FUSE_SCHEMA, columns, {})


def _put_select(task: ShardTask) -> RowCounts:
    listed, good = _listed(task)
    kept = listed.filter(good)
    columns = {"url_id": kept["url_id"], "sample_id": kept["sample_id"], "alt_text": kept["alt_text"], "vec": "",
               "vecap": kept["released_caption"], "status": "fused", "model": "released", "prompt_id": RELEASED_ID,
               "scores": "{}"}  # fmt: skip
    return _written(task, SELECT_SCHEMA, columns, {"status_fused": float(kept.num_rows)})


def write_list(path: Path, rows: int) -> None:
    schema = pa.schema([("url", pa.string()), ("alt", pa.string()), ("released_caption", pa.string())])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, rows, ROWS_AT_ONCE):
            numbers = range(start, min(rows, start + ROWS_AT_ONCE))
            table = {
                "url": [f"https://host-{n % 997}.example.com/pictures/{n}.jpg" for n in numbers],
                "alt": [f"Picture {n} of a house by the sea" for n in numbers],
                "released_caption": [f"A white house, number {n}, stands by the blue sea in summer." for n in numbers],
            }
            writer.write_table(pa.table(table, schema=schema))


def dagster(*words: str) -> float:
    """Seconds of a command of Dagster's."""
    started = time.monotonic()
    program = str(Path(sys.executable).with_name("dagster"))
    done = subprocess.run([program, *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stdout[-3_000:]}\n{done.stderr[-3_000:]}")
    return time.monotonic() - started


def materialise(asset: str) -> float:
    seconds = dagster("asset", "materialize", "-m", "veclip_dagster.definitions", "--select", f"{asset}_{SCALE}")
    print(f"  {asset}_{SCALE}: {seconds:.0f} s", flush=True)
    return seconds


def put_stages(chain: Chain) -> None:
    """`download` to `select`, each under the identity that the real stage looks for."""
    urls = chain.current("list_urls", "raw_urls")
    made = {"list_urls": urls.shard_set(chain.root, chain.source)}
    make = (engines.describe_operation, engines.check_operation, engines.fuse_operation, engines.select_operation)
    real: list[Operation] = [
        DownloadOperation(download_config(chain.scale)),
        *(operation(chain.scale, chain.settings) for operation in make),
    ]
    for operation in real:
        first = operation.name == "download"
        takes = dict(made) if first else {name: made[name] for name in engines.inputs_of(operation)}
        put = operation if operation.name == "describe" else Put(operation.name, operation.config)
        chain.run(put, urls.grid, urls.parts, takes, LocalExecutor(chain.settings.download_workers), False)
        made[operation.name] = output_of(operation, chain.root, chain.source, takes)


def pages() -> dict[str, float]:
    """Seconds until each asset's page shows its latest materialisation, in a browser."""
    from playwright.sync_api import sync_playwright

    server = subprocess.Popen(
        [str(Path(sys.executable).with_name("dagster-webserver")), "-m", "veclip_dagster.definitions", "-p", str(PORT)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/server_info", timeout=2).close()
                break
            except OSError:
                time.sleep(0.5)
        found = {}
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            page.goto(f"http://127.0.0.1:{PORT}/assets")  # the application itself is loaded once
            page.wait_for_timeout(5_000)
            for asset in PAGES:
                started = time.monotonic()
                view = "partitions" if asset.endswith("_parts") else "overview"
                page.goto(f"http://127.0.0.1:{PORT}/assets/{asset}?view={view}")
                shown = "part-00000" if view == "partitions" else "rows_ok"
                page.get_by_text(shown).first.wait_for(timeout=60_000)
                found[asset] = round(time.monotonic() - started, 1)
                print(f"  page of {asset}: {found[asset]} s", flush=True)
            browser.close()
        return found
    finally:
        server.terminate()
        server.wait(20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--json", type=Path, help="where to write the result")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="veclip-ten-million-") as folder:
        listed = Path(folder) / "list.parquet"
        write_list(listed, chosen.rows)
        (Path(folder) / "dagster").mkdir()
        os.environ |= {"VECLIP_ROOT": f"{folder}/root", "VECLIP_URLS": str(listed), "VECLIP_CAPTIONER": "released",
                       "VECLIP_MLFLOW": "off", "DAGSTER_HOME": f"{folder}/dagster"}  # fmt: skip
        seconds = {"raw_urls": materialise("raw_urls")}
        settings = Settings.from_environment()
        chain = Chain(settings, SCALES[SCALE])
        put_stages(chain)
        seconds |= {asset: materialise(asset) for asset in ("shards", "vecap", "manifest")}
        result: dict[str, Any] = {"rows": chosen.rows, "seconds": seconds, "pages_s": pages()}
        result["slowest_page_s"] = max(result["pages_s"].values())
    print(json.dumps(result))
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
