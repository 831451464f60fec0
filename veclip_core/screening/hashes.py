"""The check `hash`: PDQ, Meta's perceptual hash of 256 bits, and its quality.

Hashes of pictures that look alike differ in few bits. pdq/README.md of facebook/ThreatExchange recommends to begin with 31 bits or
fewer for a match, and to discard hashes of a quality of 49 or less: a flat drawing has too few edges for its hash to mean anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from veclip_core.config import Config
from veclip_core.screening.checks import Looks

if TYPE_CHECKING:
    from PIL.Image import Image

PDQ_BYTES = 32
DISTANCE, MIN_QUALITY = 31, 50
"""PDQ's recommendations."""


class HashConfig(Config):
    """What decides a hash."""

    kind: Literal["pdq"] = "pdq"
    library: str = Field(default_factory=lambda: version("pdqhash"))
    """Another version may give other bits."""


@dataclass(frozen=True)
class HashCheck:
    """`pdq` is the hash as 64 hex digits, as ThreatExchange writes it; `pdq_quality` goes from 0 to 100."""

    name: ClassVar[str] = "hash"
    columns: ClassVar[pa.Schema] = pa.schema([("pdq", pa.string()), ("pdq_quality", pa.int32())])
    needs_network: ClassVar[bool] = False
    config: HashConfig = field(default_factory=HashConfig)

    def open(self) -> Looks:
        return _hashes


def _hashes(pictures: "Sequence[Image]") -> Mapping[str, Sequence[Any]]:
    import pdqhash

    found = [pdqhash.compute(np.asarray(picture)) for picture in pictures]
    return {
        "pdq": [np.packbits(bits.astype(np.uint8)).tobytes().hex() for bits, _ in found],
        "pdq_quality": [int(quality) for _, quality in found],
    }


def codes_of(hashes: Sequence[str]) -> np.ndarray:
    """Hashes in hex as uint8 (N, 32)."""
    return np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(-1, PDQ_BYTES)
