"""The scores of a training on its version in MLflow's registry: who chooses a model there sees what it can do, and the report.

The training's run is the truth: it has every score and the address of the latest report. A version has the main ones as tags,
written with every report, and when it is registered after one. Trainings that are not registered (an experiment's and a sweep's,
which nobody loads elsewhere, and of which each would cost an export) have them in their runs alone.
"""

import logging
from collections.abc import Mapping
from typing import Any

from veclip_core.pipeline.trained import Trained
from veclip_core.settings import Settings
from veclip_core.tracking import client_for, is_outage, metric_name

logger = logging.getLogger(__name__)

REPORT_TAG = "veclip.report"
"""Of a run and of a version: the address of the latest report that it stands in."""
MAIN_METRICS = ("mean_recall", "mean_rank", "i2t_r@1", "t2i_r@1", "selection_accuracy")
MAIN_PREFIX = "zeroshot_top1_"
MAIN_SPLIT = "all"


def note_scores(settings: Settings, trained: Trained, scores: Mapping[str, float], report: str) -> None:
    """Write the main scores and the report's address to the training's versions; without any, do nothing. Where MLflow is out of
    reach it is said, and the same report made again does it.

    Args:
        scores: `set/split/metric` to value, in percent.
    """
    if trained.run_id is None or settings.tracking_uri is None:
        return
    name = f"{trained.arm}_{trained.scale}"
    try:
        client = client_for(settings.tracking_uri)
        for version in client.search_model_versions(f"name = '{name}'"):
            if version.tags.get("identity") == trained.identity:
                _tag(client, name, version.version, {**main_scores(scores), REPORT_TAG: report})
    except Exception as error:  # a report is not lost because MLflow is
        mend = "make the report again when it is back" if is_outage(error) else "mend what is said, then make it again"
        logger.warning(
            "the scores of %s seed %d are not in MLflow's registry (%s: %s): %s",
            name, trained.seed, type(error).__name__, error, mend,
        )  # fmt: skip


def note_scores_of_run(client: Any, name: str, version: str, run_id: str) -> None:
    """Of a training that was evaluated before it was registered: what its run has. Nothing where it has none, or is gone."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id).data
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return
    report = {REPORT_TAG: run.tags[REPORT_TAG]} if REPORT_TAG in run.tags else {}
    _tag(client, name, version, {**main_scores(run.metrics), **report})


def main_scores(scores: Mapping[str, float]) -> dict[str, str]:
    """`set/metric` to the value over all queries in percent, rounded, in names that MLflow takes."""
    found = {}
    main = {metric_name(metric) for metric in MAIN_METRICS}
    for name, value in scores.items():
        set_name, _, rest = metric_name(name).rpartition(f"/{MAIN_SPLIT}/")
        if set_name and (rest in main or rest.startswith(MAIN_PREFIX)):
            found[f"{set_name}/{rest}"] = f"{value:.2f}"
    return found


def _tag(client: Any, name: str, version: str, tags: Mapping[str, str]) -> None:
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)
