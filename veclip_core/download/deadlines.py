"""Ends fetches at their deadline, whatever the server does, and a process whose shard does not end."""

import faulthandler
import heapq
import itertools
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

log = logging.getLogger(__name__)


@dataclass
class Request:
    """A fetch under way: what the watchdog needs to end it. `overdue` says that it was ended."""

    deadline: float = math.inf
    sock: socket.socket | None = None
    overdue: bool = False


class Watchdog:
    """Ends fetches at their deadline by shutting their sockets down.

    A socket's timeout bounds one wait; a server that sends a byte of its headers every few seconds never trips it. One thread
    looks after all fetches of the process.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Request]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="fetch deadlines", daemon=True)
        self._thread.start()

    def watch(self, request: Request) -> None:
        with self._changed:
            heapq.heappush(self._heap, (request.deadline, next(self._numbers), request))
            if self._heap[0][2] is request:
                self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        with self._changed:
            while not self._stopped:
                now = time.monotonic()
                while self._heap and self._heap[0][0] <= now:
                    _end(heapq.heappop(self._heap)[2])
                self._changed.wait(self._heap[0][0] - now if self._heap else None)


def _end(request: Request) -> None:
    request.overdue = True
    sock = request.sock
    if sock is not None:
        try:
            # Not SSLSocket's own shutdown, which would pull the TLS state from under the reading thread.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        except OSError:
            return  # closed already: nothing to end


@contextmanager
def killed_after(seconds: float, what: str) -> Iterator[None]:
    """End this process if the with block is not over in time.

    The last resort against a library that waits for ever where no deadline reaches (a resolver, a decoder): whoever runs worker
    processes takes it for a dead worker, tries the shard again, and sets it aside in the end.
    """

    def kill() -> None:
        log.critical("%s did not end within %.0f s: this worker ends itself", what, seconds)
        faulthandler.dump_traceback(sys.stderr)
        os.kill(os.getpid(), signal.SIGKILL)

    timer = threading.Timer(seconds, kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
