"""What is known of finished trainings: kept by arm and seed, where evaluation and the filtering network find it."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from veclip_core import storage
from veclip_core.pipeline.data import Chain
from veclip_core.shards import NotMadeYet
from veclip_core.training.arms import EXPERIMENT, TRAINED_AT_EVERY_SCALE, TRAINED_ON_FILTERED
from veclip_core.training.sweeps import SWEEPS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """A finished training of one arm and seed, as evaluation finds it."""

    scale: str
    arm: str
    seed: int
    identity: str
    checkpoint: str
    run_id: str | None
    manifest_digest: str
    partial: bool
    report: Mapping[str, Any]


def record(chain: Chain, made: Trained, trial: bool) -> None:
    """Let evaluation find it. A trial with other recipe fields does not take the place of a whole training on its manifest."""
    uri = _trained_uri(chain, made.arm, made.seed)
    if trial and storage.exists(uri):
        before = Trained(**storage.read_json(uri))
        if not before.partial and before.manifest_digest == made.manifest_digest:
            logger.info("%s seed %d: the trial leaves the whole training in its place", made.arm, made.seed)
            return
    storage.write_json(uri, asdict(made))


def trained(chain: Chain, arm: str, seed: int = 0) -> Trained:
    """Raises NotMadeYet with the command that makes it."""
    try:
        return Trained(**storage.read_json(_trained_uri(chain, arm, seed)))
    except FileNotFoundError:
        scale = chain.scale.name
        asset, command = asset_that_trains(arm, scale), f"`veclip run {arm} --scale {scale} --seed {seed}`"
        ways = f"`dagster asset materialize --select {asset}` (or {command})" if asset else command
        raise NotMadeYet(f"{arm}_{scale} (seed {seed}) is not trained yet at {chain.root}. Run {ways} first.") from None


def asset_that_trains(arm: str, scale: str) -> str | None:
    """Dagster's asset that makes the trainings of an arm; None where only `veclip run` and `veclip sweep` do."""
    if arm in (*TRAINED_AT_EVERY_SCALE, *TRAINED_ON_FILTERED):
        return f"{arm}_{scale}"
    if scale != "sample":
        return None
    if arm in EXPERIMENT.arms:
        return f"arms_{scale}"
    return next((f"sweep_{name}_{scale}" for name, sweep in SWEEPS.items() if arm in sweep.comparison.arms), None)


def how_to_train(*trainings: Trained) -> str:
    """The command, or commands, that make them again."""
    assets = [asset_that_trains(one.arm, one.scale) for one in trainings]
    named = list(dict.fromkeys(asset for asset in assets if asset is not None))
    if None not in assets:
        return f"`dagster asset materialize --select {','.join(named)}`"
    return " and ".join(f"`veclip run {one.arm} --scale {one.scale} --seed {one.seed}`" for one in trainings)


def _trained_uri(chain: Chain, arm: str, seed: int) -> str:
    return storage.join(chain.root, chain.source, "train", "current", f"{chain.scale.name}-{arm}-seed-{seed}.json")
