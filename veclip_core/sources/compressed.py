"""Opens lists of others, plain or compressed: one that was cut off is an error, whatever it is compressed with."""

import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import fsspec
import pyarrow as pa

BLOCK_BYTES = 1 << 20


@contextmanager
def open_list(uri: str) -> Iterator[IO[bytes]]:
    """The bytes of a local or remote file, decompressed by its suffix: gz, bz2, xz, zst.

    Raises:
        OSError: where it is not there, is damaged, or ends before its contents do.
    """
    zst = uri.lower().split("?")[0].endswith(".zst")
    try:
        with fsspec.open(uri, "rb", compression=None if zst else "infer") as file:
            yield io.BufferedReader(_Zstd(file), BLOCK_BYTES) if zst else file
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise OSError(str(error)) from error


@contextmanager
def open_text_list(uri: str, encoding: str = "utf-8", newline: str | None = None) -> Iterator[IO[str]]:
    """The same as text. What is no UTF-8 is replaced."""
    with open_list(uri) as file:
        yield io.TextIOWrapper(file, encoding, errors="replace", newline=newline)


class _Zstd(io.RawIOBase):
    """Arrow's reader: bounded in memory, and a frame that was cut off is an error, which zstandard's own takes for a whole one."""

    def __init__(self, file: IO[bytes]) -> None:
        self._stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._stream.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)
