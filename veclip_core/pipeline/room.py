"""Whether a disk can hold what is about to be fetched."""

import shutil

from veclip_core import storage
from veclip_core.samples import ShardKey
from veclip_core.shards import Current, ShardSet, Totals
from veclip_core.storage import StorageError

BYTES_PER_URL = 17_000
"""Of tar and table: a JPEG of 256 pixels has some 24 kB at quality 95, and three of ten URLs give none."""


def require_room(output: ShardSet, keys: frozenset[ShardKey], urls: Current) -> None:
    """See to it before a crawl of days that the root's disk can hold it; what a bucket may hold is not for us to know.

    Raises:
        StorageError: with what is needed, what is free, and what to do.
    """
    if not storage.is_local(output.root):
        return
    done = Totals.of(output.markers(keys).values())
    a_url = done.bytes / done.rows_in if done.rows_in else BYTES_PER_URL
    a_shard = urls.rows_ok / len(urls.shard_keys())
    needed = a_url * max(0.0, a_shard * len(keys) - done.rows_in)
    free = shutil.disk_usage(storage.local_path(output.root)).free
    if needed > free:
        raise StorageError(
            f"the pictures need about {needed / 1e9:,.0f} GB more ({a_url / 1e3:.0f} kB a URL), and {output.root} has"
            f" {free / 1e9:,.0f} GB free: make room, set VECLIP_ROOT to a larger disk or a bucket, or take fewer parts (--parts 3)"
        )
