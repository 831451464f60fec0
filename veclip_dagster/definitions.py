"""What Dagster loads. Light on purpose: nothing here imports torch or MLflow."""

import dagster as dg

from veclip_core.pipeline.versions import code_versions
from veclip_core.scales import SCALES
from veclip_core.settings import Settings
from veclip_core.training.sweeps import SWEEPS
from veclip_dagster.experiment_assets import experiment_assets
from veclip_dagster.released_assets import released_captions_300m, released_checkpoints, released_report
from veclip_dagster.resources import VeclipResource
from veclip_dagster.scale_assets import scale_assets
from veclip_dagster.sweep_assets import sweep_assets

settings = Settings.from_environment()
sample = SCALES["sample"]

defs = dg.Definitions(
    assets=[
        *(asset for scale in SCALES.values() for asset in scale_assets(scale, settings)),
        *experiment_assets(sample, code_versions(sample, settings)),
        *sweep_assets(sample, code_versions(sample, settings)),
        released_captions_300m,
        released_checkpoints,
        released_report,
    ],
    jobs=[
        dg.define_asset_job(
            f"chain_{scale}",
            selection=dg.AssetSelection.groups(f"scale_{scale}").materializable(),
            description=f"The whole chain of scale {scale}, from URLs to report; finished work is not done again.",
        )
        for scale in SCALES
    ]
    + [
        dg.define_asset_job(
            f"dfn_{scale}",
            selection=dg.AssetSelection.groups(f"dfn_{scale}").materializable(),
            description=f"Scale {scale} filtered by a network, alone and mixed with its own captions, and a model of each.",
        )
        for scale in SCALES
        if scale != "own"
    ]
    + [
        dg.define_asset_job(
            "experiment_sample",
            selection=dg.AssetSelection.groups("experiment_sample").materializable(),
            description="Every arm and seed of the sample's comparison, and its report; finished work is not done again.",
        ),
        dg.define_asset_job(
            "reproduce_released",
            selection=dg.AssetSelection.assets(released_checkpoints, released_report),
            description="The paper's released checkpoints on its evaluation sets, as far as they are given, beside the published"
            " scores.",
        ),
    ]
    + [
        dg.define_asset_job(
            f"{name}_sweep_sample",
            selection=dg.AssetSelection.assets(f"sweep_{name}_sample"),
            description=f"{sweep.title}: the sample's trainings along it, and its report; finished work is not done again.",
        )
        for name, sweep in SWEEPS.items()
    ],
    resources={"veclip": VeclipResource()},
    # One process a run: stages start workers of their own, and a process a step would cost seconds each.
    executor=dg.in_process_executor,
)
