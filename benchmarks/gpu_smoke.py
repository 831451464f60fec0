"""Does what wants a GPU run on the one that is there, and how fast: `make gpu-smoke`, ten minutes at most.

    python benchmarks/gpu_smoke.py [--json FILE] [--only CHECK ...] [--captioner NAME]

Each check is a process of its own with a time limit, so that one that fails or hangs does not hide the others; the exit code is 1
where one does. Without a GPU the same checks run small, on the CPU, but for those that say nothing there. The describing model is a
LLaVA of random weights unless a captioner is named: a real model's path, not its speed. Rates of trainings on a GPU go into the
root's table, which `veclip train --dry-run` reads.
"""
# ruff: noqa: T201

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from veclip_core.settings import Settings
    from veclip_core.training.recipe import Recipe

PROJECT = Path(__file__).parents[1]
sys.path.append(str(PROJECT))  # the tiny models and pictures of the tests

ALL_WITHIN_S = 600
CHECK_WITHIN_S = 180
SAME_LOSS = 0.02
"""How far a way of computing may take the mean loss of the first steps from that of the plain one, relatively."""
PACKAGES = ("torch", "open_clip_torch", "transformers", "vllm", "veclip-dagster")

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
CAPTIONS = {"cuda": 64, "cpu": 8}


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
    """FSDP2: through the loop where there are several ranks. The loop shards nothing over one rank: that is done here, on its model."""
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
    images_BCHW = torch.randn(recipe.batch_size, 3, recipe.image_size, recipe.image_size, device=options.on)
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

    return describing_rates(captioning_settings(options), SCALES["sample"], CAPTIONS[options.on])


def fuse(options: Options) -> dict[str, float]:
    from veclip_core.pipeline.rates import fusing_rates
    from veclip_core.scales import SCALES

    return fusing_rates(captioning_settings(options), SCALES["sample"], CAPTIONS[options.on])


def captioning_settings(options: Options) -> "Settings":
    """The captioner that was named, else SmolLM2 with eyes of random weights. What is found out of them stays in the folder."""
    from veclip_core.settings import Settings

    settings = Settings.from_environment()
    changed: dict[str, Any] = {
        "root": options.folder,
        "cache": str(settings.cache_folder),
        "captioner": options.captioner,
    }
    if not options.captioner:
        changed |= {"captioner": "sample", "fuser": "", "describer": ""}
        if options.check == "describe":
            from tests.tiny_llava import save_tiny_llava

            changed["describer"] = str(
                save_tiny_llava(Path(options.folder) / "llava", settings.cache_folder / "weights")
            )
    if options.on == "cpu":
        changed["engine"] = "transformers"
    return settings.model_copy(update=changed)


CHECKS: dict[str, Check] = {
    "bf16": Check(train_some),
    "fp32": Check(train_some, precision="fp32", gpu_only=True),
    "compile": Check(train_some, {"compile": True}, gpu_only=True),
    "gradient-cache": Check(train_some, {"micro_batch": 4}),
    "activation-checkpointing": Check(train_some, {"checkpoint_activations": True}),
    "fsdp": Check(shard_some, {"parallel": "fsdp"}, launched=True),
    "describe": Check(describe),
    "fuse": Check(fuse),
}
FIRST_LOSS = "first_loss"


# ---------------------------------------------------------------- the checks, each in a process of its own


def outcome(options: Options, within_s: float) -> dict[str, Any]:
    """Run a check: `ok`, `seconds`, and its rates or its `error`."""
    started = time.monotonic()
    result, log = (Path(options.folder) / f"{options.check}.{kind}" for kind in ("json", "log"))
    script = [__file__, "--check", json.dumps(asdict(options)), "--json", str(result)]
    command = [sys.executable, *script]
    if CHECKS[options.check].launched:
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={options.ranks}",
            *script,
        ]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with open(log, "wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        try:
            code: int | None = process.wait(within_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_all_of(process)
    found: dict[str, Any] = {"ok": code == 0, "seconds": round(time.monotonic() - started, 1)}
    if code is None:
        return found | {"error": f"not done within {within_s:g} s"}
    if code:
        return found | {"error": error_in(log.read_text(errors="replace"))}
    return found | json.loads(result.read_text())


def end_all_of(process: "subprocess.Popen[bytes]") -> None:
    """A check's engines and ranks are in its process group, and must not outlive it: the next check wants the GPU."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def error_in(log: str) -> str:
    """The last line of a trace, which says what went wrong; under torchrun there are further lines below it."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    raised = [
        line for line in lines if re.match(r"(\[rank\d+\]: ?)?[\w.]+(Error|Exception|Diverged|Exit|Missing)\b", line)
    ]
    return (raised or lines or ["nothing was said"])[-1][:500]


def other_loss(found: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Check to what is wrong, where a way of computing comes to another loss than the plain one."""
    plain = found.get("bf16", {}).get(FIRST_LOSS)
    return {
        name: f"the loss of the first steps is {one[FIRST_LOSS]:.4f}, in the plain way it is {plain:.4f}"
        for name, one in found.items()
        if plain is not None and FIRST_LOSS in one and abs(one[FIRST_LOSS] / plain - 1) > SAME_LOSS
    }


def all_checks(only: Sequence[str], captioner: str, ranks: int, folder: str) -> dict[str, Any]:
    from tests.unit.training_world import write_world
    from veclip_core.pipeline.rate_table import device_name

    on: Literal["cuda", "cpu"] = "cuda" if gpus() else "cpu"
    write_world(Path(folder) / "world", *PICTURES[on])
    chosen = [name for name, check in CHECKS.items() if name in only and (on == "cuda" or not check.gpu_only)]
    ends, found = time.monotonic() + ALL_WITHIN_S, {}
    for name in chosen:
        left = ends - time.monotonic()
        found[name] = outcome(Options(name, on, folder, captioner, ranks), max(1.0, min(CHECK_WITHIN_S, left)))
        print(f"{'ok    ' if found[name]['ok'] else 'FAILED'}  {name:<26}{found[name]}", flush=True)
    for name, wrong in other_loss(found).items():
        found[name] |= {"ok": False, "error": wrong}
        print(f"FAILED  {name:<26}{wrong}")
    return {
        "ok": all(one["ok"] for one in found.values()),
        "when": time.strftime("%Y-%m-%d %H:%M:%S"),
        "on": on,
        "device": device_name(),
        "gpus": gpus(),
        "ranks": ranks,
        "versions": versions(),
        "checks": found,
    }


def gpus() -> int:
    import torch

    return int(torch.cuda.device_count())


def default_ranks() -> int:
    """As many GPUs as share a batch evenly, or one process on the CPU."""
    return 1 << max(0, gpus().bit_length() - 1)


def versions() -> dict[str, str]:
    import torch

    found = {"python": sys.version.split()[0], "cuda": str(torch.version.cuda)}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def keep_rates(result: Mapping[str, Any]) -> None:
    """Rates of trainings on a GPU, where plans find them."""
    from veclip_core.pipeline.training_rates import note
    from veclip_core.settings import Settings

    settings = Settings.from_environment()
    for name, one in result["checks"].items():
        check = CHECKS[name]
        if result["on"] == "cuda" and one["ok"] and "samples_per_s" in one:
            note(
                settings,
                recipe_of(name, "cuda"),
                samples_per_s=one["samples_per_s"],
                precision=check.precision,
                what=f"gpu-smoke, {name}",
                ranks=result["ranks"] if check.launched else 1,
                gradient_cache="micro_batch" in check.how,
                checkpoint_activations="checkpoint_activations" in check.how,
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), default=list(CHECKS), help="these checks alone")
    parser.add_argument(
        "--captioner", default="", help="describe and fuse with the models of this captioner, such as default"
    )
    parser.add_argument("--ranks", type=int, help="processes of the check fsdp; by default one a GPU")
    parser.add_argument("--check", type=json.loads, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.check:
        options = Options(**chosen.check)
        rates = CHECKS[options.check].run(options)
        if os.environ.get("RANK", "0") == "0":
            chosen.json.write_text(json.dumps(rates))
        return 0
    with tempfile.TemporaryDirectory(prefix="gpu-smoke-") as folder:
        result = all_checks(chosen.only, chosen.captioner, chosen.ranks or default_ranks(), folder)
    keep_rates(result)
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
