"""The manifest as training reads it: the rows of one, or of several that are mixed, in memory or memory-mapped."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock

from veclip_core import storage
from veclip_core.config import digest_of
from veclip_core.mendable import Mendable
from veclip_core.mixing.mixture import ManifestJson, MixedSource, Mixture, MixtureError, read_manifest_json

VOCABULARY_COLUMNS = ("alt", "vec", "vecap")
"""Also of a manifest with more: all arms of an experiment share one vocabulary, and so their initial weights."""
IDS_AT_ONCE = 65_536
COLUMNS = ("sample_id", "tar", "offset", "bytes", *VOCABULARY_COLUMNS)


class ColumnsMissing(Mendable, ValueError):
    """A manifest has no such caption column; the message says how to get it."""


class EmptyManifest(Mendable, ValueError):
    """Nothing to train on; the message says where to look."""


@dataclass(frozen=True)
class ManifestTable:
    """A manifest's rows, in memory or memory-mapped."""

    source_uri: str
    """What the `tar` column is relative to; of a mixture, whose tars have whole addresses, its manifests."""
    table: pa.Table
    digest: str
    sources: tuple[tuple[int, int], ...] = ()
    """Of a mixture: for each run of rows that comes from one manifest, how many there are and how many of them an epoch reads."""
    kept: np.ndarray | None = field(default=None, repr=False, compare=False)
    """Of a part (`fraction`): the table's rows that belong to it, in their order. `len`, `rows` and `sources` know these alone;
    table, texts and digest stay the whole manifest's, so that vocabulary, initial weights and decoded pictures are those of
    trainings on all of it."""
    _batches: list[pa.RecordBatch] = field(init=False, repr=False, compare=False)
    _ends: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        batches = [batch for batch in self.table.to_batches() if batch.num_rows]
        object.__setattr__(self, "_batches", batches)
        object.__setattr__(self, "_ends", np.cumsum([batch.num_rows for batch in batches], dtype=np.int64))

    def __len__(self) -> int:
        return int(self.table.num_rows) if self.kept is None else len(self.kept)

    def fraction(self, share: float) -> "ManifestTable":
        """The part of about so many of the rows whose ids are `in_fraction`; of a mixture, of each of its manifests.

        Takes about a second a million rows, and 8 bytes for each that is kept.
        """
        if share >= 1:
            return self
        ids = (name for chunk in self.table.column("sample_id").chunks for name in _plain(chunk))
        kept = np.flatnonzero(np.fromiter((in_fraction(name, share) for name in ids), bool, self.table.num_rows))
        ends = np.cumsum([0, *(rows for rows, _ in self.sources)])
        held = np.diff(np.searchsorted(kept, ends))
        sources = tuple(
            (int(there), max(1, round(read / rows * int(there))))
            for (rows, read), there in zip(self.sources, held, strict=True)
            if there
        )
        return replace(self, sources=sources, kept=kept)

    def tar_uri(self, tar: str) -> str:
        return tar if "://" in tar or tar.startswith("/") else storage.join(self.source_uri, tar)

    def rows(self, positions: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """Some rows, in the given order. Touches no other row, also of a memory-mapped manifest."""
        found = []
        for position in positions if self.kept is None else self.kept[np.asarray(positions, dtype=np.int64)]:
            number = int(np.searchsorted(self._ends, position, side="right"))
            batch = self._batches[number]
            at = int(position) - int(self._ends[number]) + batch.num_rows
            found.append({name: batch.column(name)[at].as_py() for name in self.table.column_names})
        return found

    def texts(self) -> Iterator[str]:
        """Every text that the vocabulary is made of."""
        for name in VOCABULARY_COLUMNS:
            for chunk in self.table.column(name).chunks:
                yield from (text for text in chunk.unique().to_pylist() if text)


def in_fraction(sample_id: str, share: float) -> bool:
    """Whether a sample belongs to a part of the data: by a hash of its id alone, so that a smaller part lies within a larger one,
    and is the same for every arm and seed, in whatever order or manifest its rows stand."""
    digest = hashlib.blake2b(f"data fraction:{sample_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2.0**64


def _plain(chunk: pa.Array) -> Iterator[str]:
    """The texts of a chunk, few of them in memory at a time."""
    for first in range(0, len(chunk), IDS_AT_ONCE):
        yield from chunk.slice(first, IDS_AT_ONCE).to_pylist()


def load_manifest(
    source_uri: str,
    paths: Sequence[str],
    digest: str | None = None,
    cache_folder: Path | None = None,
    further_columns: Sequence[str] = (),
) -> ManifestTable:
    """Read the manifest's parquet files, in the given order.

    Args:
        source_uri: folder or URL that the `tar` column, and a relative path, are relative to.
        paths: parquet files, relative to it, or absolute.
        digest: of the manifest's content, as `manifest.json` states it; computed over the files when None.
        further_columns: caption columns to read besides AltText, VeC and VeCap.
        cache_folder: where a memory-mapped copy is kept; without it the rows are held in memory (about 1 kB each).

    Raises:
        EmptyManifest: when there is no row.
        ColumnsMissing: when a column is missing.
    """
    uris = [path if "://" in path or path.startswith("/") else storage.join(source_uri, path) for path in paths]
    digest = digest or _digest_of_files(uris)
    columns = (*COLUMNS, *further_columns)
    return ManifestTable(source_uri, _kept(_tables(uris, columns), columns, digest, cache_folder, source_uri), digest)


def load_mixture(
    mixture: Mixture, cache_folder: Path | None = None, further_columns: Sequence[str] = ()
) -> ManifestTable:
    """Read the manifests of a mixture one after another. A further column that one of them lacks is empty there.

    Raises:
        EmptyManifest: when there is no row.
        ColumnsMissing: when no manifest has a further column.
        MixtureError: when a manifest is not the one that was mixed any more.
    """
    columns = (*COLUMNS, *further_columns)
    manifests = {source: read_manifest_json(source.manifest) for source in mixture.sources}
    missing = [name for name in further_columns if not any(name in told.columns for told in manifests.values())]
    if missing:
        raise ColumnsMissing(f"no manifest of the mixture has a column {', '.join(missing)}: give it no weight")
    tables = (table for source in mixture.sources for table in _mixed_tables(source, manifests[source], columns))
    table = _kept(tables, columns, mixture.digest, cache_folder, "the mixture")
    sources = tuple((source.rows, source.rows_per_epoch) for source in mixture.sources)
    told = sum(rows for rows, _ in sources)
    if table.num_rows != told:
        raise MixtureError(
            f"the manifests of the mixture have {table.num_rows:,} rows, and their JSONs tell of {told:,}: make them and the"
            " mixture again"
        )
    where = " + ".join(storage.shown(source.manifest) for source in mixture.sources)
    return ManifestTable(where, table, mixture.digest, sources)


def _mixed_tables(source: MixedSource, told: ManifestJson, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of one manifest, with the whole addresses of its tars."""
    if (told.digest, told.rows) != (source.digest, source.rows):
        raise MixtureError(f"{source.manifest} has other rows than when it was mixed: make the mixture again")
    base = told.tars_relative_to
    there = [name for name in columns if name in (*COLUMNS, *told.columns)]
    for table in _tables([storage.join(base, file) for file in told.files], there):
        whole = pc.binary_join_element_wise(base.rstrip("/"), table["tar"], "/")
        elsewhere = pc.match_substring_regex(table["tar"], "^/|://")
        table = table.set_column(there.index("tar"), "tar", pc.if_else(elsewhere, table["tar"], whole))
        for name in columns:
            if name not in there:
                table = table.append_column(name, pa.repeat("", table.num_rows))
        yield table.select(columns)


def _kept(
    tables: Iterator[pa.Table], columns: Sequence[str], digest: str, cache_folder: Path | None, what: str
) -> pa.Table:
    """The rows in memory, or in a memory-mapped copy. Raises EmptyManifest."""
    if cache_folder is None:
        found = list(tables)
        table = pa.concat_tables(found) if found else pa.table({name: [] for name in columns})
    else:
        name = f"manifest-{digest[:24]}-{digest_of(columns)[:8]}.arrow"
        table = _memory_mapped(tables, columns, cache_folder / name)
    if not table.num_rows:
        raise EmptyManifest(
            f"the manifest of {what} has no rows: no picture with a text came through the stages before"
        )
    return table


def _digest_of_files(uris: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for uri in uris:
        digest.update(hashlib.sha256(storage.read_bytes(uri)).digest())
    return digest.hexdigest()


def _tables(uris: Sequence[str], columns: Sequence[str]) -> Iterator[pa.Table]:
    """One a row group, so that a large file is never in memory whole."""
    import pyarrow.parquet as pq

    for uri in uris:
        parquet = pq.ParquetFile(pa.BufferReader(storage.read_bytes(uri)), pre_buffer=False)
        missing = [name for name in columns if name not in parquet.schema_arrow.names]
        if missing:
            raise ColumnsMissing(
                f"{uri} has no columns {missing}: make the manifest again with the styles that they belong to (VECLIP_STYLES), or"
                " give it no weight"
            )
        for number in range(parquet.num_row_groups):
            yield parquet.read_row_group(number, columns=list(columns))


def _memory_mapped(tables: Iterator[pa.Table], columns: Sequence[str], path: Path) -> pa.Table:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # every rank of a machine asks at once: one writes for all
            storage.remove_dead_temporaries(str(path.parent))
            if not path.exists() and not _written(tables, path):
                return pa.table({name: [] for name in columns})
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _written(tables: Iterator[pa.Table], path: Path) -> bool:
    """Write the tables to a file, whole or not at all; False where there is none to write."""
    unfinished = storage.beside(path)
    try:
        writer: pa.ipc.RecordBatchFileWriter | None = None
        with storage.fatal_errors_named(str(path)), pa.OSFile(str(unfinished), "wb") as sink:
            for table in tables:
                writer = writer or pa.ipc.new_file(sink, table.schema)
                writer.write_table(table)
            if writer is None:
                return False
            writer.close()
        os.replace(unfinished, path)
        return True
    finally:
        unfinished.unlink(missing_ok=True)
