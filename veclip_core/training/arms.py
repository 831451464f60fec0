"""The arms of the comparisons: one recipe, equal pictures, batches, crops and initial weights; other texts, or a part of the data.

What is compared, and by which numbers, is written here before anything is run.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from veclip_core.mendable import Mendable
from veclip_core.mixing.choose import CONTROL, TEMPLATE
from veclip_core.training.recipe import ALT_TEXT_ONLY, MIXED

MIXTURE = "dfn_mixture"
"""The asset that is a list of manifests, and has no rows of its own."""


@dataclass(frozen=True)
class Arm:
    """What one model reads."""

    name: str
    weights: Mapping[str, float]
    """Caption source to its share of the draws."""
    manifest: str = "manifest"
    """The asset whose rows it reads."""
    data_fraction: float = 1.0
    """Share of those rows, by a hash of their ids: arms of one fraction read the same rows. Steps and batches are those of the
    other arms, and so is the compute: half the rows are read twice as often."""


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("clip", ALT_TEXT_ONLY),
        Arm("veclip", MIXED),
        Arm("control", {"alt": 0.5, CONTROL: 0.5}, "manifest_control"),
        Arm("vecap_only", {"vecap": 1.0}),
        Arm("template_only", {TEMPLATE: 1.0}),
        Arm("vec_only", {"vec": 1.0}),
        Arm("mix_25", {"alt": 0.75, "vecap": 0.25}),
        Arm("mix_75", {"alt": 0.25, "vecap": 0.75}),
        Arm("clip_25pct", ALT_TEXT_ONLY, data_fraction=0.25),
        Arm("veclip_25pct", MIXED, data_fraction=0.25),
        Arm("clip_50pct", ALT_TEXT_ONLY, data_fraction=0.5),
        Arm("veclip_50pct", MIXED, data_fraction=0.5),
        Arm("dfn_clip", ALT_TEXT_ONLY, "dfn_manifest"),
        Arm("dfn_veclip", MIXED, MIXTURE),
    )
}
BASELINE = "clip"
TRAINED_ON_FILTERED = ("dfn_clip", "dfn_veclip")
"""The paper's second table: on what the filtering network keeps, and on that mixed with the scale's own captions."""


class UnknownArm(Mendable, ValueError):
    """There is no arm of that name; the message lists them."""


def arm_named(name: str) -> Arm:
    """Raises UnknownArm."""
    if name not in ARMS:
        raise UnknownArm(f"there is no arm {name!r}; there are {', '.join(ARMS)}")
    return ARMS[name]


TRAINED_AT_EVERY_SCALE = ("clip", "veclip")
CONTROL_ASSETS = ("vecap_control", "manifest_control")
"""What only the control reads."""


@dataclass(frozen=True)
class Comparison:
    """Which trainings stand beside each other, and what of them is the headline: chosen before the run."""

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    contrasts: tuple[tuple[str, str], ...]
    """Pairs (model, baseline) whose difference is the answer."""
    metrics: tuple[str, ...] = ("mean_recall", "mean_rank")
    splits: tuple[str, ...] = ("all", "fitted", "unseen")


FIRST_LOOK = Comparison(TRAINED_AT_EVERY_SCALE, (0,), (("veclip", BASELINE),))
"""One seed of the two models: a table within minutes."""

EXPERIMENT = Comparison(
    ("clip", "veclip", "control", "vecap_only", "template_only", "vec_only"),
    (0, 1, 2),
    (("veclip", BASELINE), ("control", BASELINE), ("veclip", "control")),
)
"""Every caption source on the scale's own rows, three seeds. Mixed must beat AltText alone, and it must beat the control, which
reads what the captioner saw on other pictures: else it was not the description that helped."""
