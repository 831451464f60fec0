"""Small evaluation sets and results for the tests of the evaluation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from veclip_core.evaluation.sets import ITEM_COLUMNS, EvaluationSet, ragged_set, read_openmoji

GROUPS = ("animals-nature", "food-drink", "objects")
NAMES = ("fox", "owl", "cheese", "teapot", "kite", "anchor", "violin", "bee")


def write_openmoji(folder: Path, pictures: int = 24) -> Path:
    (folder / "images").mkdir(parents=True)
    rows = []
    for i in range(pictures):
        colour = tuple(int(x) for x in np.random.default_rng(i).integers(0, 255, 3))
        Image.new("RGBA", (72, 72), (*colour, 255 if i % 2 else 0)).save(folder / "images" / f"{i:04X}.png")
        group = GROUPS[i % 3]
        rows.append(
            [f"{i:04X}", f"{NAMES[i % 8]} number {i}", group, f"{group}-{i % 2}", f"images/{i:04X}.png", f"{i:064x}"]
        )
        rows[-1].append("unseen" if i % 5 == 0 else "fitted")
    pq.write_table(
        pa.table(dict(zip(ITEM_COLUMNS, map(list, zip(*rows, strict=True)), strict=True))), folder / "items.parquet"
    )
    return folder


def openmoji(folder: Path, pictures: int = 24) -> EvaluationSet:
    return read_openmoji(write_openmoji(folder, pictures))


HOSTILE = "<script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>\"'&{{7*7}} \u202egnp.exe\x00"


def hostile_set(folder: Path, pictures: int = 20, captions: int = 5) -> EvaluationSet:
    """A set by the name of COCO with several captions a picture, hostile ones among captions, classes and ids."""
    files = []
    folder.mkdir(parents=True)
    for i in range(pictures):
        colour = tuple(int(x) for x in np.random.default_rng(i).integers(0, 255, 3))
        files.append(folder / f"{i:03}.png")
        Image.new("RGB", (60, 40), colour).save(files[-1])
    texts = [[f"{NAMES[i % 8]} number {i}, said {k} {HOSTILE}" for k in range(captions)] for i in range(pictures)]
    classes = [f"{GROUPS[i % 3]} {HOSTILE if i % 3 == 0 else ''}" for i in range(pictures)]
    made = ragged_set("coco", files, texts, labels={f"kind {HOSTILE}": classes}, content="hostile")
    return replace(made, notes={"duplicate_pictures": 3, f"odd_{HOSTILE}": 1})


def unit_rows(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class PlantedModel:
    """Embeddings of a picture and of its captions share a direction, as strongly as `signal` says; the rest is noise."""

    def __init__(self, evaluation_set: EvaluationSet, signal: float, seed: int = 0, width: int = 16):
        generator = np.random.default_rng(seed)
        self.concepts = np.random.default_rng(99).normal(size=(len(evaluation_set), width)) * signal
        self.pictures = unit_rows(self.concepts + generator.normal(size=self.concepts.shape))
        texts = self.concepts[evaluation_set.caption_picture_M]
        self.captions = dict(
            zip(evaluation_set.captions, unit_rows(texts + generator.normal(size=texts.shape)), strict=True)
        )
        self.noise = generator
        self.next = 0

    def encode_image(self, pictures: list[Image.Image]) -> np.ndarray:
        start, self.next = self.next, self.next + len(pictures)
        return self.pictures[start : self.next]

    def encode_text(self, texts: list[str]) -> np.ndarray:
        rows = [self.captions.get(text, self.noise.normal(size=self.concepts.shape[1])) for text in texts]
        return unit_rows(np.array(rows))
