"""The sample's sweeps: an asset each that trains what is missing and reports with the figure, and a grid of its trainings."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import dagster as dg
from pydantic import Field

from veclip_core.evaluation.report.sweep_figures import figure_of
from veclip_core.pipeline.evaluation import MadeReport
from veclip_core.pipeline.sweeps import report_sweep, train_sweep
from veclip_core.scales import Scale
from veclip_core.training.arms import arm_named
from veclip_core.training.sweeps import SWEEPS, Sweep
from veclip_dagster import metadata
from veclip_dagster.data_assets import chain_of
from veclip_dagster.failures import clear_failures
from veclip_dagster.links import tags_of
from veclip_dagster.model_assets import result_of_report
from veclip_dagster.resources import VeclipResource
from veclip_dagster.several_trainings import filling, observing, of_trainings, trainings_grid


class SweepConfig(dg.Config):
    """Which of the sweep's trainings, and a smaller trial of them."""

    arms: list[str] = Field([], description="All where none are named.")
    seeds: list[int] = Field([], description="The sweep's where none are named.")
    steps: int | None = None


def sweep_assets(scale: Scale, code_versions: Mapping[str, str]) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """`sweep_mix_S` and the others."""
    return [
        made for sweep in SWEEPS.values() for made in _sweep_asset(scale, sweep, code_versions[f"sweep_{sweep.name}"])
    ]


def _sweep_asset(scale: Scale, sweep: Sweep, code_version: str) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    name, group = f"sweep_{sweep.name}_{scale.name}", f"sweeps_{scale.name}"
    manifests = sorted({f"{arm_named(arm).manifest}_{scale.name}" for arm in sweep.comparison.arms})
    grid = trainings_grid(name, sweep.comparison, manifests, group)

    @dg.asset(
        name=name,
        deps=manifests,
        group_name=group,
        kinds={"pytorch", "mlflow"},
        owners=["team:research"],
        pool="gpu",
        code_version=code_version,
        description=f"{sweep.title}: {', '.join(sweep.axis)} over {len(sweep.comparison.seeds)} seeds, with intervals. Trainings"
        " that another asset made are found.",
    )
    def swept(context: dg.AssetExecutionContext, config: SweepConfig, veclip: VeclipResource) -> dg.MaterializeResult:
        with clear_failures():
            chain = chain_of(context, veclip, scale, name)
            asked = sweep.of(config.arms, config.seeds)
            trainings = train_sweep(
                chain,
                asked,
                overrides={} if config.steps is None else {"steps": config.steps},
                tags=tags_of(context, chain.settings),
                on_progress=observing(context),
                on_trained=filling(context, grid, sweep.comparison),
            )
            made = report_sweep(chain, asked, trainings, steps=config.steps)
        result = result_of_report(made, chain.settings)
        return result._replace(
            metadata={**(result.metadata or {}), **of_trainings(trainings), "figure": _figure(made, asked)}
        )

    return [swept, grid]


def _figure(made: MadeReport, sweep: Sweep) -> dg.MetadataValue:
    with tempfile.TemporaryDirectory() as folder:
        return metadata.png(figure_of(made.results, sweep).save(Path(folder) / "figure.png").read_bytes())
