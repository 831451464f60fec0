"""`raw_urls_S`, `shards_S`, `vecap_S` and `manifest_S` of one scale."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import dagster as dg
from pydantic import Field

from veclip_core.captioning.preview import described, markdown_table, selected
from veclip_core.config import digest_of
from veclip_core.pipeline import engines, quality
from veclip_core.pipeline.budget import Limit
from veclip_core.pipeline.captions import make_captions, make_styles
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.filtering import scores_wanted
from veclip_core.pipeline.lineage import tracked_stages
from veclip_core.pipeline.manifests import make_manifest
from veclip_core.samples import PartRange, ShardKey
from veclip_core.scales import Scale
from veclip_core.settings import Settings, SettingsError
from veclip_core.shards import ShardSet, read_current
from veclip_core.stage_report import StageReport
from veclip_dagster import checks, metadata
from veclip_dagster.data_plots import of_hosts, of_quality
from veclip_dagster.failures import clear_failures
from veclip_dagster.links import mlflow_links, tags_of
from veclip_dagster.resources import VeclipResource

PREVIEW_ROWS = 12


class RawUrlsConfig(dg.Config):
    """Limits of a trial; what is made with one is marked partial."""

    rows: int | None = Field(None, ge=1, description="Only the first so many rows of the list.")


class PartsConfig(dg.Config):
    """Limits of a trial; what is made with one is marked partial."""

    parts: int | None = Field(None, ge=1, description="Only the first so many parts.")


class SomePartsConfig(PartsConfig):
    """Limits, or parts by number; what is made with one is marked partial."""

    only: str = Field(
        "", description="These parts by number, such as 17-19. They count later, and nothing becomes current by them."
    )

    def range(self) -> PartRange | None:
        """Raises SettingsError for what is no range, and for both limits at once."""
        if self.only and self.parts is not None:
            raise SettingsError("give `parts` (the first so many) or `only` (some by number), not both")
        try:
            return PartRange.parse(self.only) if self.only else None
        except ValueError as error:
            raise SettingsError(f"only: {error}") from error


def chain_of(
    context: dg.AssetExecutionContext,
    veclip: VeclipResource,
    scale: Scale,
    asset: str,
    grid_of_parts: str | None = None,
) -> Chain:
    """The chain with its progress told to Dagster: a cell of `<asset>_parts` for each finished part."""

    def on_part(part: int, stage: str, sums: Mapping[str, Any]) -> None:
        context.log.info(f"{stage}: part {part} done, {sums['rows_ok']:,} of {sums['rows_in']:,} rows ok")
        if stage == grid_of_parts:
            name = ShardKey(part, 0).part_name
            numbers = {key: metadata.number(value) for key, value in sums.items()}
            context.log_event(dg.AssetMaterialization(f"{asset}_parts", partition=name, metadata=numbers))

    return Chain(veclip.settings(), scale, on_part=on_part)


def data_assets(
    scale: Scale, settings: Settings, code_versions: Mapping[str, str]
) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """The four data assets of a scale and their part grids."""
    s = scale.name
    screened = [f"screen_{s}"] if "screen" in code_versions else []
    parts = dg.StaticPartitionsDefinition([ShardKey(part, 0).part_name for part in range(scale.parts)])

    @dg.asset(
        name=f"raw_urls_{s}",
        group_name=f"scale_{s}",
        kinds={"python", "parquet"},
        owners=["team:data"],
        code_version=code_versions["raw_urls"],
        check_specs=checks.specs(f"raw_urls_{s}", "counts_add_up", "some_rows_ok"),
        description=f"URLs with their AltText, by url_id: {scale.source.description}. One row a (URL, AltText) pair.",
    )
    def raw_urls(
        context: dg.AssetExecutionContext, config: RawUrlsConfig, veclip: VeclipResource
    ) -> dg.MaterializeResult:
        with clear_failures():
            chain = chain_of(context, veclip, scale, f"raw_urls_{s}")
            report = chain.raw_urls(config.rows)
        return result_of_stage(report, metadata.of_stage(report), checks.of_stage(report))

    @dg.asset(
        name=f"shards_{s}",
        deps=[f"raw_urls_{s}"],
        group_name=f"scale_{s}",
        kinds={"python", "parquet"},
        owners=["team:data"],
        pool="download",
        code_version=code_versions["shards"],
        check_specs=checks.specs(f"shards_{s}", "counts_add_up", "some_rows_ok", "success_rate", "no_shard_set_aside"),
        description="Downloaded pictures: WebDataset tars in url_id order, and a row for every URL with its status and reason.",
    )
    def shards(
        context: dg.AssetExecutionContext, config: SomePartsConfig, veclip: VeclipResource
    ) -> dg.MaterializeResult:
        with clear_failures():
            chain = chain_of(context, veclip, scale, f"shards_{s}", grid_of_parts="download")
            report = chain.shards(config.parts, config.range())
            numbers = metadata.of_stage(report) | of_hosts(chain, report)
            digest = current_digest(chain, "download") if config.only else ""
        return result_of_stage(report, numbers, checks.of_stage(report, success_rate=True), digest)

    @dg.asset(
        name=f"vecap_{s}",
        deps=[f"shards_{s}", *screened],
        group_name=f"scale_{s}",
        kinds={"pytorch", "huggingface"},
        owners=["team:data"],
        pool="gpu",
        code_version=code_versions["vecap"],
        check_specs=checks.specs(f"vecap_{s}", "counts_add_up", "some_rows_ok", "no_shard_set_aside", "llm_wrote_some"),
        description=_vecap_description(scale),
    )
    def vecap(
        context: dg.AssetExecutionContext, config: SomePartsConfig, veclip: VeclipResource
    ) -> dg.MaterializeResult:
        with clear_failures():
            chain = chain_of(context, veclip, scale, f"vecap_{s}", grid_of_parts="select")
            look = _EarlyLook(context, chain)
            with tracked_stages(chain, "vecap", tags_of(context, chain.settings)) as live:

                def on_shard(stage: str, output: ShardSet, key: ShardKey, marker: Mapping[str, Any]) -> None:
                    live.on_shard(stage, output, key, marker)
                    look(stage, output, key)

                limit = Limit.of(chain.settings)
                only = config.range()
                reports = make_captions(replace(chain, on_shard=on_shard), config.parts, limit, only)
                live.log(reports, f"vecap_{s}", "vecap")
                if only is not None:  # what is current, and its pages, tell of other parts too
                    numbers = {name: value for report in reports for name, value in metadata.of_stage(report).items()}
                    results = checks.of_stage(*reports, llm_share=fused_share(reports))
                    return result_of_stage(reports[-1], numbers, results, current_digest(chain, "select"))
                # Without the grid of parts: its cells tell of the scale's own captions.
                beside = replace(chain_of(context, veclip, scale, f"vecap_{s}"), on_shard=live.on_shard)
                styled = make_styles(beside, config.parts, limit)
                for style, made in styled.items():
                    live.log(made, f"vecap_{s}_{style}", "vecap", prefix=f"{style}/")
            run_id = live.run_id
            current = chain.current("select", "vecap")
            sets = {name: current.input(chain.root, chain.source, name) for name in ("download", "fuse", "select")}
            # Not from the first shard if that one was set aside.
            key = min(sets["select"].markers(current.shard_keys()))
            pages = quality.write_pages(chain)
            looks = selected(sets["select"], sets["download"], key, PREVIEW_ROWS, fuse=sets["fuse"])
        select, fused = reports[-1], fused_share(reports)
        extra = {
            "captions": dg.MetadataValue.md(markdown_table(looks)),
            "written_by_the_llm": metadata.number(fused),
            "stand_in": dg.MetadataValue.text(_stand_in(chain)),
            **{
                f"quality_page{'_' * bool(style)}{style}": dg.MetadataValue.path(page)
                for style, (page, _) in pages.items()
            },
            **{f"written_by_the_llm_{style}": metadata.number(fused_share(made)) for style, made in styled.items()},
            **of_quality(pages[""][1]),
            **mlflow_links(chain.settings, {f"vecap_{s}": run_id} if run_id else {}),
        }
        numbers = extra | {name: value for report in reports for name, value in metadata.of_stage(report).items()}
        every = [*(report for made in styled.values() for report in made), *reports]
        least = min([fused, *(fused_share(made) for made in styled.values())])
        digest = digest_with_styles(select, [made[-1] for made in styled.values()])
        return result_of_stage(select, numbers, checks.of_stage(*every, llm_share=least), digest)

    @dg.asset(
        name=f"manifest_{s}",
        deps=[f"vecap_{s}", *screened, *([f"dfn_scores_{s}"] if scores_wanted(scale, settings) else [])],
        group_name=f"scale_{s}",
        kinds={"python", "parquet"},
        owners=["team:data"],
        code_version=code_versions["manifest"],
        check_specs=checks.specs(f"manifest_{s}", "counts_add_up", "some_rows_ok", "ids_unique"),
        description="What training reads: one row a sample, where its picture lies, a column per caption source.",
    )
    def manifest(
        context: dg.AssetExecutionContext, config: PartsConfig, veclip: VeclipResource
    ) -> dg.MaterializeResult:
        with clear_failures():
            chain = chain_of(context, veclip, scale, f"manifest_{s}", grid_of_parts="mix")
            report, uri = make_manifest(chain, config.parts)
        return result_of_stage(report, metadata.of_manifest(report, uri), checks.of_stage(report, unique=True))

    grids = [
        dg.AssetSpec(
            f"{asset}_{s}_parts",
            deps=[upstream],
            partitions_def=parts,
            group_name=f"scale_{s}",
            owners=["team:data"],
            kinds={"parquet"},
            description=f"Progress of {asset}_{s} by part. Shown only: the truth is the markers beside the data.",
        )
        for asset, upstream in (("shards", f"raw_urls_{s}"), ("vecap", f"shards_{s}"), ("manifest", f"vecap_{s}"))
    ]
    return [raw_urls, shards, vecap, manifest, *grids]


class _EarlyLook:
    """Shows the first descriptions with their pictures while the rest is still made."""

    def __init__(self, context: dg.AssetExecutionContext, chain: Chain) -> None:
        self._context, self._chain, self._shown = context, chain, False

    def __call__(self, stage: str, output: ShardSet, key: ShardKey) -> None:
        if self._shown or stage != "describe":
            return
        self._shown = True
        current = self._chain.current("download", "shards")
        downloads = current.shard_set(self._chain.root, self._chain.source)
        urls = current.input(self._chain.root, self._chain.source, "list_urls")
        looks = described(output, urls, downloads, key, PREVIEW_ROWS)
        self._context.log_event(
            dg.AssetObservation(
                self._context.asset_key, metadata={"first_descriptions": dg.MetadataValue.md(markdown_table(looks))}
            )
        )


def digest_with_styles(select: StageReport, styled: Sequence[StageReport]) -> str:
    """The data version of a scale's captions: other captions of a style are other data."""
    return digest_of([select.digest, *(made.digest for made in styled)]) if styled else select.digest


def current_digest(chain: Chain, stage: str) -> str:
    """The data version that stays when only some parts were made; empty where nothing is current yet."""
    current = read_current(chain.root, chain.source, stage, chain.scale.name)
    return current.digest if current else ""


def fused_share(reports: Sequence[StageReport]) -> float:
    """Share of the samples whose VeCap is the model's own, from the reports of captioning stages."""
    select = reports[-1]
    return (select.rows_ok - select.fallbacks) / select.rows_in if select.rows_in else 0.0


def _vecap_description(scale: Scale) -> str:
    text = "Captions: each picture described (VeC), fused with its AltText by a language model, checked and selected (VeCap)."
    if scale.describer_is_stand_in:
        text += " The describer of this scale is a stand-in: a tagger fitted on emoji drawings, not a vision-language model."
    return text


def _stand_in(chain: Chain) -> str:
    describer = engines.describer_of(chain.scale, chain.settings)
    return "the describer is a stand-in, not a vision-language model" if describer == engines.STAND_IN else "none"


def result_of_stage(
    report: StageReport,
    numbers: Mapping[str, dg.MetadataValue],
    results: list[dg.AssetCheckResult],
    digest: str = "",
) -> dg.MaterializeResult:
    """`digest` is the data version where the report's own is not all of it."""
    return dg.MaterializeResult(
        metadata=numbers,
        check_results=results,
        data_version=dg.DataVersion(digest or report.digest),
        tags={"veclip/partial": str(report.partial).lower()},
    )
