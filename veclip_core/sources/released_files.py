"""Large files of others, such as Apple's ten of released captions, fetched by a list of addresses: each once, whole, and told.

What is cut off is gone on with where it stopped, as long as the server has the same file still. A file appears under its name when
all of it is there, with a marker beside it that says where it came from, its size and its SHA-256.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
from filelock import FileLock

from veclip_core import storage
from veclip_core.download.guarded_client import ForbiddenAddress, guarded_client
from veclip_core.mendable import Mendable

log = logging.getLogger(__name__)

BLOCK_BYTES = 16 << 20
TRIES = 5
"""In a row without progress."""
PROGRESS_BYTES = 1 << 20
"""A try that brought less beyond the furthest before it made none."""
PAUSE_S = 1.0
"""Before the second try; each further one waits twice as long."""
CONNECT_S, SILENCE_S = 30.0, 60.0
"""What a server may take to accept, and to send the next bytes. A file in all may take days."""
SHA256_CHARS = 64
GONE = (404, 410)


class FetchError(Mendable):
    """A file that can't be had; the message says what to do."""


@dataclass(frozen=True)
class Wanted:
    """A line of the list."""

    url: str
    sha256: str | None = None

    @property
    def name(self) -> str:
        return unquote(urlsplit(self.url).path.rsplit("/", 1)[-1])


@dataclass(frozen=True)
class Fetched:
    """A file that is there."""

    name: str
    uri: str
    url: str
    bytes: int
    sha256: str


def read_list(uri: str) -> list[Wanted]:
    """The addresses of a text file, local or remote: one a line, with the file's SHA-256 after it where that is known.

    Raises:
        FetchError: when the list is not there, empty, or names two files alike.
    """
    try:
        with fsspec.open(uri, "rt", encoding="utf-8") as file:
            lines = [line.split() for line in file if line.strip() and not line.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise FetchError(f"no list of files at {uri} ({error})") from error
    wanted = [Wanted(url, rest[0].lower() if rest else None) for url, *rest in lines]
    names = [one.name for one in wanted]
    odd = [one.url for one in wanted if not one.name or one.name.startswith(".") or "/" in one.name]
    odd += [one.url for one in wanted if one.sha256 and len(one.sha256) != SHA256_CHARS]
    if odd or not names or len(set(names)) < len(names):
        named = f", unlike {odd[0]}" if odd else ""
        raise FetchError(f"{uri} must hold an address a line, each of a file with a name of its own{named}")
    return wanted


def fetch_all(
    wanted: Sequence[Wanted],
    folder: str,
    partial: Path,
    on_bytes: Callable[[str, int, int | None], None] = lambda name, done, whole: None,
    only_public_and: frozenset[str] | None = None,
) -> list[Fetched]:
    """Fetch what is not there yet, one after the other.

    Args:
        folder: where the files go, local or remote.
        partial: a local folder for files under way; what is in it is gone on with.
        on_bytes: hears a file's name, the bytes got so far and, where it is known, of how many.
        only_public_and: over http(s) ask servers at public addresses alone and these, each a `host:port`; None asks any.

    Raises:
        FetchError: when a server has no such file, keeps failing, sends another than the list says, or may not be asked.
    """
    partial.mkdir(parents=True, exist_ok=True)
    return [_fetch_one(one, _Remote(one.url, only_public_and), folder, partial, on_bytes) for one in wanted]


def _fetch_one(
    one: Wanted, remote: "_Remote", folder: str, partial: Path, on_bytes: Callable[[str, int, int | None], None]
) -> Fetched:
    # Markers have a folder of their own: what lists a folder of files takes all of them for such.
    uri, marker = storage.join(folder, one.name), f"{folder.rstrip('/')}.fetched/{one.name}.json"
    with FileLock(partial / f"{one.name}.lock"):  # a second run waits, and finds it there
        try:
            known = Fetched(**storage.read_json(marker))
        except FileNotFoundError:
            known = None
        if known and known.url == one.url and known.sha256 == (one.sha256 or known.sha256) and storage.exists(uri):
            return known
        part = partial / f"{one.name}.part"
        size = _fetch_rest(one, remote, part, on_bytes)
        with open(part, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if one.sha256 and sha256 != one.sha256:
            part.unlink()
            raise FetchError(
                f"{one.url} is another file than the list says (SHA-256 {sha256}): fetch again, or mend the list"
            )
        storage.publish_file(part, uri)
        fetched = Fetched(one.name, uri, one.url, size, sha256)
        storage.write_json(marker, asdict(fetched))
        return fetched


def _fetch_rest(one: Wanted, remote: "_Remote", part: Path, on_bytes: Callable[[str, int, int | None], None]) -> int:
    """Bring `part` to the file's whole length; the length."""
    tries, furthest = 0, 0
    while True:
        try:
            facts = remote.facts()
            note = part.with_suffix(".json")
            if part.exists() and (not remote.ranged or not note.exists() or storage.read_json(str(note)) != facts):
                part.unlink()  # of another file, or of a server that begins anew each time
            storage.write_json(str(note), facts)
            start = part.stat().st_size if part.exists() else 0
            with open(part, "ab") as file:
                for block in remote.blocks(start):
                    with storage.fatal_errors_named(str(part)):
                        file.write(block)
                    on_bytes(one.name, file.tell(), facts["size"])
            got, same = part.stat().st_size, remote.facts() == facts
            if same and got == (facts["size"] if facts["size"] is not None else got):
                return got
            problem = f"{got:,} of {facts['size']:,} bytes came" if same else "it changed meanwhile"
            if not same or got > facts["size"]:
                part.unlink()
        except NotThere as error:
            raise FetchError(f"there is no {one.url}: is the list right?") from error
        except ForbiddenAddress as error:
            raise FetchError(f"{one.url} is not fetched: {error}") from error
        except _network_errors() as error:
            problem = f"{type(error).__name__}: {error}"
        got = part.stat().st_size if part.exists() else 0
        tries = 1 if got >= furthest + PROGRESS_BYTES else tries + 1
        furthest = max(furthest, got)
        if tries > TRIES:
            raise FetchError(f"{one.url} can't be fetched ({problem}): run it again, it goes on from where it is")
        log.info("%s: %s; trying again", one.url, problem)
        time.sleep(PAUSE_S * 2 ** (tries - 1))


class NotThere(Exception):
    """The server says that it has no such file."""


class _Remote:
    """A file at an address, by fsspec."""

    def __init__(self, url: str, only_public_and: frozenset[str] | None = None) -> None:
        self.ranged = True
        """Whether the server sends from where one asks; believed until it does otherwise."""
        if url.startswith(("http://", "https://")):
            import aiohttp

            patience = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
            # Not the instance that others share, whose patience is five minutes for a file.
            guarded = {} if only_public_and is None else {"get_client": guarded_client(only_public_and)}
            self._fs = fsspec.filesystem(
                "http", client_kwargs={"timeout": patience}, skip_instance_cache=True, **guarded
            )
            self._path = url
        else:
            self._fs, self._path = storage.filesystem(url)

    def facts(self) -> dict[str, Any]:
        """What tells one file from another at the same address. Raises NotThere."""
        try:
            told = self._fs.info(self._path)
        except FileNotFoundError as error:
            if isinstance(error.__cause__, ForbiddenAddress):
                raise error.__cause__ from error
            # fsspec says so of any answer that is not good, and of none.
            if error.__cause__ is None or getattr(error.__cause__, "status", None) in GONE:
                raise NotThere from error
            raise ConnectionError(str(error.__cause__)) from error
        if told.get("size") is None or told.get("partial") is False:
            self.ranged = False
        changed = told.get("LastModified") or told.get("Last-Modified") or told.get("mtime") or ""
        return {"url": self._path, "size": told.get("size"), "etag": told.get("ETag"), "changed": str(changed)}

    def blocks(self, start: int) -> Iterator[bytes]:
        """From byte `start` on; from the beginning where the server knows no ranges."""
        how: dict[str, Any] = {"cache_type": "none"} if self.ranged else {"block_size": 0}
        with self._fs.open(self._path, "rb", **how) as file:
            if self.ranged:
                file.seek(start)
            try:
                yield from iter(lambda: file.read(BLOCK_BYTES), b"")
            except ValueError as error:  # it answers a range with the whole
                self.ranged = False
                raise ConnectionError(f"{self._path} sends no ranges") from error


def _network_errors() -> tuple[type[Exception], ...]:
    import aiohttp

    return OSError, aiohttp.ClientError
