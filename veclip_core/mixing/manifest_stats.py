"""What a manifest holds, in numbers: read where it lies, in bounded memory (DuckDB)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from veclip_core import storage

MEMORY = "1GB"


@dataclass(frozen=True)
class ColumnStats:
    """One caption column."""

    rows: int
    """With a text."""
    mean_words: float
    distinct: int
    """Texts, about (within some 2 %)."""


@dataclass(frozen=True)
class ManifestStats:
    """One manifest."""

    uri: str
    digest: str
    rows: int
    pictures: int
    """Distinct URLs, about."""
    tars: int
    picture_bytes: int
    """As often as they are rows."""
    columns: Mapping[str, ColumnStats]
    statuses: Mapping[str, int]
    """How the VeCaps came to be."""
    errors: Mapping[str, int]
    """Samples that were left out, by reason."""


def manifest_stats(uri: str) -> ManifestStats:
    """The numbers of the manifest whose JSON lies at `uri`."""
    import duckdb

    told = storage.read_json(uri)
    base = told["tars_relative_to"]
    files = [storage.join(base, file) for file in told["files"]]
    captions = list(told["columns"])
    quoted = ['"' + name.replace('"', '""') + '"' for name in captions]  # a manifest's JSON may be a stranger's
    of_columns = ", ".join(
        f"count(*) FILTER (trim({name}) <> ''), avg(len(string_split_regex(trim({name}), '\\s+'))) FILTER (trim({name}) <> ''),"
        f" approx_count_distinct({name}) FILTER (trim({name}) <> '')"
        for name in quoted
    )
    with duckdb.connect(config={"memory_limit": MEMORY}) as database:
        if not storage.is_local(base):
            database.register_filesystem(storage.filesystem(base)[0])
        rows = database.read_parquet(files)
        whole: tuple[Any, ...] = rows.aggregate(
            f"count(*), approx_count_distinct(url_id), count(DISTINCT tar), sum(bytes), {of_columns}"
        ).fetchall()[0]
        statuses = rows.aggregate("vecap_status, count(*) AS n", "vecap_status").order("n DESC").fetchall()
    count, pictures, tars, size, *rest = whole
    columns = {
        name: ColumnStats(rest[3 * place], round(rest[3 * place + 1] or 0.0, 2), rest[3 * place + 2])
        for place, name in enumerate(captions)
    }
    return ManifestStats(uri, told["digest"], count, pictures, tars, size or 0, columns, dict(statuses), told["errors"])


def as_text(stats: ManifestStats) -> str:
    """For a terminal."""
    lines = [
        f"{stats.rows:,} samples of about {stats.pictures:,} pictures in {stats.tars:,} tars, {stats.picture_bytes / 1e9:,.2f} GB",
        f"digest {stats.digest}",
        "",
        f"{'column':<16}{'texts':>14}{'of rows':>9}{'words':>8}{'distinct':>14}",
    ]
    for name, column in stats.columns.items():
        share = column.rows / stats.rows if stats.rows else 0.0
        lines.append(f"{name:<16}{column.rows:>14,}{share:>9.1%}{column.mean_words:>8.1f}{column.distinct:>14,}")
    for title, counts in (("VeCaps", stats.statuses), ("left out", stats.errors)):
        if counts:
            lines += ["", f"{title}: " + ", ".join(f"{name} {count:,}" for name, count in counts.items())]
    return "\n".join([*lines, "", stats.uri])
