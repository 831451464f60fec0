"""A small chain of real stages for the spine's tests: `numbers` makes rows, `squares` maps them.

Run as a program it does both stages, so that tests can kill it and start it again.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from veclip_core.config import Config
from veclip_core.execution.local import LocalExecutor
from veclip_core.execution.ray_cluster import RayExecutor
from veclip_core.samples import Grid
from veclip_core.stage import Executor, RowCounts, ShardSet, ShardTask, Work, output_of, run_stage
from veclip_core.stage_report import StageReport

GRID = Grid(parts=3, shards_per_part=2)


class NumbersConfig(Config):
    rows: int = 10


class SquaresConfig(Config):
    power: int = 2
    refuse_shard: str = ""
    breaks: bool = False
    """Whether the refused shard breaks the engine, as a CUDA error does: nothing works in that process any more."""
    load_fails: bool = False
    load_kills: bool = False
    """Whether loading ends the process, as the kernel does with one that takes too much memory."""
    padding: int = 0
    seconds: float = 0.0
    """How long a shard takes."""


@dataclass(frozen=True)
class Numbers:
    config: NumbersConfig
    name: ClassVar[str] = "numbers"

    @contextmanager
    def open(self) -> Iterator[Work]:
        def work(task: ShardTask) -> RowCounts:
            start = 1000 * task.key.part + 100 * task.key.shard
            task.write(pa.table({"number": list(range(start, start + self.config.rows))}))
            return RowCounts(self.config.rows, self.config.rows)

        yield work


@dataclass(frozen=True)
class Squares:
    config: SquaresConfig
    name: ClassVar[str] = "squares"

    @contextmanager
    def open(self) -> Iterator[Work]:
        if self.config.load_fails:
            raise RuntimeError("no weights at /nowhere")
        if self.config.load_kills:
            os.kill(os.getpid(), signal.SIGKILL)

        broken = False

        def work(task: ShardTask) -> RowCounts:
            nonlocal broken
            if log := os.environ.get("VECLIP_TEST_MADE"):
                with open(log, "a") as made:
                    made.write(f"{task.key} {os.getpid()} {os.getppid()}\n")
            time.sleep(self.config.seconds)
            if str(task.key) == self.config.refuse_shard or broken:
                broken = self.config.breaks
                raise ValueError("poison")
            numbers = task.read("numbers").column("number").to_pylist()
            kept = [number for number in numbers if number % 5]
            if self.config.padding:
                task.out("bin").write_bytes(os.urandom(self.config.padding))
            task.write(pa.table({"number": kept, "power": [number**self.config.power for number in kept]}))
            return RowCounts(
                len(numbers), len(kept), {"multiple_of_5": len(numbers) - len(kept)}, extra={"tokens": 3.0}
            )

        yield work


def run_both(
    root: str,
    squares: SquaresConfig,
    workers: int = 2,
    parts: int = 3,
    executor: Executor | None = None,
    may_go_on: Callable[[], bool] = lambda: True,
) -> tuple[ShardSet, StageReport]:
    executor = executor or LocalExecutor(workers)
    common: dict[str, Any] = {
        "root": root,
        "source": "numbers",
        "scale": "all",
        "grid": GRID,
        "parts": parts,
        "partial": parts < 3,
    }
    numbers = Numbers(NumbersConfig())
    run_stage(numbers, inputs={}, executor=executor, **common)
    inputs = {"numbers": output_of(numbers, root, "numbers", {})}
    operation = Squares(squares)
    report = run_stage(operation, inputs=inputs, executor=executor, may_go_on=may_go_on, **common)
    return output_of(operation, root, "numbers", inputs), report


if __name__ == "__main__":
    _executor = RayExecutor(sys.argv[2]) if len(sys.argv) > 2 else None
    run_both(sys.argv[1], SquaresConfig(seconds=0.5 if _executor else 0.0), executor=_executor)
