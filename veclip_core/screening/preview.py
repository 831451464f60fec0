"""Near-duplicates with what they are near-duplicates of, for people to look at."""

from collections.abc import Sequence
from dataclasses import dataclass

from veclip_core.captioning.preview import lot, picture_cell, thumbnails
from veclip_core.samples import NEAR_DUPLICATE, Grid, ShardKey
from veclip_core.shards import ShardSet

SHARDS_READ = 20
"""Of a large scale not all are read."""


@dataclass(frozen=True)
class Pair:
    """A picture that is left out and the one that stays, as small JPEGs."""

    url_id: str
    copy_of: str
    blocked: bytes
    kept: bytes


def pairs(screen: ShardSet, download: ShardSet, grid: Grid, keys: Sequence[ShardKey], count: int) -> list[Pair]:
    """Some near-duplicates, drawn by a hash of their ids out of a few random shards."""
    done = sorted(screen.markers(keys), key=lambda key: lot(str(key)))[:SHARDS_READ]
    found: dict[str, tuple[str, ShardKey]] = {}
    for key in done:
        for row in screen.read_table(key, ["url_id", "error", "copy_of"]).to_pylist():
            if row["error"] == NEAR_DUPLICATE and row["copy_of"]:
                found[row["url_id"]] = (row["copy_of"], key)
    drawn = sorted(found, key=lot)[:count]
    shown: dict[str, bytes] = {}
    for key in {*done, *(grid.key_of(found[url_id][0]) for url_id in drawn)} if drawn else ():
        # One's own pictures and adopted tars have a grid that ids don't tell the shard by: the kept one may lie in any.
        here = set(download.read_table(key, ["url_id"])["url_id"].to_pylist()) if download.marker(key) else set()
        wanted = {one for url_id in drawn for one in (url_id, found[url_id][0])} & here
        shown |= thumbnails(download, key, sorted(wanted)) if wanted else {}
    return [
        Pair(url_id, found[url_id][0], shown[url_id], shown[found[url_id][0]])
        for url_id in drawn
        if found[url_id][0] in shown
    ]


def markdown_table(found: Sequence[Pair]) -> str:
    """For Dagster's markdown; some 8 kB a row."""
    lines = ["| left out | kept | url_id | near-duplicate of |", "|---|---|---|---|"]
    lines += [
        f"| {picture_cell(one.blocked)} | {picture_cell(one.kept)} | {one.url_id} | {one.copy_of} |" for one in found
    ]
    return "\n".join(lines)
