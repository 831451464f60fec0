"""From a scale's models, by name, to the operations of the captioning stages."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import ValidationError

from veclip_core import storage
from veclip_core.captioning.captioners import CAPTIONERS, RELEASED, SMALL_FUSER, STAND_IN, Captioner, captioner_named
from veclip_core.captioning.check import CheckConfig, CheckOperation, LlmJudge, WordList
from veclip_core.captioning.describe import DescribeConfig, DescribeOperation, VlmConfig, open_vlm, vlm_config_for
from veclip_core.captioning.engines.base import EngineConfig, EngineRuntime
from veclip_core.captioning.engines.concepts import ConceptsConfig, open_concepts
from veclip_core.captioning.engines.weights import SMOLLM2, checked_config, pinned, resolve_model
from veclip_core.captioning.fuse import FuseConfig, FuseOperation, fuse_config_for
from veclip_core.captioning.quality import QualityThresholds, VecThresholds
from veclip_core.captioning.released import ReleasedConfig, ReleasedOperation
from veclip_core.captioning.rewrite import RewriteConfig, RewriteOperation, Undescribed, UndescribedConfig
from veclip_core.captioning.select import SelectConfig, SelectOperation
from veclip_core.captioning.styles import Style, style_named
from veclip_core.config import Config
from veclip_core.scales import Scale
from veclip_core.settings import Settings, SettingsError
from veclip_core.sources.openmoji import build_openmoji
from veclip_core.stage import Operation, StageFailed

SEVERAL_AT = 0.7
"""Temperature where several candidates are drawn: greedy ones would be equal."""
INPUTS = {
    "describe": ("download",),
    "shuffle": ("describe",),
    "check": ("list_urls", "describe"),
    "fuse": ("list_urls", "describe", "check"),
    "select": ("list_urls", "download", "describe", "check", "fuse"),
}
"""Stage to the stages it reads."""
INPUTS_OF_REWRITE = ("list_urls", "download", "check")
"""What `fuse` reads in one pass."""
INPUTS_OF_RELEASED = ("list_urls", "check")
"""What `fuse` reads where the captions came with the list."""


def reads_pictures(operation: Operation) -> bool:
    return operation.name == "describe" or isinstance(operation, RewriteOperation)


def inputs_of(operation: Operation) -> tuple[str, ...]:
    if isinstance(operation, RewriteOperation):
        return INPUTS_OF_REWRITE
    return INPUTS_OF_RELEASED if isinstance(operation, ReleasedOperation) else INPUTS[operation.name]


def runtime_of(settings: Settings, server: str = "") -> EngineRuntime:
    return EngineRuntime(
        engine=settings.engine,
        server=server,
        api_key=settings.api_key,
        weights_dir=settings.cache_folder / "weights",
        threads=settings.threads,
        tensor_parallel=settings.tensor_parallel,
        gpu_memory_utilization=settings.gpu_memory,
        kv_cache_gb=settings.kv_cache_gb,
        batch_size=settings.batch_size,
        deadline_s=settings.request_deadline_s,
    )


def captioner_of(scale: Scale, settings: Settings) -> Captioner:
    """The scale's pair of models unless settings name another, or other models."""
    try:
        chosen = captioner_named(settings.captioner or scale.captioner)
    except ValueError as error:
        raise SettingsError(f"VECLIP_CAPTIONER: {error}") from error
    others = [name for name in ("describer", "fuser", "quantization", "styles") if getattr(settings, name)]
    if chosen.describer == RELEASED and (others or settings.candidates > 1):
        what = ", ".join(f"VECLIP_{name.upper()}" for name in others) or "VECLIP_CANDIDATES"
        raise SettingsError(f"captioner `released` makes no captions, and {what} says how: leave one of the two out")
    return replace(
        chosen,
        describer=settings.describer or chosen.describer,
        fuser=settings.fuser or chosen.fuser,
        quantization=settings.quantization,
        candidates=settings.candidates,
    )


def describer_of(scale: Scale, settings: Settings) -> str:
    """The describing model's name."""
    return captioner_of(scale, settings).describer


def styles_of(scale: Scale, settings: Settings) -> tuple[Style, ...]:
    """The further captions that settings ask for.

    Raises:
        SettingsError: for a style that is not there, and where one pass makes the captions.
    """
    try:
        wanted = tuple(style_named(name) for name in dict.fromkeys(settings.styles))
    except ValueError as error:
        raise SettingsError(f"VECLIP_STYLES: {error}") from error
    if wanted and captioner_of(scale, settings).one_pass:
        raise SettingsError("VECLIP_STYLES: styles are fused from descriptions, and in one pass there are none")
    return wanted


def own_description(captioner: Captioner, style: Style) -> bool:
    """Whether a style's pictures are described anew: the stand-in always says the same."""
    return style.describe is not None and captioner.describer != STAND_IN


def describing_config(captioner: Captioner, style: Style | None = None) -> Config:
    """What decides the descriptions, but for the revision of the weights."""
    if captioner.one_pass:
        return UndescribedConfig()
    if captioner.describer == STAND_IN:
        return ConceptsConfig()
    vlm = vlm_config_for(captioner.describer, style)
    return vlm.model_copy(update={"engine": _quantised(vlm.engine, captioner)})


def fusing_config(captioner: Captioner, style: Style | None = None) -> FuseConfig | RewriteConfig | ReleasedConfig:
    """What decides the candidates, but for the revision of the weights."""
    if captioner.describer == RELEASED:
        return ReleasedConfig()
    config: FuseConfig | RewriteConfig
    if captioner.one_pass:
        config = RewriteConfig(engine=EngineConfig(model=captioner.describer, max_model_len=4096))
    else:
        config = fuse_config_for(captioner.fuser, style)
    sampling = config.sampling
    if captioner.candidates > 1:
        sampling = sampling.model_copy(update={"candidates": captioner.candidates, "temperature": SEVERAL_AT})
    return config.model_copy(update={"engine": _quantised(config.engine, captioner), "sampling": sampling})


def _quantised(engine: EngineConfig, captioner: Captioner) -> EngineConfig:
    return engine.model_copy(update={"quantization": captioner.quantization or None})


def describe_operation(scale: Scale, settings: Settings, style: Style | None = None) -> Operation:
    """The stand-in captioner, a vision-language model, or nothing where one pass does both."""
    config = describing_config(captioner_of(scale, settings), style)
    if isinstance(config, UndescribedConfig):
        return Undescribed()
    if isinstance(config, ConceptsConfig):
        folder = prepare_stand_in(settings)
        return DescribeOperation(
            DescribeConfig(describer=config), partial(open_concepts, config, folder, settings.threads)
        )
    assert isinstance(config, VlmConfig)
    vlm = config.model_copy(update={"engine": _pinned(config.engine, settings)})
    runtime = runtime_of(settings, settings.describer_url)
    return DescribeOperation(DescribeConfig(describer=vlm), partial(open_vlm, vlm, runtime))


def _pinned(config: EngineConfig, settings: Settings) -> EngineConfig:
    # A server's weights are the server's business.
    return config if settings.engine == "openai" else pinned(config, settings.root, settings.cache_folder / "weights")


def require_models(scale: Scale, settings: Settings) -> None:
    """See to it before any work starts that both models can be had: describing for a day and then missing a fuser is dear.

    Raises:
        WeightsMissing: with the model's name and what to do.
        StageFailed: when a preset's models, of billions of parameters, would have to run without a GPU.
    """
    if settings.engine == "openai":
        return
    captioner = captioner_of(scale, settings)
    presets = {model for preset in CAPTIONERS.values() for model in (preset.describer, preset.fuser)}
    for role, variable, name, small in (
        ("describing", "VECLIP_DESCRIBER", captioner.describer, STAND_IN),
        ("fusing", "VECLIP_FUSER", captioner.fuser, SMALL_FUSER),
    ):
        if name in ("", STAND_IN, RELEASED):
            continue
        checked_config(
            resolve_model(SMOLLM2 if name == SMALL_FUSER else name, settings.cache_folder / "weights"), revision=None
        )
        # On Ray the GPUs are elsewhere, and an actor that finds none says so.
        if name in presets - {SMALL_FUSER} and settings.executor == "local" and not _has_gpu():
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


def fuse_operation(scale: Scale, settings: Settings, style: Style | None = None) -> Operation:
    """The fusing language model, in one pass the rewriting vision-language model, or the captions that came with the list."""
    captioner = captioner_of(scale, settings)
    config = fusing_config(captioner, style)
    if isinstance(config, ReleasedConfig):
        return ReleasedOperation(config.model_copy(update={"check": check_config_for(scale, settings)}))
    config = config.model_copy(update={"engine": _pinned(config.engine, settings)})
    if isinstance(config, RewriteConfig):
        return RewriteOperation(config, runtime_of(settings, settings.describer_url))
    return FuseOperation(config, runtime_of(settings, settings.fuser_url))


def check_config_for(scale: Scale, settings: Settings, style: Style | None = None) -> CheckConfig:
    vec = style.description if style else VecThresholds()
    if settings.ethics == "judge":
        fusing = fusing_config(captioner_of(scale, settings))
        if isinstance(fusing, ReleasedConfig):
            raise SettingsError("VECLIP_ETHICS=judge asks the captioner's model, and released captions have none")
        return CheckConfig(ethics=LlmJudge(engine=fusing.engine), vec=vec)
    return CheckConfig(ethics=WordList() if settings.ethics == "word_list" else None, vec=vec)


def check_operation(scale: Scale, settings: Settings, style: Style | None = None) -> CheckOperation:
    config = check_config_for(scale, settings, style)
    if isinstance(config.ethics, LlmJudge):
        pinned_judge = config.ethics.model_copy(update={"engine": _pinned(config.ethics.engine, settings)})
        config = config.model_copy(update={"ethics": pinned_judge})
    return CheckOperation(config, runtime_of(settings, settings.fuser_url or settings.describer_url))


def select_config_for(
    captioner: Captioner, style: Style | None = None, changed: Mapping[str, float] | None = None
) -> SelectConfig:
    """The thresholds that the fusing was done with, but for those `changed` since; a style's length holds for its fallbacks too.

    Raises:
        SettingsError: for what is no threshold.
    """
    fusing = fusing_config(captioner, style)
    thresholds = QualityThresholds() if isinstance(fusing, ReleasedConfig) else fusing.thresholds
    try:
        thresholds = QualityThresholds.model_validate(thresholds.model_dump() | dict(changed or {}))
    except ValidationError as error:
        problems = "; ".join(f"{item['loc'][0]}: {item['msg']}" for item in error.errors())
        raise SettingsError(
            f"VECLIP_THRESHOLDS: {problems}. There are {', '.join(QualityThresholds.model_fields)}"
        ) from error
    return SelectConfig(
        thresholds=thresholds,
        fallback_words=style.thresholds.max_words if style else None,
    )


def select_operation(scale: Scale, settings: Settings, style: Style | None = None) -> SelectOperation:
    return SelectOperation(select_config_for(captioner_of(scale, settings), style, changed_thresholds(settings, style)))


def changed_thresholds(settings: Settings, style: Style | None) -> Mapping[str, float]:
    """Of the scale's own captions; styles have theirs in `styles.json`."""
    return settings.thresholds if style is None else {}
