"""Scores in MLflow: those of a training in the training's own run, beside its losses."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from veclip_core.evaluation.evaluate import Evaluation
from veclip_core.pipeline.registered_scores import REPORT_TAG, note_scores
from veclip_core.pipeline.trained import Trained
from veclip_core.pipeline.training import tracker_from
from veclip_core.settings import Settings
from veclip_core.tracking import client_for, initialise

logger = logging.getLogger(__name__)


def track_scores(
    settings: Settings, training: Trained, evaluations: Sequence[Evaluation], page: Path, report_uri: str
) -> None:
    """Into the run that has its losses, so that both are one row of MLflow's compare page, and onto the training's version in the
    registry, where it has one. Nothing where it has no run."""
    if training.run_id is None:
        return
    tracker = tracker_from(settings)
    tracker.start_run(f"veclip {training.scale}", training.arm, {REPORT_TAG: report_uri}, run_id=training.run_id)
    scores = {f"{row['set']}/{row['split']}/{row['metric']}": row["value"] for one in evaluations for row in one.scores}
    tracker.log_metrics(plain_names(scores))
    tracker.log_artifact(page)
    tracker.finish()
    note_scores(settings, training, scores, report_uri)


def run_of(settings: Settings, experiment: str, name: str, tags: Mapping[str, str]) -> str | None:
    """The run of that name and these tags; None where there is none, or MLflow is out of reach, which the tracker tells."""
    if settings.tracking_uri is None:
        return None
    from mlflow.exceptions import MlflowException

    try:
        initialise(settings.tracking_uri)
        client = client_for(settings.tracking_uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return None
        # MLflow keeps a run's name as a tag.
        alike = " and ".join(f"tags.\"{key}\" = '{value}'" for key, value in {"mlflow.runName": name, **tags}.items())
        runs = client.search_runs([found.experiment_id], alike, max_results=1)
    except (MlflowException, OSError) as error:
        logger.info("MLflow was not searched for an earlier run (%s: %s)", type(error).__name__, error)
        return None
    return str(runs[0].info.run_id) if runs else None


def plain_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Names with no sign that MLflow refuses: sets, classes and models are named by others. `@` is the tracker's to write."""
    return {re.sub(r"[^A-Za-z0-9_./@ -]", "_", name): value for name, value in values.items()}
