"""How well texts fit their pictures, by the word of a CLIP model: the cosine of both embeddings.

A caption that fits better than its AltText is what VeCap is for; a model's cosine is no proof of it, and one trained on the same
captions proves nothing.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

BATCH = 32


class ClipScorer:
    """A `CLIPModel` with its processor, from a folder or the hub."""

    def __init__(self, model: str) -> None:
        """Raises WeightsMissing: the model is not on this machine and can't be fetched."""
        import torch
        from transformers import AutoModel, AutoProcessor

        from veclip_core.captioning.engines.weights import checked_config

        checked_config(model, None)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model: Any = AutoModel.from_pretrained(model).eval().to(self._device)
        self._processor: Any = AutoProcessor.from_pretrained(model)

    def cosines(self, images: "Sequence[Image]", texts: Mapping[str, Sequence[str]]) -> dict[str, list[float]]:
        """Name -> one cosine a picture; `texts` holds one text a picture and name. Long texts are cut by the tokenizer."""
        import torch

        found: dict[str, list[float]] = {name: [] for name in texts}
        for at in range(0, len(images), BATCH):
            pixels = self._processor(images=list(images[at : at + BATCH]), return_tensors="pt").to(self._device)
            with torch.inference_mode():
                image_BD = torch.nn.functional.normalize(_embedding(self._model.get_image_features(**pixels)), dim=-1)
                for name, of in texts.items():
                    tokens = self._processor(
                        text=list(of[at : at + BATCH]), return_tensors="pt", padding=True, truncation=True
                    ).to(self._device)
                    text_BD = torch.nn.functional.normalize(_embedding(self._model.get_text_features(**tokens)), dim=-1)
                    found[name] += (image_BD * text_BD).sum(dim=-1).tolist()
        return found


def _embedding(output: Any) -> Any:
    """Newer transformers wrap the projected features."""
    return getattr(output, "pooler_output", output)
