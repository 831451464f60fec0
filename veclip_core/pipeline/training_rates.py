"""Rates of trainings on a device: of those done before at a root, and of `make gpu-smoke`."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Self

from veclip_core.pipeline import rate_table
from veclip_core.settings import Settings
from veclip_core.training.recipe import Recipe
from veclip_core.training.report import TrainReport

TABLE = "benchmarks/training.json"
MIN_STEPS = 20
"""A training of fewer steps says little on its speed: the first ones are slow."""


@dataclass(frozen=True)
class Way:
    """How a training is computed, as far as it decides the rate: one measured in another way says nothing."""

    precision: str
    micro_batch: int | None = None
    """Of a gradient cache; None where a rank's share of a batch goes through the model at once."""
    checkpoint_activations: bool = False
    parallel: str = "ddp"
    """Also of one rank, over which FSDP shards nothing."""
    compile: bool = False

    @classmethod
    def of(
        cls, recipe: Recipe, batch_size: int, ranks: int, *, micro_batch: int | None, parallel: str, **how: Any
    ) -> Self:
        """What settings come to with so many ranks. `batch_size`: of all ranks together."""
        share = batch_size // ranks // recipe.accumulation_steps
        cached = micro_batch is not None and micro_batch < share
        return cls(micro_batch=micro_batch if cached else None, parallel=parallel if ranks > 1 else "ddp", **how)


@dataclass(frozen=True)
class TrainingRate:
    """One measurement."""

    device: str
    ranks: int
    samples_per_s: float
    """Of all ranks together."""
    way: Way
    what: str
    """What was measured, and when."""

    @property
    def samples_per_device_second(self) -> float:
        return self.samples_per_s / self.ranks


def note(
    settings: Settings, recipe: Recipe, way: Way, *, samples_per_s: float, device: str, what: str, ranks: int = 1
) -> None:
    """Add a measurement to the root's table."""
    row = {
        "when": time.strftime("%Y-%m-%d"),
        "device": device,
        "ranks": ranks,
        "samples_per_s": round(samples_per_s, 3),
        "what": what,
        **asdict(way),
        **_deciding(recipe),
    }
    rate_table.add(settings, TABLE, row)


def note_training(settings: Settings, recipe: Recipe, report: TrainReport) -> None:
    """Add what a training measured since it was last begun, unless that is too short to tell."""
    since = [entry for entry in report.history if entry["step"] > report.resumed_at]
    if report.steps - report.resumed_at < MIN_STEPS or len(since) < 2:
        return
    way = Way.of(
        recipe,
        report.batch_size,
        report.ranks,
        precision=report.precision,
        micro_batch=settings.train_micro_batch,
        checkpoint_activations=settings.train_checkpoint_activations,
        parallel=settings.train_parallel,
        compile=settings.train_compile,
    )
    note(
        settings,
        recipe,
        way,
        samples_per_s=_settled_rate(since, report.batch_size),
        device=report.device,
        what=f"a training of {report.steps:,} steps",
        ranks=report.ranks,
    )


def rate_for(settings: Settings, recipe: Recipe, device: str, way: Way) -> TrainingRate | None:
    """The newest measurement of the recipe's model, computed in that way, on a device whose name holds `device`."""
    wanted = asdict(way) | _deciding(recipe)
    for row in reversed(rate_table.read(settings, TABLE)):
        same = all(name in row and row[name] == value for name, value in wanted.items())
        if same and device.casefold() in row["device"].casefold():
            what = f"{row['what']} on {row['when']}"
            return TrainingRate(row["device"], row["ranks"], row["samples_per_s"], way, what)
    return None


def _settled_rate(history: Sequence[Mapping[str, float]], batch_size: int) -> float:
    """Samples a second between the first log entry, before which a training warms up, and the last."""
    seconds = sum(
        (entry["step"] - before["step"]) * batch_size / entry["samples_per_s"] for before, entry in pairwise(history)
    )
    return (history[-1]["step"] - history[0]["step"]) * batch_size / seconds


def _deciding(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe decides the speed."""
    return {"model": recipe.model, "image_size": recipe.image_size, "context_length": recipe.context_length}
