"""Times the sample chain asset by asset, in a fresh root, with the largest process's memory.

    source env.sh && python benchmarks/chain.py [--engine transformers] [--rows 200]

The cache (packages, converted weights, fitted stand-in) is the root's own and is left as it is: what is timed is the chain.
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

import psutil

from veclip_core.settings import Settings

ASSETS = ("raw_urls", "shards", "vecap", "manifest", "clip", "veclip", "eval_report")
SAMPLE_EVERY_S = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["auto", "vllm", "transformers"], default="auto")
    parser.add_argument("--rows", type=int, help="only the first so many URLs")
    parser.add_argument("--out", type=Path, default=Path("chain.json"), help="where the numbers go")
    chosen = parser.parse_args()
    cache = Settings.from_environment().cache_folder
    with tempfile.TemporaryDirectory(prefix="veclip-bench-") as root:
        environment = {**os.environ, "VECLIP_ROOT": root, "VECLIP_CACHE": str(cache), "VECLIP_ENGINE": chosen.engine}
        measured = {}
        for asset in ASSETS:
            limit = ["--rows", str(chosen.rows)] if asset == "raw_urls" and chosen.rows else []
            measured[asset] = timed([str(Path(sys.executable).with_name("veclip")), "run", asset, *limit], environment)
            sys.stderr.write(f"{asset:<12}{measured[asset]['seconds']:>8.1f} s{measured[asset]['peak_mb']:>8.0f} MB\n")
    total = sum(one["seconds"] for one in measured.values())
    sys.stderr.write(f"{'chain':<12}{total:>8.1f} s\n")
    facts = {
        "machine": platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(),
        "engine": chosen.engine,
    }
    chosen.out.write_text(
        json.dumps({**facts, "rows": chosen.rows, "total_s": round(total, 1), "assets": measured}, indent=2)
    )


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
