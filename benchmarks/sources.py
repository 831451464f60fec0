"""What reading lists costs: a JSON object of released captions, and a list of millions of rows to shards.

    python benchmarks/sources.py json    our reader of {url: caption} against ijson alone and against json.load, on one file
    python benchmarks/sources.py urls    a list with duplicates to shards: seconds and memory as its rows grow tenfold

Every arm is a fresh process; arms take turns, and who begins a pair alternates. The files are generated, and deleted afterwards.
"""
# ruff: noqa: T201

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from arms import add_arguments, measured, run_arm

WORDS = (*"abcdefg", "drawing", "photo", "house", "with", "two", "windows", '"quoted"', "café", "and")
ENTRY_BYTES = 188
"""Of an entry of the object, about."""


def write_object(path: Path, size: int) -> None:
    """A JSON object of URLs and captions, as long as real ones."""
    random = np.random.default_rng(0)
    captions = [" ".join(WORDS[n] for n in row) for row in random.integers(0, len(WORDS), (5_000, 22))]
    with open(path, "w", encoding="utf-8") as file:
        file.write("{")
        for n in range(size // ENTRY_BYTES):
            url = f"https://images-{n % 9_973}.example.com/pictures/of-things/{n:012d}/{n * 2654435761 % 2**32:08x}.jpg?w=800"
            file.write(f'{", " * (n > 0)}"{url}": {json.dumps(captions[n * 7 % 5_000], ensure_ascii=False)}')
        file.write("}")


def write_list(path: Path, rows: int) -> None:
    """A parquet list; every tenth row comes twice."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("url", pa.string()), ("caption", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 100_000):
            numbers = [n - (n % 10 == 0) * min(n, 1_000) for n in range(start, min(rows, start + 100_000))]
            urls = [
                f"https://images-{n % 9_973}.example.com/pictures/{n * 2654435761 % 2**32:08x}/{n}.jpg" for n in numbers
            ]
            alts = [f"picture {n} of something to look at, in colour" for n in numbers]
            writer.write_table(pa.table([urls, alts], schema=schema))


# ---------------------------------------------------------------- arms: each runs in a process of its own


def arm_ours(options: Mapping[str, Any]) -> int:
    from veclip_core.sources.json_object import entries_of

    with open(options["file"], "rb") as file:
        return sum(1 for _ in entries_of(file))


def arm_ijson(options: Mapping[str, Any]) -> int:
    import ijson

    with open(options["file"], "rb") as file:
        return sum(1 for _ in ijson.get_backend("yajl2_c").kvitems(file, "", buf_size=1 << 20))


def arm_json_load(options: Mapping[str, Any]) -> int:
    with open(options["file"], encoding="utf-8") as file:
        return len(json.load(file))


def arm_urls(options: Mapping[str, Any]) -> int:
    from veclip_core.sources.list_urls import scan
    from veclip_core.sources.urls import UrlList
    from veclip_core.stage import ShardTask

    with tempfile.TemporaryDirectory(dir=Path(options["file"]).parent) as folder:
        found = scan(UrlList((options["file"],)), Path(folder), rows_per_part=1_000_000, rows_per_shard=10_000)
        ok = 0
        with found.operation("bench").open() as work:
            for number, key in enumerate(found.grid.keys()):
                scratch = Path(folder) / f"shard-{number}"
                scratch.mkdir()
                ok += work(ShardTask(key, {}, scratch)).rows_ok
    return ok


ARMS = {"ours": arm_ours, "ijson": arm_ijson, "json_load": arm_json_load, "urls": arm_urls}


def compare_json(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    file = folder / "object.json"
    write_object(file, options.megabytes << 20)
    size = file.stat().st_size
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("ours", "ijson", "json_load")}
    for pair in range(options.pairs):
        for name in list(found) if pair % 2 == 0 else list(found)[::-1]:
            found[name].append(measured(__file__, name, file=str(file)))
            one = found[name][-1]
            print(
                f"  {name}: {size / 1e6 / one['seconds']:.0f} MB/s, peak {one['peak_mb']:,.0f} MB, {one['count']:,} entries"
            )
    assert len({one["count"] for ones in found.values() for one in ones}) == 1
    ratios = {
        other: [theirs["seconds"] / ours["seconds"] for ours, theirs in zip(found["ours"], found[other], strict=True)]
        for other in ("ijson", "json_load")
    }
    return {
        "bytes": size,
        "json_against_ijson": round(statistics.median(ratios["ijson"]), 3),
        "json_against_json_load": round(statistics.median(ratios["json_load"]), 3),
        "json_peak_mb": max(one["peak_mb"] for one in found["ours"]),
        "json_load_peak_mb": max(one["peak_mb"] for one in found["json_load"]),
    }


def compare_urls(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    found = {}
    for rows in (options.rows // 10, options.rows):
        file = folder / f"{rows}.parquet"
        write_list(file, rows)
        found[rows] = measured(__file__, "urls", file=str(file))
        one = found[rows]
        print(f"  {rows:,} rows: {one['seconds']:.0f} s, peak {one['peak_mb']:,.0f} MB, {one['count']:,} distinct")
        file.unlink()
    small, large = found.values()
    return {
        "rows": options.rows,
        "urls_growth": round(large["seconds"] / small["seconds"], 2),
        "urls_peak_mb": large["peak_mb"],
        "rows_per_s": round(options.rows / large["seconds"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["json", "urls"])
    parser.add_argument("--megabytes", type=int, default=2_048, help="json: size of the file")
    parser.add_argument("--rows", type=int, default=10_000_000, help="urls: rows of the larger list")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files are generated; by default the temporary folder")
    add_arguments(parser, ARMS)
    options = parser.parse_args()
    if options.arm:
        result: dict[str, Any] = run_arm(ARMS, options.arm, options.options)
    elif options.what:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            result = {"json": compare_json, "urls": compare_urls}[options.what](options, Path(folder))
        print(json.dumps(result))
    else:
        parser.error("say what to compare: json, urls")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
