"""Evaluation sets at addresses: fetched once, whole, and gone on with after a kill."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from tests.servers import running
from tests.unit.set_layouts import captions, picture, retrieval_samples, write_parquet, write_webdataset
from veclip_core.evaluation.layouts import fetching
from veclip_core.evaluation.set_specs import FOLDER, open_set
from veclip_core.evaluation.sets import EvaluationSet, EvaluationSetError
from veclip_core.sources import released_files

N = 24


class Server(ThreadingHTTPServer):
    """A folder's files, with ranges; what `stuck` names is begun and not ended."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.got: list[str] = []
        """The paths of the GETs."""
        self.stuck = ""
        self.reached, self.go_on = threading.Event(), threading.Event()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self.server.got.append(self.path)
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        file = self.server.folder / self.path.partition("?")[0].lstrip("/")
        if not file.is_file():
            self.send_error(404)
            return
        data = file.read_bytes()
        start, stop = 0, len(data)
        if asked := self.headers.get("Range"):
            first, last = asked.removeprefix("bytes=").split("-")
            start, stop = int(first), min(int(last) + 1, len(data))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if not body:
            return
        if self.server.stuck and self.path.endswith(self.server.stuck):
            self.wfile.write(data[start : start + 10])
            self.server.reached.set()
            self.server.go_on.wait(30)
            return
        self.wfile.write(data[start:stop])

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(released_files, "PAUSE_S", 0.01)
    (tmp_path / "served").mkdir()
    serving = Server(tmp_path / "served")
    with running(serving):
        yield serving
        serving.go_on.set()


def from_web(server: Server, cache: Path, path: str) -> EvaluationSet:
    return open_set(f"web=http://{server.host}/{path}", cache, allowed_hosts=frozenset({server.host}))


def test_a_webdataset_on_the_web_is_the_one_on_the_disk(server: Server, tmp_path: Path) -> None:
    write_webdataset(server.folder / "set", retrieval_samples(captions(N)), kind="retrieval")
    found = from_web(server, tmp_path / "cache", "set?signature=x")
    local = open_set(f"web={server.folder / 'set'}", tmp_path / "cache")
    assert (found.content, found.ids, found.captions) == (local.content, local.ids, local.captions)
    assert "/set/test/2.tar?signature=x" in server.got
    asked = len(server.got)
    assert from_web(server, tmp_path / "cache", "set?signature=x").content == found.content
    assert len(server.got) == asked


def test_private_addresses_are_asked_only_where_allowed(server: Server, tmp_path: Path) -> None:
    write_webdataset(server.folder / "set", retrieval_samples(captions(N)), kind="retrieval")
    with pytest.raises(EvaluationSetError, match="inside a private network"):
        open_set(f"http://{server.host}/set", tmp_path / "cache")
    assert not server.got


def test_a_killed_fetch_goes_on_and_half_a_set_is_never_read(server: Server, tmp_path: Path) -> None:
    write_webdataset(server.folder / "set", retrieval_samples(captions(N)), kind="retrieval")
    server.stuck = "1.tar"
    address, cache = f"http://{server.host}/set", tmp_path / "cache"
    code = f"""
from pathlib import Path
from veclip_core.evaluation.set_specs import open_set
open_set({address!r}, Path({str(cache)!r}), allowed_hosts=frozenset({{{server.host!r}}}))
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        assert server.reached.wait(60)
    finally:
        process.kill()
        process.wait()
    assert not list((cache / FOLDER / "fetched").glob(f"*{fetching.DONE}"))
    server.stuck = ""
    server.go_on.set()
    first = server.got.count("/set/test/0.tar")
    assert len(from_web(server, cache, "set")) == N
    assert server.got.count("/set/test/0.tar") == first
    assert not list((cache / FOLDER / "fetched").rglob("*.part"))


def test_one_parquet_on_the_web(server: Server, tmp_path: Path) -> None:
    texts = captions(N, (2,))
    write_parquet(server.folder / "test.parquet", {"image": [picture(n) for n in range(N)], "caption": texts})
    found = from_web(server, tmp_path / "cache", "test.parquet")
    assert [list(own) for own in found.captions_of] == texts


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing", r"has no test/nshards\.txt\. A web server's folder can only be fetched in CLIP_benchmark's"),
        ("set.tar.gz", "is an archive: fetch and unpack it"),
        ("none.parquet", r"there is no http://.*/none\.parquet"),
        ("odd", "must hold the number of tars"),
        ("short", r"there is no http://.*/short/test/1\.tar"),
        ("..%2f..%2fevil.parquet", "names no file"),
    ],
)
def test_what_can_not_be_fetched(server: Server, tmp_path: Path, path: str, message: str) -> None:
    for name, shards in (("odd", "many"), ("short", "2")):
        folder = write_webdataset(server.folder / name, retrieval_samples(captions(10)), kind="retrieval")
        (folder / "test" / "nshards.txt").write_text(shards)
    with pytest.raises(EvaluationSetError, match=message):
        from_web(server, tmp_path / "cache", path)
    assert not list((tmp_path / "cache").rglob("*evil*"))


def test_a_listed_folder_without_its_other_splits(tmp_path: Path) -> None:
    """Any of fsspec's filesystems that lists: here its memory, elsewhere s3 and hf."""
    fs = fsspec.filesystem("memory")
    texts = captions(N, (2,))
    images = [picture(n) for n in range(N)]
    for split in ("test", "train"):
        path = tmp_path / f"{split}-00000-of-00001.parquet"
        write_parquet(path, {"image": images, "caption": texts})
        fs.pipe_file(f"/hub/data/{path.name}", path.read_bytes())
    fs.pipe_file("/hub/README.md", b"x")
    fs.pipe_file("/hub/.gitattributes", b"x")
    found = open_set("memory://hub", tmp_path / "cache")
    assert [list(own) for own in found.captions_of] == texts
    names = {path.name for path in (tmp_path / "cache" / FOLDER / "fetched").rglob("*.*") if path.is_file()}
    assert {"README.md", "test-00000-of-00001.parquet"} <= names
    assert not {"train-00000-of-00001.parquet", ".gitattributes"} & names
    with pytest.raises(EvaluationSetError, match="there is nothing at memory://elsewhere"):
        open_set("memory://elsewhere", tmp_path / "cache")
    with pytest.raises(EvaluationSetError, match="can't be fetched"):
        open_set("nonsense://x/y", tmp_path / "cache")
