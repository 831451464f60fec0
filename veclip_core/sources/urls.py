"""Reads URL lists as they are found in the world: parquet, csv, tsv, jsonl or JSON objects {url: caption}, plain or compressed,
local or remote, one or many.

Columns are found by name. What comes out is one stream of raw rows in bounded memory; a row that can't be read is a row with an
error, and a list that can't be read is one `ListError` that says what to do.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from veclip_core import storage
from veclip_core.mendable import Mendable
from veclip_core.sources.compressed import open_list, open_text_list
from veclip_core.sources.json_object import NoJson, NotAnObject, entries_of

if TYPE_CHECKING:
    import pyarrow as pa

URL_COLUMNS = ("url", "image_url", "img_url")
ALT_COLUMNS = ("alt_text", "alt", "caption", "text", "laion_2b", "org_caption")
"""In order of preference, upper or lower case: LAION has URL and TEXT, COYO and DataComp url and text, CC12M url and caption,
CapsFusion image_url and laion_2b, Recap-DataComp url and org_caption."""
RELEASED_COLUMNS = ("released_caption", "capsfusion", "re_caption")
"""Captions that were made from the pictures and come with a list: ours, CapsFusion's, Recap-DataComp's."""

FORMATS = {"parquet": "parquet", "csv": "csv", "tsv": "tsv", "jsonl": "jsonl", "ndjson": "jsonl", "json": "json"}
COMPRESSIONS = ("gz", "bz2", "xz", "zst")
BATCH_ROWS = 8_192
MAX_FIELD_CHARS = 1 << 20
"""Of a csv field. An unclosed quote would otherwise swallow the rest of the file."""


class ListError(Mendable, ValueError):
    """The list can't be read as it is; the message says how to mend that."""


class RawRow(NamedTuple):
    """One row of a list. `error` is None, or `malformed_row` with what could be saved of it in `url`."""

    url: str
    alt: str
    released_caption: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class UrlList:
    """A URL list: where it lies and how it is read."""

    files: tuple[str, ...]
    """Paths or fsspec URLs, with `*` where many are meant; read in this order, the files of one pattern by name."""
    url_column: str | None = None
    """None: found by name."""
    alt_column: str | None = None
    """None: found by name. An empty string: the list has no AltText."""
    caption_column: str | None = None
    """Of captions that come with the list, such as Apple's released ones. None: `released_caption`, where there is one."""
    rows: int | None = None
    """Only the first so many rows."""
    url_columns: tuple[str, ...] = URL_COLUMNS
    """Names by which the URL column is known."""

    def resolve(self) -> list[str]:
        """The files that are there."""
        found: list[str] = []
        for pattern in self.files:
            fs, path = storage.filesystem(pattern)
            matches = (
                sorted(fs.glob(path)) if any(char in path for char in "*?[") else [path] if fs.exists(path) else []
            )
            if not matches:
                raise ListError(
                    f"No URL list at {pattern}: give the path of a parquet, csv, tsv, jsonl or json file, or a pattern"
                )
            found += [str(fs.unstrip_protocol(match)) for match in matches]
        return found

    def read(self) -> Iterator[RawRow]:
        """The rows, in order, at most `rows` of them."""
        left = self.rows
        for uri in self.resolve():
            for row in self._read_file(uri):
                if left is not None:
                    if left == 0:
                        return
                    left -= 1
                yield row

    def _read_file(self, uri: str) -> Iterator[RawRow]:
        kind = format_of(uri)
        try:
            if kind == "parquet":
                with storage.open_read(uri) as file:
                    yield from self._read_parquet(uri, file)
                return
            if kind == "json":
                with open_list(uri) as file:
                    yield from (_row(url, None, caption) for url, caption in entries_of(file))
                return
            with open_text_list(uri, "utf-8-sig", newline="") as text:
                yield from self._read_jsonl(uri, text) if kind == "jsonl" else self._read_csv(uri, text, kind)
        except ListError:
            raise
        except NoJson as error:
            raise ListError(f"{uri} is no JSON ({error}), or is damaged there") from error
        except NotAnObject as error:
            raise ListError(
                f"{uri}: {error}. A .json list is one object {{url: caption}}; a file with an object a line is .jsonl"
            ) from error
        except (OSError, ValueError) as error:  # cut-off or damaged; ArrowInvalid is a ValueError
            raise ListError(f"{uri} can't be read to its end ({error}): fetch it again, or leave it out") from error

    def _read_parquet(self, uri: str, file: IO[bytes]) -> Iterator[RawRow]:
        import pyarrow.parquet as pq

        parquet = pq.ParquetFile(file)
        chosen = self._choose(uri, parquet.schema_arrow.names)
        names = [name for name in chosen if name is not None]
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=names):
            columns = [_cells(batch.column(name)) if name else [None] * batch.num_rows for name in chosen]
            yield from (_row(*values) for values in zip(*columns, strict=True))

    def _read_csv(self, uri: str, file: Iterable[str], kind: str) -> Iterator[RawRow]:
        csv.field_size_limit(MAX_FIELD_CHARS)
        # The tsv lists that exist (CC3M, CC12M) quote nothing: a quotation mark in them is a letter.
        reader = csv.reader(file) if kind == "csv" else csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        rows = _rows_of_csv(reader)
        first = next(rows, None)
        if first is None:
            raise ListError(f"{uri} is empty")
        names = _headless_names(first) or first
        chosen = self._choose(uri, names)
        at = [names.index(name) if name is not None else None for name in chosen]
        if names is not first:
            yield _row_of_cells(first, at, len(names))
        for cells in rows:
            if cells != []:
                yield _row_of_cells(cells, at, len(names))

    def _read_jsonl(self, uri: str, file: Iterable[str]) -> Iterator[RawRow]:
        chosen: Sequence[str | None] | None = None
        for line in file:
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            if not isinstance(value, dict):
                yield RawRow(line[:200].strip(), "", error="malformed_row")
                continue
            if chosen is None:
                # The first object need not have every field; one that is named is believed to come.
                named = [name for name in (self.url_column, self.alt_column, self.caption_column) if name]
                chosen = self._choose(uri, list(dict.fromkeys([*value, *named])))
            yield _row(*(value.get(name) if name is not None else None for name in chosen))

    def _choose(self, uri: str, names: Sequence[str]) -> tuple[str, str | None, str | None]:
        """The names of the url, alt and caption columns among `names`."""
        url = self._find(uri, names, self.url_column, self.url_columns)
        released = self._find(uri, names, self.caption_column, RELEASED_COLUMNS)
        others = [name for name in names if name != released]
        alt = None if self.alt_column == "" else self._find(uri, others, self.alt_column, ALT_COLUMNS)
        # A list of released captions need have no AltText: another list may.
        if url is None or (alt is None and released is None and self.alt_column != ""):
            missing = " and ".join(word for word, name in (("the URL", url), ("the AltText", alt)) if name is None)
            raise ListError(
                f"{uri}: no column is known to hold {missing}. It has the columns {', '.join(names)}. "
                "Name them: VECLIP_URL_COLUMN=..., VECLIP_ALT_COLUMN=... (`none` for a list without AltText)"
            )
        return url, alt, released

    def _find(self, uri: str, names: Sequence[str], named: str | None, known: Sequence[str]) -> str | None:
        """The column that is meant. Of several lists one may have the named column and the others the usual ones."""
        if named:
            if named in names:
                return named
            if len(self.files) == 1:
                raise ListError(f"{uri} has no column {named!r}. It has {', '.join(names)}")
        by_lower = {name.strip().lower(): name for name in reversed(names)}
        return next((by_lower[word] for word in known if word in by_lower), None)


def _cells(column: "pa.Array[Any]") -> list[Any]:
    """A column's values; texts as bytes where one of them is no UTF-8, as parquet does not forbid."""
    import pyarrow as pa

    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return column.cast(pa.binary()).to_pylist()


def format_of(uri: str) -> str:
    """parquet, csv, tsv, jsonl or json, by the file's name."""
    pieces = uri.lower().split("?")[0].split(".")
    if pieces[-1] in COMPRESSIONS:
        pieces.pop()
    if pieces[-1] not in FORMATS:
        raise ListError(
            f"{uri}: what is it? Known are the suffixes {', '.join(FORMATS)}, each also with .{', .'.join(COMPRESSIONS)}"
        )
    return FORMATS[pieces[-1]]


def _headless_names(first: Sequence[str]) -> list[str] | None:
    """Names for a file without a header, whose first line has a URL in it already: `url` and `alt` of two, else 0, 1, 2 ..."""
    urls = [cell.strip().lower().startswith(("http://", "https://")) for cell in first]
    if not any(urls):
        return None
    if len(first) == 2:
        return ["url", "alt"] if urls[0] else ["alt", "url"]
    return [str(number) for number in range(len(first))]


def _rows_of_csv(reader: Iterator[list[str]]) -> Iterator[list[str] | Any]:
    """The reader's rows; None for one that it can't parse, after which it goes on with the next line."""
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield None


def _row_of_cells(cells: list[str] | None, at: Sequence[int | None], width: int) -> RawRow:
    if cells is None or len(cells) != width:
        return RawRow("\t".join(cells or [])[:200], "", error="malformed_row")
    return _row(*(cells[index] if index is not None else None for index in at))


def _row(url: object, alt: object, released: object) -> RawRow:
    """Strings of whatever the list holds; a URL that is none (a number, a list) is a malformed row."""
    url, alt, released = (
        value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in (url, alt, released)
    )
    if not isinstance(url, str | None):
        return RawRow(str(url)[:200], "", error="malformed_row")
    return RawRow(url or "", _text(alt), _text(released) or None)


def _text(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, default=str)
