"""From what a person names to an evaluation set that is read whole: a catalogue's name, a folder, a file, an address."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import numpy as np

from veclip_core import storage
from veclip_core.config import digest_of
from veclip_core.evaluation.layouts import class_names
from veclip_core.evaluation.layouts.detect import Reading, detect
from veclip_core.evaluation.layouts.fetching import fetched
from veclip_core.evaluation.layouts.found import Found, read_once, refuse
from veclip_core.evaluation.layouts.tables import CLASSES_LEFT_OUT
from veclip_core.evaluation.set_catalogue import NAME, OPENMOJI, SetSpec, plain_name, read_catalogue
from veclip_core.evaluation.sets import EvaluationSet, EvaluationSetError, Labelling, read_openmoji

VERSION = 2
"""Raised when a layout is read otherwise, so that what was found before is found anew."""
MIN_PICTURES = 10
FOLDER = "evaluation_sets"


def open_set(
    told: str,
    cache: Path,
    catalogue: str | None = None,
    allowed_hosts: frozenset[str] = frozenset(),
    imagenet_templates: bool = True,
) -> EvaluationSet:
    """Read a set; what takes long is kept in the cache, and done again when a file has changed.

    Args:
        told: a name of the catalogue, `openmoji` (the sample's), PATH or NAME=PATH.
        catalogue: path or address of a YAML file of `SetSpec`s.
        allowed_hosts: `host:port` of http servers inside private networks that may be asked.
        imagenet_templates: whether a set named `imagenet...` without templates of its own has OpenAI's.

    Raises:
        EvaluationSetError: where it is not there, or not whole; the message says what mends it.
    """
    name, spec = _resolve(told, catalogue)
    if spec is None:
        return read_openmoji(cache / "world" / OPENMOJI)
    folder = cache / FOLDER
    here = {
        key: str(fetched(name, address, spec.split, folder / "fetched", allowed_hosts))
        for key in ("path", "pictures", "classes")
        if (address := getattr(spec, key))
    }
    spec = spec.model_copy(update=here)
    reading = detect(name, spec, Path(spec.path))
    # What comes after the reading, captions and class texts, is no part of what was read.
    decides = spec.model_dump(mode="json", exclude={"captions", "choice", "templates", "classes", "layout"})
    identity = digest_of([VERSION, reading.layout, decides, reading.facts])
    own = folder / identity[:32]
    found = read_once(own, lambda: reading.read(own))
    return _evaluation_set(name, spec, reading, found, imagenet_templates)


def _resolve(told: str, catalogue: str | None) -> tuple[str, SetSpec | None]:
    """The set's name and where it lies; None: the sample's."""
    known = read_catalogue(catalogue) if catalogue else {}
    if told in known:
        return told, known[told]
    if told == OPENMOJI:
        return told, None
    name, equals, path = told.partition("=")
    if not (equals and re.fullmatch(NAME, name)) or (storage.is_local(told) and Path(told).expanduser().exists()):
        name, path = "", told
    if not path or (re.fullmatch(NAME, path) and not Path(path).exists()):
        names = ", ".join([OPENMOJI, *known])
        raise EvaluationSetError(
            f"there is no evaluation set {path!r}: neither a folder or file here, nor one of {names}. Give its path or address,"
            " NAME=PATH, or add it to the catalogue (VECLIP_EVALUATION_SETS)"
        )
    name = name or _name_of(path)
    if name == OPENMOJI:
        raise EvaluationSetError(
            f"{OPENMOJI} is the name of the sample's own set, of drawings: give {storage.shown(path)} another by NAME=PATH"
        )
    return name, SetSpec(path=path)


def _name_of(path: str) -> str:
    """The last piece of a path that says something."""
    pieces = PurePosixPath(urlsplit(path).path if "://" in path else str(Path(path).expanduser().resolve())).parts
    pieces = tuple(piece for piece in pieces if piece not in ("/", "tree", "main", "resolve"))
    stem = re.sub(r"\.(json|csv|tsv|jsonl|parquet)(\.\w+)?$", "", pieces[-1] if pieces else "set")
    return re.sub(r"[^A-Za-z0-9._-]", "_", stem).lstrip("._-") or "set"


def _evaluation_set(
    name: str, spec: SetSpec, reading: Reading, found: Found, imagenet_templates: bool
) -> EvaluationSet:
    """What was found, under the protocol: so many captions, these texts and templates of the classes."""
    pictures, notes = len(found.ids), dict(found.notes)
    if pictures < MIN_PICTURES:
        raise EvaluationSetError(
            f"{name} has {pictures} pictures, and a score of fewer than {MIN_PICTURES} says nothing: is it the right"
            " folder or split?"
        )
    captions = _captions(name, spec, found, notes)
    # As CLIP_benchmark knows SugarCrepe: by its name.
    named_so = plain_name(name).replace("_", "").startswith("sugarcrepe")
    choice = (spec.choice or found.choice or named_so) and bool(captions)
    if choice:
        alone = [found.ids[row] for row, texts in enumerate(captions) if len(texts) < 2]
        refuse(
            name, alone, f"{len(alone):,} pictures with one caption in a set of choices", "Each needs a wrong one too."
        )
    counts = [len(texts) for texts in captions] or [0] * pictures
    first_M = np.array([at == 0 for count in counts for at in range(count)], dtype=bool)
    if spec.classes and len(found.labels) > 1:
        raise EvaluationSetError(
            f"{name} has the labels {', '.join(found.labels)}: name with `label_column` which of them `classes` is of"
        )
    labels: dict[str, Labelling] = {}
    for label, told in found.labels.items():
        texts = _class_texts(spec, reading) if len(found.labels) == 1 else None
        if captions and not spec.label_column and class_names.says_nothing(name, told, texts):
            notes[CLASSES_LEFT_OUT] = notes.get(CLASSES_LEFT_OUT, 0) + 1
            continue
        templates = _templates(name, spec, reading, imagenet_templates)
        labels[label], counted = class_names.labelling_of(name, told, texts, templates)
        for key, number in counted.items():
            notes[key] = notes.get(key, 0) + number
    notes["duplicate_pictures"] = pictures - len(set(found.sha256))
    flat = tuple(text for texts in captions for text in texts)
    return EvaluationSet(
        name=name,
        ids=tuple(found.ids),
        pictures=tuple(found.places),
        captions=flat,
        caption_picture_M=np.repeat(np.arange(pictures), counts),
        labels=labels,
        splits={"all": np.ones(pictures, dtype=bool)},
        content=digest_of(
            {
                "pictures": found.sha256,
                "captions": flat,
                "counts": counts,
                "choice": choice,
                "labels": {label: [one.classes, one.target_N.tolist(), one.templates] for label, one in labels.items()},
            }
        ),
        pictures_digest=digest_of(found.sha256),
        right_M=first_M if choice else None,
        notes={key: number for key, number in notes.items() if number},
    )


def _captions(name: str, spec: SetSpec, found: Found, notes: dict[str, int]) -> Sequence[Sequence[str]]:
    """Of each picture, those the protocol takes; nothing where the set has none."""
    if not any(found.captions):
        return []
    bad = [id_ for id_, texts in zip(found.ids, found.captions, strict=True) if not texts]
    refuse(
        name,
        bad,
        f"{len(bad):,} of {len(found.ids):,} pictures without a caption",
        "Give each one, or leave these out.",
    )
    bad = [id_ for id_, texts in zip(found.ids, found.captions, strict=True) if not all(text.strip() for text in texts)]
    refuse(name, bad, f"{len(bad):,} pictures with an empty caption", "Write these captions, or leave their rows out.")
    if spec.captions is None:
        return found.captions
    notes["captions_left_out"] = sum(max(0, len(texts) - spec.captions) for texts in found.captions)
    notes["pictures_with_fewer_captions"] = sum(len(texts) < spec.captions for texts in found.captions)
    return [texts[: spec.captions] for texts in found.captions]


def _class_texts(spec: SetSpec, reading: Reading) -> class_names.Texts | None:
    if spec.classes:
        return class_names.read_texts(Path(spec.classes))
    stem = Path(class_names.CLASS_NAMES).stem
    file = reading.beside(*(f"{stem}{suffix}" for suffix in (".txt", ".csv", ".tsv", ".json")))
    return class_names.read_texts(file) if file else None


def _templates(name: str, spec: SetSpec, reading: Reading, imagenet_templates: bool) -> tuple[str, ...] | None:
    if spec.templates:
        return class_names.templates_named(spec.templates)
    if own := reading.beside(class_names.TEMPLATES):
        return class_names.read_templates(own)
    if imagenet_templates and class_names.is_imagenet(name):
        return class_names.templates_named("openai")
    return None
