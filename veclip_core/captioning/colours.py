"""The colours of a drawing in words."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

_SIDE = 64
_SECOND_SHARE = 0.25
"""A second colour is named from this share of the drawing on."""

_HUES = ((20, "red"), (38, "orange"), (68, "yellow"), (165, "green"), (255, "blue"), (312, "purple"), (345, "pink"))
"""Upper ends in degrees; past the last it is red again."""


def dominant_colours(picture: "Image") -> list[str]:
    """One or two colour names, the larger first. White counts only where the drawing has nothing else: it is the background."""
    names_P = _names(np.asarray(picture.convert("RGB").resize((_SIDE, _SIDE)), np.float32).reshape(-1, 3))
    names_P = names_P[names_P != "white"]
    if not len(names_P):
        return ["white"]
    names, counts = np.unique(names_P, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    first, *others = [(str(names[index]), counts[index] / len(names_P)) for index in order]
    return [first[0]] + [name for name, share in others[:1] if share >= _SECOND_SHARE]


def _names(rgb_P3: np.ndarray) -> np.ndarray:
    """The colour name of each pixel: by lightness and saturation first, then by hue."""
    high, low = rgb_P3.max(axis=1), rgb_P3.min(axis=1)
    chroma, lightness = high - low, (high + low) / 2
    hue = _hue(rgb_P3, high, np.maximum(chroma, 1e-6))
    names = np.full(len(rgb_P3), "red", dtype="<U6")
    for end, name in reversed(_HUES):
        names[hue < end] = name
    warm = (hue < 42) | (hue >= 345)
    names[warm & (high < 190) & (chroma < 125)] = "brown"
    names[((hue < 22) | (hue >= 345)) & (lightness > 170)] = "pink"
    grey = chroma < 28
    names[grey] = "grey"
    names[grey & (lightness > 222)] = "white"
    names[high < 78] = "black"
    return names


def _hue(rgb_P3: np.ndarray, high: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """Degrees, 0 for red."""
    red, green, blue = rgb_P3.T
    sextant = np.where(
        high == red,
        ((green - blue) / chroma) % 6,
        np.where(high == green, (blue - red) / chroma + 2, (red - green) / chroma + 4),
    )
    return 60.0 * sextant
