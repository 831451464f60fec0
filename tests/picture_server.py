"""A web server on loopback with a small noisy picture at /<number>.png, each another, and nothing elsewhere."""

import io
from contextlib import AbstractContextManager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

from tests.servers import running


@cache
def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


class PictureServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.origin = f"127.0.0.1:{self.server_port}"
        self.asked: list[str] = []
        """The paths of the requests."""

    def handle_error(self, *_: Any) -> None:
        return  # a client that was killed


class _Handler(BaseHTTPRequestHandler):
    server: PictureServer

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        number = self.path.removeprefix("/").removesuffix(".png")
        body = picture(int(number)) if number.isdecimal() else b""
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return


def picture_server() -> AbstractContextManager[PictureServer]:
    return running(PictureServer())
