"""One step's gradient is the same in however many pieces it is computed; averages, fp16's scale and the guards."""

import dataclasses
import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.training_world import TINY, VIT, register_vit, write_world
from veclip_core import storage
from veclip_core.training import checkpoint as checkpoints
from veclip_core.training.checkpoint import OtherFormat, digest_of_file
from veclip_core.training.data import Batch, Batches, tokenizer_for
from veclip_core.training.export import load_for_evaluation
from veclip_core.training.guards import TrainingDiverged, refuse_divergence
from veclip_core.training.learner import CannotTrainSo, Learner
from veclip_core.training.loop import learning_rate_at, train
from veclip_core.training.manifest_table import ManifestTable, load_manifest
from veclip_core.training.model import architecture
from veclip_core.training.modules import SharedBatchNorm, share_batch_norms
from veclip_core.training.pictures import StreamedPictures
from veclip_core.training.recipe import SAMPLE, Recipe
from veclip_core.training.report import Runtime
from veclip_core.training.world import World

QUIET = Runtime(threads=1, log_every_steps=1, checkpoint_every_steps=0, device="cpu", progress_bar=False)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> ManifestTable:
    folder = tmp_path_factory.mktemp("source")
    register_vit(folder)
    return load_manifest(*write_world(folder / "world", 48))


def learner_of(recipe: Recipe, manifest: ManifestTable, **runtime: Any) -> tuple[Learner, Batch]:
    """With its initial weights, and its first batch."""
    tokenizer = tokenizer_for(recipe, manifest)
    batches = Batches.of(manifest, StreamedPictures(manifest, recipe.cache_size, recipe.fit), tokenizer, recipe)
    description = architecture(recipe, tokenizer.vocab_size)
    settings = dataclasses.replace(QUIET, **runtime)
    learner = Learner.of(recipe, settings, World.alone("cpu"), description, recipe.precision, batches.plan.batch_size)
    return learner, batches.at(0)


def gradients(learner: Learner, batch: Batch) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    measured = learner.gradient(batch, 1e-3)
    return measured, {name: one.grad.clone() for name, one in learner.model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize(
    "pieces",
    [{"micro_batch": 2}, {"micro_batch": 5}, {"checkpoint_activations": True}, {"micro_batch": 4, "checkpoint_activations": True}],
)  # fmt: skip
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_the_gradient_does_not_depend_on_its_pieces(
    manifest: ManifestTable, pieces: dict[str, Any], accumulation_steps: int
) -> None:
    recipe = VIT.model_copy(update={"accumulation_steps": accumulation_steps, "clip_norm": None})
    whole, expected = gradients(*learner_of(recipe, manifest))
    measured, found = gradients(*learner_of(recipe, manifest, **pieces))
    assert measured["loss"] == pytest.approx(whole["loss"], abs=1e-6)
    assert found.keys() == expected.keys()
    assert found["logit_scale"].abs() > 1e-3
    for name, one in found.items():
        torch.testing.assert_close(
            one, expected[name], atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.slow
def test_compiled_the_gradient_is_the_same_but_for_rounding(tmp_path: Path) -> None:
    """In a process of its own: engines of other tests set torch's compiler for theirs."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as own:
        own.submit(compare_compiled, tmp_path).result()


def compare_compiled(folder: Path) -> None:
    """Fused kernels round otherwise."""
    register_vit(folder)
    manifest = load_manifest(*write_world(folder / "world", 48))
    recipe = VIT.model_copy(update={"clip_norm": None})
    whole, expected = gradients(*learner_of(recipe, manifest))
    measured, found = gradients(*learner_of(recipe, manifest, compile=True, micro_batch=4))
    assert measured["loss"] == pytest.approx(whole["loss"], abs=1e-5)
    for name, one in found.items():
        torch.testing.assert_close(one, expected[name], atol=1e-5, rtol=1e-4)


def test_accumulated_gradients_are_the_mean_over_contrastive_batches(manifest: ManifestTable) -> None:
    """Each of half the pairs, told apart within the half alone."""
    recipe = VIT.model_copy(update={"clip_norm": None})
    learner, batch = learner_of(recipe.model_copy(update={"accumulation_steps": 2}), manifest)
    measured, found = gradients(learner, batch)
    halves = []
    for number in range(2):
        half = dataclasses.replace(
            batch, images_BCHW=batch.images_BCHW[number::2], tokens_BL=batch.tokens_BL[number::2]
        )
        halves.append(gradients(learner_of(recipe, manifest)[0], half))
    assert measured["loss"] == pytest.approx((halves[0][0]["loss"] + halves[1][0]["loss"]) / 2, abs=1e-6)
    assert measured["loss"] < math.log(8) + 1
    for name, one in found.items():
        torch.testing.assert_close(one, (halves[0][1][name] + halves[1][1][name]) / 2, atol=1e-5, rtol=0)


def test_what_cannot_be_cut_is_refused_with_what_to_change(manifest: ManifestTable) -> None:
    with pytest.raises(CannotTrainSo, match=r"sample-rn normalises over its batch.*VECLIP_TRAIN_MICRO_BATCH"):
        learner_of(TINY, manifest, micro_batch=4)
    with pytest.raises(CannotTrainSo, match="a batch of 16 can't be cut into 3 contrastive batches on 1 ranks"):
        learner_of(TINY.model_copy(update={"accumulation_steps": 3}), manifest)


def test_the_average_of_the_weights_is_what_is_evaluated(manifest: ManifestTable, tmp_path: Path) -> None:
    """Computed by hand, and also where the training was interrupted."""
    recipe = VIT.model_copy(update={"steps": 4, "ema_decay": 0.75})
    learner, _ = learner_of(recipe.model_copy(update={"ema_decay": None}), manifest)
    batches = Batches.of(manifest, StreamedPictures(manifest, 36, "pad"), tokenizer_for(recipe, manifest), recipe)
    average = {name: one.detach().clone() for name, one in learner.model.named_parameters()}
    for step in range(4):
        learner.gradient(batches.at(step), learning_rate_at(recipe, step))
        learner.update()
        average = {name: 0.75 * average[name] + 0.25 * one.detach() for name, one in learner.model.named_parameters()}

    def interrupt(step: int, _: object) -> None:
        if step == 3:
            raise InterruptedError

    every_other = dataclasses.replace(QUIET, checkpoint_every_steps=2)
    with pytest.raises(InterruptedError):
        train(recipe, manifest, tmp_path, runtime=every_other, on_progress=interrupt)
    report = train(recipe, manifest, tmp_path, runtime=every_other)
    assert report.resumed_at == 2
    found = load_for_evaluation(report.checkpoint).model.state_dict()
    assert not torch.allclose(found["token_embedding.weight"], learner.model.token_embedding.weight, atol=1e-5)
    for name, one in average.items():
        torch.testing.assert_close(found[name], one, atol=1e-6, rtol=1e-5)


def test_fp16_scales_its_loss_and_gets_over_an_overflow(manifest: ManifestTable, tmp_path: Path) -> None:
    fp32 = train(VIT, manifest, tmp_path / "fp32", runtime=QUIET)
    fp16 = train(VIT.model_copy(update={"precision": "fp16"}), manifest, tmp_path / "fp16", runtime=QUIET)
    assert fp16.precision == "fp16"
    assert [one["loss"] for one in fp16.history] == pytest.approx([one["loss"] for one in fp32.history], abs=0.05)
    state = checkpoints.find(fp16.checkpoint).state()
    assert state["loss_scaling"]["scale"] == fp16.history[-1]["loss_scale"]

    learner, batch = learner_of(VIT.model_copy(update={"precision": "fp16"}), manifest)
    assert learner.scaler is not None
    learner.set_loss_scaling({**learner.scaler.state_dict(), "scale": 2.0**40})
    before = learner.model.token_embedding.weight.detach().clone()
    measured = learner.gradient(batch, 1e-3)
    learner.update()
    assert "grad_norm" not in measured
    assert torch.equal(learner.model.token_embedding.weight, before), "a step that overflowed is not taken"
    assert learner.loss_scaling()["scale"] == 2.0**39  # type: ignore[index]


def test_worse_than_chance_for_three_intervals_is_a_divergence() -> None:
    good = {"loss": 2.0, "logit_scale": 14.0}
    bad, collapsed = {"loss": 1.6 * math.log(16), "logit_scale": 90.0}, {"loss": 2.7, "logit_scale": 1.0}
    after = [
        {"step": float(step), **one} for step, one in zip(range(3, 9), (good, bad, bad, good, bad, bad), strict=True)
    ]
    refuse_divergence(TINY, 16, after)
    for one in (bad, collapsed):
        with pytest.raises(
            TrainingDiverged, match=r"step 9: over the last 3 logged intervals .* Lower the learning rate"
        ):
            refuse_divergence(TINY, 16, [*after[:-2], *({"step": 9.0, **one} for _ in range(3))])
    warming_up = [{"step": 1.0, **bad}, {"step": 2.0, **bad}, {"step": 3.0, **bad}]
    refuse_divergence(TINY, 16, warming_up)


def test_a_diverging_training_keeps_its_last_good_checkpoint(manifest: ManifestTable, tmp_path: Path) -> None:
    recipe = TINY.model_copy(update={"learning_rate": 0.5, "steps": 200, "warmup_steps": 8, "clip_norm": None})
    every_step = dataclasses.replace(QUIET, checkpoint_every_steps=1)
    told: list[tuple[int, float]] = []
    with pytest.raises(TrainingDiverged, match="over the last 3 logged intervals"):
        train(
            recipe,
            manifest,
            tmp_path,
            runtime=every_step,
            on_progress=lambda step, now: told.append((step, now["loss"])),
        )
    last = checkpoints.latest(str(tmp_path))
    assert last is not None
    assert dict(told)[last.step] < 1.5 * math.log(16), "what diverged takes no earlier checkpoint's place"
    assert told[-1][0] < 200


def test_fields_that_came_later_do_not_change_what_older_trainings_are() -> None:
    assert SAMPLE.identity().startswith("3bf4dfa50488c15b"), "the README's tables are of this recipe"
    others = [{"accumulation_steps": 2}, {"ema_decay": 0.99}, {"accumulation_steps": 4}]
    assert len({SAMPLE.model_copy(update=one).identity() for one in ({}, *others)}) == 4


def test_a_checkpoint_of_before_is_evaluated_and_not_gone_on_from(manifest: ManifestTable, tmp_path: Path) -> None:
    """Its optimizer was one file of torch.save."""
    recipe = TINY.model_copy(update={"steps": 2})
    report = train(recipe, manifest, tmp_path, runtime=QUIET)
    folder = Path(report.checkpoint)
    for shard in (folder / "training").iterdir():
        shard.unlink()
    (folder / "training").rmdir()
    torch.save({"optimizer": {}, "rng": torch.get_rng_state()}, folder / "training.pt")
    digests = {path.name: digest_of_file(path) for path in folder.iterdir()}
    last = checkpoints.find(str(tmp_path))
    storage.write_json(last.marker, {"step": 2, "sha256": digests})
    assert load_for_evaluation(tmp_path).encode_text(["red circle"]).shape == (1, 192)
    assert train(recipe, manifest, tmp_path, runtime=QUIET).resumed_at == 2
    learner, _ = learner_of(recipe, manifest)
    with pytest.raises(OtherFormat, match=r"written by an earlier version.*delete "):
        last.read_into(learner.tensors(), World.alone("cpu"))


class Disagreeing(World):
    """The other rank found another manifest."""

    def gathered(self, value: object, group: object = None) -> list[object]:  # type: ignore[override]
        return [value, "another"]


def test_ranks_that_would_train_something_else_are_refused(manifest: ManifestTable, tmp_path: Path) -> None:
    with pytest.raises(CannotTrainSo, match="different recipes or manifests"):
        train(TINY, manifest, tmp_path, runtime=QUIET, world=Disagreeing(torch.device("cpu")))


def test_shared_norms_stay_where_and_what_they_were() -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3)).double()
    share_batch_norms(model)
    assert isinstance(model[0], SharedBatchNorm)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float64}
