"""Where a run's parameters, metrics and artifacts go: nowhere, or MLflow.

Training never waits for tracking: `MlflowTracker` hands every call to a background thread (`outbox.py`).
"""

import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from filelock import FileLock

from veclip_core.outbox import Outbox

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

MAX_METRICS_PER_CALL = 1_000
"""MLflow's limit for one `log_batch`."""
MAX_PARAMS_PER_CALL = 100
MAX_PARAM_CHARS = 6_000
BEGINNING_TAG = "veclip.beginning"
"""By its value a run is found that was created while the reply was lost, so that none is created twice."""
RETRIED_CODES = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"}


class Tracker(Protocol):
    """One run at a time: `start_run`, any number of `log_*`, `finish`."""

    @property
    def run_id(self) -> str | None:
        """The run's id; None before it exists, so also while the store has not been reached yet."""
        ...

    def start_run(
        self,
        experiment: str,
        name: str,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ) -> str | None:
        """Begin a run, or go on with the one named by `run_id` (params are then left as they are)."""
        ...

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None: ...

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None: ...

    def log_dataset(self, uri: str, name: str, digest: str, context: str) -> None: ...

    def finish(self, status: RunStatus = "FINISHED") -> None: ...


class NoTracker:
    """Tracks nothing."""

    run_id: str | None = None

    def start_run(
        self,
        experiment: str,
        name: str,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ) -> str | None:
        return None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        return None

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        return None

    def log_dataset(self, uri: str, name: str, digest: str, context: str) -> None:
        return None

    def finish(self, status: RunStatus = "FINISHED") -> None:
        return None


def metric_name(name: str) -> str:
    """A name MLflow takes: it refuses `@`, so `i2t_r@1` is logged as `i2t_r_at_1`."""
    return name.replace("@", "_at_")


def client_for(uri: str) -> Any:
    """An MlflowClient that fails fast (the retries are ours) and reports nothing to anyone else."""
    for variable, value in (
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0"),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "20"),
    ):
        os.environ.setdefault(variable, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def initialise(uri: str) -> None:
    """Create the tables of a sqlite store, once: two processes that meet a fresh file at the same time crash."""
    if not uri.startswith("sqlite:///"):
        client_for(uri).search_experiments(max_results=1)
        return
    database = Path(uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(database.with_name(database.name + ".lock")):
        client_for(uri).search_experiments(max_results=1)


@dataclass
class _Metrics:
    """Calls of `log_metrics` in a row are delivered together."""

    values: Mapping[str, float]
    step: int
    timestamp_ms: int


@dataclass
class _Call:
    what: str
    deliver: Callable[[Any, str], None]
    """Called with the client and the run id."""


@dataclass
class _Start:
    experiment: str
    name: str
    tags: dict[str, str]
    params: dict[str, str]
    run_id: str | None
    started_ms: int = field(default_factory=lambda: _now_ms())
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    tried: bool = False


_Item = _Metrics | _Call | _Start


class MlflowTracker:
    """Flat MLflow runs through the client API, from a background thread.

    Args:
        tracking_uri: `sqlite:////absolute/path.db`, or a server's http address.
        artifact_root: where a new experiment keeps its artifacts; MLflow's own default (`./mlruns` for sqlite) when None.
        max_buffered: calls kept while the store is out of reach; beyond it the oldest metrics go, and are counted.
        connect_deadline_s: how long `start_run` waits for an id before it lets training begin without one.
        finish_deadline_s: how long `finish` waits for what is still in the buffer.
    """

    def __init__(
        self,
        tracking_uri: str,
        artifact_root: str | None = None,
        max_buffered: int = 100_000,
        connect_deadline_s: float = 120.0,
        finish_deadline_s: float = 60.0,
    ) -> None:
        self.tracking_uri = tracking_uri
        self.artifact_root = artifact_root
        self.max_buffered = max_buffered
        self.connect_deadline_s = connect_deadline_s
        self.finish_deadline_s = finish_deadline_s
        self.run_id: str | None = None
        self._client: Any = None
        self._outbox: Outbox[_Item] | None = None

    def start_run(
        self,
        experiment: str,
        name: str,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ) -> str | None:
        if self._outbox is not None:
            raise RuntimeError(f"run {self.run_id} is still open: finish() it before the next start_run()")
        self.run_id = run_id
        self._outbox = Outbox(
            f"MLflow at {self.tracking_uri}", self._deliver, is_outage, _together, _is_metrics, self.max_buffered
        )
        texts = {key: str(value)[:MAX_PARAM_CHARS] for key, value in (params or {}).items()}
        self._outbox.put(_Start(experiment, name, dict(tags or {}), texts, run_id))
        self._outbox.flush(self.connect_deadline_s, or_outage=True)
        return self.run_id

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._open_outbox().put(_Metrics(dict(metrics), step or 0, _now_ms()))

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Upload a file; it must stay where it is until `finish` or `flush`."""
        local = str(path)
        self._open_outbox().put(_Call(f"artifact {local}", lambda client, run: client.log_artifact(run, local, folder)))

    def log_dataset(self, uri: str, name: str, digest: str, context: str) -> None:
        """Lineage without reading the data: the dataset's address, name and digest (MLflow keeps 36 characters)."""
        self._open_outbox().put(
            _Call(f"dataset {name}", lambda client, run: _log_dataset(client, run, uri, name, digest, context))
        )

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is delivered; False when that did not happen in time."""
        return self._open_outbox().flush(timeout_s)

    def finish(self, status: RunStatus = "FINISHED") -> None:
        """End the run; waits for what is in the buffer, at most `finish_deadline_s`, and says what could not be delivered."""
        outbox = self._open_outbox()
        outbox.put(_Call("end of run", lambda client, run: client.set_terminated(run, status)))
        outbox.close(self.finish_deadline_s)
        self._outbox = None

    def _open_outbox(self) -> "Outbox[_Item]":
        if self._outbox is None:
            raise RuntimeError("no run is open: call start_run() first")
        return self._outbox

    def _deliver(self, items: "list[_Item]") -> None:
        """Called by the outbox's thread."""
        if self._client is None:
            if self.tracking_uri.startswith("sqlite:///"):
                initialise(self.tracking_uri)
            self._client = client_for(self.tracking_uri)
        head = items[0]
        if isinstance(head, _Start):
            self.run_id = _begin(self._client, head, self.artifact_root)
        elif self.run_id is None:
            raise ValueError("the run could not be started")
        elif isinstance(head, _Call):
            head.deliver(self._client, self.run_id)
        else:
            from mlflow.entities import Metric

            metrics = [
                Metric(metric_name(key), float(value), item.timestamp_ms, item.step)
                for item in items
                if isinstance(item, _Metrics)
                for key, value in item.values.items()
            ]
            self._client.log_batch(self.run_id, metrics=metrics)


def _now_ms() -> int:
    return int(time.time() * 1000)


def _is_metrics(item: _Item) -> bool:
    return isinstance(item, _Metrics)


def _together(pending: deque[_Item]) -> int:
    """Metrics that follow each other go in one call; anything else goes alone."""
    count = values = 0
    for item in pending:
        if not isinstance(item, _Metrics):
            break
        values += len(item.values)
        if values > MAX_METRICS_PER_CALL:
            break
        count += 1
    return max(count, 1)


def is_outage(error: Exception) -> bool:
    """Whether waiting may mend it. Everything else is refused for good: a bad name, a changed parameter, a lost run."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return str(error.error_code) in RETRIED_CODES
    return isinstance(error, OSError)  # sockets and requests' errors are


def _begin(client: Any, start: _Start, artifact_root: str | None) -> str:
    """Create the run, or open the named one again; its id."""
    from mlflow.entities import Param, RunTag

    if start.run_id is not None:
        client.update_run(start.run_id, status="RUNNING")
        for key, value in start.tags.items():
            client.set_tag(start.run_id, key, value)
        return start.run_id
    experiment = _experiment_id(client, start.experiment, artifact_root)
    run_id = _created_before(client, experiment, start) if start.tried else None
    if run_id is None:
        start.tried = True
        mark = {BEGINNING_TAG: start.mark}
        run = client.create_run(experiment, start_time=start.started_ms, run_name=start.name, tags=mark)
        run_id = str(run.info.run_id)
    params = [Param(key, value) for key, value in start.params.items()]
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in start.tags.items()])
    for first in range(0, len(params), MAX_PARAMS_PER_CALL):
        client.log_batch(run_id, params=params[first : first + MAX_PARAMS_PER_CALL])
    return run_id


def _created_before(client: Any, experiment: str, start: _Start) -> str | None:
    found = client.search_runs([experiment], f'tags."{BEGINNING_TAG}" = "{start.mark}"', max_results=1)
    return str(found[0].info.run_id) if found else None


def _experiment_id(client: Any, name: str, artifact_root: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        location = f"{artifact_root.rstrip('/')}/{name}" if artifact_root else None
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    return str(found.experiment_id)


def _log_dataset(client: Any, run_id: str, uri: str, name: str, digest: str, context: str) -> None:
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    dataset = MetaDataset(  # type: ignore[abstract]
        resolve_dataset_source(uri), name=name, digest=digest[:36]
    )
    tags = [InputTag(key=MLFLOW_DATASET_CONTEXT, value=context)]
    client.log_inputs(run_id, datasets=[DatasetInput(dataset=dataset._to_mlflow_entity(), tags=tags)])
