"""`screen_S` of one scale: there when VECLIP_SCREEN asks for it."""

import dagster as dg

from veclip_core.pipeline.screening import make_screen
from veclip_core.scales import Scale
from veclip_core.screening.preview import markdown_table, pairs
from veclip_dagster import checks, metadata
from veclip_dagster.data_assets import PartsConfig, chain_of, result_of_stage
from veclip_dagster.failures import clear_failures
from veclip_dagster.resources import VeclipResource

PREVIEW_PAIRS = 12


def screen_asset(scale: Scale, code_version: str, screened_for: tuple[str, ...]) -> dg.AssetsDefinition:
    """The asset between `shards_S` and `vecap_S`."""
    s = scale.name

    @dg.asset(
        name=f"screen_{s}",
        deps=[f"shards_{s}"],
        group_name=f"scale_{s}",
        kinds={"python", "parquet"},
        owners=["team:data"],
        pool="gpu",
        code_version=code_version,
        check_specs=checks.specs(
            f"screen_{s}", "counts_add_up", "some_rows_ok", "no_shard_set_aside", "most_pictures_pass"
        ),
        description=f"Which pictures may be captioned and trained on. Screened for: {', '.join(screened_for)}.",
    )
    def screen(context: dg.AssetExecutionContext, config: PartsConfig, veclip: VeclipResource) -> dg.MaterializeResult:
        with clear_failures():
            chain = chain_of(context, veclip, scale, f"screen_{s}")
            look, report = make_screen(chain, config.parts)
            current = chain.current("screen", "screen")
            sets = {name: current.input(chain.root, chain.source, name) for name in ("download", "screen")}
            found = pairs(sets["screen"], sets["download"], current.grid, current.shard_keys(), PREVIEW_PAIRS)
        numbers = {
            **metadata.of_stage(look),
            **metadata.of_stage(report),
            "near_duplicates": dg.MetadataValue.md(markdown_table(found) if found else "none"),
        }
        return result_of_stage(report, numbers, checks.of_screening(look, report))

    return screen
