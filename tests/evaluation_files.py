"""Evaluation sets as files, written on the fly: WebDatasets in CLIP_benchmark's layout, and a folder with a csv."""

import csv
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from veclip_core.download.seal import add_member

COLOURS = ("red", "green", "blue", "white", "black", "purple", "brown", "yellow", "grey", "pink", "orange", "teal")


def picture(number: int) -> bytes:
    """A noisy square in a colour of its own, 40 by 40."""
    random = np.random.default_rng(number)
    pixels = random.integers(0, 255, 3) * 0.7 + random.integers(0, 76, (40, 40, 3))
    encoded = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(encoded, "PNG")
    return encoded.getvalue()


def captions_of(number: int, each: int = 5) -> list[str]:
    return [f"a {COLOURS[number % len(COLOURS)]} square, number {number} of the {n}th kind" for n in range(each)]


def write_retrieval_tars(folder: Path, pictures: int = 12) -> Path:
    """`test/0.tar` with five captions a picture, as `wds_mscoco_captions` has them."""
    members = [
        (f"{number:09d}", {"png": picture(number), "txt": "\n".join(captions_of(number)).encode()})
        for number in range(pictures)
    ]
    return _write(folder, members, "retrieval")


def write_class_tars(folder: Path, pictures: int = 24, classes: Sequence[str] = COLOURS) -> Path:
    """`test/0.tar` with a class a picture, `classnames.txt` and templates, as `wds_imagenet1k` has them."""
    members = [
        (f"{number:09d}", {"png": picture(number), "cls": str(number % len(classes)).encode()})
        for number in range(pictures)
    ]
    _write(folder, members, "classification")
    (folder / "classnames.txt").write_text("\n".join(classes) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text(
        "a photo of a {c} thing.\na drawing of a {c} thing.\n"
    )
    return folder


def _write(folder: Path, members: Sequence[tuple[str, dict[str, bytes]]], kind: str) -> Path:
    (folder / "test").mkdir(parents=True)
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for key, files in members:
            for extension, data in files.items():
                add_member(tar, f"{key}.{extension}", data)
    (folder / "test" / "nshards.txt").write_text("1\n")
    (folder / "dataset_type.txt").write_text(f"{kind}\n")
    return folder


def write_folder_and_csv(folder: Path, pictures: int = 12) -> Path:
    """One's own pictures: `captions.csv` with a row a caption, and the pictures beside it."""
    (folder / "photos").mkdir(parents=True)
    with open(folder / "captions.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "caption"])
        for number in range(pictures):
            (folder / "photos" / f"{number}.png").write_bytes(picture(number))
            for caption in captions_of(number, each=1 + number % 2):
                table.writerow([f"photos/{number}.png", caption])
    return folder / "captions.csv"
