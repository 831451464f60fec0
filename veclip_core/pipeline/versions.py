"""Code versions of a scale's assets: hashes of what decides their content, known before anything is made.

Dagster marks an asset stale when its code version differs from the one it was made with.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from veclip_core.captioning.describe import vlm_config_for
from veclip_core.captioning.engines.concepts import ConceptsConfig
from veclip_core.captioning.fuse import fuse_config_for
from veclip_core.captioning.select import SelectConfig
from veclip_core.captioning.shuffle import ShuffleConfig
from veclip_core.config import digest_of
from veclip_core.evaluation.evaluate import EvaluationConfig
from veclip_core.mixing.manifest import CONTROL_MIX, MixConfig
from veclip_core.pipeline.data import download_config
from veclip_core.scales import Scale
from veclip_core.settings import Settings
from veclip_core.training.arms import ARMS, EXPERIMENT, TRAINED_AT_EVERY_SCALE
from veclip_core.training.recipe import RECIPES


def code_versions(scale: Scale, settings: Settings) -> dict[str, str]:
    """Asset kind to a short hash of its configuration."""
    describer, fuser = settings.describer or scale.describer, settings.fuser or scale.fuser
    describing = ConceptsConfig() if describer == "concepts" else vlm_config_for(describer)
    recipe = RECIPES[scale.recipe]
    deciding: dict[str, Sequence[Any]] = {
        "raw_urls": [scale.source.name, scale.source.rows_per_part, scale.source.rows_per_shard],
        "shards": [download_config(scale).identity()],
        "vecap": [describing.identity(), fuse_config_for(fuser).identity(), SelectConfig().identity()],
        "manifest": [MixConfig().identity()],
        "eval_report": [EvaluationConfig().identity()],
    }
    deciding |= {arm: [recipe.identity(), dict(ARMS[arm].weights)] for arm in TRAINED_AT_EVERY_SCALE}
    trainings = [[arm, dict(ARMS[arm].weights), EXPERIMENT.seeds] for arm in EXPERIMENT.arms]
    deciding |= {
        "vecap_control": [ShuffleConfig().identity(), *deciding["vecap"]],
        "manifest_control": [CONTROL_MIX.identity()],
        "arms": [recipe.identity(), trainings],
        "experiment_report": [EvaluationConfig().identity(), asdict(EXPERIMENT)],
    }
    return {asset: digest_of(list(values))[:12] for asset, values in deciding.items()}
