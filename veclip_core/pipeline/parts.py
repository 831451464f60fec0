"""Which parts and shards a limited run makes."""

from veclip_core.samples import PartRange, ShardKey
from veclip_core.settings import SettingsError
from veclip_core.shards import Current


def keys_in(only: PartRange, upstream: Current) -> frozenset[ShardKey]:
    """The shards of some parts. Raises SettingsError where there are none."""
    keys = frozenset(key for key in upstream.grid.keys(upstream.parts) if key in only)
    if not keys:
        raise SettingsError(f"there are no parts {only.first}-{only.last}: the scale has 0-{upstream.parts - 1}")
    return keys


def first_parts(parts: int | None, upstream: Current) -> int:
    return upstream.parts if parts is None else min(parts, upstream.parts)


def is_limited(parts: int | None, upstream: Current) -> bool:
    return upstream.partial or (parts is not None and parts < upstream.parts)
