"""Every training's run in MLflow with all its losses, whatever was out of reach while it trained.

What a training measured is kept with its checkpoint. A report looks whether the run has it, and writes what is missing, so that
losses and scores always stand in one row; and makes a run for a training that has none, found again by its identity.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.trained import Trained
from veclip_core.pipeline.training import labels_of, tracker_of
from veclip_core.tracking import client_for, initialise, is_outage
from veclip_core.training import checkpoint as checkpoints
from veclip_core.training.report import tracked

logger = logging.getLogger(__name__)

LATER_TAG = "veclip.made_later_for"
"""Of a run that was made after its training: the training's identity."""


def with_runs(chain: Chain, trainings: Sequence[Trained]) -> tuple[list[Trained], bool]:
    """The trainings with the ids of runs that hold all their losses, and whether MLflow could be reached: without it, the trainings
    as they are."""
    if chain.settings.tracking_uri is None:
        return list(trainings), False
    try:
        return [replace(one, run_id=whole_run(chain, chain.settings.tracking_uri, one)) for one in trainings], True
    except Exception as error:  # a report is not lost because MLflow is
        mend = "make the report again when it is back" if is_outage(error) else "mend what is said, then make it again"
        logger.warning("the scores are not in MLflow (%s: %s): %s", type(error).__name__, error, mend)
        return list(trainings), False


def whole_run(chain: Chain, uri: str, training: Trained) -> str:
    """The id of the training's run in the MLflow at `uri`, after what it lacks of the losses was written.

    Raises OSError or MlflowException where MLflow is out of reach, or refuses.
    """
    initialise(uri)
    client = client_for(uri)
    run_id = training.run_id if _exists(client, training.run_id) else _made_later(client, chain, training)
    logged = set() if run_id is None else {point.step for point in client.get_metric_history(run_id, "loss")}
    missing: list[Mapping[str, float]] = [
        point for point in training.report["history"] if int(point["step"]) not in logged
    ]
    if run_id is not None and not missing:
        return run_id
    labels = labels_of(chain.scale.name, training.arm, training.seed, {})
    later = {} if run_id is not None else {**labels.tags, LATER_TAG: training.identity}
    params = tracked(checkpoints.find(training.checkpoint).state())
    tracker = tracker_of(chain)
    made = tracker.start_run(labels.experiment, labels.name, later, params, run_id)
    if made is None:
        tracker.finish()
        raise ConnectionError("MLflow went out of reach")
    for point in missing:
        numbers = {name: value for name, value in point.items() if name != "step"}
        tracker.log_metrics(numbers, int(point["step"]))
    tracker.finish()
    logger.info("%s seed %d: %d logged steps were missing in MLflow", training.arm, training.seed, len(missing))
    return made


def _exists(client: Any, run_id: str | None) -> bool:
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return False
    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


def _made_later(client: Any, chain: Chain, training: Trained) -> str | None:
    """The run that an earlier report made for a training without one."""
    experiment = client.get_experiment_by_name(labels_of(chain.scale.name, training.arm, training.seed, {}).experiment)
    if experiment is None:
        return None
    of_training = f"tags.\"{LATER_TAG}\" = '{training.identity}'"
    found = client.search_runs([experiment.experiment_id], of_training, max_results=1)
    return str(found[0].info.run_id) if found else None
