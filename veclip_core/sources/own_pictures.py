"""Pictures that are there already: a folder with a table or text files of AltTexts, or WebDataset shards (tars), local or remote.

They become the two stages that a crawl would have made, `list_urls` and `download`, so that captioning, manifest and training find
them as they find everything else. A folder's pictures are packed into tars; tars that are there are read where they lie.
"""

import hashlib
import io
import json
import logging
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa

from veclip_core import storage
from veclip_core.config import Config, digest_of
from veclip_core.download.pictures import FORMATS
from veclip_core.download.seal import add_member
from veclip_core.mendable import Mendable
from veclip_core.samples import (
    DOWNLOAD_SCHEMA,
    ID_HEX_CHARS,
    LIST_URLS_SCHEMA,
    Grid,
    canonical_url,
    clean_alt_text,
    sample_id,
    url_id,
)
from veclip_core.shards import LINK
from veclip_core.sources.urls import ALT_COLUMNS, UrlList
from veclip_core.stage import RowCounts, ShardTask, Work

logger = logging.getLogger(__name__)

SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
FILE_COLUMNS = ("file", "filename", "file_name", "filepath", "path", "image", "image_path", "name", "key", "url")
"""Names by which a table's column of files is known, upper or lower case, in order of preference."""
PICTURES_PER_SHARD = 500
"""Of a folder. Smaller shards than a crawl's: a stopped run loses less, and a folder is small."""
CUT_OFF = "tar_cut_off"
MAX_TEXT_BYTES = 1 << 20
"""Of a text or json beside a picture; more is no AltText."""


class OwnPicturesError(Mendable, ValueError):
    """There is nothing to caption; the message says where it was looked."""


class OwnConfig(Config):
    """What decides the rows: the files by name, size and time, and the table of AltTexts by content."""

    uri: str
    listing: str
    """Digest over the files' names, sizes and times."""
    table: str = ""
    """Digest of the table of AltTexts."""


@dataclass(frozen=True)
class OwnPictures:
    """Where the pictures lie: a folder, a tar, or a pattern of tars (`s3://bucket/{00000..00099}.tar`)."""

    uri: str
    table: str = ""
    """A csv, tsv, jsonl or parquet file with a column of file names and one of AltTexts."""

    def scan(self) -> "Listing":
        """Look what is there.

        Raises:
            OwnPicturesError: when there is no picture and no tar.
        """
        fs, path = storage.filesystem(self.uri)
        tars = self._tars()
        if tars:
            shards: list[tuple[str, ...]] = [(tar,) for tar in tars]
            facts = [_facts(tar) for tar in tars]
        else:
            found = fs.find(path, detail=True) if fs.isdir(path) else {}
            pictures = {
                name: info
                for name, info in found.items()
                if name.rpartition(".")[2].lower() in SUFFIXES and info["size"]
            }
            if not pictures:
                raise OwnPicturesError(
                    f"there is no picture and no tar at {self.uri}: give a folder of {', '.join(SUFFIXES)} files, a folder"
                    " of .tar files, or a pattern of them such as 'shards/{00000..00009}.tar'"
                )
            relative = [name[len(path.rstrip("/")) + 1 :] for name in sorted(pictures)]
            shards = [
                tuple(relative[at : at + PICTURES_PER_SHARD]) for at in range(0, len(relative), PICTURES_PER_SHARD)
            ]
            facts = [
                [name, info["size"], str(info.get("mtime") or info.get("ETag") or "")]
                for name, info in sorted(pictures.items())
            ]
        table = hashlib.sha256(storage.read_bytes(self.table)).hexdigest() if self.table else ""
        config = OwnConfig(uri=self.uri, listing=digest_of(facts), table=table)
        return Listing(self, config, tuple(shards), packed=bool(tars))

    def _tars(self) -> list[str]:
        from braceexpand import braceexpand

        tars: list[str] = []
        for pattern in braceexpand(self.uri):
            fs, path = storage.filesystem(pattern)
            matched = fs.glob(path) if any(char in path for char in "*?[") else [path]
            for match in sorted(matched):
                inside = sorted(fs.glob(f"{match.rstrip('/')}/*.tar")) if fs.isdir(match) else [match]
                tars += [str(fs.unstrip_protocol(name)) for name in inside if name.endswith(".tar") and fs.exists(name)]
        return tars


def _facts(uri: str) -> list[str | int]:
    fs, path = storage.filesystem(uri)
    info = fs.info(path)
    return [uri, int(info["size"]), str(info.get("mtime") or info.get("ETag") or "")]


@dataclass(frozen=True)
class Listing:
    """What was found: one entry a shard."""

    pictures: OwnPictures
    config: OwnConfig
    shards: tuple[tuple[str, ...], ...]
    """Of a folder the files, by their path inside it; else the tar."""
    packed: bool
    """Whether the shards are tars."""

    @property
    def grid(self) -> Grid:
        return Grid(1, len(self.shards))

    def operations(self) -> tuple["ListOwn", "PackOwn"]:
        """What makes `list_urls` and `download` of it."""
        return ListOwn(self.config, self), PackOwn(self.config, self)


@dataclass(frozen=True)
class ListOwn:
    """One row a picture: an id, and its AltText where there is one. No input."""

    config: OwnConfig
    listing: Listing = field(repr=False)
    name: ClassVar[str] = "list_urls"

    @contextmanager
    def open(self) -> Iterator[Work]:
        alt_texts = _alt_texts(self.listing.pictures.table)
        yield lambda task: _list(task, self.listing, alt_texts)


@dataclass(frozen=True)
class PackOwn:
    """Input: `list_urls`. A folder's pictures in a tar; of tars that are there, the place of every picture in them."""

    config: OwnConfig
    listing: Listing = field(repr=False)
    name: ClassVar[str] = "download"

    @contextmanager
    def open(self) -> Iterator[Work]:
        yield lambda task: _link(task, self.listing) if self.listing.packed else _pack(task, self.listing)


@dataclass
class _Member:
    """What a tar holds of one sample."""

    offset: int | None = None
    size: int = 0
    text: str = ""
    json: Mapping[str, Any] = field(default_factory=dict)


def _list(task: ShardTask, listing: Listing, alt_texts: Callable[[str], str | None]) -> RowCounts:
    errors: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    names = listing.shards[task.key.shard]
    if listing.packed:
        members, whole = _members(names[0])
        if not whole:
            errors[CUT_OFF] += 1
            rows.append(_row(f"{names[0]}#", _own_id(f"{names[0]}#"), "", error=CUT_OFF))
        for stem, member in members.items():
            if member.offset is not None:
                alt = alt_texts(stem) or member.text or _first_text(member.json)
                rows.append(_row(f"{names[0]}#{stem}", _id_in_tar(names[0], stem, member), alt))
    else:
        fs, folder = storage.filesystem(listing.pictures.uri)
        for name in names:
            known = alt_texts(name)
            beside = f"{folder.rstrip('/')}/{name.rpartition('.')[0]}.txt"
            if known is None and fs.exists(beside):
                known = fs.cat_file(beside, 0, MAX_TEXT_BYTES).decode("utf-8", "replace")
            rows.append(_row(name, _own_id(name), known or ""))
    rows.sort(key=lambda row: (row["url_id"], row["sample_id"]))
    task.write(pa.Table.from_pylist(rows, LIST_URLS_SCHEMA))
    return RowCounts(len(rows), len(rows) - errors.total(), dict(errors))


def _row(name: str, of_url: str, alt: str, error: str | None = None) -> dict[str, Any]:
    text = clean_alt_text(alt)
    return {
        "url_id": of_url,
        "sample_id": sample_id(of_url, text),
        "url": name,
        "alt_text": text,
        "released_caption": None,
        "source": "own",
        "status": "error" if error else "ok",
        "error": error,
    }


def _pack(task: ShardTask, listing: Listing) -> RowCounts:
    from PIL import Image

    fs, folder = storage.filesystem(listing.pictures.uri)
    errors: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    listed = {row["url_id"]: row["url"] for row in task.read("list_urls", ["url_id", "url"]).to_pylist()}
    with tarfile.open(task.out("tar"), "w", format=tarfile.USTAR_FORMAT) as tar:
        for of_url, name in sorted(listed.items()):
            row: dict[str, Any] = dict.fromkeys(DOWNLOAD_SCHEMA.names) | {"url_id": of_url, "url": name, "status": "ok"}
            try:
                data = fs.cat_file(f"{folder.rstrip('/')}/{name}")
                with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                    width, height = picture.size
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                logger.debug("%s: %s", name, error)
                reason = (
                    "not_an_image" if isinstance(error, (Image.UnidentifiedImageError, ValueError)) else "unreadable"
                )
                errors[reason] += 1
                rows.append(row | {"status": "error", "error": reason})
                continue
            row |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "width": width, "height": height}
            rows.append(row | {"offset": add_member(tar, f"{of_url}.jpg", data)})
    task.write(pa.Table.from_pylist(rows, DOWNLOAD_SCHEMA))
    return RowCounts(len(rows), len(rows) - errors.total(), dict(errors))


def _link(task: ShardTask, listing: Listing) -> RowCounts:
    uri = listing.shards[task.key.shard][0]
    members, _ = _members(uri)
    places = {_id_in_tar(uri, stem, member): member for stem, member in members.items() if member.offset is not None}
    listed = task.read("list_urls", ["url_id", "url", "status"]).to_pylist()
    urls = {row["url_id"]: row["url"] for row in listed if row["status"] == "ok"}
    rows = [
        dict.fromkeys(DOWNLOAD_SCHEMA.names)
        | {
            "url_id": of_url,
            "url": url,
            "status": "ok",
            "offset": places[of_url].offset,
            "bytes": places[of_url].size,
        }
        for of_url, url in sorted(urls.items())
    ]
    task.out(LINK).write_text(json.dumps({"tar": uri}))
    task.write(pa.Table.from_pylist(rows, DOWNLOAD_SCHEMA))
    return RowCounts(len(rows), len(rows))


def _members(uri: str) -> tuple[dict[str, _Member], bool]:
    """The samples of a tar by key, in its order, and whether the tar could be read to its end. One pass, in a stream."""
    members: dict[str, _Member] = {}
    try:
        with storage.open_read(uri) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for info in tar:
                folder, _, base = info.name.rpartition("/")
                key, _, suffix = base.partition(".")
                if not info.isfile() or not key:
                    continue
                member = members.setdefault(f"{folder}/{key}".lstrip("/"), _Member())
                suffix = suffix.lower()
                if suffix in SUFFIXES and member.offset is None:
                    member.offset, member.size = info.offset_data, info.size
                elif suffix in ("txt", "json") and info.size <= MAX_TEXT_BYTES and (content := tar.extractfile(info)):
                    text = content.read().decode("utf-8", "replace")
                    if suffix == "txt":
                        member.text = text
                    else:
                        member.json = _object(text)
    except (tarfile.ReadError, EOFError) as error:
        logger.warning("%s is cut off or damaged (%s): the pictures before that are taken", uri, error)
        # Of the last picture not all may be there.
        last = next((key for key in reversed(members) if members[key].offset is not None), None)
        if last is not None:
            del members[last]
        return members, False
    return members, True


def _object(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _first_text(values: Mapping[str, Any]) -> str:
    return next((values[name] for name in ALT_COLUMNS if isinstance(values.get(name), str)), "")


def _id_in_tar(tar: str, stem: str, member: _Member) -> str:
    """The id of the picture's URL where its json names one, so that it joins with every other table; else of its place."""
    url = member.json.get("url")
    if isinstance(url, str):
        try:
            return url_id(canonical_url(url))
        except ValueError:
            logger.debug("%s#%s: %r is no URL", tar, stem, url[:80])
    return _own_id(f"{tar.rpartition('/')[2]}#{stem}")


def _own_id(name: str) -> str:
    return hashlib.sha256(b"own\0" + name.encode("utf-8", "surrogateescape")).hexdigest()[:ID_HEX_CHARS]


def _alt_texts(table: str) -> Callable[[str], str | None]:
    """Looks a file's AltText up by its path, its name, or its name without suffix, as the table has it."""
    if not table:
        return lambda name: None
    rows = UrlList((table,), url_columns=FILE_COLUMNS).read()
    known = {row.url.strip().removeprefix("./"): row.alt for row in rows if row.error is None}

    def find(name: str) -> str | None:
        base = name.rpartition("/")[2]
        return next((known[key] for key in (name, base, base.partition(".")[0]) if key in known), None)

    return find
