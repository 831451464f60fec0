"""What is to be left out of everything made from now on: pictures and texts whose owners, or the law, want them gone.

A list names URLs, domains, or ids. Manifests made with it have no row of them (`removed`, counted); `veclip remove` also takes
their pictures and texts out of what is stored.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from veclip_core.config import digest_of
from veclip_core.mendable import Mendable
from veclip_core.samples import ID_HEX_CHARS, canonical_url, url_id
from veclip_core.sources.blocklist import Blocklist, domain_of
from veclip_core.sources.compressed import open_text_list

REMOVED = "removed"
"""The reason of such a row."""
_ID = re.compile(f"[0-9a-f]{{{ID_HEX_CHARS}}}")


class RemovalsError(Mendable):
    """The list can't be read; the message says how to mend that."""


@dataclass(frozen=True)
class Removals:
    """What a list names."""

    ids: frozenset[str] = frozenset()
    """Of URLs and of samples: both are hashes, and no one is also the other."""
    domains: Blocklist = field(default_factory=Blocklist)

    def __bool__(self) -> bool:
        return bool(self.ids or self.domains.domains)

    @property
    def digest(self) -> str:
        return digest_of([sorted(self.ids), self.domains.digest])

    def url_ids(self, downloads: pa.Table) -> set[str]:
        """The url_ids of a download table's URLs that are named."""
        named = {one for one in downloads["url_id"].to_pylist() if one in self.ids}
        if self.domains.domains:
            rows = zip(downloads["url_id"].to_pylist(), downloads["url"].to_pylist(), strict=True)
            named |= {of_url for of_url, url in rows if self.domains.blocks(url)}
        return named

    def mask(self, samples: pa.Table, downloads: pa.Table) -> np.ndarray:
        """Which rows of a table of samples are named, by their own id or their URL's; bool (N,)."""
        if not self:
            return np.zeros(samples.num_rows, bool)
        by_url = pc.is_in(samples["url_id"], value_set=pa.array(sorted(self.url_ids(downloads)), pa.string()))
        by_sample = pc.is_in(samples["sample_id"], value_set=pa.array(sorted(self.ids), pa.string()))
        return np.asarray(pc.or_(by_url, by_sample))


def read_removals(uri: str) -> Removals:
    """A text file, local or remote, plain or compressed, with a URL, a domain, a url_id or a sample_id a line; `#` begins a remark.

    Raises:
        RemovalsError: when it is not there, or a line is none of these.
    """
    ids, domains = set[str](), set[str]()
    try:
        with open_text_list(uri) as file:
            for number, word in _words(file):
                if _ID.fullmatch(word.lower()):
                    ids.add(word.lower())
                elif "://" in word:
                    ids.add(_id_of(word, f"{uri}, line {number}"))
                elif (domain := domain_of(word)) is not None:
                    domains.add(domain)
                else:
                    raise RemovalsError(f"{uri}, line {number}: {word[:80]!r} is no URL, no domain and no id")
    except OSError as error:
        raise RemovalsError(f"no list of removals at {uri} ({error})") from error
    return Removals(frozenset(ids), Blocklist(frozenset(domains)))


def _id_of(url: str, where: str) -> str:
    try:
        return url_id(canonical_url(url))
    except ValueError as error:
        raise RemovalsError(f"{where}: {url[:80]!r} is no URL ({error})") from error


def _words(lines: Iterator[str]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines, 1):
        if (word := line.strip()) and not word.startswith("#"):
            yield number, word
