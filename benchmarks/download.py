"""Our list_urls and download stages against plain img2dataset: the same list, the same pictures, start-up included.

    python benchmarks/download.py clean --urls 20000 --pairs 5
    python benchmarks/download.py latency --urls 10000 --threads 32
    python benchmarks/download.py dripping --urls 2000 --threads 32 --pairs 2

A server on loopback (its own processes, on the same cores) serves generated pictures of about 30 kB. Each arm is a fresh
process from `python` to its last byte on disk; arms take turns, and who begins a pair alternates. Plain img2dataset runs by its
`download()` with the multiprocessing distributor, the same processes and threads, size, quality and hash, and writes WebDataset.

`latency`: each answer comes 50 to 200 ms after its question. `dripping`: that too, and 5 of 100 hosts (addresses of the loopback)
answer a few bytes every half second for a minute, and then hang up; ours has 10 s for a URL, img2dataset the fastest of a sweep of
its timeout and retries. Both bring the same pictures.
"""
# ruff: noqa: T201

import argparse
import asyncio
import dataclasses
import io
import json
import multiprocessing
import os
import random
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
LATENCY_S = (0.05, 0.2)
HOSTS, DRIPPING_HOSTS, DRIPPING_S = 100, 5, 60.0
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
"""To the question for robots.txt, which plain img2dataset does not ask."""
SWEEP = ((1, 0), (10, 0), (10, 1))
"""Timeouts and retries of img2dataset; 10 and 0 are its defaults."""
IMAGE_SIZE = 256
QUALITY = 95


def pictures() -> list[bytes]:
    """Smooth colours with some noise: three JPEGs of 640 x 480 for each PNG of 140 x 110 with transparency."""
    import numpy as np
    from PIL import Image

    made = []
    for seed in range(SERVER_PICTURES):
        noise = np.random.default_rng(seed)
        coarse = Image.fromarray(noise.integers(0, 256, (12, 16, 3), np.uint8))
        buffer = io.BytesIO()
        if seed % 4:
            smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC), np.int16)
            pixels = np.clip(smooth + noise.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(buffer, "JPEG", quality=72)
        else:
            smooth = np.asarray(coarse.resize((140, 110), Image.Resampling.BICUBIC), np.int16)
            pixels = np.clip(smooth + noise.integers(-4, 5, smooth.shape), 0, 255).astype(np.uint8)
            picture = Image.fromarray(pixels)
            picture.putalpha(Image.linear_gradient("L").resize(picture.size))
            picture.save(buffer, "PNG")
        made.append(buffer.getvalue())
    return made


class Answering(asyncio.Protocol):
    """GET /{n}.jpg -> picture n modulo their number, after its latency; keeps the connection when asked to."""

    def __init__(self, answers: list[bytes], latency_s: tuple[float, float], dripping: int) -> None:
        self._answers, self._heard = answers, b""
        self._latency_s, self._dripping = latency_s, dripping

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        host = int(transport.get_extra_info("sockname")[0].rpartition(".")[2])
        self._drips = host <= self._dripping

    def data_received(self, data: bytes) -> None:
        self._heard += data
        while b"\r\n\r\n" in self._heard:
            head, self._heard = self._heard.split(b"\r\n\r\n", 1)
            name, closes = head.split(b" ", 2)[1].strip(b"/").split(b".")[0], b"connection: close" in head.lower()
            number = int(name) if name.isdigit() else 0
            answer = self._answers[number % len(self._answers)] if name.isdigit() else NOT_FOUND
            lowest, highest = self._latency_s
            latency_s = lowest + (highest - lowest) * random.Random(number).random()
            if self._drips:
                asyncio.get_running_loop().create_task(self._drip(answer))
            elif latency_s:
                asyncio.get_running_loop().call_later(latency_s, self._answer, answer, closes)
            else:
                self._answer(answer, closes)

    def _answer(self, answer: bytes, closes: bool) -> None:
        self._transport.write(answer)
        if closes:
            self._transport.close()

    async def _drip(self, answer: bytes) -> None:
        started, sent = time.monotonic(), 200
        self._transport.write(answer[:sent])
        while time.monotonic() < started + DRIPPING_S and not self._transport.is_closing():
            await asyncio.sleep(0.5)
            self._transport.write(answer[sent : sent + 4])
            sent += 4
        self._transport.close()


def serve(port: int, bodies: list[bytes], latency_s: tuple[float, float], dripping: int) -> None:
    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Type: image\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body) for body in bodies
    ]

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(
            lambda: Answering(answers, latency_s, dripping), "0.0.0.0", port, reuse_port=True, backlog=1_024
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
    # The server has few pictures, which many URLs give: that makes none of them a placeholder here.
    config = DownloadConfig(image_size=IMAGE_SIZE, quality=QUALITY, placeholder_urls=0)
    runtime = DownloadRuntime(threads=options.threads, allowed_hosts=tuple(options.hosts.split(",")))
    if options.case == "dripping":
        runtime = dataclasses.replace(runtime, deadline_s=10.0)
    fetching = DownloadOperation(config, runtime)
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
        timeout=options.timeout,
        retries=options.retries,
    )
    stats = [json.loads(path.read_text()) for path in options.out.glob("*_stats.json")]
    print(json.dumps({"ok": sum(one["successes"] for one in stats)}))


def timed(arm: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one arm in a fresh process, and what it says it did."""
    out = Path(tempfile.mkdtemp(prefix=f"{arm}-", dir=options.list.parent))
    words = [sys.executable, __file__, options.case, "--arm", arm, "--list", options.list, "--out", out]
    for name in ("processes", "threads", "shard_rows", "hosts", "timeout", "retries"):
        words += [f"--{name.replace('_', '-')}", getattr(options, name)]
    started, cpu_before = time.monotonic(), cpu_seconds_of_children()
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, env=environment)
    seconds = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f"{arm} failed:\n{done.stdout[-2_000:]}\n{done.stderr[-4_000:]}")
    shutil.rmtree(out)
    said = json.loads(done.stdout.strip().splitlines()[-1])
    if said["ok"] != options.good:
        raise SystemExit(f"{arm} brought {said['ok']} of {options.good} pictures:\n{done.stderr[-2_000:]}")
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
    hosts = [f"127.0.0.{number + 1}:{port}" for number in range(HOSTS)]
    dripping = DRIPPING_HOSTS if options.case == "dripping" else 0
    options.hosts = ",".join(hosts)
    options.good = sum(number % HOSTS >= dripping for number in range(options.urls))
    context = multiprocessing.get_context("spawn")
    told = (port, bodies, (0.0, 0.0) if options.case == "clean" else LATENCY_S, dripping)
    servers = [context.Process(target=serve, args=told, daemon=True) for _ in range(options.servers)]
    for server in servers:
        server.start()
    folder = Path(tempfile.mkdtemp(prefix="veclip-download-", dir=options.out))
    try:
        options.list = folder / "list.parquet"
        urls = [f"http://{hosts[number % HOSTS]}/{number}.jpg" for number in range(options.urls)]
        pq.write_table(
            pa.table({"url": urls, "alt": [f"picture {number}" for number in range(options.urls)]}), options.list
        )
        if options.case == "dripping":
            options.timeout, options.retries = best_of_a_sweep(options)
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
        "case": options.case,
        "urls": options.urls,
        "img2dataset": {"timeout_s": options.timeout, "retries": options.retries},
        "mean_bytes": round(statistics.mean(map(len, bodies))),
        "processes": options.processes,
        "threads": options.threads,
        "shard_rows": options.shard_rows,
        "cpus": os.cpu_count(),
        "pairs": pairs,
        "download_throughput_ratio": statistics.median(pair["ratio"] for pair in pairs),
    }


def best_of_a_sweep(options: argparse.Namespace) -> tuple[int, int]:
    """img2dataset's timeout and retries that are the fastest."""
    seconds = {}
    for timeout, retries in SWEEP:
        options.timeout, options.retries = timeout, retries
        seconds[timeout, retries] = timed("plain", options)["seconds"]
        print(f"img2dataset, timeout {timeout} s, retries {retries}: {seconds[timeout, retries]:.1f} s", flush=True)
    return min(seconds, key=lambda setting: seconds[setting])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=["clean", "latency", "dripping"])
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
    parser.add_argument("--hosts", help=argparse.SUPPRESS)
    parser.add_argument("--timeout", type=int, default=10, help=argparse.SUPPRESS)
    parser.add_argument("--retries", type=int, default=0, help=argparse.SUPPRESS)
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
