"""Serves the sample world over HTTP on loopback, dead links included, so that downloading it is downloading.

Only listed paths are answered: a request is looked up, never turned into a file name. Every process may open a server of its
own on the same port (the kernel shares connections out), so that none depends on another's life; a port that serves another
world, or anything else, is an error.
"""

import asyncio
import json
import logging
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

import pyarrow.parquet as pq

from veclip_core.sources.sample_packages import SampleWorldError
from veclip_core.sources.sample_world import PICTURES_PREFIX

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
_HEALTH = "/healthz"
_MAX_HEAD_BYTES = 32_768
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    410: "Gone",
    500: "Server Error",
}


class SampleServer:
    """`with SampleServer(world) as server:` answers at `server.url` from a thread until the block ends."""

    def __init__(self, world: Path) -> None:
        """`world` is the folder that `build_world` wrote. Raises SampleWorldError where it is not there."""
        file = world / "world.json"
        if not file.exists():
            raise SampleWorldError(f"No sample world in {world}: `veclip sample fetch` makes it.")
        about = json.loads(file.read_text())
        self.port: int = about["port"]
        self.digest: str = about["digest"]
        self._answers = _Answers(_listed_files(world, world / about["png_root"]), about["dead"], self.digest)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def __enter__(self) -> "SampleServer":
        self._require_free_or_ours()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sample-server", daemon=True)
        self._thread.start()
        starting = asyncio.run_coroutine_threadsafe(self._listen(), self._loop)
        try:
            self._server = starting.result()
        except OSError as error:
            self._stop_loop()
            raise SampleWorldError(self._taken(str(error))) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._stop_loop()

    def serve_forever(self) -> None:
        """Serve until interrupted: for the command line."""
        with self:
            logger.info("serving the sample world at %s", self.url)
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                logger.info("stopped")

    async def _listen(self) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        return await loop.create_server(
            lambda: _Connection(self._answers), HOST, self.port, reuse_port=True, backlog=1024
        )

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        for connection in list(self._answers.connections):
            connection.close()

    def _stop_loop(self) -> None:
        assert self._loop is not None
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _require_free_or_ours(self) -> None:
        with socket.socket() as probe:
            probe.settimeout(5)
            if probe.connect_ex((HOST, self.port)) != 0:
                return
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                self.url + _HEALTH, timeout=5
            ) as answer:
                found = json.loads(answer.read())["digest"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SampleWorldError(self._taken(f"it answers otherwise: {error}")) from error
        if found != self.digest:
            raise SampleWorldError(self._taken("it serves another sample world"))

    def _taken(self, why: str) -> str:
        return f"Port {self.port} of {HOST} is taken ({why}): end what listens there, or build the sample world with another port."


class _Answers:
    """What each path is answered with; shared by all connections."""

    def __init__(self, files: Mapping[str, Path], dead: Mapping[str, int], digest: str) -> None:
        self._files = files
        self._dead = dead
        self._health = json.dumps({"digest": digest, "pictures": len(files)}).encode()
        self.connections: set[asyncio.Transport] = set()

    def of(self, method: str, target: str) -> tuple[int, str, bytes]:
        """Status, content type, body."""
        if method not in ("GET", "HEAD"):
            return 405, "text/plain", b"GET and HEAD only\n"
        path = urlsplit(target).path
        if path in self._files:
            return 200, "image/png", self._files[path].read_bytes()
        if path == _HEALTH:
            return 200, "application/json", self._health
        status = self._dead.get(path, 404)
        return status, "text/plain", f"{_REASONS[status]}\n".encode()


class _Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, requests without body: about ten times as fast as http.server."""

    def __init__(self, answers: _Answers) -> None:
        self._answers = answers
        self._pending = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._answers.connections.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._answers.connections.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        self._pending += data
        while b"\r\n\r\n" in self._pending and not self._transport.is_closing():
            head, _, self._pending = self._pending.partition(b"\r\n\r\n")
            if len(head) > _MAX_HEAD_BYTES:
                self._send(400, "text/plain", b"request too long\n", keep=False)
            else:
                self._answer(head.decode("latin-1"))
        if len(self._pending) > _MAX_HEAD_BYTES and not self._transport.is_closing():
            self._send(400, "text/plain", b"request too long\n", keep=False)

    def _answer(self, head: str) -> None:
        request, *headers = head.split("\r\n")
        words = request.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            self._send(400, "text/plain", b"not an HTTP/1.1 request\n", keep=False)
            return
        wishes = {line.replace(" ", "").lower() for line in headers}
        keep = "connection:close" not in wishes and (words[2] == "HTTP/1.1" or "connection:keep-alive" in wishes)
        status, kind, body = self._answers.of(words[0], words[1])
        # A body that was not asked for would be read as the next request.
        has_body = any(
            w.startswith("transfer-encoding:") or (w.startswith("content-length:") and w != "content-length:0")
            for w in wishes
        )
        self._send(status, kind, body, keep=keep and not has_body, with_body=words[0] != "HEAD")

    def _send(self, status: int, kind: str, body: bytes, *, keep: bool, with_body: bool = True) -> None:
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            f"Connection: {'keep-alive' if keep else 'close'}\r\n\r\n"
        )
        self._transport.write(head.encode() + (body if with_body else b""))
        if not keep:
            self._transport.close()


def _listed_files(world: Path, png_root: Path) -> dict[str, Path]:
    """Path of the URL -> file, for every picture of the list; dead links have no file here."""
    dead = json.loads((world / "world.json").read_text())["dead"]
    urls = pq.read_table(world / "urls.parquet", columns=["url"], use_threads=False, pre_buffer=False)[
        "url"
    ].to_pylist()
    paths = {urlsplit(url).path for url in urls} - set(dead)
    return {path: png_root / unquote(path.removeprefix(PICTURES_PREFIX)) for path in paths}
