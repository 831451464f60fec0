"""Evaluation sets in CLIP_benchmark's WebDataset layout, written on the fly, and its own evaluation of them."""

import io
import random
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from veclip_core.config import digest_of
from veclip_core.evaluation.sets import EvaluationSet, Labelling, PicturePlace

WORDS = (
    "a",
    "red",
    "green",
    "blue",
    "dark",
    "house",
    "sea",
    "boat",
    "dog",
    "cat",
    "hill",
    "sky",
    "tree",
    "old",
    "small",
    "near",
    "two",
)
CLASSES = tuple(f"{colour} {thing}" for colour in ("red", "blue", "dark") for thing in ("house", "boat", "dog", "tree"))
TEMPLATES = ("a photo of a {}.", "{}", "a drawing of the {} by the sea")
CAPTIONS = 5


def write_set(
    folder: Path,
    pictures: int,
    *,
    retrieval: bool,
    shards: int = 2,
    size: tuple[int, int] = (64, 48),
    captions: int = CAPTIONS,
) -> EvaluationSet:
    """`folder/test/{n}.tar` with what CLIP_benchmark wants beside them; and the same files as an evaluation set of ours."""
    tars = folder / "test"
    tars.mkdir(parents=True)
    (tars / "nshards.txt").write_text(str(shards))
    (folder / "dataset_type.txt").write_text("retrieval" if retrieval else "classification")
    (folder / "classnames.txt").write_text("\n".join(CLASSES))
    templates = "\n".join(template.replace("{}", "{c}") for template in TEMPLATES)
    (folder / "zeroshot_classification_templates.txt").write_text(templates)
    chance, pixels = random.Random(0), np.random.default_rng(0)
    for shard in range(shards):
        with tarfile.open(tars / f"{shard}.tar", "w") as tar:
            for number in range(shard * pictures // shards, (shard + 1) * pictures // shards):
                label = chance.randrange(len(CLASSES))
                lines = [" ".join(chance.choices(WORDS, k=chance.randrange(4, 9))) for _ in range(captions)]
                annotation = ("txt", "\n".join(lines)) if retrieval else ("cls", str(label))
                for suffix, content in (("jpg", _picture(pixels, size)), (annotation[0], annotation[1].encode())):
                    member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return read_set(folder)


def read_set(folder: Path) -> EvaluationSet:
    """What `write_set` wrote."""
    places, annotations = [], []
    for number in range(int((folder / "test" / "nshards.txt").read_text())):
        path = folder / "test" / f"{number}.tar"
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    places.append(PicturePlace(str(path), member.offset_data, member.size))
                elif (content := tar.extractfile(member)) is not None:
                    annotations.append(content.read().decode())
    count = len(places)
    texts = [note.splitlines() for note in annotations]
    retrieval = (folder / "dataset_type.txt").read_text() == "retrieval"
    owner_M = [row for row, lines in enumerate(texts) for _ in lines]
    target_N = [] if retrieval else [int(note) for note in annotations]
    return EvaluationSet(
        name=folder.name,
        ids=tuple(f"{number:06d}" for number in range(count)),
        pictures=tuple(places),
        captions=tuple(line for lines in texts for line in lines) if retrieval else (),
        caption_picture_M=np.array(owner_M if retrieval else [], np.int64),
        labels={} if retrieval else {"class": Labelling(CLASSES, np.array(target_N), TEMPLATES)},
        splits={"all": np.ones(count, dtype=bool)},
        content=digest_of([folder.name, count, annotations]),
    )


def _picture(pixels: np.random.Generator, size: tuple[int, int]) -> bytes:
    small = Image.fromarray(pixels.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    jpeg = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(jpeg, "JPEG", quality=90)
    return jpeg.getvalue()


def clip_benchmark(model: str, folder: Path, *, retrieval: bool, batch: int = 64, workers: int = 0) -> dict[str, float]:
    """What CLIP_benchmark measures of a folder in open_clip's format, with its own loader and metrics, in float32 on the CPU."""
    import open_clip
    import torch
    from clip_benchmark.datasets.builder import build_wds_dataset
    from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval

    network, _, transform = open_clip.create_model_and_transforms(f"local-dir:{model}", device="cpu")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{model}")
    dataset: Any = build_wds_dataset(folder.name, transform, split="test", data_dir=str(folder))
    loader = torch.utils.data.DataLoader(dataset.batched(batch), batch_size=None, shuffle=False, num_workers=workers)
    network.eval()
    if retrieval:
        return dict(zeroshot_retrieval.evaluate(network, loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10]))
    return dict(
        zeroshot_classification.evaluate(
            network, loader, tokenizer, dataset.classes, dataset.templates, "cpu", amp=False
        )
    )
