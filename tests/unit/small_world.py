"""A small cut of the real sample packages, so that tests build a whole sample world in seconds."""

import json
import shutil
from pathlib import Path

import pytest

from veclip_core.settings import Settings
from veclip_core.sources import sample_packages
from veclip_core.sources.sample_packages import PackageReport, fetch_packages, unpacked_folder

FOLDERS = (
    "animals/bugs",
    "animals/fish",
    "computer/icons/lemon-theme/filesystems",
    "computer/icons/etiquette-theme/emblems",
)
BOMB = "signs_and_symbols/stop_sign_miguel_s_nchez_"
DUPLICATED = "animals/bugs"
"""A folder that lies in `unsorted/duplicates` once more, as parts of the whole collection do."""
EMOJI_LINES = 20
"""Of each group in emoji-test.txt."""


@pytest.fixture(scope="session")
def real_packages() -> PackageReport:
    """The unpacked packages in the cache of the settings; fetched where they are not there."""
    return fetch_packages(Settings.from_environment().cache_folder / "packages")


@pytest.fixture(scope="session")
def small_cache(real_packages: PackageReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package cache with a few folders of OpenClipArt, one decompression bomb, and the first emoji of each group."""
    cache = tmp_path_factory.mktemp("small packages")
    root = unpacked_folder(cache)
    small = PackageReport(root, sample_packages.PACKAGES, 0, 0.0)
    for kind, source in (("png", real_packages.png), ("svg", real_packages.svg)):
        for folder in FOLDERS:
            shutil.copytree(source / folder, root / "openclipart" / kind / folder)
        shutil.copytree(source / DUPLICATED, root / "openclipart" / kind / "unsorted/duplicates")
        bomb = root / "openclipart" / kind / f"{BOMB}.{kind}"
        bomb.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / f"{BOMB}.{kind}", bomb)
    small.noto_font.parent.mkdir(parents=True)
    shutil.copyfile(real_packages.noto_font, small.noto_font)
    small.emoji_names.parent.mkdir(parents=True)
    small.emoji_names.write_text(_first_of_each_group(real_packages.emoji_names.read_text(encoding="utf-8")))
    (root / sample_packages.MARKER).write_text(json.dumps([]))
    return cache


def _first_of_each_group(emoji_test: str) -> str:
    kept, left = [], 0
    for line in emoji_test.splitlines():
        left = EMOJI_LINES if line.startswith("# group:") else left - 1
        if line.startswith(("# group:", "# subgroup:")) or left > 0:
            kept.append(line)
    return "\n".join(kept)
