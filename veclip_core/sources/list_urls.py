"""The stage `list_urls`: a URL list becomes the shards that everything else follows.

A shard is a range of url_id, and a list comes in any order. So `scan` reads the list once, in bounded memory, into one temporary
file a part (a million rows); `ListUrlsOperation` then makes each shard of its part's file.
"""

import bisect
import hashlib
import json
import logging
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from veclip_core.sources.urls import ListError, RawRow, UrlList
from veclip_core.stage import RowCounts, ShardTask, Work

logger = logging.getLogger(__name__)

SPOOL_ROWS = 65_536
"""Rows held in memory at a time, and written as one row group."""
NOTE = "scan.json"
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

    source: str
    """The name of the source, as the table carries it."""
    list_digest: str
    """Of the rows read, in their order: a limit of rows, or another choice of columns, gives another."""
    parts: int
    shards_per_part: int


@dataclass(frozen=True)
class Scan:
    """What `scan` found, and where it put the rows."""

    grid: Grid
    digest: str
    """Of the rows read: url, AltText and caption of each, in order."""
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
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Scan:
    """Read the list into `work_dir`, or find it read there already: same files, same choice of rows.

    Args:
        rows_per_part: aimed at; the ranges are equal, so a part holds about as many.
        on_rows: hears how many rows have been read so far.

    Raises:
        urls.ListError: when the list is missing, empty, damaged or of an unknown layout.
    """
    fingerprint = _fingerprint(urls, rows_per_part, rows_per_shard)
    done = work_dir / fingerprint[:16]
    if (done / NOTE).exists():
        return _noted(done)
    # Aside and renamed, so that two scans at once, or one that is killed, leave no half of a list.
    aside = work_dir / f".{fingerprint[:16]}.{uuid.uuid4().hex}"
    spool = aside / "rows.parquet"
    try:
        with storage.fatal_errors_named(str(work_dir)):
            aside.mkdir(parents=True)
            rows, digest = _spool(urls, spool, on_rows)
            if not rows:
                raise ListError(f"No rows in {', '.join(urls.files)}")
            parts = max(1, round(rows / rows_per_part))
            grid = Grid(parts, max(1, -(-rows // (parts * rows_per_shard))))
            _deal(spool, grid, aside)
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


def _fingerprint(urls: UrlList, rows_per_part: int, rows_per_shard: int) -> str:
    """Changes when the list may have: its files' sizes and times, as their filesystem tells them, and how they are read."""
    files = [(uri, storage.filesystem(uri)) for uri in urls.resolve()]
    columns = [urls.url_column, urls.alt_column, urls.caption_column]
    facts = [(uri, str(fs.ukey(path))) for uri, (fs, path) in files]
    return digest_of([facts, columns, urls.rows, rows_per_part, rows_per_shard])


def _part_file(work_dir: Path, part: int) -> Path:
    return work_dir / f"{ShardKey(part, 0).part_name}.parquet"


def _spool(urls: UrlList, path: Path, on_rows: Callable[[int], None]) -> tuple[int, str]:
    """Write every row with its ids, in the list's order; the count of rows and the digest of what they say."""
    digest = hashlib.sha256()
    batch: list[tuple[Any, ...]] = []
    number = -1
    with pq.ParquetWriter(path, SPOOL_SCHEMA, compression="zstd") as writer:
        for number, row in enumerate(urls.read()):
            digest.update(json.dumps(row).encode())
            batch.append(_identified(number, row))
            if len(batch) == SPOOL_ROWS:
                writer.write_table(_table(batch))
                batch.clear()
                on_rows(number + 1)
        writer.write_table(_table(batch))
    on_rows(number + 1)
    return number + 1, digest.hexdigest()


def _identified(number: int, row: RawRow) -> tuple[Any, ...]:
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


def _deal(spool: Path, grid: Grid, work_dir: Path) -> None:
    """Split the spool into one file a part."""
    writers = [
        pq.ParquetWriter(_part_file(work_dir, part), SPOOL_SCHEMA, compression="zstd") for part in range(grid.parts)
    ]
    try:
        for batch in pq.ParquetFile(spool).iter_batches(SPOOL_ROWS):
            rows_of: dict[int, list[int]] = {}
            for index, of_url in enumerate(batch.column("url_id").to_pylist()):
                rows_of.setdefault(grid.key_of(of_url).part, []).append(index)
            for part, rows in rows_of.items():
                writers[part].write_table(pa.Table.from_batches([batch.take(pa.array(rows))]))
    finally:
        for writer in writers:
            writer.close()


@dataclass(frozen=True)
class ListUrlsOperation:
    """Rows by (url_id, sample_id); an (address, AltText) pair that comes again is an error row `duplicate`."""

    name: ClassVar[str] = "list_urls"
    config: ListUrlsConfig
    work_dir: Path
    """Where `scan` put the rows: a folder that every worker sees."""

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield _Shards(self.config, self.work_dir).make


class _Shards:
    """Keeps the part it works on, sorted: its shards are made one after another."""

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
        table = pq.read_table(_part_file(self._work_dir, part), use_threads=False, pre_buffer=False)
        self._rows = table.sort_by([("url_id", "ascending"), ("sample_id", "ascending"), ("number", "ascending")])
        self._keys = [self._grid.key_of(of_url) for of_url in self._rows["url_id"].to_pylist()]
        self._part = part
