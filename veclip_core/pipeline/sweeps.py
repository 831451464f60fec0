"""A sweep made: what is missing of its trainings side by side, then the report with the figure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from veclip_core.evaluation.report.sweep_figures import figure_of
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.evaluation import MadeReport, make_report
from veclip_core.pipeline.side_by_side import OnProgress, train_side_by_side
from veclip_core.pipeline.trained import Trained
from veclip_core.training.sweeps import Sweep


def train_sweep(
    chain: Chain,
    sweep: Sweep,
    *,
    overrides: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    on_progress: OnProgress = lambda training, step, numbers: None,
    on_trained: Callable[[Trained], None] = lambda trained: None,
) -> list[Trained]:
    """The sweep's trainings, of which those that are done are found. Above the sample each has the machine for itself.

    Raises:
        NotMadeYet: without a manifest.
        TrainingsFailed: after the others are done.
    """
    if chain.scale.name != "sample":
        chain = replace(chain, settings=chain.settings.model_copy(update={"train_workers": 1}))
    trainings = [(arm, seed) for seed in sweep.comparison.seeds for arm in sweep.comparison.arms]
    return train_side_by_side(
        chain, trainings, overrides=overrides, tags=tags, on_progress=on_progress, on_trained=on_trained
    )


def report_sweep(chain: Chain, sweep: Sweep, trainings: Sequence[Trained]) -> MadeReport:
    """The report over a sweep's trainings, under `reports/SCALE-SWEEP.html`; of trials with `-trial`, so that they don't take the
    place of the whole.

    Raises:
        NotMadeYet: where they can't be compared, or are of another manifest than the current one.
        EvaluationSetError: when there is no evaluation set.
    """
    trial = "-trial" if any(one.partial for one in trainings) else ""
    return make_report(
        chain,
        sweep.comparison,
        f"{chain.scale.name}-{sweep.name}{trial}",
        trainings=trainings,
        draw=lambda results: [figure_of(results, sweep).chart()],
        command=f"veclip sweep {sweep.name} --scale {chain.scale.name}",
    )
