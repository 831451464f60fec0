"""What a host is spared: a few fetches at a time, a pause between them, and whatever its robots.txt asks us to leave alone.

Of one worker process: several workers that meet the same host add up. Hosts that were allowed by name are one's own and are asked
as fast as they answer; their robots.txt counts all the same.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from protego import Protego

from veclip_core.download.refused import Refused

HOSTS = 50_000
"""Remembered at a time; what has not been asked for longest is forgotten."""
MAX_PAUSE_S = 10.0
"""Of a robots.txt's Crawl-delay: more is taken for this much."""
NO_RULES = frozenset({
    "http_401", "http_403", "http_404", "http_410", "http_429", "http_4xx", "http_3xx", "http_2xx", "too_large", "empty",
    "truncated", "bad_redirect", "too_many_redirects",
})  # fmt: skip
"""Why a robots.txt was not had that mean there is none (RFC 9309, 2.3.1.3). Any other means that the host is not to be asked."""


@dataclass
class _Host:
    slots: threading.Semaphore
    lock: threading.Lock = field(default_factory=threading.Lock)
    next_start: float = 0.0
    asked: bool = False
    """Whether its robots.txt has been asked for."""
    rules: Protego | None = None
    refusal: str | None = None
    """Why the host is not to be asked at all."""


class Manners:
    """Who may be asked when. `spared` origins (scheme, host:port) are held to `connections` and `pause_s`; all to robots.txt."""

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
            robots_token: the name by which robots.txt may address us; None to ask for none.
            read_robots: fetches a robots.txt, and raises Refused.
            own_hosts: `host:port` without limits.
        """
        self._connections, self._pause_s, self._token = connections, pause_s, robots_token
        self._read_robots, self._own = read_robots, own_hosts
        self._hosts: OrderedDict[tuple[str, str], _Host] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def turn(self, url: str, until: float) -> Iterator[None]:
        """Wait for the host's turn, and hold it for the with block.

        Raises:
            Refused: `robots` when its robots.txt says no, the reason why that can't be had, or `host_busy` at `until`.
        """
        parts = urlsplit(url)
        host = self._host(parts[:2])
        own = f"{parts.hostname}:{parts.port}" in self._own
        if not own and not host.slots.acquire(timeout=max(0.0, until - time.monotonic())):
            raise Refused("host_busy")
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
            host = self._hosts.pop(origin, None) or _Host(threading.Semaphore(self._connections))
            self._hosts[origin] = host
            if len(self._hosts) > HOSTS:
                self._hosts.popitem(last=False)
            return host

    def _obey_robots(self, host: _Host, url: str) -> None:
        with host.lock:
            if not host.asked:
                parts = urlsplit(url)
                try:
                    text = self._read_robots(f"{parts.scheme}://{parts.netloc}/robots.txt")
                    host.rules = Protego.parse(text.decode("utf-8", "replace"))
                except Refused as refused:
                    host.refusal = None if refused.reason in NO_RULES else refused.reason
                host.asked = True
        if host.refusal is not None:
            raise Refused("robots_5xx" if host.refusal == "http_5xx" else host.refusal)
        if host.rules is not None and not host.rules.can_fetch(url, str(self._token)):
            raise Refused("robots")

    def _pause(self, host: _Host, until: float) -> None:
        asked_for = host.rules.crawl_delay(str(self._token)) if host.rules else None
        pause = max(self._pause_s, min(asked_for or 0.0, MAX_PAUSE_S))
        if not pause:
            return
        with host.lock:
            start = max(time.monotonic(), host.next_start)
            if start > until:
                raise Refused("host_busy")
            host.next_start = start + pause
        time.sleep(max(0.0, start - time.monotonic()))
