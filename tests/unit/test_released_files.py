"""Large files by a list: gone on with after every cut, never half of one, never two mixed."""

import hashlib
import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from veclip_core.pipeline.released import fetch_captions, url_list_of
from veclip_core.settings import Settings, SettingsError
from veclip_core.sources import released_files
from veclip_core.sources.released_files import FetchError, Wanted, fetch_all, read_list
from veclip_core.sources.urls import UrlList

SIZE = 400_000


class Server(ThreadingHTTPServer):
    """Serves `files`; closes the connection after `cut_after` bytes of a body as long as `cuts` last."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.ranges, self.cut_after, self.cuts = True, SIZE, 0
        self.served = 0
        self.asked: list[str | None] = []
        """The ranges of the GETs."""
        self.down = 0
        """So many answers more are 503."""

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/files/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        data = self.server.files.get(self.path.rsplit("/", 1)[-1])
        if data is None:
            self.send_error(404)
            return
        start, stop = 0, len(data)
        asked = self.headers.get("Range")
        if body:
            self.server.asked.append(asked)
        if self.server.down:
            self.server.down -= 1
            self.send_error(503)
            return
        if asked and self.server.ranges:
            first, last = asked.removeprefix("bytes=").split("-")
            start, stop = int(first), min(int(last) + 1, len(data))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()[:8]}"')
        self.end_headers()
        if not body:
            return
        if self.server.cuts and stop - start > self.server.cut_after:
            self.server.cuts -= 1
            stop = start + self.server.cut_after
        self.wfile.write(data[start:stop])
        self.server.served += stop - start
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(released_files, "PAUSE_S", 0.01)
    monkeypatch.setattr(released_files, "BLOCK_BYTES", 50_000)
    monkeypatch.setattr(released_files, "PROGRESS_BYTES", 20_000)
    serving = Server()
    serving.files["captions-00.json"] = random.Random(0).randbytes(SIZE)
    thread = threading.Thread(target=serving.serve_forever, daemon=True)
    thread.start()
    yield serving
    serving.shutdown()
    serving.server_close()
    thread.join()


def fetched(server: Server, tmp_path: Path, sha256: str | None = None) -> Path:
    wanted = [Wanted(server.url("captions-00.json"), sha256)]
    (one,) = fetch_all(wanted, str(tmp_path / "files"), tmp_path / "partial")
    assert (one.bytes, one.sha256) == (SIZE, hashlib.sha256(server.files["captions-00.json"]).hexdigest())
    return Path(one.uri)


def test_what_is_cut_off_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.cut_after, server.cuts = 30_000, 4
    path = fetched(server, tmp_path)
    assert path.read_bytes() == server.files["captions-00.json"]
    assert server.served == SIZE + 4 * 30_000, "what was there is not fetched again: a cut block is, and nothing else"
    assert all(server.asked)
    before = server.served
    fetched(server, tmp_path)
    assert server.served == before, "nothing is done twice"


def test_a_later_run_goes_on_where_an_earlier_one_gave_up(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "partial" / "captions-00.json.part"

    def goes_down(name: str, done: int, whole: int | None) -> None:
        assert whole == SIZE
        if done >= 200_000:
            server.cut_after, server.cuts = 0, 100

    with pytest.raises(FetchError, match="goes on from where it is"):
        fetch_all([Wanted(server.url("captions-00.json"))], str(tmp_path / "files"), tmp_path / "partial", goes_down)
    assert part.stat().st_size == 200_000
    assert not list(tmp_path.glob("files/*")), "no half of a file under its name"
    server.cuts, server.served, server.asked = 0, 0, []
    assert fetched(server, tmp_path).read_bytes() == server.files["captions-00.json"]
    assert server.served == 200_000
    assert server.asked[0] == "bytes=200000-249999"
    assert not part.exists()


def test_a_server_that_is_down_for_a_moment_has_the_file_still(server: Server, tmp_path: Path) -> None:
    server.down = 3
    assert fetched(server, tmp_path).read_bytes() == server.files["captions-00.json"]
    server.shutdown()
    server.server_close()
    with pytest.raises(FetchError, match="can't be fetched"):
        fetch_all([Wanted(server.url("other.json"))], str(tmp_path / "files"), tmp_path / "partial")


def test_cuts_without_progress_come_to_an_end(server: Server, tmp_path: Path) -> None:
    server.ranges, server.cuts = False, 10_000
    server.cut_after = 10_000
    with pytest.raises(FetchError, match="can't be fetched"):
        fetched(server, tmp_path)
    assert len(server.asked) <= 2 * (released_files.TRIES + 1)


def test_another_file_at_the_same_address_is_not_joined_to_the_first(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "partial" / "captions-00.json.part"
    part.parent.mkdir()
    part.write_bytes(b"x" * 123_456)
    part.with_suffix(".json").write_text('{"url": "of another time"}')
    assert fetched(server, tmp_path).read_bytes() == server.files["captions-00.json"]


def test_a_file_that_changes_while_it_is_read_is_read_again(server: Server, tmp_path: Path) -> None:
    other = random.Random(1).randbytes(SIZE)

    def changes(name: str, done: int, whole: int | None) -> None:
        if done == 200_000:
            server.files["captions-00.json"] = other

    (one,) = fetch_all([Wanted(server.url("captions-00.json"))], str(tmp_path / "files"), tmp_path / "partial", changes)
    assert Path(one.uri).read_bytes() == other


def test_a_server_without_ranges_begins_anew(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cut_after, server.cuts = 100_000, 1
    assert fetched(server, tmp_path).read_bytes() == server.files["captions-00.json"]


def test_what_was_fetched_is_a_list_and_nothing_else_is(server: Server, tmp_path: Path) -> None:
    captions = {f"http://a.example/{n}.png": f"caption {n}" for n in range(5)}
    server.files["captions-00.json"] = json.dumps(captions).encode()
    server.files["captions-01.json"] = json.dumps({"http://b.example/": "another"}).encode()
    listed = tmp_path / "list.txt"
    listed.write_text(f"{server.url('captions-00.json')}\n{server.url('captions-01.json')}\n")
    settings = Settings(root=str(tmp_path / "root"), released_captions=str(listed))
    for _ in range(2):
        assert len(fetch_captions(settings, lambda *told: None)) == 2
    rows = list(UrlList((url_list_of(settings),)).read())
    assert {row.url: row.released_caption for row in rows} == captions | {"http://b.example/": "another"}
    with pytest.raises(SettingsError, match="VECLIP_RELEASED_CAPTIONS"):
        fetch_captions(Settings(root=str(tmp_path)), lambda *told: None)


def test_the_hash_of_the_list_counts(server: Server, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="another file than the list says"):
        fetched(server, tmp_path, "0" * 64)
    assert not list(tmp_path.glob("files/*"))
    fetched(server, tmp_path, hashlib.sha256(server.files["captions-00.json"]).hexdigest())


def test_lists_and_files_that_are_not_there(server: Server, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="is the list right"):
        fetch_all([Wanted(server.url("none.json"))], str(tmp_path / "files"), tmp_path / "partial")
    with pytest.raises(FetchError, match="no list of files"):
        read_list(str(tmp_path / "none.txt"))
    listed = tmp_path / "list.txt"
    listed.write_text(
        f"# ten files\nhttps://a.example/x/wit_300m-00-of-10.json\nhttps://a.example/y/b.json {'A' * 64}\n"
    )
    assert [(one.name, one.sha256) for one in read_list(str(listed))] == [
        ("wit_300m-00-of-10.json", None),
        ("b.json", "a" * 64),
    ]
    for text in ("", "https://a.example/x.json\nhttps://b.example/x.json\n", "https://a.example/\n", "https://a.example/x abc\n",
                 "https://a.example/%2e%2e%2fx\n"):  # fmt: skip
        listed.write_text(text)
        with pytest.raises(FetchError, match="an address a line"):
            read_list(str(listed))


KILLED = """
import os, signal, sys
from pathlib import Path
from veclip_core import storage
from veclip_core.sources import released_files

url, folder, partial, dies = sys.argv[1:]
released_files.BLOCK_BYTES = 50_000

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if dies == "before_marker":
    write_json = storage.write_json
    storage.write_json = lambda uri, value: die() if ".fetched/" in uri else write_json(uri, value)
on_bytes = lambda name, done, whole: done >= 200_000 and dies == "reading" and die()
print(released_files.fetch_all([released_files.Wanted(url)], folder, Path(partial), on_bytes)[0].sha256)
"""


def test_a_killed_fetch_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    def run(dies: str) -> "subprocess.CompletedProcess[str]":
        arguments = [server.url("captions-00.json"), str(tmp_path / "files"), str(tmp_path / "partial"), dies]
        command = [sys.executable, "-c", KILLED, *arguments]
        return subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)

    assert run("reading").returncode == -9
    assert not list(tmp_path.glob("files/*")), "no half of a file under its name"
    part = (tmp_path / "partial" / "captions-00.json.part").stat().st_size
    assert part >= 150_000, "the last block may still have been in memory"
    server.served, server.asked = 0, []
    assert run("before_marker").returncode == -9
    assert server.asked[0] == f"bytes={part}-{part + 49_999}"
    assert server.served == SIZE - part
    done = run("")
    assert done.stdout.strip() == hashlib.sha256(server.files["captions-00.json"]).hexdigest(), done.stderr
    assert (tmp_path / "files" / "captions-00.json").read_bytes() == server.files["captions-00.json"]
    assert not list((tmp_path / "partial").glob("*.part"))
    served = server.served
    assert run("").stdout == done.stdout
    assert server.served == served, "nothing is done twice"
