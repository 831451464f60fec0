"""The loop, its checkpoints and what comes out of them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.encodings import assert_encoded_as_open_clip_does
from tests.unit.training_world import COLOURS, TINY, draw, write_world
from veclip_core.training import checkpoint as checkpoints
from veclip_core.training.export import export_open_clip, load_for_evaluation
from veclip_core.training.loop import TrainingDiverged, learning_rate_at, train
from veclip_core.training.manifest_table import ManifestTable, load_manifest
from veclip_core.training.model import architecture, build_model
from veclip_core.training.recipe import ALT_TEXT_ONLY, SAMPLE
from veclip_core.training.report import Runtime, TrainReport


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> ManifestTable:
    return load_manifest(*write_world(tmp_path_factory.mktemp("source"), 96))


@pytest.fixture(scope="module")
def trained(manifest: ManifestTable, tmp_path_factory: pytest.TempPathFactory) -> TrainReport:
    folder = tmp_path_factory.mktemp("trained")
    recipe = TINY.model_copy(update={"steps": 60, "batch_size": 32, "learning_rate": 3e-3, "warmup_steps": 6})
    runtime = Runtime(cache_folder=folder / "cache", threads=1, log_every_steps=10, checkpoint_every_steps=25)
    return train(recipe, manifest, folder / "run", runtime=runtime)


def test_it_learns_what_the_captions_say(trained: TrainReport) -> None:
    """Colours of drawings it never saw; chance is one in eight."""
    model = load_for_evaluation(trained.checkpoint)
    pictures = [draw(colour, "circle", 10_000 + seed) for colour in COLOURS for seed in range(4)]
    similarity = model.encode_image(pictures) @ model.encode_text([f"{colour} circle" for colour in COLOURS]).T
    truth = np.repeat(np.arange(8), 4)
    assert (similarity.argmax(1) == truth).mean() > 0.4
    assert trained.final_loss < trained.history[0]["loss"] - 0.5


def test_the_report_adds_up(trained: TrainReport) -> None:
    assert (trained.steps, trained.samples, trained.batch_size) == (60, 60 * 32, 32)
    assert sum(trained.choices.values()) == trained.samples
    assert set(trained.choices) == {"alt", "vecap"}
    assert [entry["step"] for entry in trained.history] == [10, 20, 30, 40, 50, 60]
    assert trained.samples_per_s == pytest.approx(trained.samples / trained.seconds)
    assert trained.precision == "fp32"
    assert {"loss", "lr", "grad_norm", "logit_scale", "samples_per_s"} <= set(trained.history[0])


def test_only_the_last_checkpoints_stay_and_a_second_start_does_nothing(
    trained: TrainReport, manifest: ManifestTable
) -> None:
    folder = Path(trained.checkpoint).parent
    assert [one.step for one in checkpoints.list_checkpoints(str(folder))] == [50, 60]
    assert sorted(path.name for path in folder.glob("step-*")) == [
        "step-000050",
        "step-000050.success.json",
        "step-000060",
        "step-000060.success.json",
    ]
    recipe = load_for_evaluation(folder).recipe
    again = train(recipe, manifest, folder, on_progress=lambda step, metrics: pytest.fail("trained again"))
    assert again.resumed_at == 60
    assert again.history == trained.history


def test_another_training_in_the_same_folder_is_refused(trained: TrainReport, manifest: ManifestTable) -> None:
    with pytest.raises(ValueError, match="holds another training"):
        train(TINY, manifest, Path(trained.checkpoint).parent)


def test_a_damaged_checkpoint_is_named(trained: TrainReport, manifest: ManifestTable, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(Path(trained.checkpoint).parent, tmp_path / "run")
    weights = folder / "step-000060" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + b"damaged!")
    with pytest.raises(checkpoints.DamagedCheckpoint, match=r"step-000060/model.safetensors is damaged. Delete "):
        load_for_evaluation(folder)


def test_all_arms_start_from_the_same_weights() -> None:
    description = architecture(TINY, vocab_size=50)
    before = torch.random.get_rng_state()
    first, again, other = (build_model(description, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["token_embedding.weight"], other["token_embedding.weight"])


def test_the_sample_model_has_the_size_it_is_said_to_have() -> None:
    model = build_model(architecture(SAMPLE, vocab_size=5_000))
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(3.3e6, rel=0.05)
    with pytest.raises(ValueError, match="unknown model"):
        architecture(SAMPLE.model_copy(update={"model": "ViT-Z-99"}), 100)


def test_the_learning_rate_warms_up_and_follows_open_clips_cosine() -> None:
    from open_clip_train.scheduler import cosine_lr

    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=1.0)
    reference = cosine_lr(optimizer, SAMPLE.learning_rate, SAMPLE.warmup_steps, SAMPLE.steps)
    for step in range(SAMPLE.steps):
        assert learning_rate_at(SAMPLE, step) == pytest.approx(float(reference(step)), abs=1e-12)


def test_one_step_is_the_reference_step(manifest: ManifestTable, tmp_path: Path) -> None:
    """The first loss equals the cross-entropy computed by hand from the initial weights."""
    from veclip_core.training.data import Batches, tokenizer_for
    from veclip_core.training.model import normalised
    from veclip_core.training.pictures import StreamedPictures

    recipe = TINY.model_copy(update={"steps": 1})
    report = train(recipe, manifest, tmp_path, runtime=Runtime(threads=1))
    tokenizer = tokenizer_for(recipe, manifest)
    batch = Batches.of(manifest, StreamedPictures(manifest, 36, "pad"), tokenizer, recipe).at(0)
    model = build_model(architecture(recipe, tokenizer.vocab_size), recipe.seed).train()
    images, texts, scale = model(normalised(batch.images_BCHW), batch.tokens_BL)
    logits_BB = scale * images @ texts.T
    target = torch.arange(16)
    by_hand = (
        torch.nn.functional.cross_entropy(logits_BB, target) + torch.nn.functional.cross_entropy(logits_BB.T, target)
    ) / 2
    assert report.final_loss == pytest.approx(by_hand.item(), abs=1e-5)


@pytest.mark.parametrize("count", [1, 3, 4, 50])
def test_texts_encoded_by_length_are_open_clips(count: int) -> None:
    """Values and gradients: leaving the padding out changes nothing but the time."""
    model = build_model(architecture(TINY, vocab_size=60), seed=1).double()
    random = np.random.default_rng(count)
    tokens_BL = torch.zeros(count, TINY.context_length, dtype=torch.int64)
    for row, length in zip(tokens_BL, random.integers(0, TINY.context_length - 1, count), strict=True):
        row[: length + 2] = torch.tensor([58, *random.integers(1, 58, length), 59])
    assert_encoded_as_open_clip_does(model, tokens_BL, random)


def test_a_loss_that_is_no_number_stops_with_the_reason(manifest: ManifestTable, tmp_path: Path) -> None:
    recipe = TINY.model_copy(update={"learning_rate": 1e18, "clip_norm": None, "warmup_steps": 0})
    with pytest.raises(TrainingDiverged, match=r"step 2: loss nan, gradient norm nan, .* learning rate 9.83e\+17"):
        train(recipe, manifest, tmp_path, runtime=Runtime(threads=1, checkpoint_every_steps=0))
    assert checkpoints.latest(str(tmp_path)) is None


def test_fewer_rows_than_a_batch_are_trained_on(tmp_path: Path) -> None:
    manifest = load_manifest(*write_world(tmp_path / "source", 6))
    recipe = TINY.model_copy(update={"steps": 3, "weights": ALT_TEXT_ONLY})
    report = train(recipe, manifest, tmp_path / "run", runtime=Runtime(threads=1))
    assert (report.batch_size, report.samples) == (6, 18)
    assert math.isfinite(report.final_loss)


def test_a_batch_of_identical_captions_teaches_nothing_and_breaks_nothing(tmp_path: Path) -> None:
    manifest = load_manifest(*write_world(tmp_path / "source", 48))
    table = manifest.table.set_column(manifest.table.column_names.index("alt"), "alt", [["a picture"] * len(manifest)])
    same = ManifestTable(manifest.source_uri, table, manifest.digest)
    recipe = TINY.model_copy(update={"weights": ALT_TEXT_ONLY})
    report = train(recipe, same, tmp_path / "run", runtime=Runtime(threads=1, log_every_steps=1))
    # Texts that are all one say nothing of which picture they belong to: each picture's choice is chance.
    assert all(entry["loss"] >= math.log(16) - 1e-4 for entry in report.history)
    assert math.isfinite(report.final_loss)


def test_no_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    for missing in (tmp_path, tmp_path / "step-000010"):
        with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
            load_for_evaluation(missing)


def test_embeddings_are_unit_rows_whatever_the_batch(trained: TrainReport) -> None:
    model = load_for_evaluation(trained.checkpoint)
    pictures = [draw("red", "circle", seed) for seed in range(3)]
    images_ND, texts_ND = model.encode_image(pictures), model.encode_text(["red circle", "a blue square, 7"])
    for rows in (images_ND, texts_ND):
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    batch = torch.stack([model.preprocess(picture) for picture in pictures])
    np.testing.assert_allclose(model.encode_image(batch), images_ND, atol=1e-6)
    np.testing.assert_allclose(model.encode_image(pictures[1:2]), images_ND[1:2], atol=1e-5)
    assert model.encode_text([]).shape == (0, 192)


def test_open_clip_loads_the_export(trained: TrainReport, tmp_path: Path) -> None:
    """By open_clip's own factory and tokenizer, both ways it offers; embeddings agree with ours."""
    import open_clip

    model = load_for_evaluation(trained.checkpoint)
    folder = export_open_clip(trained.checkpoint, tmp_path / "export", name="veclip-test")
    open_clip.add_model_config(folder / "configs")
    by_name = open_clip.create_model("veclip-test", pretrained=str(folder / "open_clip_model.safetensors"))
    by_folder, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    texts = ["red circle", "the blue square number 7 drawn on a white ground"]
    tokenizer = open_clip.get_tokenizer("veclip-test")
    picture = draw("green", "square", 5)
    for loaded in (by_name.eval(), by_folder.eval()):
        with torch.inference_mode():
            texts_ND = loaded.encode_text(tokenizer(texts), normalize=True).numpy()
            images_ND = loaded.encode_image(model.preprocess(picture)[None], normalize=True).numpy()
            assert loaded.encode_image(preprocess(picture)[None]).shape == (1, 192)
        np.testing.assert_allclose(texts_ND, model.encode_text(texts), atol=1e-5)
        np.testing.assert_allclose(images_ND, model.encode_image([picture]), atol=1e-5)
    assert json.loads((folder / "configs" / "veclip-test.json").read_text())["text_cfg"]["vocab_size"] == 49_408
