"""The trainings of a scale, from manifests in the store."""

import os
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import open_clip
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.training_world import TINY, write_world
from veclip_core import storage
from veclip_core.mixing.choose import CONTROL
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.evaluation import require_comparable
from veclip_core.pipeline.publishing import ALIAS, Published, publish
from veclip_core.pipeline.side_by_side import Training, TrainingsFailed, train_side_by_side
from veclip_core.pipeline.trained import Trained, trained
from veclip_core.pipeline.training import manifest_table, recipe_of, train_arm
from veclip_core.samples import ShardKey
from veclip_core.scales import SCALES
from veclip_core.settings import Settings
from veclip_core.shards import Current, NotMadeYet, promote
from veclip_core.tracking import client_for
from veclip_core.training.arms import EXPERIMENT, UnknownArm
from veclip_core.training.loop import train, training_identity
from veclip_core.training.report import Runtime

OVERRIDES = {name: value for name, value in TINY.model_dump().items() if name not in ("weights", "seed")}
SAMPLE = SCALES["sample"]


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    """Two manifests over the same pictures, the scale's and the control's; of three shards one was set aside."""
    uri, paths = write_world(tmp_path / SAMPLE.source.name)
    for label, identity in (("sample", "abc"), ("sample-control", "def")):
        current = Current("mix", label, identity, f"digest of {label}", 3, 1, 3, False, {"mix": identity}, rows_ok=96)
        shards = current.shard_set(str(tmp_path), SAMPLE.source.name)
        for part, path in enumerate(paths):
            key = ShardKey(part, 0)
            target = Path(shards.file(key, "parquet"))
            target.parent.mkdir(parents=True)
            shutil.copyfile(Path(uri) / path, target)
            if label == "sample-control":
                rows = pq.read_table(target)
                texts = [f"a blue cat, {alt}" for alt in rows["alt"].to_pylist()]
                pq.write_table(rows.append_column(CONTROL, pa.array(texts)), target)
            storage.write_json(shards.file(key, "success.json"), {"identity": "x"})
        promote(str(tmp_path), SAMPLE.source.name, current, shards_made=3)
    return Chain(Settings(root=str(tmp_path), mlflow="off", threads=2, train_workers=2), SAMPLE)


def test_the_two_arms_of_every_scale_differ_in_what_they_read(chain: Chain) -> None:
    reports = {arm: train_arm(chain, arm, overrides=OVERRIDES)[0] for arm in ("clip", "veclip")}
    assert reports["clip"].samples == reports["veclip"].samples == TINY.steps * TINY.batch_size
    assert set(reports["clip"].choices) == {"alt"}, "the baseline reads AltText alone"
    assert set(reports["veclip"].choices) == {"alt", "vecap"}
    assert trained(chain, "veclip").partial, "a trial with other recipe fields is marked"
    assert trained(chain, "veclip").manifest_digest == trained(chain, "clip").manifest_digest


def test_all_arms_side_by_side(chain: Chain) -> None:
    steps: dict[Training, list[int]] = {}
    done: list[tuple[str, int]] = []
    trainings = [(arm, seed) for seed in (0, 1) for arm in EXPERIMENT.arms]
    made = train_side_by_side(
        chain,
        trainings,
        overrides=OVERRIDES,
        on_progress=lambda training, step, numbers: steps.setdefault(training, []).append(step),
        on_trained=lambda one: done.append((one.arm, one.seed)),
    )
    assert [(one.arm, one.seed) for one in made] == trainings
    assert sorted(done) == sorted(trainings)
    assert all(found[-1] == TINY.steps for found in steps.values())
    assert steps.keys() == set(trainings)
    read = {one.arm: set(one.report["choices"]) for one in made}
    assert read == {
        "clip": {"alt"}, "veclip": {"alt", "vecap"}, "control": {"alt", CONTROL},
        "vecap_only": {"vecap"}, "template_only": {"template"}, "vec_only": {"vec"},
    }  # fmt: skip
    require_comparable(made)
    shares = {
        one.arm: one.report["choices"]["alt"] for one in made if one.arm in ("veclip", "control") and one.seed == 0
    }
    assert shares["veclip"] == shares["control"], "the control tosses the coins of the arm it controls"
    assert len({one.report["final_loss"] for one in made}) == len(made), "no two are the same training"

    def nothing(training: Training, step: int, numbers: Any) -> None:
        raise AssertionError(f"{training} was trained again")

    again = train_side_by_side(chain, trainings, overrides=OVERRIDES, on_progress=nothing)
    assert [one.checkpoint for one in again] == [one.checkpoint for one in made]


def test_a_finished_training_is_exported_and_a_version_of_a_registered_model(
    chain: Chain, caplog: pytest.LogCaptureFixture
) -> None:
    tracked = Chain(chain.settings.model_copy(update={"mlflow": ""}), SAMPLE)
    _, trial = train_arm(tracked, "clip", overrides=OVERRIDES)
    whole = replace(trial, partial=False)
    first = publish(tracked, whole)
    assert (first.version, set(first.exports)) == ("clip_sample/1", {"open_clip"}), "transformers has no ResNet"
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{first.exports['open_clip']}")
    assert sum(one.numel() for one in model.parameters()) > trial.report["parameters"], "with CLIP's whole vocabulary"
    assert publish(tracked, whole) == first, "once"
    _, other = train_arm(tracked, "clip", 1, overrides=OVERRIDES)
    assert publish(tracked, other).version == "clip_sample/2"
    client = client_for(str(tracked.settings.tracking_uri))
    current = client.get_model_version_by_alias("clip_sample", ALIAS)
    assert (str(current.version), current.run_id, current.source) == ("1", whole.run_id, first.exports["open_clip"])
    assert publish(tracked, replace(other, partial=False)).version == "clip_sample/2"
    assert publish(tracked, whole) == first
    late = publish(tracked, replace(whole, identity="trained before the other, and registered after it"))
    assert late.version == "clip_sample/3"
    current = client.get_model_version_by_alias("clip_sample", ALIAS)
    assert (str(current.version), current.run_id) == ("2", other.run_id), "an older training does not take its place"
    lost = Chain(chain.settings.model_copy(update={"mlflow": "http://127.0.0.1:9"}), SAMPLE)
    assert publish(lost, whole) == Published(first.exports), "a training is not lost because MLflow is"
    assert "when MLflow is back" in caplog.text


def test_a_trial_leaves_the_whole_training_in_its_place(chain: Chain) -> None:
    """`veclip run clip --steps 5` on the root of a finished experiment must not become what the report compares."""
    _, made = train_arm(chain, "clip", overrides=OVERRIDES)
    whole = replace(made, partial=False)
    uri = storage.join(chain.root, chain.source, "train", "current", "sample-clip-seed-0.json")
    storage.write_json(uri, asdict(whole))
    train_arm(chain, "clip", overrides={**OVERRIDES, "steps": 3})
    assert trained(chain, "clip").identity == whole.identity
    storage.write_json(uri, asdict(replace(whole, manifest_digest="of an older manifest")))
    train_arm(chain, "clip", overrides={**OVERRIDES, "steps": 3})
    assert trained(chain, "clip").report["steps"] == 3, "a whole training on another manifest is of no use any more"


def test_a_killed_process_costs_one_attempt(chain: Chain) -> None:
    """`kill -9` of every training: each goes on from its checkpoint, and ends as it would have."""
    long = {**OVERRIDES, "steps": 120}
    killed: list[int] = []

    def kill_all(training: Training, step: int, numbers: Any) -> None:
        if step >= 60 and not killed:
            workers = [child.pid for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
            killed.extend(workers)
            for pid in workers:
                os.kill(pid, signal.SIGKILL)

    made = train_side_by_side(chain, [("clip", 0), ("veclip", 0)], overrides=long, on_progress=kill_all)
    assert killed
    assert any(one.report["resumed_at"] for one in made)
    weights = {one.arm: digest_of_weights(one) for one in made}
    alone = replace(chain, settings=chain.settings.model_copy(update={"threads": 1}))
    for one in made:
        shutil.rmtree(Path(one.checkpoint).parent)
        _, undisturbed = train_arm(alone, one.arm, overrides=long)
        assert undisturbed.report["resumed_at"] == 0
        assert digest_of_weights(undisturbed) == weights[one.arm], "bit for bit"


def digest_of_weights(made: Trained) -> str:
    return str(storage.read_json(f"{made.checkpoint}.success.json")["sha256"]["model.safetensors"])


def test_sigterm_saves_a_checkpoint(chain: Chain) -> None:
    def stop(training: Training, step: int, numbers: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        train_side_by_side(
            chain, [("clip", 0), ("veclip", 0)], overrides={**OVERRIDES, "steps": 3000}, on_progress=stop
        )
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    saved = [Path(file).name for file in (Path(chain.root) / chain.source / "train").rglob("*.success.json")]
    steps = [int("".join(char for char in name if char.isdigit())) for name in saved]
    assert any(step % Runtime().checkpoint_every_steps for step in steps), (
        f"saved at the signal, not by the clock: {saved}"
    )


def test_what_fails_is_named_and_the_rest_is_kept(chain: Chain) -> None:
    recipe, manifest = recipe_of(chain, "vec_only", 0, OVERRIDES), manifest_table(chain, "vec_only", {"vec": 1.0})[0]
    folder = Path(chain.root) / chain.source / "train" / training_identity(recipe, manifest)[:16]
    train(recipe_of(chain, "clip", 7, OVERRIDES), manifest, folder)
    with pytest.raises(TrainingsFailed, match=r"1 of 2 trainings failed \(vec_only seed 0: .*holds another training"):
        train_side_by_side(chain, [("vec_only", 0), ("clip", 0)], overrides=OVERRIDES)
    assert trained(chain, "clip").report["steps"] == TINY.steps


def test_an_unknown_arm_is_refused_with_the_list(chain: Chain) -> None:
    with pytest.raises(UnknownArm, match=r"no arm 'veclp'; there are clip, veclip, control"):
        train_side_by_side(chain, [("clip", 0), ("veclp", 0)], overrides=OVERRIDES)
    assert not (Path(chain.root) / chain.source / "train").exists()


def test_a_missing_manifest_is_said_before_anything_is_begun(chain: Chain) -> None:
    storage.delete(storage.join(chain.root, chain.source, "mix", "current", "sample-control.json"))
    with pytest.raises(NotMadeYet, match="--select manifest_control_sample"):
        train_side_by_side(chain, [("clip", 0), ("control", 0)], overrides=OVERRIDES)
    assert not (Path(chain.root) / chain.source / "train").exists()
