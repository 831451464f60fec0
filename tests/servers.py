"""Servers of tests, on threads of their own, and ports for those that are processes."""

import os
import random
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

Server = TypeVar("Server", bound=socketserver.BaseServer)

# Below what Linux gives to outgoing connections, with the gRPC port that SeaweedFS takes ten thousand above each.
_PORTS, _WORKERS, _GRPC = range(12_000, 22_000), 10, 10_000
_given: set[int] = set()


def free_port() -> int:
    """One that no other server of this test run is given: each worker has ports of its own, and gives none twice."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
    own = [port for port in _PORTS[worker::_WORKERS] if port not in _given]
    for port in random.SystemRandom().sample(own, len(own)):
        _given.add(port)
        if _is_free(port) and _is_free(port + _GRPC):
            return port
    raise OSError(f"no port of {_PORTS.start} to {_PORTS.stop} is free")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """Serving until the block ends."""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
