"""What Dagster loads. Light on purpose: nothing here imports torch or MLflow."""

import dagster as dg

from veclip_core.scales import SCALES
from veclip_core.settings import Settings
from veclip_dagster.resources import VeclipResource
from veclip_dagster.scale_assets import scale_assets

defs = dg.Definitions(
    assets=[asset for scale in SCALES.values() for asset in scale_assets(scale, Settings.from_environment())],
    jobs=[
        dg.define_asset_job(
            f"chain_{scale}",
            selection=dg.AssetSelection.groups(f"scale_{scale}").materializable(),
            description=f"The whole chain of scale {scale}, from URLs to report; finished work is not done again.",
        )
        for scale in SCALES
    ],
    resources={"veclip": VeclipResource()},
    # One process a run: stages start workers of their own, and a process a step would cost seconds each.
    executor=dg.in_process_executor,
)
