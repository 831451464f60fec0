"""The checks of `gpu_smoke.py`: a training in each way of computing, and both captioning engines."""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from veclip_core.settings import Settings
    from veclip_core.training.recipe import Recipe

sys.path.append(str(Path(__file__).parents[1]))  # the tiny models and pictures of the tests

FIRST_LOSS = "first_loss"
"""The mean of a training's first steps, which must not depend on how it is computed."""
ON_GPU = {
    "model": "ViT-B-16", "image_size": 224, "cache_size": 256, "context_length": 77, "batch_size": 128, "steps": 30,
    "warmup_steps": 5, "learning_rate": 5e-4,
}  # fmt: skip
ON_CPU = {
    "model": "ViT-S-32", "image_size": 64, "cache_size": 72, "context_length": 16, "batch_size": 8, "steps": 4,
    "warmup_steps": 2, "learning_rate": 5e-4,
}  # fmt: skip
PICTURES = {"cuda": (512, 256), "cpu": (32, 64)}
"""How many, and their side in pixels."""
LOGGED_EVERY = {"cuda": 5, "cpu": 2}
CAPTIONS = {"cuda": (64, 8), "cpu": (4, 1)}
"""How many are timed, and how many come before."""


@dataclass(frozen=True)
class Check:
    """One thing that must run."""

    run: Callable[["Options"], dict[str, float]]
    how: Mapping[str, Any] = field(default_factory=dict)
    """Of a training: `Runtime`'s fields."""
    precision: Literal["bf16", "fp32"] = "bf16"
    gpu_only: bool = False
    launched: bool = False
    """By torchrun."""


@dataclass(frozen=True)
class Options:
    """What a check is told."""

    check: str
    on: Literal["cuda", "cpu"]
    folder: str
    captioner: str = ""
    ranks: int = 1
    """Of a check that is launched."""


def recipe_of(check: str, on: str) -> "Recipe":
    from veclip_core.training.recipe import Recipe

    return Recipe(
        **(ON_GPU if on == "cuda" else ON_CPU),
        fit="crop",
        flip=False,
        tokenizer="bpe",
        precision=CHECKS[check].precision,
    )


def train_some(options: Options) -> dict[str, float]:
    """Samples a second of the product's own loop, on pictures that are decoded once."""
    from veclip_core.training.loop import train
    from veclip_core.training.manifest_table import load_manifest
    from veclip_core.training.report import Runtime

    check, folder = CHECKS[options.check], Path(options.folder)
    runtime = Runtime(
        cache_folder=folder / "pictures",
        device=options.on,
        log_every_steps=LOGGED_EVERY[options.on],
        checkpoint_every_steps=0,
        progress_bar=False,
        **check.how,
    )
    world = folder / "world"
    manifest = load_manifest(str(world), sorted(str(path.relative_to(world)) for path in world.glob("mix/*.parquet")))
    with among_ranks(options) as among:
        out = folder / f"training {options.check}"
        report = train(recipe_of(options.check, options.on), manifest, out, runtime=runtime, **among)
    settled = [entry["samples_per_s"] for entry in report.history[1:]]
    return {"samples_per_s": round(statistics.median(settled), 2), FIRST_LOSS: report.history[0]["loss"]}


@contextmanager
def among_ranks(options: Options) -> Iterator[dict[str, Any]]:
    if not CHECKS[options.check].launched:
        yield {}
        return
    from veclip_core.training.world import World

    with World.joined(options.on) as world:
        yield {"world": world}


def shard_some(options: Options) -> dict[str, float]:
    """FSDP2: of several ranks through the loop. It shards nothing over one rank: that is done here, on its model."""
    if int(os.environ["WORLD_SIZE"]) > 1:
        return train_some(options)
    import torch
    import torch.distributed as dist
    from open_clip.loss import ClipLoss
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from veclip_core.training.model import architecture, build_model
    from veclip_core.training.texts import BpeTokenizer

    recipe = recipe_of(options.check, options.on)
    tokens_BL = BpeTokenizer(recipe.context_length)([f"picture {n}" for n in range(recipe.batch_size)]).to(options.on)
    seeded = torch.Generator().manual_seed(0)
    images_BCHW = torch.randn(recipe.batch_size, 3, recipe.image_size, recipe.image_size, generator=seeded).to(
        options.on
    )
    description = architecture(recipe, BpeTokenizer(recipe.context_length).vocab_size)
    dist.init_process_group("nccl" if options.on == "cuda" else "gloo")
    model = build_model(description).to(options.on).train()
    mesh = init_device_mesh(options.on, (1,))
    for part in (*model.visual.transformer.resblocks, *model.transformer.resblocks):
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params={model.logit_scale})
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate)
    losses, before = [], time.perf_counter()
    for step in range(recipe.steps):
        if step == recipe.steps // 2:
            before = time.perf_counter()  # what came before was loading and warming up
        with torch.autocast(options.on, torch.bfloat16):
            images_BD, texts_BD, scale = model(images_BCHW, tokens_BL)
        loss = ClipLoss()(images_BD.float(), texts_BD.float(), scale)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())  # waits for the GPU
    seconds = time.perf_counter() - before
    dist.destroy_process_group()
    if not losses[-1] < losses[0]:
        raise AssertionError(f"the loss went from {losses[0]:.4f} to {losses[-1]:.4f} over one batch again and again")
    return {"samples_per_s": round((recipe.steps - recipe.steps // 2) * recipe.batch_size / seconds, 2)}


def describe(options: Options) -> dict[str, float]:
    from veclip_core.pipeline.rates import describing_rates
    from veclip_core.scales import SCALES

    return describing_rates(captioning_settings(options), SCALES["sample"], *CAPTIONS[options.on])


def fuse(options: Options) -> dict[str, float]:
    from veclip_core.pipeline.rates import fusing_rates
    from veclip_core.scales import SCALES

    return fusing_rates(captioning_settings(options), SCALES["sample"], *CAPTIONS[options.on])


def captioning_settings(options: Options) -> "Settings":
    """Of the captioner that was named; else eyes of random weights and SmolLM2, on the CPU random weights too."""
    from tests.tiny_llava import save_tiny_llava
    from tests.tiny_llm import save_tiny_llm
    from veclip_core.settings import Settings

    settings = Settings.from_environment()
    weights, folder = settings.cache_folder / "weights", Path(options.folder)
    # What engines find out of a model stays in the folder.
    changed: dict[str, Any] = {"root": options.folder, "cache": str(settings.cache_folder)}
    if options.captioner:
        changed["captioner"] = options.captioner
    else:
        changed |= {"captioner": "sample", "describer": "", "fuser": ""}
        if options.check == "describe":
            changed["describer"] = str(save_tiny_llava(folder / "llava", weights))
        elif options.on == "cpu":
            changed["fuser"] = str(save_tiny_llm(folder / "llm", weights))
    if options.on == "cpu":
        changed["engine"] = "transformers"
    return settings.model_copy(update=changed)


CHECKS: dict[str, Check] = {
    "bf16": Check(train_some),
    "fp32": Check(train_some, precision="fp32", gpu_only=True),
    "compile": Check(train_some, {"compile": True}, gpu_only=True),
    "gradient-cache": Check(train_some, {"micro_batch": 4}),
    "activation-checkpointing": Check(train_some, {"checkpoint_activations": True}, gpu_only=True),
    "fsdp": Check(shard_some, {"parallel": "fsdp"}, launched=True),
    "describe": Check(describe),
    "fuse": Check(fuse),
}
