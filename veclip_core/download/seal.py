"""From arrival order to the final layout of a shard: rows by url_id, the same bytes however the network behaved.

img2dataset writes pictures as they come, and forgets a row whose handling raised. So its pictures first go to one spool file
(`Spool`, a sample writer as img2dataset knows them); `seal` then writes the tar in url_id order with fixed times and owners,
and the table with every row that was asked for.
"""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from veclip_core.samples import DOWNLOAD_SCHEMA

LOST = "lost_by_downloader"
"""The reason of a row that img2dataset took and never gave back."""
PLACEHOLDER = "placeholder"
"""The reason of a row whose file many other URLs gave as well."""
FACTS = ("width", "height", "original_width", "original_height", "sha256")
"""What is known of a picture; `sha256` is of the file as fetched, as img2dataset and DataComp have it."""
HEADER_BYTES = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Spooled:
    """What img2dataset said of one row, and where its jpg lies in the spool."""

    meta: Mapping[str, Any]
    start: int = 0
    size: int = 0


class Spool:
    """Takes the place of img2dataset's writers: jpgs one after another in a file, what is known of each row in memory."""

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = open(path, "w+b")  # noqa: SIM115  closed by close()
        self.rows: dict[str, Spooled] = {}
        self.failure: OSError | None = None
        """What writing raised, such as a full disk: img2dataset would take it for the row's fault, and go on."""

    def write(self, jpg: bytes | None, key: str, caption: str | None, meta: Mapping[str, Any]) -> None:
        if jpg is None:
            self.rows[meta["url_id"]] = Spooled(meta)
        else:
            start = self._file.tell()
            try:
                self._file.write(jpg)
            except OSError as error:
                self.failure = error
                raise
            self.rows[meta["url_id"]] = Spooled(meta, start, len(jpg))

    def reason_of(self, url_id: str) -> str | None:
        """Why a row gave no picture; None for one that did, and for one that has not come."""
        row = self.rows.get(url_id)
        return row.meta["error_message"] if row and not row.size else None

    def read(self, row: Spooled) -> bytes:
        self._file.seek(row.start)
        return self._file.read(row.size)

    def close(self) -> None:
        """img2dataset's call at the end of a shard; the jpgs are still to be read, `discard` is ours."""
        self._file.flush()

    def discard(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class Sealed:
    """A finished shard: its table, and the count of each reason."""

    table: pa.Table
    errors: Mapping[str, int]


def seal(asked: Sequence[tuple[str, str]], spool: Spool, tar_path: Path, placeholder_urls: int = 0) -> Sealed:
    """Write the tar of the rows that came, and return the table of all rows `asked` for: (url_id, url), in url_id order.

    A file that `placeholder_urls` of the URLs or more gave is left out, with the reason; 0 for none.
    """
    urls_of = Counter(row.meta["sha256"] for row in spool.rows.values() if row.size)
    placeholders = {sha256 for sha256, urls in urls_of.items() if placeholder_urls and urls >= placeholder_urls}
    rows: list[dict[str, Any]] = []
    errors: Counter[str] = Counter()
    with tarfile.open(tar_path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for url_id, url in asked:
            row: dict[str, Any] = dict.fromkeys(DOWNLOAD_SCHEMA.names)
            row.update(url_id=url_id, url=url)
            came = spool.rows.get(url_id)
            if came is None or not came.size:
                reason = (came.meta["error_message"] if came else None) or LOST
                errors[reason] += 1
                row.update(status="error", error=reason)
            elif came.meta["sha256"] in placeholders:
                errors[PLACEHOLDER] += 1
                row.update(status="error", error=PLACEHOLDER, sha256=came.meta["sha256"])
            else:
                facts = {name: came.meta[name] for name in FACTS}
                offset = add_member(tar, f"{url_id}.jpg", spool.read(came))
                row.update(facts, status="ok", bytes=came.size, offset=offset)
                add_member(
                    tar, f"{url_id}.json", json.dumps({"url_id": url_id, "url": url, **facts}, sort_keys=True).encode()
                )
            rows.append(row)
    return Sealed(pa.Table.from_pylist(rows, DOWNLOAD_SCHEMA), dict(errors))


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a member with nothing in its header that differs between runs; where its data begins."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    start = tar.offset + HEADER_BYTES  # USTAR, short names: a header is one block
    tar.addfile(info, io.BytesIO(data))
    return start
