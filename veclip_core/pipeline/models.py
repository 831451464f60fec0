"""The models that a person names for an evaluation: files and hub ids of any kind, and trainings of ours by their asset."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from veclip_core import storage
from veclip_core.mendable import Mendable
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.evaluation import candidate_of
from veclip_core.pipeline.networks import network_named
from veclip_core.pipeline.scoring import Candidate
from veclip_core.pipeline.trained import Trained, trained
from veclip_core.released_checkpoints import is_archive
from veclip_core.scales import SCALES, Scale
from veclip_core.settings import Settings
from veclip_core.training.arms import ARMS

NAMED = re.compile(r"([\w.@+() -]+)=(.+)", re.DOTALL)
"""NAME=MODEL. An address may have a `=` too, but not before its first `:` or `/`."""


class ModelNameError(Mendable, ValueError):
    """Models that can't be told apart, or are named wrongly."""


@dataclass(frozen=True)
class Model:
    """A model to be scored, with one seed."""

    candidate: Candidate
    told: str
    """As it was named, without secrets of an address."""
    trained: Trained | None = None
    """Of a training of ours: whose MLflow run gets the scores."""


def models_named(told: Sequence[str], settings: Settings, seeds: Sequence[int] = (0,)) -> list[Model]:
    """Each model once for each seed. One that is not a training of ours is the same under all of them: so it is paired with
    trainings seed by seed, and found embedded.

    Args:
        told: `MODEL` or `NAME=MODEL`, each what `networks.network_config` takes, or a training's asset such as `veclip_sample`.

    Raises:
        ModelNameError: when two have one name.
        NotMadeYet: when a training is not there.
        WeightsMissing: when a model can't be had; FetchError, TokenizerMissing likewise.
    """
    named = [_split(one) for one in told]
    if doubled := [name for name, count in Counter(name for name, _ in named).items() if count > 1]:
        raise ModelNameError(f"two models are called {doubled[0]!r}: give them names, such as --model ours=PATH")
    return [model for name, what in named for model in _seeds_of(name, what, settings, seeds)]


def asset_named(name: str) -> tuple[str, Scale] | None:
    """The arm and scale of a training's asset; None where it is no such name."""
    return next(
        ((arm, scale) for arm in ARMS for scale in SCALES.values() if name == f"{arm}_{scale.name}"),
        None,
    )


def _split(told: str) -> tuple[str, str]:
    found = None if Path(told).exists() else NAMED.fullmatch(told)
    name, what = found.groups() if found else (_name_of(told), told)
    return name.strip(), what.strip()


def _name_of(what: str) -> str:
    path = PurePosixPath(storage.shown(what).rstrip("/"))
    if is_archive(what):
        return path.stem
    return path.parent.name if path.name.startswith("step-") and path.parent.name else path.name or what


def _seeds_of(name: str, what: str, settings: Settings, seeds: Sequence[int]) -> list[Model]:
    asset = asset_named(what)
    if asset is None and "/" not in what and not Path(what).exists():
        raise ModelNameError(
            f"there is no model {what!r}: give a folder (transformers' format, open_clip's, or a checkpoint of ours), a released"
            " zip's path or address, a hub id owner/name, hf-hub:owner/name in open_clip's format, or a training's asset such as"
            " veclip_sample"
        )
    if asset is None or Path(what).exists():
        network = network_named(what, settings)
        return [Model(Candidate(name, network, seed), storage.shown(what)) for seed in seeds]
    arm, scale = asset
    made = [trained(Chain(settings, scale), arm, seed) for seed in seeds]
    return [Model(replace(candidate_of(one), name=name), what, one) for one in made]
