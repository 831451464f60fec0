"""When a training is stopped because it goes nowhere, and what to do then."""

import math
from collections.abc import Mapping, Sequence

from veclip_core.mendable import Mendable
from veclip_core.training.recipe import Recipe

WORSE_THAN_CHANCE = 1.5
"""A model that says the same of every pair has the loss of chance; one this many times above it is confidently wrong."""
LEAST_LOGIT_SCALE = 1.01
"""The scale of the logits is held at 1 or more; a model that has gone there can hardly tell its pairs apart."""
INTERVALS = 3
"""Logged one after the other, after the warm-up: a single bad batch stops nothing."""


class TrainingDiverged(Mendable):
    """The loss, the gradient or the temperature went where no training comes back from; the last checkpoint is from before."""


def chance_loss(recipe: Recipe, batch_size: int) -> float:
    """Of a model that can't tell the pairs of a contrastive batch apart."""
    pairs = batch_size // recipe.accumulation_steps
    # The sigmoid's loss is summed over a row: -ln(1/B) for its pair, about 1 for its B - 1 others at a probability of 1/B.
    return math.log(pairs) + (1.0 if recipe.loss != "clip" else 0.0)


def refuse_no_number(step: int, measured: Mapping[str, float]) -> None:
    """Raises TrainingDiverged where the loss or the gradient of step `step` (from 1) is no number."""
    if math.isfinite(measured["loss"]) and math.isfinite(measured.get("grad_norm", 0.0)):
        return
    raise TrainingDiverged(
        f"step {step}: loss {measured['loss']}, gradient norm {measured.get('grad_norm')}, logit scale "
        f"{measured['logit_scale']:.3g}, learning rate {measured['lr']:.3g}. Lower the learning rate or lengthen the warm-up."
    )


def is_suspect(recipe: Recipe, batch_size: int, logged: Mapping[str, float]) -> bool:
    """Whether a logged interval looks like a divergence; no checkpoint of it takes the place of an earlier one."""
    if logged["step"] <= recipe.warmup_steps:
        return False
    return (
        logged["loss"] > WORSE_THAN_CHANCE * chance_loss(recipe, batch_size)
        or logged["logit_scale"] < LEAST_LOGIT_SCALE
    )


def refuse_divergence(recipe: Recipe, batch_size: int, history: Sequence[Mapping[str, float]]) -> None:
    """Raises TrainingDiverged where the last logged intervals were all suspect."""
    last = history[-INTERVALS:]
    if len(last) < INTERVALS or not all(is_suspect(recipe, batch_size, logged) for logged in last):
        return
    losses = ", ".join(f"{logged['loss']:.3g}" for logged in last)
    raise TrainingDiverged(
        f"step {last[-1]['step']:.0f}: over the last {INTERVALS} logged intervals the loss was {losses} (chance is"
        f" {chance_loss(recipe, batch_size):.3g}) and the logit scale is {last[-1]['logit_scale']:.3g}. Lower the learning rate,"
        " lengthen the warm-up or clip the gradient (clip_norm); the last checkpoint is from before."
    )
