"""What became of URLs, host by host: where a crawl loses its pictures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from veclip_core.samples import ShardKey
from veclip_core.shards import ShardSet

SHARDS = 100
"""Looked at, evenly spread: a million URLs of a large crawl."""
DEAD = frozenset({"dns", "refused", "http_404", "http_410"})
"""Reasons of a link that is dead, and not only hurt, guarded or slow."""


@dataclass
class Host:
    """One host's rows of the download table."""

    name: str
    urls: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Of those without a picture."""

    @property
    def ok_share(self) -> float:
        return 1 - self.reasons.total() / self.urls

    @property
    def commonest_reason(self) -> str:
        return self.reasons.most_common(1)[0][0] if self.reasons else ""


def hosts_of(downloads: ShardSet, keys: Sequence[ShardKey]) -> list[Host]:
    """The hosts of `downloads`' shards (of some of them, where there are many), those that lost most pictures first."""
    hosts: dict[str, Host] = {}
    for key in keys[:: -(-len(keys) // SHARDS)] if keys else []:
        table = downloads.read_table(key, ["url", "error"])
        for url, error in zip(table["url"].to_pylist(), table["error"].to_pylist(), strict=True):
            name = urlsplit(url).netloc
            host = hosts.setdefault(name, Host(name))
            host.urls += 1
            if error is not None:
                host.reasons[error] += 1
    return sorted(hosts.values(), key=lambda host: (-host.reasons.total(), -host.urls, host.name))


def dead_share(errors: Mapping[str, int], rows: int) -> float:
    """Share of `rows` URLs whose link is dead, from a stage's errors by reason."""
    return sum(count for reason, count in errors.items() if reason in DEAD) / rows if rows else 0.0
