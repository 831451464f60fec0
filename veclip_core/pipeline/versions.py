"""Code versions of a scale's assets: hashes of what decides their content, known before anything is made.

Dagster marks an asset stale when its code version differs from the one it was made with.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from veclip_core.captioning.shuffle import ShuffleConfig
from veclip_core.captioning.styles import Style
from veclip_core.config import digest_of
from veclip_core.evaluation.evaluate import EvaluationConfig
from veclip_core.mixing.manifest import CONTROL_MIX, MixConfig
from veclip_core.pipeline.data import download_config
from veclip_core.pipeline.engines import (
    captioner_of,
    changed_thresholds,
    check_config_for,
    describing_config,
    fusing_config,
    select_config_for,
    styles_of,
)
from veclip_core.pipeline.filtering import network_name
from veclip_core.pipeline.manifests import mix_config
from veclip_core.pipeline.screening import version as screening_version
from veclip_core.scales import Scale
from veclip_core.settings import Settings
from veclip_core.training.arms import ARMS, EXPERIMENT, TRAINED_AT_EVERY_SCALE, TRAINED_ON_FILTERED
from veclip_core.training.recipe import RECIPES
from veclip_core.training.sweeps import SWEEPS


def code_versions(scale: Scale, settings: Settings) -> dict[str, str]:
    """Asset kind to a short hash of its configuration."""
    captioner = captioner_of(scale, settings)
    recipe = RECIPES[scale.recipe]

    def captions(style: Style | None) -> list[str]:
        return [
            describing_config(captioner, style).identity(),
            check_config_for(scale, settings, style).identity(),
            fusing_config(captioner, style).identity(),
            select_config_for(captioner, style, changed_thresholds(settings, style)).identity(),
        ]

    deciding: dict[str, Sequence[Any]] = {
        "raw_urls": [scale.source.name, scale.source.rows_per_part, scale.source.rows_per_shard],
        "shards": [download_config(scale).identity()],
        "vecap": [version for style in (None, *styles_of(scale, settings)) for version in captions(style)],
        "manifest": [mix_config(scale, settings).identity(), *_in_manifest(settings)],
        "dfn_scores": [network_name(scale, settings)],
        "dfn_manifest": [MixConfig(captioned=False).identity(), *_kept(settings)],
        "dfn_mixture": [settings.mixture],
        "eval_report": [EvaluationConfig().identity()],
    }
    deciding |= {
        arm: [recipe.identity(), dict(ARMS[arm].weights)] for arm in (*TRAINED_AT_EVERY_SCALE, *TRAINED_ON_FILTERED)
    }
    if settings.screen:
        deciding["screen"] = [screening_version(settings)]
    trainings = [[arm, dict(ARMS[arm].weights), EXPERIMENT.seeds] for arm in EXPERIMENT.arms]
    deciding |= {
        "vecap_control": [ShuffleConfig().identity(), *captions(None)],
        "manifest_control": [CONTROL_MIX.identity()],
        "arms": [recipe.identity(), trainings],
        "experiment_report": [EvaluationConfig().identity(), asdict(EXPERIMENT)],
    }
    for name, sweep in SWEEPS.items():
        read = [[arm, dict(ARMS[arm].weights), ARMS[arm].data_fraction] for arm in sweep.comparison.arms]
        deciding[f"sweep_{name}"] = [recipe.identity(), read, EvaluationConfig().identity(), asdict(sweep.comparison)]
    return {asset: digest_of(list(values))[:12] for asset, values in deciding.items()}


def _in_manifest(settings: Settings) -> list[Any]:
    return [settings.dfn_in_manifest, *(_kept(settings) if settings.dfn_in_manifest == "keep" else [])]


def _kept(settings: Settings) -> list[Any]:
    """What says which samples a filtering network keeps."""
    return [settings.dfn_top, settings.dfn_least]
