"""The CLIP scorer against the model's own forward pass."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from veclip_core.captioning.engines.weights import WeightsMissing
from veclip_core.captioning.similarity import BATCH, ClipScorer


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of random weights in transformers' own format, its tokenizer spelling words letter by letter."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz,"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(str(folder), model_max_length=32)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(tokens), "max_position_embeddings": 32, "eos_token_id": len(tokens) - 1}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def test_cosines_are_the_models_own(tiny_clip: Path):
    from transformers import CLIPModel, CLIPProcessor

    count = BATCH + 3  # more than a batch
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)) for _ in range(count)]
    texts = ["a" * (number % 7 + 1) + " cat" for number in range(count)]
    long = ["many words of an alt text " * 20] * count
    found = ClipScorer(str(tiny_clip)).cosines(images, {"AltText": texts, "VeCap": long})
    assert {name: len(values) for name, values in found.items()} == {"AltText": count, "VeCap": count}
    model, processor = CLIPModel.from_pretrained(tiny_clip).eval(), CLIPProcessor.from_pretrained(tiny_clip)
    with torch.inference_mode():
        out = model(**processor(text=texts, images=images, return_tensors="pt", padding=True))
        expected = (out.logits_per_image / model.logit_scale.exp()).diagonal().tolist()
    assert found["AltText"] == pytest.approx(expected, abs=1e-4)
    assert np.std(expected) > 1e-3, "all the same would prove nothing"


def test_a_model_that_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(WeightsMissing):
        ClipScorer(str(tmp_path / "nowhere"))
