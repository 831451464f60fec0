"""Evaluation sets as others lay them out, each of small real pictures."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(number: int, kind: str = "PNG") -> bytes:
    """Small and noisy, each number another."""
    pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_pictures(folder: Path, names: Sequence[str]) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return folder


def captions(pictures: int, each: Sequence[int] = (5,)) -> list[list[str]]:
    return [[f"picture {n}, caption {k}" for k in range(each[n % len(each)])] for n in range(pictures)]


def write_karpathy(folder: Path, texts: Sequence[Sequence[str]], name: str = "dataset_coco.json") -> Path:
    """Every third entry is of another split and has no file, as those of train2014 need not."""
    images: list[dict[str, Any]] = []
    for number, own in enumerate(texts):
        file = f"COCO_val2014_{number:012d}.png"
        write_pictures(folder / "val2014", [])
        (folder / "val2014").mkdir(parents=True, exist_ok=True)
        (folder / "val2014" / file).write_bytes(picture(number))
        sentences = [{"raw": text, "tokens": text.split()} for text in own]
        images.append({"filepath": "val2014", "filename": file, "split": "test", "sentences": sentences})
        if number % 3 == 0:
            images.append({"filepath": "train2014", "filename": "absent.jpg", "split": "train", "sentences": sentences})
    path = folder / name
    path.write_text(json.dumps({"dataset": "coco", "images": images}))
    return path


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_webdataset(
    folder: Path, samples: Sequence[Mapping[str, bytes]], *, kind: str = "", per_tar: int = 10, **files: str
) -> Path:
    """Samples by suffix, in CLIP_benchmark's layout."""
    test = folder / "test"
    test.mkdir(parents=True)
    starts = range(0, len(samples), per_tar)
    for shard, start in enumerate(starts):
        with tarfile.open(test / f"{shard}.tar", "w") as tar:
            for number, sample in enumerate(samples[start : start + per_tar], start):
                for suffix, data in sample.items():
                    add(tar, f"s{number:07d}.{suffix}", data)
    (test / "nshards.txt").write_text(f"{len(starts)}\n")
    if kind:
        (folder / "dataset_type.txt").write_text(f"{kind}\n")
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def retrieval_samples(texts: Sequence[Sequence[str]]) -> list[dict[str, bytes]]:
    return [{"png": picture(number), "txt": "\n".join(own).encode()} for number, own in enumerate(texts)]


def labelled_samples(labels: Sequence[int]) -> list[dict[str, bytes]]:
    return [{"cls": str(label).encode(), "webp": picture(number, "WEBP")} for number, label in enumerate(labels)]


def write_parquet(
    path: Path, columns: Mapping[str, Sequence[Any]], classes: Mapping[str, Sequence[str]] | None = None
) -> Path:
    """As `datasets` writes it; `image` is a column of bytes, and paths `N.png` are added."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": data, "path": f"{number}.png"} for number, data in enumerate(columns["image"])]
    table = pa.table({name: images if name == "image" else list(values) for name, values in columns.items()})
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    features |= {name: {"names": list(names), "_type": "ClassLabel"} for name, names in (classes or {}).items()}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), path)
    return path
