"""The model of a recipe: open_clip's CLIP, built from a plain description that is kept with every checkpoint.

open_clip's `ViT-B-16`, `ViT-L-14` and `ViT-H-14` are the released architecture as they stand: class token pooling, a patch
convolution without bias, LayerNorm (epsilon 1e-5) before the blocks, GELU, a causal text tower, projections without bias. With
T5's tokens the text tower is pooled at their end, by its id.
"""

import math
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from veclip_core.training.recipe import SAMPLE_MODEL, Recipe
from veclip_core.training.texts import PAD, T5_END

if TYPE_CHECKING:
    import torch
    from open_clip.model import CLIP

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
"""OpenAI's, as in open_clip and axlearn."""

TEXT_GROUPS = 4

SIGLIP_LOGIT_SCALE, SIGLIP_LOGIT_BIAS = math.log(10), -10.0
"""Where SigLIP starts (arXiv 2303.15343): nearly every pair is no match, and so says an untrained model."""

_SAMPLE = {
    "embed_dim": 192,
    "vision_cfg": {"layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
    "text_cfg": {"width": 192, "heads": 3, "layers": 2},
}
"""A small ModifiedResNet: ViTs of this size are two to four times slower on a CPU."""


def architecture(recipe: Recipe, vocab_size: int) -> dict[str, Any]:
    """open_clip's model configuration for a recipe: `embed_dim`, `vision_cfg`, `text_cfg` (and `quick_gelu`, and for the loss
    `siglip` where scale and bias of the logits start).

    Raises:
        ValueError: when open_clip has no model of that name, or one that isn't a plain CLIP.
    """
    if recipe.model == SAMPLE_MODEL:
        description: dict[str, Any] = deepcopy(_SAMPLE)
    else:
        import open_clip

        found = open_clip.get_model_config(recipe.model)
        if found is None:
            raise ValueError(f"unknown model {recipe.model!r}: use {SAMPLE_MODEL!r} or one of open_clip.list_models()")
        if set(found) - {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"} or "hf_model_name" in found["text_cfg"]:
            raise ValueError(f"{recipe.model!r} is not a plain CLIP (custom text tower); choose a ViT-* or RN* model")
        description = deepcopy(found)
    description["vision_cfg"]["image_size"] = recipe.image_size
    description["text_cfg"].update(context_length=recipe.context_length, vocab_size=vocab_size)
    if recipe.tokenizer == "t5":
        description["text_cfg"].update(pool_type="eos", eos_id=T5_END, pad_id=PAD)
    if recipe.loss == "siglip":
        description.update(init_logit_scale=SIGLIP_LOGIT_SCALE, init_logit_bias=SIGLIP_LOGIT_BIAS)
    return description


def build_model(description: dict[str, Any], seed: int = 0) -> "CLIP":
    """A model of that description; equal seeds give equal initial weights, and the global random state is left alone."""
    import torch
    from open_clip.model import CLIP

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIP(**deepcopy(description))


def encode_texts(model: "CLIP", tokens_BL: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """What `model.encode_text(tokens_BL, normalize=True)` gives, without computing most of the padding: [B, D] on the device.

    Texts are sorted by length and encoded in `TEXT_GROUPS` groups, each cut to its longest. A causal transformer pooled at
    the end of the text sees nothing of what follows it; other text towers are left to open_clip.
    """
    import torch
    from torch.nn.functional import normalize

    if (
        model.attn_mask is None
        or model.text_pool_type not in ("argmax", "eos")
        or isinstance(model.text_projection, torch.nn.Linear)
    ):
        encoded_BD: torch.Tensor = model.encode_text(tokens_BL.to(device, non_blocking=True), normalize=True)
        return encoded_BD
    # CLIP's end of text is its largest id, T5's is found by its own.
    of_end_BL = tokens_BL if model.text_pool_type == "argmax" else (tokens_BL == model.text_eos_id).int()
    ends_B = of_end_BL.argmax(dim=-1)
    lengths_B = ends_B + 1
    order_B = lengths_B.argsort(stable=True)
    encoded = []
    for rows in order_B.chunk(TEXT_GROUPS):
        length = int(lengths_B[rows[-1]])
        tokens_GL = tokens_BL[rows, :length].to(device, non_blocking=True)
        x_GLW = model.token_embedding(tokens_GL) + model.positional_embedding[:length]
        x_GLW = model.ln_final(model.transformer(x_GLW, attn_mask=model.attn_mask[:length, :length]))
        last_GW = x_GLW[torch.arange(len(rows), device=device), ends_B[rows].to(device, non_blocking=True)]
        encoded.append(last_GW @ model.text_projection)
    return normalize(torch.cat(encoded)[order_B.argsort().to(device)], dim=-1)


def normalised(images_BCHW: "torch.Tensor") -> "torch.Tensor":
    """uint8 pixels to the float32 the model was made for."""
    import torch

    mean, std = (
        torch.tensor(values, device=images_BCHW.device).view(1, 3, 1, 1) * 255.0 for values in (IMAGE_MEAN, IMAGE_STD)
    )
    return (images_BCHW.float() - mean) / std


def computes_in_bf16(device: "torch.device") -> bool:
    """Whether bf16 is faster than fp32 there: without native instructions it is emulated, and much slower."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def precision_of(recipe: Recipe, device: "torch.device") -> str:
    if recipe.precision != "auto":
        return recipe.precision
    return "bf16" if computes_in_bf16(device) else "fp32"
