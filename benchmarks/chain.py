"""Times the sample chain asset by asset, in a fresh root, with the largest process's memory.

    source env.sh && python benchmarks/chain.py [--engine transformers] [--rows 200] [--object-store]

The cache (packages, converted weights, fitted stand-in) is the root's own and is left as it is: what is timed is the chain.
`--object-store`: on a local disk and then with the root on S3 (SeaweedFS on loopback), and the ratio of the two.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from veclip_core.settings import Settings

sys.path.append(str(Path(__file__).parents[1]))  # the object store of the tests

from tests.object_store import object_store

ASSETS = ("raw_urls", "shards", "vecap", "manifest", "clip", "veclip", "eval_report")
SAMPLE_EVERY_S = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["auto", "vllm", "transformers"], default="auto")
    parser.add_argument("--rows", type=int, help="only the first so many URLs")
    parser.add_argument("--object-store", action="store_true", help="with the root on S3 as well")
    parser.add_argument("--out", type=Path, default=Path("chain.json"), help="where the numbers go")
    chosen = parser.parse_args()
    cache = Settings.from_environment().cache_folder
    common = {**os.environ, "VECLIP_CACHE": str(cache), "VECLIP_ENGINE": chosen.engine}
    if chosen.object_store:
        common["VECLIP_MLFLOW"] = "off"  # its store would be the cache's in one case, and the root's in the other
    facts: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(),
        "engine": chosen.engine,
        "rows": chosen.rows,
    }
    with tempfile.TemporaryDirectory(prefix="veclip-bench-") as root:
        facts |= chain({**common, "VECLIP_ROOT": root}, chosen.rows)
    if chosen.object_store:
        with tempfile.TemporaryDirectory(prefix="veclip-bench-") as folder, object_store(Path(folder)) as store:
            on_s3 = chain({**common, **store.environment, "VECLIP_ROOT": store.root}, chosen.rows)
        facts["object_store"] = on_s3
        facts["object_store_against_disk"] = round(on_s3["total_s"] / facts["total_s"], 3)
        sys.stderr.write(f"times on the object store, of those on the disk: {facts['object_store_against_disk']}\n")
    chosen.out.write_text(json.dumps(facts, indent=2))


def chain(environment: dict[str, str], rows: int | None) -> dict[str, Any]:
    measured = {}
    for asset in ASSETS:
        limit = ["--rows", str(rows)] if asset == "raw_urls" and rows else []
        measured[asset] = timed([str(Path(sys.executable).with_name("veclip")), "run", asset, *limit], environment)
        sys.stderr.write(f"{asset:<12}{measured[asset]['seconds']:>8.1f} s{measured[asset]['peak_mb']:>8.0f} MB\n")
    total = sum(one["seconds"] for one in measured.values())
    sys.stderr.write(f"{'chain':<12}{total:>8.1f} s\n")
    return {"total_s": round(total, 1), "assets": measured}


def timed(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Wall time of a command and the largest resident set that one process of its tree had."""
    peak = 0
    started = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        tree = psutil.Process(process.pid)
        while not ended.wait(SAMPLE_EVERY_S):
            try:
                for one in (tree, *tree.children(recursive=True)):
                    peak = max(peak, one.memory_info().rss)
            except psutil.NoSuchProcess:
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    ended.set()
    watcher.join()
    if code:
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    return {"seconds": round(time.monotonic() - started, 1), "peak_mb": round(peak / 1e6)}


if __name__ == "__main__":
    main()
