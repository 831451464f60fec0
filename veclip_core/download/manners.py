"""What a host is spared: a few fetches at a time, a pause between them, and whatever its robots.txt asks us to leave alone.

Of one worker process: several workers that meet the same host add up. Hosts that were allowed by name are one's own and are asked
as fast as they answer; their robots.txt counts all the same.
"""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from veclip_core.download.refused import Refused
from veclip_core.download.robots import allowed, crawl_delay, rules_about

MEMORY_BYTES = 64_000_000
"""Of hosts remembered, with their rules; what has not been asked for longest is forgotten."""
HOST_BYTES = 1_000
"""What remembering one takes besides its rules."""
MAX_PAUSE_S = 10.0
"""Of a robots.txt's Crawl-delay: more is taken for this much."""
RULES_FOR_S = 24 * 3600.0
"""How long a robots.txt may be relied on (RFC 9309, 2.4)."""
FAILURE_FOR_S = 60.0
"""How long a host whose robots.txt could not be had is left alone."""
NO_RULES = frozenset({
    "http_401", "http_403", "http_404", "http_410", "http_429", "http_4xx", "http_3xx", "http_2xx", "empty", "bad_redirect",
    "too_many_redirects",
})  # fmt: skip
"""Why a robots.txt was not had that mean there is none (RFC 9309, 2.3.1.3). Any other means that the host is not to be asked."""
OF_THE_HOST = frozenset({"dns", "refused", "reset", "timeout", "unreachable", "tls", "forbidden_address", "bad_url"})
"""Reasons that a picture there would have had as well."""
BUSY = "host_busy"
"""The reason of a URL whose turn at its host did not come."""
DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass
class _Host:
    slots: threading.Semaphore
    lock: threading.Lock = field(default_factory=threading.Lock)
    next_start: float = 0.0
    known_until: float = 0.0
    """When its robots.txt is to be asked for again."""
    rules: str = ""
    refusal: str | None = None
    """Why the host is not to be asked at all."""


class Manners:
    """Who may be asked when."""

    def __init__(
        self,
        connections: int,
        pause_s: float,
        robots_token: str | None,
        read_robots: Callable[[str], bytes],
        own_hosts: frozenset[str] = frozenset(),
    ) -> None:
        """
        Args:
            connections: fetches under way at one host.
            pause_s: between the starts of two.
            robots_token: the name by which robots.txt may address us; None to ask for none.
            read_robots: fetches a robots.txt, and raises Refused.
            own_hosts: `host:port` without limits.
        """
        self._connections, self._pause_s, self._token = connections, pause_s, robots_token
        self._read_robots, self._own = read_robots, own_hosts
        self._hosts: OrderedDict[tuple[str, str], _Host] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @contextmanager
    def turn(self, url: str, until: float) -> Iterator[None]:
        """Wait for the host's turn, and hold it for the with block.

        Raises:
            Refused: `robots` when its robots.txt says no, the reason why that can't be had, or `host_busy` at `until`.
        """
        parts = urlsplit(url)
        host = self._host(parts[:2])
        own = f"{parts.hostname}:{parts.port or DEFAULT_PORTS.get(parts.scheme)}" in self._own
        if not own and not host.slots.acquire(timeout=_wait(until)):
            raise Refused(BUSY, final=True)
        try:
            if self._token is not None:
                self._obey_robots(host, url)
            if not own:
                self._pause(host, until)
            yield
        finally:
            if not own:
                host.slots.release()

    def _host(self, origin: tuple[str, str]) -> _Host:
        with self._lock:
            host = self._hosts.pop(origin, None)
            if host is None:
                host = _Host(threading.Semaphore(self._connections))
                self._bytes += HOST_BYTES
            self._hosts[origin] = host
            while self._bytes > MEMORY_BYTES and len(self._hosts) > 1:
                _, forgotten = self._hosts.popitem(last=False)
                self._bytes -= HOST_BYTES + len(forgotten.rules)
            return host

    def _obey_robots(self, host: _Host, url: str) -> None:
        with host.lock:
            if time.monotonic() >= host.known_until:
                rules, host.refusal = self._robots(url)
                with self._lock:
                    self._bytes += len(rules) - len(host.rules)
                    host.rules = rules
                host.known_until = time.monotonic() + (FAILURE_FOR_S if host.refusal else RULES_FOR_S)
        if host.refusal is not None:
            raise Refused(host.refusal, final=True)
        if not allowed(host.rules, url):
            raise Refused("robots", final=True)

    def _robots(self, url: str) -> tuple[str, str | None]:
        """The host's rules about us, or why it is not to be asked."""
        parts = urlsplit(url)
        try:
            text = self._read_robots(f"{parts.scheme}://{parts.netloc}/robots.txt")
        except Refused as refused:
            if refused.reason in NO_RULES:
                return "", None
            return "", refused.reason if refused.reason in OF_THE_HOST else f"robots_{refused.reason}"
        return rules_about(text.decode("utf-8", "replace"), str(self._token)), None

    def _pause(self, host: _Host, until: float) -> None:
        pause = max(self._pause_s, min(crawl_delay(host.rules), MAX_PAUSE_S))
        if not pause:
            return
        with host.lock:
            start = max(time.monotonic(), host.next_start)
            if start > until:
                raise Refused(BUSY, final=True)
            host.next_start = start + pause
        time.sleep(max(0.0, start - time.monotonic()))


def _wait(until: float) -> float | None:
    return None if math.isinf(until) else max(0.0, until - time.monotonic())
