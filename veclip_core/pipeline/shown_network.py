"""What a CLIP model is, in words: read from its description, not from its weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from veclip_core.captioning.engines.weights import OPEN_CLIP_FILE, checked_config
from veclip_core.pipeline.networks import network_named
from veclip_core.released_checkpoints import RELEASED, checked, is_archive
from veclip_core.settings import Settings
from veclip_core.training import checkpoint as checkpoints
from veclip_core.training.checkpoint import Checkpoint
from veclip_core.training.recipe import Recipe
from veclip_core.training.texts import tokenizer_from_json


def facts_of(name: str, settings: Settings) -> dict[str, str]:
    """`format`, `model` and what the format tells of `architecture`, `parameters`, `tokenizer`, `preprocessing`.

    Args:
        name: a checkpoint of ours or a training's folder, local or remote, or what `networks.network_config` knows.

    Raises:
        Mendable: when there is no such model, or it can't be read.
    """
    if not is_archive(name):
        try:
            return {"format": "checkpoint", "model": name} | _of_checkpoint(checkpoints.find(name))
        except FileNotFoundError:
            pass  # a model of others
    config = network_named(name, settings)
    facts = {"format": config.kind, "model": config.model, "revision": config.revision or "unknown"}
    folder = Path(config.folder) if config.folder else None
    if config.kind == "released" and folder:
        return facts | _of_released(config.model, folder)
    if config.kind == "open_clip" and folder:
        described = json.loads((folder / OPEN_CLIP_FILE).read_text())
        return facts | {part.removesuffix("_cfg"): json.dumps(value) for part, value in described.items()}
    if config.kind == "open_clip":
        return facts
    return facts | {"architecture": " ".join(checked_config(config.folder or config.model, None).architectures or [])}


def _of_checkpoint(found: Checkpoint) -> dict[str, str]:
    state = found.state()
    recipe, tokenizer = Recipe(**state["recipe"]), tokenizer_from_json(state["tokenizer"])
    return {
        "architecture": f"{recipe.model}: {_described(state['model'])}",
        "parameters": f"{state['parameters']:,}",
        "tokenizer": f"{recipe.tokenizer}, {tokenizer.vocab_size:,} tokens, {recipe.context_length} of a text",
        "preprocessing": f"{recipe.fit} to {recipe.cache_size} px, bicubic; the middle {recipe.image_size} px",
        "loss": recipe.loss,
        "steps": f"{state['done']['step']:,} of {recipe.steps:,}",
        "data": f"manifest {state['manifest_digest']}",
    }


def _of_released(name: str, folder: Path) -> dict[str, str]:
    from veclip_core.training.model import architecture
    from veclip_core.training.transformers_clip import differences, parameters_of

    config: Any = checked(folder)
    text, vision = config.text_config, config.vision_config
    facts = {
        "architecture": f"CLIPModel: pictures {vision.hidden_size} wide, {vision.num_hidden_layers} layers, patches of"
        f" {vision.patch_size} px; texts {text.hidden_size} wide, {text.num_hidden_layers} layers;"
        f" {config.projection_dim} in common",
        "parameters": f"{parameters_of(config):,}",
        "tokenizer": f"T5's, lower-cased; {text.vocab_size:,} tokens, {text.max_position_embeddings} of a text",
        "preprocessing": f"shorter side to {vision.image_size} px, bilinear without antialiasing; the middle square",
    }
    if (known := RELEASED.get(name)) is not None:
        recipe = Recipe(
            model=known.model,
            image_size=known.image_size,
            cache_size=known.image_size,
            tokenizer="t5",
            context_length=77,
        )
        differ = differences(config, architecture(recipe, text.vocab_size))
        facts["as described"] = "yes" if not differ else f"no: {'; '.join(differ)}"
    return facts


def _described(model: Mapping[str, Any]) -> str:
    vision, text = model["vision_cfg"], model["text_cfg"]
    return (
        f"pictures of {vision['image_size']} px, {vision['width']} wide, layers {vision['layers']}; texts {text['width']} wide,"
        f" {text['layers']} layers; {model['embed_dim']} in common"
    )
