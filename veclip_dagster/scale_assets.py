"""The factory: the whole chain for one scale."""

import dagster as dg

from veclip_core.pipeline.versions import code_versions
from veclip_core.scales import Scale
from veclip_core.settings import Settings
from veclip_dagster.data_assets import data_assets
from veclip_dagster.model_assets import model_assets


def scale_assets(scale: Scale, settings: Settings) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """`raw_urls_S`, `shards_S`, `vecap_S`, `manifest_S`, `clip_S`, `veclip_S`, `eval_report_S` and their part grids."""
    versions = code_versions(scale, settings)
    if scale.name == "own":  # captions are what one's own pictures are for; there is nothing to evaluate them on
        return data_assets(scale, versions)
    return [*data_assets(scale, versions), *model_assets(scale, versions)]
