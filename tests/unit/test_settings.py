"""Settings from the environment."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from veclip_core.cli_options import scale_of
from veclip_core.pipeline.training import _Job, _launch
from veclip_core.settings import Settings, SettingsError


def test_defaults_need_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings.from_environment({})
    assert settings.root == str(tmp_path / "data")
    assert settings.cache_folder == tmp_path / "data" / "cache"
    assert settings.tracking_uri == f"sqlite:///{tmp_path}/data/mlflow.db"


def test_values_are_read(tmp_path: Path) -> None:
    settings = Settings.from_environment(
        {
            "VECLIP_ROOT": "s3://bucket/x",
            "VECLIP_ALLOW_HOSTS": "a:1, b:2",
            "VECLIP_CACHE": str(tmp_path),
            "VECLIP_MLFLOW": "off",
        }
    )
    assert (settings.root, settings.allow_hosts, settings.cache_folder) == ("s3://bucket/x", ("a:1", "b:2"), tmp_path)
    assert settings.tracking_uri is None


@pytest.mark.parametrize(
    ("name", "value"), [("VECLIP_ENGINE", "tensorrt"), ("VECLIP_DOWNLOAD_WORKERS", "0"), ("VECLIP_THREADS", "many")]
)
def test_a_bad_value_is_named_with_its_variable(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}='{value}'"):
        Settings.from_environment({name: value})


def test_ranks_may_take_as_long_to_stop_as_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the launcher, which is torch's own."""
    given: list[int] = []

    def launcher(config: Any, _: object) -> Callable[..., None]:
        given.append(config.shutdown_timeout)
        return lambda *_: None

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", launcher)
    for told, expected in (({}, 60), ({"VECLIP_TRAIN_STOP_S": "1800"}, 1800)):
        settings = Settings.from_environment({"VECLIP_ROOT": str(tmp_path), "VECLIP_TRAIN_RANKS": "2", **told})
        _launch(_Job(settings, scale_of("sample"), "clip", 0, {}, {}, False), lambda _: None)
        assert given.pop() == expected
