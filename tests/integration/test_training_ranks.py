"""Trainings of two ranks: what one process makes of the same batches, whatever dies or is stopped in the middle."""

import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.test_training_arms import chain  # noqa: F401  (a fixture)
from tests.integration.training_process import shards_of
from tests.integration.training_ranks import Training, rows_read, work
from tests.object_store import ObjectStore
from tests.ray_cluster import PROJECT, cluster_of
from tests.unit.training_world import TINY, VIT, register_vit, write_world
from veclip_core import storage
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.training import train_arm
from veclip_core.tracking import client_for
from veclip_core.training import checkpoint as checkpoints
from veclip_core.training.launch import RanksFailed, on_ray, on_this_machine
from veclip_core.training.loop import TrainingInterrupted
from veclip_core.training.world import World

CALM = TINY.model_copy(update={"epsilon": 1e-2})
"""With Adam's usual epsilon the rounding of another order of sums grows a hundredfold in three steps: it scales every gradient,
however small, to a step of the same size."""
ROWS = 48
"""Three batches an epoch, and nothing left over."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_world(tmp_path_factory.mktemp("source") / "world", ROWS)[0]


def alone(training: Training) -> dict[int, float]:
    """Train in this process; the loss of each step that it took."""
    told: list[tuple[int, dict[str, float]]] = []
    work(World.alone("cpu"), told.append, training)
    return {step: numbers["loss"] for step, numbers in told}


def on_ranks(training: Training, ranks: int = 2) -> dict[int, float]:
    told: list[tuple[int, dict[str, float]]] = []
    on_this_machine(work, [training], ranks, told.append)
    return {step: numbers["loss"] for step, numbers in told}


def saved(folder: Path) -> dict[str, Any]:
    """What must not depend on interruptions."""
    last = checkpoints.find(str(folder))
    state = last.state()
    counts = {name: state["done"][name] for name in ("step", "samples", "fallbacks", "choices")}
    losses = [entry["loss"] for entry in state["done"]["history"]]
    weights = (folder / last.name / "model.safetensors").read_bytes()
    return {"weights": weights, "shards": shards_of(last), "counts": counts, "losses": losses}


def test_two_ranks_stopped_and_gone_on_from_by_one(source: str, tmp_path: Path) -> None:
    """SIGTERM at one rank stops both with a checkpoint; one process with other loader threads ends where one alone would have, and
    every row is read exactly once an epoch."""
    undisturbed = alone(Training(source, tmp_path / "alone", CALM))
    folder, first, second = tmp_path / "run", tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with pytest.raises(TrainingInterrupted, match="stopped by a signal after step 5"):
        on_ranks(Training(source, folder, CALM, first, rank=1, point="term:5"))
    stopped = checkpoints.find(str(folder))
    assert stopped.step == 5
    assert stopped.state()["ranks"] == 2
    assert len(list((folder / stopped.name / "training").iterdir())) == 2, "a shard a rank"
    losses = alone(Training(source, folder, CALM, second, runtime={"loader_threads": 5}))
    assert list(losses) == list(range(6, 13)), "finished steps are not taken again"

    for epoch in range(4):
        steps = range(3 * epoch, 3 * epoch + 3)
        read = rows_read(first, range(steps.start, min(5, steps.stop))) + rows_read(
            second, range(max(5, steps.start), steps.stop)
        )
        assert Counter(read) == Counter(range(ROWS)), f"epoch {epoch}"
    whole, other = (checkpoints.find(str(tmp_path / name)).state()["done"] for name in ("alone", "run"))
    assert (whole["samples"], whole["choices"]) == (other["samples"], other["choices"])
    curve = [one["loss"] for one in other["history"]]
    assert curve[:4] == pytest.approx([undisturbed[step] for step in range(1, 5)], rel=1e-4)
    assert curve == pytest.approx(list(undisturbed.values()), rel=1e-2)


@pytest.fixture(scope="module")
def of_two(source: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("two") / "run"
    on_ranks(Training(source, folder, TINY))
    return saved(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "point", "resumed_at"),
    [
        (1, "kill:7", {0, 4}),
        (0, "kill:11", {4, 8}),
        (1, "kill:shard", {4}),
        (0, "kill:marker", {4}),
        (0, "kill:marked", {8}),
        (0, "term:6", {6}),
    ],
)
def test_a_rank_that_ends_ends_the_others_and_two_go_on(
    source: str, of_two: dict[str, Any], tmp_path: Path, rank: int, point: str, resumed_at: set[int]
) -> None:
    folder = tmp_path / "run"
    killed = point.startswith("kill")
    error, told = (
        (RanksFailed, r"rank \d of 2 .*goes on from the last checkpoint") if killed else (TrainingInterrupted, "step 6")
    )
    with pytest.raises(error, match=told):
        on_ranks(Training(source, folder, TINY, rank=rank, point=point))
    last = checkpoints.latest(str(folder))
    assert (last.step if last else 0) in resumed_at
    on_ranks(Training(source, folder, TINY))
    assert saved(folder) == of_two, "bit for bit"
    assert not list((folder / ".scratch").iterdir()), "nothing of the killed ranks stays"


@pytest.mark.slow
@pytest.mark.parametrize(
    "runtime",
    [{"parallel": "ddp"}, {"parallel": "fsdp"}, {"parallel": "ddp", "micro_batch": 3},
     {"parallel": "fsdp", "micro_batch": 3, "checkpoint_activations": True}],
    ids=["ddp", "fsdp", "ddp, cached", "fsdp, cached"],
)  # fmt: skip
def test_sharded_or_cached_it_is_the_same_training(source: str, tmp_path: Path, runtime: dict[str, Any]) -> None:
    """With accumulation, clipping and an average; begun on two ranks, stopped, and ended by one."""
    register_vit(tmp_path)
    recipe = VIT.model_copy(update={"accumulation_steps": 2, "ema_decay": 0.9, "clip_norm": 0.5})
    undisturbed = alone(Training(source, tmp_path / "alone", recipe))
    folder = tmp_path / "run"
    with pytest.raises(TrainingInterrupted):
        on_ranks(Training(source, folder, recipe, runtime=runtime, rank=0, point="term:7"))
    alone(Training(source, folder, recipe))
    history = checkpoints.find(str(folder)).state()["done"]["history"]
    assert [one["loss"] for one in history] == pytest.approx(list(undisturbed.values()), rel=1e-4)
    ours, theirs = (checkpoints.find(str(tmp_path / name)).weights() for name in ("run", "alone"))
    for name, one in ours.items():
        assert (one - theirs[name]).abs().max() < 1e-4, name


@pytest.mark.slow
def test_one_begins_and_two_go_on_in_shards(source: str, tmp_path: Path) -> None:
    register_vit(tmp_path)
    undisturbed = alone(Training(source, tmp_path / "alone", VIT))
    folder = tmp_path / "run"
    with pytest.raises(TrainingInterrupted):
        on_ranks(Training(source, folder, VIT, rank=0, point="term:5"), ranks=1)
    losses = on_ranks(Training(source, folder, VIT, runtime={"parallel": "fsdp"}))
    assert [losses[step] for step in range(6, 13)] == pytest.approx(
        [undisturbed[step] for step in range(6, 13)], rel=1e-4
    )


@pytest.mark.slow
def test_ranks_go_on_from_a_bucket(source: str, of_two: dict[str, Any], tmp_path: Path, store: ObjectStore) -> None:
    """One of them fetches the shards for both."""
    training = Training(source, tmp_path / "run", TINY, bucket=f"{store.root}/ranks")
    with pytest.raises(TrainingInterrupted):
        on_ranks(replace(training, rank=1, point="term:6"))
    assert list(on_ranks(training)) == list(range(7, 13)), "finished steps are not taken again"
    last = checkpoints.find(training.bucket)
    assert storage.read_bytes(f"{last.uri}/model.safetensors") == of_two["weights"], "bit for bit"


@pytest.mark.slow
def test_ranks_end_with_the_process_that_started_them(source: str, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.integration.test_training_ranks import *\n"
        "if __name__ == '__main__':\n"
        "    recipe = TINY.model_copy(update={'steps': 100_000})\n"
        f"    training = Training({source!r}, Path({str(tmp_path / 'run')!r}), recipe)\n"
        "    on_this_machine(work, [training], 2, lambda told: print(told[0], flush=True))\n"
    )
    (tmp_path / "starts.py").write_text(script)
    with subprocess.Popen(
        [sys.executable, tmp_path / "starts.py"], stdout=subprocess.PIPE, cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"1"
        ranks = psutil.Process(process.pid).children(recursive=True)
        assert len(ranks) >= 2
        process.send_signal(signal.SIGKILL)
        assert not psutil.wait_procs(ranks, timeout=30)[1], "all gone"


@pytest.mark.slow
def test_an_arm_is_trained_on_ranks_as_settings_say(chain: Chain, tmp_path: Path) -> None:  # noqa: F811
    """One tracked run, progress told here, and the report of the whole."""
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    overrides = {name: value for name, value in TINY.model_dump().items() if name not in ("weights", "seed")}
    chain = Chain(chain.settings.model_copy(update={"train_ranks": 2, "mlflow": database}), chain.scale)
    told: list[int] = []
    report, made = train_arm(chain, "clip", overrides=overrides, on_progress=lambda step, _: told.append(step))
    assert told == [10, 12]
    assert (report.steps, report.samples, report.resumed_at) == (TINY.steps, TINY.steps * TINY.batch_size, 0)
    client = client_for(database)
    (run,) = client.search_runs([client.get_experiment_by_name("veclip sample").experiment_id])
    assert (run.info.run_id, run.info.status, run.data.params["ranks"]) == (made.run_id, "FINISHED", "2")
    assert 0 <= run.data.metrics["data_wait"] <= 1
    assert train_arm(chain, "clip", overrides=overrides)[0].resumed_at == TINY.steps


@pytest.mark.slow
def test_ray_trains_on_its_machines(source: str, tmp_path: Path) -> None:
    """The same steps by Ray Train, and the same end where an actor was killed."""
    pytest.importorskip("ray")
    undisturbed = alone(Training(source, tmp_path / "alone", CALM))
    told: list[tuple[int, dict[str, float]]] = []
    with cluster_of(2) as cluster:
        where = {"address": cluster.address, "cpus": 1, "gpu": False, "folder": tmp_path / "ray"}
        folder = tmp_path / "run"
        with pytest.raises(RanksFailed):
            on_ray(work, [Training(source, folder, CALM, rank=1, point="kill:10")], 2, told.append, **where)
        assert checkpoints.find(str(folder)).step in (4, 8)
        on_ray(work, [Training(source, folder, CALM)], 2, told.append, **where)
    history = checkpoints.find(str(folder)).state()["done"]["history"]
    assert [one["loss"] for one in history] == pytest.approx(list(undisturbed.values()), rel=1e-2)
    assert told[-1][0] == TINY.steps
