"""Small things about pictures that every source shares."""

from PIL import Image


def on_white(picture: Image.Image) -> Image.Image:
    """The picture as RGB, transparent pixels on white."""
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    rgba = picture.convert("RGBA")
    background = Image.new("RGBA", rgba.size, "white")
    background.alpha_composite(rgba)
    return background.convert("RGB")
