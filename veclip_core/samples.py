"""Ids, canonical URLs, clean AltText, and the schema of every table.

`url_id` names a picture's address and `sample_id` an (address, AltText) pair. Both are functions of content alone: they join
tables made on different machines, in different years, from lists in different orders. A row number never joins anything.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import pyarrow as pa

ID_VERSION = b"v1"
ID_HEX_CHARS = 32
"""128 bits: among 10^9 ids the chance of one collision is about 10^-21."""

MAX_URL_CHARS = 4_096
MAX_ALT_TEXT_CHARS = 4_096
"""Far above what any text tower reads (77 tokens); below what would let one hostile row swell a table."""

_DEFAULT_PORTS = {"http": 80, "https": 443}
_UNRESERVED_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_SPACES = re.compile(r"\s+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

LIST_URLS_SCHEMA = pa.schema(
    [
        ("url_id", pa.string()),
        ("sample_id", pa.string()),
        ("url", pa.string()),
        ("alt_text", pa.string()),
        ("released_caption", pa.string()),
        ("source", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
    ]
)
DOWNLOAD_SCHEMA = pa.schema(
    [
        ("url_id", pa.string()),
        ("url", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int64()),
        ("offset", pa.int64()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
    ]
)
DESCRIBE_SCHEMA = pa.schema(
    [
        ("url_id", pa.string()),
        ("vec", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("model", pa.string()),
        ("prompt_id", pa.string()),
        ("detail", pa.string()),
    ]
)
UNDECODABLE = "undecodable"
"""The reason of a picture that was downloaded and can't be opened."""
NEAR_DUPLICATE, EVALUATION_COPY, NSFW, KNOWN = "near_duplicate", "copy_of_evaluation_picture", "nsfw", "known_picture"
NOT_SCREENED = "not_screened"
BLOCKED = (KNOWN, EVALUATION_COPY, NSFW, NEAR_DUPLICATE, NOT_SCREENED)
"""The reasons of a picture that is good and may not be taken; of several the first is told."""
SCREEN_SCHEMA = pa.schema(
    [
        ("url_id", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("copy_of", pa.string()),
    ]
)
DUPLICATES_SCHEMA = pa.schema([("url_id", pa.string()), ("copy_of", pa.string())])
CHECK_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("url_id", pa.string()),
        ("alt_refused", pa.string()),
        ("vec_refused", pa.string()),
    ]
)
FUSE_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("url_id", pa.string()),
        ("candidate", pa.int32()),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("model", pa.string()),
        ("prompt_id", pa.string()),
        ("rejected", pa.string()),
    ]
)
SELECT_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("url_id", pa.string()),
        ("alt_text", pa.string()),
        ("vec", pa.string()),
        ("vecap", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("refused", pa.string()),
        ("error", pa.string()),
        ("model", pa.string()),
        ("prompt_id", pa.string()),
        ("vec_model", pa.string()),
        ("vec_prompt_id", pa.string()),
        ("scores", pa.string()),
    ]
)
SCORE_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("url_id", pa.string()),
        ("score", pa.float32()),
        ("status", pa.string()),
        ("error", pa.string()),
    ]
)
MIX_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("url_id", pa.string()),
        ("tar", pa.string()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("alt", pa.string()),
        ("vec", pa.string()),
        ("vecap", pa.string()),
        ("vecap_status", pa.string()),
    ]
)


def canonical_url(raw: str) -> str:
    """The one spelling of a URL: lowercase scheme and host, no default port, no fragment, normalised percent escapes.

    The path and the query keep their letters and order: servers may tell them apart.

    Raises:
        ValueError: with a reason fit for a row's `error` column, when this is no http(s) URL.
    """
    text = raw.strip()
    if not text:
        raise ValueError("empty_url")
    if len(text) > MAX_URL_CHARS:
        raise ValueError("url_too_long")
    if _CONTROL.search(text):
        raise ValueError("bad_url")
    try:
        parts = urlsplit(text)
        scheme = parts.scheme.lower()
        host = (parts.hostname or "").lower().rstrip(".")
        port = parts.port
        if not host.isascii():
            host = host.encode("idna").decode("ascii")
    except ValueError as error:  # UnicodeError, from idna, is one too
        raise ValueError("bad_url") from error
    if scheme not in _DEFAULT_PORTS:
        raise ValueError("scheme_not_http")
    if not host:
        raise ValueError("bad_url")
    netloc = f"[{host}]" if ":" in host else host
    if port is not None and port != _DEFAULT_PORTS[scheme]:
        netloc = f"{netloc}:{port}"
    return urlunsplit((scheme, netloc, _canonical_escapes(parts.path) or "/", _canonical_escapes(parts.query), ""))


def _canonical_escapes(text: str) -> str:
    def one(match: re.Match[str]) -> str:
        char = chr(int(match.group(1), 16))
        unreserved = char.isascii() and (char.isalnum() or char in "-._~")
        return char if unreserved else match.group(0).upper()

    escaped = quote(text, safe="/:?#[]@!$&'()*+,;=%-._~")
    return _UNRESERVED_ESCAPE.sub(one, escaped)


def url_id(canonical: str) -> str:
    """SHA-256("v1", 0, canonical URL), 128 bits in hex."""
    return hashlib.sha256(ID_VERSION + b"\0" + canonical.encode()).hexdigest()[:ID_HEX_CHARS]


def sample_id(of_url: str, alt_text: str) -> str:
    """SHA-256(url_id, 0, raw AltText in NFC), 128 bits in hex. Lone surrogates, which are no text, are replaced."""
    text = unicodedata.normalize("NFC", alt_text).encode("utf-8", "replace")
    return hashlib.sha256(of_url.encode() + b"\0" + text).hexdigest()[:ID_HEX_CHARS]


def clean_alt_text(raw: str) -> str:
    """AltText as the tables carry it: NFC, control and unassigned characters as spaces, single spaces, at most 4,096 characters."""
    if len(raw) <= MAX_ALT_TEXT_CHARS and raw.isascii() and raw.isprintable():  # nearly all rows of a web list
        return _SPACES.sub(" ", raw).strip()
    text = unicodedata.normalize("NFC", raw[: 4 * MAX_ALT_TEXT_CHARS].encode("utf-8", "replace").decode())
    text = "".join(" " if unicodedata.category(char) in ("Cc", "Cs", "Co", "Cn") else char for char in text)
    return _SPACES.sub(" ", text).strip()[:MAX_ALT_TEXT_CHARS].rstrip()


def file_name_of(url: str) -> str:
    """The last piece of a URL's path, for people to read."""
    return unquote(urlsplit(url).path.rsplit("/", 1)[-1])


@dataclass(frozen=True, order=True)
class ShardKey:
    """The place of a shard: which part of the source, which shard of the part."""

    part: int
    shard: int

    @property
    def part_name(self) -> str:
        return f"part-{self.part:05d}"

    @property
    def name(self) -> str:
        return f"{self.shard:05d}"

    def __str__(self) -> str:
        return f"{self.part_name}/{self.name}"


@dataclass(frozen=True)
class PartRange:
    """Some parts by number, counted as their folders are: `17-19` are part-00017 to part-00019."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> "PartRange":
        """Of `17-19` or `17-17`. Raises ValueError."""
        first, dash, last = text.partition("-")
        if not (dash and first.strip().isdecimal() and last.strip().isdecimal() and int(first) <= int(last)):
            raise ValueError(f"{text!r} is no range of parts: write it as 17-19")
        return cls(int(first), int(last))

    def __contains__(self, key: ShardKey) -> bool:
        return self.first <= key.part <= self.last


@dataclass(frozen=True)
class Grid:
    """How a source is cut: equal ranges of url_id, so that a URL's place needs no look-up and no order."""

    parts: int
    shards_per_part: int

    def key_of(self, of_url: str) -> ShardKey:
        cell = (int(of_url, 16) * self.parts * self.shards_per_part) >> (4 * ID_HEX_CHARS)
        return ShardKey(*divmod(cell, self.shards_per_part))

    def ids_of(self, part: int) -> tuple[str, str | None]:
        """A part's range of ids: the first that can be in it, and the first beyond it (None for the last part)."""
        every = 1 << 4 * ID_HEX_CHARS
        first, beyond = (f"{-(-each * every // self.parts):0{ID_HEX_CHARS}x}" for each in (part, part + 1))
        return first, beyond if part + 1 < self.parts else None

    def keys(self, parts: int | None = None) -> list[ShardKey]:
        """The shards of the first `parts` parts (all, when None), in order."""
        count = self.parts if parts is None else min(parts, self.parts)
        return [ShardKey(part, shard) for part in range(count) for shard in range(self.shards_per_part)]
