"""The sample world: OpenClipArt with its uploaders' titles as a small web of pictures and real, noisy AltText.

The titles are kept as they are: theme names repeated over hundreds of icons, e-mail addresses, HTML entities escaped twice,
five languages. Kept too are what a downloader has to survive: pictures that decompress to hundreds of megapixels, dead links,
repeated rows, an AltText that is a page of HTML. What is left out, and why, is counted in `world.json`.
"""

import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from veclip_core.config import Config, digest_of
from veclip_core.sources.clipart import ClipArt, read_clipart
from veclip_core.sources.near_duplicates import NearDuplicateConfig, cached_looks, find_near_duplicates
from veclip_core.sources.openmoji import OpenMojiSet, build_openmoji
from veclip_core.sources.sample_packages import PACKAGES, PackageReport, fetch_packages

logger = logging.getLogger(__name__)

SOURCE = "openclipart"
OPENMOJI_LOOKS = "features_openmoji.npz"
"""What the evaluation pictures look like, in the world's folder."""
PICTURES_PREFIX = "/png/"
"""Before a picture's path, in the path of its URL."""


class WorldConfig(Config):
    """What the sample world consists of."""

    port: int = 8737
    """Port of the local server; part of every URL and so of every url_id."""

    max_per_title: int = 20
    """At most this many pictures under one title: "gramastar" alone stands on 1,375."""

    max_compared_pixels: int = 16_000_000
    """Larger pictures are listed without being compared with the evaluation set; no downloader should take them."""

    near_duplicates: NearDuplicateConfig = NearDuplicateConfig()
    """Which pictures are taken for copies of evaluation pictures and left out."""

    dead_links: int = 40
    """URLs that answer 404, 410 or 500: addresses of duplicates that are not served."""

    repeated_rows: int = 16
    """Rows whose URL stands in the list already: half with the same AltText, half without any."""

    described_rows: int = 16
    """Rows whose URL stands in the list already, with the uploader's description as AltText: long, or with line breaks."""


@dataclass(frozen=True)
class WorldReport:
    """What the sample world holds. `pictures` adds up to the files in the packages, `rows` to the list."""

    root: Path
    rows: Mapping[str, int]
    pictures: Mapping[str, int]
    digest: str
    port: int
    seconds: float

    @property
    def urls(self) -> Path:
        return self.root / "urls.parquet"

    @property
    def total_rows(self) -> int:
        return sum(self.rows.values())


def build_world(cache: Path, out: Path, config: WorldConfig | None = None) -> WorldReport:
    """Write `out/urls.parquet` (url, alt_text, source) and `out/world.json`; `cache` holds the packages.

    The evaluation set is made on the way (`out/openmoji`). Done once: a second call with the same configuration reads it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_name(f"{out.name}.lock")):  # a second process would remove what this one is writing
        return _build_world(cache, out, config or WorldConfig())


def _build_world(cache: Path, out: Path, config: WorldConfig) -> WorldReport:
    started = time.monotonic()
    packages = fetch_packages(cache)
    evaluation = build_openmoji(cache, out)
    identity = digest_of([config.identity(), [package.sha256 for package in PACKAGES], evaluation.digest])
    world_file = out / "world.json"
    if world_file.exists() and json.loads(world_file.read_text())["identity"] == identity:
        return load_world(out)
    drawings = read_clipart(packages.png, packages.svg)
    kept, pictures = _select(drawings, packages, evaluation, out, config)
    rows, dead, row_counts = _rows(drawings, kept, config)
    digest = digest_of([rows, dead])
    _write_list(rows, out / "urls.parquet")
    world = {
        "identity": identity,
        "digest": digest,
        "port": config.port,
        "rows": row_counts,
        "pictures": pictures,
        "not_compared_too_large": sum(drawing.pixels > config.max_compared_pixels for drawing in kept),
        "config": config.model_dump(mode="json"),
        "licences": dict(Counter(drawing.licence for drawing in kept)),
        "packages": [asdict(package) for package in packages.packages],
        "evaluation": {"version": evaluation.version, "licence": "CC-BY-SA 4.0", "items": len(evaluation.items)},
        # relative, so that a data folder that is moved as a whole still works
        "png_root": os.path.relpath(packages.png.resolve(), out.resolve()),
        "dead": dead,
    }
    aside = out / "world.json.tmp"
    aside.write_text(json.dumps(world, indent=1, ensure_ascii=False))
    aside.rename(world_file)
    return WorldReport(out, row_counts, pictures, digest, config.port, time.monotonic() - started)


def load_world(out: Path) -> WorldReport:
    """The report of a world that was built before."""
    world = json.loads((out / "world.json").read_text())
    return WorldReport(out, world["rows"], world["pictures"], world["digest"], world["port"], 0.0)


def picture_path(path: str) -> str:
    """Path of a picture's URL on the server."""
    return f"{PICTURES_PREFIX}{quote(path)}"


def _select(
    drawings: list[ClipArt], packages: PackageReport, evaluation: OpenMojiSet, out: Path, config: WorldConfig
) -> tuple[list[ClipArt], dict[str, int]]:
    """The drawings that are listed, and the count of each reason to leave one out; the counts sum to the PNG files."""
    tagged = [drawing for drawing in drawings if drawing.in_public_domain]
    with_text = [drawing for drawing in tagged if drawing.title or drawing.description]
    capped = _cap_titles(with_text, config.max_per_title)
    kept = _without_copies(capped, packages, evaluation, out, config)
    return kept, {
        "listed": len(kept),
        "same_content": sum(len(drawing.duplicates) for drawing in drawings),
        "no_licence_tag": sum(not drawing.licence for drawing in drawings),
        "licence_not_public_domain": sum(
            bool(drawing.licence) and not drawing.in_public_domain for drawing in drawings
        ),
        "no_text": len(tagged) - len(with_text),
        "title_too_common": len(with_text) - len(capped),
        "copy_of_evaluation_picture": len(capped) - len(kept),
    }


def _cap_titles(drawings: list[ClipArt], most: int) -> list[ClipArt]:
    """At most `most` drawings a title, chosen by content so that no folder is preferred."""
    taken: Counter[str] = Counter()
    kept = []
    for drawing in sorted(drawings, key=lambda drawing: drawing.sha256):
        taken[drawing.title] += 1
        if taken[drawing.title] <= most:
            kept.append(drawing)
    return sorted(kept, key=lambda drawing: drawing.path)


def _without_copies(
    drawings: list[ClipArt], packages: PackageReport, evaluation: OpenMojiSet, out: Path, config: WorldConfig
) -> list[ClipArt]:
    features = config.near_duplicates.features
    compared = [drawing for drawing in drawings if drawing.pixels <= config.max_compared_pixels]
    theirs = cached_looks(
        [(item.sha256, item.file) for item in evaluation.items], out / OPENMOJI_LOOKS, features, "OpenMoji"
    )
    ours = cached_looks(
        [(drawing.sha256, packages.png / drawing.path) for drawing in compared],
        out / "features.npz",
        features,
        "OpenClipArt",
    )
    copied = find_near_duplicates(ours, theirs, config.near_duplicates)
    copies = set()
    for drawing, index in zip(compared, copied, strict=True):
        if index >= 0:
            copies.add(drawing.sha256)
            logger.info("left out %s: a copy of OpenMoji's %r", drawing.path, evaluation.items[index].caption)
    return [drawing for drawing in drawings if drawing.sha256 not in copies]


def _rows(
    drawings: list[ClipArt], kept: list[ClipArt], config: WorldConfig
) -> tuple[list[tuple[str, str]], dict[str, int], dict[str, int]]:
    """(URL, AltText) rows sorted; the status of each dead path; how many rows of each kind."""

    def url(path: str) -> str:
        return f"http://127.0.0.1:{config.port}{picture_path(path)}"

    listed = [(url(drawing.path), drawing.title) for drawing in kept]
    dead = _dead_links(drawings, config.dead_links)
    gone = [(url(path), title) for path, title in dead]
    again = sorted(kept, key=lambda drawing: _shuffled("repeat", drawing.path))[: config.repeated_rows]
    repeated = [(url(d.path), d.title if index % 2 == 0 else "") for index, d in enumerate(again)]
    described = [(url(d.path), d.description) for d in _described(kept, config.described_rows)]
    statuses = {picture_path(path): (404, 404, 410, 500)[index % 4] for index, (path, _) in enumerate(dead)}
    counts = {"pictures": len(listed), "dead_links": len(gone), "repeated": len(repeated), "described": len(described)}
    return sorted(listed + gone + repeated + described), statuses, counts


def _dead_links(drawings: list[ClipArt], count: int) -> list[tuple[str, str]]:
    """(Path, title) of duplicates that are not served."""
    candidates = [(path, d.title) for d in drawings if d.in_public_domain and d.title for path in d.duplicates]
    return sorted(candidates, key=lambda candidate: _shuffled("dead", candidate[0]))[:count]


def _described(kept: list[ClipArt], count: int) -> list[ClipArt]:
    """Drawings with the longest descriptions, then such with a line break or another control character in theirs."""
    by_text = {d.description: d for d in kept if d.description and d.description != d.title}
    longest = sorted(by_text, key=lambda text: (-len(text), text))[: count // 4]
    broken = [text for text in by_text if any(ord(char) < 32 for char in text) and text not in longest]
    chosen = longest + sorted(broken, key=lambda text: _shuffled("described", text))
    return [by_text[text] for text in chosen[:count]]


def _shuffled(purpose: str, text: str) -> str:
    """A sort key without any order of its own, the same on every machine."""
    return hashlib.sha256(f"{purpose}\0{text}".encode()).hexdigest()


def _write_list(rows: list[tuple[str, str]], file: Path) -> None:
    table = pa.table(
        {"url": [url for url, _ in rows], "alt_text": [alt for _, alt in rows], "source": [SOURCE] * len(rows)}
    )
    aside = file.with_name(f"{file.name}.tmp")
    pq.write_table(table, aside)
    aside.rename(file)
