"""Reader of Debian package files: an `ar` archive whose member `data.tar.*` holds the files."""

import copy
import os
import posixpath
import tarfile
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

_AR_MAGIC = b"!<arch>\n"
_HEADER_BYTES = 60
# Python's own filter as well, where there is one: Debian 12's 3.11.2 has none.
_FILTER: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


def unpack(deb: Path, target: Path, *, keep: str, strip: str) -> int:
    """Write the members of `deb` that start with `keep` under `target`, less the prefix `strip`; returns how many.

    Symbolic links stay links. Raises ValueError where the file is not a Debian package, or where a member is neither a file nor
    a symbolic link, or would lie or point outside of `target`.
    """
    count = 0
    target.mkdir(parents=True, exist_ok=True)
    with deb.open("rb") as file:
        _seek_data(file, deb)
        # Stream mode reads on to the end of its own compressed member; what follows it in the archive is never reached.
        with tarfile.open(fileobj=file, mode="r|*") as archive:
            for member in archive:
                if member.name.startswith(keep) and not member.isdir():
                    renamed = copy.copy(member)
                    renamed.name = member.name.removeprefix(strip)
                    _check(renamed, deb)
                    archive.extract(renamed, target, **_FILTER)
                    count += 1
    return count


def _check(member: tarfile.TarInfo, deb: Path) -> None:
    points_to = posixpath.join(posixpath.dirname(member.name), member.linkname) if member.issym() else member.name
    outside = any(
        path.startswith("/") or ".." in posixpath.normpath(path).split("/") for path in (member.name, points_to)
    )
    if outside or not (member.isreg() or member.issym()):
        raise ValueError(f"{deb}: {member.name!r} has no place in a package of pictures")


def _seek_data(file: BufferedReader, deb: Path) -> None:
    for name in _members(file, deb):
        if name.startswith("data.tar"):
            return
    raise ValueError(f"{deb} has no member data.tar: it is not a Debian package")


def _members(file: BufferedReader, deb: Path) -> Iterator[str]:
    """Yield each member's name with the file placed at the start of its data."""
    if file.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise ValueError(f"{deb} is not a Debian package: it does not start with {_AR_MAGIC!r}")
    while header := file.read(_HEADER_BYTES):
        size = int(header[48:58])
        start = file.tell()
        yield header[:16].decode("ascii").strip().rstrip("/")
        file.seek(start + size + size % 2, os.SEEK_SET)
