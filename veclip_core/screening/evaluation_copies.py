"""The check `evaluation`: whether a picture is a near-copy of one that models are evaluated on.

The rule is that of the sample's own list (sources/near_duplicates.py)."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from veclip_core import storage
from veclip_core.config import Config, digest_of
from veclip_core.screening.checks import Looks, ScreeningError
from veclip_core.sources import near_duplicates
from veclip_core.sources.near_duplicates import NearCopies, NearDuplicateConfig, cached_looks, looks_of

if TYPE_CHECKING:
    from PIL.Image import Image

ON_A_GPU = 64
"""Pictures that a GPU's network sees at a time."""
KEPT_IN = "screening"
"""Folder of the root with the looks of evaluation pictures, where workers on other machines find them."""


class EvaluationSet(Config):
    """An evaluation set as far as it decides what is a copy of it."""

    name: str
    digest: str
    """Of its pictures' names and contents."""


class EvaluationConfig(Config):
    """What decides whether a picture is a copy."""

    kind: Literal["evaluation"] = "evaluation"
    sets: tuple[EvaluationSet, ...]
    """Each is compared with by itself: another set more changes no answer about these."""
    rule: NearDuplicateConfig = NearDuplicateConfig()


@dataclass(frozen=True)
class EvaluationCheck:
    """`evaluation_copy` is `set/picture` of the evaluation picture that is copied, or null."""

    name: ClassVar[str] = "evaluation"
    columns: ClassVar[pa.Schema] = pa.schema([("evaluation_copy", pa.string())])
    needs_network: ClassVar[bool] = True
    config: EvaluationConfig
    looks: tuple[str, ...]
    """Where `keep_looks` put those of each set."""
    threads: int

    def open(self) -> Looks:
        import torch

        from veclip_core.captioning.features import FeatureNetwork

        torch.set_num_threads(self.threads)
        features = self.config.rule.features
        network = FeatureNetwork(features, ON_A_GPU, "cuda") if torch.cuda.is_available() else FeatureNetwork(features)
        sets = [_Set(one.name, uri, self.config.rule) for one, uri in zip(self.config.sets, self.looks, strict=True)]

        def copies(pictures: "Sequence[Image]") -> Mapping[str, Sequence[Any]]:
            ours = looks_of(pictures, network)
            found: list[str | None] = [None] * len(pictures)
            for one in sets:
                found = [first or other for first, other in zip(found, one.copied(ours), strict=True)]
            return {"evaluation_copy": found}

        return copies


class _Set:
    def __init__(self, name: str, uri: str, rule: NearDuplicateConfig) -> None:
        with np.load(io.BytesIO(storage.read_bytes(uri))) as kept:
            self._pictures = [f"{name}/{picture}" for picture in kept["pictures"]]
            looks = near_duplicates.Looks(kept["features"], kept["thumbnails"].astype(np.float32))
        self._copies = NearCopies(looks, rule)

    def copied(self, pictures: near_duplicates.Looks) -> list[str | None]:
        return [self._pictures[index] if index >= 0 else None for index in self._copies.find(pictures)]


def keep_looks(
    name: str, pictures: Sequence[tuple[str, str, Path | str]], root: str, cache: Path, rule: NearDuplicateConfig
) -> tuple[EvaluationSet, str]:
    """Compute how an evaluation set looks, once, and keep that in the root (5.9 kB a picture); the set, and the address.

    Args:
        pictures: name, SHA-256 and file or address of each.
        cache: the .npz that holds the looks of pictures seen before.

    Raises:
        ScreeningError: when the set is empty.
        UnreadablePicture: when one of its pictures can't be opened.
    """
    if not pictures:
        raise ScreeningError(
            f"there are no pictures in the evaluation set {name}: VECLIP_SCREEN_AGAINST must name a folder of them"
        )
    of = EvaluationSet(name=name, digest=digest_of(sorted((picture, sha256) for picture, sha256, _ in pictures)))
    uri = storage.join(root, KEPT_IN, f"{name}-{digest_of([of.digest, rule.features.identity()])[:16]}.npz")
    if not storage.exists(uri):
        cache.parent.mkdir(parents=True, exist_ok=True)
        looks = cached_looks([(sha256, file) for _, sha256, file in pictures], cache, rule.features, name)
        buffer = io.BytesIO()
        np.savez(
            buffer,
            pictures=np.array([picture for picture, _, _ in pictures]),
            features=looks.features,
            thumbnails=looks.thumbnails.astype(np.uint8),
        )
        storage.write_bytes(uri, buffer.getvalue())
    return of, uri
