"""The stages list_urls and download in worker processes, against a real HTTP server that serves good pictures and every fault."""

import hashlib
import io
import json
import struct
import tarfile
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from PIL import Image

from veclip_core.download.download import DownloadConfig, DownloadOperation, DownloadRuntime
from veclip_core.execution.local import LocalExecutor
from veclip_core.samples import DOWNLOAD_SCHEMA, Grid, ShardKey, canonical_url, url_id
from veclip_core.sources.list_urls import scan
from veclip_core.sources.urls import UrlList
from veclip_core.stage import ShardSet, output_of, run_stage
from veclip_core.stage_report import StageReport

PLACEHOLDER_URLS = 4
CONFIG = DownloadConfig(
    image_size=64, max_pixels=1_000_000, max_bytes=200_000, min_size=4, placeholder_urls=PLACEHOLDER_URLS
)
GOOD = 24
SAME = [f"/same/{n}.png" for n in range(60)]
"""Paths under which one and the same file lies: so many that every shard gets more than enough of them."""


def encoded(picture: Image.Image, kind: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **how)
    return buffer.getvalue()


def noise(width: int, height: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def bomb(side: int) -> bytes:
    """A few kilobytes of PNG that say they are side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * (side // 8 + 1) * 8)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def upright_marked(quality: int = 95) -> bytes:
    """A JPEG stored lying, 60 x 30, whose EXIF says to turn it a quarter: red must come out on top."""
    picture = Image.new("RGB", (60, 30), "blue")
    picture.paste("red", (0, 0, 30, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture, "JPEG", quality=quality, exif=exif)


def bodies() -> dict[str, bytes]:
    """Path -> body, of all that is served with status 200."""
    found = {f"/good/{n}.{kind}": encoded(noise(100 + n, 80, n), kind) for n in range(GOOD) for kind in ("jpeg", "png")}
    thumbnail = encoded(noise(20, 15, 1), "JPEG")  # with an end marker of its own, long before the picture's
    jpeg = encoded(noise(200, 150, 1), "JPEG")
    jpeg = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(thumbnail)) + thumbnail + jpeg[2:]
    png = encoded(noise(90, 90, 2), "PNG")
    half = Image.new("RGBA", (20, 10), (255, 0, 0, 0))
    half.paste((0, 0, 255, 255), (10, 0, 20, 10))
    deep = Image.fromarray(np.full((20, 20), 0x4000, np.uint16))
    found |= {
        "/odd/transparent.png": encoded(half, "PNG"),
        "/odd/palette.png": encoded(half.quantize(8), "PNG"),
        "/odd/grey-alpha.png": encoded(Image.new("LA", (10, 10), (0, 0)), "PNG"),
        "/odd/16-bit.png": encoded(deep, "PNG"),
        "/odd/still.gif": encoded(noise(50, 40, 3), "GIF"),
        "/odd/still.webp": encoded(noise(50, 40, 4), "WEBP"),
        "/odd/cmyk.jpg": encoded(Image.new("CMYK", (30, 30), (0, 255, 255, 0)), "JPEG"),
        "/odd/lying.jpg": upright_marked(),
        "/odd/trailing.jpg": jpeg + b"\r\n<!-- served by -->",
        "/bad/empty.jpg": b"",
        "/bad/page.jpg": b"<!doctype html><title>Not found</title>" * 50,
        "/bad/vector.svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "/bad/script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        "/bad/cut.jpg": jpeg[: len(jpeg) // 2],
        "/bad/cut.png": png[: len(png) // 2],
        "/bad/cut-last.png": png[:-1],
        "/bad/cut.gif": encoded(noise(50, 40, 3), "GIF")[:900],
        "/bad/cut.webp": encoded(noise(50, 40, 4), "WEBP")[:-40],
        "/bad/flipped.png": png[:4_000] + bytes([png[4_000] ^ 255]) + png[4_001:],
        "/bad/bomb.png": bomb(60_000),
        "/bad/large.png": encoded(Image.new("1", (1_001, 1_000)), "PNG"),
        "/bad/heavy.png": encoded(noise(300, 300, 5), "PNG"),
        "/bad/tiny.png": encoded(noise(40, 3, 6), "PNG"),
        "/bad/noai.png": png,
        "/private/1.png": png,
    }
    return found | dict.fromkeys(SAME, encoded(noise(60, 60, 7), "PNG"))


ODD_REASONS = {
    "/bad/empty.jpg": "empty",
    "/bad/page.jpg": "not_an_image",
    "/bad/vector.svg": "not_an_image",
    "/bad/script.eps": "not_an_image",
    "/bad/cut.jpg": "truncated",
    "/bad/cut.png": "truncated",
    "/bad/cut-last.png": "truncated",
    "/bad/cut.gif": "truncated",
    "/bad/cut.webp": "truncated",
    "/bad/flipped.png": "damaged",
    "/bad/bomb.png": "too_many_pixels",
    "/bad/large.png": "too_many_pixels",
    "/bad/heavy.png": "too_large",
    "/bad/tiny.png": "too_small",
    "/bad/noai.png": "x_robots_tag",
    "/private/1.png": "robots",
    "/missing.jpg": "http_404",
    "/gone.jpg": "http_410",
    "/broken.jpg": "http_5xx",
    "/drip.jpg": "timeout",
    "/to-private.jpg": "forbidden_address",
}


@dataclass(frozen=True)
class World:
    origin: str
    bodies: dict[str, bytes]
    asked: list[str]

    def url(self, path: str) -> str:
        return f"http://{self.origin}{path}"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    served, asked = bodies(), []
    robots = b"User-agent: *\nDisallow: /private/\n"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path == "/drip.jpg":
                self.send_response(200)
                self.end_headers()
                for _ in range(100):
                    self.wfile.write(b"\xff")
                    time.sleep(0.1)
            elif self.path in ("/to-private.jpg", "/to-good.jpg"):
                self.send_response(302)
                self.send_header("Location", "/good/0.png" if "good" in self.path else "http://[::1]:1/secret")
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                status = {"/gone.jpg": 410, "/broken.jpg": 503}.get(self.path, 200 if self.path in served else 404)
                # Good pictures come late and in another order each time: the shard must not show it.
                time.sleep(0.02 * (len(asked) % 3))
                body = served.get(self.path, b"sorry")
                if self.path == "/robots.txt":
                    status, body = 200, robots
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                if self.path == "/bad/noai.png":
                    self.send_header("X-Robots-Tag", "noai")
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            return  # the dripping client went away, as it should

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield World(f"127.0.0.1:{server.server_port}", served, asked)
    server.shutdown()
    server.server_close()


@dataclass(frozen=True)
class Run:
    """What one run of both stages left."""

    listed: StageReport
    fetched: StageReport
    shards: ShardSet
    keys: list[ShardKey]

    def rows(self) -> list[dict[str, Any]]:
        return [row for key in self.keys for row in self.shards.read_table(key).to_pylist()]

    def tars(self) -> list[bytes]:
        return [self.shards.open(key, "tar").read() for key in self.keys]

    def row(self, url: str) -> dict[str, Any]:
        return next(row for row in self.rows() if row["url_id"] == url_id(canonical_url(url)))

    def picture(self, url: str) -> Image.Image:
        row = self.row(url)
        tar = self.tars()[self.keys.index(Grid(1, len(self.keys)).key_of(row["url_id"]))]
        return Image.open(io.BytesIO(tar[row["offset"] : row["offset"] + row["bytes"]]))


def run(world: World, folder: Path, runtime: DownloadRuntime) -> Run:
    paths = [*world.bodies, *(path for path in ODD_REASONS if path not in world.bodies), "/to-good.jpg"]
    rows = [(world.url(path), f"picture {path}") for path in paths]
    rows += [(world.url("/good/0.png"), "a second text"), (world.url("/good/0.png"), "picture /good/0.png")]
    rows += [("http://127.0.0.1:1/private.png", "not allowed"), ("nonsense", "no URL")]
    folder.mkdir()
    pa.csv.write_csv(pa.table({"url": [url for url, _ in rows], "alt": [alt for _, alt in rows]}), folder / "list.csv")
    found = scan(UrlList((str(folder / "list.csv"),)), folder / "work", rows_per_part=1_000, rows_per_shard=40)
    root, common = (
        str(folder / "root"),
        {"source": "world", "scale": "test", "grid": found.grid, "parts": 1, "partial": False},
    )
    listing, fetching = found.operation("world"), DownloadOperation(CONFIG, runtime)
    executor = LocalExecutor(1)
    listed = run_stage(listing, root=root, inputs={}, executor=executor, **common)  # type: ignore[arg-type]
    inputs = {"list_urls": output_of(listing, root, "world", {})}
    fetched = run_stage(fetching, root=root, inputs=inputs, executor=executor, **common)  # type: ignore[arg-type]
    return Run(listed, fetched, output_of(fetching, root, "world", inputs), found.grid.keys())


@pytest.fixture(scope="module")
def first(world: World, tmp_path_factory: pytest.TempPathFactory) -> Run:
    runtime = DownloadRuntime(threads=8, timeout_s=2, deadline_s=3, retries=1, allowed_hosts=(world.origin,))
    return run(world, tmp_path_factory.mktemp("first") / "with space", runtime)


def test_the_sums_are_right(world: World, first: Run) -> None:
    listed, fetched = first.listed, first.fetched
    assert listed.rows_in == listed.rows_ok + sum(listed.errors.values())
    assert listed.errors == {"duplicate": 1, "scheme_not_http": 1}
    rows = first.rows()
    # Every distinct URL that the list has in order is one row, ok or not; the second AltText is none.
    assert fetched.rows_in == len(rows) == len({row["url_id"] for row in rows}) == listed.extra["urls"]
    assert fetched.rows_in == fetched.rows_ok + sum(fetched.errors.values())
    assert fetched.rows_ok == sum(row["status"] == "ok" for row in rows)
    assert [row["url_id"] for row in rows] == sorted(row["url_id"] for row in rows)
    assert len(first.keys) > 1
    assert first.shards.read_table(first.keys[0]).schema.equals(DOWNLOAD_SCHEMA)


@pytest.mark.parametrize(("path", "reason"), ODD_REASONS.items())
def test_each_fault_has_its_reason(world: World, first: Run, path: str, reason: str) -> None:
    row = first.row(world.url(path))
    assert (row["status"], row["error"]) == ("error", reason)
    assert row["bytes"] is row["offset"] is row["width"] is row["sha256"] is None


def test_addresses_of_this_machine_are_not_asked(first: Run) -> None:
    assert first.row("http://127.0.0.1:1/private.png")["error"] == "forbidden_address"


def test_good_pictures_are_there_with_their_facts(world: World, first: Run) -> None:
    for path, body in world.bodies.items():
        if path.startswith(("/bad", "/private", "/same")):
            continue
        row = first.row(world.url(path))
        assert row["error"] is None, path
        assert row["sha256"] == hashlib.sha256(body).hexdigest()
        picture = first.picture(world.url(path))
        assert picture.format == "JPEG"
        assert picture.size == (row["width"], row["height"])
        assert max(picture.size) <= 64
    row = first.row(world.url("/good/3.png"))
    assert (row["original_width"], row["original_height"], row["width"], row["height"]) == (103, 80, 64, 50)
    row = first.row(world.url("/odd/transparent.png"))
    assert (row["width"], row["height"]) == (20, 10)  # smaller ones stay as they are
    assert first.row(world.url("/to-good.jpg"))["sha256"] == first.row(world.url("/good/0.png"))["sha256"]


def test_a_file_under_many_urls_is_no_picture_of_any(world: World, first: Run) -> None:
    rows = [first.row(world.url(path)) for path in SAME]
    assert {(row["status"], row["error"]) for row in rows} == {("error", "placeholder")}
    assert {row["sha256"] for row in rows} == {hashlib.sha256(world.bodies[SAME[0]]).hexdigest()}
    assert first.fetched.errors["placeholder"] == len(SAME)


def test_what_robots_txt_forbids_is_never_asked(world: World, first: Run) -> None:
    assert "/private/1.png" not in world.asked
    assert world.asked.count("/robots.txt") >= 1


def near(picture: Image.Image, at: tuple[int, int], colour: tuple[int, int, int]) -> bool:
    pixel = picture.convert("RGB").getpixel(at)
    assert isinstance(pixel, tuple)
    return all(abs(a - b) < 12 for a, b in zip(pixel, colour, strict=True))


def test_what_is_seen_is_right(world: World, first: Run) -> None:
    white, blue, red = (255, 255, 255), (0, 0, 255), (255, 0, 0)
    for path in ("/odd/transparent.png", "/odd/palette.png"):
        picture = first.picture(world.url(path))
        assert near(picture, (2, 5), white), path
        assert near(picture, (17, 5), blue), path
    assert near(first.picture(world.url("/odd/grey-alpha.png")), (5, 5), white)
    assert near(first.picture(world.url("/odd/16-bit.png")), (5, 5), (64, 64, 64))
    assert near(first.picture(world.url("/odd/cmyk.jpg")), (5, 5), red)
    lying = first.picture(world.url("/odd/lying.jpg"))
    assert lying.size == (30, 60)
    assert near(lying, (15, 8), red)


def test_the_tar_is_webdataset_in_order_and_the_offsets_are_true(first: Run) -> None:
    for key, tar in zip(first.keys, first.tars(), strict=True):
        rows = [row for row in first.shards.read_table(key).to_pylist() if row["status"] == "ok"]
        with tarfile.open(fileobj=io.BytesIO(tar)) as file:
            members = file.getmembers()
        names = [name for row in rows for name in (f"{row['url_id']}.jpg", f"{row['url_id']}.json")]
        assert [member.name for member in members] == names
        jpgs = {member.name[:-4]: member for member in members if member.name.endswith(".jpg")}
        for row in rows:
            member = jpgs[row["url_id"]]
            assert (member.offset_data, member.size) == (row["offset"], row["bytes"])
        about = json.loads(tar[members[1].offset_data :][: members[1].size])
        assert about["url"] == rows[0]["url"]
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, "")}


def test_only_what_may_heal_was_asked_twice(world: World, first: Run) -> None:
    assert world.asked.count("/broken.jpg") == 2
    assert world.asked.count("/missing.jpg") == world.asked.count("/bad/page.jpg") == 1
    assert world.asked.count("/good/1.png") == 1


def test_a_second_run_elsewhere_gives_the_same_bytes(world: World, first: Run, tmp_path: Path) -> None:
    runtime = DownloadRuntime(threads=3, timeout_s=1, deadline_s=2, retries=0, allowed_hosts=(world.origin,))
    second = run(world, tmp_path / "second", runtime)
    assert second.tars() == first.tars()
    assert second.rows() == first.rows()
    assert second.fetched.digest == first.fetched.digest
    assert second.shards.identity == first.shards.identity
