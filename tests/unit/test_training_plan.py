"""The plan of a training: what is counted, what is estimated, and from what."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
from typer.testing import CliRunner

from veclip_core.cli import app
from veclip_core.pipeline import rate_table, training_rates
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.plan import Machines, Plan, PlanError, make_plan
from veclip_core.pipeline.training import recipe_of
from veclip_core.scales import SCALES
from veclip_core.settings import Settings
from veclip_core.shards import Current, NotMadeYet, promote
from veclip_core.training.recipe import RECIPES
from veclip_core.training.report import TrainReport

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


def test_a_measured_rate_of_the_same_model_and_device_is_taken(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = plan_of(chain, device=H100)
    assert nothing.hours is nothing.cost is nothing.samples_per_s is None
    assert "nothing was measured" in nothing.rate_from
    assert "--mfu" in nothing.rate_from
    monkeypatch.setattr("veclip_core.pipeline.rate_table.device_name", lambda: H100)
    rates = {"12m": 2_000.0, "300m-l14": 400.0}
    for name, rate in rates.items():
        training_rates.note(chain.settings, RECIPES[name], samples_per_s=rate, precision="bf16", what="gpu-smoke, bf16")
    training_rates.note(
        chain.settings,
        RECIPES["12m"],
        samples_per_s=3_000.0,
        precision="bf16",
        what="gpu-smoke, cache",
        ranks=2,
        gradient_cache=True,
    )
    plan = plan_of(chain, devices=4, device="NVIDIA H100", device_hour_price=1.0)
    assert plan.samples_per_s == 8_000
    assert plan.hours == pytest.approx(384e6 / 8_000 / 3600)
    assert "2,000.0 samples/s on 1 x NVIDIA H100 80GB HBM3" in plan.rate_from
    assert "taken to grow" in plan.rate_from
    assert plan_of(chain, devices=4, device=H100, micro_batch=64).samples_per_s == 6_000
    assert plan_of(chain, recipe="300m-l14", device=H100).samples_per_s == 400
    assert plan_of(chain, recipe="300m-h14-336", device=H100).hours is None
    assert plan_of(chain, device="NVIDIA A100").hours is None


def test_a_training_leaves_its_rate_behind_where_it_tells_something(chain: Chain) -> None:
    made = dict.fromkeys((one.name for one in fields(TrainReport)), 0) | {"precision": "fp32", "samples_per_s": 500.0}
    for steps, resumed_at in ((300, 0), (300, 300), (10, 0)):
        report = TrainReport(**made | {"steps": steps, "resumed_at": resumed_at})  # type: ignore[arg-type]
        training_rates.note_training(chain.settings, RECIPES["12m"], report)
    (row,) = rate_table.read(chain.settings, training_rates.TABLE)
    assert (row["model"], row["what"]) == ("ViT-B-16", "a training of 300 steps")
    assert plan_of(chain).samples_per_s == 500, "on this machine's own device"


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
