"""The plan of a training: what is counted, what is estimated, and from what."""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.conftest import PROJECT
from veclip_core import leases, storage
from veclip_core.cli import app
from veclip_core.pipeline import rate_table, training_rates
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.plan import Machines, Plan, PlanError, make_plan
from veclip_core.pipeline.training import recipe_of
from veclip_core.pipeline.training_rates import Way, rate_for
from veclip_core.scales import SCALES
from veclip_core.settings import Settings
from veclip_core.shards import Current, NotMadeYet, promote
from veclip_core.training.model import precision_of
from veclip_core.training.recipe import RECIPES
from veclip_core.training.report import TrainReport
from veclip_core.training.world import World

sys.path.append(str(PROJECT / "benchmarks"))
import gpu_checks
from gpu_smoke import keep_rates

H100 = "NVIDIA H100 80GB HBM3"


def plan_of(chain: Chain, arm: str = "veclip", recipe: str = "", **machines: object) -> Plan:
    chosen = recipe_of(chain, arm, 0, RECIPES[recipe].model_dump(exclude={"weights", "seed"}) if recipe else None)
    return make_plan(chain, arm, chosen, Machines(**machines))  # type: ignore[arg-type]


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(Settings(root=str(tmp_path), mlflow="off"), SCALES["12m"])


def test_hours_and_money_follow_from_flops_and_the_given_share_of_the_peak(chain: Chain) -> None:
    plan = plan_of(chain, devices=8, device="NVIDIA H100", mfu=0.4, device_hour_price=2.5)
    assert (plan.steps, plan.batch_size, plan.samples, plan.rows) == (46_875, 8_192, 384_000_000, 12_000_000)
    assert "nominal size" in plan.rows_from
    assert plan.epochs == 32
    assert plan.text_tokens == 384_000_000 * 77
    assert plan.flops_per_sample == pytest.approx(3 * 41.09e9, rel=0.002)
    assert plan.hours == pytest.approx(384e6 * 3 * 41.09e9 / (8 * 989.5e12 * 0.4) / 3600, rel=0.002)
    assert plan.cost == pytest.approx(plan.hours * 8 * 2.5)
    assert "as given" in plan.rate_from
    cached = plan_of(chain, devices=8, device="NVIDIA H100", mfu=0.4, micro_batch=128)
    assert cached.flops_per_sample == pytest.approx(4 * 41.09e9, rel=0.002)
    assert cached.memory.activations * 8 == plan.memory.activations, "128 of 1,024 at a time"
    assert cached.cost is None
    whole = plan_of(chain, devices=8, device="NVIDIA H100", mfu=0.4, micro_batch=1_024)
    assert whole.flops_per_sample == plan.flops_per_sample, "all at a time needs no cache"


def note(chain: Chain, rate: float, recipe: str = "12m", ranks: int = 1, **way: Any) -> None:
    how = Way(**{"precision": "bf16", **way})
    training_rates.note(
        chain.settings, RECIPES[recipe], how, samples_per_s=rate, device=H100, what="a training", ranks=ranks
    )


def test_a_measured_rate_of_the_same_model_and_device_is_taken(chain: Chain) -> None:
    nothing = plan_of(chain, device=H100)
    assert nothing.hours is nothing.cost is nothing.samples_per_s is None
    assert "nothing was measured" in nothing.rate_from
    assert "--mfu" in nothing.rate_from
    note(chain, 2_000.0)
    note(chain, 400.0, "300m-l14")
    note(chain, 3_000.0, ranks=2, micro_batch=64)
    plan = plan_of(chain, devices=4, device="NVIDIA H100", device_hour_price=1.0)
    assert plan.samples_per_s == 8_000
    assert plan.hours == pytest.approx(384e6 / 8_000 / 3600)
    assert "2,000.0 samples/s on 1 x NVIDIA H100 80GB HBM3" in plan.rate_from
    assert "taken to grow" in plan.rate_from
    assert plan_of(chain, devices=4, device=H100, micro_batch=64).samples_per_s == 6_000
    assert plan_of(chain, recipe="300m-l14", device=H100).samples_per_s == 400
    assert plan_of(chain, recipe="300m-h14-336", device=H100).hours is None
    assert plan_of(chain, device="NVIDIA A100").hours is None


def test_only_a_rate_of_the_same_way_is_taken(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that gpu-smoke measures of trainings stands in the table, and a plan finds its own."""
    monkeypatch.setattr(Settings, "from_environment", lambda: chain.settings)
    trainings = [name for name, check in gpu_checks.CHECKS.items() if name not in ("describe", "fuse")]
    for ranks, base in ((1, 100), (2, 200)):
        found = {name: {"ok": True, "samples_per_s": base + at} for at, name in enumerate(trainings)}
        keep_rates({"on": "cuda", "device": H100, "ranks": ranks, "checks": {**found, "fuse": {"ok": True}}})
        if ranks == 1:
            whats = [row["what"] for row in rate_table.read(chain.settings, training_rates.TABLE)]
            assert whats == [f"gpu-smoke, {name}" for name in trainings if name != "fsdp"], (
                "shards nothing over one rank"
            )
    assert trainings == ["bf16", "fp32", "compile", "gradient-cache", "activation-checkpointing", "fsdp"]
    ways = {
        "bf16": Way("bf16"), "fp32": Way("fp32"), "compile": Way("bf16", compile=True),
        "gradient-cache": Way("bf16", micro_batch=4), "activation-checkpointing": Way("bf16", checkpoint_activations=True),
        "fsdp": Way("bf16", parallel="fsdp"),
    }  # fmt: skip
    for at, name in enumerate(trainings):
        rate = rate_for(chain.settings, RECIPES["12m"], H100, ways[name])
        assert rate is not None
        assert (rate.samples_per_s, rate.what.split(" on ")[0]) == (200 + at, f"gpu-smoke, {name}")
    assert rate_for(chain.settings, RECIPES["12m"], H100, Way("bf16", micro_batch=8)) is None
    assert plan_of(chain, device=H100, parallel="fsdp").samples_per_s == 200, "over one rank the plain way"
    sharded = plan_of(chain, device=H100, devices=4, parallel="fsdp")
    assert (sharded.samples_per_s, "in bf16, FSDP (gpu-smoke, fsdp" in sharded.rate_from) == (4 * 205 / 2, True)
    other = plan_of(chain, device=H100, compile=True, micro_batch=4)
    assert other.hours is None
    assert "in this way (bf16, micro-batches of 4, compiled)" in other.rate_from


def test_a_row_that_does_not_tell_how_it_was_computed_is_not_taken(chain: Chain) -> None:
    note(chain, 2_000.0)
    (row,) = rate_table.read(chain.settings, training_rates.TABLE)
    del row["compile"]
    storage.write_json(storage.join(chain.settings.root, training_rates.TABLE), [row])
    assert rate_for(chain.settings, RECIPES["12m"], H100, Way("bf16")) is None


def report_of(**changed: object) -> TrainReport:
    """Of 300 steps on four GPUs; gone on after step 100, before which there was one, ten times as slow."""
    history = [{"step": step, "samples_per_s": 50.0 if step <= 100 else 500.0} for step in range(10, 301, 10)]
    history[10]["samples_per_s"] = 5.0
    made = dict.fromkeys((one.name for one in fields(TrainReport)), 0) | {
        "precision": "bf16", "samples_per_s": 120.0, "device": H100, "ranks": 4, "batch_size": 8_192, "steps": 300,
        "resumed_at": 100, "history": tuple(history),
    }  # fmt: skip
    return TrainReport(**made | changed)  # type: ignore[arg-type]


def test_a_training_leaves_the_rate_of_its_last_start_behind_where_it_tells_something(chain: Chain) -> None:
    """With the device of the ranks, which on a cluster is not that of this machine."""
    settings = chain.settings.model_copy(update={"train_micro_batch": 2_048, "train_ranks": 4, "train_compile": True})
    for report in (report_of(), report_of(resumed_at=300), report_of(resumed_at=285)):
        training_rates.note_training(settings, RECIPES["12m"], report)
    (row,) = rate_table.read(chain.settings, training_rates.TABLE)
    assert (row["model"], row["what"]) == ("ViT-B-16", "a training of 300 steps")
    assert (row["device"], row["ranks"], row["samples_per_s"]) == (H100, 4, 500), "without the warming up"
    assert (row["micro_batch"], row["compile"]) == (None, True), "a rank's share is 2,048"
    cached = settings.model_copy(update={"train_micro_batch": 1_024})
    training_rates.note_training(cached, RECIPES["12m"], report_of())
    assert rate_table.read(chain.settings, training_rates.TABLE)[-1]["micro_batch"] == 1_024
    own = report_of(
        device=rate_table.device_name(), ranks=1, precision=precision_of(RECIPES["12m"], World.alone().device)
    )
    training_rates.note_training(chain.settings, RECIPES["12m"], own)
    assert plan_of(chain).samples_per_s == 500, "in what a training takes on this machine's own device"


def test_rates_noted_at_the_same_time_are_all_kept(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "POLL_S", 0.02)
    written = storage.write_json

    def slowly(uri: str, value: Any) -> None:
        time.sleep(0.02)
        written(uri, value)

    monkeypatch.setattr(storage, "write_json", slowly)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda rate: note(chain, rate), range(1, 13)))
    rows = rate_table.read(chain.settings, training_rates.TABLE)
    assert sorted(row["samples_per_s"] for row in rows) == list(range(1, 13))


def test_epochs_are_of_the_manifest_that_is_there(chain: Chain, tmp_path: Path) -> None:
    promote(chain.root, chain.source, Current("mix", "12m", "i", "digest", 12, 100, 12, False, {}, 8_000_000), 1)
    plan = plan_of(chain)
    assert (plan.rows, plan.rows_from, plan.epochs) == (8_000_000, "manifest_12m", 48)
    promote(chain.root, chain.source, Current("mix", "12m", "j", "digest", 1, 1, 1, True, {}, 100), 1)
    trial = plan_of(chain)
    assert (trial.rows_from, trial.batch_size) == ("manifest_12m, which is partial", 100)
    sample = plan_of(Chain(Settings(root=str(tmp_path)), SCALES["sample"]))
    assert sample.parameters_from.startswith("counted with CLIP's whole vocabulary")
    assert sample.rows == 4_000


def test_what_can_not_be_planned_says_why(chain: Chain, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="8,192 can't be shared by 3 devices"):
        plan_of(chain, devices=3)
    with pytest.raises(PlanError, match="the peak of 'Quantum 9000' is not known"):
        plan_of(chain, device="Quantum 9000", mfu=0.5)
    with pytest.raises(NotMadeYet, match="manifest_own is not made yet"):
        plan_of(Chain(Settings(root=str(tmp_path)), SCALES["own"]))


def test_the_command_plans_and_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECLIP_ROOT", str(tmp_path / "root"))
    command = ["train", "--scale", "300m", "--recipe", "300m-h14-336", "--arm", "clip", "--dry-run", "--devices", "64"]
    rates = ["--device", "A100", "--mfu", "0.4", "--micro-batch", "32", "--fsdp", "--checkpoint-activations"]
    shown = CliRunner().invoke(app, [*command, *rates, "--json"], catch_exceptions=False)
    plan = json.loads(shown.stdout)
    assert (plan["model"], plan["samples"], plan["devices"]) == ("ViT-H-14", 439_087 * 32_768, 64)
    assert plan["memory"]["total"] == sum(size for name, size in plan["memory"].items() if name != "total")
    text = CliRunner().invoke(app, [*command, *rates, "--device-hour-price", "2"], catch_exceptions=False).stdout
    assert text.count("(estimate") == 3, "memory, time and money say that they are"
    assert "986.5 million parameters (counted)" in text
    assert not (tmp_path / "root").exists()
    for refused in (["--recipe", "4m", "--dry-run"], ["--arm", "clop", "--dry-run"], ["--devices", "8"], ["--json"]):
        assert CliRunner().invoke(app, ["train", *refused]).exit_code == 2, refused
