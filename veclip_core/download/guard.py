"""Who may be asked, and how much may be taken: one guarded GET.

A URL list is written by strangers. So a fetch goes only to http(s) servers at public addresses, checked on the very address
that is connected to (a name that resolves to 10.0.0.1, or a redirect to it, gets nowhere), takes at most so many bytes and at
most so much time in all, and is tried again only for what may heal.

Every failure is a `Refused` with a reason of a small vocabulary; nothing else leaves `fetch`.
"""

import http.client
import ipaddress
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from urllib.parse import SplitResult, urljoin, urlsplit

from veclip_core.download.deadlines import Request, Watchdog
from veclip_core.download.manners import DEFAULT_PORTS, Manners
from veclip_core.download.refused import Refused
from veclip_core.samples import canonical_url
from veclip_core.sources.blocklist import Blocklist

MAY_HEAL = frozenset({"timeout", "reset", "http_429", "http_5xx", "truncated"})
"""Reasons worth another try. A missing file, a refused connection or a wrong certificate stays one for the length of a run."""
REDIRECTS = 5
READ_BYTES = 1 << 16
NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class Limits:
    """What one URL may cost."""

    max_bytes: int
    timeout_s: float
    """For a single wait: to connect, or for the next bytes."""
    deadline_s: float
    """For the URL as a whole: redirects, retries and a server that drips included."""
    retries: int
    """Further tries for what may heal, with a pause that doubles from `backoff_s`."""
    user_agent: str
    allowed_hosts: frozenset[str] = frozenset()
    """`host:port` that may be asked although their addresses are not public, such as a server on this machine."""
    backoff_s: float = 0.25
    host_connections: int = 4
    """Fetches under way at one host, but for those of `allowed_hosts`."""
    host_pause_s: float = 0.0
    """Between the starts of two of them; a robots.txt may ask for more."""
    robots_token: str | None = None
    """The name by which a robots.txt may address us; None to ask for none."""


ROBOTS_BYTES = 512_000
"""What is read of a robots.txt at most (RFC 9309 asks for 500 KiB)."""
ROBOTS_DEADLINE_S = 10.0


class _Connection(http.client.HTTPConnection):
    """Speaks HTTP over a socket it is given, and never opens one by itself: it would resolve the name again, unguarded."""

    auto_open = 0


class Fetcher:
    """Fetches URLs under `limits`, from many threads; each thread keeps its last connection open for the next URL there."""

    def __init__(
        self,
        limits: Limits,
        on_headers: Callable[[Message], None] | None = None,
        blocked: Blocklist | None = None,
    ) -> None:
        """
        Args:
            on_headers: sees a good answer's headers before the body is read, and may raise `Refused`.
            blocked: domains that are not asked, wherever a redirect leads.
        """
        self._limits = limits
        self._blocked = blocked or Blocklist()
        self._on_headers = on_headers
        self._manners = Manners(
            limits.host_connections, limits.host_pause_s, limits.robots_token, self._read_robots, limits.allowed_hosts
        )
        self._watchdog = Watchdog()
        self._tls = ssl.create_default_context()
        self._local = threading.local()

    def close(self) -> None:
        self._watchdog.close()

    def fetch(self, url: str, until: float = math.inf, patience_s: float = math.inf) -> bytes:
        """The body at `url`. Its own deadline counts from its turn at the host, and never runs beyond `until` (monotonic seconds).

        Args:
            patience_s: how long to wait for that turn.

        Raises:
            Refused: with the reason; `no_time` when `until` has come before anything was asked.
        """
        if time.monotonic() >= until:
            raise Refused("no_time")
        request = Request()
        try:
            for attempt in range(self._limits.retries + 1):
                try:
                    return self._follow(url, request, until, patience_s)
                except Refused as refused:
                    pause = self._limits.backoff_s * 2**attempt
                    last = attempt == self._limits.retries
                    if (
                        last
                        or refused.final
                        or refused.reason not in MAY_HEAL
                        or time.monotonic() + pause >= request.deadline
                    ):
                        raise
                    time.sleep(pause)
            raise AssertionError("unreachable: the last attempt returns or raises")
        finally:
            request.sock = None

    def _follow(self, url: str, request: Request, until: float, patience_s: float) -> bytes:
        for _ in range(REDIRECTS + 1):
            if self._blocked.domains and self._blocked.blocks(url):
                raise Refused("blocked_domain")
            with self._manners.turn(url, min(request.deadline, until, time.monotonic() + patience_s)):
                if request.deadline == math.inf:
                    request.deadline = min(time.monotonic() + self._limits.deadline_s, until)
                    self._watchdog.watch(request)
                body, location = self._get(url, request, self._limits.max_bytes, self._on_headers)
            if location is None:
                return body
            url = _redirected(url, location)
        raise Refused("too_many_redirects")

    def _read_robots(self, url: str) -> bytes:
        """A robots.txt, wherever it redirects to, or its beginning; tried again as pictures are."""
        for attempt in range(self._limits.retries + 1):
            request = Request(time.monotonic() + min(ROBOTS_DEADLINE_S, self._limits.deadline_s))
            self._watchdog.watch(request)
            try:
                return self._read_robots_once(url, request)
            except Refused as refused:
                if attempt == self._limits.retries or refused.reason not in MAY_HEAL:
                    raise
                time.sleep(self._limits.backoff_s * 2**attempt)
            finally:
                request.sock = None
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _read_robots_once(self, url: str, request: Request) -> bytes:
        for _ in range(REDIRECTS + 1):
            body, location = self._get(url, request, ROBOTS_BYTES, cut=True)
            if location is None:
                return body
            url = _redirected(url, location)
            if self._blocked.domains and self._blocked.blocks(url):
                raise Refused("blocked_domain")
        raise Refused("too_many_redirects")

    def _get(
        self,
        url: str,
        request: Request,
        max_bytes: int,
        on_headers: Callable[[Message], None] | None = None,
        *,
        cut: bool = False,
    ) -> tuple[bytes, str | None]:
        """One GET: the body, or where it redirects to."""
        parts = urlsplit(url)
        if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
            raise Refused("bad_url")
        with _reasons_of_errors(request):
            connection, response = self._answer(parts, request)
            keep = False
            try:
                if response.status in (301, 302, 303, 307, 308) and response.getheader("Location"):
                    return b"", response.getheader("Location")
                if response.status != 200:
                    raise Refused(_reason_of_status(response.status))
                if on_headers is not None:
                    on_headers(response.headers)
                body = self._read(response, request, max_bytes, cut)
                keep = not response.will_close and not (cut and len(body) == max_bytes)
                return body, None
            finally:
                response.close()
                if keep:
                    self._local.origin, self._local.connection = parts[:2], connection
                else:
                    connection.close()

    def _answer(
        self, parts: SplitResult, request: Request
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        headers = {"User-Agent": self._limits.user_agent, "Accept": "image/*,*/*;q=0.5"}
        kept = self._kept(parts[:2])
        if kept is not None:
            request.sock = kept.sock
            _require_time(request)
            try:
                kept.request("GET", target, headers=headers)
                return kept, kept.getresponse()
            except (http.client.BadStatusLine, http.client.NotConnected, ConnectionError):
                kept.close()  # the server had closed it meanwhile, as it may: ask again on a new one
        connection = self._connect(parts, request)
        try:
            _require_time(request)
            connection.request("GET", target, headers=headers)
            return connection, connection.getresponse()
        except BaseException:
            connection.close()
            raise

    def _kept(self, origin: tuple[str, str]) -> http.client.HTTPConnection | None:
        connection = getattr(self._local, "connection", None)
        self._local.connection = None
        if connection is not None and self._local.origin != origin:
            connection.close()
            return None
        return connection

    def _connect(self, parts: SplitResult, request: Request) -> http.client.HTTPConnection:
        host, port = str(parts.hostname), parts.port or DEFAULT_PORTS[parts.scheme]
        sock = self._open_socket(host, port, request)
        try:
            if parts.scheme == "https":
                sock = self._tls.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
                request.sock = sock
                sock.do_handshake()
        except BaseException:
            sock.close()
            raise
        connection = _Connection(host, port)
        if parts.scheme == "https":
            connection.default_port = DEFAULT_PORTS["https"]  # what the Host header leaves out
        connection.sock = sock
        return connection

    def _open_socket(self, host: str, port: int, request: Request) -> socket.socket:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        if f"{host}:{port}" not in self._limits.allowed_hosts:
            found = [info for info in found if is_public(str(info[4][0]))]
        if not found:
            raise Refused("forbidden_address")
        problem: OSError | None = None
        for family, kind, protocol, _, address in found:
            if request.overdue:
                raise Refused("timeout")
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(min(self._limits.timeout_s, max(0.01, request.deadline - time.monotonic())))
                sock.connect(address)
                sock.settimeout(self._limits.timeout_s)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                request.sock = sock
                return sock
            except OSError as error:
                sock.close()
                problem = error
        assert problem is not None
        raise problem

    def _read(self, response: http.client.HTTPResponse, request: Request, max_bytes: int, cut: bool) -> bytes:
        """The body; of a longer one than `max_bytes` nothing, or its beginning where it may be `cut`."""
        expected = response.length
        if expected is not None and expected > max_bytes and not cut:
            raise Refused("too_large")
        pieces, size = [], 0
        while piece := response.read1(READ_BYTES):
            pieces.append(piece)
            size += len(piece)
            if size > max_bytes and cut:
                return b"".join(pieces)[:max_bytes]
            if size > max_bytes:
                raise Refused("too_large")
        if request.overdue:
            raise Refused("timeout")
        if expected is not None and size < expected:
            raise Refused("truncated")
        if not size:
            raise Refused("empty")
        return b"".join(pieces)


def _require_time(request: Request) -> None:
    """The watchdog ends a request once. What gets its socket after that has to look for itself."""
    if request.overdue or time.monotonic() >= request.deadline:
        raise Refused("timeout")


def _redirected(url: str, location: str) -> str:
    try:
        return canonical_url(urljoin(url, location))
    except ValueError as error:
        raise Refused("bad_redirect") from error


def is_public(address: str) -> bool:
    """True for an address of the public internet. IPv6 forms that carry an IPv4 address are judged by that one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def _reason_of_status(status: int) -> str:
    if status >= 500:
        return "http_5xx"
    return f"http_{status}" if status in (401, 403, 404, 410, 429) else f"http_{status // 100}xx"


@contextmanager
def _reasons_of_errors(request: Request) -> Iterator[None]:
    """Whatever sockets, TLS and HTTP raise, as a reason. A fetch that is past its deadline timed out, whatever it looks like."""
    try:
        yield
    except Refused as refused:
        if request.overdue and refused.reason != "timeout":
            raise Refused("timeout") from refused
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Refused("timeout" if request.overdue else _reason_of(error)) from error


def _reason_of(error: Exception) -> str:
    match error:
        case socket.gaierror() | UnicodeError():
            return "dns"
        case TimeoutError():
            return "timeout"
        case ConnectionRefusedError():
            return "refused"
        case ssl.SSLError():
            return "tls"
        case http.client.IncompleteRead():
            return "truncated"
        case http.client.BadStatusLine() | ConnectionError():  # RemoteDisconnected is both
            return "reset"
        case http.client.HTTPException() | ValueError():
            return "bad_http"
        case _:
            return "unreachable"
