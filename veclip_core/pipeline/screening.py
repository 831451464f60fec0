"""The screening of a scale: from settings to the stages `look` and `screen`, and what the stages after them may rely on."""

import hashlib
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from veclip_core import storage
from veclip_core.captioning.engines.base import EngineConfig
from veclip_core.captioning.engines.weights import pinned
from veclip_core.config import digest_of
from veclip_core.pipeline import executors
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.parts import first_parts, is_limited
from veclip_core.screening.checks import CHOICES, PictureCheck
from veclip_core.screening.duplicates import STAGE, DuplicatesConfig, write_duplicates
from veclip_core.screening.evaluation_copies import EvaluationCheck, EvaluationConfig, EvaluationSet, keep_looks
from veclip_core.screening.faces import FacesCheck, faces_config
from veclip_core.screening.hashes import HashCheck
from veclip_core.screening.known import read_known
from veclip_core.screening.look import LookOperation
from veclip_core.screening.nsfw import NsfwCheck, NsfwConfig, unsafe_labels
from veclip_core.screening.screen import ScreenConfig, ScreenOperation, Thresholds
from veclip_core.screening.verdicts import SCREEN
from veclip_core.settings import Settings, SettingsError
from veclip_core.shards import Current, NotMadeYet, ShardSet
from veclip_core.sources.near_duplicates import NearDuplicateConfig
from veclip_core.sources.openmoji import build_openmoji
from veclip_core.sources.sample_world import OPENMOJI_LOOKS, build_world
from veclip_core.stage import output_of
from veclip_core.stage_report import StageReport

LOOK = "look"
SCREENING = (LOOK, STAGE, SCREEN)
"""What a screening adds to the lineage of what is made of it."""
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
"""Files of an evaluation folder that are its pictures."""
NEEDED = {"nsfw": "nsfw_model", "faces": "face_model", "known": "known_hashes"}
"""Check to the setting without which it can't be."""


def checks_of(settings: Settings) -> tuple[str, ...]:
    """What settings ask to screen for, in one order.

    Raises:
        SettingsError: for a check that is not there, or lacks its model or list.
    """
    if unknown := set(settings.screen) - set(CHOICES):
        raise SettingsError(f"VECLIP_SCREEN: there is no {', '.join(sorted(unknown))}; there are {', '.join(CHOICES)}")
    for check, setting in NEEDED.items():
        if check in settings.screen and not getattr(settings, setting):
            raise SettingsError(f"VECLIP_SCREEN={check} needs VECLIP_{setting.upper()} (see settings.py)")
    return tuple(check for check in CHOICES if check in settings.screen)


def thresholds_of(settings: Settings) -> Thresholds:
    """Raises SettingsError for what is no threshold."""
    try:
        return Thresholds.model_validate(settings.screen_thresholds)
    except ValidationError as error:
        problems = "; ".join(f"{item['loc'][0]}: {item['msg']}" for item in error.errors())
        raise SettingsError(
            f"VECLIP_SCREEN_THRESHOLDS: {problems}. There are {', '.join(Thresholds.model_fields)}"
        ) from error


def version(settings: Settings) -> str:
    """A digest of what decides the verdicts, as far as settings tell it without a look at models and lists."""
    decided = [settings.screen_against, settings.nsfw_model, settings.face_model, settings.known_hashes]
    return digest_of([checks_of(settings), thresholds_of(settings).identity(), *decided])


def make_screen(chain: Chain, parts: int | None = None) -> list[StageReport]:
    """Look at the pictures, find duplicates, decide; the reports of `look` and `screen`. What is current moves at the end.

    Args:
        parts: the first so many, which makes it partial.

    Raises:
        SettingsError: when nothing is to be screened for, or a model or list is not named.
        ScreeningError, WeightsMissing, UnreadablePicture: when one can't be used.
    """
    checks, thresholds = checks_of(chain.settings), thresholds_of(chain.settings)
    if not checks:
        raise SettingsError(
            f"nothing is screened for: set VECLIP_SCREEN to some of {', '.join(CHOICES)}, with commas between"
        )
    downloads = chain.current("download", "shards")
    count, trial = first_parts(parts, downloads), is_limited(parts, downloads)
    pictures = downloads.shard_set(chain.root, chain.source)
    known = read_known(chain.settings.known_hashes) if "known" in checks else None
    look = LookOperation(_picture_checks(chain, checks))
    inputs = {"download": pictures}
    looked = chain.run(look, downloads.grid, count, inputs, executors.for_captions(chain.settings, look), trial)
    inputs[LOOK] = output_of(look, chain.root, chain.source, inputs)
    if "duplicates" in checks:
        config = DuplicatesConfig(
            distance=thresholds.duplicate_distance, min_quality=thresholds.min_quality, search=thresholds.search
        )
        inputs[STAGE] = write_duplicates(inputs[LOOK], pictures, downloads.grid.keys(count), config)
    screen = ScreenOperation(
        ScreenConfig(checks=checks, thresholds=thresholds, known=known.digest if known else None), known
    )
    screened = chain.run(screen, downloads.grid, count, inputs, executors.for_captions(chain.settings, screen), trial)
    lineage = {**downloads.inputs, **{name: made.identity for name, made in inputs.items()}, SCREEN: screened.identity}
    for report in (looked, screened):
        chain.promote(SCREEN, report, downloads.grid, lineage)
    return [looked, screened]


def screened(chain: Chain, download: str) -> Current | None:
    """What is current of the scale's screening; None where settings ask for none.

    Args:
        download: identity of the pictures that are to be captioned or trained on.

    Raises:
        NotMadeYet: when it is not there, or is of other pictures, checks, thresholds or known pictures.
    """
    checks, s = checks_of(chain.settings), chain.scale.name
    if not checks:
        return None
    found = chain.current(SCREEN, SCREEN)
    again = f"Run `dagster asset materialize --select screen_{s}` (or `veclip run screen --scale {s}`) first."
    if found.inputs["download"] != download:
        raise NotMadeYet(f"screen_{s} is of other pictures than these. {again}")
    if not _same_models(chain, look_config(found.input(chain.root, chain.source, LOOK))):
        raise NotMadeYet(
            f"screen_{s} was made with other evaluation sets, or by another model, than VECLIP_SCREEN_AGAINST, VECLIP_NSFW_MODEL"
            f" and VECLIP_FACE_MODEL name now. {again}"
        )
    made = screen_config(found.shard_set(chain.root, chain.source))
    known = read_known(chain.settings.known_hashes).digest if "known" in checks else None
    if made != ScreenConfig(checks=checks, thresholds=thresholds_of(chain.settings), known=known):
        raise NotMadeYet(
            f"screen_{s} was made for {', '.join(made.checks)}, or with other thresholds or known pictures, than settings say"
            f" now. {again}"
        )
    return found


def _same_models(chain: Chain, looked: dict[str, Any]) -> bool:
    """Whether pictures were looked at against the sets and with the models that settings name, by name (and YuNet's file)."""
    settings, by_kind = chain.settings, {check["kind"]: check for check in looked["checks"]}
    asked = checks_of(settings)
    if "evaluation" in asked:
        own = {"openmoji"} if chain.source == "openclipart" else set[str]()
        wanted = own | {_name_of(folder) for folder in settings.screen_against}
        if {one["name"] for one in by_kind.get("evaluation", {"sets": []})["sets"]} != wanted:
            return False
    if "nsfw" in asked:
        folder = Path(settings.nsfw_model)
        wanted_model = folder.resolve().name if folder.is_dir() else settings.nsfw_model
        if by_kind.get("nsfw", {}).get("model") != wanted_model:
            return False
    faces = by_kind.get("faces", {}).get("sha256")
    return "faces" not in asked or faces == faces_config(settings.face_model).sha256


def _name_of(folder: str) -> str:
    return PurePosixPath(folder.rstrip("/")).name


def lineage_of(screen: ShardSet) -> dict[str, str]:
    """Stage to identity, of a screening and of what it was made from."""
    inputs = storage.read_json(storage.join(screen.uri, "config.json"))["inputs"]
    return {SCREEN: screen.identity, **{stage: inputs[stage] for stage in SCREENING if stage in inputs}}


def screen_config(screen: ShardSet) -> ScreenConfig:
    """The configuration that a screening was made with."""
    return ScreenConfig.model_validate(storage.read_json(storage.join(screen.uri, "config.json"))["config"])


def look_config(look: ShardSet) -> dict[str, Any]:
    """The configuration that pictures were looked at with."""
    return dict(storage.read_json(storage.join(look.uri, "config.json"))["config"])


def _picture_checks(chain: Chain, checks: tuple[str, ...]) -> tuple[PictureCheck, ...]:
    settings, found = chain.settings, list[PictureCheck]()
    if {"duplicates", "known"} & set(checks):
        found.append(HashCheck())
    if "evaluation" in checks:
        sets = _evaluation_sets(chain)
        config = EvaluationConfig(sets=tuple(one for one, _ in sets))
        found.append(EvaluationCheck(config, tuple(uri for _, uri in sets), settings.threads))
    if "nsfw" in checks:
        found.append(NsfwCheck(nsfw_config(settings), settings.threads))
    if "faces" in checks:
        found.append(FacesCheck(faces_config(settings.face_model), settings.face_model))
    return tuple(found)


def nsfw_config(settings: Settings) -> NsfwConfig:
    """The classifier, with the revision that this root first used.

    Raises:
        WeightsMissing: it is not on this machine and can't be fetched.
        ScreeningError: none of its labels is known to be the unsafe one.
    """
    model = pinned(EngineConfig(model=settings.nsfw_model), settings.root, settings.cache_folder / "weights")
    config = NsfwConfig(model=model.model, revision=model.revision, folder=model.folder)
    unsafe_labels(config.folder or config.model, None if config.folder else config.revision, config.unsafe)
    return config


def _evaluation_sets(chain: Chain) -> list[tuple[EvaluationSet, str]]:
    """The evaluation sets with the addresses of how they look. Raises SettingsError where there is none."""
    settings, rule = chain.settings, NearDuplicateConfig()
    sets: dict[str, list[tuple[str, str, Path | str]]] = {}
    caches: dict[str, Path] = {}
    if chain.source == "openclipart":
        packages, world = settings.cache_folder / "packages", settings.cache_folder / "world"
        build_world(packages, world)
        openmoji = build_openmoji(packages, world)
        sets["openmoji"] = [(item.file.name, item.sha256, item.file) for item in openmoji.items]
        caches["openmoji"] = world / OPENMOJI_LOOKS
    for folder in settings.screen_against:
        name = _name_of(folder)
        if name in sets:
            raise SettingsError(
                f"VECLIP_SCREEN_AGAINST: two folders are called {name}: rename one, tables name sets by it"
            )
        sets[name] = _pictures_in(folder)
    if not sets:
        raise SettingsError(
            "VECLIP_SCREEN=evaluation needs the pictures that models will be evaluated on: set VECLIP_SCREEN_AGAINST to folders"
            " of them"
        )
    beside = settings.cache_folder / "screening"
    return [
        keep_looks(name, pictures, chain.root, caches.get(name, beside / f"{name}.npz"), rule)
        for name, pictures in sets.items()
    ]


def _pictures_in(folder: str) -> list[tuple[str, str, Path | str]]:
    uris = {name: storage.join(folder, name) for name in storage.list_files(folder) if name.lower().endswith(PICTURES)}
    return [(name, hashlib.sha256(storage.read_bytes(uri)).hexdigest(), uri) for name, uri in uris.items()]
