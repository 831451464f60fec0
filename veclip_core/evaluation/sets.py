"""Evaluation sets: pictures, their captions (one or several each), class labels, and splits.

Legend of the shapes: N pictures, M captions, `caption_picture_M[m]` is the row of the picture that caption m describes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from veclip_core import storage
from veclip_core.config import digest_of
from veclip_core.evaluation.opening import picture_at
from veclip_core.evaluation.zeroshot import readable
from veclip_core.mendable import Mendable

if TYPE_CHECKING:
    from PIL.Image import Image

ITEM_COLUMNS = ("hexcode", "caption", "group", "subgroup", "file", "sha256", "concept_split")
OPENMOJI_SPLITS = ("fitted", "unseen")


class EvaluationSetError(Mendable, ValueError):
    """The set is missing or malformed; the message says how to mend it."""


@dataclass(frozen=True)
class PicturePlace:
    """Where a picture's bytes are: a file, or a stretch of one (a member of a tar)."""

    address: str
    """Path or address."""
    offset: int = 0
    length: int | None = None
    """None: to the end."""

    def read(self) -> bytes:
        """Raises OSError where there is none."""
        end = None if self.length is None else self.offset + self.length
        return storage.read_bytes(self.address, self.offset, end)


@dataclass(frozen=True)
class Labelling:
    """One way to name the pictures by classes; C classes."""

    classes: tuple[str, ...]
    """The texts of the classes, in the set's own order. One without a picture is still a choice for every picture."""
    target_N: np.ndarray
    """Class of each picture, an index of `classes`."""
    templates: tuple[str, ...] | None = None
    """The set's own; None takes those of the evaluation's configuration."""

    def templates_or(self, otherwise: tuple[str, ...]) -> tuple[str, ...]:
        """Those its classes are embedded by."""
        return self.templates or otherwise

    @classmethod
    def of_names(cls, names: Sequence[str]) -> "Labelling":
        """Classes in the order of their names, each with a picture."""
        found, target_N = np.unique(names, return_inverse=True)
        return cls(tuple(readable(name) for name in found.tolist()), target_N)


@dataclass(frozen=True)
class EvaluationSet:
    """N pictures with M captions (none where only classes are known). Pictures are opened when needed; everything else is in
    memory."""

    name: str
    ids: tuple[str, ...]
    pictures: tuple[PicturePlace, ...]
    captions: tuple[str, ...]
    caption_picture_M: np.ndarray
    labels: Mapping[str, Labelling]
    """By name, e.g. "subgroup"."""
    splits: Mapping[str, np.ndarray]
    """By split: a mask over pictures. "all" is always there."""
    content: str
    """Digest of the pictures, captions, labels and splits."""
    pictures_digest: str | None = None
    """Of the pictures' own content, in order: by it their embeddings are found, whatever the set is called and its texts are. None:
    `content` stands for it."""
    right_M: np.ndarray | None = None
    """Of a choice among each picture's captions, as in SugarCrepe: which are right. None: all are."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """What reading it counted, such as `duplicate_pictures`: told wherever its scores are."""

    def __post_init__(self) -> None:
        pictures, captions = len(self.pictures), len(self.captions)
        lengths = [len(self.ids), *(len(x.target_N) for x in self.labels.values()), *map(len, self.splits.values())]
        if pictures < 2 or any(length != pictures for length in lengths) or len(self.caption_picture_M) != captions:
            raise EvaluationSetError(f"{self.name}: ids, labels, splits and captions do not match {pictures} pictures")
        if not captions and not self.labels:
            raise EvaluationSetError(f"{self.name}: there are neither captions nor classes to evaluate by")
        if captions and set(np.unique(self.caption_picture_M).tolist()) != set(range(pictures)):
            raise EvaluationSetError(
                f"{self.name}: every picture needs at least one caption, and every caption a picture"
            )
        for name, labelling in self.labels.items():
            if labelling.target_N.min() < 0 or labelling.target_N.max() >= len(labelling.classes):
                raise EvaluationSetError(
                    f"{self.name}: the labels {name} go from {labelling.target_N.min()} to {labelling.target_N.max()}, and there"
                    f" are {len(labelling.classes)} classes"
                )
        if "all" not in self.splits or not all(mask.any() for mask in self.splits.values()):
            raise EvaluationSetError(f"{self.name}: the split 'all' is missing, or a split is empty")

    def __len__(self) -> int:
        return len(self.pictures)

    def open_picture(self, row: int) -> "Image":
        """The picture as RGB; transparent pixels become white. Raises `opening.Unreadable`."""
        return picture_at(self.pictures[row])

    @cached_property
    def captions_of(self) -> tuple[tuple[str, ...], ...]:
        """The captions of each picture, in order."""
        grouped: list[list[str]] = [[] for _ in self.pictures]
        for caption, row in zip(self.captions, self.caption_picture_M, strict=True):
            grouped[row].append(caption)
        return tuple(tuple(captions) for captions in grouped)


def ragged_set(
    name: str,
    files: Sequence[Path],
    captions: Sequence[Sequence[str]],
    *,
    labels: Mapping[str, Sequence[str]] | None = None,
    content: str,
) -> EvaluationSet:
    """A set with several captions a picture and no splits, as COCO and Flickr30k are. `content` is a digest of the files."""
    counts = [len(texts) for texts in captions]
    return EvaluationSet(
        name=name,
        ids=tuple(file.stem for file in files),
        pictures=tuple(PicturePlace(str(file)) for file in files),
        captions=tuple(text for texts in captions for text in texts),
        caption_picture_M=np.repeat(np.arange(len(counts)), counts),
        labels={key: Labelling.of_names(values) for key, values in (labels or {}).items()},
        splits={"all": np.ones(len(files), dtype=bool)},
        content=digest_of([content, [list(texts) for texts in captions]]),
    )


def read_openmoji(folder: Path) -> EvaluationSet:
    """The emoji of an artist whom neither captioner nor model has seen. Splits: the captioner was fitted on the concept
    (as drawn by others), or the concept was held out from it. Raises EvaluationSetError with the command that mends it."""
    import pyarrow.parquet as pq

    items = folder / "items.parquet"
    if not items.is_file():
        raise EvaluationSetError(f"no evaluation set in {folder}: run `veclip sample fetch` first")
    table = pq.read_table(items, use_threads=False, pre_buffer=False)
    if missing := [column for column in ITEM_COLUMNS if column not in table.column_names]:
        raise EvaluationSetError(f"{items} lacks the columns {', '.join(missing)}: run `veclip sample fetch` again")
    rows = sorted(table.select(ITEM_COLUMNS).to_pylist(), key=lambda row: row["hexcode"])
    files = tuple(_file_of(folder, row["file"]) for row in rows)
    if absent := [file.name for file in files if not file.is_file()]:
        raise EvaluationSetError(
            f"{len(absent)} of {len(files)} pictures of {folder} are missing, {absent[0]} first: run `veclip sample fetch` again"
        )
    if unknown := {row["concept_split"] for row in rows} - set(OPENMOJI_SPLITS):
        raise EvaluationSetError(f"{items}: concept_split is {sorted(unknown)}, not one of {OPENMOJI_SPLITS}")
    split_of = np.array([row["concept_split"] for row in rows])
    splits = {"all": np.ones(len(rows), dtype=bool)} | {split: split_of == split for split in OPENMOJI_SPLITS}
    return EvaluationSet(
        name="openmoji",
        ids=tuple(row["hexcode"] for row in rows),
        pictures=tuple(PicturePlace(str(file)) for file in files),
        captions=tuple(row["caption"] for row in rows),
        caption_picture_M=np.arange(len(rows)),
        labels={label: Labelling.of_names([row[label] for row in rows]) for label in ("group", "subgroup")},
        splits={split: mask for split, mask in splits.items() if mask.any()},
        content=digest_of([[row[column] for column in ITEM_COLUMNS if column != "file"] for row in rows]),
        pictures_digest=digest_of([row["sha256"] for row in rows]),
    )


def _file_of(folder: Path, file: str) -> Path:
    """`file` may be a bare name or already carry `images/`."""
    return folder / file if file.startswith("images/") else folder / "images" / file
