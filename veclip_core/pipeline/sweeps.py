"""A sweep made: what is missing of its trainings side by side, then the report with the figure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from veclip_core.evaluation.report.sweep_figures import figure_of
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.evaluation import MadeReport, make_report
from veclip_core.pipeline.report_names import as_file_name
from veclip_core.pipeline.side_by_side import OnProgress, train_side_by_side
from veclip_core.pipeline.trained import Trained
from veclip_core.training.sweeps import SWEEPS, Sweep


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


def report_sweep(chain: Chain, sweep: Sweep, trainings: Sequence[Trained], *, steps: int | None = None) -> MadeReport:
    """The report over a sweep's trainings, under `reports/SCALE-SWEEP.html`; with other arms or seeds than the sweep's own under a
    name that says which, and of trials with `-trial`, so that they don't take the place of the whole.

    Args:
        steps: where the trainings were told to take fewer.

    Raises:
        NotMadeYet: where they can't be compared, or are of another manifest than the current one.
        EvaluationSetError: when there is no evaluation set.
    """
    chosen, trial = _chosen(sweep), "-trial" if any(one.partial for one in trainings) else ""
    part = "".join(f"-{option}-{'+'.join(values)}" for option, values in chosen.items())
    words = [f"--{option} {','.join(values)}" for option, values in chosen.items()]
    words += [] if steps is None else [f"--steps {steps}"]
    return make_report(
        chain,
        sweep.comparison,
        as_file_name(f"{chain.scale.name}-{sweep.name}{part}") + trial,
        trainings=trainings,
        draw=lambda results: [figure_of(results, sweep).chart()],
        sweep=sweep.name,
        command=" ".join([f"veclip sweep {sweep.name} --scale {chain.scale.name}", *words]),
    )


def _chosen(sweep: Sweep) -> dict[str, list[str]]:
    """Option of `veclip sweep` to its values, of those by which a sweep differs from the one that is kept under its name."""
    own, asked = SWEEPS[sweep.name].comparison, sweep.comparison
    found = {}
    if set(asked.arms) != set(own.arms):
        found["arms"] = list(asked.arms)
    if set(asked.seeds) != set(own.seeds):
        found["seeds"] = [str(seed) for seed in asked.seeds]
    return found
