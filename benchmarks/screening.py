"""What screening costs: pictures a second of the checks, and time and memory of the search for near-duplicates.

python benchmarks/screening.py hash --pictures 2000
python benchmarks/screening.py evaluation --pictures 200 --against 100000
python benchmarks/screening.py duplicates --pictures 1000000 --search bands
python benchmarks/screening.py recall
"""

import argparse
import json
import resource
import sys
import time
from typing import Any

import numpy as np
import psutil
from PIL import Image

from veclip_core.captioning.features import FeatureNetwork
from veclip_core.screening.duplicates import DuplicatesConfig, Hashes, find_duplicates, leaders
from veclip_core.screening.hashes import HashCheck
from veclip_core.sources.near_duplicates import Looks, NearCopies, NearDuplicateConfig, looks_of

PIXELS = 256
"""Side of a downloaded picture."""
BATCH = 64


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("hash", "evaluation", "duplicates", "recall"))
    parser.add_argument("--pictures", type=int, default=2_000)
    parser.add_argument("--against", type=int, default=100_000, help="evaluation: pictures of the set")
    parser.add_argument("--search", choices=("exact", "bands"), default="exact")
    chosen = parser.parse_args()
    measured = {"hash": of_hash, "evaluation": of_evaluation, "duplicates": of_duplicates, "recall": of_recall}
    sys.stdout.write(json.dumps(measured[chosen.what](chosen), indent=1) + "\n")
    return 0


def of_hash(chosen: argparse.Namespace) -> dict[str, Any]:
    generator, look = np.random.default_rng(0), HashCheck().open()
    pictures = [_picture(generator) for _ in range(BATCH)]
    started = time.perf_counter()
    for _ in range(0, chosen.pictures, BATCH):
        look(pictures)
    return {"pictures_per_second": round(chosen.pictures / (time.perf_counter() - started))}


def of_evaluation(chosen: argparse.Namespace) -> dict[str, Any]:
    """Random features: the search costs the same for them, and finds nothing."""
    generator = np.random.default_rng(0)
    theirs = Looks(
        generator.standard_normal((chosen.against, 1280), np.float32),
        generator.integers(0, 256, (chosen.against, 768)).astype(np.float32),
    )
    network, process = FeatureNetwork(), psutil.Process()
    before = process.memory_info().rss
    copies = NearCopies(theirs, NearDuplicateConfig())
    kept = process.memory_info().rss - before
    pictures = [_picture(generator) for _ in range(chosen.pictures)]
    started = time.perf_counter()
    looks = looks_of(pictures, network)
    looked = time.perf_counter()
    copies.find(looks)
    searched = time.perf_counter()
    return {
        "features_pictures_per_second": round(chosen.pictures / (looked - started), 1),
        "search_pictures_per_second": round(chosen.pictures / (searched - looked), 1),
        "bytes_a_picture_of_the_set": round(kept / chosen.against),
    }


def of_duplicates(chosen: argparse.Namespace) -> dict[str, Any]:
    """Random hashes, of which every tenth is a copy of another within 20 bits."""
    generator = np.random.default_rng(0)
    count = chosen.pictures
    codes = generator.integers(0, 256, (count, 32), dtype=np.uint8)
    copies = np.arange(0, count, 10)
    codes[copies] = codes[generator.integers(0, count, len(copies))]
    flips = generator.integers(0, 256, (len(copies), 20))
    codes[copies[:, None], flips // 8] ^= (1 << (flips % 8)).astype(np.uint8)
    ids, files = (generator.integers(0, 256, (count, 16), dtype=np.uint8) for _ in range(2))
    hashes, before = Hashes(ids, files, codes, np.ones(count, bool)), _memory_mb()
    started = time.perf_counter()
    found = find_duplicates(hashes, DuplicatesConfig(search=chosen.search))
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "near_duplicates": int((found >= 0).sum()),
        "bytes_a_picture_for_the_search": round((_memory_mb() - before) * 2**20 / count),
        "bytes_a_picture_gathered": 65,
    }


def of_recall(chosen: argparse.Namespace) -> dict[str, Any]:
    """The share of copies found by bands, by the number of bits that differ, at random places."""
    generator, config = np.random.default_rng(0), DuplicatesConfig(search="bands")
    found = {}
    for bits in (8, 16, 20, 24, 28, 31):
        codes = generator.integers(0, 256, (chosen.pictures, 32), dtype=np.uint8)
        places = generator.permuted(np.tile(np.arange(256), (chosen.pictures, 1)), axis=1)[:, :bits]
        mask = np.zeros((chosen.pictures, 256), np.uint8)
        np.put_along_axis(mask, places, 1, axis=1)
        both = np.concatenate([codes, codes ^ np.packbits(mask, axis=1)])
        found[bits] = float((leaders(both, config)[chosen.pictures :] >= 0).mean())
    return {"found_by_bits": found}


def _picture(generator: np.random.Generator) -> Image.Image:
    return Image.fromarray(generator.integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8))


def _memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    raise SystemExit(main())
