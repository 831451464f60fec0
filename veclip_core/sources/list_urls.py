"""The stage `list_urls`: a URL list becomes the shards that everything else follows.

A shard is a range of url_id, and a list comes in any order. So `scan` reads the list once and DuckDB sorts it, both in bounded
memory, into one temporary file; `ListUrlsOperation` then makes each shard of its part's range.
"""

import bisect
import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from veclip_core import storage
from veclip_core.config import Config, digest_of
from veclip_core.samples import (
    LIST_URLS_SCHEMA,
    MAX_ALT_TEXT_CHARS,
    Grid,
    ShardKey,
    canonical_url,
    clean_alt_text,
    sample_id,
    url_id,
)
from veclip_core.settings import CPU_COUNT
from veclip_core.sources.blocklist import Blocklist
from veclip_core.sources.urls import ListError, RawRow, UrlList
from veclip_core.stage import RowCounts, ShardTask, Work

logger = logging.getLogger(__name__)

SPOOL_ROWS = 65_536
"""Rows held in memory at a time, and written as one row group."""
NOTHING_BLOCKED = Blocklist()
SORT_MEMORY = "1GB"
"""Of DuckDB, which sorts on disk what is more."""
SORTED_ROWS = 20_480
"""Of a row group of the sorted file: a part is found by their statistics."""
SORTED, NOTE = "sorted.parquet", "scan.json"
SPOOL_SCHEMA = pa.schema(
    [
        ("url_id", pa.string()),
        ("sample_id", pa.string()),
        ("number", pa.int64()),
        ("url", pa.string()),
        ("alt_text", pa.string()),
        ("released_caption", pa.string()),
        ("error", pa.string()),
    ]
)
MAX_RAW_ALT_CHARS = 4 * MAX_ALT_TEXT_CHARS
"""What `clean_alt_text` looks at."""


class ListUrlsConfig(Config):
    """What decides the shards of a list."""

    version: int = 2
    """Raised when the same list gives other rows: since 2 a released caption goes to all rows of its URL."""
    source: str
    """The name of the source, as the table carries it."""
    list_digest: str
    """Of the rows read, in any order: a limit of rows, or another choice of columns, gives another."""
    parts: int
    shards_per_part: int


@dataclass(frozen=True)
class Scan:
    """What `scan` found, and where it put the rows."""

    grid: Grid
    digest: str
    """Of the rows read: url, AltText and caption of each, whatever their order."""
    rows: int
    work_dir: Path

    def operation(self, source: str) -> "ListUrlsOperation":
        config = ListUrlsConfig(
            source=source,
            list_digest=self.digest,
            parts=self.grid.parts,
            shards_per_part=self.grid.shards_per_part,
        )
        return ListUrlsOperation(config, self.work_dir)


def scan(
    urls: UrlList,
    work_dir: Path,
    *,
    rows_per_part: int,
    rows_per_shard: int,
    blocked: Blocklist = NOTHING_BLOCKED,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Scan:
    """Read the list into `work_dir`, or find it read there already: same files, same choice of rows.

    Args:
        rows_per_part: aimed at; the ranges are equal, so a part holds about as many.
        blocked: domains whose rows become errors, `blocked_domain`.
        on_rows: hears how many rows have been read so far.

    Raises:
        urls.ListError: when the list is missing, empty, damaged or of an unknown layout.
    """
    fingerprint = _fingerprint(urls, rows_per_part, rows_per_shard, blocked)
    done = work_dir / fingerprint[:16]
    if (done / NOTE).exists():
        return _noted(done)
    # Aside and renamed, so that two scans at once, or one that is killed, leave no half of a list.
    storage.remove_dead_temporaries(str(work_dir))
    aside = storage.beside(done)
    spool = aside / "rows.parquet"
    try:
        with storage.fatal_errors_named(str(work_dir)):
            aside.mkdir(parents=True)
            rows, digest = _spool(urls, blocked, spool, on_rows)
            if not rows:
                raise ListError(f"No rows in {', '.join(urls.files)}")
            parts = max(1, round(rows / rows_per_part))
            grid = Grid(parts, max(1, -(-rows // (parts * rows_per_shard))))
            _sort(spool, aside / SORTED)
            spool.unlink()
            found = {"parts": grid.parts, "shards_per_part": grid.shards_per_part, "digest": digest, "rows": rows}
            storage.write_json(str(aside / NOTE), found)
            if not (done / NOTE).exists():  # else another scan of the same list was first
                aside.rename(done)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return _noted(done)


def _noted(folder: Path) -> Scan:
    known = json.loads((folder / NOTE).read_text())
    return Scan(Grid(known["parts"], known["shards_per_part"]), known["digest"], known["rows"], folder)


def _fingerprint(urls: UrlList, rows_per_part: int, rows_per_shard: int, blocked: Blocklist) -> str:
    """Changes when the list may have: its files' sizes and times, as their filesystem tells them, and how they are read."""
    files = [(uri, storage.filesystem(uri)) for uri in urls.resolve()]
    columns = [urls.url_column, urls.alt_column, urls.caption_column]
    facts = [(uri, str(fs.ukey(path))) for uri, (fs, path) in files]
    return digest_of([SORTED, facts, columns, urls.rows, rows_per_part, rows_per_shard, blocked.digest])


def _spool(urls: UrlList, blocked: Blocklist, path: Path, on_rows: Callable[[int], None]) -> tuple[int, str]:
    """Write every row with its ids, in the list's order; the count of rows and the digest of what they say.

    The digest knows no order, as the shards don't: a list that is exported anew in another one is not crawled anew.
    """
    total = 0
    batch: list[tuple[Any, ...]] = []
    number = -1
    with pq.ParquetWriter(path, SPOOL_SCHEMA, compression="zstd") as writer:
        for number, row in enumerate(urls.read()):
            total += int.from_bytes(hashlib.sha256(json.dumps(row).encode()).digest(), "big")
            batch.append(_identified(number, row, blocked))
            if len(batch) == SPOOL_ROWS:
                writer.write_table(_table(batch))
                batch.clear()
                on_rows(number + 1)
        writer.write_table(_table(batch))
    on_rows(number + 1)
    return number + 1, digest_of([number + 1, total % (1 << 256), blocked.digest if blocked.domains else ""])


def _identified(number: int, row: RawRow, blocked: Blocklist) -> tuple[Any, ...]:
    error, url = row.error, row.url
    if error is None:
        try:
            url = canonical_url(row.url)
        except UnicodeError:  # a lone surrogate
            error = "bad_url"
        except ValueError as problem:
            error = str(problem)
    if error is None:
        of_url = url_id(url)
        error = "blocked_domain" if blocked.domains and blocked.blocks(url) else None
    else:
        # No canonical URL begins with a control character, so such an id meets no real one. Lost rows keep apart by number.
        url = clean_alt_text(row.url[:MAX_RAW_ALT_CHARS])
        of_url = url_id(f"\0{number if error == 'malformed_row' else url}")
    released = clean_alt_text(row.released_caption) if row.released_caption else None
    alt = row.alt[:MAX_RAW_ALT_CHARS].encode("utf-8", "replace").decode()
    return of_url, sample_id(of_url, row.alt), number, url, alt, released, error


def _table(rows: list[tuple[Any, ...]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(SPOOL_SCHEMA)
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, SPOOL_SCHEMA, strict=True)], SPOOL_SCHEMA
    )


def _sort(spool: Path, path: Path) -> None:
    """The spool's rows by id and then by what they say; on disk, beside `path`, where memory does not hold them."""
    import duckdb

    limits: dict[str, Any] = {
        "memory_limit": SORT_MEMORY,
        "temp_directory": str(path.parent / "sorting"),
        "threads": CPU_COUNT,
    }
    with duckdb.connect(config=limits) as database:
        try:
            rows = database.read_parquet(str(spool)).order("url_id, sample_id, url, alt_text, released_caption, number")
            rows.write_parquet(str(path), compression="zstd", row_group_size=SORTED_ROWS)
        except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
            raise storage.StorageError(
                f"{path.parent}: the list can't be sorted there ({str(error).splitlines()[0]}). It needs about three times the"
                " list's size: free some space, or set VECLIP_CACHE to a larger disk"
            ) from error


@dataclass(frozen=True)
class ListUrlsOperation:
    """Rows by (url_id, sample_id); an (address, AltText) pair that comes again is an error row `duplicate`, and a released caption
    without an AltText whose URL has AltTexts is one `joined`."""

    name: ClassVar[str] = "list_urls"
    config: ListUrlsConfig
    work_dir: Path
    """Where `scan` put the rows: a folder that every worker sees."""

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield _Shards(self.config, self.work_dir).make


class _Shards:
    """Keeps the part it works on: its shards are made one after another."""

    def __init__(self, config: ListUrlsConfig, work_dir: Path) -> None:
        self._config, self._work_dir = config, work_dir
        self._grid = Grid(config.parts, config.shards_per_part)
        self._part = -1
        self._rows = SPOOL_SCHEMA.empty_table()
        self._keys: list[ShardKey] = []

    def make(self, task: ShardTask) -> RowCounts:
        self._load(task.key.part)
        start, stop = bisect.bisect_left(self._keys, task.key), bisect.bisect_right(self._keys, task.key)
        rows = self._rows.slice(start, stop - start).to_pylist()
        errors: Counter[str] = Counter()
        _share_released_captions(rows)
        before = ""
        for row in rows:
            if row["error"] is None and row["sample_id"] == before:
                row["error"] = "duplicate"
            before = row["sample_id"]
            row.update(
                alt_text=clean_alt_text(row["alt_text"]),
                source=self._config.source,
                status="ok" if row["error"] is None else "error",
            )
            if row["error"] is not None:
                errors[row["error"]] += 1
        task.write(pa.Table.from_pylist(rows, LIST_URLS_SCHEMA))
        urls = len({row["url_id"] for row in rows if row["status"] == "ok"})
        return RowCounts(len(rows), len(rows) - sum(errors.values()), dict(errors), extra={"urls": float(urls)})

    def _load(self, part: int) -> None:
        if part == self._part:
            return
        first, beyond = self._grid.ids_of(part)
        wanted = [("url_id", ">=", first), *([("url_id", "<", beyond)] if beyond else [])]
        self._rows = pq.read_table(self._work_dir / SORTED, filters=wanted, use_threads=False, pre_buffer=False)
        self._keys = [self._grid.key_of(of_url) for of_url in self._rows["url_id"].to_pylist()]
        self._part = part


def _share_released_captions(rows: list[dict[str, Any]]) -> None:
    """A list of captions without AltText joins the list with the AltTexts by url_id: its captions go to all rows of their URLs.

    The row that brought one is an error `joined` then, unless it is its URL's only one.
    """
    for _, of_url in groupby((row for row in rows if row["error"] is None), key=lambda row: row["url_id"]):
        same = list(of_url)
        released = next((row["released_caption"] for row in same if row["released_caption"]), None)
        if released is None or len(same) == 1:
            continue
        told = [row for row in same if row["alt_text"].strip()]
        for row in same:
            if told and row["released_caption"] and not row["alt_text"].strip():
                row["error"] = "joined"
            row["released_caption"] = row["released_caption"] or released
