"""Pictures that are known and may not be taken: a list of hashes, such as those that hotlines and platforms share."""

import re
from dataclasses import dataclass

import numpy as np

from veclip_core.config import digest_of
from veclip_core.screening.checks import ScreeningError
from veclip_core.screening.hashes import codes_of
from veclip_core.sources.compressed import open_text_list

_HASH = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class KnownPictures:
    """Hashes of 256 bits. Each is held against a picture's SHA-256 and against its PDQ hash: it can't be mistaken, because two
    unrelated hashes differ in about 128 bits."""

    hashes: tuple[str, ...]

    @property
    def digest(self) -> str:
        return digest_of(list(self.hashes))

    def find(self, files: list[str | None], pdqs: list[str | None], distance: int) -> list[str | None]:
        """For each picture the listed hash that it has, or null.

        Args:
            files: the SHA-256 of each as it was fetched, where it is known.
            pdqs: the PDQ hash of each, where it may be trusted.
            distance: bits in which a PDQ hash may differ.
        """
        import faiss

        listed = set(self.hashes)
        found = [file if file in listed else None for file in files]
        index = faiss.IndexBinaryFlat(256)
        index.add(codes_of(self.hashes))
        asked = [number for number, (file, pdq) in enumerate(zip(found, pdqs, strict=True)) if pdq and not file]
        if asked:
            apart, nearest = index.search(np.ascontiguousarray(codes_of([str(pdqs[number]) for number in asked])), 1)
            for number, bits, place in zip(asked, apart[:, 0], nearest[:, 0], strict=True):
                if bits <= distance:
                    found[number] = self.hashes[place]
        return found


def read_known(uri: str) -> KnownPictures:
    """A text file, local or remote, plain or compressed, with a SHA-256 or a PDQ hash in hex a line; `#` begins a remark.

    Raises:
        ScreeningError: when it is not there, is empty, or a line is no such hash.
    """
    hashes = set[str]()
    try:
        with open_text_list(uri) as file:
            for number, line in enumerate(file, 1):
                if not (word := line.strip().lower()) or word.startswith("#"):
                    continue
                if not _HASH.fullmatch(word):
                    raise ScreeningError(
                        f"{uri}, line {number}: {line.strip()[:80]!r} is no hash: write the 64 hex digits of a SHA-256 or PDQ hash"
                    )
                hashes.add(word)
    except OSError as error:
        raise ScreeningError(f"VECLIP_KNOWN_HASHES: no list of hashes at {uri} ({error})") from error
    if not hashes:
        raise ScreeningError(f"VECLIP_KNOWN_HASHES: {uri} holds no hash. Fill it, or take `known` out of VECLIP_SCREEN")
    return KnownPictures(tuple(sorted(hashes)))
