"""The sample's experiment: every arm of the comparison over several seeds, and the report that holds them beside each other."""

from collections.abc import Mapping
from dataclasses import replace

import dagster as dg
from pydantic import Field

from veclip_core.config import digest_of
from veclip_core.pipeline.captions import make_control
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.evaluation import make_report
from veclip_core.pipeline.lineage import tracked_stages
from veclip_core.pipeline.manifests import make_control_manifest
from veclip_core.pipeline.side_by_side import train_side_by_side
from veclip_core.scales import Scale
from veclip_core.training.arms import ARMS, EXPERIMENT
from veclip_dagster import checks, metadata
from veclip_dagster.data_assets import chain_of, fused_share, result_of_stage
from veclip_dagster.failures import clear_failures
from veclip_dagster.links import mlflow_links, tags_of
from veclip_dagster.model_assets import result_of_report
from veclip_dagster.resources import VeclipResource
from veclip_dagster.several_trainings import filling, observing, of_trainings, trainings_grid

SEEDS = list(EXPERIMENT.seeds)


class ArmsConfig(dg.Config):
    """Which trainings, and a smaller trial of them."""

    arms: list[str] = Field(list(EXPERIMENT.arms), description=f"Of {', '.join(ARMS)}.")
    seeds: list[int] = Field(SEEDS)
    steps: int | None = None


def experiment_assets(scale: Scale, code_versions: Mapping[str, str]) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """The control's captions and manifest, the arms, their grid, and the report."""
    s = scale.name
    group = f"experiment_{s}"
    grid = trainings_grid(f"arms_{s}", EXPERIMENT, [f"manifest_{s}", f"manifest_control_{s}"], group)

    @dg.asset(
        name=f"vecap_control_{s}",
        deps=[f"vecap_{s}"],
        group_name=group,
        kinds={"pytorch", "huggingface"},
        owners=["team:research"],
        pool="gpu",
        code_version=code_versions["vecap_control"],
        check_specs=checks.specs(
            f"vecap_control_{s}", "counts_add_up", "some_rows_ok", "no_shard_set_aside", "llm_wrote_some"
        ),
        description="The control's captions: every AltText fused, by the same model and check, with the VeC of another picture.",
    )
    def vecap_control(context: dg.AssetExecutionContext, veclip: VeclipResource) -> dg.MaterializeResult:
        with clear_failures():
            chain = chain_of(context, veclip, scale, f"vecap_control_{s}")
            with tracked_stages(chain, "vecap_control", tags_of(context, chain.settings)) as live:
                reports = make_control(replace(chain, on_shard=live.on_shard))
                live.log(reports, f"vecap_control_{s}", "vecap_control")
            run_id = live.run_id
        select, fused = reports[-1], fused_share(reports)
        numbers = {
            "written_by_the_llm": metadata.number(fused),
            **mlflow_links(chain.settings, {f"vecap_control_{s}": run_id} if run_id else {}),
            **{name: value for report in reports for name, value in metadata.of_stage(report).items()},
        }
        return result_of_stage(select, numbers, checks.of_stage(*reports, llm_share=fused))

    @dg.asset(
        name=f"manifest_control_{s}",
        deps=[f"manifest_{s}", f"vecap_control_{s}"],
        group_name=group,
        kinds={"python", "parquet"},
        owners=["team:research"],
        code_version=code_versions["manifest_control"],
        check_specs=checks.specs(f"manifest_control_{s}", "counts_add_up", "some_rows_ok", "ids_unique"),
        description=f"The rows of manifest_{s} with one more column: the control's captions.",
    )
    def manifest_control(context: dg.AssetExecutionContext, veclip: VeclipResource) -> dg.MaterializeResult:
        with clear_failures():
            chain = chain_of(context, veclip, scale, f"manifest_control_{s}")
            report, uri = make_control_manifest(chain)
        return result_of_stage(report, metadata.of_manifest(report, uri), checks.of_stage(report, unique=True))

    @dg.asset(
        name=f"arms_{s}",
        deps=[f"manifest_{s}", f"manifest_control_{s}"],
        group_name=group,
        kinds={"pytorch", "mlflow"},
        owners=["team:research"],
        pool="gpu",
        code_version=code_versions["arms"],
        description="Every arm of the comparison with every seed, trained side by side: equal recipes, pictures, batches and "
        f"crops, other texts. Arms: {', '.join(EXPERIMENT.arms)}.",
    )
    def arms(context: dg.AssetExecutionContext, config: ArmsConfig, veclip: VeclipResource) -> dg.MaterializeResult:
        with clear_failures():
            chain = chain_of(context, veclip, scale, f"arms_{s}")
            made = train_side_by_side(
                chain,
                [(arm, seed) for seed in config.seeds for arm in config.arms],
                overrides={} if config.steps is None else {"steps": config.steps},
                tags=tags_of(context, chain.settings),
                on_progress=observing(context),
                on_trained=filling(context, grid, EXPERIMENT),
            )
        return dg.MaterializeResult(
            metadata={
                **of_trainings(made),
                **mlflow_links(
                    chain.settings, {f"{one.arm} seed {one.seed}": one.run_id for one in made if one.run_id}
                ),
            },
            data_version=dg.DataVersion(digest_of([[one.arm, one.seed, one.identity] for one in made])),
            tags={"veclip/partial": str(any(one.partial for one in made)).lower()},
        )

    @dg.asset(
        name=f"experiment_report_{s}",
        deps=[f"arms_{s}"],
        group_name=group,
        kinds={"pytorch", "mlflow"},
        owners=["team:research"],
        code_version=code_versions["experiment_report"],
        description="Mixed against AltText alone against the control, over seeds, with intervals: the report people send around.",
    )
    def experiment_report(context: dg.AssetExecutionContext, veclip: VeclipResource) -> dg.MaterializeResult:
        with clear_failures():
            chain: Chain = chain_of(context, veclip, scale, f"experiment_report_{s}")
            made = make_report(chain, EXPERIMENT, f"{s}-experiment")
        return result_of_report(made, chain.settings)

    return [vecap_control, manifest_control, arms, grid, experiment_report]
