"""Fixtures shared by all tests: a small cut of the real sample, and a deployment to run commands in."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.object_store import ObjectStore, object_store
from tests.unit.small_world import real_packages, small_cache  # noqa: F401  (fixtures)
from veclip_core.settings import Settings

PROJECT = Path(__file__).parents[1]
FOREIGN = {
    name: value for name, value in os.environ.items() if not name.startswith("VECLIP_") or name == "VECLIP_THREADS"
}
"""The environment without what a person set for work of their own."""


@dataclass(frozen=True)
class Deployment:
    """A root with everything a command needs, as `env.sh` would set it."""

    root: Path
    cache: Path
    environment: Mapping[str, str] = field(repr=False)

    def run(self, *command: str, timeout_s: float = 400, **more: str) -> "subprocess.CompletedProcess[str]":
        """A command of the environment (`dagster`, `veclip`), with its output."""
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name(command[0])), *command[1:]],
            cwd=PROJECT,
            env={**FOREIGN, **self.environment, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return subprocess.CompletedProcess(command, process.returncode, output)

    def with_root(self, root: Path, **more: str) -> "Deployment":
        return deployment_at(root, self.cache, **more)


def deployment_at(root: Path, cache: Path, **more: str) -> Deployment:
    root.mkdir(parents=True, exist_ok=True)
    home = root / "dagster"
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text((PROJECT / "dagster.yaml").read_text())
    environment = {
        "VECLIP_ROOT": str(root),
        "VECLIP_CACHE": str(cache),
        "DAGSTER_HOME": str(home),
        "DAGSTER_MODULE_NAME": "veclip_dagster.definitions",
        "DAGSTER_DISABLE_TELEMETRY": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "VLLM_NO_USAGE_STATS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **more,
    }
    return Deployment(root, cache, environment)


@pytest.fixture(autouse=True)
def sigterm_stays() -> Iterator[None]:
    """Dagster in this process gives SIGTERM what SIGINT has: ignored, in a background job, and by every process started after."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="session")
def small_deployment_cache(small_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """VECLIP_CACHE of a small sample world; the converted language model is the real cache's."""
    cache = tmp_path_factory.mktemp("cache")
    (cache / "packages").symlink_to(small_cache)
    weights = Settings.from_environment().cache_folder / "weights"
    weights.mkdir(parents=True, exist_ok=True)
    (cache / "weights").symlink_to(weights)
    return cache


@pytest.fixture(scope="session")
def deployment(small_deployment_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """A deployment in a folder with a space in its name."""
    return deployment_at(tmp_path_factory.mktemp("veclip") / "a root", small_deployment_cache)


@pytest.fixture(scope="session")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """One S3 server for all tests of this process: each takes a prefix of its own."""
    with object_store(tmp_path_factory.mktemp("seaweed")) as running:
        yield running


@pytest.fixture(scope="module")
def store(object_server: ObjectStore) -> Iterator[ObjectStore]:
    """The S3 server, with its keys in the environment while the module's tests run."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in object_server.environment.items():
            patch.setenv(name, value)
        yield object_server
