"""Which training pictures are near-duplicates of evaluation pictures.

Copies of a drawing travel between clip-art collections, scaled, recoloured and renamed: in one such collection 122 of 771
pictures were copies of OpenClipArt's, and supplied more than half of a model's score. A picture is taken for a copy when its
frozen features and its 16 x 16 thumbnail both agree, or one of them agrees very closely.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from tqdm import tqdm

from veclip_core.captioning.features import FEATURE_WIDTH, FeatureConfig, normalised
from veclip_core.config import Config

if TYPE_CHECKING:
    from veclip_core.captioning.features import FeatureNetwork

_THUMBNAIL = 16


class NearDuplicateConfig(Config):
    """Thresholds of the near-duplicate filter."""

    features: FeatureConfig = FeatureConfig()
    """What the pictures are compared by; centred on the mean of the evaluation pictures before the cosine is taken."""

    both_cosine: float = 0.7
    """With `both_rms`: a copy when the cosine is above this and the thumbnails differ by less than that."""

    both_rms: float = 40.0
    """Root mean square difference of the 16 x 16 thumbnails, of 255."""

    cosine_alone: float = 0.9
    """A copy when the cosine is above this, whatever the thumbnails say."""

    rms_alone: float = 10.0
    """A copy when the thumbnails differ by less than this, whatever the features say."""


@dataclass(frozen=True)
class Looks:
    """How N pictures look: features (N, 1280) float32 and thumbnails (N, 16 * 16 * 3) float32 of 0 to 255."""

    features: np.ndarray
    thumbnails: np.ndarray


def find_near_duplicates(pictures: Looks, of: Looks, config: NearDuplicateConfig) -> np.ndarray:
    """For each of `pictures` the index of the picture in `of` that it copies, or -1; int64 (N,)."""
    if not len(pictures.features) or not len(of.features):
        return np.full(len(pictures.features), -1)
    # Centred: raw features are all positive and any two have a cosine near .5.
    centre = of.features.mean(axis=0, keepdims=True)
    cosine_NM = normalised(pictures.features - centre) @ normalised(of.features - centre).T
    rms_NM = _rms(pictures.thumbnails, of.thumbnails)
    copy_NM = (
        ((cosine_NM > config.both_cosine) & (rms_NM < config.both_rms))
        | (cosine_NM > config.cosine_alone)
        | (rms_NM < config.rms_alone)
    )
    nearest_N = np.where(copy_NM, cosine_NM, -np.inf).argmax(axis=1)
    return np.where(copy_NM.any(axis=1), nearest_N, -1)


def looks_of(pictures: Iterable[Image.Image], network: "FeatureNetwork") -> Looks:
    """Features and thumbnails of pictures, computed now."""
    squares = [network.square(picture) for picture in pictures]
    if not squares:
        return Looks(np.empty((0, FEATURE_WIDTH), np.float32), np.empty((0, 3 * _THUMBNAIL**2), np.float32))
    features, _ = network(np.stack(squares))
    thumbnails = [
        np.asarray(Image.fromarray(square).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX), np.float32).ravel()
        for square in squares
    ]
    return Looks(features, np.stack(thumbnails))


def cached_looks(files: Sequence[tuple[str, Path]], cache: Path, config: FeatureConfig, what: str) -> Looks:
    """Looks of (SHA-256, file) pairs; those of an earlier call are read from `cache` (an .npz), new ones are added to it."""
    from veclip_core.captioning.features import FeatureNetwork

    known = _read_cache(cache, config)
    missing = [(sha256, file) for sha256, file in files if sha256 not in known]
    if missing:
        network = FeatureNetwork(config)
        step = network.batch_size
        with tqdm(total=len(missing), desc=f"features of {what}", unit="picture", mininterval=1) as bar:
            for start in range(0, len(missing), step):
                batch = missing[start : start + step]
                looks = looks_of((_opened(file) for _, file in batch), network)
                known.update(
                    (sha256, (feature, thumbnail))
                    for (sha256, _), feature, thumbnail in zip(batch, looks.features, looks.thumbnails, strict=True)
                )
                bar.update(len(batch))
        _write_cache(cache, config, known)
    return Looks(
        np.stack([known[sha256][0] for sha256, _ in files]), np.stack([known[sha256][1] for sha256, _ in files])
    )


def _opened(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        picture.load()
        return picture


def _rms(a_NT: np.ndarray, b_MT: np.ndarray) -> np.ndarray:
    squares = (a_NT**2).sum(1)[:, None] + (b_MT**2).sum(1)[None, :] - 2.0 * a_NT @ b_MT.T
    return np.sqrt(np.maximum(squares, 0.0) / a_NT.shape[1])


def _read_cache(cache: Path, config: FeatureConfig) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    if not cache.exists():
        return {}
    with np.load(cache) as kept:
        if str(kept["identity"]) != config.identity():
            return {}
        return {
            str(sha256): (feature, thumbnail)
            for sha256, feature, thumbnail in zip(kept["sha256"], kept["features"], kept["thumbnails"], strict=True)
        }


def _write_cache(cache: Path, config: FeatureConfig, known: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    aside = cache.with_name(f"{cache.stem}.tmp.npz")
    np.savez(
        aside,
        identity=config.identity(),
        sha256=np.array(list(known)),
        features=np.stack([feature for feature, _ in known.values()]),
        thumbnails=np.stack([thumbnail for _, thumbnail in known.values()]),
    )
    aside.rename(cache)
