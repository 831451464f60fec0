"""What a rank does in tests: a training that notes what it reads, and that dies or is told to stop at a named point."""

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.unit.training_world import register_vit
from veclip_core import storage
from veclip_core.training.data import Batch, Batches
from veclip_core.training.learner import Learner
from veclip_core.training.loop import train
from veclip_core.training.manifest_table import load_manifest
from veclip_core.training.pictures import StreamedPictures
from veclip_core.training.recipe import Recipe
from veclip_core.training.report import Runtime
from veclip_core.training.world import World

MANIFEST = ["mix/00000.parquet", "mix/00001.parquet"]


@dataclass(frozen=True)
class Training:
    """One start of a training, in a process of its own or in this one."""

    source: str
    folder: Path
    recipe: Recipe
    read: Path | None = None
    """A folder where each rank notes the rows that it reads."""
    runtime: dict[str, Any] = field(default_factory=dict)
    rank: int = -1
    """At which something happens,"""
    point: str = ""
    """`kill` or `term`, a colon, and a step (from 1) or the place in publishing step 8: `shard`, `marker` or `marked`."""
    bucket: str = ""
    """An address where the checkpoints go in place of the folder."""


def work(world: World, tell: Callable[[Any], None], training: Training) -> None:
    """Raises what `train` raises; a rank tells each step."""
    register_vit(training.folder.parent)
    if training.rank == world.rank:
        _arm(training.point)
    runtime = Runtime(**{"threads": 1, "log_every_steps": 1, "checkpoint_every_steps": 4, "device": "cpu",
                         "progress_bar": False, **training.runtime})  # fmt: skip
    with noting(training.read, world.rank):
        train(
            training.recipe,
            load_manifest(training.source, MANIFEST),
            training.bucket or training.folder,
            runtime=runtime,
            on_progress=lambda step, numbers: tell((step, dict(numbers))),
            world=world,
        )


@contextmanager
def noting(folder: Path | None, rank: int) -> Iterator[None]:
    """Write [step, rows] of every batch that is read. Rows come from what is asked of the pictures, not from the plan."""
    if folder is None:
        yield
        return
    at, read = Batches.at, StreamedPictures.read
    rows: list[int] = []

    def noted_read(self: StreamedPictures, asked: Sequence[int] | np.ndarray) -> np.ndarray:
        rows[:] = [int(row) for row in asked]
        return read(self, asked)

    with open(folder / f"{os.getpid()}-{rank}.jsonl", "w", buffering=1) as lines:

        def noted_at(self: Batches, step: int) -> Batch:
            batch = at(self, step)
            lines.write(json.dumps([step, rows]) + "\n")
            return batch

        Batches.at, StreamedPictures.read = noted_at, noted_read  # type: ignore[method-assign]
        try:
            yield
        finally:
            Batches.at, StreamedPictures.read = at, read  # type: ignore[method-assign]


def rows_read(folder: Path, steps: range) -> list[int]:
    """By all ranks of one start, in these steps (from 0)."""
    notes = [json.loads(line) for file in folder.iterdir() for line in file.read_text().splitlines()]
    return [row for step, rows in notes if step in steps for row in rows]


def _arm(point: str) -> None:
    how, _, where = point.partition(":")

    def happen() -> None:
        os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGTERM)

    if where.isdigit():
        gradient = Learner.gradient

        def at_step(self: Learner, batch: Batch, rate: float) -> dict[str, float]:
            if batch.step + 1 == int(where):
                happen()
            return gradient(self, batch, rate)

        Learner.gradient = at_step  # type: ignore[method-assign]
        return
    publish_file, write_json = storage.publish_file, storage.write_json

    def publish(source: Path, uri: str) -> None:
        publish_file(source, uri)
        if where == "shard" and "step-000008/training" in uri:
            happen()

    def write(uri: str, value: Any) -> None:
        if where == "marker" and "step-000008.success" in uri:
            happen()
        write_json(uri, value)
        if where == "marked" and "step-000008.success" in uri:
            happen()

    storage.publish_file, storage.write_json = publish, write
