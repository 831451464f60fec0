"""WebDataset tars of strangers, read where they lie: which pictures they hold, where, and with which texts.

They may be cut off, hold links or claim any size. What is no picture of ours is told with a reason.
"""

import hashlib
import json
import logging
import tarfile
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from veclip_core import storage
from veclip_core.samples import ID_HEX_CHARS, MAX_ALT_TEXT_CHARS, canonical_url, url_id
from veclip_core.sources.urls import ALT_COLUMNS

logger = logging.getLogger(__name__)

SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
CUT_OFF = "tar_cut_off"
NO_PLAIN_FILE = "no_plain_file"
"""Links and sparse files in a tar: what they would hold lies elsewhere."""
MAX_NAME_CHARS = 1_024
MAX_TEXT_BYTES = 1 << 20
"""Of a text or json beside a picture; more is no AltText."""


def own_id(name: str) -> str:
    """For a picture without a URL: of its place."""
    return hashlib.sha256(b"own\0" + name.encode("utf-8", "surrogateescape")).hexdigest()[:ID_HEX_CHARS]


@dataclass
class Member:
    """What a tar holds of one sample."""

    offset: int = -1
    size: int = 0
    text: str = ""
    url: str = ""


@dataclass(frozen=True)
class PictureTar:
    """The samples of a tar by key, in its order."""

    members: Mapping[str, Member]
    lost: Mapping[str, str]
    """Member's name -> why it is no picture of ours."""

    def by_id(self, uri: str) -> dict[str, tuple[str, Member]]:
        """The id of the picture's URL where the json beside it names one that no other has, so that it joins with every other
        table; else of its place."""
        pictures = {key: member for key, member in self.members.items() if member.offset >= 0}
        used = Counter(member.url for member in pictures.values())
        ids: dict[str, tuple[str, Member]] = {}
        for key, member in pictures.items():
            of_url = own_id(f"{uri}#{key}")
            if member.url and used[member.url] == 1:
                with suppress(ValueError):
                    of_url = url_id(canonical_url(member.url))
            ids[of_url] = (key, member)
        return ids


def read_tar(uri: str) -> PictureTar:
    """One pass, in a stream: tars may be remote and large."""
    members: dict[str, Member] = {}
    lost: dict[str, str] = {}
    end = 0
    with storage.open_read(uri) as file:
        try:
            with tarfile.open(fileobj=file, mode="r|") as tar:
                for info in tar:
                    end = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                    _take(info, tar, members, lost)
            # After a header that it can't read tarfile ends without a word.
            whole = _is_end(uri, end)
        except (tarfile.ReadError, EOFError, OverflowError) as error:
            logger.warning("%s: %s", uri, error)
            whole = False
    if not whole:
        logger.warning("%s is cut off or damaged: the pictures before that are taken", uri)
        lost[""] = CUT_OFF
        # Of the last picture not all may be there.
        last = next((key for key in reversed(members) if members[key].offset >= 0), None)
        if last is not None and not _holds(uri, members[last]):
            del members[last]
    return PictureTar(members, lost)


def _take(info: tarfile.TarInfo, tar: tarfile.TarFile, members: dict[str, Member], lost: dict[str, str]) -> None:
    folder, _, base = info.name.rpartition("/")
    key, _, suffix = base.partition(".")
    suffix = suffix.lower()
    if not key or info.isdir():
        return
    if suffix in SUFFIXES and (not info.isreg() or info.issparse()):
        lost[info.name[:MAX_NAME_CHARS]] = NO_PLAIN_FILE
        return
    if not info.isfile():
        return
    member = members.setdefault(f"{folder}/{key}".lstrip("/")[:MAX_NAME_CHARS], Member())
    if suffix in SUFFIXES and member.offset < 0:
        member.offset, member.size = info.offset_data, info.size
    elif suffix in ("txt", "json") and info.size <= MAX_TEXT_BYTES and (content := tar.extractfile(info)):
        text = content.read().decode("utf-8", "replace")
        if suffix == "txt":
            member.text = text[:MAX_ALT_TEXT_CHARS]
        else:
            values = _object(text)
            url = values.get("url")
            member.url = url if isinstance(url, str) else ""
            member.text = member.text or _first_text(values)[:MAX_ALT_TEXT_CHARS]


def _is_end(uri: str, end: int) -> bool:
    """Whether the block of zeros that ends a tar stands after its last member."""
    with storage.open_read(uri) as file:
        file.seek(end)
        return file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _holds(uri: str, member: Member) -> bool:
    fs, path = storage.filesystem(uri)
    return bool(fs.info(path)["size"] >= member.offset + member.size)


def _object(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _first_text(values: Mapping[str, Any]) -> str:
    return next((values[name] for name in ALT_COLUMNS if isinstance(values.get(name), str)), "")
