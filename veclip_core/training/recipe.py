"""Recipes: what decides a training's result, the sample's and the paper's. What is compared by which numbers: `arms.py`.

`LARGE` is the table of the large scales' recipes, each value with its standing; `veclip recipes` prints it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

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
    tokenizer: Literal["bpe-in-use", "bpe", "t5"] = "bpe-in-use"
    """CLIP's lower-cased byte pairs: only those in use in the manifest's AltTexts, VeCs and VeCaps, or all 49,408. Or T5's pieces,
    lower-cased, as the released checkpoints have them."""
    context_length: int = Field(24, ge=4)
    """Tokens read of a text, start and end included; the rest is cut off."""
    weights: dict[str, float] = ALT_TEXT_ONLY
    """Caption source (`alt`, `vec`, `vecap`, `template`, `control`, a style's `vecap_short`) to its share of the draws."""
    order: Literal["rows", "windows"] = "rows"
    """How an epoch is shuffled: any row beside any other, or within moving windows over the tars, so that these are read forwards
    (`order.py`): a manifest of hundreds of millions wants that."""
    loss: Literal["clip", "siglip"] = "clip"
    """Softmax cross-entropy over the batch, both ways; or SigLIP's sigmoid over every pair (arXiv 2303.15343)."""
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
    data_fraction: float = Field(1.0, gt=0, le=1)
    """Share of the manifest's rows that are read (`manifest_table.in_fraction`). Steps and batches stay as they are: equal compute,
    fewer rows, each read more often."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep a running average of the weights, of which each step leaves so much, and evaluate that; None keeps none."""

    def identity(self) -> str:
        """As of any configuration, but fields that came later count only where they were set: older trainings keep theirs."""
        fields = self.model_dump(mode="json")
        for name in ("accumulation_steps", "data_fraction", "ema_decay", "order"):
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

Standing = Literal["S", "D", "R"]


@dataclass(frozen=True)
class Stated:
    """A recipe's value, and how well it is known to be the paper's."""

    value: Any
    standing: Standing
    """S: read in a public source. D: computed from one. R: reconstructed or chosen here, so not to be called the paper's."""
    note: str
    """Of S and D the source, of R why this value."""
    published: str = ""
    """What a public source says, where ours is another."""


README = "README of apple/ml-veclip"
CLOC = "arXiv 2410.02746, Table A"


def _read(value: Any, source: str) -> Stated:
    return Stated(value, "S", source)


def _chosen(value: Any, why: str, published: str = "") -> Stated:
    return Stated(value, "R", why, published)


MIX = _chosen(MIXED, "each as often as the other")

_B16: dict[str, Stated] = {
    "model": _read("ViT-B-16", README),
    "image_size": _read(224, README),
    "cache_size": _chosen(256, "leaves a margin for random crops"),
    "fit": _chosen("crop", "the middle square, as at evaluation", "at evaluation: the middle square"),
    "flip": _chosen(False, "captions say left and right"),
    "order": _chosen("windows", "tars are read forwards"),
    "tokenizer": _chosen("bpe", "comes with open_clip", "T5's, lower-cased"),
    "context_length": _read(77, CLOC),
    "batch_size": _read(32_768, f"{CLOC}, of 100M and above"),
    "steps": _chosen(97_656, "32 epochs of 100M"),
    "learning_rate": _read(5e-4, CLOC),
    "warmup_steps": _read(2_000, CLOC),
    "weight_decay": _read(0.2, CLOC),
    "betas": _read((0.9, 0.98), CLOC),
    "epsilon": _chosen(1e-6, "open_clip's value for ViTs"),
    "clip_norm": _chosen(1.0, "a usual value"),
}
_SMALL_BATCH = _chosen(8_192, "a quarter of the large scales'")
_B16_300M = _B16 | {"steps": _read(439_087, f"{CLOC}, of VeCap-DFN: about 14 billion examples")}
_AS_B16 = _chosen(439_087, "as many as of the B/16")

LARGE: dict[str, Mapping[str, Stated]] = {
    "3m": _B16 | {"batch_size": _SMALL_BATCH, "steps": _chosen(11_719, "32 epochs of 3M")},
    "12m": _B16 | {"batch_size": _SMALL_BATCH, "steps": _chosen(46_875, "32 epochs of 12M")},
    "100m": _B16,
    "200m": _B16 | {"steps": _chosen(195_312, "32 epochs of 200M")},
    "300m": _B16_300M,
    "300m-l14": _B16_300M | {"model": _read("ViT-L-14", README), "steps": _AS_B16},
    "300m-h14-336": _B16_300M
    | {
        "model": _read("ViT-H-14", README),
        "image_size": _read(336, README),
        "cache_size": _chosen(384, "leaves a margin for random crops"),
        "steps": _AS_B16,
    },
}
"""Recipe to its fields. What is not named here has the default of `Recipe`, and all of the sample's values are chosen here."""

RECIPES: dict[str, Recipe] = {
    "sample": SAMPLE,
    **{name: Recipe(**{field: one.value for field, one in fields.items()}) for name, fields in LARGE.items()},
}
