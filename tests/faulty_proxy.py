"""A proxy in front of a server on loopback that fails as networks and servers do: lost replies, cut bodies, silence."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

from tests.object_store import ObjectStore

Fault = Literal["", "lose_reply", "cut_body", "hang", "close", "slow_down"]
"""What is done to a request: nothing; it is carried out and its reply lost; half of its body is sent on, and then both
connections closed; it is never answered; it is dropped; it is answered with 503, as S3 does under load."""

BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
PASSED_ON = ("content-length", "transfer-encoding", "connection")
"""Headers of a reply that the proxy says anew."""


class FaultyProxy(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, endpoint: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(endpoint).netloc
        self.choose: Callable[[str, str], Fault] = lambda method, path: ""
        """The fault of a request, by its method and path."""
        self.faults: list[str] = []
        """Paths of the requests that met one."""
        self.over = threading.Event()

    def once_each(self, method: str, fault: Fault, ending: str = "") -> None:
        """From now on the first request of a method to each path that ends so meets a fault."""
        met = set[str]()

        def choose(of: str, path: str) -> Fault:
            if of != method or path in met or not path.endswith(ending):
                return ""
            met.add(path)
            return fault

        self.choose = choose

    def handle_error(self, *_: Any) -> None:
        return  # a client that was killed


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        fault = self.server.choose(self.command, path)
        if fault:
            self.server.faults.append(path)
            self.close_connection = True
        if fault == "hang":
            self.server.over.wait()
        if fault in ("hang", "close"):
            return
        if fault == "slow_down":
            self._reply(503, "Slow Down", [("Content-Type", "application/xml")], BUSY)
            return
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(body[: len(body) // 2] if fault == "cut_body" else body)
            if fault == "cut_body":
                return
            reply = upstream.getresponse()
            content = reply.read()
        finally:
            upstream.close()
        if not fault:
            headers = [(name, value) for name, value in reply.getheaders() if name.lower() not in PASSED_ON]
            length = reply.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            self._reply(reply.status, reply.reason, [*headers, ("Content-Length", length or "0")], content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass

    def _reply(self, status: int, reason: str, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status, reason)
        for name, value in headers:
            self.send_header(name, value)
        if not any(name == "Content-Length" for name, _ in headers):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def proxy_before(endpoint: str) -> Iterator[FaultyProxy]:
    """Serving, without a fault yet."""
    proxy = FaultyProxy(endpoint)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.over.set()
        proxy.shutdown()
        proxy.server_close()


@contextmanager
def faulty_proxy(store: ObjectStore) -> Iterator[tuple[FaultyProxy, ObjectStore]]:
    """The proxy, without a fault yet, and the store as it is seen through it."""
    with proxy_before(store.endpoint) as proxy:
        endpoint = f"http://127.0.0.1:{proxy.server_port}"
        yield proxy, replace(store, endpoint=endpoint, environment={**store.environment, "AWS_ENDPOINT_URL": endpoint})
