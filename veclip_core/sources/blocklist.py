"""Domains that are never asked: a list of them, one a line, as they are published for parental control and against advertising."""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from veclip_core.config import digest_of
from veclip_core.mendable import Mendable
from veclip_core.sources.compressed import open_text_list


class BlocklistError(Mendable):
    """The list can't be read; the message says how to mend that."""


@dataclass(frozen=True)
class Blocklist:
    """Domains, lower case and in ASCII; all below one are blocked with it."""

    domains: frozenset[str] = frozenset()

    def blocks(self, canonical_url: str) -> bool:
        pieces = (urlsplit(canonical_url).hostname or "").split(".")
        return any(".".join(pieces[start:]) in self.domains for start in range(len(pieces)))

    @property
    def digest(self) -> str:
        return digest_of(sorted(self.domains))


def read_blocklist(uri: str) -> Blocklist:
    """A text file, local or remote, plain or compressed: a domain a line, or a hosts file; `#` begins a remark.

    Raises:
        BlocklistError: when it is not there, or a line is no domain.
    """
    try:
        with open_text_list(uri) as file:
            return Blocklist(frozenset(_domains(uri, file)))
    except OSError as error:
        raise BlocklistError(
            f"no list of blocked domains at {uri} ({error}): VECLIP_BLOCKED_DOMAINS names one"
        ) from error


def _domains(uri: str, lines: Iterator[str]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        for word in words[1:] if _is_address(words[0]) else words:
            domain = domain_of(word)
            if domain is None:
                raise BlocklistError(f"{uri}, line {number}: {line.strip()[:80]!r} is no domain; a list has one a line")
            yield domain


def _is_address(word: str) -> bool:
    try:
        ipaddress.ip_address(word)
    except ValueError:
        return False
    return True


def domain_of(text: str) -> str | None:
    """A domain in lower case and in ASCII, or None for what is none."""
    try:
        domain = text.lower().strip(".").encode("idna").decode()
    except UnicodeError:
        return None
    return domain if domain and set(domain) <= set("abcdefghijklmnopqrstuvwxyz0123456789-._") else None
