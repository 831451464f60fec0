"""Reads one JSON object of texts, such as Apple's released {url: caption} files of several gigabytes, as a stream (ijson)."""

import codecs
from collections.abc import Iterator
from typing import IO, Any

BLOCK_BYTES = 1 << 16
MAX_ENTRY_BYTES = 64 << 20
"""Of one entry: the parser holds a text whole, and a file of strangers may hold one that does not end."""


class NotAnObject(ValueError):
    """The file holds something else than one object of texts."""


class NoJson(ValueError):
    """What stands somewhere in the file is no JSON, such as NaN; the message says what."""


def entries_of(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """The object's (name, value) pairs in the file's order; a name that comes twice is told twice. Bad UTF-8 is replaced.

    Raises:
        NotAnObject: for a list, for several objects, for an entry of more than `MAX_ENTRY_BYTES`.
        NoJson: for what is none.
        ValueError: where the file ends before the object does.
    """
    import ijson

    text = _Text(file)
    try:
        for entry in ijson.kvitems(text, "", buf_size=BLOCK_BYTES, use_float=True):
            text.since_entry = 0
            yield entry
    except ijson.JSONError as error:
        if "trailing garbage" in str(error):
            raise NotAnObject("it holds several objects") from error
        told = " ".join(str(error).split())
        if "premature EOF" in told or "incomplete" in told.lower():
            raise ValueError("it ends before the object does") from error
        raise NoJson(told) from error


class _Text:
    """The file as the parser wants it: from its opening brace on, in whole characters; what is no UTF-8 is replaced."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._begun, self._cut = file, False, b""
        self.since_entry = 0

    def read(self, size: int) -> bytes:
        if not size:  # the parser asks so what kind of file this is
            return b""
        block = self._file.read(size)
        self.since_entry += len(block)
        if self.since_entry > MAX_ENTRY_BYTES:
            raise NotAnObject(f"one entry has more than {MAX_ENTRY_BYTES >> 20} MB")
        if not self._begun:
            self._begun, block = True, self._from_brace(block)
            if not block.startswith(b"{"):
                raise NotAnObject("it does not begin as an object does")
        if not block:
            text, self._cut = self._cut.decode(errors="replace"), b""
            return text.encode()
        block = self._cut + block
        try:
            block.decode()
            self._cut = b""
        except UnicodeDecodeError:
            text, whole = codecs.utf_8_decode(block, "replace", False)
            # Nothing would mean the end; one byte of a character is none yet.
            block, self._cut = text.encode(), block[whole:]
            return block or self.read(size)
        return block

    def _from_brace(self, block: bytes) -> bytes:
        """The block without what may stand before an object: a byte order mark and blanks."""
        while True:
            begun = block.removeprefix(codecs.BOM_UTF8).lstrip() if len(block) >= len(codecs.BOM_UTF8) else b""
            more = b"" if begun or self.since_entry > MAX_ENTRY_BYTES else self._file.read(BLOCK_BYTES)
            if not more:
                return begun or block.lstrip()
            block += more
            self.since_entry += len(more)
