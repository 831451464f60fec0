"""Noto's emoji drawings, read as PNGs out of the colour bitmap table (CBDT) of Debian's font file."""

from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from veclip_core.sources.emoji_concepts import EmojiConcept, read_concepts
from veclip_core.sources.pictures import on_white

if TYPE_CHECKING:
    from fontTools.ttLib import TTFont


def noto_pictures(font_file: Path, emoji_test: Path) -> list[tuple[EmojiConcept, Image.Image]]:
    """Each concept that Noto draws, with its drawing: RGB, 136 x 128 px, on white. In Unicode's order."""
    return [(concept, on_white(Image.open(BytesIO(data)))) for concept, data in _glyphs(font_file, emoji_test)]


def noto_concepts(font_file: Path, emoji_test: Path) -> list[EmojiConcept]:
    """The concepts that Noto draws, in Unicode's order."""
    return [concept for concept, _ in _glyphs(font_file, emoji_test)]


def _glyphs(font_file: Path, emoji_test: Path) -> Iterator[tuple[EmojiConcept, bytes]]:
    """Concept and PNG file of each glyph; sequences (a woman, a joiner, a rocket) are ligatures of the font."""
    from fontTools.ttLib import TTFont

    font = TTFont(font_file, lazy=True)
    characters = font.getBestCmap()
    ligatures = _ligatures(font)
    bitmaps = font["CBDT"].strikeData[0]
    for concept in read_concepts(emoji_test):
        glyph = _glyph_of(concept.hexcode, characters, ligatures)
        if glyph in bitmaps:
            yield concept, bitmaps[glyph].imageData


def _ligatures(font: "TTFont") -> dict[tuple[str, ...], str]:
    """Sequences of glyph names that the font draws as one glyph."""
    found = {}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for subtable in lookup.SubTable:
            for first, ligatures in getattr(subtable, "ligatures", {}).items():
                for ligature in ligatures:
                    found[(first, *ligature.Component)] = ligature.LigGlyph
    return found


def _glyph_of(hexcode: str, characters: Mapping[int, str], ligatures: Mapping[tuple[str, ...], str]) -> str | None:
    names = [characters.get(int(code, 16)) for code in hexcode.split("-")]
    if None in names:
        return None
    return names[0] if len(names) == 1 else ligatures.get(tuple(name for name in names if name))
