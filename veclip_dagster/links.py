"""Links between the two web pages: from an asset to its MLflow run, from an MLflow run to its asset."""

import json
import logging
from collections.abc import Mapping
from urllib.parse import quote

import dagster as dg

from veclip_core.settings import Settings
from veclip_core.tracking import client_for

logger = logging.getLogger(__name__)


def tags_of(context: dg.AssetExecutionContext, settings: Settings) -> dict[str, str]:
    """Tags of an MLflow run that say which Dagster run and asset it belongs to; its description links to both."""
    asset = context.asset_key.to_user_string()
    run_page, asset_page = f"{settings.dagster_ui}/runs/{context.run_id}", f"{settings.dagster_ui}/assets/{asset}"
    return {
        "dagster.run_id": context.run_id,
        "dagster.asset_key": asset,
        "mlflow.note.content": f"Dagster: asset [{asset}]({asset_page}), [run {context.run_id[:8]}]({run_page})",
    }


def version_link(settings: Settings, version: str | None) -> dict[str, dg.MetadataValue]:
    """Metadata for a version (`name/number`) of a registered model; empty without one."""
    if version is None:
        return {}
    name, _, number = version.rpartition("/")
    return {"model_version": dg.MetadataValue.url(f"{settings.mlflow_ui}/#/models/{quote(name)}/versions/{number}")}


def mlflow_links(settings: Settings, run_ids: Mapping[str, str]) -> dict[str, dg.MetadataValue]:
    """Metadata for the MLflow runs (name to id): the page of one, the compare page of several; empty without tracking."""
    from mlflow.exceptions import MlflowException

    if not run_ids or settings.tracking_uri is None:
        return {}
    try:
        client = client_for(settings.tracking_uri)
        experiments = [client.get_run(run_id).info.experiment_id for run_id in run_ids.values()]
    except (MlflowException, OSError) as error:
        logger.warning("no link to MLflow: %s", error)
        return {"mlflow_run_ids": dg.MetadataValue.json(dict(run_ids))}
    if len(run_ids) == 1:
        page = f"{settings.mlflow_ui}/#/experiments/{experiments[0]}/runs/{next(iter(run_ids.values()))}"
        return {"mlflow_run": dg.MetadataValue.url(page)}
    runs, of = quote(json.dumps(list(run_ids.values()))), quote(json.dumps(sorted(set(experiments))))
    return {"mlflow_compare": dg.MetadataValue.url(f"{settings.mlflow_ui}/#/compare-runs?runs={runs}&experiments={of}")}
