"""Small things about pictures that every source shares."""

from PIL import Image


def on_white(picture: Image.Image) -> Image.Image:
    """The picture as RGB, transparent parts white (a plain conversion shows whatever colour hides there, mostly black)."""
    if picture.mode not in ("RGBA", "LA", "PA") and "transparency" not in picture.info:
        return picture.convert("RGB")
    rgba = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
