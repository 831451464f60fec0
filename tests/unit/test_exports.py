"""Exported checkpoints, loaded by plain transformers and plain open_clip in a process of their own."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.released_clip import NAME, WORDS, write_folder, write_t5, write_zip
from tests.unit.saved_checkpoints import shaped_like, write_checkpoint
from tests.unit.training_world import TINY
from veclip_core.cli import app
from veclip_core.training import checkpoint as checkpoints
from veclip_core.training.export import export_hf, export_open_clip, load_for_evaluation
from veclip_core.training.model import architecture
from veclip_core.training.recipe import Recipe
from veclip_core.training.texts import BpeTokenizer, SampleTokenizer, T5Tokenizer, Tokenizer
from veclip_core.training.transformers_clip import NotInTransformers

TEXTS = [
    "a photo of a cat",
    "The Red circle, 7!",
    "a drawing of a brown house on a white ground and much more than fits",
]
B16 = TINY.model_copy(
    update={"model": "ViT-B-16", "image_size": 224, "cache_size": 256, "fit": "crop", "tokenizer": "bpe"}
)
H14 = B16.model_copy(update={"model": "ViT-H-14", "image_size": 336, "cache_size": 384})

# Only the plug-in that lets PyPI's torchvision load beside a CPU build of torch may be ours: torch imports it by itself.
PREAMBLE = """
import json, sys
from pathlib import Path
import numpy as np, torch
def done(found):
    ours = {name for name in sys.modules if name.partition(".")[0] in ("veclip_core", "veclip_dagster")}
    assert ours <= {"veclip_core", "veclip_core.torchvision_on_cpu"}, ours
    np.savez(sys.argv[2], **found)
given = {path.stem: path for path in Path(sys.argv[1]).iterdir() if path.is_dir()}
texts = json.loads((Path(sys.argv[1]) / "texts.json").read_text())
pixels = {name: torch.from_numpy(np.load(path.with_suffix(".npy"))) for name, path in given.items()}
found = {}
"""
TRANSFORMERS = """
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, CLIPModel
for name, folder in given.items():
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(texts, return_tensors="pt", padding=True, truncation=True)
    with torch.inference_mode():
        found[name] = model(**inputs, pixel_values=pixels[name]).logits_per_image.numpy()
    picture = Image.new("RGB", (400, 300), "red")
    both = AutoProcessor.from_pretrained(folder)(text=texts, images=picture, return_tensors="pt", padding=True, truncation=True)
    assert both["pixel_values"].shape[1:] == pixels[name].shape[1:], both["pixel_values"].shape
    assert both["input_ids"].tolist() == inputs["input_ids"].tolist()
done(found)
"""
OPEN_CLIP = """
import open_clip
from PIL import Image
for name, folder in given.items():
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    with torch.inference_mode():
        found[name] = model.eval().get_logits(pixels[name], tokens)[0].numpy()
    assert preprocess(Image.new("RGB", (40, 30), "red")).shape == pixels[name].shape[1:]
done(found)
"""


@dataclass(frozen=True)
class Saved:
    """A checkpoint of random weights, and what its model says about two pictures and the texts."""

    uri: str
    pixels: np.ndarray
    logits: np.ndarray


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> T5Tokenizer:
    return T5Tokenizer.load(TINY.context_length, str(write_t5(tmp_path_factory.mktemp("t5"))))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, t5: T5Tokenizer) -> dict[str, Saved]:
    whole = BpeTokenizer(TINY.context_length)
    in_use = SampleTokenizer.of_texts([*WORDS, *TEXTS], TINY.context_length)
    made: dict[str, tuple[Recipe, dict[str, Any], Tokenizer]] = {
        "sample": (TINY, architecture(TINY, in_use.vocab_size), in_use),
        "b16": (B16, shaped_like("ViT-B-16", B16, whole.vocab_size), whole),
    }
    of_t5 = {"h14-336-t5": {"tokenizer": "t5"}, "b16-t5-siglip": {"tokenizer": "t5", "loss": "siglip"}}
    for name, fields in of_t5.items():
        recipe = (H14 if name.startswith("h14") else B16).model_copy(update=fields)
        made[name] = (recipe, shaped_like(recipe.model, recipe, t5.vocab_size), t5)
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: _saved(write_checkpoint(root / name, *parts), *parts[::2]) for name, parts in made.items()}


def _saved(uri: str, recipe: Recipe, tokenizer: Tokenizer) -> Saved:
    model = load_for_evaluation(uri).model
    pixels = np.random.default_rng(1).normal(size=(2, 3, recipe.image_size, recipe.image_size)).astype(np.float32)
    with torch.inference_mode():
        logits = model.get_logits(torch.from_numpy(pixels), tokenizer(TEXTS))[0].numpy()
    assert np.std(logits) > 0.1, "all the same would prove nothing"
    return Saved(uri, pixels, logits)


def loaded_by(code: str, exports: Path, saved: dict[str, Saved]) -> dict[str, np.ndarray]:
    """What a process without this package finds in each folder of `exports`."""
    (exports / "texts.json").write_text(json.dumps(TEXTS))
    for name, one in saved.items():
        np.save(exports / f"{name}.npy", one.pixels)
    found = exports / "found.npz"
    foreign = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", PREAMBLE + code, str(exports), str(found)],
        cwd=exports, env={**foreign, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(found))


def test_plain_transformers_finds_the_same_logits(saved: dict[str, Saved], tmp_path: Path) -> None:
    exported = {name: saved[name] for name in ("b16", "h14-336-t5")}
    for name, one in exported.items():
        assert export_hf(one.uri, tmp_path / name) == tmp_path / name
        assert not list((tmp_path / name).glob(".*")), "no scratch is left"
    found = loaded_by(TRANSFORMERS, tmp_path, exported)
    for name, one in exported.items():
        np.testing.assert_allclose(found[name], one.logits, atol=1e-5, err_msg=name)


def test_plain_open_clip_finds_the_same_logits(saved: dict[str, Saved], tmp_path: Path) -> None:
    """SigLIP's bias included."""
    for name, one in saved.items():
        export_open_clip(one.uri, tmp_path / name)
    found = loaded_by(OPEN_CLIP, tmp_path, saved)
    for name, one in saved.items():
        np.testing.assert_allclose(found[name], one.logits, atol=1e-5, err_msg=name)


def test_an_export_comes_back_as_a_network(saved: dict[str, Saved], tmp_path: Path) -> None:
    """Through the loader that evaluation and the filtering network use; texts agree with the trained model's."""
    from veclip_core.networks import network_config, open_network

    for name, export, kind in (("b16", export_hf, "huggingface"), ("h14-336-t5", export_open_clip, "open_clip")):
        folder = export(saved[name].uri, tmp_path / name)
        config = network_config(str(folder), str(tmp_path))
        assert config.kind == kind
        ours = load_for_evaluation(saved[name].uri).encode_text(TEXTS)
        np.testing.assert_allclose(open_network(config).encode_text(TEXTS), ours, atol=1e-5)


def test_what_transformers_has_no_model_for_is_refused(saved: dict[str, Saved], tmp_path: Path) -> None:
    for name, lacking in (("sample", "a ModifiedResNet"), ("b16-t5-siglip", "init_logit_bias")):
        with pytest.raises(NotInTransformers, match=f"has no {lacking}.*export_open_clip"):
            export_hf(saved[name].uri, tmp_path / name)
        assert not (tmp_path / name / "config.json").exists()


def test_the_card_says_what_is_known(saved: dict[str, Saved], tmp_path: Path) -> None:
    note = "The captions were made by a stand-in."
    row = {
        "model": "veclip",
        "metric": "mean_recall",
        "split": "all",
        "value": 12.345,
        "low": 11.0,
        "high": 13.0,
        "chance": 1.0,
    }
    export_open_clip(saved["sample"].uri, tmp_path, results=[row], notes=[note])
    card = (tmp_path / "README.md").read_text()
    for fact in (
        "library_name: open_clip", note, "`sample-rn` is a small stand-in", "ab" * 32, "1d" * 32, "7 of 12 steps",
        "alt 60, vecap 52", "| learning_rate | `0.001` |", "| mean_recall | 12.35 | 11.00 to 13.00 | 1.00 |",
        "not one of the paper's own",
    ):  # fmt: skip
        assert fact in card
    assert "license" not in card.lower().replace("licence", "")


def test_the_command_exports_and_shows(
    saved: dict[str, Saved], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECLIP_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("VECLIP_T5_TOKENIZER", str(write_t5(tmp_path / "t5")))
    run = CliRunner().invoke
    report = tmp_path / "results.json"
    row = {
        "model": "veclip",
        "metric": "mean_rank",
        "split": "all",
        "value": 3.0,
        "low": 2.0,
        "high": 4.0,
        "chance": 50.0,
    }
    trainings = [{"model": "veclip", "seed": 0, "checkpoint": saved["b16"].uri}]
    report.write_text(json.dumps({"trainings": trainings, "summary": [row, {**row, "model": "clip", "value": 9.0}]}))
    training = saved["b16"].uri.rpartition("/")[0]
    made = run(
        app, ["checkpoint", "export", training, str(tmp_path / "hf"), "--results", str(report), "--note", "A note."]
    )
    assert made.exit_code == 0, made.output
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "| mean_rank | 3.00 |" in card
    assert "9.00" not in card
    assert "A note." in card
    assert (tmp_path / "hf" / "model.safetensors").exists()
    shown = run(app, ["checkpoint", "show", training])
    assert "ViT-B-16: pictures of 224 px" in shown.output
    assert "bpe, 49,408 tokens, 12 of a text" in shown.output
    archive = write_zip(tmp_path / f"{NAME}.zip", write_folder(tmp_path / "stand-in"))
    released = run(app, ["checkpoint", "show", str(archive)])
    assert released.exit_code == 0, released.output
    assert "bilinear without antialiasing" in released.output
    assert "no: projection_dim: 16, described 512" in released.output, "the stand-in is not passed off for the real one"
    assert "CLIPModel" in run(app, ["checkpoint", "show", str(tmp_path / "hf")]).output
    missing = run(app, ["checkpoint", "export", str(tmp_path), str(tmp_path / "no")])
    assert "no finished checkpoint" in str(missing.exception)
    other = run(app, ["checkpoint", "export", saved["sample"].uri, str(tmp_path / "no"), "--results", str(report)])
    assert "the report is not about" in str(other.exception)


def test_an_export_to_a_bucket_is_whole(saved: dict[str, Saved], tmp_path: Path) -> None:
    from veclip_core import storage

    export_open_clip(saved["sample"].uri, "memory://exports/sample")
    assert "open_clip_config.json" in storage.list_files("memory://exports/sample")
    assert checkpoints.find(saved["sample"].uri).step == 7
