"""What a layout found: pictures in order with their captions and labels, before the protocol (how many captions, which class
texts and templates) makes an evaluation set of it. Kept as a table, so that a set of 50,000 files is read once."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from veclip_core import storage
from veclip_core.evaluation.sets import EvaluationSetError, PicturePlace

logger = logging.getLogger(__name__)

NAMED_FIRST = 3
"""Of the rows or files that an error counts, so many are named."""
MAX_TOLD_BYTES = 512 << 20
"""Of the captions and classes of a set, unpacked, which are read into memory: COCO's annotations, the largest of those known, have
some 150 MB."""
KEPT_AS = "found.parquet"


@dataclass
class Labels:
    """One way to name the pictures by classes."""

    of_picture: list[int]
    """The class of each picture, an index of `classes`."""
    classes: list[str]
    """As the set itself calls them: folders, ClassLabel names, or numbers where it has nothing but these."""
    numbered: bool = False
    """Whether `classes` are but the labels' numbers, and texts must come from a file."""


@dataclass
class Found:
    """N pictures; each list but `labels` has one entry a picture."""

    ids: list[str] = field(default_factory=list)
    places: list[PicturePlace] = field(default_factory=list)
    sha256: list[str] = field(default_factory=list)
    captions: list[list[str]] = field(default_factory=list)
    """All empty where there are only classes."""
    labels: dict[str, Labels] = field(default_factory=dict)
    choice: bool = False
    """The first caption of each picture is right, the others are wrong."""
    notes: dict[str, int] = field(default_factory=dict)

    def add(self, id_: str, place: PicturePlace, sha256: str, captions: Sequence[str] = ()) -> None:
        self.ids.append(_storable(id_))
        self.places.append(place)
        self.sha256.append(sha256)
        self.captions.append([_storable(caption) for caption in captions])

    def write(self, path: Path) -> None:
        """As one table, published whole."""
        facts = {
            "labels": {name: asdict(labels) for name, labels in self.labels.items()},
            "choice": self.choice,
            "notes": self.notes,
        }
        columns: dict[str, pa.Array] = {
            "id": pa.array(self.ids, pa.string()),
            "address": pa.array([place.address.removeprefix(f"{path.parent}/") for place in self.places], pa.string()),
            "offset": pa.array([place.offset for place in self.places], pa.int64()),
            "length": pa.array([place.length for place in self.places], pa.int64()),
            "sha256": pa.array(self.sha256, pa.string()),
            "captions": pa.array(self.captions, pa.list_(pa.string())),
        }
        table = pa.table(columns).replace_schema_metadata({"found": json.dumps(facts)})
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = storage.beside(path)
        with storage.fatal_errors_named(str(path)):
            pq.write_table(table, aside)
            storage.publish_file(aside, str(path))

    @classmethod
    def read(cls, path: Path) -> "Found":
        """Raises ValueError, KeyError, TypeError or OSError where there is no such table, or not what was copied for it."""
        table = pq.read_table(path, use_threads=False, pre_buffer=False)
        facts = json.loads((table.schema.metadata or {})[b"found"])
        columns = {name: table.column(name).to_pylist() for name in table.column_names}
        # Copies lie beside the table, wherever the cache is now.
        for copy in {address for address in columns["address"] if not address.startswith("/")}:
            (path.parent / copy).stat()
        addresses = [one if one.startswith("/") else f"{path.parent}/{one}" for one in columns["address"]]
        places = zip(addresses, columns["offset"], columns["length"], strict=True)
        return cls(
            columns["id"],
            [PicturePlace(*place) for place in places],
            columns["sha256"],
            columns["captions"],
            {name: Labels(**one) for name, one in facts["labels"].items()},
            facts["choice"],
            facts["notes"],
        )


def _storable(text: str) -> str:
    """Halves of surrogate pairs, which JSON may hold, replaced: no table takes them, and no tokenizer."""
    return text.encode("utf-8", "replace").decode()


def read_once(folder: Path, read: Callable[[], Found]) -> Found:
    """What was found before, where `folder` (of this very listing) has it."""
    kept = folder / KEPT_AS
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):  # a second process waits, and finds it there
        if kept.is_file():
            try:
                return Found.read(kept)
            except (OSError, ValueError, KeyError, TypeError) as error:  # ArrowInvalid is a ValueError
                logger.warning("%s can't be read (%s): the set is read anew", kept, error)
        storage.remove_dead_temporaries(str(folder))
        found = read()
        found.write(kept)
        return found


def too_large(file: Path) -> EvaluationSetError:
    return EvaluationSetError(
        f"{file} holds more than {MAX_TOLD_BYTES >> 20} MiB of texts, the most that is read (COCO's annotations have some"
        " 150 MB): is it that of an evaluation set? Cut it to the split that is meant"
    )


def refuse(where: object, problems: Sequence[Any], what: str, mend: str) -> None:
    """Raise one error for all problems of a kind, naming the first few and how many there are; nothing where there are none."""
    if problems:
        first = ", ".join(str(problem) for problem in problems[:NAMED_FIRST])
        more = f" and {len(problems) - NAMED_FIRST:,} more" if len(problems) > NAMED_FIRST else ""
        raise EvaluationSetError(f"{where}: {what}: {first}{more}. {mend}")
