"""A finished training and the registry of a real MLflow server, which takes no folder of the machine that trained."""

from dataclasses import replace
from pathlib import Path

import open_clip
import pytest

from tests.integration.test_tracking_outage import mlflow_server
from tests.integration.test_training_arms import OVERRIDES, SAMPLE, chain  # noqa: F401  (a fixture)
from tests.servers import free_port
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.publishing import ALIAS, Published, publish
from veclip_core.pipeline.training import train_arm
from veclip_core.tracking import client_for


@pytest.mark.slow
def test_an_export_of_a_local_root_is_registered_by_a_server(
    chain: Chain,  # noqa: F811
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = tmp_path / "server"
    server.mkdir()
    with mlflow_server(server, free_port()) as address:
        client = client_for(address)
        tracked = Chain(chain.settings.model_copy(update={"mlflow": address}), SAMPLE)
        _, trial = train_arm(tracked, "clip", overrides=OVERRIDES)
        whole = replace(trial, partial=False)
        first = publish(tracked, whole)
        assert first.version == "clip_sample/1", caplog.text
        assert publish(tracked, whole) == first, "once"
        kept_here = client.get_model_version_by_alias("clip_sample", ALIAS)
        assert kept_here.run_id == whole.run_id

        # An experiment that somebody made on the server has its artifacts there.
        run = client.create_run(client.create_experiment("made by hand")).info
        there = publish(tracked, replace(whole, run_id=run.run_id, identity="another"))
        assert there.version == "clip_sample/2", caplog.text
        kept_there = client.get_model_version("clip_sample", "2")
        assert kept_there.source.startswith("mlflow-artifacts:/")
        for version in (kept_here, kept_there):
            copy = client.download_artifacts(version.run_id, "export/open_clip", str(tmp_path))
            model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{copy}")
            assert model.visual is not None
            assert version.source == f"{client.get_run(version.run_id).info.artifact_uri}/export/open_clip"

        refused = replace(whole, arm="veclip", run_id="0" * 32)
        assert publish(tracked, refused) == Published(first.exports), "nor is it lost because MLflow refuses"
        assert "which refused it" in caplog.text
        assert "not found" in caplog.text
        assert "when MLflow is back" not in caplog.text
        assert [one.name for one in client.search_registered_models()] == ["clip_sample"], "none without a version"
