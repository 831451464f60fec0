"""Small evaluation sets and results for the tests of the evaluation."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from veclip_core.evaluation.sets import ITEM_COLUMNS, EvaluationSet, read_openmoji

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
