"""CLIP models from anywhere behind two functions: pictures to embeddings, and texts to embeddings.

What they are for: to say how well texts fit their pictures, by the cosine of both embeddings. A model's cosine is no proof of
quality, and one trained on the same texts proves nothing.
"""

import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from pydantic import Field

from veclip_core import storage
from veclip_core.captioning.engines.weights import (
    OPEN_CLIP_FILE,
    WeightsMissing,
    checked_config,
    fingerprint,
    revision_of,
    without_foreign_code,
)
from veclip_core.config import Config, digest_of
from veclip_core.mendable import Mendable
from veclip_core.released_checkpoints import is_archive, is_released, name_of, unpacked
from veclip_core.training.texts import T5_HUB

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

Kind = Literal["huggingface", "open_clip", "checkpoint", "released"]

BATCH = 64
OPEN_CLIP_HUB = "hf-hub:"
"""open_clip's own notation for a model of the hub in open_clip's format."""
CLIP_SPECIALS = ("<start_of_text>", "<end_of_text>", "<|startoftext|>", "<|endoftext|>")
CHECKPOINT_FILE = "state.json"
"""What one of our own checkpoints is known by."""


class ClipNetwork(Protocol):
    """A loaded CLIP model."""

    def preprocess(self, picture: "Image") -> "torch.Tensor":
        """Image_CHW float32 as the model takes it, in any thread."""
        ...

    def encode_image(self, pictures: "Sequence[Image] | torch.Tensor") -> np.ndarray:
        """Embeddings_ND float32 of norm 1, of pictures or of a preprocessed batch_NCHW."""
        ...

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings_ND float32 of norm 1. Long texts are cut by the tokenizer."""
        ...


class NetworkConfig(Config):
    """Which CLIP model."""

    kind: Kind
    """transformers' `CLIPModel` and its like, open_clip's format, a training of ours, or a checkpoint of the paper's release."""
    model: str
    """Folder name or hub id."""
    revision: str | None
    """The hub's commit, or a digest of the folder's files (and of the tokenizer, for a released checkpoint)."""
    folder: str | None = Field(None, exclude=True)
    """Where the weights lie, for a model that is a folder: its place is no part of the identity."""
    tokenizer: str = Field(T5_HUB, exclude=True)
    """Where a released checkpoint's tokenizer is, likewise."""


@dataclass(frozen=True)
class ReleasedFiles:
    """Where released checkpoints are unpacked, and what they lack is found."""

    cache: Path | None = None
    """By default the folder `cache/released_checkpoints` of a local root."""
    tokenizer: str = T5_HUB
    """T5's tokenizer: a folder or hub id."""
    allowed_hosts: frozenset[str] = frozenset()
    """`host:port` of http servers inside private networks that zips may be fetched from."""


RELEASED_BY_DEFAULT = ReleasedFiles()


def network_config(model: str, root: str, released: ReleasedFiles = RELEASED_BY_DEFAULT) -> NetworkConfig:
    """The model of that name with the revision that this root first used.

    Args:
        model: a folder (transformers' format, open_clip's, a checkpoint of ours, or an unpacked release), a released zip's path or
            address, a hub id `owner/name` in transformers' format, or `hf-hub:owner/name` in open_clip's.

    Raises:
        WeightsMissing: there is no such folder, or it holds no model; BadCheckpoint of a zip.
        FetchError: when a zip's address can't be fetched.
        TokenizerMissing: when a released checkpoint's tokenizer is nowhere.
    """
    if is_archive(model):
        by_default = Path(root) / "cache" if storage.is_local(root) else Path.home() / ".cache" / "veclip"
        folder = unpacked(model, released.cache or by_default / "released_checkpoints", released.allowed_hosts)
        return _released_config(name_of(model), folder, released.tokenizer)
    if Path(model).is_dir():
        folder = Path(model).resolve()
        kind: Kind = "huggingface"
        if (folder / OPEN_CLIP_FILE).exists():
            kind = "open_clip"
        elif (folder / CHECKPOINT_FILE).exists():
            kind = "checkpoint"
        elif is_released(folder):
            return _released_config(folder.name, folder, released.tokenizer)
        elif not (folder / "config.json").exists():
            raise WeightsMissing(
                f"{model} holds no CLIP model: neither transformers' config.json, nor {OPEN_CLIP_FILE}, nor a checkpoint"
            )
        revision = f"sha256:{fingerprint(folder)[:16]}"
        return NetworkConfig(kind=kind, model=folder.name, revision=revision, folder=str(folder))
    name = model.removeprefix(OPEN_CLIP_HUB)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise WeightsMissing(
            f"no CLIP model at {model!r}: give an existing folder, a hub id of the form owner/name, or {OPEN_CLIP_HUB}owner/name"
            " for one in open_clip's format"
        )
    if name != model:
        return NetworkConfig(kind="open_clip", model=name, revision=revision_of(name, root, _open_clip_folder))
    return NetworkConfig(
        kind="huggingface", model=name, revision=revision_of(name, root, lambda hub: checked_config(hub, None))
    )


def _released_config(name: str, folder: Path, tokenizer: str) -> NetworkConfig:
    """Other pieces of text are other embeddings: the tokenizer decides the revision too."""
    from veclip_core.released_clip import tokenizer_for

    pieces = tokenizer_for(folder, 1, tokenizer).digest  # its length is the model's
    revision = f"sha256:{digest_of([fingerprint(folder), pieces])[:16]}"
    return NetworkConfig(kind="released", model=name, revision=revision, folder=str(folder), tokenizer=tokenizer)


def open_network(config: NetworkConfig, threads: int | None = None) -> ClipNetwork:
    """Load a model, on the GPU where there is one.

    Raises:
        WeightsMissing: the weights are not on this machine and can't be fetched, are damaged, or are a pickle with code inside.
        TokenizerMissing: a released checkpoint's tokenizer is nowhere.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = config.folder or config.model
    try:
        if config.kind == "huggingface":
            return HuggingFaceNetwork(where, None if config.folder else config.revision, device)
        if config.kind == "open_clip":
            return OpenClipNetwork(config.folder or _open_clip_folder(config.model, config.revision), device)
        if config.kind == "released":
            from veclip_core.released_clip import ReleasedNetwork

            return ReleasedNetwork(Path(where), device, config.tokenizer)
        from veclip_core.training.export import load_for_evaluation

        return load_for_evaluation(where, device)
    except Mendable:
        raise
    except pickle.UnpicklingError as error:
        raise WeightsMissing(
            f"the weights of {where} are a pickle that would run code, and are not loaded. Where you trust them, load them by"
            " `torch.load(..., weights_only=True)` with what it asks to allow, and save them with `safetensors.torch.save_file`"
        ) from error
    except Exception as error:  # what a damaged file raises is every library's own
        raise WeightsMissing(f"the CLIP model {where} can't be loaded ({type(error).__name__}: {error})") from error


class HuggingFaceNetwork:
    """A `CLIPModel`, or another dual encoder of transformers, with its processor."""

    def __init__(self, model: str, revision: str | None, device: str) -> None:
        from transformers import AutoModel, AutoProcessor

        self._device = device
        # Said outright: by default transformers asks on the terminal whether to run code that a model brings.
        how: Any = {"revision": revision, "trust_remote_code": False}
        config = without_foreign_code(checked_config(model, revision), model)
        self._model: Any = AutoModel.from_pretrained(model, config=config, **how).eval().to(device)
        self._processor: Any = AutoProcessor.from_pretrained(model, **how)
        # SigLIP has no attention mask: its texts are padded as they were in its training.
        self._padding = "max_length" if self._model.config.model_type.startswith("siglip") else True

    def preprocess(self, picture: "Image") -> "torch.Tensor":
        pixels_BCHW: torch.Tensor = self._processor(images=[picture], return_tensors="pt")["pixel_values"]
        return pixels_BCHW[0]

    def encode_image(self, pictures: "Sequence[Image] | torch.Tensor") -> np.ndarray:
        batch_BCHW = _batch(pictures, self.preprocess).to(self._device)
        return _normalised(lambda: self._model.get_image_features(pixel_values=batch_BCHW))

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        words = _without(texts, self._processor.tokenizer.all_special_tokens)
        inputs = self._processor(text=words, return_tensors="pt", padding=self._padding, truncation=True)
        inputs = inputs.to(self._device)
        return _normalised(lambda: self._model.get_text_features(**inputs))


class OpenClipNetwork:
    """A folder in open_clip's format."""

    def __init__(self, folder: str, device: str) -> None:
        import open_clip

        self._device = device
        self._model: Any
        self._model, _, self._preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}", device=device)
        self._model.eval()
        self._tokenizer: Any = open_clip.get_tokenizer(f"local-dir:{folder}")

    def preprocess(self, picture: "Image") -> "torch.Tensor":
        image_CHW: torch.Tensor = self._preprocess(picture)
        return image_CHW

    def encode_image(self, pictures: "Sequence[Image] | torch.Tensor") -> np.ndarray:
        batch_BCHW = _batch(pictures, self.preprocess).to(self._device)
        return _normalised(lambda: self._model.encode_image(batch_BCHW))

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        inside = getattr(self._tokenizer, "tokenizer", None)  # one of transformers'
        tokens_BL = self._tokenizer(_without(texts, inside.all_special_tokens if inside else CLIP_SPECIALS)).to(
            self._device
        )
        return _normalised(lambda: self._model.encode_text(tokens_BL))


def cosines(
    network: ClipNetwork, images: "Sequence[Image]", texts: Mapping[str, Sequence[str]]
) -> dict[str, list[float]]:
    """Name -> one cosine a picture; `texts` holds one text a picture and name."""
    found: dict[str, list[float]] = {name: [] for name in texts}
    for at in range(0, len(images), BATCH):
        image_BD = network.encode_image(images[at : at + BATCH])
        for name, of in texts.items():
            found[name] += (image_BD * network.encode_text(of[at : at + BATCH])).sum(axis=-1).tolist()
    return found


def _without(texts: Sequence[str], specials: Sequence[str]) -> list[str]:
    """Texts without the tokenizer's own marks: what stands behind an `<|endoftext|>` in an AltText would not be read."""
    marks = re.compile("|".join(re.escape(mark) for mark in sorted(specials, key=len, reverse=True) if mark))
    return [marks.sub(" ", text) for text in texts] if specials else list(texts)


def _batch(pictures: "Sequence[Image] | torch.Tensor", preprocess: "Callable[[Image], torch.Tensor]") -> "torch.Tensor":
    import torch

    return pictures if isinstance(pictures, torch.Tensor) else torch.stack([preprocess(one) for one in pictures])


def _normalised(embed: Any) -> np.ndarray:
    import torch

    with torch.inference_mode():
        output = embed()
        # Newer transformers wrap the projected features.
        embedding = getattr(output, "pooler_output", output)
        return np.asarray(torch.nn.functional.normalize(embedding.float(), dim=-1).cpu().numpy())


def _open_clip_folder(model: str, revision: str | None = None) -> str:
    """A hub model's files on this machine. Raises WeightsMissing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return str(snapshot_download(model, revision=revision, ignore_patterns=["*.bin.index.json", "*.npz", "*.onnx"]))
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise WeightsMissing(
            f"the weights of {OPEN_CLIP_HUB}{model} are not on this machine and the hub can't be reached. Give the path of a"
            f" folder that holds them, or fill a hub cache where there is a network (`hf download {model}`) and set HF_HOME to it"
        ) from error
