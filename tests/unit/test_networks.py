"""CLIP models of each format against their own library's forward pass."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.unit.clip_models import write_huggingface_clip, write_open_clip, write_siglip
from tests.unit.training_world import TINY, write_world
from veclip_core.captioning.engines.weights import WeightsMissing
from veclip_core.networks import BATCH, cosines, network_config, open_network
from veclip_core.training.export import load_for_evaluation
from veclip_core.training.loop import train
from veclip_core.training.manifest_table import load_manifest

COUNT = BATCH + 3  # more than a batch
TEXTS = ["a" * (number % 7 + 1) + " cat" for number in range(COUNT)]


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)) for _ in range(COUNT)]


def of_transformers(folder: Path, pictures: list[Image.Image]) -> list[float]:
    from transformers import CLIPModel, CLIPProcessor

    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    with torch.inference_mode():
        out = model(**processor(text=TEXTS, images=pictures, return_tensors="pt", padding=True))
        return list((out.logits_per_image / model.logit_scale.exp()).diagonal().tolist())


def of_open_clip(folder: Path, pictures: list[Image.Image]) -> list[float]:
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    with torch.inference_mode():
        image, text, _ = model.eval()(torch.stack([preprocess(picture) for picture in pictures]), tokens)
    return list((image * text).sum(dim=-1).tolist())


@pytest.mark.parametrize(
    ("kind", "write", "expected"),
    [("huggingface", write_huggingface_clip, of_transformers), ("open_clip", write_open_clip, of_open_clip)],
)
def test_cosines_are_the_models_own(
    tmp_path: Path,
    pictures: list[Image.Image],
    kind: str,
    write: Callable[[Path], Path],
    expected: Callable[[Path, list[Image.Image]], list[float]],
) -> None:
    folder = write(tmp_path / "model")
    config = network_config(str(folder), str(tmp_path))
    long = ["many words of an alt text " * 20] * COUNT
    found = cosines(open_network(config), pictures, {"AltText": TEXTS, "VeCap": long})
    assert config.kind == kind
    assert {name: len(values) for name, values in found.items()} == {"AltText": COUNT, "VeCap": COUNT}
    own = expected(folder, pictures)
    assert found["AltText"] == pytest.approx(own, abs=1e-4)
    assert np.std(own) > 1e-3, "all the same would prove nothing"


@pytest.mark.parametrize(
    ("write", "mark"), [(write_huggingface_clip, "<|endoftext|>"), (write_open_clip, "<end_of_text>")]
)
def test_nothing_hides_behind_a_tokenizers_own_mark(tmp_path: Path, write: Callable[[Path], Path], mark: str) -> None:
    network = open_network(network_config(str(write(tmp_path / "model")), str(tmp_path)))
    alone, hidden, open_ = network.encode_text(["cat", f"cat {mark} dog", "cat dog"])
    assert not np.allclose(alone, hidden, atol=1e-4)
    assert np.allclose(hidden, open_, atol=1e-5)


def test_a_text_is_embedded_the_same_in_any_company(tmp_path: Path) -> None:
    for write in (write_huggingface_clip, write_siglip):
        network = open_network(network_config(str(write(tmp_path / write.__name__)), str(tmp_path)))
        alone, among = network.encode_text(["cat"]), network.encode_text(["cat", "a very long text of many words"])
        assert np.allclose(alone[0], among[0], atol=1e-5)


def test_a_checkpoint_of_ours_is_a_network(tmp_path: Path, pictures: list[Image.Image]) -> None:
    source, paths = write_world(tmp_path / "data", count=32)
    made = train(TINY.model_copy(update={"steps": 2}), load_manifest(source, paths), tmp_path / "run")
    config = network_config(made.checkpoint, str(tmp_path))
    assert config.kind == "checkpoint"
    found = open_network(config).encode_image(pictures)
    assert np.array_equal(found, load_for_evaluation(made.checkpoint).encode_image(pictures))
    assert np.linalg.norm(found, axis=1) == pytest.approx(1.0, abs=1e-5)


def test_other_weights_in_the_same_place_are_another_network(tmp_path: Path) -> None:
    folder = write_open_clip(tmp_path / "model")
    before = network_config(str(folder), str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    moved = folder.rename(tmp_path / "elsewhere" / "model")
    assert network_config(str(moved), str(tmp_path)).identity() == before.identity()
    weights = moved / "open_clip_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert network_config(str(moved), str(tmp_path)).identity() != before.identity()


@pytest.mark.parametrize("name", ["nowhere", "/no/such/folder", "a/b/c"])
def test_a_model_that_is_not_there_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsMissing, match="folder"):
        network_config(name, str(tmp_path))


def test_a_folder_without_a_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match="no CLIP model"):
        network_config(str(tmp_path), str(tmp_path))


def test_damaged_weights_are_said(tmp_path: Path) -> None:
    folder = write_open_clip(tmp_path / "model")
    weights = folder / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(WeightsMissing, match="can't be loaded"):
        open_network(network_config(str(folder), str(tmp_path)))
