"""Rates of trainings on a device: of those done before at a root, and of `make gpu-smoke`."""

import time
from dataclasses import dataclass
from typing import Any

from veclip_core.pipeline import rate_table
from veclip_core.settings import Settings
from veclip_core.training.recipe import Recipe
from veclip_core.training.report import TrainReport

TABLE = "benchmarks/training.json"
MIN_STEPS = 20
"""A training of fewer steps says little on its speed: the first ones are slow."""


@dataclass(frozen=True)
class TrainingRate:
    """One measurement."""

    device: str
    ranks: int
    samples_per_s: float
    """Of all ranks together."""
    gradient_cache: bool
    checkpoint_activations: bool
    precision: str
    what: str
    """What was measured, and when."""

    @property
    def samples_per_device_second(self) -> float:
        return self.samples_per_s / self.ranks


def note(
    settings: Settings,
    recipe: Recipe,
    *,
    samples_per_s: float,
    precision: str,
    what: str,
    ranks: int = 1,
    gradient_cache: bool = False,
    checkpoint_activations: bool = False,
) -> None:
    """Add a measurement on this machine's devices to the root's table."""
    row = {
        "when": time.strftime("%Y-%m-%d"),
        "device": rate_table.device_name(),
        "ranks": ranks,
        "samples_per_s": round(samples_per_s, 3),
        "gradient_cache": gradient_cache,
        "checkpoint_activations": checkpoint_activations,
        "precision": precision,
        "what": what,
        **_deciding(recipe),
    }
    rate_table.add(settings, TABLE, row)


def note_training(settings: Settings, recipe: Recipe, report: TrainReport, **how: Any) -> None:
    """Add what a training measured, unless it was done before or is too short to tell. `how`: see `note`."""
    if report.steps - report.resumed_at >= MIN_STEPS:
        note(
            settings,
            recipe,
            samples_per_s=report.samples_per_s,
            precision=report.precision,
            what=f"a training of {report.steps:,} steps",
            **how,
        )


def rate_for(settings: Settings, recipe: Recipe, device: str, gradient_cache: bool) -> TrainingRate | None:
    """The newest measurement of the recipe's model on a device whose name holds `device`."""
    for row in reversed(rate_table.read(settings, TABLE)):
        same = all(row.get(name) == value for name, value in _deciding(recipe).items())
        if same and device.casefold() in row["device"].casefold() and row["gradient_cache"] == gradient_cache:
            return TrainingRate(
                device=row["device"],
                ranks=row["ranks"],
                samples_per_s=row["samples_per_s"],
                gradient_cache=row["gradient_cache"],
                checkpoint_activations=row["checkpoint_activations"],
                precision=row["precision"],
                what=f"{row['what']} on {row['when']}",
            )
    return None


def _deciding(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe decides the speed."""
    return {"model": recipe.model, "image_size": recipe.image_size, "context_length": recipe.context_length}
