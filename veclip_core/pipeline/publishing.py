"""A finished training made ready for others: exported beside its checkpoints, and a version of a registered model in MLflow."""

import logging
from dataclasses import dataclass, field

from veclip_core import storage
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.trained import Trained
from veclip_core.tracking import client_for

logger = logging.getLogger(__name__)

ALIAS = "current"
"""Of the version that was trained last, and whole."""
FORMATS = {"open_clip": "open_clip_config.json", "hf": "config.json"}
"""And the file that is written last in each."""
EXISTS = "RESOURCE_ALREADY_EXISTS"


@dataclass(frozen=True)
class Published:
    exports: dict[str, str] = field(default_factory=dict)
    """Format to address."""
    version: str | None = None
    """`name/number` in MLflow's registry; None without MLflow, or while it is out of reach."""


def publish(chain: Chain, trained: Trained) -> Published:
    """Export a training, and register it under the name of its asset. What is done is left as it is."""
    exports = _exports(trained)
    name = f"{trained.arm}_{trained.scale}"
    if trained.run_id is None or chain.settings.tracking_uri is None:
        return Published(exports)
    try:
        version = _registered(chain.settings.tracking_uri, name, trained, exports["open_clip"])
    except Exception as error:  # a training is not lost because MLflow is
        logger.warning("%s is not in MLflow's registry (%s): run the same again when MLflow is back", name, error)
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


def _registered(tracking_uri: str, name: str, trained: Trained, source: str) -> str:
    """The number of the training's version."""
    from mlflow.exceptions import MlflowException

    client = client_for(tracking_uri)
    try:
        client.create_registered_model(
            name, description="Trainings of this asset; each version is one, exported for open_clip."
        )
    except MlflowException as error:
        if error.error_code != EXISTS:
            raise
    of_run = [
        one for one in client.search_model_versions(f"name = '{name}'") if one.tags.get("identity") == trained.identity
    ]
    if of_run:
        version = str(of_run[0].version)
    else:
        tags = {
            "identity": trained.identity, "manifest_digest": trained.manifest_digest, "seed": str(trained.seed),
            "partial": str(trained.partial).lower(),
        }  # fmt: skip
        version = str(client.create_model_version(name, source, run_id=trained.run_id, tags=tags).version)
    if not trained.partial:
        client.set_registered_model_alias(name, ALIAS, version)
    return version
