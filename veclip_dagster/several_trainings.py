"""What assets that make several trainings side by side have in common: progress, a grid by arm and seed, and metadata."""

from collections.abc import Callable, Mapping, Sequence

import dagster as dg

from veclip_core.pipeline.side_by_side import OnProgress, Training
from veclip_core.pipeline.trained import Trained
from veclip_core.training.arms import Comparison
from veclip_dagster import metadata
from veclip_dagster.model_assets import OBSERVE_EVERY_STEPS


def trainings_grid(asset: str, comparison: Comparison, deps: Sequence[str], group: str) -> dg.AssetSpec:
    """The grid that shows an asset's trainings."""
    return dg.AssetSpec(
        f"{asset}_trainings",
        deps=list(deps),
        partitions_def=dg.MultiPartitionsDefinition(
            {
                "arm": dg.StaticPartitionsDefinition(list(comparison.arms)),
                "seed": dg.StaticPartitionsDefinition([str(seed) for seed in comparison.seeds]),
            }
        ),
        group_name=group,
        owners=["team:research"],
        kinds={"pytorch"},
        description=f"Progress of {asset} by arm and seed. Shown only: the truth is the checkpoints.",
    )


def observing(context: dg.AssetExecutionContext) -> OnProgress:
    """Every so many steps an observation of the asset, with the training's numbers."""

    def on_progress(training: Training, step: int, numbers: Mapping[str, float]) -> None:
        if step % OBSERVE_EVERY_STEPS == 0:
            shown = {name: dg.MetadataValue.float(float(value)) for name, value in numbers.items()}
            of = dg.MetadataValue.text(f"{training[0]} seed {training[1]}")
            told = {"training": of, "step": dg.MetadataValue.int(step), **shown}
            context.log_event(dg.AssetObservation(context.asset_key, metadata=told))

    return on_progress


def filling(context: dg.AssetExecutionContext, grid: dg.AssetSpec, comparison: Comparison) -> Callable[[Trained], None]:
    """Marks what is trained in the grid."""

    def on_trained(made: Trained) -> None:
        if made.arm in comparison.arms and made.seed in comparison.seeds:
            partition = dg.MultiPartitionKey({"arm": made.arm, "seed": str(made.seed)})
            numbers = {name: metadata.number(made.report[name]) for name in ("final_loss", "steps", "samples_per_s")}
            context.log_event(dg.AssetMaterialization(grid.key, partition=partition, metadata=numbers))

    return on_trained


def of_trainings(made: Sequence[Trained]) -> dict[str, dg.MetadataValue]:
    """A row a training, and their losses."""
    return {
        "trainings": _trainings_table(made),
        "loss": metadata.curve(_losses(made), "contrastive loss (training)", "loss"),
    }


def _losses(made: Sequence[Trained]) -> dict[str, list[tuple[float, float]]]:
    """Of the first seed of each arm: lines of all would hide each other."""
    first: dict[str, Trained] = {}
    for one in made:
        first.setdefault(one.arm, one)
    return {
        f"{arm}, seed {one.seed}": [(float(point["step"]), float(point["loss"])) for point in one.report["history"]]
        for arm, one in first.items()
    }


def _trainings_table(made: Sequence[Trained]) -> dg.MetadataValue:
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "arm": one.arm,
                    "seed": one.seed,
                    "final_loss": round(one.report["final_loss"], 4),
                    "samples_per_s": round(one.report["samples_per_s"], 1),
                    "checkpoint": one.checkpoint,
                }
            )
            for one in made
        ]
    )
