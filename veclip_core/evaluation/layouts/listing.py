"""The files below a folder, and what tells them from others of the same names."""

import errno
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tqdm import tqdm

from veclip_core.evaluation.layouts.found import refuse
from veclip_core.evaluation.sets import EvaluationSetError
from veclip_core.sources.picture_tars import SUFFIXES

HASH_THREADS = 8
"""Files of a network disk are read side by side; hashing itself releases the interpreter."""
BAR_FROM = 1_000


@dataclass(frozen=True)
class Listing:
    """Files by their path inside the folder, sorted, with size and time (ns)."""

    folder: Path
    files: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, folder: Path) -> "Listing":
        """Hidden files and folders are left out; links are followed, each folder once.

        Raises:
            EvaluationSetError: where the folder can't be read, or a file has a name that no table can hold.
        """
        try:
            files = dict(sorted(_walk(folder)))
        except OSError as error:
            raise EvaluationSetError(f"{folder} can't be read ({error.strerror}): give a folder that can") from error
        odd = [name for name in files if any("\udc80" <= letter <= "\udcff" for letter in name)]
        refuse(folder, [ascii(name) for name in odd], "names that are no UTF-8", "Rename these files.")
        return cls(folder, files)

    @cached_property
    def pictures(self) -> tuple[str, ...]:
        return tuple(name for name in self.files if is_picture(name))

    @cached_property
    def top(self) -> tuple[str, ...]:
        """Files that lie in no folder inside."""
        return tuple(name for name in self.files if "/" not in name)

    def facts(self) -> list[list[str | int]]:
        return [[name, *facts] for name, facts in self.files.items()]


def is_picture(name: str) -> bool:
    return name.rpartition(".")[2].lower() in SUFFIXES


def _walk(root: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    top = root.stat()
    seen = {(top.st_dev, top.st_ino)}
    left = [("", root)]
    while left:
        inside, folder = left.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                try:
                    facts = entry.stat()
                except OSError as error:
                    if error.errno in (errno.ENOENT, errno.ELOOP):  # a link to nothing, or to itself
                        continue
                    raise
                name = f"{inside}{entry.name}"
                if not entry.is_dir():
                    if entry.is_file():
                        yield name, (facts.st_size, facts.st_mtime_ns)
                elif (facts.st_dev, facts.st_ino) not in seen:
                    seen.add((facts.st_dev, facts.st_ino))
                    left.append((f"{name}/", Path(entry.path)))


def digests(files: Sequence[Path], name: str) -> list[str]:
    """SHA-256 of each file, in order.

    Raises:
        EvaluationSetError: for a file that can't be read.
    """

    def digest(path: Path) -> str:
        try:
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise EvaluationSetError(f"{path} can't be read ({error.strerror}): mend it, or take it out") from error

    with ThreadPoolExecutor(HASH_THREADS) as threads:
        bar = tqdm(
            threads.map(digest, files), f"{name}: reading", len(files), unit="file", disable=len(files) < BAR_FROM
        )
        return list(bar)


class Files:
    """The pictures of a folder by any name that a table may call them: their path, else their name or its stem where no other
    picture has it. Nothing outside the folder has a name."""

    def __init__(self, listing: Listing) -> None:
        from veclip_core.sources.own_pictures import names_of

        self._folder = listing.folder
        shared = Counter(name for file in listing.pictures for name in names_of(file))
        self._by_name = {name: file for file in listing.pictures for name in names_of(file) if shared[name] == 1}
        self._by_name |= {file: file for file in listing.pictures}

    def find(self, name: str) -> str | None:
        """The path inside the folder."""
        return self._by_name.get(name.strip().removeprefix(f"{self._folder}/").removeprefix("./"))
