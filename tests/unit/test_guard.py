"""Who may be asked and how much may be taken, against real sockets on loopback."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from veclip_core.download.guard import Fetcher, Limits, is_public
from veclip_core.download.refused import Refused

# Far longer than any answer takes, also on a busy machine; the tests of the deadlines set their own.
LIMITS = Limits(max_bytes=1_000, timeout_s=30.0, deadline_s=60.0, retries=0, user_agent="test", backoff_s=0.01)
Answer = Callable[[socket.socket, int], None]


@contextmanager
def server(answer: Answer) -> Iterator[tuple[str, list[bytes]]]:
    """A server that reads a request and calls `answer(socket, number of the request)`; its origin and the requests seen."""
    seen: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(client: socket.socket) -> None:
        with client:
            try:
                while request := client.recv(65_536):
                    seen.append(request)
                    answer(client, len(seen))
            except OSError:
                return  # the client went away, as many of these tests want

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", seen
    finally:
        listener.close()


@contextmanager
def fetcher(host: str = "", **changes: object) -> Iterator[Fetcher]:
    one = Fetcher(replace(LIMITS, **({"allowed_hosts": frozenset({host})} | changes)))  # type: ignore[arg-type]
    try:
        yield one
    finally:
        one.close()


def reply(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def reason_of(answer: Answer, **changes: object) -> str:
    with server(answer) as (host, _), fetcher(host, **changes) as one, pytest.raises(Refused) as refused:
        one.fetch(f"http://{host}/x")
    return refused.value.reason


def sends(data: bytes, *, then_close: bool = False) -> Answer:
    def answer(client: socket.socket, number: int) -> None:
        client.sendall(data)
        if then_close:
            client.shutdown(socket.SHUT_RDWR)

    return answer


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "::1",
     "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::a00:1", "2002:7f00:1::"],
)  # fmt: skip
def test_these_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_these_are(address: str) -> None:
    assert is_public(address)


def test_a_server_here_is_asked_only_when_allowed_by_name_and_port() -> None:
    with server(sends(reply(b"hello"))) as (host, seen):
        with fetcher(host) as one:
            assert one.fetch(f"http://{host}/x") == b"hello"
        assert len(seen) == 1
        for allowed in ("", "127.0.0.1:1", "127.0.0.1"):
            with fetcher(allowed) as one, pytest.raises(Refused, match="forbidden_address"):
                one.fetch(f"http://{host}/x")
        port = host.partition(":")[2]
        spellings = [
            f"http://localhost:{port}/",
            f"http://[::1]:{port}/",
            f"http://2130706433:{port}/",
            f"http://0x7f.1:{port}/",
        ]
        for url in spellings:  # the same machine under names that were not allowed
            with fetcher(host) as one, pytest.raises(Refused, match=r"forbidden_address|dns"):
                one.fetch(url)
        assert len(seen) == 1


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "file:///etc/passwd", "gopher://127.0.0.1/", "http:///x"])
def test_only_http(url: str) -> None:
    with fetcher() as one, pytest.raises(Refused, match="bad_url"):
        one.fetch(url)


def test_a_redirect_is_followed_and_checked_like_any_url() -> None:
    def answer(client: socket.socket, number: int) -> None:
        client.sendall(reply(b"", "302 Found", "Location: /there?a=b") if number == 1 else reply(b"arrived"))

    with server(answer) as (host, seen), fetcher(host) as one:
        assert one.fetch(f"http://{host}/here") == b"arrived"
        assert seen[1].startswith(b"GET /there?a=b HTTP/1.1\r\n")
    with server(sends(reply(b"secret"))) as (private, seen):
        assert reason_of(sends(reply(b"", "302 Found", f"Location: http://{private}/"))) == "forbidden_address"
        assert not seen
    assert reason_of(sends(reply(b"", "301 Moved", "Location: file:///etc/passwd"))) == "bad_redirect"
    assert reason_of(sends(reply(b"", "301 Moved", "Location: /again"))) == "too_many_redirects"


@pytest.mark.parametrize(
    ("status", "reason"),
    [("404 Not Found", "http_404"), ("410 Gone", "http_410"), ("403 Forbidden", "http_403"), ("418 Teapot", "http_4xx"),
     ("500 Oops", "http_5xx"), ("503 Busy", "http_5xx"), ("429 Slow", "http_429"), ("204 No Content", "http_2xx")],
)  # fmt: skip
def test_status(status: str, reason: str) -> None:
    assert reason_of(sends(reply(b"", status))) == reason


def test_bytes_are_bounded_said_or_unsaid() -> None:
    assert reason_of(sends(reply(b"x" * 1_001))) == "too_large"
    endless = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"200\r\n" + b"x" * 512 + b"\r\n"

    def drown(client: socket.socket, number: int) -> None:
        client.sendall(endless)
        while True:
            client.sendall(b"200\r\n" + b"x" * 512 + b"\r\n")

    assert reason_of(drown) == "too_large"


def test_what_servers_do_wrong() -> None:
    assert reason_of(sends(reply(b"x" * 100)[:-50], then_close=True)) == "truncated"
    assert (
        reason_of(sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nxx", then_close=True))
        == "truncated"
    )
    assert reason_of(sends(reply(b""))) == "empty"
    assert reason_of(sends(b"", then_close=True)) == "reset"
    assert reason_of(sends(b"SSH-2.0-OpenSSH_9.2\r\n")) == "reset"
    assert reason_of(sends(b"HTTP/1.1 200 OK\r\n" + b"X-Many: x\r\n" * 1_000 + b"\r\n")) == "bad_http"
    assert reason_of(sends(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n")) == "bad_http"


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        host = f"127.0.0.1:{gone.getsockname()[1]}"
    with fetcher(host) as one, pytest.raises(Refused, match="refused"):
        one.fetch(f"http://{host}/x")
    with fetcher(host) as one, pytest.raises(Refused, match="dns"):
        one.fetch("http://no-such-host.invalid/x")
    with (
        server(sends(b"not TLS at all\r\n\r\n")) as (host, _),
        fetcher(host) as one,
        pytest.raises(Refused, match="tls"),
    ):
        one.fetch(f"https://{host}/x")


def drips(head: bytes) -> Answer:
    """`head`, then one byte every 50 ms: each wait is far below the timeout, and the whole never ends."""

    def answer(client: socket.socket, number: int) -> None:
        client.sendall(head)
        while True:
            client.sendall(b"x")
            time.sleep(0.05)

    return answer


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-Drip: ", b""]
)
def test_a_server_that_drips_is_ended_at_the_deadline(head: bytes) -> None:
    started = time.monotonic()
    assert reason_of(drips(head), retries=5, timeout_s=0.5, deadline_s=1.0) == "timeout"
    assert time.monotonic() - started < 5.0  # every byte resets the timeout: without a deadline this would not end


def test_a_silent_server_times_out() -> None:
    started = time.monotonic()
    assert reason_of(sends(b""), timeout_s=0.5) == "timeout"
    assert time.monotonic() - started < 5.0


def test_only_what_may_heal_is_tried_again() -> None:
    def answer(client: socket.socket, number: int) -> None:
        client.sendall(reply(b"", "503 Busy") if number < 3 else reply(b"healed"))

    with server(answer) as (host, seen), fetcher(host, retries=2) as one:
        assert one.fetch(f"http://{host}/x") == b"healed"
        assert len(seen) == 3
    for status, tries in (("404 Not Found", 1), ("503 Busy", 3)):
        with server(sends(reply(b"", status))) as (host, seen):
            with fetcher(host, retries=2) as one, pytest.raises(Refused):
                one.fetch(f"http://{host}/x")
            assert len(seen) == tries


def test_a_connection_is_used_again_and_replaced_when_it_went_stale() -> None:
    clients: list[socket.socket] = []
    stale = threading.Event()

    def answer(client: socket.socket, number: int) -> None:
        clients.append(client)
        client.sendall(reply(b"hello"))
        if number == 2:
            client.shutdown(socket.SHUT_RDWR)
            stale.set()

    with server(answer) as (host, _), fetcher(host) as one:
        for number in range(4):
            if number == 2:
                assert stale.wait(10)
            assert one.fetch(f"http://{host}/x") == b"hello"
    assert clients[0] is clients[1]
    assert clients[1] is not clients[2]
    assert clients[2] is clients[3]
