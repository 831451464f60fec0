"""`dfn_scores_S`, `dfn_manifest_S`, `dfn_mixture_S`, and the two trainings on them: what a data-filtering network keeps, alone and
mixed with the scale's own captions."""

from collections.abc import Mapping

import dagster as dg

from veclip_core import storage
from veclip_core.mixing.score import Scores
from veclip_core.pipeline.filtering import kept_by, make_scores, network_name, scores_of
from veclip_core.pipeline.lineage import tracked_stages
from veclip_core.pipeline.manifests import make_dfn_manifest
from veclip_core.pipeline.mixtures import OF_A_SCALE, make_mixture
from veclip_core.pipeline.scored_pairs import markdown_of_pairs, pairs_at
from veclip_core.scales import OF_ITS_OWN, Scale
from veclip_core.settings import Settings
from veclip_core.training.arms import ARMS
from veclip_dagster import checks, metadata
from veclip_dagster.data_assets import SomePartsConfig, chain_of, current_digest, result_of_stage
from veclip_dagster.failures import clear_failures
from veclip_dagster.links import mlflow_links, tags_of
from veclip_dagster.model_assets import training_asset
from veclip_dagster.resources import VeclipResource


def dfn_assets(
    scale: Scale, settings: Settings, code_versions: Mapping[str, str]
) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """The filtering network's assets of a scale."""
    s, group = scale.name, f"dfn_{scale.name}"
    network = network_name(scale, settings)
    screened = [f"screen_{s}"] if "screen" in code_versions else []

    @dg.asset(
        name=f"dfn_scores_{s}",
        deps=[f"shards_{s}", *screened, *([f"{network}_{s}"] if network in ARMS else [])],
        group_name=group,
        kinds={"pytorch", "huggingface"},
        owners=["team:data"],
        pool="gpu",
        code_version=code_versions["dfn_scores"],
        check_specs=checks.specs(f"dfn_scores_{s}", "counts_add_up", "some_rows_ok", "no_shard_set_aside"),
        description=f"How well each AltText fits its picture, by {_network_described(network)}",
    )
    def scores(
        context: dg.AssetExecutionContext, config: SomePartsConfig, veclip: VeclipResource
    ) -> dg.MaterializeResult:
        with clear_failures():
            chain = chain_of(context, veclip, scale, f"dfn_scores_{s}")
            with tracked_stages(chain, "dfn_scores", tags_of(context, chain.settings)) as live:
                only = config.range()
                report = make_scores(chain, config.parts, only)
                live.log([report], f"dfn_scores_{s}", "dfn_scores")
            numbers = metadata.of_stage(report)
            if only is not None:
                return result_of_stage(
                    report, numbers, checks.of_stage(report, set_aside=True), current_digest(chain, "score")
                )
            _, found = scores_of(chain)
            numbers |= _of_scores(found, kept_by(found, chain.settings).least)
            for name, pairs in pairs_at(chain).items():
                numbers[name] = dg.MetadataValue.md(markdown_of_pairs(pairs))
            numbers |= mlflow_links(chain.settings, {f"dfn_scores_{s}": live.run_id} if live.run_id else {})
        return result_of_stage(report, numbers, checks.of_stage(report, set_aside=True))

    @dg.asset(
        name=f"dfn_manifest_{s}",
        deps=[f"dfn_scores_{s}", *screened],
        group_name=group,
        kinds={"python", "parquet"},
        owners=["team:data"],
        code_version=code_versions["dfn_manifest"],
        check_specs=checks.specs(f"dfn_manifest_{s}", "counts_add_up", "some_rows_ok", "ids_unique"),
        description="The AltTexts that the filtering network keeps, with its scores; no caption besides.",
    )
    def manifest(context: dg.AssetExecutionContext, veclip: VeclipResource) -> dg.MaterializeResult:
        with clear_failures():
            report, uri = make_dfn_manifest(chain_of(context, veclip, scale, f"dfn_manifest_{s}"))
        return result_of_stage(report, metadata.of_manifest(report, uri), checks.of_stage(report, unique=True))

    @dg.asset(
        name=f"dfn_mixture_{s}",
        deps=[f"{name}_{s}" for name in settings.mixture if name in OF_A_SCALE],
        group_name=group,
        kinds={"python"},
        owners=["team:data"],
        code_version=code_versions["dfn_mixture"],
        description="Manifests mixed by weight (VECLIP_MIXTURE): what the network keeps, and the scale's captions.",
    )
    def mixture(context: dg.AssetExecutionContext, veclip: VeclipResource) -> dg.MaterializeResult:
        with clear_failures():
            made, uri = make_mixture(chain_of(context, veclip, scale, f"dfn_mixture_{s}"))
        rows = [
            dg.TableRecord({"manifest": storage.shown(one.manifest), "rows": one.rows, "weight": one.weight,
                            "rows_per_epoch": one.rows_per_epoch})
            for one in made.sources
        ]  # fmt: skip
        return dg.MaterializeResult(
            metadata={
                "sources": dg.MetadataValue.table(rows),
                "rows_per_epoch": made.rows_per_epoch,
                "mixture": dg.MetadataValue.text(uri),
            },
            data_version=dg.DataVersion(made.digest),
            tags={"veclip/partial": str(made.partial).lower()},
        )

    about = {
        "dfn_clip": "AltText only, on what the filtering network keeps.",
        "dfn_veclip": "VeCLIP's mix of texts, on the mixture; a sample without a VeCap is always read by its AltText.",
    }
    trainings = [
        training_asset(scale, arm, description, code_versions[arm], f"{ARMS[arm].manifest}_{s}", group)
        for arm, description in about.items()
    ]
    return [scores, manifest, mixture, *trainings]


def _network_described(network: str) -> str:
    if network == OF_ITS_OWN:
        return "a stand-in for a filtering network: the scale's own baseline, trained on the very pairs that it scores."
    return f"the CLIP model {network}."


def _of_scores(scores: Scores, least: float | None) -> dict[str, dg.MetadataValue]:
    found: dict[str, dg.MetadataValue] = {
        "scores": metadata.curve({"samples": scores.histogram()}, "scores of all samples", "samples", x="score")
    }
    if least is not None:
        found |= {"kept_from_score": metadata.number(least), "kept_samples": metadata.number(scores.at_least(least))}
    return found
