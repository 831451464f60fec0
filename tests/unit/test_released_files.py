"""Large files by a list: gone on with after every cut, never half of one, never two mixed."""

import hashlib
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from veclip_core.sources import released_files
from veclip_core.sources.released_files import FetchError, Wanted, fetch_all, read_list

SIZE = 400_000


class Server(ThreadingHTTPServer):
    """Serves `files`; closes the connection after `cut_after` bytes of a body as long as `cuts` last."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.ranges, self.cut_after, self.cuts = True, SIZE, 0
        self.served = 0

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
        if asked and self.server.ranges:
            first, last = asked.removeprefix("bytes=").split("-")
            start, stop = int(first), min(int(last) + 1, len(data))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()[:8]}"')
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
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
    assert server.served < 2 * SIZE, "what was there is not fetched again"
    before = server.served
    fetched(server, tmp_path)
    assert server.served == before, "nothing is done twice"


def test_a_later_run_goes_on_where_an_earlier_one_gave_up(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "partial" / "captions-00.json.part"
    server.cut_after, server.cuts = 0, 100
    with pytest.raises(FetchError, match="goes on from where it is"):
        fetched(server, tmp_path)
    server.cut_after, server.cuts = 45_000, 1
    assert not list(tmp_path.glob("files/*")), "no half of a file under its name"
    fetched(server, tmp_path)
    assert not part.exists()


def test_another_file_at_the_same_address_is_not_joined_to_the_first(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "partial" / "captions-00.json.part"
    part.parent.mkdir()
    part.write_bytes(b"x" * 123_456)
    part.with_suffix(".json").write_text('{"url": "of another time"}')
    assert fetched(server, tmp_path).read_bytes() == server.files["captions-00.json"]


def test_a_server_without_ranges_begins_anew(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cut_after, server.cuts = 100_000, 1
    assert fetched(server, tmp_path).read_bytes() == server.files["captions-00.json"]


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
