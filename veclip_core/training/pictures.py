"""Pictures out of tars, by offset: decoded once into a memory-mapped cache, or at every use.

Both give the same pixels: uint8 RGB squares of `size` pixels, transparent parts on white.
"""

import hashlib
import io
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Condition
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from filelock import FileLock

from veclip_core import storage
from veclip_core.mendable import Mendable

if TYPE_CHECKING:
    from PIL import Image

    from veclip_core.training.manifest_table import ManifestTable

logger = logging.getLogger(__name__)

Fit = Literal["pad", "squash", "crop"]
CACHE_VERSION = "1"
"""Part of a cache's name: raise it when `square` changes its pixels."""
DECODED_AT_ONCE = 64
COPIED_AT_ONCE = 1 << 20
WHITE = (255, 255, 255)


def square(picture: "Image.Image", size: int, fit: Fit) -> np.ndarray:
    """Picture_SSC uint8. Bicubic with antialiasing."""
    from PIL import Image, ImageOps

    from veclip_core.sources.pictures import on_white

    rgb = on_white(picture)
    if fit == "pad":
        rgb = ImageOps.pad(rgb, (size, size), method=Image.Resampling.BICUBIC, color=WHITE)
    elif fit == "crop":
        rgb = ImageOps.fit(rgb, (size, size), method=Image.Resampling.BICUBIC)
    else:
        rgb = rgb.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(rgb)


class Pictures(Protocol):
    size: int

    def read(self, rows: Sequence[int] | np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        """Pictures_BSSC uint8 of these rows of the manifest, and by place among them what is wrong with those that are black.

        Raises StorageError where nothing can be read.
        """
        ...


class UnreadablePicture(Mendable, ValueError):
    """Bytes that are no picture, or a tar that is not there; the message names them."""


def not_there(uri: str) -> str:
    return f"{uri} is not there: run the download stage and the manifest again"


class TarCache:
    """Remote tars on this machine's disk, each copied whole when it is first read: a random picture of a bucket costs a request,
    and every epoch would ask for all of them again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def local(self, uri: str) -> Path:
        """The copy of a tar. Whole or absent: several processes may ask at once, or be killed."""
        path = self._folder / f"{hashlib.sha256(uri.encode()).hexdigest()[:32]}.tar"
        if path.exists():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                unfinished = storage.beside(path)
                try:
                    with storage.fatal_errors_named(str(path)):
                        with storage.open_read(uri) as source, open(unfinished, "wb") as target:
                            shutil.copyfileobj(source, target, COPIED_AT_ONCE)
                        os.replace(unfinished, path)
                finally:
                    unfinished.unlink(missing_ok=True)
        return path


class PieceCache:
    """Runs of neighbours in remote tars, a request each, kept in memory while they are in use: for a training that reads by windows
    (`order.py`), whose tars together are too large for this machine."""

    def __init__(self, manifest: "ManifestTable", piece_rows: int, max_bytes: int) -> None:
        from cachetools import LRUCache

        self._manifest, self._piece_rows = manifest, piece_rows
        sizes = [rows for rows, _ in manifest.sources] or [len(manifest)]
        self._ends = np.cumsum(sizes)
        """Of each source's rows: its pieces are cut from its first row on, as `order.py` cuts them."""
        self._pieces: Any = LRUCache(max_bytes, getsizeof=lambda piece: len(piece[1]))
        """First row, end of its source, tar; to where the piece begins in its tar, and its bytes."""
        self._changed = Condition()
        self._fetched: set[tuple[int, int, str]] = set()
        """By a thread, at this moment."""

    def bytes_of(self, number: int, row: dict[str, Any]) -> bytes:
        """The encoded picture of a row of the manifest. Raises FileNotFoundError."""
        source = int(np.searchsorted(self._ends, number, side="right"))
        base = int(self._ends[source - 1]) if source else 0
        key = (base + (number - base) // self._piece_rows * self._piece_rows, int(self._ends[source]), row["tar"])
        with self._changed:
            self._changed.wait_for(lambda: key not in self._fetched)
            found = self._pieces.get(key)
            if found is None:
                self._fetched.add(key)
        start, piece = found or self._fetch(key)
        return piece[row["offset"] - start : row["offset"] - start + row["bytes"]]

    def _fetch(self, key: tuple[int, int, str]) -> tuple[int, bytes]:
        first, end, tar = key
        try:
            rows = self._manifest.rows(range(first, min(first + self._piece_rows, end)))
            places = [(row["offset"], row["offset"] + row["bytes"]) for row in rows if row["tar"] == tar]
            start = min(begin for begin, _ in places)
            found = start, storage.read_bytes(self._manifest.tar_uri(tar), start, max(last for _, last in places))
            with self._changed, suppress(ValueError):  # larger than all that may be kept
                self._pieces[key] = found
            return found
        finally:
            with self._changed:
                self._fetched.discard(key)
                self._changed.notify_all()


class StreamedPictures:
    """Reads and decodes each picture when it is asked for, through fsspec, on a few threads: any size, any store."""

    def __init__(
        self,
        manifest: "ManifestTable",
        size: int,
        fit: Fit,
        threads: int = 4,
        tars: TarCache | None = None,
        pieces: PieceCache | None = None,
    ) -> None:
        """Remote tars are read through the one cache or the other, or picture by picture."""
        self.manifest, self.size, self.fit, self._tars, self._pieces = manifest, size, fit, tars, pieces
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="pictures")

    def read(self, rows: Sequence[int] | np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        read = list(self._pool.map(self._read_one, (int(number) for number in rows), self.manifest.rows(rows)))
        black = np.zeros((self.size, self.size, 3), np.uint8)
        pictures_BSSC = np.stack([black if isinstance(one, str) else one for one in read])
        return pictures_BSSC, {place: one for place, one in enumerate(read) if isinstance(one, str)}

    def _read_one(self, number: int, row: dict[str, Any]) -> np.ndarray | str:
        try:
            return _decode(self._bytes_of(number, row), row["tar"], row["offset"], self.size, self.fit)
        except UnreadablePicture as error:
            return str(error)
        except FileNotFoundError:
            return not_there(self.manifest.tar_uri(row["tar"]))

    def _bytes_of(self, number: int, row: dict[str, Any]) -> bytes:
        uri, offset, size = self.manifest.tar_uri(row["tar"]), int(row["offset"]), int(row["bytes"])
        if storage.is_local(uri) or (self._tars is None and self._pieces is None):
            return storage.read_bytes(uri, offset, offset + size)
        if self._tars is None:
            assert self._pieces is not None
            return self._pieces.bytes_of(number, row)
        with open(self._tars.local(uri), "rb") as tar:
            tar.seek(offset)
            return tar.read(size)


class PictureCache:
    """Every picture of a manifest once, in a memory-mapped .npy that later trainings on the same pictures find again."""

    def __init__(self, pictures_NSSC: np.ndarray, index: np.ndarray, path: Path) -> None:
        self.size = int(pictures_NSSC.shape[1])
        self.path = path
        self._pictures_NSSC = pictures_NSSC
        self._index = index
        """Manifest row to picture: samples of one URL share theirs."""

    @classmethod
    def open(cls, manifest: "ManifestTable", size: int, fit: Fit, folder: Path, threads: int = 1) -> "PictureCache":
        """Open the cache of these pictures, made first where there is none. Whole or absent: written beside, then moved."""
        places, index = _distinct_pictures(manifest)
        name = hashlib.sha256(f"{CACHE_VERSION} {size} {fit} {manifest.source_uri}".encode())
        for place in places:
            name.update(f"{place}\n".encode())
        path = folder / f"pictures-{size}-{name.hexdigest()[:24]}.npy"
        if not path.exists():
            with storage.fatal_errors_named(str(path)):
                _write_cache(manifest, places, size, fit, path, threads)
        return cls(np.load(path, mmap_mode="r"), index if manifest.kept is None else index[manifest.kept], path)

    def read(self, rows: Sequence[int] | np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        """All are readable: a cache of others is never made."""
        return self._pictures_NSSC[self._index[np.asarray(rows, dtype=np.int64)]], {}


Place = tuple[str, int, int]
"""tar, offset, bytes"""


def _distinct_pictures(manifest: "ManifestTable") -> tuple[list[Place], np.ndarray]:
    """The distinct pictures in reading order, and each row's place among them."""
    columns = (manifest.table[name].to_pylist() for name in ("tar", "offset", "bytes"))
    of_row: list[Place] = list(zip(*columns, strict=True))
    places = sorted(set(of_row))
    number = {place: position for position, place in enumerate(places)}
    return places, np.array([number[place] for place in of_row], dtype=np.int64)


def _write_cache(manifest: "ManifestTable", places: list[Place], size: int, fit: Fit, path: Path, threads: int) -> None:
    from tqdm import tqdm

    path.parent.mkdir(parents=True, exist_ok=True)
    storage.remove_dead_temporaries(str(path.parent))
    unfinished = storage.beside(path)
    try:
        shape = (len(places), size, size, 3)
        pictures_NSSC = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=shape)
        with open(unfinished, "r+b") as file:
            # Writing to a memory map on a full disk ends the process without a word; this raises.
            os.posix_fallocate(file.fileno(), 0, unfinished.stat().st_size)
        with ThreadPoolExecutor(threads) as pool, tqdm(total=len(places), desc="decode pictures", unit="img") as bar:
            for first, chunk in _chunks_of_bytes(manifest, places):
                decoded = pool.map(lambda item: _decode(item[1], item[0][0], item[0][1], size, fit), chunk)
                for position, picture in enumerate(decoded, start=first):
                    pictures_NSSC[position] = picture
                bar.update(len(chunk))
        pictures_NSSC.flush()
        del pictures_NSSC
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _chunks_of_bytes(manifest: "ManifestTable", places: list[Place]) -> Iterator[tuple[int, list[tuple[Place, bytes]]]]:
    """Each tar is opened once and read forwards."""
    chunk: list[tuple[Place, bytes]] = []
    first = 0
    name, file = "", None
    try:
        for position, (tar, offset, length) in enumerate(places):
            if tar != name or file is None:
                if file is not None:
                    file.close()
                try:
                    name, file = tar, storage.open_read(manifest.tar_uri(tar))
                except FileNotFoundError as error:
                    raise UnreadablePicture(not_there(manifest.tar_uri(tar))) from error
            file.seek(offset)
            chunk.append(((tar, offset, length), file.read(length)))
            if len(chunk) == DECODED_AT_ONCE:
                yield first, chunk
                chunk, first = [], position + 1
    finally:
        if file is not None:
            file.close()
    if chunk:
        yield first, chunk


def _decode(data: bytes, tar: str, offset: int, size: int, fit: Fit) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as picture:
            return square(picture, size, fit)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadablePicture(
            f"{tar} at {offset}: {len(data)} bytes that are no readable picture ({error}). The manifest and the tar do not "
            "belong together, or the tar is damaged: run the download stage and the manifest again."
        ) from error
