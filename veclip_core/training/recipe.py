"""Recipes: what decides a training's result, the sample's and the paper's. What is compared by which numbers: `arms.py`.

The standing of each paper value is that of PAPER.md's table: [S] read in a public source, [R] reconstructed or chosen here.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from veclip_core.config import Config, digest_of
from veclip_core.mixing.choose import SOURCES, is_source

SAMPLE_MODEL = "sample-rn"

ALT_TEXT_ONLY = {"alt": 1.0}
MIXED = {"alt": 0.5, "vecap": 0.5}
"""One of the two a sample and step, p = 0.5 [R]."""


class Recipe(Config):
    """One training, but for its data. Equal recipes on equal manifests give equal weights on equal machines."""

    model: str = SAMPLE_MODEL
    """`sample-rn` (a ModifiedResNet of 3.3M parameters for 64 px) or the name of an open_clip model, e.g. `ViT-B-16`."""
    image_size: int = Field(64, ge=32)
    """Side in pixels of the square the model sees."""
    cache_size: int = Field(72, ge=32)
    """Side in pixels pictures are resized to; training crops `image_size` from it at random, evaluation from its middle."""
    fit: Literal["pad", "squash", "crop"] = "pad"
    """How a picture becomes a square: white margins (keeps all, right for drawings), a stretch, or its middle square."""
    flip: bool = True
    """Mirror half of the training pictures."""
    tokenizer: Literal["bpe-in-use", "bpe"] = "bpe-in-use"
    """CLIP's lower-cased byte pairs: only those in use in the manifest's AltTexts, VeCs and VeCaps, or all 49,408."""
    context_length: int = Field(24, ge=4)
    """Tokens read of a text, start and end included; the rest is cut off."""
    weights: dict[str, float] = ALT_TEXT_ONLY
    """Caption source (`alt`, `vec`, `vecap`, `template`, `control`, a style's `vecap_short`) to its share of the draws."""
    loss: Literal["clip"] = "clip"
    """Softmax cross-entropy over the batch, both ways."""
    seed: int = Field(0, ge=0)
    """Decides initial weights, batches, crops and caption draws."""
    steps: int = Field(300, ge=1)
    batch_size: int = Field(256, ge=2)
    learning_rate: float = Field(1e-3, gt=0)
    warmup_steps: int = Field(30, ge=0)
    """Linear from 0; then a cosine down to 0 at `steps`."""
    weight_decay: float = Field(0.1, ge=0)
    """On matrices and filters only, not on biases, norms and the temperature."""
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = Field(1e-8, gt=0)
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of the gradient; None clips nothing."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """`auto`: bf16 where the processor computes in it (avx512_bf16, amx, a GPU since Ampere), else fp32. `fp16` scales the loss, so
    that small gradients don't vanish."""
    accumulation_steps: int = Field(1, ge=1)
    """Contrastive batches, of `batch_size` / `accumulation_steps` pairs each, whose mean gradient makes a step."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep a running average of the weights, of which each step leaves so much, and evaluate that; None keeps none."""

    def identity(self) -> str:
        """As of any configuration, but fields that came later count only where they were set: older trainings keep theirs."""
        fields = self.model_dump(mode="json")
        for name in ("accumulation_steps", "ema_decay"):
            if fields[name] == type(self).model_fields[name].default:
                del fields[name]
        return digest_of({"config": type(self).__name__, "fields": fields})

    @field_validator("weights")
    @classmethod
    def _weights_are_ordered(cls, weights: dict[str, float]) -> dict[str, float]:
        """Sorted by source: the draw runs along them, and equal mixes must have equal identities."""
        if unknown := sorted(name for name in weights if not is_source(name)):
            raise ValueError(
                f"unknown caption sources {unknown}: use {', '.join(SOURCES)}, or a style's such as vecap_short"
            )
        if any(weight < 0 for weight in weights.values()) or not sum(weights.values()) > 0:
            raise ValueError("caption weights must be positive or zero, and one positive")
        return dict(sorted(weights.items()))

    @field_validator("cache_size")
    @classmethod
    def _cache_holds_the_crop(cls, cache_size: int, info: object) -> int:
        image_size = getattr(info, "data", {}).get("image_size", 0)
        if cache_size < image_size:
            raise ValueError(f"cache_size {cache_size} is smaller than image_size {image_size}: nothing to crop from")
        return cache_size


SAMPLE = Recipe()
"""Both models of the sample scale, mixed or not; 400 steps over-fit its 3,600 pictures."""

_PAPER = Recipe(
    model="ViT-B-16",  # [S]
    image_size=224,  # [S]
    cache_size=256,  # [R]
    fit="crop",  # [R]
    flip=False,  # [R]
    tokenizer="bpe",  # [R] Apple's is T5's, lower-cased [S]
    context_length=77,  # [S]
    batch_size=32_768,  # [S] from 100M on
    steps=97_656,
    learning_rate=5e-4,  # [S]
    warmup_steps=2_000,  # [S]
    weight_decay=0.2,  # [S]
    betas=(0.9, 0.98),  # [S]
    epsilon=1e-6,  # [R] open_clip's value for ViTs
    clip_norm=1.0,  # [R]
)

B16_3M = _PAPER.model_copy(update={"batch_size": 8_192, "steps": 11_719})  # batch [R]; 32 epochs [R]
B16_12M = _PAPER.model_copy(update={"batch_size": 8_192, "steps": 46_875})  # batch [R]; 32 epochs [R]
B16_100M = _PAPER  # batch [S]; 32 epochs [R]
B16_200M = _PAPER.model_copy(update={"steps": 195_312})  # batch [S]; 32 epochs [R]
B16_300M = _PAPER.model_copy(update={"steps": 439_087})  # batch and steps [S] (VeCap-DFN, 14 billion examples)
L14_300M = B16_300M.model_copy(update={"model": "ViT-L-14"})
H14_336_300M = B16_300M.model_copy(update={"model": "ViT-H-14", "image_size": 336, "cache_size": 384})

RECIPES: dict[str, Recipe] = {
    "sample": SAMPLE,
    "3m": B16_3M,
    "12m": B16_12M,
    "100m": B16_100M,
    "200m": B16_200M,
    "300m": B16_300M,
    "300m-l14": L14_300M,
    "300m-h14-336": H14_336_300M,
}
