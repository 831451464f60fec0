"""What classes are called in front of a text model, and with which templates: the set's own files, or a kept library's lists."""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from veclip_core.evaluation.layouts.found import Labels, refuse
from veclip_core.evaluation.set_catalogue import plain_name
from veclip_core.evaluation.sets import EvaluationSetError, Labelling
from veclip_core.evaluation.zeroshot import DRAWING_TEMPLATES, PLACE, readable

CLASS_NAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
"""CLIP_benchmark's names of these files."""
IMAGENET = "imagenet"
IMAGENET_CLASSES = 1_000
_WNID = re.compile(r"n\d{8}")
MAX_FILE_BYTES = 32 << 20

Texts = Mapping[str, str] | Sequence[str]
"""Of the classes: by the set's own name of each, or in the order of the labels."""


def labelling_of(
    name: str, labels: Labels, texts: Texts | None, templates: Sequence[str] | None
) -> tuple[Labelling, dict[str, int]]:
    """The classes as they are told to a model, and what was counted on the way.

    Args:
        name: of the set: one that begins with `imagenet` has open_clip's class names where it has none of its own.
        texts: told of the classes.

    Raises:
        EvaluationSetError: where these texts are not those of the labels.
    """
    own = labels.classes
    classes: list[str]
    at: Sequence[int]
    if texts is None:
        texts = _known_texts(name, labels)
    if texts is None:
        if labels.numbered:
            raise EvaluationSetError(
                f"{name}: there are labels but no texts of the classes: put a {CLASS_NAMES} beside the data, one class a line in"
                " the order of the labels, or name one with `classes` in the catalogue"
            )
        classes, at = [readable(one) or one for one in own], range(len(own))
    elif isinstance(texts, Mapping):
        unknown = [one for one in own if one not in texts]
        refuse(name, unknown, f"{len(unknown):,} classes that the class list lacks", "Add them to the list.")
        order = {one: number for number, one in enumerate(texts)}
        classes, at = list(texts.values()), [order[one] for one in own]
    else:
        classes, at = list(texts), _positions(name, own, labels.numbered, list(texts))
    empty = [number for number, text in enumerate(classes) if not text.strip()]
    refuse(name, empty, "classes without a text (numbers from 0)", "Give each a text.")
    target_N = np.asarray(at)[np.asarray(labels.of_picture)]
    counted = {
        "empty_classes": len(classes) - len(np.unique(target_N)),
        "classes_of_one_text": len(classes) - len(set(classes)),
    }
    return Labelling(tuple(classes), target_N, tuple(templates) if templates else None), counted


def is_imagenet(name: str) -> bool:
    """Whether a set is one of ImageNet's by its name: `imagenet1k`, `ImageNet-V2`, `wds_imagenet-r`."""
    return plain_name(name).startswith(IMAGENET)


def says_nothing(name: str, labels: Labels, texts: Texts | None) -> bool:
    """Whether the labels are numbers of which nobody says what they mean."""
    return labels.numbered and texts is None and _known_texts(name, labels) is None


def _known_texts(name: str, labels: Labels) -> Texts | None:
    """open_clip's of ImageNet."""
    return _imagenet_texts(labels.classes, labels.numbered) if is_imagenet(name) else None


def _positions(name: str, own: Sequence[str], numbered: bool, texts: list[str]) -> Sequence[int]:
    """Of the set's own classes in a list of texts without names."""
    if numbered:
        beyond = [one for one in own if not 0 <= int(one) < len(texts)]
        refuse(
            name, beyond, f"labels beyond the {len(texts):,} lines of the class list",
            "One line a class, in the order of the labels from 0 on, is needed.",
        )  # fmt: skip
        return [int(one) for one in own]
    if set(own) <= set(texts):
        return [texts.index(one) for one in own]
    if len(own) != len(texts):
        raise EvaluationSetError(
            f"{name}: the class list has {len(texts):,} lines and there are {len(own):,} classes ({own[0]} first): one line a class"
            " in the order of their names is needed, or a csv or json of name and text"
        )
    return range(len(own))


def _imagenet_texts(own: Sequence[str], numbered: bool) -> Texts | None:
    """open_clip's (which are OpenAI's) of ImageNet's classes, in the order of their WordNet ids."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    if all(_WNID.fullmatch(one) for one in own):
        from timm.data import ImageNetInfo

        texts = dict(zip(ImageNetInfo("imagenet-1k").label_names(), IMAGENET_CLASSNAMES, strict=True))
        # ImageNet-A and -R have 200 of the thousand, and only these are choices.
        return {one: texts[one] for one in own} if all(one in texts for one in own) else None
    if numbered or all(one.isascii() and one.isdigit() for one in own):
        by_number = {str(number): text for number, text in enumerate(IMAGENET_CLASSNAMES)}
        return by_number if all(one in by_number for one in own) else None
    return list(IMAGENET_CLASSNAMES) if len(own) == IMAGENET_CLASSES else None


def read_texts(path: Path) -> Texts:
    """The class texts of a file: json (an object or a list), csv or tsv (label, text), else one a line.

    Raises:
        EvaluationSetError: where it is not there or holds none.
    """
    told = _told(path)
    try:
        if path.suffix == ".json":
            value = json.loads(told)
            if isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
                texts: Texts = value
            elif isinstance(value, list) and all(isinstance(text, str) for text in value):
                texts = value
            else:
                raise ValueError("no object or list of texts")
        elif path.suffix in (".csv", ".tsv"):
            rows = [
                row for row in csv.reader(io.StringIO(told), delimiter="," if path.suffix == ".csv" else "\t") if row
            ]
            if any(len(row) != 2 for row in rows):
                raise ValueError("a row that is not a label and a text")
            texts = {label.strip(): text.strip() for label, text in rows}
            if len(texts) < len(rows):
                raise ValueError("a label twice")
        else:
            texts = [line.strip() for line in told.rstrip().splitlines()]
    except (ValueError, RecursionError, csv.Error) as error:
        raise EvaluationSetError(f"{path} can't be read as class texts: {error}") from error
    if not texts:
        raise EvaluationSetError(f"{path} is empty: one class a line is needed")
    return texts


def templates_named(told: str | Sequence[str]) -> tuple[str, ...]:
    """A kept library's templates by name, or one's own, with `{}` in the class's place.

    Raises:
        EvaluationSetError: for one without a place.
    """
    if told == "drawing":
        return DRAWING_TEMPLATES
    if isinstance(told, str):
        from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

        kept = {"openai": OPENAI_IMAGENET_TEMPLATES, "simple": SIMPLE_IMAGENET_TEMPLATES}[told]
        return tuple(template(PLACE) for template in kept)
    return tuple(map(_template, told))


def read_templates(path: Path) -> tuple[str, ...]:
    """Of CLIP_benchmark's file, one a line with `{c}` in the class's place."""
    return templates_named([line.strip() for line in _told(path).splitlines() if line.strip()])


def _template(told: str) -> str:
    """With `{}` where the class is put; all else is as it was told, braces too."""
    template = told.replace("{c}", PLACE)
    if PLACE not in template:
        raise EvaluationSetError(f"the template {told!r} has no place for the class: write {{}} or {{c}} there")
    return template


def _told(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            told = file.read(MAX_FILE_BYTES + 1)
        if len(told) > MAX_FILE_BYTES:
            raise EvaluationSetError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB: that is no list of classes")
        return told.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationSetError(f"{path} can't be read ({error}): a text file in UTF-8 is needed") from error
