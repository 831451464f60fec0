"""`clip_S`, `veclip_S` and `eval_report_S` of one scale."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import dagster as dg
from pydantic import Field

from veclip_core.evaluation.metrics import better
from veclip_core.pipeline.evaluation import MadeReport, make_report
from veclip_core.pipeline.publishing import publish
from veclip_core.pipeline.training import train_arm
from veclip_core.scales import Scale
from veclip_core.settings import Settings
from veclip_core.training.arms import FIRST_LOOK
from veclip_core.training.loop import TrainReport
from veclip_dagster import metadata
from veclip_dagster.data_assets import chain_of
from veclip_dagster.failures import clear_failures
from veclip_dagster.links import mlflow_links, tags_of, version_link
from veclip_dagster.resources import VeclipResource

OBSERVE_EVERY_STEPS = 50
CURVES = {
    "loss": "contrastive loss",
    "logit_scale": "temperature (logit scale)",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "samples_per_s": "samples/s",
    "mfu": "share of the devices' peak (MFU)",
    "data_wait": "share of the time spent waiting for data",
    "memory_gb": "memory, GB",
}
"""Metrics that are drawn over the steps, where a training has them."""


class TrainConfig(dg.Config):
    """The seed, and fields of the recipe for a smaller trial."""

    seed: int = 0
    steps: int | None = None
    batch_size: int | None = None
    model: str | None = None
    """`sample-rn`, or an open_clip model name."""

    def overrides(self) -> dict[str, Any]:
        given = {"steps": self.steps, "batch_size": self.batch_size, "model": self.model}
        return {name: value for name, value in given.items() if value is not None}


class EvaluateConfig(dg.Config):
    """Which trainings stand in the report."""

    seeds: list[int] = Field([0])


def model_assets(scale: Scale, code_versions: Mapping[str, str]) -> list[dg.AssetsDefinition]:
    """The two trainings of a scale and the report that compares them."""
    s = scale.name
    about = {
        "clip": "The paper's baseline: the same recipe and pictures, AltText only.",
        "veclip": "VeCLIP: at each step one of {AltText, VeCap} a sample.",
    }
    trainings = [
        training_asset(scale, arm, description, code_versions[arm], f"manifest_{s}", f"scale_{s}")
        for arm, description in about.items()
    ]

    @dg.asset(
        name=f"eval_report_{s}",
        deps=[f"clip_{s}", f"veclip_{s}"],
        group_name=f"scale_{s}",
        kinds={"pytorch", "mlflow"},
        owners=["team:research"],
        code_version=code_versions["eval_report"],
        description="Zero-shot retrieval and classification of both models on pictures neither saw, with intervals and chance.",
    )
    def eval_report(
        context: dg.AssetExecutionContext, config: EvaluateConfig, veclip: VeclipResource
    ) -> dg.MaterializeResult:
        with clear_failures():
            chain = chain_of(context, veclip, scale, f"eval_report_{s}")
            made = make_report(chain, replace(FIRST_LOOK, seeds=tuple(config.seeds)))
        return result_of_report(made, chain.settings)

    return [*trainings, eval_report]


def training_asset(
    scale: Scale, arm: str, description: str, code_version: str, manifest: str, group: str
) -> dg.AssetsDefinition:
    """The training of one arm, on what the asset `manifest` made."""
    name = f"{arm}_{scale.name}"

    @dg.asset(
        name=name,
        deps=[manifest],
        group_name=group,
        kinds={"pytorch", "mlflow"},
        owners=["team:research"],
        pool="gpu",
        code_version=code_version,
        description=description,
    )
    def training(
        context: dg.AssetExecutionContext, config: TrainConfig, veclip: VeclipResource
    ) -> dg.MaterializeResult:
        def on_progress(step: int, numbers: Mapping[str, float]) -> None:
            if step % OBSERVE_EVERY_STEPS == 0:
                shown = {key: dg.MetadataValue.float(float(value)) for key, value in numbers.items()}
                context.log_event(dg.AssetObservation(context.asset_key, metadata={"step": step, **shown}))

        with clear_failures():
            chain = chain_of(context, veclip, scale, name)
            report, trained = train_arm(
                chain,
                arm,
                config.seed,
                overrides=config.overrides(),
                tags=tags_of(context, chain.settings),
                on_progress=on_progress,
            )
            published = publish(chain, trained)
        return dg.MaterializeResult(
            metadata={
                **_of_training(report),
                **{f"export/{kind}": dg.MetadataValue.path(address) for kind, address in published.exports.items()},
                **version_link(chain.settings, published.version),
                **mlflow_links(chain.settings, {name: report.run_id} if report.run_id else {}),
            },
            data_version=dg.DataVersion(report.identity),
            tags={"veclip/partial": str(trained.partial).lower()},
        )

    return training


def _of_training(report: TrainReport) -> dict[str, dg.MetadataValue]:
    return {
        "final_loss": dg.MetadataValue.float(report.final_loss),
        "steps": dg.MetadataValue.int(report.steps),
        "samples": dg.MetadataValue.int(report.samples),
        "samples_per_s": dg.MetadataValue.float(report.samples_per_s),
        "seconds": dg.MetadataValue.float(report.seconds),
        "resumed_at": dg.MetadataValue.int(report.resumed_at),
        "precision": dg.MetadataValue.text(report.precision),
        "checkpoint": dg.MetadataValue.path(report.checkpoint),
        "caption_sources": metadata.counts_table(report.choices, "source"),
        "fallbacks": dg.MetadataValue.int(report.fallbacks),
        "unreadable": dg.MetadataValue.int(report.unreadable),
        "truncated": dg.MetadataValue.int(report.truncated),
        "curves": metadata.panels(curves_of(report.history)),
    }


def curves_of(history: Sequence[Mapping[str, float]]) -> dict[str, list[tuple[float, float]]]:
    """Title to points (step, value), of the metrics that there are."""
    lines = {
        title: [(float(point["step"]), float(point[name])) for point in history if name in point]
        for name, title in CURVES.items()
    }
    return {title: line for title, line in lines.items() if line}


def result_of_report(made: MadeReport, settings: Settings) -> dg.MaterializeResult:
    """A report's addresses, scores, links and headline."""
    return dg.MaterializeResult(
        metadata={
            "report": dg.MetadataValue.path(made.report_uri),
            "results": dg.MetadataValue.path(made.results_uri),
            "scores": scores_table(made.results),
            **mlflow_links(settings, made.run_ids),
            **_headline_numbers(made.results),
        },
        data_version=dg.DataVersion(made.results["identity"]),
        tags={"veclip/partial": str(made.partial).lower()},
    )


def _headline_numbers(results: Mapping[str, Any]) -> dict[str, dg.MetadataValue]:
    """The differences chosen before the run, over all queries."""
    headline = results["headline"]
    return {
        f"{row['model']}_minus_{row['baseline']}/{row['metric']}": dg.MetadataValue.float(round(row["value"], 4))
        for row in results["differences"]
        if row["split"] == "all"
        and row["metric"] in headline["metrics"]
        and [row["model"], row["baseline"]] in headline["contrasts"]
    }


def scores_table(results: Mapping[str, Any]) -> dg.MetadataValue:
    records = [
        dg.TableRecord(
            {
                "model": row["model"],
                "set": row["set"],
                "metric": row["metric"],
                "better": better(row["metric"]),
                "value": round(row["value"], 3),
                "low": round(row["low"], 3),
                "high": round(row["high"], 3),
                "chance": None if row["chance"] is None else round(row["chance"], 3),
                "n": row["n"],
            }
        )
        for row in results["summary"]
        if row["split"] == "all"
    ]
    return dg.MetadataValue.table(records)
