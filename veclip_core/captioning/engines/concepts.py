"""The sample scale's captioner: a *stand-in* for a vision-language model, where no hub is in reach.

It recognises emoji concepts by frozen EfficientNet-Lite0 features, knows them from one artist (Noto), and is wrong more often
than not on other drawings: `measure_concepts` in `veclip_core.captioning.concept_fit` says how often. It never sees an
AltText, nor the evaluation artist, nor the concepts of the unseen split. What it knows comes from ImageNet and emoji labels.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from veclip_core.captioning.colours import dominant_colours
from veclip_core.captioning.concept_words import sentence
from veclip_core.captioning.features import FeatureConfig
from veclip_core.config import Config
from veclip_core.sources.sample_packages import PACKAGES, SampleWorldError

if TYPE_CHECKING:
    from PIL.Image import Image

BATCH = 64
"""Pictures in memory at a time."""
_TOLD = 5
"""Concepts told in a description's detail."""


class ConceptsConfig(Config):
    """What decides the stand-in's descriptions: its identity is known before it is fitted."""

    features: FeatureConfig = FeatureConfig()
    """What it sees of a picture."""

    shrinkage: float = 0.3
    """Share of the identity in the covariance between the two views of a drawing, as drawn and in outline."""

    second_above: float = 0.5
    """A second concept is told when its probability is above this share of the first's."""

    photo_class_above: float = 0.6
    """ImageNet's class is told when its probability is above this: it is made for photos, not for drawings."""

    sources: tuple[str, ...] = tuple(
        package.sha256 for package in PACKAGES if package.name in ("fonts-noto-color-emoji", "unicode-data")
    )
    """SHA-256 of the packages that hold the drawings and their names."""

    max_side_px: int = 1024
    """Larger pictures are scaled down to this first."""

    wording: str = "concepts-words-v1"
    """Name of the rules that put concepts into words; raised when they change."""

    @property
    def model_id(self) -> str:
        return f"concepts-noto-efficientnet-lite0/{self.identity()[:8]}"


@dataclass(frozen=True)
class Description:
    """What the stand-in says about one picture."""

    text: str
    """The VeC: `a drawing of a tulip or a rose, a flower, a plant, red and green`."""
    detail: dict[str, Any]
    """The five likeliest concepts with probabilities, the colours, the ImageNet class; fit for JSON."""


class ConceptsEngine:
    """The fitted stand-in, loaded; on CPU, deterministic. Not thread-safe: a worker owns one."""

    def __init__(self, config: ConceptsConfig, folder: Path, threads: int | None = None) -> None:
        """`folder` is where `fit_concepts` wrote. Raises SampleWorldError where the fitted model is missing or another's."""
        from veclip_core.captioning.concept_model import ConceptModel
        from veclip_core.captioning.features import FeatureNetwork

        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        if not (folder / "concepts.json").exists():
            raise SampleWorldError(f"The stand-in captioner is not fitted in {folder}: `veclip sample fetch` fits it.")
        self.config = config
        self.model_id = config.model_id
        self.prompt_id = config.wording
        self.max_side_px: int | None = config.max_side_px
        self._model = ConceptModel.load(folder)
        if self._model.about["identity"] != config.identity():
            raise SampleWorldError(
                f"The stand-in captioner in {folder} was fitted under another configuration: `veclip sample fetch` fits it anew."
            )
        self._network = FeatureNetwork(config.features)

    def describe(self, images: "Iterable[Image]") -> list[Description]:
        """One description a picture, in order."""
        pictures = iter(images)
        described: list[Description] = []
        while some := list(islice(pictures, BATCH)):
            described += self._describe(some)
        return described

    def _describe(self, images: "Sequence[Image]") -> list[Description]:
        from veclip_core.captioning.concept_model import softmax
        from veclip_core.captioning.features import stack

        squares = stack((self._network.square(image) for image in images), self.config.features.pixels)
        features, logits = self._network(squares)
        concepts_NC = self._model.probabilities(features)
        photos_NK = softmax(logits)
        return [
            self._say(concepts_C, photos_K, dominant_colours(image))
            for concepts_C, photos_K, image in zip(concepts_NC, photos_NK, images, strict=True)
        ]

    def _say(self, concepts_C: np.ndarray, photos_K: np.ndarray, colours: list[str]) -> Description:
        best = [int(index) for index in np.argsort(-concepts_C, kind="stable")[:_TOLD]]
        told = best[:2] if concepts_C[best[1]] > self.config.second_above * concepts_C[best[0]] else best[:1]
        first = self._model.concepts[best[0]]
        photo = int(photos_K.argmax())
        photo_class = self._model.photo_classes[photo] if photos_K[photo] > self.config.photo_class_above else None
        names = [self._model.concepts[index].name for index in told]
        detail = {
            "concepts": [[self._model.concepts[index].name, round(float(concepts_C[index]), 4)] for index in best],
            "subgroup": first.subgroup,
            "colours": colours,
            "photo_class": [self._model.photo_classes[photo], round(float(photos_K[photo]), 4)],
        }
        return Description(sentence(names, first.subgroup, colours, photo_class), detail)


@contextmanager
def open_concepts(config: ConceptsConfig, folder: Path, threads: int | None = None) -> Iterator[ConceptsEngine]:
    """The stand-in for the length of a with block; with `functools.partial` a picklable opener for `describe`."""
    yield ConceptsEngine(config, folder, threads)
