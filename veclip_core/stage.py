"""The resumable map over shards. Every data stage is one call of `run_stage`.

A stage maps shard (part, shard) of its input stages to shard (part, shard) of its output:

    {root}/{source}/{stage}/{identity}/part-00000/00000.parquet, 00000.tar, ...     the data
    {root}/{source}/{stage}/{identity}/part-00000/00000.success.json                the marker: this shard is done
    {root}/{source}/{stage}/{identity}/part-00000/00000.quarantine.json             or: this shard keeps failing, and why
    {root}/{source}/{stage}/current/{scale}.json                                    what downstream reads

The folder's identity is the hash of the stage's configuration and of its inputs' folders; the marker's is the hash of the
configuration and of the *content* of its input shards. A shard whose marker is there with the right identity is never done
again, whoever asks; a new configuration is a new folder, so nothing that was paid for is overwritten.
"""

import hashlib
import logging
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from veclip_core import storage
from veclip_core.config import Config, digest_of
from veclip_core.leases import POLL_S, Lease, holder, release_all
from veclip_core.mendable import Mendable
from veclip_core.samples import Grid, ShardKey
from veclip_core.shards import ShardSet
from veclip_core.stage_progress import StageProgress
from veclip_core.stage_report import StageReport

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a shard is tried in one run before it is set aside."""


@dataclass(frozen=True)
class RowCounts:
    """What became of a shard's rows. Every row is either ok or an error with a reason."""

    rows_in: int
    rows_ok: int
    errors: Mapping[str, int] = field(default_factory=dict)
    fallbacks: int = 0
    extra: Mapping[str, float] = field(default_factory=dict)
    """Further sums of the stage's own, such as tokens; added up over shards."""

    def __post_init__(self) -> None:
        if self.rows_in != self.rows_ok + sum(self.errors.values()):
            raise ValueError(f"rows don't add up: {self.rows_in} in, {self.rows_ok} ok, errors {dict(self.errors)}")


@dataclass(frozen=True)
class ShardTask:
    """One shard to make: where its inputs are, and where to put what is made."""

    key: ShardKey
    inputs: Mapping[str, ShardSet]
    scratch: Path
    """A local folder. Every file in it named `00000.<suffix>` is published when the operation returns."""

    def read(self, stage: str, columns: list[str] | None = None) -> pa.Table:
        return self.inputs[stage].read_table(self.key, columns)

    def out(self, suffix: str) -> Path:
        return self.scratch / f"{self.key.name}.{suffix}"

    def write(self, table: pa.Table) -> None:
        pq.write_table(table, self.out("parquet"), compression="zstd")


Work = Callable[[ShardTask], RowCounts]


class Operation(Protocol):
    """What a stage does to a shard. Picklable: it is opened in the worker process that runs it."""

    name: ClassVar[str]

    @property
    def config(self) -> Config: ...

    def open(self) -> AbstractContextManager[Work]:
        """Load what every shard needs, once a worker. An error here stops the run: it is no shard's fault."""
        ...


@dataclass(frozen=True)
class ShardJob:
    """An operation bound to its inputs and its output; what an executor sends to a worker."""

    operation: Operation
    inputs: Mapping[str, ShardSet]
    output: ShardSet

    def shard_identity(self, input_digests: Mapping[str, str]) -> str:
        return digest_of([self.operation.name, self.operation.config.identity(), dict(input_digests)])

    def make(self, work: Work, key: ShardKey, input_digests: Mapping[str, str]) -> dict[str, Any]:
        """Make one shard and publish it: data first, then the marker. Returns the marker."""
        started = time.monotonic()
        with storage.scratch_folder(self.output.root) as scratch, storage.fatal_errors_named(self.output.uri):
            counts = work(ShardTask(key, self.inputs, scratch))
            files: dict[str, dict[str, Any]] = {}
            for path in sorted(scratch.glob(f"{key.name}.*")):
                suffix = path.name.partition(".")[2]
                files[suffix] = {"bytes": path.stat().st_size, "sha256": _sha256_of(path)}
            # A run that was silent for long (a suspended laptop) may have lost the part to another, which finished it.
            made = self.output.marker(key)
            if made is not None and made["identity"] == self.shard_identity(input_digests):
                return made
            storage.delete(self.output.file(key, "success.json"))
            for suffix in files:
                storage.publish_file(scratch / f"{key.name}.{suffix}", self.output.file(key, suffix))
        marker = {
            "stage": self.operation.name,
            "identity": self.shard_identity(input_digests),
            **asdict(counts),
            "files": files,
            "bytes": sum(file["bytes"] for file in files.values()),
            "sha256": digest_of({suffix: file["sha256"] for suffix, file in files.items()}),
            "seconds": round(time.monotonic() - started, 3),
            "host": socket.gethostname(),
            "device": _device(),
        }
        storage.write_json(self.output.file(key, "success.json"), marker)
        storage.delete(self.output.file(key, "quarantine.json"))
        return marker


@dataclass(frozen=True)
class ShardDone:
    """A worker's word on one shard: its marker, or why there is none."""

    key: ShardKey
    marker: dict[str, Any] | None
    error: str = ""
    trace: str = ""
    fatal: bool = False
    """True for what no other shard would survive either: a full disk, an engine that does not load."""
    mendable: bool = False
    """True for what a person has to mend: trying again would not help."""


class Executor(Protocol):
    """Runs a job's shards on workers. A dead worker costs its shard one attempt, not the run."""

    def run(
        self, job: ShardJob, tasks: Sequence[tuple[ShardKey, Mapping[str, str]]], more: Callable[[], bool]
    ) -> Iterable[ShardDone]:
        """Each shard's result as it comes. When `more` says no, shards under way are finished and no other is begun."""
        ...

    def workers_at_once(self) -> int:
        """How many shards are worked on at the same time."""
        ...


class StageFailed(Mendable):
    """The stage could not be run, with the reason and what mends it."""


class LimitReached(Mendable):
    """Hours or money allowed for a stage are spent; what is done is kept, and the message says what is left."""


def output_of(operation: Operation, root: str, source: str, inputs: Mapping[str, ShardSet]) -> ShardSet:
    """Where an operation's output lies: a function of its configuration and of its inputs' identities."""
    identity = digest_of(
        [operation.name, operation.config.identity(), {name: shards.identity for name, shards in inputs.items()}]
    )
    return ShardSet(root, source, operation.name, identity[:16])


def run_stage(
    operation: Operation,
    *,
    root: str,
    source: str,
    scale: str,
    grid: Grid,
    parts: int,
    partial: bool,
    inputs: Mapping[str, ShardSet],
    executor: Executor,
    on_shard: Callable[[ShardKey, Mapping[str, Any]], None] = lambda key, marker: None,
    only: Collection[ShardKey] | None = None,
    may_go_on: Callable[[], bool] = lambda: True,
) -> StageReport:
    """Make every shard of the first `parts` parts that is not there yet; of those, `only` the named ones.

    `may_go_on` is asked before each shard; a no ends the run when those under way are finished.

    `on_shard` hears of every shard that is done, found or made. Shards whose inputs are quarantined are left out and counted.
    Parts that another run is working on are waited for.

    Raises:
        StageFailed: when nothing can be made (missing weights, missing inputs, a full disk, every shard failed).
        LimitReached: when `may_go_on` said no before the last shard.
    """
    started = time.monotonic()
    output = output_of(operation, root, source, inputs)
    job = ShardJob(operation, inputs, output)
    keys = [key for key in grid.keys(parts) if only is None or key in only]
    input_markers = {name: shards.markers(keys) for name, shards in inputs.items()}
    ready = [key for key in keys if all(key in markers for markers in input_markers.values())]
    if not ready:
        raise StageFailed(
            f"{operation.name}: none of the {len(keys)} input shards of {source} is done: run its upstream first"
        )
    digests: dict[ShardKey, Mapping[str, str]] = {
        key: {name: markers[key]["sha256"] for name, markers in input_markers.items()} for key in ready
    }
    storage.remove_dead_scratch(root)
    storage.remove_dead_temporaries(output.uri)
    if not storage.exists(storage.join(output.uri, "config.json")):
        storage.write_json(storage.join(output.uri, "config.json"), _description(operation, inputs))

    progress = StageProgress(operation.name, scale, len(ready))
    done = {key: m for key, m in output.markers(ready).items() if m["identity"] == job.shard_identity(digests[key])}
    for key in sorted(done):
        progress.finished(done[key])
        on_shard(key, done[key])
    made: set[ShardKey] = set()
    failed: dict[ShardKey, ShardDone] = {}
    waiting = sorted({key.part for key in ready if key not in done})
    while waiting:
        leases: dict[int, Lease] = {}
        try:
            for part in waiting:
                lease = Lease.acquire(storage.join(output.uri, "leases"), ShardKey(part, 0).part_name)
                if lease is not None:
                    leases[part] = lease
            mine = [key for key in ready if key.part in leases and key not in done and key not in failed]
            # Between the first look and the lease another run may have finished some.
            for key, marker in output.markers(mine).items():
                if marker["identity"] == job.shard_identity(digests[key]):
                    done[key] = marker
                    progress.finished(marker)
                    on_shard(key, marker)
            todo = [(key, digests[key]) for key in mine if key not in done]
            for result in _with_retries(executor, job, todo, may_go_on):
                leases[result.key.part].check()
                if result.marker is None:
                    failed[result.key] = result
                    _quarantine(output, result)
                    progress.failed(result.key, result.error)
                    continue
                done[result.key] = result.marker
                made.add(result.key)
                progress.finished(result.marker)
                on_shard(result.key, result.marker)
        finally:
            release_all(leases.values())
        left = [key for key in ready if key not in done and key not in failed]
        if left and not may_go_on():
            progress.close()
            rows = sum(marker["rows_in"] for marker in done.values())
            raise LimitReached(
                f"{operation.name}: the limit is reached with {len(done):,} of {len(ready):,} shards done ({rows:,} rows);"
                f" {len(left):,} are left. The same command goes on there, with as much again."
            )
        waiting = [part for part in waiting if part not in leases]
        if waiting:
            _wait_for_others(output, waiting)
    progress.close()
    if not done:
        first = next(iter(failed.values()))
        raise StageFailed(f"{operation.name}: every shard failed; the first, {first.key}: {first.error}\n{first.trace}")
    return StageReport.of(
        output, scale, parts, done, made=len(made), quarantined=len(keys) - len(done), seconds=time.monotonic() - started,
        partial=partial,
    )  # fmt: skip


def _with_retries(
    executor: Executor,
    job: ShardJob,
    todo: Sequence[tuple[ShardKey, Mapping[str, str]]],
    may_go_on: Callable[[], bool],
) -> Iterable[ShardDone]:
    for attempt in range(1, ATTEMPTS + 1):
        again: list[tuple[ShardKey, Mapping[str, str]]] = []
        digests = dict(todo)
        if not todo:
            return
        for result in executor.run(job, todo, may_go_on):
            if result.fatal:
                logger.error("%s", result.trace)
                raise StageFailed(f"{job.operation.name}: {result.error}")
            if result.marker is not None or attempt == ATTEMPTS:
                yield result
            else:
                logger.warning(
                    "%s %s failed, attempt %d of %d: %s",
                    job.operation.name,
                    result.key,
                    attempt,
                    ATTEMPTS,
                    result.error,
                )
                again.append((result.key, digests[result.key]))
        todo = again


def _wait_for_others(output: ShardSet, parts: Sequence[int]) -> None:
    names = [ShardKey(part, 0).part_name for part in parts]
    holders = {holder(storage.join(output.uri, "leases"), name) for name in names} - {None}
    if holders:
        logger.info(
            "waiting for %d parts of %s that %s works on", len(parts), output.stage, ", ".join(map(str, holders))
        )
        time.sleep(POLL_S)


def _quarantine(output: ShardSet, result: ShardDone) -> None:
    storage.write_json(
        output.file(result.key, "quarantine.json"),
        {"error": result.error, "trace": result.trace, "attempts": ATTEMPTS, "host": socket.gethostname()},
    )


def _description(operation: Operation, inputs: Mapping[str, ShardSet]) -> dict[str, Any]:
    return {
        "stage": operation.name,
        "config": operation.config.model_dump(mode="json"),
        "inputs": {name: shards.identity for name, shards in inputs.items()},
    }


def _sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _device() -> str:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return "cpu"
