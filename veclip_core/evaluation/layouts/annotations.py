"""Pictures in folders and one JSON of their captions: Karpathy's splits (`dataset_coco.json`, `dataset_flickr30k.json`), COCO's own
format (`coco_test_karpathy.json`), SugarCrepe's (`swap_att.json`)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veclip_core.evaluation.layouts import found as limits
from veclip_core.evaluation.layouts.found import Found, refuse
from veclip_core.evaluation.layouts.listing import Files, Listing, digests
from veclip_core.evaluation.set_catalogue import SetSpec
from veclip_core.evaluation.sets import EvaluationSetError, PicturePlace

DEFAULT_SPLIT = "test"
START_BYTES = 1 << 16


@dataclass(frozen=True)
class Entry:
    """A picture as an annotation names it."""

    file: str
    captions: tuple[str, ...]


def looks_so(path: Path) -> bool:
    """Whether a JSON file begins like one of them; files without end are not read for it."""
    try:
        with open(path, "rb") as file:
            start = file.read(START_BYTES)
    except OSError:
        return False
    return any(word in start for word in (b'"images"', b'"sentences"', b'"annotations"', b'"negative_caption"'))


def read(name: str, spec: SetSpec, annotations: Path, listing: Listing) -> Found:
    """Pictures in the order of the file; of Karpathy's those of the split.

    Args:
        listing: of the folder of the pictures; each is found by its path inside it, or by its name.
    """
    entries, choice = _entries(name, spec, annotations)
    files = Files(listing)
    places = [files.find(entry.file) or files.find(entry.file.rpartition("/")[2]) for entry in entries]
    missing = [entry.file for entry, place in zip(entries, places, strict=True) if place is None]
    refuse(
        annotations, missing, f"{len(missing):,} of {len(entries):,} pictures are not below {listing.folder}",
        "Put them there, or name their folder with `pictures` in the catalogue.",
    )  # fmt: skip
    paths = [listing.folder / place for place in places if place is not None]
    found = Found(choice=choice)
    for entry, path, sha256 in zip(entries, paths, digests(paths, name), strict=True):
        found.add(entry.file, PicturePlace(str(path)), sha256, entry.captions)
    return found


def _entries(name: str, spec: SetSpec, annotations: Path) -> tuple[list[Entry], bool]:
    try:
        with open(annotations, "rb") as file:
            told = file.read(limits.MAX_TOLD_BYTES + 1)
        if len(told) > limits.MAX_TOLD_BYTES:
            raise limits.too_large(annotations)
        value = json.loads(told)
        if not isinstance(value, Mapping):
            raise TypeError("no object")
        images = value.get("images")
        if isinstance(images, list) and isinstance(value.get("annotations"), list):
            return _coco(images, value["annotations"]), False
        if isinstance(images, list):
            return _karpathy(name, spec, images), False
        return [_choice(entry) for entry in value.values()], True
    except EvaluationSetError:
        raise
    except KeyError as error:
        raise EvaluationSetError(
            f"{annotations}: an entry lacks {error}. Known are Karpathy's JSON (images with filename, split, sentences with raw),"
            " COCO's (images with id, file_name; annotations with image_id, caption) and SugarCrepe's (filename, caption,"
            " negative_caption)"
        ) from error
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise EvaluationSetError(
            f"{annotations} can't be read as annotations ({error}): is all of it there, and in one of Karpathy's, COCO's and"
            " SugarCrepe's formats?"
        ) from error


def _karpathy(name: str, spec: SetSpec, images: list[Any]) -> list[Entry]:
    split = spec.split or DEFAULT_SPLIT
    entries = []
    for image in images:
        if image["split"] == split:
            folder = image.get("filepath", "")
            file = f"{folder}/{image['filename']}" if folder else image["filename"]
            entries.append(Entry(_text(file), tuple(_text(sentence["raw"]) for sentence in image["sentences"])))
    if not entries:
        there = sorted({str(image["split"]) for image in images})
        raise EvaluationSetError(
            f"{name}: no picture is of the split {split!r}. There are {', '.join(there) or 'none'}"
        )
    return entries


def _coco(images: list[Any], annotations: list[Any]) -> list[Entry]:
    captions: dict[Any, list[str]] = {image["id"]: [] for image in images}
    for annotation in annotations:
        captions[annotation["image_id"]].append(_text(annotation["caption"]))
    # In the order of their ids, as torchvision's CocoCaptions gives them.
    by_id = sorted(images, key=lambda image: image["id"])
    return [Entry(_text(image["file_name"]), tuple(captions[image["id"]])) for image in by_id]


def _choice(entry: Mapping[str, Any]) -> Entry:
    return Entry(_text(entry["filename"]), (_text(entry["caption"]), _text(entry["negative_caption"])))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.50} in place of a text")
    return value
