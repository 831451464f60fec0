"""The same model in the words of transformers' `CLIPModel`: its configuration, its weights, and where the two differ.

The released checkpoints are in that format, so that what is exported here has their layout.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from veclip_core.mendable import Mendable
from veclip_core.training.texts import PAD

if TYPE_CHECKING:
    import torch
    from transformers import CLIPConfig, CLIPModel

EPSILON = 1e-5
"""Of every LayerNorm, open_clip's and CLIP's own."""
HEAD_WIDTH, MLP_RATIO = 64, 4.0
"""open_clip's, where a description doesn't say."""
_TOP = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
_VISION = {"image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio"}
_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pool_type", "eos_id", "pad_id"}
_COMPARED = {
    "text_config": (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "max_position_embeddings", "hidden_act", "layer_norm_eps", "eos_token_id",
    ),
    "vision_config": (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size",
        "hidden_act", "layer_norm_eps",
    ),
}  # fmt: skip


class NotInTransformers(Mendable):
    """A model that transformers' CLIPModel can't be."""


def config_of(description: Mapping[str, Any]) -> "CLIPConfig":
    """The `CLIPConfig` of an open_clip description.

    Raises:
        NotInTransformers: for a ResNet, a bias of the logits, or another part that `CLIPModel` lacks.
    """
    from transformers import CLIPConfig

    vision, text = description["vision_cfg"], description["text_cfg"]
    lacking = sorted((set(description) - _TOP) | (set(vision) - _VISION) | (set(text) - _TEXT))
    if isinstance(vision["layers"], list | tuple):
        lacking = ["a ModifiedResNet", *lacking]
    if lacking:
        raise NotInTransformers(
            f"transformers' CLIPModel has no {', '.join(lacking)}: export this model for open_clip instead"
            " (`veclip checkpoint export CHECKPOINT OUT --format open_clip`, export_open_clip)"
        )
    act = "quick_gelu" if description.get("quick_gelu") else "gelu"
    by_end = text.get("pool_type", "argmax") == "eos"
    # Of CLIP's own vocabulary the end is the last id, and transformers looks for it by its id too.
    end = text["eos_id"] if by_end else text["vocab_size"] - 1
    return CLIPConfig(
        projection_dim=description["embed_dim"],
        text_config={
            "vocab_size": text["vocab_size"],
            "hidden_size": text["width"],
            "intermediate_size": int(text["width"] * text.get("mlp_ratio", MLP_RATIO)),
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "max_position_embeddings": text["context_length"],
            "hidden_act": act,
            "layer_norm_eps": EPSILON,
            "projection_dim": description["embed_dim"],
            "pad_token_id": PAD if by_end else end,
            "bos_token_id": None if by_end else end - 1,
            "eos_token_id": end,
        },
        vision_config={
            "hidden_size": vision["width"],
            "intermediate_size": int(vision["width"] * vision.get("mlp_ratio", MLP_RATIO)),
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision.get("head_width", HEAD_WIDTH),
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "hidden_act": act,
            "layer_norm_eps": EPSILON,
            "projection_dim": description["embed_dim"],
        },
    )


def differences(config: "CLIPConfig", description: Mapping[str, Any]) -> list[str]:
    """What a `CLIPConfig` says otherwise than an open_clip description, each as `text_config.hidden_size: 512, described 768`.

    Not compared: ids of padding and begin, which no output depends on, and how weights were initialised.
    """
    described = config_of(description)
    found = []
    if config.projection_dim != described.projection_dim:
        found.append(f"projection_dim: {config.projection_dim}, described {described.projection_dim}")
    for part, names in _COMPARED.items():
        for name in names:
            theirs, ours = (getattr(getattr(one, part), name) for one in (config, described))
            if theirs != ours:
                found.append(f"{part}.{name}: {theirs}, described {ours}")
    return found


def parameters_of(config: "CLIPConfig") -> int:
    """How many a `CLIPModel` of that configuration has. Nothing is allocated."""
    return sum(parameter.numel() for parameter in _unallocated(config).parameters())


def shapes_of(config: "CLIPConfig") -> dict[str, tuple[int, ...]]:
    """The name and shape of every weight in a file of that configuration."""
    return {name: tuple(tensor.shape) for name, tensor in _unallocated(config).state_dict().items()}


def _unallocated(config: "CLIPConfig") -> "CLIPModel":
    import torch
    from transformers import CLIPModel

    with torch.device("meta"):
        return CLIPModel(config)


def model_of(description: Mapping[str, Any], weights: "Mapping[str, torch.Tensor]") -> "CLIPModel":
    """A `CLIPModel` that computes what the open_clip model of that description and those weights does. It may share them.

    Raises:
        NotInTransformers: see `config_of`.
    """
    import torch

    # Neither drawn at random first nor copied: H/14 has 4 GB of weights.
    model: Any = _unallocated(config_of(description))
    model.load_state_dict(_renamed(weights, description), strict=True, assign=True)
    for embeddings in (model.text_model.embeddings, model.vision_model.embeddings):
        embeddings.position_ids = torch.arange(embeddings.position_embedding.num_embeddings)[None]
    return model.eval()


def _renamed(weights: "Mapping[str, torch.Tensor]", description: Mapping[str, Any]) -> "dict[str, torch.Tensor]":
    """open_clip keeps projections as [width, D] and query, key and value in one matrix."""
    found = {
        "logit_scale": weights["logit_scale"].reshape(()),
        "text_projection.weight": weights["text_projection"].T,
        "visual_projection.weight": weights["visual.proj"].T,
        "text_model.embeddings.token_embedding.weight": weights["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": weights["positional_embedding"],
        "vision_model.embeddings.class_embedding": weights["visual.class_embedding"],
        "vision_model.embeddings.position_embedding.weight": weights["visual.positional_embedding"],
        "vision_model.embeddings.patch_embedding.weight": weights["visual.conv1.weight"],
    }
    norms = {
        "ln_final": "text_model.final_layer_norm",
        "visual.ln_pre": "vision_model.pre_layrnorm",  # sic
        "visual.ln_post": "vision_model.post_layernorm",
    }
    towers = (
        ("transformer", "text_model", description["text_cfg"]["layers"]),
        ("visual.transformer", "vision_model", description["vision_cfg"]["layers"]),
    )
    linear = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
              "attn.out_proj": "self_attn.out_proj"}  # fmt: skip
    for ours, theirs, layers in towers:
        for layer in range(layers):
            block, named = f"{ours}.resblocks.{layer}", f"{theirs}.encoder.layers.{layer}"
            norms |= {f"{block}.{one}": f"{named}.{other}" for one, other in linear.items()}
            for kind in ("weight", "bias"):
                parts = weights[f"{block}.attn.in_proj_{kind}"].chunk(3)
                for name, part in zip("qkv", parts, strict=True):
                    found[f"{named}.self_attn.{name}_proj.{kind}"] = part
    for ours, theirs in norms.items():
        for kind in ("weight", "bias"):
            found[f"{theirs}.{kind}"] = weights[f"{ours}.{kind}"]
    return {name: tensor.contiguous() for name, tensor in found.items()}
