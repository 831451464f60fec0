"""From a scale's models, by name, to the operations of the captioning stages."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from veclip_core import storage
from veclip_core.captioning.describe import DescribeConfig, DescribeOperation, open_vlm, vlm_config_for
from veclip_core.captioning.engines.base import EngineRuntime
from veclip_core.captioning.engines.concepts import ConceptsConfig, open_concepts
from veclip_core.captioning.engines.weights import SMOLLM2, checked_config, resolve_model
from veclip_core.captioning.fuse import FuseOperation, fuse_config_for
from veclip_core.captioning.select import SelectOperation
from veclip_core.scales import LLAVA, VICUNA, Scale
from veclip_core.settings import Settings
from veclip_core.sources.openmoji import build_openmoji
from veclip_core.stage import StageFailed

INPUTS = {
    "describe": ("download",),
    "shuffle": ("describe",),
    "fuse": ("list_urls", "describe"),
    "select": ("list_urls", "download", "describe", "fuse"),
}
"""Stage to the stages it reads."""
STAND_IN = "concepts"
SMALL_FUSER = "smollm2"


def runtime_of(settings: Settings) -> EngineRuntime:
    return EngineRuntime(
        engine=settings.engine, weights_dir=settings.cache_folder / "weights", threads=settings.threads
    )


def describer_of(scale: Scale, settings: Settings) -> str:
    """The describing model's name: the scale's own unless settings name another."""
    return settings.describer or scale.describer


def describe_operation(scale: Scale, settings: Settings) -> DescribeOperation:
    """The stand-in captioner, or a vision-language model."""
    name = describer_of(scale, settings)
    if name == STAND_IN:
        config, folder = ConceptsConfig(), prepare_stand_in(settings)
        return DescribeOperation(
            DescribeConfig(describer=config), partial(open_concepts, config, folder, settings.threads)
        )
    vlm = vlm_config_for(name)
    return DescribeOperation(DescribeConfig(describer=vlm), partial(open_vlm, vlm, runtime_of(settings)))


def require_models(scale: Scale, settings: Settings) -> None:
    """See to it before any work starts that both models can be had: describing for a day and then missing a fuser is dear.

    Raises:
        WeightsMissing: with the model's name and what to do.
        StageFailed: when a scale's own models, of billions of parameters, would have to run without a GPU.
    """
    for role, variable, name, small in (
        ("describing", "VECLIP_DESCRIBER", describer_of(scale, settings), STAND_IN),
        ("fusing", "VECLIP_FUSER", settings.fuser or scale.fuser, SMALL_FUSER),
    ):
        if name == STAND_IN:
            continue
        checked_config(
            resolve_model(SMOLLM2 if name == SMALL_FUSER else name, settings.cache_folder / "weights"), revision=None
        )
        if name in (LLAVA, VICUNA) and not _has_gpu():
            raise StageFailed(
                f"vecap_{scale.name}: {role} with {name} needs a CUDA GPU, and there is none here. Run it where there is one, or"
                f" name a smaller model: {variable}=<path or id>, or the sample's {variable}={small} for a trial."
            )


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def prepare_stand_in(settings: Settings) -> Path:
    """Fit the stand-in captioner and measure it on the evaluation artist, once; the folder it is kept in."""
    from veclip_core.captioning.concept_fit import fit_concepts, measure_concepts
    from veclip_core.sources.sample_world import build_world

    folder = settings.cache_folder / "concepts" / ConceptsConfig().identity()[:16]
    measured = folder / "accuracy.json"
    if measured.exists():
        return folder
    packages, world = settings.cache_folder / "packages", settings.cache_folder / "world"
    build_world(packages, world)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):  # a second process waits and finds it fitted
        if not measured.exists():
            fit_concepts(packages, folder)
            accuracy = measure_concepts(folder, build_openmoji(packages, world))
            storage.write_json(str(measured), asdict(accuracy))
    return folder


def stand_in_accuracy(settings: Settings) -> dict[str, Any]:
    """What `prepare_stand_in` measured, as `ConceptsAccuracy`'s fields."""
    return dict(storage.read_json(str(prepare_stand_in(settings) / "accuracy.json")))


def fuse_operation(scale: Scale, settings: Settings) -> FuseOperation:
    return FuseOperation(fuse_config_for(settings.fuser or scale.fuser), runtime_of(settings))


def select_operation() -> SelectOperation:
    return SelectOperation()
