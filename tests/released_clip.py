"""A stand-in for the released checkpoints: random weights in their format, their names and layout, with tiny widths.

What it says about pictures and texts is noise: it shows that a file of that kind is read as it should be.
"""

import json
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

WORDS = (
    "a photo of a cat", "a photo of two dogs", "a red circle on a white ground", "the blue square number 7",
    "the black triangle drawn by hand", "green and purple crosses, 12 of them", "a drawing of a brown house",
)  # fmt: skip
NAME = "veclip_b16_3m"


@lru_cache(maxsize=1)
def pieces() -> tuple[tuple[str, float], ...]:
    """A small vocabulary with T5's first three marks, trained here."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([*WORDS] * 4, trainer)
    return tuple((piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"])


def write_t5(folder: Path) -> Path:
    """The tokenizer's folder, as `t5-base` has its files."""
    from transformers import T5Tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    T5Tokenizer(vocab=list(pieces()), extra_ids=10).save_pretrained(folder)
    return folder


def write_folder(folder: Path, *, eos_token_id: int = 1, seed: int = 0, **vision: Any) -> Path:
    """`config.json` and `model.safetensors` of a `CLIPModel`, as the release has them: nothing else."""
    from transformers import CLIPConfig, CLIPModel

    common = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "hidden_act": "gelu", "layer_norm_eps": 1e-5,
    }  # fmt: skip
    text = {**common, "vocab_size": 128, "max_position_embeddings": 32}
    text |= {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": eos_token_id}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(
            CLIPConfig(
                text_config=text,
                vision_config={**common, "image_size": 32, "patch_size": 8, **vision},
                projection_dim=16,
            )
        )
        for parameter in model.parameters():  # the usual start is so small that all embeddings look alike
            if parameter.ndim > 1:
                parameter.data.normal_(std=0.3)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder


def write_zip(path: Path, folder: Path, name: str = NAME) -> Path:
    """Packed as the release is: one folder, named like the zip."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.mkdir(name)
        for file in sorted(folder.iterdir(), reverse=True):
            zipped.write(file, f"{name}/{file.name}")
    return path
