"""Near-duplicates inside the set: the same file, or PDQ hashes that differ in few bits.

The rule: in the order of url_id, a picture is a near-duplicate when it is close to one that is kept, and is kept otherwise. So no
two kept pictures are close, each near-duplicate is close to a kept picture (a chain of small changes loses none that is unlike
all that stays), and a verdict depends on pictures with smaller ids alone: never on the order of reading, on workers, or on the
scale. Of the pictures of 3m, 12m says what 3m says.

All hashes of the scale are gathered on one machine. The search is `exact` (every pair, faiss's IndexBinaryFlat: the time grows with
the square of the number of pictures), or `bands` (IndexBinaryMultiHash: the time grows with the number, and the memory is larger):
two hashes are then compared only when one of their eight runs of 32 bits differs in two bits or fewer. That finds every pair within
23 bits, because 24 are needed to put three into each run, and of pairs at 31 bits 94 % where the bits lie at random
(`benchmarks/screening.py` measures time, memory and recall).
"""

import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from veclip_core import storage
from veclip_core.config import Config, digest_of
from veclip_core.leases import Lease
from veclip_core.samples import DUPLICATES_SCHEMA, ID_HEX_CHARS, ShardKey
from veclip_core.screening.hashes import DISTANCE, MIN_QUALITY, PDQ_BYTES, codes_of
from veclip_core.shards import ShardSet

STAGE = "duplicates"
ID_BYTES = ID_HEX_CHARS // 2
BLOCK = 2_048
"""Pictures searched for at a time: those of a block that are all alike make 4 million pairs, of 12 bytes."""


class DuplicatesConfig(Config):
    """What decides which pictures are near-duplicates."""

    distance: int = DISTANCE
    min_quality: int = MIN_QUALITY
    """Pictures with a hash of a lower quality are compared as files only."""
    search: Literal["exact", "bands"] = "exact"


@dataclass(frozen=True)
class Hashes:
    """Of N pictures: url_ids (N, 16), the first half of their files' SHA-256 (N, 16), PDQ hashes (N, 32), all uint8; whether the
    hash may be compared, bool (N,). 65 bytes a picture."""

    ids: np.ndarray
    files: np.ndarray
    codes: np.ndarray
    comparable: np.ndarray


def find_duplicates(hashes: Hashes, config: DuplicatesConfig) -> np.ndarray:
    """For each picture the index of the kept one that it is a near-duplicate of, or -1; int64 (N,)."""
    order = np.argsort(_as_strings(hashes.ids), kind="stable")
    _, first, group = np.unique(_as_strings(hashes.files)[order], return_index=True, return_inverse=True)
    copy_of = first[group]  # places in the order of ids: of the first with the same file, mostly itself
    alone = copy_of == np.arange(len(order))
    compared = np.flatnonzero(alone & hashes.comparable[order])
    leader = leaders(hashes.codes[order[compared]], config)
    near = leader >= 0
    copy_of[compared[near]] = compared[leader[near]]
    copy_of = copy_of[copy_of]  # the same file as a near-duplicate's is one of what that is one of
    found = np.full(len(order), -1)
    blocked = np.flatnonzero(copy_of != np.arange(len(order)))
    found[order[blocked]] = order[copy_of[blocked]]
    return found


def leaders(codes: np.ndarray, config: DuplicatesConfig) -> np.ndarray:
    """For each hash the first kept one before it that is within the distance, or -1 for one that is kept itself; int64 (N,).

    Args:
        codes: uint8 (N, 32), in the order that decides.
    """
    found = np.full(len(codes), -1)
    index, kept = _index(config), np.empty(0, np.int64)
    for start in range(0, len(codes), BLOCK):
        block = np.ascontiguousarray(codes[start : start + BLOCK])
        first = np.full(len(block), len(codes))
        queries, places = _within(index, block, config.distance)
        np.minimum.at(first, queries, kept[places])
        new = np.flatnonzero(first == len(codes))
        inside = _index(config)
        inside.add(block[new])
        queries, places = _within(inside, block[new], config.distance)
        before = places < queries
        stays = np.ones(len(new), bool)
        some, starts = np.unique(queries[before], return_index=True)
        for query, earlier in zip(some, np.split(places[before], starts[1:]), strict=False):
            if len(staying := earlier[stays[earlier]]):
                stays[query] = False
                first[new[query]] = start + new[staying.min()]
        found[start : start + BLOCK] = np.where(first < len(codes), first, -1)
        index.add(np.ascontiguousarray(block[new[stays]]))
        kept = np.concatenate([kept, start + new[stays]])
    return found


def _index(config: DuplicatesConfig) -> Any:
    import faiss

    if config.search == "exact":
        return faiss.IndexBinaryFlat(8 * PDQ_BYTES)
    index = faiss.IndexBinaryMultiHash(8 * PDQ_BYTES, 8, 32)
    index.nflip = 2
    return index


def _within(index: Any, codes: np.ndarray, distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (number of the query, place in the index) that differ in at most so many bits."""
    if not index.ntotal or not len(codes):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    limits, _, places = index.range_search(np.ascontiguousarray(codes), distance + 1)
    return np.repeat(np.arange(len(codes)), np.diff(limits).astype(np.int64)), places


def _as_strings(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows).view(f"S{rows.shape[1]}").ravel()


def write_duplicates(
    look: ShardSet, download: ShardSet, keys: Sequence[ShardKey], config: DuplicatesConfig
) -> ShardSet:
    """Write for each shard which of its pictures are near-duplicates of which, where another table or none stands there.

    A shard's table stays the same when the scale grows, and so does all that is made of it. Nothing is gathered again when the
    shards of `look` are those of the last time.
    """
    identity = digest_of([STAGE, config.identity(), look.identity, download.identity])[:16]
    output = ShardSet(look.root, look.source, STAGE, identity)
    markers = look.markers(keys)
    looked = digest_of({str(key): marker["sha256"] for key, marker in markers.items()})
    note = storage.join(output.uri, "gathered", f"{looked[:16]}.json")
    if storage.exists(note):
        return output
    with Lease.wait_for(storage.join(output.uri, "leases"), "gather"):
        if not storage.exists(note):
            _gather_and_write(look, download, markers, output, note, config)
    return output


def _gather_and_write(
    look: ShardSet,
    download: ShardSet,
    markers: Mapping[ShardKey, Mapping[str, Any]],
    output: ShardSet,
    note: str,
    config: DuplicatesConfig,
) -> None:
    started = time.monotonic()
    done = sorted(markers)
    hashes, counts = gather(look, download, done, sum(marker["rows_ok"] for marker in markers.values()), config)
    copy_of = find_duplicates(hashes, config)
    seconds = time.monotonic() - started
    if not storage.exists(storage.join(output.uri, "config.json")):
        inputs = {"look": look.identity, "download": download.identity}
        storage.write_json(
            storage.join(output.uri, "config.json"), {"stage": STAGE, "config": config.model_dump(), "inputs": inputs}
        )
    found, start = output.markers(done), 0
    for key, count in zip(done, counts, strict=True):
        places = start + np.flatnonzero(copy_of[start : start + count] >= 0)
        start += count
        rows = [(hashes.ids[place].tobytes().hex(), hashes.ids[copy_of[place]].tobytes().hex()) for place in places]
        _write(output, key, sorted(rows), count, round(seconds / len(done), 3), found.get(key))
    storage.write_json(
        note, {"pictures": int(start), "duplicates": int((copy_of >= 0).sum()), "seconds": round(seconds, 3)}
    )


def gather(
    look: ShardSet, download: ShardSet, keys: Sequence[ShardKey], pictures: int, config: DuplicatesConfig
) -> tuple[Hashes, list[int]]:
    """The hashes of `pictures` pictures, or fewer where some were removed since, and how many there are of each shard."""
    ids, files = np.empty((pictures, ID_BYTES), np.uint8), np.empty((pictures, ID_BYTES), np.uint8)
    codes, comparable = np.empty((pictures, PDQ_BYTES), np.uint8), np.empty(pictures, bool)
    counts, start = [], 0
    for key in keys:
        rows = [row for row in look.read_table(key, ["url_id", "pdq", "pdq_quality"]).to_pylist() if row["pdq"]]
        of_file = dict(_pairs(download.read_table(key, ["url_id", "sha256"])))
        some = slice(start, start + len(rows))
        ids[some] = _bytes_of([row["url_id"] for row in rows])
        # Adopted tars tell no SHA-256: an id of their own keeps such pictures apart.
        files[some] = _bytes_of([(of_file.get(row["url_id"]) or row["url_id"])[:ID_HEX_CHARS] for row in rows])
        codes[some] = codes_of([row["pdq"] for row in rows])
        comparable[some] = [row["pdq_quality"] >= config.min_quality for row in rows]
        counts.append(len(rows))
        start += len(rows)
    return Hashes(ids[:start], files[:start], codes[:start], comparable[:start]), counts


def _pairs(table: pa.Table) -> Any:
    return zip(*(table[name].to_pylist() for name in table.column_names), strict=True)


def _bytes_of(ids: Sequence[str]) -> np.ndarray:
    return np.frombuffer(bytes.fromhex("".join(ids)), np.uint8).reshape(-1, ID_BYTES)


def _write(
    output: ShardSet,
    key: ShardKey,
    rows: Sequence[tuple[str, str]],
    pictures: int,
    seconds: float,
    before: Mapping[str, Any] | None,
) -> None:
    """Publish a shard's table as `run_stage` does, data before marker; an equal one stays."""
    digest = digest_of([list(row) for row in rows])
    if before is not None and before["sha256"] == digest:
        return
    columns = {name: [row[at] for row in rows] for at, name in enumerate(DUPLICATES_SCHEMA.names)}
    table = pa.table(columns, schema=DUPLICATES_SCHEMA)
    with pa.BufferOutputStream() as buffer:
        pq.write_table(table, buffer, compression="zstd")
        content = buffer.getvalue().to_pybytes()
    storage.delete(output.file(key, "success.json"))
    storage.write_bytes(output.file(key, "parquet"), content)
    marker = {
        "stage": STAGE,
        "identity": output.identity,
        "rows_in": pictures,
        "rows_ok": pictures,
        "errors": {},
        "fallbacks": 0,
        "extra": {STAGE: len(rows)},
        "files": {"parquet": {"bytes": len(content)}},
        "bytes": len(content),
        "sha256": digest,
        "seconds": seconds,
        "host": socket.gethostname(),
        "device": "cpu",
    }
    storage.write_json(output.file(key, "success.json"), marker)
