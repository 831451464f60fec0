"""Where a URL list came from, kept beside its shards: the data card and whoever asks in five years read it there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from veclip_core import storage
from veclip_core.settings import Settings
from veclip_core.shards import ShardSet

FILE = "sources.json"


@dataclass(frozen=True)
class Provenance:
    """Of one list."""

    places: Sequence[str]
    """Files, patterns or folders, as they were named."""
    licence: str
    """The user's own words on it; empty where there are none."""
    blocked_domains: str
    """The list of domains that were not asked, where there is one."""


def note_sources(listed: ShardSet, settings: Settings, *places: str) -> None:
    told = {
        "places": [storage.shown(place) for place in places],
        "licence": settings.licence,
        "blocked_domains": storage.shown(settings.blocked_domains),
    }
    storage.write_json(storage.join(listed.uri, FILE), told)


def sources_of(listed: ShardSet) -> Provenance | None:
    """None for a list that an older version made."""
    try:
        told: Mapping[str, Any] = storage.read_json(storage.join(listed.uri, FILE))
    except FileNotFoundError:
        return None
    return Provenance(**told)
