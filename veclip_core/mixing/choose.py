"""Which of a sample's texts a training step reads: a pure function, the same in any order and in any process.

The draw is per sample and epoch (PAPER.md, mixed training), so an interrupted training, a different number of workers or
another order of the manifest give every sample the same text.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from veclip_core.captioning.template import template_fusion

if TYPE_CHECKING:
    import pyarrow as pa

ALT_TEXT = "alt"
TEMPLATE = "template"
"""No column of its own: AltText and VeC one after the other."""
CONTROL = "control"
"""VeCaps fused from another picture's VeC; only the control's manifest has them."""
SOURCES = (ALT_TEXT, "vec", "vecap", TEMPLATE, CONTROL)
"""Besides them the columns of styles, `vecap_<name>` and `vec_<name>` (captioning/styles.py)."""
NO_TEXT = "none"
MIN_GENERATED_WORDS = 2
"""A generated text below this falls back to the AltText (LaCLIP's rule); a one-word AltText stands."""

_SPACE = r"\s\x0b\x1c-\x1f\x{85}\p{Z}"
"""What `str.split` splits at, for RE2, whose own classes know no Unicode white space."""
_ONE_WORD, _TWO_WORDS = f"[^{_SPACE}]", f"[^{_SPACE}][{_SPACE}]+[^{_SPACE}]"
"""Found within a text's first words: counting all of them takes several times as long."""
_UNIT = 2.0**-53


def draw(seed: int, epoch: int, sample_id: str) -> float:
    """A number in [0, 1) with 53 random bits."""
    digest = hashlib.blake2b(f"{seed}:{epoch}:{sample_id}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * _UNIT


def choose(seed: int, epoch: int, sample_id: str, weights: Mapping[str, float]) -> str:
    """The caption source drawn for one sample in one epoch.

    Args:
        weights: caption column to weight, not negative, of any positive sum; the draw runs along them in the given order.

    Raises:
        ValueError: when no weight is positive.
    """
    total = sum(weights.values())
    if not total > 0 or any(not weight >= 0 for weight in weights.values()):
        raise ValueError(f"caption weights must be positive or zero, and one positive: {dict(weights)}")
    point = draw(seed, epoch, sample_id) * total
    reached = 0.0
    chosen = ""
    for source, weight in weights.items():
        if weight == 0:
            continue
        chosen = source
        reached += weight
        if point < reached:
            break
    return chosen


def caption_of(
    row: Mapping[str, str | None], seed: int, epoch: int, weights: Mapping[str, float]
) -> tuple[str, str, bool]:
    """The text a sample is trained on in this epoch.

    An unusable choice falls back to the AltText, then to the other sources that have a weight. A generated text
    without a weight is never read: the arm that trains on AltText alone must not see a generated text.

    Args:
        row: a manifest row: `sample_id` and the caption columns.

    Returns:
        The text, the source it came from (`none`, with an empty text, where no source is usable), whether it fell back.
    """
    chosen = choose(seed, epoch, str(row["sample_id"]), weights)
    for source in (chosen, ALT_TEXT, *(name for name, weight in weights.items() if weight > 0)):
        text = text_of(row, source)
        if is_usable(text, source):
            return text, source, source != chosen
    return "", NO_TEXT, True


def text_of(row: Mapping[str, str | None], source: str) -> str:
    """A sample's text of one source, empty where it has none."""
    if source == TEMPLATE:
        return template_fusion(row.get(ALT_TEXT) or "", row.get("vec") or "")
    return (row.get(source) or "").strip()


def is_source(name: str) -> bool:
    """Whether a name can be that of a caption source."""
    return name in SOURCES or re.fullmatch("vec(ap)?_[a-z][a-z0-9]*", name) is not None


def further_columns(weights: Mapping[str, float]) -> list[str]:
    """The columns that a mix reads besides AltText, VeC and VeCap, which every manifest has."""
    return [name for name in weights if name not in (ALT_TEXT, "vec", "vecap", TEMPLATE)]


def usable_mask(texts: "pa.ChunkedArray", source: str) -> "np.ndarray":
    """`is_usable` of a column of texts; bool (N,)."""
    import pyarrow.compute as pc

    return np.asarray(pc.match_substring_regex(texts, _ONE_WORD if source == ALT_TEXT else _TWO_WORDS))


def is_usable(text: str | None, source: str) -> bool:
    """Whether a text can be trained on: one word of AltText, two of a generated text."""
    words = len((text or "").split())
    return words >= (1 if source == ALT_TEXT else MIN_GENERATED_WORDS)
