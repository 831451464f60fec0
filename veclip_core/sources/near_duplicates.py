"""Which training pictures are near-duplicates of evaluation pictures.

Copies of a drawing travel between clip-art collections, scaled, recoloured and renamed: in one such collection 122 of 771
pictures were copies of OpenClipArt's, and supplied more than half of a model's score. A picture is taken for a copy when its
frozen features and its 16 x 16 thumbnail both agree, or one of them agrees very closely.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from tqdm import tqdm

from veclip_core import storage
from veclip_core.captioning.features import FEATURE_WIDTH, FeatureConfig, normalised
from veclip_core.config import Config
from veclip_core.download.pictures import BROKEN, FORMATS
from veclip_core.mendable import Mendable

if TYPE_CHECKING:
    from veclip_core.captioning.features import FeatureNetwork

_THUMBNAIL = 16
_QUERIES, _PAIRS = 64, 1_024
"""Pictures, and pairs of pictures, compared at a time: however many copies there are, memory has a bound."""
_SLACK = 1e-3
"""By how much the search is wider than the rule, so that its rounding loses no pair."""

_KEPT_EVERY = 4_096
"""Pictures after which the features found so far are kept: a large set takes an hour."""


class UnreadablePicture(Mendable):
    """A picture of an evaluation set can't be opened: what copies it would pass unseen."""


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


class NearCopies:
    """Finds copies of the pictures of one set. It holds 8.2 kB for each of them (0.8 GB for 100,000), whatever is compared."""

    def __init__(self, of: Looks, config: NearDuplicateConfig) -> None:
        import faiss

        self._config = config
        # Centred: raw features are all positive and any two have a cosine near .5.
        self._centre = of.features.mean(axis=0, keepdims=True)
        self._features = faiss.IndexFlatIP(of.features.shape[1])
        self._features.add(_rows(normalised(of.features - self._centre)))
        self._thumbnails = faiss.IndexFlatL2(of.thumbnails.shape[1])
        self._thumbnails.add(_rows(of.thumbnails))

    def find(self, pictures: Looks) -> np.ndarray:
        """For each of `pictures` the index of the picture that it copies (of several the one with the largest cosine), or -1;
        int64 (N,)."""
        found = np.full(len(pictures.features), -1)
        for start in range(0, len(found), _QUERIES):
            some = slice(start, start + _QUERIES)
            features = _rows(normalised(pictures.features[some] - self._centre))
            thumbnails = _rows(pictures.thumbnails[some])
            of_pair, pair = self._copies(features, thumbnails)
            found[start + of_pair] = pair
        return found

    def _copies(self, features_QF: np.ndarray, thumbnails_QT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The queries that are copies, and the index of what each copies."""
        queries, others = self._candidates(features_QF, thumbnails_QT)
        nearest: dict[int, tuple[float, int]] = {}
        for start in range(0, len(queries), _PAIRS):
            query_P, other_P = queries[start : start + _PAIRS], others[start : start + _PAIRS]
            cosine_P = np.einsum("pf,pf->p", features_QF[query_P], self._features.reconstruct_batch(other_P))
            apart_PT = thumbnails_QT[query_P] - self._thumbnails.reconstruct_batch(other_P)
            copy_P = self._is_copy(cosine_P, np.sqrt((apart_PT**2).mean(axis=1)))
            for query, cosine, other in zip(query_P[copy_P], cosine_P[copy_P], other_P[copy_P], strict=True):
                nearest[query] = max((float(cosine), -int(other)), nearest.get(query, (-np.inf, 0)))
        return np.array(list(nearest), int), np.array([-other for _, other in nearest.values()], int)

    def _candidates(self, features_QF: np.ndarray, thumbnails_QT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Every pair that the rule may call a copy, as (query, index): one of its two measures is close in each of them."""
        config = self._config
        cosine = min(config.both_cosine, config.cosine_alone) - _SLACK
        squared = thumbnails_QT.shape[1] * (config.rms_alone * (1 + _SLACK)) ** 2
        count = self._features.ntotal
        pairs = []
        for index, queries, radius in (
            (self._features, features_QF, cosine),
            (self._thumbnails, thumbnails_QT, squared),
        ):
            limits, _, others = index.range_search(queries, radius)
            pairs.append(np.repeat(np.arange(len(queries)), np.diff(limits).astype(int)) * count + others)
        return np.divmod(np.unique(np.concatenate(pairs)), max(count, 1))

    def _is_copy(self, cosine: np.ndarray, rms: np.ndarray) -> np.ndarray:
        config = self._config
        both = (cosine > config.both_cosine) & (rms < config.both_rms)
        return both | (cosine > config.cosine_alone) | (rms < config.rms_alone)


def find_near_duplicates(pictures: Looks, of: Looks, config: NearDuplicateConfig) -> np.ndarray:
    """For each of `pictures` the index of the picture in `of` that it copies, or -1; int64 (N,)."""
    if not len(pictures.features) or not len(of.features):
        return np.full(len(pictures.features), -1)
    return NearCopies(of, config).find(pictures)


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


def cached_looks(files: Sequence[tuple[str, Path | str]], cache: Path, config: FeatureConfig, what: str) -> Looks:
    """Looks of (SHA-256, file or address) pairs; those of an earlier call are read from `cache` (an .npz), new ones are added.

    Raises:
        UnreadablePicture: naming the file.
    """
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
                if (start // step + 1) % (_KEPT_EVERY // step) == 0:
                    _write_cache(cache, config, known)
        _write_cache(cache, config, known)
    return Looks(
        np.stack([known[sha256][0] for sha256, _ in files]), np.stack([known[sha256][1] for sha256, _ in files])
    )


def _opened(file: Path | str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(storage.read_bytes(str(file))), formats=FORMATS) as picture:
            picture.load()
            return picture
    except (*BROKEN, Image.DecompressionBombError) as error:
        raise UnreadablePicture(
            f"{file} can't be opened as a picture ({error}): mend it, or take it out of the set"
        ) from error


def _rows(vectors: np.ndarray) -> np.ndarray:
    """As faiss reads them."""
    return np.ascontiguousarray(vectors, dtype=np.float32)


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
    aside = storage.beside(cache).with_suffix(".npz")  # numpy adds the suffix to a name without it
    np.savez(
        aside,
        identity=config.identity(),
        sha256=np.array(list(known)),
        features=np.stack([feature for feature, _ in known.values()]),
        thumbnails=np.stack([thumbnail for _, thumbnail in known.values()]),
    )
    aside.rename(cache)
