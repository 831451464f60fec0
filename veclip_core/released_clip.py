"""A released checkpoint at work: pictures prepared as in its training, T5's tokens, transformers' `CLIPModel`.

The release prepares pictures with TensorFlow (apple/ml-veclip, `clip_processor.py`): resized so that the shorter side is the
model's, bilinear and *without* antialiasing, then the middle square, then OpenAI's mean and deviation. transformers' and
open_clip's own preprocessing antialias, and give other embeddings.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from veclip_core.released_checkpoints import TOKENIZER, BadCheckpoint, checked
from veclip_core.training.model import IMAGE_MEAN, IMAGE_STD
from veclip_core.training.texts import T5_END, T5_HUB, T5Tokenizer

if TYPE_CHECKING:
    import torch
    from PIL import Image

log = logging.getLogger(__name__)

ENCODED_AT_ONCE = 64


def prepared(picture: "Image.Image", size: int) -> np.ndarray:
    """Image_CHW float32 of `size` by `size`, as the release prepares it.

    Only the square that is kept is computed: of a very long picture the whole, resized, would not fit into memory. Where one side
    is some 450 times the other, TensorFlow's bound on the longer one would leave less than `size` of the shorter, which no model
    takes.
    """
    from veclip_core.sources.pictures import on_white

    pixels_HWC = np.asarray(on_white(picture))
    height, width = pixels_HWC.shape[:2]
    scale = np.float32(size) / np.float32(min(height, width))
    rows, columns = _middle(height, scale, size), _middle(width, scale, size)
    top_SSC, bottom_SSC = (_across(pixels_HWC[edge], columns) for edge in rows[:2])
    resized_SSC = top_SSC + (bottom_SSC - top_SSC) * rows[2][:, None, None]
    mean, std = (np.asarray(values, np.float32) * np.float32(255) for values in (IMAGE_MEAN, IMAGE_STD))
    return np.ascontiguousarray(((resized_SSC - mean) / std).transpose(2, 0, 1), dtype=np.float32)


def _middle(length: int, scale: np.float32, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the middle `size` of a resized side: the source pixels before and after each, and the share of the latter.

    Pixel centres lie at halves; TensorFlow computes in float32 and rounds the resized length half to even.
    """
    resized = int(np.rint(scale * np.float32(length)))
    offset = (resized - size) // 2
    inverse = np.float32(length) / np.float32(resized)
    at = (np.arange(offset, offset + size, dtype=np.float32) + np.float32(0.5)) * inverse - np.float32(0.5)
    below = np.floor(at)
    before, after = (np.clip(edge.astype(np.int64), 0, length - 1) for edge in (below, np.ceil(at)))
    return before, after, at - below


def _across(rows_SWC: np.ndarray, columns: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    left_SSC, right_SSC = (rows_SWC[:, edge].astype(np.float32) for edge in columns[:2])
    return np.asarray(left_SSC + (right_SSC - left_SSC) * columns[2][None, :, None])


def tokenizer_for(folder: Path, context_length: int, source: str = T5_HUB) -> T5Tokenizer:
    """The tokenizer that lies beside the weights, or else of `source`. Raises TokenizerMissing."""
    return T5Tokenizer.load(context_length, str(folder) if (folder / TOKENIZER).exists() else source)


class ReleasedNetwork:
    """An unpacked released checkpoint. Computes in float32."""

    def __init__(self, folder: Path, device: str = "cpu", tokenizer: str = T5_HUB) -> None:
        """
        Args:
            tokenizer: a folder or hub id, for a release without one of its own.

        Raises:
            BadCheckpoint: when the folder holds no released checkpoint, or its vocabulary is smaller than the tokenizer's.
            TokenizerMissing: when there is no tokenizer.
        """
        from transformers import CLIPModel

        config = checked(folder)
        self.tokenizer = tokenizer_for(folder, config.text_config.max_position_embeddings, tokenizer)
        if self.tokenizer.vocab_size > config.text_config.vocab_size:
            raise BadCheckpoint(
                f"{folder.name} has {config.text_config.vocab_size:,} tokens, fewer than the {self.tokenizer.vocab_size:,} of the"
                " tokenizer: set VECLIP_T5_TOKENIZER to the one it was trained with"
            )
        if config.text_config.eos_token_id != T5_END:
            # transformers would pool at the largest id where the configuration says 2, as CLIP's first ones did, and at the first
            # token where none has the id it says. The released tower is causal and was trained with its pooling at the end.
            log.warning(
                "%s: its config.json ends texts with id %s, T5's tokenizer with %d: texts are pooled at the latter",
                folder.name, config.text_config.eos_token_id, T5_END,
            )  # fmt: skip
            config.text_config.eos_token_id = T5_END
        self.image_size = int(config.vision_config.image_size)
        self._device = device
        self._model: Any = (
            CLIPModel.from_pretrained(folder, config=config, use_safetensors=True).float().eval().to(device)
        )

    @property
    def logit_scale(self) -> float:
        """By which cosines are multiplied before a softmax."""
        return float(self._model.logit_scale.detach().exp())

    def preprocess(self, picture: "Image.Image") -> "torch.Tensor":
        """Image_CHW float32."""
        import torch

        return torch.from_numpy(prepared(picture, self.image_size))

    def encode_image(self, pictures: "Sequence[Image.Image] | torch.Tensor") -> np.ndarray:
        """Embeddings_ND float32 of norm 1, of pictures or of a preprocessed batch_NCHW."""
        import torch

        def embed(some: "Sequence[Image.Image] | torch.Tensor") -> "torch.Tensor":
            images_BCHW = (
                some if isinstance(some, torch.Tensor) else torch.stack([self.preprocess(one) for one in some])
            )
            return self._projected(self._model.get_image_features(images_BCHW.to(self._device)))

        return self._in_batches(pictures, embed)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings_ND float32 of norm 1. Texts are lower-cased; long ones are cut by the tokenizer."""

        def embed(some: Sequence[str]) -> "torch.Tensor":
            return self._projected(self._model.get_text_features(self.tokenizer(some).to(self._device)))

        return self._in_batches(texts, embed)

    def _in_batches(self, items: "Sequence[Any] | torch.Tensor", embed: Any) -> np.ndarray:
        import torch

        with torch.inference_mode():
            found = [
                torch.nn.functional.normalize(embed(items[at : at + ENCODED_AT_ONCE]), dim=-1).cpu().numpy()
                for at in range(0, len(items), ENCODED_AT_ONCE)
            ]
        return np.concatenate(found) if found else np.zeros((0, self._model.config.projection_dim), np.float32)

    @staticmethod
    def _projected(output: Any) -> "torch.Tensor":
        # Newer transformers wrap the projected features.
        embedding: torch.Tensor = getattr(output, "pooler_output", output)
        return embedding
