"""Our list_urls and download stages against plain img2dataset: the same list, the same pictures, start-up included.

    python benchmarks/download.py --urls 20000 --pairs 5

A server on loopback (its own processes, on the same cores) serves generated pictures of about 30 kB. Each arm is a fresh
process from `python` to its last byte on disk; arms take turns, and who begins a pair alternates. Plain img2dataset runs by its
`download()` with the multiprocessing distributor, the same processes and threads, size, quality and hash, and writes WebDataset.
"""
# ruff: noqa: T201

import argparse
import asyncio
import io
import json
import multiprocessing
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SERVER_PICTURES = 400
IMAGE_SIZE = 256
QUALITY = 95


def pictures() -> list[bytes]:
    """Smooth colours with some noise: three JPEGs of 640 x 480 for each PNG of 140 x 110 with transparency."""
    import numpy as np
    from PIL import Image

    made = []
    for seed in range(SERVER_PICTURES):
        random = np.random.default_rng(seed)
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
        buffer = io.BytesIO()
        if seed % 4:
            smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC), np.int16)
            pixels = np.clip(smooth + random.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(buffer, "JPEG", quality=72)
        else:
            smooth = np.asarray(coarse.resize((140, 110), Image.Resampling.BICUBIC), np.int16)
            pixels = np.clip(smooth + random.integers(-4, 5, smooth.shape), 0, 255).astype(np.uint8)
            picture = Image.fromarray(pixels)
            picture.putalpha(Image.linear_gradient("L").resize(picture.size))
            picture.save(buffer, "PNG")
        made.append(buffer.getvalue())
    return made


class Answering(asyncio.Protocol):
    """GET /{n}.jpg -> picture n modulo their number; keeps the connection when asked to."""

    def __init__(self, answers: list[bytes]) -> None:
        self._answers, self._heard = answers, b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._heard += data
        while b"\r\n\r\n" in self._heard:
            head, self._heard = self._heard.split(b"\r\n\r\n", 1)
            number = int(head.split(b" ", 2)[1].strip(b"/").split(b".")[0])
            self._transport.write(self._answers[number % len(self._answers)])
            if b"connection: close" in head.lower():
                self._transport.close()


def serve(port: int, bodies: list[bytes]) -> None:
    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Type: image\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body) for body in bodies
    ]

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(
            lambda: Answering(answers), "127.0.0.1", port, reuse_port=True, backlog=1_024
        )
        await server.serve_forever()

    asyncio.run(run())


def ours(options: argparse.Namespace) -> None:
    from veclip_core.download.download import DownloadConfig, DownloadOperation, DownloadRuntime
    from veclip_core.execution.local import LocalExecutor
    from veclip_core.sources.list_urls import scan
    from veclip_core.sources.urls import UrlList
    from veclip_core.stage import output_of, run_stage

    root = str(options.out)
    sizes = {"rows_per_part": 1_000_000, "rows_per_shard": options.shard_rows}
    found = scan(UrlList((str(options.list),)), options.out / "work", **sizes)
    listing = found.operation("benchmark")
    common: dict[str, Any] = {"root": root, "source": "benchmark", "scale": "benchmark", "grid": found.grid}
    common |= {"parts": found.grid.parts, "partial": False, "executor": LocalExecutor(options.processes)}
    run_stage(listing, inputs={}, **common)
    started = time.monotonic()
    config = DownloadConfig(image_size=IMAGE_SIZE, quality=QUALITY)
    fetching = DownloadOperation(config, DownloadRuntime(threads=options.threads, allowed_hosts=(options.host,)))
    report = run_stage(fetching, inputs={"list_urls": output_of(listing, root, "benchmark", {})}, **common)
    print(json.dumps({"ok": report.rows_ok, "stage_s": time.monotonic() - started}))


def plain(options: argparse.Namespace) -> None:
    from img2dataset import download

    download(
        url_list=str(options.list),
        input_format="parquet",
        url_col="url",
        caption_col="alt",
        output_folder=str(options.out),
        output_format="webdataset",
        processes_count=options.processes,
        thread_count=options.threads,
        image_size=IMAGE_SIZE,
        resize_mode="keep_ratio_largest",
        resize_only_if_bigger=True,
        encode_quality=QUALITY,
        number_sample_per_shard=options.shard_rows,
        extract_exif=False,
        compute_hash="sha256",
    )
    stats = [json.loads(path.read_text()) for path in options.out.glob("*_stats.json")]
    print(json.dumps({"ok": sum(one["successes"] for one in stats)}))


def timed(arm: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one arm in a fresh process, and what it says it did."""
    out = Path(tempfile.mkdtemp(prefix=f"{arm}-", dir=options.list.parent))
    words = [sys.executable, __file__, "--arm", arm, "--list", options.list, "--out", out, "--host", options.host]
    for name in ("processes", "threads", "shard_rows"):
        words += [f"--{name.replace('_', '-')}", getattr(options, name)]
    started, cpu_before = time.monotonic(), cpu_seconds_of_children()
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, env=environment)
    seconds = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f"{arm} failed:\n{done.stdout[-2_000:]}\n{done.stderr[-4_000:]}")
    shutil.rmtree(out)
    said = json.loads(done.stdout.strip().splitlines()[-1])
    if said["ok"] != options.urls:
        raise SystemExit(f"{arm} brought {said['ok']} of {options.urls} pictures:\n{done.stderr[-2_000:]}")
    return {
        "seconds": seconds,
        "cpu_s": cpu_seconds_of_children() - cpu_before,
        "urls_per_s": options.urls / seconds,
        **said,
    }


def cpu_seconds_of_children() -> float:
    """Of those that have ended: the arms, and not the servers. Says more than the clock where others use the machine."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def compare(options: argparse.Namespace) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    bodies = pictures()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options.host = f"127.0.0.1:{port}"
    context = multiprocessing.get_context("spawn")
    servers = [context.Process(target=serve, args=(port, bodies), daemon=True) for _ in range(options.servers)]
    for server in servers:
        server.start()
    folder = Path(tempfile.mkdtemp(prefix="veclip-download-", dir=options.out))
    try:
        options.list = folder / "list.parquet"
        urls = [f"http://{options.host}/{number}.jpg" for number in range(options.urls)]
        pq.write_table(
            pa.table({"url": urls, "alt": [f"picture {number}" for number in range(options.urls)]}), options.list
        )
        pairs = []
        for number in range(options.pairs):
            order = ("ours", "plain") if number % 2 == 0 else ("plain", "ours")
            pair = {arm: timed(arm, options) for arm in order}
            ratio = pair["plain"]["seconds"] / pair["ours"]["seconds"]
            pairs.append({**pair, "ratio": ratio})
            ours_s, stage_s, plain_s = pair["ours"]["seconds"], pair["ours"]["stage_s"], pair["plain"]["seconds"]
            print(f"pair {number + 1}: ours {ours_s:.1f} s (of it the download stage {stage_s:.1f} s), "
                  f"img2dataset {plain_s:.1f} s, throughput ratio {ratio:.2f}; CPU seconds "
                  f"{pair['ours']['cpu_s']:.1f} and {pair['plain']['cpu_s']:.1f}", flush=True)  # fmt: skip
    finally:
        for server in servers:
            server.terminate()
        shutil.rmtree(folder)
    return {
        "urls": options.urls,
        "mean_bytes": round(statistics.mean(map(len, bodies))),
        "processes": options.processes,
        "threads": options.threads,
        "shard_rows": options.shard_rows,
        "cpus": os.cpu_count(),
        "pairs": pairs,
        "download_throughput_ratio": statistics.median(pair["ratio"] for pair in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--urls", type=int, default=20_000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2, help="worker processes of each arm")
    parser.add_argument("--threads", type=int, default=16, help="fetches under way in each worker process")
    parser.add_argument("--shard-rows", type=int, default=5_000)
    parser.add_argument("--servers", type=int, default=2, help="server processes")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--arm", choices=["ours", "plain"], help=argparse.SUPPRESS)
    parser.add_argument("--list", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="folder for temporary files (default: the system's)")
    parser.add_argument("--host", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        {"ours": ours, "plain": plain}[options.arm](options)
        return
    result = compare(options)
    print(f"median throughput ratio, ours / img2dataset: {result['download_throughput_ratio']:.2f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
