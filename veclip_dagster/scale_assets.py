"""The factory: the whole chain for one scale."""

import dagster as dg

from veclip_core.pipeline.screening import checks_of
from veclip_core.pipeline.versions import code_versions
from veclip_core.scales import Scale
from veclip_core.settings import Settings
from veclip_dagster.data_assets import data_assets
from veclip_dagster.dfn_assets import dfn_assets
from veclip_dagster.model_assets import model_assets
from veclip_dagster.screen_assets import screen_asset


def scale_assets(scale: Scale, settings: Settings) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """`raw_urls_S`, `shards_S`, `vecap_S`, `manifest_S`, `clip_S`, `veclip_S`, `eval_report_S`, their part grids, and the filtering
    network's `dfn_*_S`; with VECLIP_SCREEN also `screen_S`."""
    versions = code_versions(scale, settings)
    data = data_assets(scale, settings, versions)
    if "screen" in versions:
        data.append(screen_asset(scale, versions["screen"], checks_of(settings)))
    if scale.name == "own":  # captions are what one's own pictures are for; there is nothing to evaluate them on
        return data
    return [*data, *model_assets(scale, versions), *dfn_assets(scale, settings, versions)]
