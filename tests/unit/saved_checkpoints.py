"""Finished checkpoints of random weights, without a training: for what is done with a checkpoint afterwards."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from veclip_core.training.model import architecture, build_model
from veclip_core.training.recipe import Recipe
from veclip_core.training.texts import Tokenizer


def shaped_like(name: str, recipe: Recipe, vocab_size: int) -> dict[str, Any]:
    """The description of a released model, with its patches, pictures and head width but of few and narrow layers."""
    description = architecture(recipe.model_copy(update={"model": name}), vocab_size)
    head = description["vision_cfg"].get("head_width", 64)
    description["vision_cfg"].update(width=2 * head, layers=2)
    description["text_cfg"].update(width=128, heads=2, layers=2)
    return {**description, "embed_dim": 96}


def write_checkpoint(folder: Path, recipe: Recipe, description: dict[str, Any], tokenizer: Tokenizer) -> str:
    """The uri of `folder/step-000007`."""
    model = build_model(description, seed=3)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)  # biases and norms too: a wrong one must show
    step = folder / "step-000007"
    step.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, step / "model.safetensors")
    state = {
        "identity": "1d" * 32, "recipe": recipe.model_dump(mode="json"), "manifest_digest": "ab" * 32, "model": description,
        "tokenizer": tokenizer.to_json(), "batch_size": recipe.batch_size, "precision": "fp32", "device": "cpu", "threads": 1,
        "torch": torch.__version__, "parameters": sum(one.numel() for one in model.parameters()),
        "vocab_size": tokenizer.vocab_size,
        "done": {"step": 7, "samples": 112, "seconds": 1.5, "fallbacks": 2, "choices": {"alt": 60, "vecap": 52},
                 "history": [{"step": 7, "loss": 2.5}], "interval_losses": [], "run_id": None},
    }  # fmt: skip
    (step / "state.json").write_text(json.dumps(state))
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in step.iterdir()}
    (folder / "step-000007.success.json").write_text(json.dumps({"step": 7, "sha256": digests}))
    return str(step)
