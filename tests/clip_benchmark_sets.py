"""Evaluation sets in CLIP_benchmark's WebDataset layout, written on the fly, and its own evaluation of them."""

import io
import random
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

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
    places, texts, target = [], [], []
    for shard in range(shards):
        path = tars / f"{shard}.tar"
        told = []
        with tarfile.open(path, "w") as tar:
            for number in range(shard * pictures // shards, (shard + 1) * pictures // shards):
                label = chance.randrange(len(CLASSES))
                lines = [" ".join(chance.choices(WORDS, k=chance.randrange(4, 9))) for _ in range(captions)]
                annotation = ("txt", "\n".join(lines)) if retrieval else ("cls", str(label))
                told.append(f"{number:06d}.jpg")
                texts.append(lines)
                target.append(label)
                for suffix, content in (("jpg", _picture(pixels, size)), (annotation[0], annotation[1].encode())):
                    member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        with tarfile.open(path) as tar:
            places += [PicturePlace(str(path), (one := tar.getmember(name)).offset_data, one.size) for name in told]
    return EvaluationSet(
        name=folder.name,
        ids=tuple(f"{number:06d}" for number in range(pictures)),
        pictures=tuple(places),
        captions=tuple(line for lines in texts for line in lines) if retrieval else (),
        caption_picture_M=np.repeat(np.arange(pictures), captions) if retrieval else np.zeros(0, np.int64),
        labels={} if retrieval else {"class": Labelling(CLASSES, np.array(target), TEMPLATES)},
        splits={"all": np.ones(pictures, dtype=bool)},
        content=f"{folder.name}, {pictures} pictures",
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
