"""The paper's released checkpoints on the paper's evaluation sets: what of them is given, how the rest is had, and their scores
beside the published ones."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from veclip_core import storage
from veclip_core.evaluation.paper import PAPER_SETS, RELEASED, TOLERANCE, paper_set
from veclip_core.evaluation.set_catalogue import read_catalogue
from veclip_core.pipeline.models import Model, models_named
from veclip_core.pipeline.models_evaluation import Asked, MadeEvaluation, config_for, evaluate_models, sets_named
from veclip_core.released_checkpoints import CONFIG, is_archive, name_of
from veclip_core.settings import Settings, SettingsError

REPORT = "released"
COMMAND = "veclip reproduce"


@dataclass(frozen=True)
class HubSet:
    """A set on the Hugging Face hub, in CLIP_benchmark's WebDataset layout."""

    repository: str
    seen: str
    """What of it was seen in the hub's own listing, not fetched."""


HUB_SETS = {
    "coco": HubSet("clip-benchmark/wds_mscoco_captions", "test/0.tar to test/4.tar, 0.84 GB"),
    "flickr30k": HubSet("clip-benchmark/wds_flickr30k", "test/0.tar to test/4.tar, 0.15 GB, 1,000 rows"),
    "imagenet": HubSet("clip-benchmark/wds_imagenet1k", "a split test, but not its files"),
    "imagenetv2": HubSet("clip-benchmark/wds_imagenetv2", "test, class names and templates, but not their size"),
}
STANDING = (
    "Not fetched here: the checkpoints' addresses are those of the README of apple/ml-veclip, and of the sets is said what the hub"
    " lists. Mind the licence of each."
)


@dataclass(frozen=True)
class Missing:
    """What was not given."""

    kind: Literal["checkpoint", "set"]
    name: str
    command: str
    """That gets it to where the next run finds it."""
    listed: str
    """What the hub lists of a set."""


@dataclass(frozen=True)
class Given:
    """What there is of checkpoints and sets."""

    checkpoints: Mapping[str, str]
    """Name to path or address."""
    sets: Mapping[str, str]
    """Name to what `set_named` takes."""
    missing: Sequence[Missing]

    @property
    def suffices(self) -> bool:
        return bool(self.checkpoints and self.sets)


def given(settings: Settings, sets: Sequence[str] = ()) -> Given:
    """Look for every checkpoint and set; nothing is opened.

    Args:
        sets: as `--set` has them, `coco=PATH`; others are taken from the catalogue (VECLIP_EVALUATION_SETS) or from
            `released/sets` in the root.

    Raises:
        SettingsError: for a name that is none of the release's, or a set that is none of the paper's.
    """
    checkpoints = _checkpoints(settings)
    found = _sets(settings, sets)
    folder = _checkpoint_folder(settings)
    absent = [
        Missing(
            "checkpoint",
            name,
            f"curl -fL --create-dirs -o {shlex.quote(storage.join(folder, f'{name}.zip'))} {one.address}",
            "",
        )
        for name, one in RELEASED.items()
        if name not in checkpoints
    ]
    absent += [
        Missing("set", name, _set_command(settings, name), f"listed: {one.seen}")
        for name, one in HUB_SETS.items()
        if name not in found
    ]
    return Given(checkpoints, found, absent)


def models_of(found: Given, settings: Settings) -> list[Model]:
    """The given checkpoints, fetched, unpacked and pinned. Raises BadCheckpoint, FetchError, TokenizerMissing."""
    return models_named([f"{name}={where}" for name, where in found.checkpoints.items()], settings)


def reproduce(found: Given, settings: Settings) -> MadeEvaluation:
    """Evaluate every given checkpoint on every given set, and hold it against the published row.

    Raises:
        SettingsError: where there is no checkpoint or no set.
        Mendable: what is wrong with one of them.
    """
    if not found.suffices:
        what = "set" if found.checkpoints else "released checkpoint"
        commands = "\n".join(f"  {one.command}" for one in found.missing)
        raise SettingsError(f"no {what} of the paper is given. These commands get what is missing:\n{commands}")
    sets = sets_named(list(found.sets.values()), settings)
    return evaluate_models(
        settings,
        Asked(
            models_of(found, settings),
            sets,
            REPORT,
            f"The released checkpoints, measured here and published ({TOLERANCE} points of tolerance)",
            [COMMAND],
            config_for(sets, ()),
        ),
    )


def _checkpoints(settings: Settings) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in settings.released_checkpoints.split(","))):
        if is_archive(part) or (Path(part) / CONFIG).is_file():
            name = name_of(part)
            if name not in RELEASED:
                raise SettingsError(
                    f"VECLIP_RELEASED_CHECKPOINTS: {storage.shown(part)} has no name of the release's; there are"
                    f" {', '.join(RELEASED)}. Evaluate others with `veclip evaluate --model`"
                )
            found[name] = part
        else:
            found |= _in_folder(part)
    return _in_folder(_default_folder(settings, "checkpoints")) | found


def _in_folder(folder: str) -> dict[str, str]:
    """The unpacked folders and zips of the release's names."""
    places = {name: (f"{name}/{CONFIG}", f"{name}.zip") for name in RELEASED}
    there = {
        name: next((place for place in of if storage.exists(storage.join(folder, place))), None)
        for name, of in places.items()
    }
    return {
        name: storage.join(folder, place.removesuffix(f"/{CONFIG}"))
        for name, place in there.items()
        if place is not None
    }


def _sets(settings: Settings, told: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in told:
        name = paper_set(one.partition("=")[0])
        if name is None:
            raise SettingsError(
                f"--set {one}: the paper's sets are {', '.join(PAPER_SETS)}: give one as NAME=PATH, or as the catalogue names it."
                " Evaluate on others with `veclip evaluate --set`"
            )
        found[name] = one
    catalogue = read_catalogue(settings.evaluation_sets) if settings.evaluation_sets else {}
    for listed in catalogue:
        if (name := paper_set(listed)) is not None:
            found.setdefault(name, listed)
    for name in PAPER_SETS:
        folder = Path(_default_folder(settings, "sets")) / name
        if folder.is_dir():
            found.setdefault(name, f"{name}={folder}")
    return {name: found[name] for name in PAPER_SETS if name in found}


def _default_folder(settings: Settings, what: str) -> str:
    """`released/checkpoints` or `released/sets` in a local root, else in the cache."""
    root = settings.root if storage.is_local(settings.root) else str(settings.cache_folder)
    return storage.join(root, "released", what)


def _checkpoint_folder(settings: Settings) -> str:
    """Where a missing zip is to be put: the folder that settings name, where it is one."""
    told = settings.released_checkpoints.strip()
    alone = (
        told and "," not in told and "://" not in told and not is_archive(told) and not (Path(told) / CONFIG).is_file()
    )
    return told if alone else _default_folder(settings, "checkpoints")


def _set_command(settings: Settings, name: str) -> str:
    folder = shlex.quote(storage.join(_default_folder(settings, "sets"), name))
    return (
        f"hf download {HUB_SETS[name].repository} --repo-type dataset --include 'test/*' --include '*.txt'"
        f" --local-dir {folder}"
    )
