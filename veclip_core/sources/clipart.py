"""OpenClipArt as Debian ships it: a PNG of each drawing, and an SVG whose RDF holds title, description and licence."""

import hashlib
import struct
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

_DC = "{http://purl.org/dc/elements/1.1/}"
_RDF_RESOURCE = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}resource"


@dataclass(frozen=True)
class ClipArt:
    """A drawing, once for each distinct content."""

    path: str
    """Of the PNG, relative to the folder of PNGs."""
    duplicates: tuple[str, ...]
    """Other paths at which the same bytes lie; Debian links most of them."""
    sha256: str
    pixels: int
    title: str
    """The uploader's, spaces around it removed; may be empty."""
    description: str
    licence: str
    """URI of the licence tag as it stands; empty where there is none."""

    @property
    def in_public_domain(self) -> bool:
        return self.licence.lower().replace(" ", "").endswith("publicdomain") or "licenses/publicdomain" in self.licence


def read_clipart(png: Path, svg: Path) -> list[ClipArt]:
    """All drawings in `png`, distinct by content, with what their SVG in `svg` says about them; sorted by path."""
    paths_by_content: dict[str, list[Path]] = {}
    for file in sorted(png.rglob("*.png")):
        paths_by_content.setdefault(hashlib.sha256(file.read_bytes()).hexdigest(), []).append(file)
    drawings = []
    for sha256, files in tqdm(paths_by_content.items(), desc="reading OpenClipArt", unit="picture", mininterval=1):
        first, *others = sorted(files, key=lambda file: (file.is_symlink(), str(file)))
        relative = first.relative_to(png)
        width, height = png_size(first)
        drawings.append(
            ClipArt(
                relative.as_posix(),
                tuple(other.relative_to(png).as_posix() for other in others),
                sha256,
                width * height,
                *_read_rdf(svg / relative.with_suffix(".svg")),
            )
        )
    return sorted(drawings, key=lambda drawing: drawing.path)


def png_size(file: Path) -> tuple[int, int]:
    """Width and height from the header alone: a decompression bomb is recognised without being opened."""
    with file.open("rb") as opened:
        header = opened.read(24)
    if header[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"{file} is not a PNG")
    width, height = struct.unpack(">II", header[16:24])
    return width, height


def _read_rdf(svg_file: Path) -> tuple[str, str, str]:
    """Title, description, licence of the first Work that the SVG describes."""
    for element in ElementTree.parse(svg_file).getroot().iter():
        if element.tag.endswith("}Work"):
            licences = [child.get(_RDF_RESOURCE, "") for child in element if child.tag.endswith("}license")]
            title, description = (element.findtext(_DC + name) or "" for name in ("title", "description"))
            return title.strip(), description.strip(), licences[0] if licences else ""
    return "", "", ""
