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
from collections.abc import Iterator, Mapping, Sequence
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
    LIST_URLS_SCHEMA,
    Grid,
    clean_alt_text,
    sample_id,
)
from veclip_core.shards import LINK
from veclip_core.sources.picture_tars import MAX_TEXT_BYTES, SUFFIXES, own_id, read_tar
from veclip_core.sources.urls import UrlList
from veclip_core.stage import RowCounts, ShardTask, Work

logger = logging.getLogger(__name__)

FILE_COLUMNS = ("file", "filename", "file_name", "filepath", "path", "image", "image_path", "name", "key", "url")
"""Names by which a table's column of files is known, upper or lower case, in order of preference."""
NAMED = "named_in_the_table"
"""In a marker's sums: pictures that the table of AltTexts has a text for."""
PICTURES_PER_SHARD = 500
"""Of a folder. Smaller shards than a crawl's: a stopped run loses less, and a folder is small."""


class OwnPicturesError(Mendable, ValueError):
    """There is nothing to caption; the message says where it was looked."""


class OwnConfig(Config):
    """What decides the rows: the files by name, size and time, and the table of AltTexts by content; not where a folder lies."""

    version: int = 2
    """Raised when other AltTexts are found: since 2 a name that several pictures have is nobody's."""
    listing: str
    """Digest over the names, sizes and times of pictures and of the texts beside them, or of the tars."""
    table: str = ""
    """Digest of the table of AltTexts."""


@dataclass(frozen=True)
class OwnPictures:
    """Where the pictures lie: a folder, a tar, or a pattern of tars (`s3://bucket/{00000..00099}.tar`)."""

    uri: str
    table: str = ""
    """A csv, tsv, jsonl or parquet file with a column of file names and one of AltTexts."""

    def scan(self, without: Sequence[str] = ()) -> "Listing":
        """Look what is there, `without` those folders where they lie inside it: our own work is no input.

        Raises:
            OwnPicturesError: when there is no picture and no tar, or both.
        """
        fs, path = storage.filesystem(self.uri)
        tars = self._tars()
        inside = f"{path.rstrip('/')}/"
        folders = (f"{storage.filesystem(folder)[1].rstrip('/')}/" for folder in without)
        own = tuple(folder for folder in folders if folder.startswith(inside))
        found = fs.find(path, detail=True) if fs.isdir(path) else {}
        files = {name: info for name, info in found.items() if not name.startswith(own)}
        pictures = {name: info for name, info in files.items() if _suffix(name) in SUFFIXES and info["size"]}
        if tars and pictures:
            raise OwnPicturesError(
                f"{self.uri} holds {len(tars):,} tars and {len(pictures):,} pictures: name the tars ('{self.uri}/*.tar'),"
                " or move them"
            )
        if tars:
            shards: list[tuple[str, ...]] = [(tar,) for tar in tars]
            facts = [_facts(tar) for tar in tars]
        else:
            if not pictures:
                raise OwnPicturesError(
                    f"there is no picture and no tar at {self.uri}: give a folder of {', '.join(SUFFIXES)} files, a folder"
                    " of .tar files, or a pattern of them such as 'shards/{00000..00009}.tar'"
                )
            relative = [name[len(inside) :] for name in sorted(pictures)]
            shards = [
                tuple(relative[at : at + PICTURES_PER_SHARD]) for at in range(0, len(relative), PICTURES_PER_SHARD)
            ]
            texts = {f"{name.rpartition('.')[0]}.txt" for name in pictures} & files.keys()
            facts = [[name[len(inside) :], *_version(files[name])] for name in sorted({*pictures, *texts})]
        table = hashlib.sha256(storage.read_bytes(self.table)).hexdigest() if self.table else ""
        config = OwnConfig(listing=digest_of(facts), table=table)
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
    return [uri, *_version(fs.info(path))]


def _version(info: Mapping[str, Any]) -> list[str | int]:
    """What tells a file from a later one of the same name."""
    return [int(info["size"]), str(info.get("mtime") or info.get("ETag") or "")]


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()


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

    @property
    def example(self) -> str:
        """A name that a table may call a picture by."""
        return f"{self.shards[0][0]}#<key>" if self.packed else self.shards[0][0]

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
        names = [] if self.listing.packed else [name for shard in self.listing.shards for name in shard]
        alt_texts = AltTexts(self.listing.pictures.table, names)
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


def _list(task: ShardTask, listing: Listing, alt_texts: "AltTexts") -> RowCounts:
    rows: list[dict[str, Any]] = []
    names, before = listing.shards[task.key.shard], alt_texts.found
    if listing.packed:
        found = read_tar(names[0])
        for lost, reason in found.lost.items():
            name = f"{names[0]}#{lost}"
            rows.append(_row(name, own_id(name), "", error=reason))
        for of_url, (key, member) in found.by_id(names[0]).items():
            rows.append(_row(f"{names[0]}#{key}", of_url, alt_texts.of_sample(names[0], key) or member.text))
    else:
        fs, folder = storage.filesystem(listing.pictures.uri)
        for name in names:
            known = alt_texts.of(name)
            beside = f"{folder.rstrip('/')}/{name.rpartition('.')[0]}.txt"
            if known is None and fs.exists(beside):
                known = fs.cat_file(beside, 0, MAX_TEXT_BYTES).decode("utf-8", "replace")
            rows.append(_row(name, own_id(name), known or ""))
    rows.sort(key=lambda row: (row["url_id"], row["sample_id"]))
    task.write(pa.Table.from_pylist(rows, LIST_URLS_SCHEMA))
    errors = Counter(row["error"] for row in rows if row["error"])
    return RowCounts(
        len(rows), len(rows) - errors.total(), dict(errors), extra={NAMED: float(alt_texts.found - before)}
    )


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
    places = read_tar(uri).by_id(uri)
    listed = task.read("list_urls", ["url_id", "url", "status"]).to_pylist()
    rows = []
    for row in listed:
        if row["status"] == "ok":
            _, member = places[row["url_id"]]
            found = {"url_id": row["url_id"], "url": row["url"], "offset": member.offset, "bytes": member.size}
            rows.append(dict.fromkeys(DOWNLOAD_SCHEMA.names) | found | {"status": "ok"})
    rows.sort(key=lambda row: row["url_id"])
    task.out(LINK).write_text(json.dumps({"tar": uri}))
    task.write(pa.Table.from_pylist(rows, DOWNLOAD_SCHEMA))
    return RowCounts(len(rows), len(rows))


class AltTexts:
    """The table of AltTexts.

    A file is looked up by its path, else by a name that no other file has: without its folder, without its suffix, or both. A
    tar's sample by `<tar>#<key>`, its key, or its key with a picture's suffix.
    """

    def __init__(self, table: str, files: Sequence[str] = ()) -> None:
        self._known: dict[str, str] = {}
        self.found = 0
        """Look-ups that found a text."""
        named = Counter(name for file in files for name in names_of(file))
        self._shared = {name for name, count in named.items() if count > 1}
        if not table:
            return
        malformed = twice = 0
        for row in UrlList((table,), url_columns=FILE_COLUMNS).read():
            name = row.url.strip().removeprefix("./")
            if row.error is not None:
                malformed += 1
            elif self._known.setdefault(name, row.alt) != row.alt:
                twice += 1
        if malformed:
            logger.warning("%s: %d rows can't be read (a comma inside a text needs quotation marks)", table, malformed)
        if twice:
            logger.warning("%s: %d rows name a file again, with another text: the first is taken", table, twice)
        if unclear := sorted(self._shared & self._known.keys() - set(files)):
            logger.warning(
                "%s: %d names are those of several pictures, such as %r: write their paths",
                table,
                len(unclear),
                unclear[0],
            )

    def of(self, file: str) -> str | None:
        """Of a folder's picture."""
        return self._first(file, *(name for name in names_of(file) if name not in self._shared))

    def of_sample(self, tar: str, key: str) -> str | None:
        """Of a tar's sample."""
        return self._first(f"{tar}#{key}", key, *(f"{key}.{suffix}" for suffix in SUFFIXES))

    def _first(self, *names: str) -> str | None:
        text = next((self._known[name] for name in names if name in self._known), None)
        self.found += text is not None
        return text


def names_of(file: str) -> list[str]:
    """What a table may call a file instead of its path, the longer first."""
    base = file.rpartition("/")[2]
    names = {base, file.rpartition(".")[0], base.rpartition(".")[0]} - {""}
    return sorted(names, key=lambda name: (-len(name), name))
