"""What a manifest costs: the stage `mix` over shards of 10,000 samples, against copying the same parquet with pyarrow.

    python benchmarks/manifest.py

Every arm is a fresh process; arms take turns. A few shards are generated and read again and again, each time as another shard.
"""
# ruff: noqa: T201

import argparse
import hashlib
import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from arms import add_arguments, measured, run_arm

ROWS = 10_000
"""Of a shard, as at the large scales."""
SHARDS = 10
"""Generated."""


def write_shards(folder: Path) -> None:
    """`download` and `select` of `SHARDS` shards, with texts as long as real ones; one picture in 20 is missing."""
    from veclip_core.samples import DOWNLOAD_SCHEMA, SELECT_SCHEMA, ShardKey

    for shard in range(SHARDS):
        key, downloaded, selected = ShardKey(0, shard), [], []
        for n in range(shard * ROWS, shard * ROWS + ROWS):
            ids = {
                "url_id": hashlib.sha256(f"u{n}".encode()).hexdigest()[:32],
                "sample_id": hashlib.sha256(f"s{n}".encode()).hexdigest()[:32],
            }
            good = n % 20 > 0
            url = f"https://images-{n % 997}.example.com/pictures/of/things/{n}.jpg"
            downloaded.append(
                {
                    "url_id": ids["url_id"],
                    "url": url,
                    "status": "ok" if good else "error",
                    "offset": n * 20_480,
                    "bytes": 20_000,
                }
            )
            alt, vec = (
                f"Picture {n} of a house by the sea, photographed in summer",
                f"a white house number {n} stands near blue water under a clear sky",
            )
            selected.append(
                {**ids, "alt_text": alt, "vec": vec, "vecap": f"{alt}: {vec}", "status": "fused", "scores": "{}"}
            )
        for stage, schema, rows in (("download", DOWNLOAD_SCHEMA, downloaded), ("select", SELECT_SCHEMA, selected)):
            path = folder / "bench" / stage / ("0" * 16) / f"{key}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            full = [dict.fromkeys(schema.names) | row for row in sorted(rows, key=lambda row: row["url_id"])]
            pq.write_table(pa.Table.from_pylist(full, schema=schema), path, compression="zstd")


def arm_mix(options: Mapping[str, Any]) -> int:
    from veclip_core.mixing.manifest import MixConfig, MixOperation
    from veclip_core.samples import ShardKey
    from veclip_core.shards import ShardSet
    from veclip_core.stage import ShardTask

    sets = {name: ShardSet(options["folder"], "bench", name, "0" * 16) for name in ("download", "select")}
    rows = 0
    with MixOperation(MixConfig()).open() as work:
        for shard in range(options["shards"]):
            with tempfile.TemporaryDirectory(dir=options["folder"]) as scratch:
                rows += work(ShardTask(ShardKey(0, shard % SHARDS), sets, Path(scratch))).rows_in
    return rows


def arm_copy(options: Mapping[str, Any]) -> int:
    rows = 0
    for shard in range(options["shards"]):
        with tempfile.TemporaryDirectory(dir=options["folder"]) as scratch:
            for stage in ("download", "select"):
                path = Path(options["folder"], "bench", stage, "0" * 16, "part-00000", f"{shard % SHARDS:05d}.parquet")
                table = pq.read_table(path, use_threads=False)
                pq.write_table(table, Path(scratch) / f"{stage}.parquet", compression="zstd")
            rows += table.num_rows
    return rows


ARMS = {"mix": arm_mix, "copy": arm_copy}


def compare(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    write_shards(Path(folder))
    ratios = []
    for pair in range(options.pairs):
        arms = ("mix", "copy") if pair % 2 == 0 else ("copy", "mix")
        seconds = {
            arm: measured(__file__, arm, folder=folder, shards=options.rows // 10 // ROWS)["seconds"] for arm in arms
        }
        ratios.append(round(seconds["copy"] / seconds["mix"], 3))
        print(f"  pair {pair + 1}: mix {seconds['mix']:.1f} s, copy {seconds['copy']:.1f} s, ratio {ratios[-1]}")
    small, large = (
        measured(__file__, "mix", folder=folder, shards=rows // ROWS) for rows in (options.rows // 10, options.rows)
    )
    print(f"  {options.rows:,} rows: {large['seconds']:.0f} s, peak {large['peak_mb']:,.0f} MB")
    return {
        "manifest_against_copy": statistics.median(ratios),
        "manifest_growth": round(large["seconds"] / small["seconds"], 2),
        "manifest_peak_mb": large["peak_mb"],
        "rows_per_s": round(options.rows / large["seconds"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--pairs", type=int, default=5)
    add_arguments(parser, ARMS)
    options = parser.parse_args()
    if options.arm:
        result: dict[str, Any] = run_arm(ARMS, options.arm, options.options)
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = compare(options, folder)
        print(json.dumps(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
