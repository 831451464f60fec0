"""The paper's sweeps as configuration: arms along an axis, and by which numbers they are compared, written before anything is run.

Every sweep holds the two models of the headline, `clip` and `veclip` on all rows, so that trainings are shared between sweeps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from veclip_core.mendable import Mendable
from veclip_core.training.arms import BASELINE, Comparison, arm_named

SEEDS = (0, 1, 2)
METRICS = ("mean_recall", "mean_rank", "zeroshot_top1_subgroup")
"""Captions alone can look good in retrieval and lose in classification: a sweep always shows both."""


@dataclass(frozen=True)
class Sweep:
    """One axis, and the trainings along it."""

    name: str
    title: str
    comparison: Comparison
    axis: Mapping[str, float]
    """Arm to its place on the axis."""
    xlabel: str
    lines: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Name to the arms that a line of the figure joins, where there are several."""

    def of(self, arms: Sequence[str] = (), seeds: Sequence[int] = ()) -> "Sweep":
        """Some of the arms, and other seeds; all where none are named. Raises UnknownPoint."""
        if other := [arm for arm in arms if arm not in self.axis]:
            raise UnknownPoint(f"the sweep {self.name} has no arm {other[0]!r}; it has {', '.join(self.axis)}")
        kept = tuple(arm for arm in self.comparison.arms if not arms or arm in arms)
        contrasts = tuple(pair for pair in self.comparison.contrasts if set(pair) <= set(kept))
        comparison = replace(
            self.comparison, arms=kept, seeds=tuple(seeds) or self.comparison.seeds, contrasts=contrasts
        )
        return replace(self, comparison=comparison, axis={arm: x for arm, x in self.axis.items() if arm in kept})


class UnknownPoint(Mendable, ValueError):
    """A sweep has no such arm; the message lists its arms."""


def _sweep(
    name: str, title: str, xlabel: str, axis: Mapping[str, float], contrasts: Sequence[tuple[str, str]]
) -> Sweep:
    comparison = Comparison(tuple(axis), SEEDS, (("veclip", BASELINE), *contrasts), METRICS, ("all",))
    return Sweep(name, title, comparison, axis, xlabel)


MIX = _sweep(
    "mix",
    "How much VeCap in the mix",
    "share of VeCaps among the texts drawn, the rest AltTexts",
    {arm: arm_named(arm).weights.get("vecap", 0.0) for arm in ("clip", "mix_25", "veclip", "mix_75", "vecap_only")},
    (("mix_25", BASELINE), ("mix_75", BASELINE), ("vecap_only", BASELINE), ("veclip", "vecap_only")),
)
"""Is a mix better than AltText alone, and better than VeCap alone?"""

SOURCES = _sweep(
    "sources",
    "Which captions help",
    "what the model reads",
    {arm: float(place) for place, arm in enumerate(("clip", "vec_only", "vecap_only", "veclip"))},
    (("vec_only", BASELINE), ("vecap_only", BASELINE), ("veclip", "vecap_only")),
)
"""AltText, VeC, VeCap or AltText mixed with VeCap. The axis is an order, not a quantity."""

_LINES = {"AltText only": ("clip_25pct", "clip_50pct", "clip"), "Mixed": ("veclip_25pct", "veclip_50pct", "veclip")}
DATA = replace(
    _sweep(
        "data",
        "How much data it takes",
        "share of the rows",
        {arm: arm_named(arm).data_fraction for pair in zip(*_LINES.values(), strict=True) for arm in pair},
        (
            ("veclip_25pct", "clip_25pct"), ("veclip_50pct", "clip_50pct"),
            ("veclip_50pct", BASELINE), ("veclip_25pct", BASELINE),
        ),
    ),
    lines=_LINES,
)  # fmt: skip
"""Does VeCLIP on a part of the rows reach CLIP on all of them? Equal steps and batches, so equal compute: more epochs over fewer
rows. The parts are the same for all seeds, so that intervals tell nothing of what other rows would give."""

SWEEPS: dict[str, Sweep] = {sweep.name: sweep for sweep in (MIX, SOURCES, DATA)}
