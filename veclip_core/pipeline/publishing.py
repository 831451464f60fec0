"""A finished training made ready for others: exported beside its checkpoints, and a version of a registered model in MLflow."""

import logging
from dataclasses import dataclass, field
from typing import Any

from veclip_core import storage
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.registered_scores import note_scores_of_run
from veclip_core.pipeline.tracked_runs import whole_run
from veclip_core.pipeline.trained import Trained
from veclip_core.tracking import client_for, is_outage

logger = logging.getLogger(__name__)

ALIAS = "current"
"""Of the version whose training ended last, of those that are whole."""
FORMATS = {"open_clip": "open_clip_config.json", "hf": "config.json"}
"""And the file that is written last in each."""
ARTIFACTS = "export/open_clip"
"""Where a run of a server has the export of a local root."""
EXISTS, MISSING = "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"


@dataclass(frozen=True)
class Published:
    exports: dict[str, str] = field(default_factory=dict)
    """Format to address."""
    version: str | None = None
    """`name/number` in MLflow's registry; None without MLflow, while it is out of reach, or where it refuses."""


def publish(chain: Chain, trained: Trained) -> Published:
    """Export a training, and register it under the name of its asset. What is done is left as it is."""
    exports = _exports(trained)
    name = f"{trained.arm}_{trained.scale}"
    uri = chain.settings.tracking_uri
    if uri is None:
        return Published(exports)
    try:
        run_id = trained.run_id or whole_run(chain, uri, trained)
        version = _registered(client_for(uri), name, trained, run_id, exports["open_clip"])
    except Exception as error:  # a training is not lost because MLflow is
        if is_outage(error):
            logger.warning("%s is not in MLflow's registry (%s): run the same again when MLflow is back", name, error)
        else:
            logger.error(
                "%s is not in MLflow's registry, which refused it (%s: %s). The training and its exports are whole: mend what is"
                " said, then run the same again", name, type(error).__name__, error,
            )  # fmt: skip
        return Published(exports)
    return Published(exports, f"{name}/{version}")


def _exports(trained: Trained) -> dict[str, str]:
    from veclip_core.training.export import export_hf, export_open_clip
    from veclip_core.training.transformers_clip import NotInTransformers

    training = trained.checkpoint.rpartition("/")[0]
    steps = trained.checkpoint.rpartition("/")[2]
    found = {}
    for name, export in (("open_clip", export_open_clip), ("hf", export_hf)):
        address = storage.join(training, "export", steps, name)
        if not storage.exists(storage.join(address, FORMATS[name])):
            try:
                export(trained.checkpoint, address)
            except NotInTransformers:
                continue  # the sample's
        found[name] = address
    return found


def _registered(client: Any, name: str, trained: Trained, run_id: str, export: str) -> str:
    """The number of the training's version."""
    versions = client.search_model_versions(f"name = '{name}'")
    of_training = [one for one in versions if one.tags.get("identity") == trained.identity]
    version = str(of_training[0].version) if of_training else _new_version(client, name, trained, run_id, export)
    note_scores_of_run(client, name, version, run_id)
    if not trained.partial:
        current = client.get_registered_model(name).aliases.get(ALIAS)
        if current is None or _ended(client, run_id) >= _ended(client, client.get_model_version(name, current).run_id):
            client.set_registered_model_alias(name, ALIAS, version)
    return version


def _new_version(client: Any, name: str, trained: Trained, run_id: str, export: str) -> str:
    from mlflow.exceptions import MlflowException

    source = _source(client, run_id, export)
    tags = {
        "identity": trained.identity, "manifest_digest": trained.manifest_digest, "seed": str(trained.seed),
        "partial": str(trained.partial).lower(),
    }  # fmt: skip
    try:
        client.create_registered_model(
            name, description="Trainings of this asset; each version is one, exported for open_clip."
        )
    except MlflowException as error:
        if error.error_code != EXISTS:
            raise
    return str(client.create_model_version(name, source, run_id=run_id, tags=tags).version)


def _source(client: Any, run_id: str, export: str) -> str:
    """Where a version's files are for MLflow: a server takes no folder of this machine, so the run gets a copy as its artifacts."""
    if not (storage.is_local(export) and client.tracking_uri.startswith("http")):
        return export
    client.log_artifacts(run_id, export, ARTIFACTS)
    return storage.join(client.get_run(run_id).info.artifact_uri, ARTIFACTS)


def _ended(client: Any, run_id: str) -> int:
    """When a run did, in milliseconds; of one that was cut off when it began, of one that MLflow has no more 0."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id).info
    except MlflowException as error:
        if error.error_code != MISSING:
            raise
        return 0
    return int(run.end_time or run.start_time)
