"""The arms of the comparison: one recipe, the same pictures, batches, crops and initial weights; other texts.

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


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("clip", ALT_TEXT_ONLY),
        Arm("veclip", MIXED),
        Arm("control", {"alt": 0.5, CONTROL: 0.5}, "manifest_control"),
        Arm("vecap_only", {"vecap": 1.0}),
        Arm("template_only", {TEMPLATE: 1.0}),
        Arm("vec_only", {"vec": 1.0}),
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
    tuple(arm for arm in ARMS if arm not in TRAINED_ON_FILTERED),
    (0, 1, 2),
    (("veclip", BASELINE), ("control", BASELINE), ("veclip", "control")),
)
"""Every arm on the scale's own rows, three seeds. Mixed must beat AltText alone, and it must beat the control, which reads what the
captioner saw on other pictures: else it was not the description that helped."""
