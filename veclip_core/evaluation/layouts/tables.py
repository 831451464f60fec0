"""Pictures in a folder and a table of their captions or classes: csv, tsv, jsonl or parquet, columns found by name."""

import csv
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from veclip_core.evaluation.layouts import found as limits
from veclip_core.evaluation.layouts.class_folders import LABEL
from veclip_core.evaluation.layouts.found import Found, Labels, refuse
from veclip_core.evaluation.layouts.listing import Files, Listing, digests
from veclip_core.evaluation.set_catalogue import SetSpec
from veclip_core.evaluation.sets import EvaluationSetError, PicturePlace
from veclip_core.sources.compressed import open_text_list
from veclip_core.sources.own_pictures import FILE_COLUMNS
from veclip_core.sources.urls import ALT_COLUMNS, MAX_FIELD_CHARS, ListError, format_of

CAPTION_COLUMNS = ("caption", "captions", "sentence", "sentences", "raw", "description", *ALT_COLUMNS)
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "classname", "category", "target", "wnid")
SPLIT_COLUMN = "split"
SPLITS = ("test", "val", "validation", "train")
"""In order of preference, where none is told."""
BATCH_ROWS = 1_024
CLASSES_LEFT_OUT = "class_columns_left_out"
"""Of the notes: columns named as if of classes, which say none; told only where captions are there."""

Row = dict[str, Any]


def is_table(name: str) -> bool:
    """By its name; a .json is none, as it is one object."""
    try:
        return format_of(name) != "json"
    except ListError:
        return False


def read(name: str, spec: SetSpec, table: Path, listing: Listing) -> Found:
    """One picture a file that the table names, in the order of its first row; every caption of its rows in order.

    Args:
        listing: of the folder of the pictures.

    Raises:
        EvaluationSetError: for a row without a file, a file that is not there, a file of two classes.
    """
    all_rows, found = rows_of(table, lambda columns: _needed(table, columns, spec)), Found()
    if not all_rows:
        raise EvaluationSetError(f"{table} has no rows")
    columns = list(all_rows[0])
    rows = of_split(name, spec, all_rows, found)
    image = column_of(table, columns, spec.image_column, FILE_COLUMNS, "the pictures' files")
    texts = caption_columns(table, columns, spec)
    label = label_column(table, columns, spec, texts)
    files = Files(listing)
    by_file: dict[str, list[Row]] = {}
    missing: list[str] = []
    for number, row in enumerate(rows, 1):
        file = files.find(str(row[image] or ""))
        if file is None:
            missing.append(f"{row[image]!r:.200} (row {number:,})")
        else:
            by_file.setdefault(file, []).append(row)
    refuse(
        table, missing, f"{len(missing):,} of {len(rows):,} rows name no picture below {listing.folder}",
        "Put the pictures there, mend the names, or name the folder with `pictures` in the catalogue.",
    )  # fmt: skip
    paths = [listing.folder / file for file in by_file]
    for (file, own), path, sha256 in zip(by_file.items(), paths, digests(paths, name), strict=True):
        found.add(file, PicturePlace(str(path)), sha256, [text for row in own for text in captions_of(row, texts)])
    if label is not None:
        told = [{class_of(row[label]) for row in own} for own in by_file.values()]
        if not texts or spec.label_column or fit_for_classes(told):
            found.labels[LABEL] = _labels(table, label, dict(zip(by_file, told, strict=True)))
        else:
            found.notes[CLASSES_LEFT_OUT] = 1
    named = {files.find(str(row[image] or "")) for row in all_rows} - {None}
    found.notes["pictures_without_text"] = len(listing.pictures) - len(named)
    return found


def _needed(table: Path, columns: Sequence[str], spec: SetSpec) -> list[str]:
    image = column_of(table, columns, spec.image_column, FILE_COLUMNS, "the pictures' files")
    texts = caption_columns(table, columns, spec)
    label = label_column(table, columns, spec, texts)
    split = [one for one in columns if one.lower() == SPLIT_COLUMN]
    return list(dict.fromkeys([image, *texts, *([label] if label is not None else []), *split]))


def of_split(name: str, spec: SetSpec, rows: list[Row], found: Found) -> list[Row]:
    """The rows of the split told, or of `test`, where a column says; the others are counted."""
    column = next((one for one in rows[0] if one.lower() == SPLIT_COLUMN), None)
    there = {str(row[column]) for row in rows} if column is not None else set()
    split = spec.split or next((one for one in SPLITS if one in there), "")
    if spec.split and spec.split not in there:
        raise EvaluationSetError(
            f"{name}: no row is of the split {split!r}. There are {', '.join(sorted(there)) or 'none'}"
        )
    if column is None or not split:
        return rows
    chosen = [row for row in rows if str(row[column]) == split]
    found.notes["rows_of_other_splits"] = len(rows) - len(chosen)
    return chosen


def column_of(table: object, columns: Sequence[str], told: str, known: Sequence[str], what: str) -> str:
    """The column told, or the first of the known names, upper or lower case."""
    if told and told not in columns:
        raise EvaluationSetError(f"{table} has no column {told!r}. It has {', '.join(columns)}")
    found = told or _first(columns, known)
    if found is None:
        raise EvaluationSetError(
            f"{table}: no column is known to hold {what}. It has {', '.join(columns)}; known are {', '.join(known)}. Name it with"
            " image_column, caption_column or label_column in the catalogue"
        )
    return found


def _first(columns: Sequence[str], known: Sequence[str]) -> str | None:
    by_lower = {name.strip().lower(): name for name in reversed(columns)}
    return next((by_lower[word] for word in known if word in by_lower), None)


def caption_columns(table: object, columns: Sequence[str], spec: SetSpec) -> list[str]:
    """Those told; else the first known name, and its numbered ones (`caption_0`, `caption_1`; `caption1`, `caption 2`)."""
    if spec.caption_columns:
        return [column_of(table, columns, told, (), "captions") for told in spec.caption_columns]
    for word in CAPTION_COLUMNS:
        numbered = re.compile(rf"{word}(?:[_ -]?\d+)?")
        if found := [one for one in columns if numbered.fullmatch(one.strip().lower())]:
            return found
    return []


def label_column(table: object, columns: Sequence[str], spec: SetSpec, texts: Sequence[str]) -> str | None:
    """None for a set of captions alone."""
    if spec.label_column:
        return column_of(table, columns, spec.label_column, (), "classes")
    found = _first([one for one in columns if one not in texts], LABEL_COLUMNS)
    if found is None and not texts:
        known = (*CAPTION_COLUMNS, *LABEL_COLUMNS)
        column_of(table, [one for one in columns if one not in texts], "", known, "captions or classes")
    return found


def captions_of(row: Row, columns: Sequence[str]) -> list[str]:
    """Every caption of a row: a text, a list of them, Karpathy's {raw}, or a list in JSON; empty numbered cells are none."""
    cells = [row[column] for column in columns]
    if len(columns) > 1:
        cells = [cell for cell in cells if cell not in (None, "")] or [""]
    return [text for cell in cells for text in _texts(cell)]


def _texts(cell: Any) -> Iterator[str]:
    if isinstance(cell, str) and cell.startswith('["') and cell.endswith('"]'):
        with suppress(ValueError, RecursionError):
            cell = json.loads(cell)
    if isinstance(cell, dict):
        cell = cell.get("raw", "")
    if isinstance(cell, list | tuple):
        for one in cell:
            yield from _texts(one)
    else:
        yield "" if cell is None else str(cell)


def fit_for_classes(told: Iterable[Collection[str]]) -> bool:
    """Whether a column that nobody told says one class of each picture; beside captions it may be anything of such a name.

    Whole numbers are classes where texts of these are found, which is not known here; measures (0.73) never are.
    """
    classes: set[str] = set()
    for of_picture in told:
        if len(of_picture) != 1 or "" in of_picture:
            return False
        classes.update(of_picture)
    return all(map(str.isdecimal, classes)) or not all(map(_is_number, classes))


def _is_number(told: str) -> bool:
    try:
        float(told)
    except ValueError:
        return False
    return True


def class_of(cell: Any) -> str:
    """As a cell names it; empty where it doesn't."""
    return "" if cell is None else str(cell).strip()


def _labels(table: Path, column: str, told: Mapping[str, Collection[str]]) -> Labels:
    unclear = [
        f"{file} ({', '.join(sorted(classes)) or 'empty'})"
        for file, classes in told.items()
        if len(classes) > 1 or "" in classes
    ]
    refuse(table, unclear, f"{len(unclear):,} pictures without one class in {column}", "Give each picture one.")
    of_picture = [next(iter(classes)) for classes in told.values()]
    numbered = all(one.isascii() and one.isdigit() for one in of_picture)
    classes = sorted(set(of_picture), key=int if numbered else None)
    at = {one: number for number, one in enumerate(classes)}
    return Labels([at[one] for one in of_picture], classes, numbered)


def rows_of(table: Path, needed: Callable[[Sequence[str]], Sequence[str]]) -> list[Row]:
    """All rows of a table by column.

    Args:
        needed: of the columns there are; of a parquet no others are read.

    Raises:
        EvaluationSetError: where it, or a row, can't be read, or it is larger than any table of texts.
    """
    kind = format_of(table.name)
    try:
        if kind == "parquet":
            return list(_parquet(table, needed))
        with open_text_list(str(table), "utf-8-sig", newline="") as text:
            lines = _lines(table, text)
            return list(_jsonl(table, lines) if kind == "jsonl" else _csv(table, lines, kind))
    except (OSError, ValueError, RecursionError, csv.Error) as error:  # ArrowInvalid is a ValueError
        if isinstance(error, EvaluationSetError):
            raise
        raise EvaluationSetError(f"{table} can't be read to its end ({error}): mend it, or fetch it again") from error


def _parquet(table: Path, needed: Callable[[Sequence[str]], Sequence[str]]) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(table) as parquet:
        columns, left = list(needed(parquet.schema_arrow.names)), limits.MAX_TOLD_BYTES
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=columns, use_threads=False):
            left -= batch.nbytes
            if left < 0:
                raise limits.too_large(table)
            yield from batch.to_pylist()


def _lines(table: Path, text: IO[str]) -> Iterator[str]:
    """Counted after unpacking; a line that has no end is not read to it."""
    left = limits.MAX_TOLD_BYTES
    while line := text.readline(left + 1):
        left -= len(line)
        if left < 0:
            raise limits.too_large(table)
        yield line


def _csv(table: Path, text: Iterator[str], kind: str) -> Iterator[Row]:
    csv.field_size_limit(MAX_FIELD_CHARS)
    reader = csv.reader(text) if kind == "csv" else csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
    header = next(reader, [])
    if len(set(header)) < len(header):
        raise EvaluationSetError(f"{table}: two columns have one name in its first line: {', '.join(header)}")
    for cells in reader:
        if not cells:
            continue
        if len(cells) != len(header):
            raise EvaluationSetError(
                f"{table}, line {reader.line_num:,}: {len(cells)} cells in place of {len(header)} (a comma inside a text needs"
                " quotation marks around the text)"
            )
        yield dict(zip(header, cells, strict=True))


def _jsonl(table: Path, text: Iterator[str]) -> Iterator[Row]:
    columns: list[str] = []
    for number, line in enumerate(text, 1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise EvaluationSetError(f"{table}, line {number:,}: an object a line is needed")
            columns = columns or list(row)
            yield dict.fromkeys(columns) | row
