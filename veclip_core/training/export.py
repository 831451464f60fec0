"""Checkpoints for use: an evaluation model here, a folder that transformers or open_clip loads elsewhere."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from veclip_core import storage
from veclip_core.training import checkpoint as checkpoints
from veclip_core.training.model import IMAGE_MEAN, IMAGE_STD, build_model, normalised
from veclip_core.training.model_card import model_card
from veclip_core.training.pictures import square
from veclip_core.training.recipe import Recipe
from veclip_core.training.texts import (
    T5_HUB,
    SampleTokenizer,
    T5Tokenizer,
    Tokenizer,
    save_byte_pairs,
    tokenizer_from_json,
)

if TYPE_CHECKING:
    import torch
    from PIL import Image

logger = logging.getLogger(__name__)

ENCODED_AT_ONCE = 256
RESIZED_AS = {"pad": "longest", "crop": "shortest", "squash": "squash"}
"""open_clip's words for a recipe's `fit`."""
WHITE = 255
LOADED_LAST = ("config.json", "open_clip_config.json")
"""What a loader looks for first is published last."""


@dataclass(frozen=True)
class EvalModel:
    """A trained model behind the two functions evaluation needs. Computes in float32."""

    model: Any
    tokenizer: Tokenizer
    recipe: Recipe
    state: dict[str, Any]
    """The checkpoint's: identity, manifest digest, counts, run id."""
    device: str = "cpu"

    @property
    def run_id(self) -> str | None:
        run_id: str | None = self.state["done"]["run_id"]
        return run_id

    def preprocess(self, picture: "Image.Image") -> "torch.Tensor":
        """Image_CHW float32: the training's square, its middle instead of a random crop, normalised."""
        import torch

        recipe = self.recipe
        margin = (recipe.cache_size - recipe.image_size) // 2
        pixels_SSC = square(picture, recipe.cache_size, recipe.fit)
        crop_HWC = pixels_SSC[margin : margin + recipe.image_size, margin : margin + recipe.image_size]
        return normalised(torch.from_numpy(np.ascontiguousarray(crop_HWC)).permute(2, 0, 1)[None])[0]

    def encode_image(self, pictures: "Sequence[Image.Image] | torch.Tensor") -> np.ndarray:
        """Embeddings_ND float32 of norm 1, of PIL pictures or of a preprocessed batch_NCHW."""
        import torch

        embedded = []
        for first in range(0, len(pictures), ENCODED_AT_ONCE):
            chunk = pictures[first : first + ENCODED_AT_ONCE]
            images_BCHW = (
                chunk if isinstance(chunk, torch.Tensor) else torch.stack([self.preprocess(one) for one in chunk])
            )
            with torch.inference_mode():
                embedded.append(
                    self.model.encode_image(images_BCHW.to(self.device), normalize=True).float().cpu().numpy()
                )
        return np.concatenate(embedded) if embedded else np.zeros((0, self.state["model"]["embed_dim"]), np.float32)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings_ND float32 of norm 1."""
        import torch

        embedded = []
        for first in range(0, len(texts), ENCODED_AT_ONCE):
            tokens_BL = self.tokenizer(texts[first : first + ENCODED_AT_ONCE]).to(self.device)
            with torch.inference_mode():
                embedded.append(self.model.encode_text(tokens_BL, normalize=True).float().cpu().numpy())
        return np.concatenate(embedded) if embedded else np.zeros((0, self.state["model"]["embed_dim"]), np.float32)


def load_for_evaluation(checkpoint_dir: str | Path, device: str = "cpu") -> EvalModel:
    """The model of a checkpoint (`.../step-000300`), or of a training's last one.

    Raises:
        FileNotFoundError: when there is no finished checkpoint.
    """
    found = checkpoints.find(str(checkpoint_dir))
    state = found.state()
    model = build_model(state["model"])
    model.load_state_dict(found.weights())
    model.eval().to(device)
    return EvalModel(model, tokenizer_from_json(state["tokenizer"]), Recipe(**state["recipe"]), state, device)


def export_hf(
    checkpoint_dir: str | Path,
    out: str | Path,
    results: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
) -> str | Path:
    """Write a folder, local or remote, that `transformers.CLIPModel.from_pretrained` loads without this package; and return it.

    With it go tokenizer and preprocessing, so that `AutoTokenizer`, `AutoImageProcessor` and `CLIPProcessor` find theirs. Pictures
    are resized so that their shorter side is the recipe's `cache_size`, then cropped: what `EvalModel` does with `fit` crop; other
    recipes' pictures are best prepared by hand.

    Args:
        results: rows of `model_card.results_of` for the model card.
        notes: sentences for the model card.

    Raises:
        NotInTransformers: for a ModifiedResNet (the sample's) or the loss `siglip`, which `export_open_clip` can do.
        FileNotFoundError: when there is no finished checkpoint.
    """
    from transformers import CLIPImageProcessor

    from veclip_core.training.transformers_clip import model_of

    exported = _Exported.of(checkpoint_dir)
    model = model_of(exported.description, exported.weights)
    recipe = exported.state["recipe"]
    side = {"height": recipe["image_size"], "width": recipe["image_size"]}
    with _published(out) as folder:
        model.save_pretrained(folder)
        CLIPImageProcessor(
            size={"shortest_edge": recipe["cache_size"]},
            crop_size=side,
            resample=3,  # bicubic
            image_mean=list(IMAGE_MEAN),
            image_std=list(IMAGE_STD),
        ).save_pretrained(folder)
        if isinstance(exported.tokenizer, T5Tokenizer):
            exported.tokenizer.save(folder)
        else:
            save_byte_pairs(folder, exported.tokenizer.context_length)
        card = model_card(exported.state, exported.tokenizer, "transformers", results, notes)
        (folder / "README.md").write_text(card)
    return out


def export_open_clip(
    checkpoint_dir: str | Path,
    out: str | Path,
    name: str = "veclip",
    results: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
) -> str | Path:
    """Write a folder, local or remote, that open_clip loads without this package; and return it.

    `open_clip.create_model_and_transforms("local-dir:OUT")` is the short way; `open_clip.add_model_config(OUT/"configs")` and
    `create_model(NAME, pretrained=OUT/"open_clip_model.safetensors")` the other, but not for T5's tokens, whose files open_clip
    finds in the first way alone. A vocabulary cut to the manifest is spread over CLIP's whole one, so that open_clip's own
    tokenizer fits; byte pairs the training never saw have a zero embedding. open_clip's preprocessing resizes to the model's size
    at once, while `EvalModel` cuts the middle out of `cache_size`.

    Args:
        results: rows of `model_card.results_of` for the model card.
        notes: sentences for the model card.

    Raises:
        FileNotFoundError: when there is no finished checkpoint.
    """
    from safetensors.torch import save_file

    exported = _Exported.of(checkpoint_dir)
    description, state = exported.description, exported.state
    with _published(out) as folder:
        if isinstance(exported.tokenizer, T5Tokenizer):
            exported.tokenizer.save(folder)
            text = {**description["text_cfg"], "hf_tokenizer_name": T5_HUB, "tokenizer_kwargs": {"clean": "lower"}}
            description = {**description, "text_cfg": text}
        else:
            (folder / "configs").mkdir()
            (folder / "configs" / f"{name}.json").write_text(json.dumps(description, indent=2) + "\n")
        save_file(exported.weights, folder / "open_clip_model.safetensors", metadata={"identity": state["identity"]})
        preprocessing = {
            "mean": IMAGE_MEAN,
            "std": IMAGE_STD,
            "interpolation": "bicubic",
            "resize_mode": RESIZED_AS[state["recipe"]["fit"]],
            "fill_color": WHITE,
        }
        config = {"model_cfg": description, "preprocess_cfg": preprocessing}
        (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
        (folder / "README.md").write_text(model_card(state, exported.tokenizer, "open_clip", results, notes))
    return out


@dataclass(frozen=True)
class _Exported:
    """A checkpoint whose vocabulary is one that others have."""

    state: dict[str, Any]
    weights: "dict[str, torch.Tensor]"
    description: dict[str, Any]
    tokenizer: Tokenizer

    @classmethod
    def of(cls, checkpoint_dir: str | Path) -> "_Exported":
        import torch

        found = checkpoints.find(str(checkpoint_dir))
        state, weights = found.state(), found.weights()
        description = state["model"]
        tokenizer = tokenizer_from_json(state["tokenizer"])
        if isinstance(tokenizer, SampleTokenizer):
            in_use_VD = weights["token_embedding.weight"]
            vocab_size = tokenizer.clip_ids()[-1] + 1
            whole_VD = torch.zeros(vocab_size, in_use_VD.shape[1], dtype=in_use_VD.dtype)
            whole_VD[torch.tensor(tokenizer.clip_ids())] = in_use_VD
            weights["token_embedding.weight"] = whole_VD
            description["text_cfg"]["vocab_size"] = vocab_size
        return cls(state, weights, description, tokenizer)


@contextmanager
def _published(out: str | Path) -> Iterator[Path]:
    """An empty folder; what is in it at the end is moved to `out`, each file whole and the configuration last."""
    with storage.scratch_folder(str(out)) as folder:
        yield folder
        files = [path for path in folder.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: (path.name in LOADED_LAST, path)):
            storage.publish_file(path, storage.join(str(out), path.relative_to(folder).as_posix()))
    if storage.is_local(str(out)):
        with suppress(OSError):  # of another export that is under way
            folder.parent.rmdir()
