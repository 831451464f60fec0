"""A small source to train on: drawings of coloured shapes in a tar, and the manifest that names them."""

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from veclip_core.samples import MIX_SCHEMA
from veclip_core.training.recipe import MIXED, Recipe

COLOURS = ("red", "green", "blue", "orange", "purple", "brown", "black", "gray")
SHAPES = ("circle", "square", "triangle", "cross")

TINY = Recipe(
    image_size=32,
    cache_size=36,
    context_length=12,
    steps=12,
    batch_size=16,
    warmup_steps=2,
    learning_rate=1e-3,
    precision="fp32",
    weights=MIXED,
    seed=5,
)
"""Seconds, not minutes."""

VIT = TINY.model_copy(update={"model": "tiny-vit"})
"""Without batch normalisation, and with transformers on both sides; `register_vit` first."""


def register_vit(folder: Path) -> None:
    """Let open_clip, in this process, know the model of `VIT`."""
    import open_clip

    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
    text = {"context_length": 12, "vocab_size": 512, "width": 64, "heads": 2, "layers": 2}
    path = folder / "tiny-vit.json"
    aside = path.with_suffix(f".{os.getpid()}")  # ranks write it at once, and read it
    aside.write_text(json.dumps({"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}))
    aside.replace(path)
    open_clip.add_model_config(path)


def draw(colour: str, shape: str, seed: int, side: int = 64) -> Image.Image:
    """One drawing; place and size by the seed."""
    random = np.random.default_rng(seed)
    picture = Image.new("RGB", (side + int(random.integers(0, 17)), side), "white")
    radius = int(random.integers(side // 5, side // 3))
    x, y = (int(random.integers(radius, side - radius)) for _ in range(2))
    pen = ImageDraw.Draw(picture)
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    elif shape == "triangle":
        pen.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=colour)
    else:
        pen.line((x - radius, y, x + radius, y), fill=colour, width=max(3, radius // 3))
        pen.line((x, y - radius, x, y + radius), fill=colour, width=max(3, radius // 3))
    return picture


def write_world(
    root: Path, count: int = 96, side: int = 64, seed: int = 0, empty_alts: int = 0
) -> tuple[str, list[str]]:
    """Write `count` samples under `root`; the source's uri and its manifest's relative paths. Two shards."""
    (root / "download").mkdir(parents=True)
    rows: list[dict[str, object]] = []
    for shard in range(2):
        name = f"download/{shard:05d}.tar"
        kinds = {}
        with tarfile.open(root / name, "w") as tar:
            for number in range(shard, count, 2):
                colour, shape = COLOURS[number % 8], SHAPES[number // 8 % 4]
                data = io.BytesIO()
                draw(colour, shape, 1000 * seed + number, side).save(data, "JPEG", quality=92)
                of_url = hashlib.sha256(f"{seed} {number}".encode()).hexdigest()[:32]
                kinds[f"{of_url}.jpg"] = (of_url, number, colour, shape)
                for member, content in (
                    (f"{of_url}.jpg", data.getvalue()),
                    (f"{of_url}.json", json.dumps({}).encode()),
                ):
                    entry = tarfile.TarInfo(member)
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
        with tarfile.open(root / name) as tar:
            for entry in tar.getmembers():
                if entry.name not in kinds:
                    continue
                of_url, number, colour, shape = kinds[entry.name]
                rows.append(
                    {
                        "sample_id": hashlib.sha256(of_url.encode()).hexdigest()[:32],
                        "url_id": of_url,
                        "tar": name,
                        "offset": entry.offset_data,
                        "bytes": entry.size,
                        "alt": "" if number < empty_alts else f"{colour} {shape} {number}",
                        "vec": f"a drawing of a {shape}, {colour}",
                        "vecap": f"the {colour} {shape} number {number} drawn on a white ground",
                        "vecap_status": "fused",
                    }
                )
    rows.sort(key=lambda row: (str(row["url_id"]), str(row["sample_id"])))
    paths = []
    for part, half in enumerate((rows[: count // 2], rows[count // 2 :])):
        paths.append(f"mix/{part:05d}.parquet")
        (root / "mix").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(half, MIX_SCHEMA), root / paths[-1])
    return str(root), paths
