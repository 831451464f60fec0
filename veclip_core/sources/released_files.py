"""Large files of others, such as Apple's ten of released captions, fetched by a list of addresses: each once, whole, and told.

What is cut off is gone on with where it stopped, as long as the server has the same file still. A file appears under its name when
all of it is there, with a marker beside it that says where it came from, its size and its SHA-256.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import fsspec
from filelock import FileLock

from veclip_core import storage
from veclip_core.mendable import Mendable

log = logging.getLogger(__name__)

BLOCK_BYTES = 16 << 20
TRIES = 5
"""In a row without a byte got."""
PAUSE_S = 1.0
"""Before the second try; each further one waits twice as long."""
SHA256_CHARS = 64
MARKER = ".success.json"


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
) -> list[Fetched]:
    """Fetch what is not there yet, one after the other.

    Args:
        folder: where the files go, local or remote.
        partial: a local folder for files under way; what is in it is gone on with.
        on_bytes: hears a file's name, the bytes got so far and, where it is known, of how many.

    Raises:
        FetchError: when a server has no such file, keeps failing, or sends another than the list says.
    """
    partial.mkdir(parents=True, exist_ok=True)
    return [_fetch_one(one, storage.join(folder, one.name), partial, on_bytes) for one in wanted]


def _fetch_one(one: Wanted, uri: str, partial: Path, on_bytes: Callable[[str, int, int | None], None]) -> Fetched:
    with FileLock(partial / f"{one.name}.lock"):  # a second run waits, and finds it there
        try:
            known = Fetched(**storage.read_json(uri + MARKER))
        except FileNotFoundError:
            known = None
        if known and known.url == one.url and known.sha256 == (one.sha256 or known.sha256) and storage.exists(uri):
            return known
        part = partial / f"{one.name}.part"
        size = _fetch_rest(one, part, on_bytes)
        with open(part, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if one.sha256 and sha256 != one.sha256:
            part.unlink()
            raise FetchError(
                f"{one.url} is another file than the list says (SHA-256 {sha256}): fetch again, or mend the list"
            )
        storage.publish_file(part, uri)
        fetched = Fetched(one.name, uri, one.url, size, sha256)
        storage.write_json(uri + MARKER, asdict(fetched))
        return fetched


def _fetch_rest(one: Wanted, part: Path, on_bytes: Callable[[str, int, int | None], None]) -> int:
    """Bring `part` to the file's whole length; the length."""
    tries = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            with _reading(one, part) as (blocks, size), open(part, "ab") as file:
                for block in blocks:
                    file.write(block)
                    on_bytes(one.name, file.tell(), size)
            got = part.stat().st_size
            if size is None or got == size:
                return got
            problem = f"{got:,} of {size:,} bytes came"
            if got > size:
                part.unlink()
        except FileNotFoundError as error:
            raise FetchError(f"there is no {one.url}: is the list right?") from error
        except _network_errors() as error:
            problem = f"{type(error).__name__}: {error}"
        progress = part.exists() and part.stat().st_size > before
        tries = 1 if progress else tries + 1
        if tries > TRIES:
            raise FetchError(f"{one.url} can't be fetched ({problem}): run it again, it goes on from where it is")
        log.info("%s: %s; trying again", one.url, problem)
        time.sleep(PAUSE_S * 2 ** (tries - 1))


@contextmanager
def _reading(one: Wanted, part: Path) -> Iterator[tuple[Iterator[bytes], int | None]]:
    """The blocks that `part` lacks, and the file's size if the server tells."""
    fs, path = storage.filesystem(one.url)
    facts = fs.info(path)
    size = facts.get("size")
    version = {"url": one.url, "size": size, "etag": facts.get("ETag"), "modified": str(facts.get("LastModified", ""))}
    note = part.with_suffix(".json")
    # HTTP servers say whether they send ranges; object stores all do.
    ranged = size is not None and facts.get("partial", not path.startswith("http"))
    if part.exists() and (not ranged or not note.exists() or storage.read_json(str(note)) != version):
        part.unlink()  # of another file, or of a server that begins anew each time
    storage.write_json(str(note), version)
    with fs.open(path, "rb", **({"cache_type": "none"} if ranged else {"block_size": 0})) as file:
        if part.exists():
            file.seek(part.stat().st_size)
        yield iter(lambda: file.read(BLOCK_BYTES), b""), size


def _network_errors() -> tuple[type[Exception], ...]:
    import aiohttp

    return OSError, aiohttp.ClientError
