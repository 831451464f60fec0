"""The classifier behind the stand-in captioner: a whitened nearest centroid over emoji concepts, on frozen features."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from veclip_core.captioning.features import normalised
from veclip_core.sources.emoji_concepts import EmojiConcept


@dataclass(frozen=True)
class ConceptModel:
    """Centroids of C concepts in whitened feature space, F wide."""

    concepts: tuple[EmojiConcept, ...]
    mean_F: np.ndarray
    whitening_FF: np.ndarray
    centroids_CF: np.ndarray
    """Rows of unit length."""
    sharpness: float
    """Factor on the cosine before the softmax: an inverse temperature, calibrated on drawings of the fitted artist."""
    photo_classes: tuple[str, ...]
    """ImageNet's 1,000 class names."""
    about: dict[str, Any]
    """Where it comes from: sources, counts, seconds, the configuration's identity."""

    def cosines(self, features_NF: np.ndarray) -> np.ndarray:
        """Cosine of each picture with each concept's centroid, (N, C)."""
        return self.whiten(features_NF) @ self.centroids_CF.T

    def probabilities(self, features_NF: np.ndarray) -> np.ndarray:
        """Of each concept for each picture, (N, C)."""
        return softmax(self.sharpness * self.cosines(features_NF))

    def whiten(self, features_NF: np.ndarray) -> np.ndarray:
        """Whitened features of unit length."""
        return normalised((features_NF - self.mean_F) @ self.whitening_FF)

    def save(self, folder: Path) -> None:
        """Write `concepts.npz` and `concepts.json`; the .json last, so that where it is the model is whole."""
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / "concepts.tmp.npz"
        np.savez(
            aside, mean=self.mean_F, whitening=self.whitening_FF, centroids=self.centroids_CF, sharpness=self.sharpness
        )
        aside.rename(folder / "concepts.npz")
        about = {
            **self.about,
            "concepts": [asdict(concept) for concept in self.concepts],
            "photo_classes": list(self.photo_classes),
        }
        aside = folder / "concepts.json.tmp"
        aside.write_text(json.dumps(about, indent=1, ensure_ascii=False))
        aside.rename(folder / "concepts.json")

    @staticmethod
    def load(folder: Path) -> "ConceptModel":
        about = json.loads((folder / "concepts.json").read_text())
        concepts = tuple(EmojiConcept(**concept) for concept in about.pop("concepts"))
        photo_classes = tuple(about.pop("photo_classes"))
        with np.load(folder / "concepts.npz") as arrays:
            return ConceptModel(
                concepts,
                arrays["mean"],
                arrays["whitening"],
                arrays["centroids"],
                float(arrays["sharpness"]),
                photo_classes,
                about,
            )


def fit_whitened_centroids(views_VCF: np.ndarray, shrinkage: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean (F), whitening (F, F) and centroids (C, F) from V views of each of C concepts.

    The whitening is the inverse square root of the covariance within a concept, that is, between views of one drawing: what
    changes when a drawing is turned, mirrored or drawn in outline counts less. `shrinkage` mixes it with the identity.
    """
    centre_CF = views_VCF.mean(axis=0)
    mean_F = centre_CF.mean(axis=0)
    within = (views_VCF - centre_CF[None]).reshape(-1, views_VCF.shape[-1]).astype(np.float64)
    covariance = within.T @ within / len(within)
    scale = np.trace(covariance) / len(covariance)
    values, vectors = np.linalg.eigh((1 - shrinkage) * covariance + shrinkage * scale * np.eye(len(covariance)))
    whitening_FF = ((vectors / np.sqrt(values)) @ vectors.T * np.sqrt(scale)).astype(np.float32)
    return mean_F, whitening_FF, normalised((centre_CF - mean_F) @ whitening_FF)


def softmax(scores_NC: np.ndarray) -> np.ndarray:
    exponents = np.exp(scores_NC - scores_NC.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def calibrated_sharpness(cosines_NC: np.ndarray, truth_N: np.ndarray) -> float:
    """The factor under which the true concepts are most likely."""
    candidates = np.geomspace(4, 120, 40)
    rows = np.arange(len(truth_N))
    likelihoods = [np.log(np.maximum(softmax(s * cosines_NC)[rows, truth_N], 1e-9)).mean() for s in candidates]
    return float(candidates[int(np.argmax(likelihoods))])
