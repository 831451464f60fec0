"""Emoji as visual concepts: Unicode's short name, group and subgroup of each, and the split into fitted and unseen ones."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

UNSEEN_ONE_IN = 5
"""A fifth of the concepts is held out: the captioner is never fitted on them."""

_VARIATION_SELECTOR = "FE0F"
_SKIN_TONES = frozenset({"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"})
_FLAGS = "Flags"

ConceptSplit = Literal["fitted", "unseen"]


@dataclass(frozen=True)
class EmojiConcept:
    """One emoji, whoever draws it."""

    hexcode: str
    """Code points in hex joined by "-", without variation selectors: `1F469-200D-1F680`."""
    name: str
    """Unicode's short name: "woman astronaut"."""
    group: str
    """One of nine: "People & Body"."""
    subgroup: str
    """One of about a hundred: "person-role"."""

    @property
    def split(self) -> ConceptSplit:
        return concept_split(self.hexcode)


def concept_split(hexcode: str) -> ConceptSplit:
    """Whether a concept is one that the captioner is fitted on; depends on the concept alone."""
    digest = hashlib.sha256(f"concept-split\0{hexcode}".encode()).digest()
    return "unseen" if int.from_bytes(digest[:8], "big") % UNSEEN_ONE_IN == 0 else "fitted"


def bare_hexcode(code_points: str) -> str:
    """Code points joined by " " or "-", upper case, without variation selectors, joined by "-"."""
    pieces = code_points.upper().replace("-", " ").split()
    return "-".join(piece for piece in pieces if piece != _VARIATION_SELECTOR)


def read_concepts(emoji_test: Path) -> list[EmojiConcept]:
    """The fully qualified emoji of Unicode's emoji-test.txt in its order, without flags and skin tone variants."""
    concepts, group, subgroup = [], "", ""
    for line in emoji_test.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group:"):
            group = line.partition(":")[2].strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.partition(":")[2].strip()
        elif "; fully-qualified" in line and group != _FLAGS:
            hexcode = bare_hexcode(line.partition(";")[0])
            if _SKIN_TONES.isdisjoint(hexcode.split("-")):
                # "# 😀 E1.0 grinning face": the picture, the version, then the name
                name = line.partition("#")[2].split(maxsplit=2)[2].strip()
                concepts.append(EmojiConcept(hexcode, name, group, subgroup))
    return concepts
