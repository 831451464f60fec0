"""Parquet files of Hugging Face `datasets`, with the pictures inside: a column of structs {bytes, path}.

Pictures inside a parquet have no place that can be read alone, so they are copied once into a tar in the cache.
"""

import hashlib
import json
import re
import tarfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from veclip_core import storage
from veclip_core.download.seal import add_member
from veclip_core.evaluation.layouts import tables
from veclip_core.evaluation.layouts.class_folders import LABEL
from veclip_core.evaluation.layouts.found import Found, Labels, refuse
from veclip_core.evaluation.set_catalogue import SetSpec
from veclip_core.evaluation.sets import EvaluationSetError, PicturePlace

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 64
COPY = "pictures.tar"
KNOWN_SPLITS = ("test", "validation", "val", "train")
"""In order of preference, where none is told."""


def candidates(folder: Path) -> list[Path]:
    """The parquet files of a folder and of those inside; hidden ones are left out."""
    files = sorted(folder.rglob("*.parquet"))
    return [one for one in files if not any(piece.startswith(".") for piece in one.relative_to(folder).parts)]


def looks_so(file: Path) -> bool:
    """Whether a column holds pictures."""
    try:
        return bool(_picture_columns(_schema(file)))
    except EvaluationSetError:
        return False


def files_of(name: str, spec: SetSpec, path: Path) -> list[Path]:
    """The files of the split: by name (`test-00000-of-00001.parquet`, `test.parquet`) or folder (`test/0000.parquet`).

    Raises:
        EvaluationSetError: where there is none of it, or several configurations.
    """
    if path.is_file():
        return [path]
    files = candidates(path)
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(split_of(str(file.relative_to(path)), spec.split), []).append(file)
    split = chosen_split(set(by_split), spec.split)
    if split not in by_split:
        there = ", ".join(one or "files without one in their names" for one in by_split) or "none"
        raise EvaluationSetError(f"{name}: {path} has no parquet files of the split {split!r}. There are {there}")
    chosen = by_split[split]
    if len({file.parent for file in chosen}) > 1:
        folders = ", ".join(sorted({str(file.parent.relative_to(path)) for file in chosen}))
        raise EvaluationSetError(
            f"{name}: {path} holds several configurations ({folders}): give the folder of the one meant"
        )
    return chosen


def split_of(file: str, told: str) -> str:
    """`test-00000-of-00001.parquet`, `test.parquet` and `test/0000.parquet` are of `test`; empty where no name says one.

    Args:
        told: a split that may be none of the known ones.
    """
    pieces = file.split("/")
    named = re.match(r"(.+?)(?:-\d{5}-of-\d{5})?\.parquet", pieces[-1])
    said = [named[1] if named else "", *pieces[-2:-1]]
    known = next((one for one in said if one in (told, *KNOWN_SPLITS)), "")
    return known or ("" if not named or named[0] == f"{named[1]}.parquet" else named[1])


def chosen_split(there: Collection[str], told: str) -> str:
    """The split told, or the first of the known ones, or the only one."""
    if told or not there:
        return told
    return next((one for one in KNOWN_SPLITS if one in there), next(iter(there)) if len(there) == 1 else "")


def read(name: str, spec: SetSpec, files: Sequence[Path], copy: Path) -> Found:
    """Rows in order. Rows that have a picture's very bytes, path and classes again hold further captions of it; where no path
    tells one picture from another, neighbouring rows.

    Args:
        copy: a folder of this set's own; the tar there is whole once this returns.
    """
    schema = _schema(files[0])
    pictures = _picture_columns(schema)
    image = tables.column_of(files[0], schema.names, spec.image_column, pictures, "the pictures")
    if image not in pictures:
        raise EvaluationSetError(f"{files[0]}: the column {image} holds no pictures (structs of bytes and path)")
    others = [one for one in schema.names if one not in pictures]
    named_classes = _class_names(schema)
    texts = tables.caption_columns(files[0], [one for one in others if one not in named_classes], spec)
    labels = _label_columns(files[0], others, named_classes, texts, spec)
    split = [one for one in others if one.lower() == tables.SPLIT_COLUMN]
    columns = [image, *dict.fromkeys([*texts, *labels, *split])]
    found = Found()
    told: dict[str, list[Any]] = {column: [] for column in labels}
    rows_of: dict[tuple[str, str], int] = {}
    bad: list[str] = []
    wanted = _split_wanted(name, spec, files, split)
    copy.mkdir(parents=True, exist_ok=True)
    target = copy / COPY
    aside = storage.beside(target)
    try:
        with storage.fatal_errors_named(str(copy)), tarfile.open(aside, "w", format=tarfile.USTAR_FORMAT) as tar:
            for where, row in _rows(name, files, columns):
                if wanted and str(row[split[0]]) != wanted:
                    found.notes["rows_of_other_splits"] = found.notes.get("rows_of_other_splits", 0) + 1
                    continue
                data = (row[image] or {}).get("bytes")
                if not data:
                    bad.append(where)
                    continue
                sha256 = hashlib.sha256(data).hexdigest()
                path = row[image].get("path") or ""
                captions = tables.captions_of(row, texts) if texts else []
                again = rows_of.get((path, sha256)) if texts else None
                if again is not None and not path and again != len(found.ids) - 1:
                    again = None
                if again is not None and all(told[column][again] == row[column] for column in labels):
                    found.captions[again] += captions
                    continue
                rows_of[path, sha256] = len(found.ids)
                offset = add_member(tar, f"{len(found.ids):09d}", data)
                id_ = f"{len(found.ids):06d}" + (f"-{path}" if path else "")
                found.add(id_, PicturePlace(str(target), offset, len(data)), sha256, captions)
                for column in labels:
                    told[column].append(row[column])
        refuse(
            files[0].parent, bad, f"{len(bad):,} rows without the bytes of a picture",
            "Save the set with its pictures inside (`datasets` embeds them in to_parquet), or leave these rows out.",
        )  # fmt: skip
        storage.publish_file(aside, str(target))
    finally:
        aside.unlink(missing_ok=True)
    for column in labels:
        named = spec.label_column or column in named_classes
        if texts and not named and not tables.fit_for_classes({tables.class_of(one)} for one in told[column]):
            found.notes[tables.CLASSES_LEFT_OUT] = 1
            continue
        known_as = column if len(labels) > 1 else LABEL
        found.labels[known_as] = _labels(name, column, told[column], named_classes.get(column))
    return found


def _rows(name: str, files: Sequence[Path], columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet as pq

    for file in files:
        try:
            with pq.ParquetFile(file) as parquet:
                bar = tqdm(
                    total=parquet.metadata.num_rows, desc=f"{name}: copying {file.name}", unit="row", disable=None
                )
                with bar:
                    at = 0
                    for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=list(columns), use_threads=False):
                        for row in batch.to_pylist():
                            yield f"{file.name}, row {at:,}", row
                            at += 1
                        bar.update(batch.num_rows)
        except (OSError, ValueError, KeyError) as error:  # ArrowInvalid is a ValueError
            if isinstance(error, EvaluationSetError):
                raise
            raise EvaluationSetError(f"{file} can't be read to its end ({error}): fetch it again") from error


def _split_wanted(name: str, spec: SetSpec, files: Sequence[Path], split: Sequence[str]) -> str:
    """The value of the split column that is meant; empty where there is no such column."""
    if not split:
        return ""
    there = {str(row[split[0]]) for _, row in _rows(name, files, split)}
    if len(there) == 1 and not spec.split:
        return ""
    wanted = spec.split or next((one for one in KNOWN_SPLITS if one in there), "")
    if wanted not in there:
        raise EvaluationSetError(f"{name}: no row is of the split {wanted!r}. There are {', '.join(sorted(there))}")
    return wanted


def _schema(file: Path) -> "pa.Schema":
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(file)
    except (OSError, ValueError) as error:
        raise EvaluationSetError(f"{file} can't be read ({error}): fetch it again") from error


def _picture_columns(schema: "pa.Schema") -> list[str]:
    import pyarrow as pa

    return [
        field.name
        for field in schema
        if pa.types.is_struct(field.type) and {"bytes", "path"} <= {inner.name for inner in field.type}
    ]


def _class_names(schema: "pa.Schema") -> dict[str, list[str]]:
    """The names of each ClassLabel column, as `datasets` keeps them in the schema."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        found = {
            name: one["names"]
            for name, one in features.items()
            if isinstance(one, dict) and one.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return {
        name: names
        for name, names in found.items()
        if name in schema.names and isinstance(names, list) and all(isinstance(one, str) for one in names)
    }


def _label_columns(
    file: Path, columns: Sequence[str], named: dict[str, list[str]], texts: Sequence[str], spec: SetSpec
) -> list[str]:
    """Every ClassLabel, unless one column is told; else a column by its name."""
    if named and not spec.label_column:
        return list(named)
    found = tables.label_column(file, columns, spec, texts)
    return [] if found is None else [found]


def _labels(name: str, column: str, told: list[Any], classes: list[str] | None) -> Labels:
    if classes is not None or all(isinstance(one, int) for one in told):
        odd = sorted(
            {str(one) for one in told if not isinstance(one, int) or not 0 <= one < len(classes or [one, one])}
        )
        refuse(
            name, odd, f"labels in {column} that are no class", "Is it a split without labels (-1)? Take one that has them."
        )  # fmt: skip
    if classes is not None:
        return Labels(told, classes)
    texts = list(map(tables.class_of, told))
    refuse(
        name, [row for row, one in enumerate(texts) if not one], f"rows without a class in {column}", "Give each one."
    )
    numbered = all(isinstance(one, int) for one in told)
    there = sorted(set(texts), key=int if numbered else None)
    at = {one: number for number, one in enumerate(there)}
    return Labels([at[one] for one in texts], there, numbered)
