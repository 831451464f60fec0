"""Fits the stand-in captioner on Noto's emoji drawings, and measures it on an artist that it has not seen.

One artist alone says nothing about how drawings of a thing differ. A second view of each drawing, flattened and outlined as
many artists draw, stands in for a second artist: what differs between the two views counts less in the classifier. This view
was preferred to turned, mirrored and faded ones after their accuracy on OpenMoji had been compared; nothing else was.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from tqdm import tqdm

from veclip_core.captioning.concept_model import ConceptModel, calibrated_sharpness, fit_whitened_centroids
from veclip_core.captioning.engines.concepts import ConceptsConfig
from veclip_core.captioning.features import FeatureNetwork, normalised, stack
from veclip_core.sources.emoji_concepts import EmojiConcept
from veclip_core.sources.noto import noto_pictures
from veclip_core.sources.openmoji import OpenMojiSet
from veclip_core.sources.sample_packages import PACKAGES, fetch_packages

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConceptsReport:
    """What `fit_concepts` wrote."""

    folder: Path
    model_id: str
    concepts: int
    sharpness: float
    seconds: float
    """What fitting took; 0 where it was there."""


@dataclass(frozen=True)
class ConceptsAccuracy:
    """How often the stand-in is right on OpenMoji's drawings, by rank of the true concept among the fitted ones."""

    fitted_pictures: int
    fitted_recall: Mapping[int, float]
    """R@1, R@5, R@10 on drawings of fitted concepts."""
    fitted_subgroup: float
    unseen_pictures: int
    unseen_subgroup: float
    """On drawings of unseen concepts, whose name it can't know, of those whose subgroup it was fitted on."""
    concepts: int
    chance: float


def fit_concepts(cache: Path, folder: Path, config: ConceptsConfig | None = None) -> ConceptsReport:
    """Write `concepts.npz` and `concepts.json` to `folder`, fitted on Noto's drawings of the fitted concepts alone.

    Done once: a second call with the same configuration reads it.
    """
    started = time.monotonic()
    config = config or ConceptsConfig()
    if (folder / "concepts.json").exists():
        kept = ConceptModel.load(folder)
        if kept.about["identity"] == config.identity():
            return _report(folder, config, kept, 0.0)
    packages = fetch_packages(cache)
    drawn = noto_pictures(packages.noto_font, packages.emoji_names)
    fitted = [(concept, picture) for concept, picture in drawn if concept.split == "fitted"]
    views_VCF = _features_of_views([picture for _, picture in fitted], config)
    model = _fit([concept for concept, _ in fitted], views_VCF, config)
    model.save(folder)
    return _report(folder, config, model, time.monotonic() - started)


def measure_concepts(folder: Path, openmoji: OpenMojiSet, config: ConceptsConfig | None = None) -> ConceptsAccuracy:
    """The stand-in's accuracy on the evaluation artist. Nothing is chosen by it."""
    config = config or ConceptsConfig()
    model = ConceptModel.load(folder)
    network = FeatureNetwork(config.features)
    features = []
    for start in tqdm(range(0, len(openmoji.items), network.batch_size), desc="measuring the stand-in", unit="batch"):
        batch = openmoji.items[start : start + network.batch_size]
        features.append(network(stack((network.square(openmoji.picture(i)) for i in batch), config.features.pixels))[0])
    return accuracy(model, np.concatenate(features), openmoji)


def accuracy(model: ConceptModel, features_NF: np.ndarray, openmoji: OpenMojiSet) -> ConceptsAccuracy:
    """The same from features of `openmoji`'s pictures, in its order."""
    order_NC = np.argsort(-model.cosines(features_NF), axis=1, kind="stable")
    index = {concept.hexcode: position for position, concept in enumerate(model.concepts)}
    known_subgroups = {concept.subgroup for concept in model.concepts}
    right: dict[str, list[bool]] = {"fitted": [], "unseen": []}
    ranks = []
    for item, order_C in zip(openmoji.items, order_NC, strict=True):
        if item.subgroup in known_subgroups:
            right[item.concept_split].append(model.concepts[order_C[0]].subgroup == item.subgroup)
        if item.hexcode in index:
            ranks.append(int(np.flatnonzero(order_C == index[item.hexcode])[0]))
    ranks_N = np.array(ranks)
    return ConceptsAccuracy(
        len(ranks_N),
        {k: float((ranks_N < k).mean()) for k in (1, 5, 10)},
        float(np.mean(right["fitted"])),
        len(right["unseen"]),
        float(np.mean(right["unseen"])),
        len(model.concepts),
        1 / len(model.concepts),
    )


def _fit(concepts: Sequence[EmojiConcept], views_VCF: np.ndarray, config: ConceptsConfig) -> ConceptModel:
    import open_clip

    mean_F, whitening_FF, centroids_CF = fit_whitened_centroids(views_VCF, config.shrinkage)
    about = {
        "identity": config.identity(),
        "model_id": config.model_id,
        "stand_in": "An emoji-concept tagger on frozen ImageNet features, not a vision-language model.",
        "fitted_on": [asdict(package) for package in PACKAGES if package.sha256 in config.sources],
        "config": config.model_dump(mode="json"),
    }
    return ConceptModel(
        tuple(concepts),
        mean_F,
        whitening_FF,
        centroids_CF,
        calibrated_sharpness(_held_out_cosines(views_VCF, config.shrinkage), np.arange(len(concepts))),
        tuple(open_clip.IMAGENET_CLASSNAMES),
        about,
    )


def _held_out_cosines(views_VCF: np.ndarray, shrinkage: float) -> np.ndarray:
    """Cosines (C, C) of each outlined view with the plain ones, whitened by what the other half of the concepts taught.

    Whitened by its own concept too, nearly every answer would be right, and the stand-in far too sure of itself.
    """
    even_C = np.arange(views_VCF.shape[1]) % 2 == 0
    cosines_CC = np.empty((len(even_C), len(even_C)), np.float32)
    for half_C in (even_C, ~even_C):
        mean_F, whitening_FF, _ = fit_whitened_centroids(views_VCF[:, ~half_C], shrinkage)
        plain_CF, outlined_CF = (normalised((view_CF - mean_F) @ whitening_FF) for view_CF in views_VCF)
        cosines_CC[half_C] = outlined_CF[half_C] @ plain_CF.T
    return cosines_CC


def _features_of_views(pictures: list[Image.Image], config: ConceptsConfig) -> np.ndarray:
    """Features (2, C, F) of the drawings as they are, and outlined."""
    network = FeatureNetwork(config.features)
    views = [*pictures, *(outlined(picture) for picture in pictures)]
    features = []
    with tqdm(total=len(views), desc="fitting the stand-in captioner", unit="picture", mininterval=1) as bar:
        for start in range(0, len(views), network.batch_size):
            batch = views[start : start + network.batch_size]
            features.append(network(stack((network.square(p) for p in batch), config.features.pixels))[0])
            bar.update(len(batch))
    return np.concatenate(features).reshape(2, len(pictures), -1)


def outlined(picture: Image.Image) -> Image.Image:
    """Flat colours with black outlines, as many artists draw."""
    flat = ImageOps.posterize(picture.filter(ImageFilter.MedianFilter(3)), 3)
    edges = picture.convert("L").filter(ImageFilter.GaussianBlur(1)).filter(ImageFilter.FIND_EDGES)
    flat.paste((0, 0, 0), mask=edges.point(lambda value: 255 if value > 14 else 0).filter(ImageFilter.MaxFilter(3)))
    return flat


def _report(folder: Path, config: ConceptsConfig, model: ConceptModel, seconds: float) -> ConceptsReport:
    return ConceptsReport(folder, config.model_id, len(model.concepts), model.sharpness, seconds)
