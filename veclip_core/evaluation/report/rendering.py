"""What strangers wrote and drew, made fit for a page: Jinja escapes every text, control and direction-changing characters are
made harmless, and pictures become small data URIs."""

import base64
import io
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veclip_core.evaluation.report import words
from veclip_core.evaluation.report.inputs import Picture

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
LONGEST_TEXT = 320


def clean(text: str | None, longest: int = LONGEST_TEXT) -> str:
    """Text of a stranger, fit to be shown: control and direction-changing characters as a visible sign, cut where very long."""
    text = text or ""
    shown = re.sub(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\u061c\ud800-\udfff]",
        "\ufffd",
        text[:longest],
    )
    return shown if len(text) <= longest else f"{shown}… ({len(text):,} characters)"


def breakable(text: str) -> Any:
    """A name as HTML that may break after its signs: "open_clip/ViT-B-16" in a narrow column."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[-_/.:+])", text))


def thumbnail(picture: Picture, pixels: int) -> str:
    """A data URI of the picture, at most `pixels` on its longer side, on white."""
    from PIL import Image

    with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as opened:
        return data_uri(opened.convert("RGBA"), pixels)


def data_uri(picture: "Image", pixels: int) -> str:
    from PIL import Image

    small = picture.convert("RGBA")
    small.thumbnail((pixels, pixels), Image.Resampling.LANCZOS)
    on_white = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small).convert("RGB")
    encoded = io.BytesIO()
    on_white.save(encoded, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(encoded.getvalue()).decode()


def environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "clean": clean,
        "breakable": breakable,
        "number": words.number,
        "signed": words.signed,
        "metric": words.metric_name,
        "sentence": lambda text: text[:1].upper() + text[1:],
        "count": lambda value: f"{value:,}",
    }
    return environment


def written(page: str, out: Path, largest: int) -> Path:
    """Write a page to `out` (a folder gets `report.html`), and say so where it has more than `largest` bytes; its path."""
    out = out / "report.html" if out.is_dir() else out
    encoded = page.encode()
    if len(encoded) > largest:
        logger.warning("%s has %.1f MB: give fewer examples to keep it easy to send", out.name, len(encoded) / 1e6)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(encoded)
    return out
