"""Our training against itself: over ranks, with a gradient cache, and gone on with.

    python benchmarks/training_ways.py ranks     two ranks of a thread each against one, as a share of twice its samples/s
    python benchmarks/training_ways.py cache     peak memory of a gradient-cached batch against that of one of its micro-batches
    python benchmarks/training_ways.py resume    seconds from a process's start to its first step, gone on with against fresh

Every arm is a fresh process; arms take turns, and who begins a pair alternates. Ratios are medians of pairs.
"""
# ruff: noqa: T201

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from arms import measured
from training import main, manifest_in, recipe_of

if TYPE_CHECKING:
    from veclip_core.training.recipe import Recipe
    from veclip_core.training.report import Runtime
    from veclip_core.training.world import World

VIT = {"model": "ViT-B-32", "image_size": 224, "cache_size": 224, "context_length": 77}
SMALL_VIT = {"model": "ViT-S-32-alt", "image_size": 96, "cache_size": 96, "context_length": 32}
MICRO_BATCHES = 8
RESUMED_AT = 4


class Enough(Exception):
    """Raised where all that is to be measured has happened."""


def runtime_of(options: Mapping[str, Any], **how: Any) -> "Runtime":
    from veclip_core.training.report import Runtime

    told = {"threads": options["threads"], "device": "cpu", "progress_bar": False, "checkpoint_every_steps": 0}
    return Runtime(**{**told, **how})


def recipe_with(options: Mapping[str, Any], **changed: Any) -> "Recipe":
    return recipe_of(options).model_copy(update=changed)


# ---------------------------------------------------------------- arms: each runs in a process of its own


def arm_ranks(options: Mapping[str, Any]) -> dict[str, float]:
    """The rate of the second half of a training."""
    told: list[float] = []
    if options["ranks"] == 1:
        train_at(None, told.append, options)
    else:
        from veclip_core.training.launch import on_this_machine

        on_this_machine(train_at, [dict(options)], options["ranks"], told.append)
    return {"samples_per_s": told[-1]}


def train_at(world: "World | None", tell: Any, options: Mapping[str, Any]) -> None:
    from veclip_core.training.loop import train

    recipe = recipe_with(options, **SMALL_VIT, steps=8)
    runtime = runtime_of(options, log_every_steps=4)

    def on_progress(step: int, numbers: Mapping[str, float]) -> None:
        if step == recipe.steps:
            tell(numbers["samples_per_s"])

    train(recipe, manifest_in(options["folder"]), options["out"], runtime=runtime, on_progress=on_progress, world=world)


def arm_peak(options: Mapping[str, Any]) -> dict[str, float]:
    """Peak memory of the process in MB over two steps."""
    import resource

    from veclip_core.training.loop import train

    recipe = recipe_with(options, **VIT, steps=2)
    with tempfile.TemporaryDirectory() as out:
        how = {"micro_batch": options["micro_batch"], "log_every_steps": 1}
        seconds = train(recipe, manifest_in(options["folder"]), out, runtime=runtime_of(options, **how)).seconds
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"peak_mb": peak_mb, "samples_per_s": 2 * options["batch"] / seconds}


def arm_first_step(options: Mapping[str, Any]) -> dict[str, float]:
    """Seconds from the process's start to the end of its first step; a step is some way through the training where it goes on."""
    import psutil

    from veclip_core.training.loop import train

    took: list[float] = []

    def on_progress(step: int, _: Mapping[str, float]) -> None:
        if not options["prepare"]:
            took.append(time.time() - psutil.Process().create_time())
        elif step < RESUMED_AT:
            return
        raise Enough

    how = {"log_every_steps": 1, "checkpoint_every_steps": RESUMED_AT - 1 if options["prepare"] else 0}
    recipe = recipe_with(options, steps=100)
    with suppress(Enough):
        train(
            recipe,
            manifest_in(options["folder"]),
            options["out"],
            runtime=runtime_of(options, **how),
            on_progress=on_progress,
        )
    return {"seconds": took[0] if took else 0.0}


ARMS = {"ranks": arm_ranks, "peak": arm_peak, "first_step": arm_first_step}


# ---------------------------------------------------------------- comparisons


def compare_ranks(options: argparse.Namespace, common: Mapping[str, Any]) -> dict[str, Any]:
    ratios = []
    for pair in range(options.pairs):
        rates = {}
        for ranks in (1, 2) if pair % 2 == 0 else (2, 1):
            with tempfile.TemporaryDirectory() as out:
                arm = {**common, "ranks": ranks, "threads": 1, "out": out}
                rates[ranks] = measured(__file__, "ranks", **arm)["samples_per_s"]
        ratios.append(round(rates[2] / (2 * rates[1]), 3))
        print(f"  pair {pair + 1}: one rank {rates[1]:.1f}, two {rates[2]:.1f} samples/s: {ratios[-1]} of the ideal")
    return {"ratios": ratios, "ranks_of_ideal": statistics.median(ratios)}


def compare_cache(options: argparse.Namespace, common: Mapping[str, Any]) -> dict[str, Any]:
    micro = options.batch // MICRO_BATCHES
    both = {**common, "threads": options.threads, "micro_batch": micro}
    plain = measured(__file__, "peak", **{**both, "batch": micro})
    cached = measured(__file__, "peak", **{**both, "batch": options.batch})
    print(f"  {micro} at once: {plain['peak_mb']:,.0f} MB, {plain['samples_per_s']:.1f} samples/s")
    print(
        f"  {options.batch} of {micro} at a time: {cached['peak_mb']:,.0f} MB, {cached['samples_per_s']:.1f} samples/s"
    )
    return {
        "cache_peak": round(cached["peak_mb"] / plain["peak_mb"], 3),
        "cache_time_a_sample": round(plain["samples_per_s"] / cached["samples_per_s"], 3),
    }


def compare_resume(options: argparse.Namespace, common: Mapping[str, Any]) -> dict[str, Any]:
    ratios = []
    both = {**common, "threads": options.threads}
    for pair in range(options.pairs):
        with tempfile.TemporaryDirectory() as begun, tempfile.TemporaryDirectory() as empty:
            measured(__file__, "first_step", **both, out=begun, prepare=True)
            took = {}
            for out in (begun, empty) if pair % 2 == 0 else (empty, begun):
                took[out] = measured(__file__, "first_step", **both, out=out, prepare=False)["seconds"]
        ratios.append(round(took[begun] / took[empty], 3))
        print(f"  pair {pair + 1}: gone on with {took[begun]:.1f} s, fresh {took[empty]:.1f} s, ratio {ratios[-1]}")
    return {"ratios": ratios, "resume_to_first_step": statistics.median(ratios)}


COMPARISONS = {"ranks": compare_ranks, "cache": compare_cache, "resume": compare_resume}


if __name__ == "__main__":
    main(ARMS, COMPARISONS, __doc__, count=1_024, pairs=5)
