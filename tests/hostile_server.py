"""A web server on loopback that does what the worst of the web's do, each under a path of its own, and serves good pictures too."""

import gzip
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress

from tests.servers import running

MAX_BYTES = 200_000
"""Of a file; the endless and the huge are beyond it."""
GIVE_UP_S = 30.0
"""When a connection that never ends does, should nobody end it."""

Answer = Callable[[socket.socket], None]


def reply(body: bytes, *headers: str, status: str = "200 OK", length: int | str | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Connection: close", *headers]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def moved(to: str) -> bytes:
    return reply(b"", f"Location: {to}", status="302 Found")


def forever(head: bytes, again: bytes, every_s: float = 0.0) -> Answer:
    def answer(client: socket.socket) -> None:
        client.sendall(head)
        until = time.monotonic() + GIVE_UP_S
        while time.monotonic() < until:
            client.sendall(again)
            time.sleep(every_s)

    return answer


def silent(client: socket.socket) -> None:
    client.recv(1)  # until the other side goes


OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def answers(picture: bytes, origin: str, secret: str) -> dict[str, tuple[bytes | Answer, str | None]]:
    """Path -> what is answered, and the reason that the row must have (None: a picture)."""
    bomb = gzip.compress(bytes(50_000_000))
    assert len(bomb) < MAX_BYTES
    return {
        "/drip-body.jpg": (forever(OK + b"Content-Length: 90000\r\n\r\n", b"\xff", 0.05), "timeout"),
        "/drip-head.jpg": (forever(OK + b"X-Drip: ", b"x", 0.05), "timeout"),
        "/silent.jpg": (silent, "timeout"),
        "/endless.jpg": (forever(OK + b"\r\n", b"x" * 4096), "too_large"),
        "/endless-chunks.jpg": (forever(CHUNKED, b"1000\r\n" + b"x" * 4096 + b"\r\n"), "too_large"),
        "/endless-head.jpg": (forever(OK, b"X-Many: x\r\n" * 50), "bad_http"),
        "/huge.jpg": (reply(b"x" * 1000, length=10**12), "too_large"),
        "/to-private.jpg": (moved(f"http://{secret}/secret.png"), "forbidden_address"),
        "/to-metadata.jpg": (moved("http://169.254.169.254/latest/meta-data"), "forbidden_address"),
        "/to-mapped.jpg": (moved("http://[::ffff:10.0.0.1]/x.png"), "forbidden_address"),
        "/to-file.jpg": (moved("file:///etc/passwd"), "bad_redirect"),
        "/loop.jpg": (moved("/loop.jpg"), "too_many_redirects"),
        "/ping.jpg": (moved("/pong.jpg"), "too_many_redirects"),
        "/pong.jpg": (moved("/ping.jpg"), "too_many_redirects"),
        "/to-closed.jpg": (moved(f"http://{origin}/closed/1.png"), "robots"),
        "/closed/1.png": (reply(picture), "robots"),
        "/noai.png": (reply(picture, "X-Robots-Tag: noai"), "x_robots_tag"),
        "/noai-us.png": (reply(picture, "X-Robots-Tag: veclip: noimageai, noai"), "x_robots_tag"),
        "/gzip-bomb.png": (reply(bomb, "Content-Encoding: gzip", "Content-Type: image/png"), "not_an_image"),
        "/404.jpg": (reply(b"no", status="404 Not Found"), "http_404"),
        "/410.jpg": (reply(b"no", status="410 Gone"), "http_410"),
        "/429.jpg": (reply(b"no", "Retry-After: 86400", status="429 Too Many Requests"), "http_429"),
        "/500.jpg": (reply(b"no", status="500 Oops"), "http_5xx"),
        "/404-with-picture.png": (reply(picture, status="404 Not Found"), "http_404"),
        "/text-named.jpg": (reply(b"<!doctype html>" * 40, "Content-Type: image/jpeg"), "not_an_image"),
        "/closed-in-the-middle.png": (reply(picture[: len(picture) // 2], length=len(picture)), "truncated"),
        "/closed-in-a-chunk.png": (CHUNKED + b"ffff\r\n" + picture[:100], "truncated"),
        "/closed-unsaid.png": (OK + b"\r\n" + picture[: len(picture) // 2], "truncated"),
        "/length-too-small.png": (reply(picture, length=len(picture) - 10), "truncated"),
        "/length-too-large.png": (reply(picture, length=len(picture) + 10), "truncated"),
        "/length-negative.png": (reply(picture, length=-1), None),
        "/length-none.png": (reply(picture, length="many"), None),
        "/named-a-page.png": (reply(picture, "Content-Type: text/html"), None),
        "/no-http.png": (b"\x00\x01 no HTTP at all", "reset"),
        "/nothing.png": (b"", "reset"),
    }


class HostileServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.origin = f"127.0.0.1:{self.server_address[1]}"
        self.answers: dict[str, bytes | Answer] = {}
        self.once: dict[str, bytes] = {}
        """What a path answers the first time."""
        self.asked: list[str] = []
        self.lock = threading.Lock()


class _Connection(socketserver.BaseRequestHandler):
    server: HostileServer

    def handle(self) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            if not (more := self.request.recv(65_536)):
                return
            head += more
        path = head.split()[1].decode()
        with self.server.lock:
            self.server.asked.append(path)
            answer = self.server.once.pop(path, None) or self.server.answers.get(path, reply(b"", status="404 No"))
        with suppress(OSError):  # the client goes away, as it should
            if isinstance(answer, bytes):
                self.request.sendall(answer)
            else:
                answer(self.request)


def hostile_server() -> AbstractContextManager[HostileServer]:
    return running(HostileServer())
