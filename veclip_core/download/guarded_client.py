"""An aiohttp client for large files that asks only servers at public addresses, wherever a name or a redirect leads."""

import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from veclip_core.download.guard import is_public

if TYPE_CHECKING:
    import aiohttp


class ForbiddenAddress(Exception):
    """An address inside a private network, which was not allowed. No OSError: aiohttp would try the next address, and we again."""


def guarded_client(allowed_hosts: frozenset[str]) -> "Callable[..., Awaitable[aiohttp.ClientSession]]":
    """What fsspec calls for its session. The check is of the very address that is connected to.

    Args:
        allowed_hosts: `host:port` that may be asked although their addresses are not public.
    """

    def guarded_socket(address: Any) -> socket.socket:
        family, kind, protocol, _, (ip, port, *_) = address
        if not is_public(str(ip)) and (ip, port) not in _addresses(allowed_hosts):
            raise ForbiddenAddress(
                f"{ip} is inside a private network. If you trust the server, name its host:port in VECLIP_ALLOW_HOSTS"
            )
        return socket.socket(family, kind, protocol)

    async def client(**options: Any) -> "aiohttp.ClientSession":
        import aiohttp

        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=guarded_socket), **options)

    return client


def _addresses(hosts: frozenset[str]) -> set[tuple[str, int]]:
    found = set()
    for one in hosts:
        host, _, port = one.rpartition(":")
        found |= {(str(info[4][0]), int(port)) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    return found
