"""The stage `download`: a shard of URLs to a shard of pictures.

img2dataset's `Downloader` does one shard inside our worker: its thread pool with bounded look-ahead, and its bookkeeping of rows.
What faces strangers is ours and handed to it: the fetch (guard), the decoding (pictures), the writer (seal).
"""

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from veclip_core.config import Config
from veclip_core.download.deadlines import killed_after
from veclip_core.download.guard import Fetcher, Limits
from veclip_core.download.manners import BUSY
from veclip_core.download.pictures import PictureResizer, ResizeMode
from veclip_core.download.refused import Refused
from veclip_core.download.seal import Sealed, Spool, seal
from veclip_core.sources.blocklist import Blocklist
from veclip_core.stage import RowCounts, ShardTask, Work

OUTAGE_REASONS = frozenset({"dns", "refused", "reset", "timeout", "unreachable"})
OUTAGE_SHARE = 0.95
OUTAGE_MIN_ROWS = 20
MAX_NO_TIME_SHARE = 0.01
"""More URLs that were never asked, and a shard is not done."""


class DownloadConfig(Config):
    """What decides which picture a URL gives."""

    image_size: int = Field(default=256, ge=16)
    """Pixels of the side that `resize_mode` names. Smaller pictures stay as they are."""
    resize_mode: ResizeMode = "keep_ratio_largest"
    """img2dataset's words: the longer side fits (keep_ratio_largest), the shorter side (keep_ratio), ..."""
    quality: int = Field(default=95, ge=1, le=100)
    """Of the JPEG written."""
    min_size: int = Field(default=1, ge=1)
    """Pixels; a picture with a shorter side is `too_small`."""
    max_pixels: int = Field(default=40_000_000, ge=1)
    """A picture with more is refused by its header, before anything is decoded."""
    max_bytes: int = Field(default=30_000_000, ge=1)
    """Of a file as fetched; more is `too_large`, and no more than this is ever read."""
    user_agent: str = "Mozilla/5.0 (compatible; veclip/0.1)"
    """What servers are told, and whom to reach (`DownloadRuntime.contact`). Some answer one agent and refuse another."""
    robots_token: str = "veclip"
    """The name by which robots.txt and an X-Robots-Tag header may address us."""
    obey_robots_txt: bool = True
    """Whether a host's robots.txt is asked for, and obeyed."""
    disallowed_directives: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex")
    """X-Robots-Tag directives that are obeyed (img2dataset's default); the body is not read then. Empty: none."""
    blocked: str | None = None
    """Digest of the domains that are not asked (`DownloadOperation.blocked`)."""
    placeholder_urls: int = Field(default=10, ge=0)
    """A picture that so many URLs of one shard give is no picture of any of them (`not found`, a logo, one grey pixel): all of them
    are `placeholder`. 0: none is."""


@dataclass(frozen=True)
class DownloadRuntime:
    """How the fetching is done; changes no content but by what fails to come."""

    threads: int = 64
    """Fetches under way in one worker."""
    timeout_s: float = 10.0
    """For one wait: to connect, or for the next bytes."""
    deadline_s: float = 30.0
    """For one URL in all, redirects and retries included."""
    retries: int = 1
    """Further tries after a timeout, a reset, a cut-off body, 429 or 5xx."""
    allowed_hosts: tuple[str, ...] = ()
    """`host:port` that may be asked although not public, such as the sample's `127.0.0.1:8737`."""
    host_connections: int = 4
    """Fetches under way at one host in one worker, but for allowed ones."""
    host_pause_s: float = 0.0
    """Between the starts of two of them."""
    contact: str = ""
    """A page or mailbox for the owners of servers, put into the user agent."""
    patience_s: float = 10.0
    """How long a URL waits for its turn at a host that is busy, or slow by its own wish; the next URL of another host waits behind
    it. Those that wait in vain are asked once more when all others are done."""
    second_round_s: float = 600.0
    """For that, in all."""
    shard_deadline_s: float = 3600.0
    """For a shard in all: what was not asked by then is `no_time`."""
    grace_s: float = 300.0
    """A shard that goes on so long after its deadline is stuck where no deadline reaches: its worker ends itself."""


@dataclass(frozen=True)
class DownloadOperation:
    """One row for each distinct ok url_id of list_urls, ok or with a reason; the pictures in a tar beside it."""

    name: ClassVar[str] = "download"
    config: DownloadConfig = field(default_factory=DownloadConfig)
    runtime: DownloadRuntime = field(default_factory=DownloadRuntime)
    blocked: Blocklist = field(default_factory=Blocklist)
    """Domains that no redirect may lead to; those of the list itself are errors already."""

    @contextmanager
    def open(self) -> Iterator[Work]:
        # Both are read when the libraries are first imported, which is why it is done here and not at the head of the module.
        os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(self.config.max_pixels)
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # albumentations asks PyPI for its newest version otherwise
        import img2dataset.downloader as img2dataset

        fetcher = Fetcher(self._limits(), on_headers=self._obey_robots_tag, blocked=self.blocked)
        until, patience_s = math.inf, math.inf

        def begin_round(seconds: float, patience: float) -> None:
            nonlocal until, patience_s
            until, patience_s = time.monotonic() + seconds, patience

        def make_shard(task: ShardTask) -> RowCounts:
            with killed_after(self.runtime.shard_deadline_s + self.runtime.grace_s, f"download {task.key}"):
                return self._make_shard(task, begin_round)

        def fetch(row: tuple[int, str], **_: Any) -> tuple[int, BytesIO | None, str | None]:
            key, url = row
            try:
                return key, BytesIO(fetcher.fetch(url, until, patience_s)), None
            except Refused as refused:
                return key, None, refused.reason

        # img2dataset has no parameter for its fetch, a module-level function that `Downloader` calls by name: urllib without
        # an address check, a byte limit or a total deadline. This process belongs to this stage, so the name is bound anew.
        original = img2dataset.download_image_with_retry
        img2dataset.download_image_with_retry = fetch
        try:
            yield make_shard
        finally:
            img2dataset.download_image_with_retry = original
            fetcher.close()

    def _limits(self) -> Limits:
        return Limits(
            max_bytes=self.config.max_bytes,
            timeout_s=self.runtime.timeout_s,
            deadline_s=self.runtime.deadline_s,
            retries=self.runtime.retries,
            user_agent=_with_contact(self.config.user_agent, self.runtime.contact),
            allowed_hosts=frozenset(self.runtime.allowed_hosts),
            host_connections=self.runtime.host_connections,
            host_pause_s=self.runtime.host_pause_s,
            robots_token=self.config.robots_token if self.config.obey_robots_txt else None,
        )

    def _obey_robots_tag(self, headers: Message) -> None:
        from img2dataset.downloader import is_disallowed

        directives = set(self.config.disallowed_directives)
        if directives and is_disallowed(headers, self.config.robots_token, directives):
            raise Refused("x_robots_tag")

    def _make_shard(self, task: ShardTask, begin_round: Callable[[float, float], None]) -> RowCounts:
        ends = time.monotonic() + self.runtime.shard_deadline_s
        asked = _urls_of(task.read("list_urls", ["url_id", "url", "status"]))
        aside = task.scratch / "aside"
        aside.mkdir()
        spool = Spool(aside / "spool")
        try:
            begin_round(self.runtime.shard_deadline_s, self.runtime.patience_s)
            if asked:
                self._fetch_all(asked, spool, aside)
            if busy := [(of_url, url) for of_url, url in asked if spool.reason_of(of_url) == BUSY]:
                begin_round(min(self.runtime.second_round_s, ends - time.monotonic()), math.inf)
                self._fetch_all(busy, spool, aside)
            sealed = seal(asked, spool, task.out("tar"), self.config.placeholder_urls)
        finally:
            spool.discard()
            shutil.rmtree(aside)
        _refuse_outage(sealed)
        task.write(sealed.table)
        return _counts(sealed)

    def _fetch_all(self, asked: Sequence[tuple[str, str]], spool: Spool, aside: Path) -> None:
        from img2dataset.downloader import Downloader

        listed = aside / "urls.arrow"
        table = pa.table({"url_id": [url_id for url_id, _ in asked], "url": [url for _, url in asked]})
        with pa.OSFile(str(listed), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        config = self.config
        resizer = PictureResizer(
            config.image_size, config.resize_mode, config.quality, config.min_size, config.max_pixels
        )
        downloader = Downloader(
            sample_writer_class=lambda *_: spool,
            resizer=resizer,
            thread_count=min(self.runtime.threads, len(asked)),
            save_caption=False,
            extract_exif=False,
            output_folder=str(aside),
            column_list=["url_id", "url"],
            timeout=self.runtime.timeout_s,
            number_sample_per_shard=len(asked),
            oom_shard_count=5,
            compute_hash="sha256",
            verify_hash_type=None,
            encode_format="jpg",
            retries=self.runtime.retries,
            user_agent_token=None,
            disallowed_header_directives=None,
        )
        # Not by calling the object, which prints what a shard raises and returns False.
        downloader.download_shard((0, str(listed)))
        if spool.failure is not None:
            raise spool.failure


def _with_contact(agent: str, contact: str) -> str:
    """`... (compatible; name/1.0; +contact)`, as crawlers introduce themselves."""
    return (
        f"{agent.removesuffix(')')}; +{contact})" if contact and agent.endswith(")") else f"{agent} {contact}".strip()
    )


def _urls_of(listed: pa.Table) -> list[tuple[str, str]]:
    """(url_id, url) of the ok rows, each URL once whatever the number of its AltTexts, in url_id order."""
    ok = listed.filter(pc.equal(listed["status"], "ok"))
    urls: Mapping[str, str] = dict(zip(ok["url_id"].to_pylist(), ok["url"].to_pylist(), strict=True))
    return sorted(urls.items())


def _refuse_outage(sealed: Sealed) -> None:
    """A shard whose rows nearly all failed in the network, or that ran out of time, is no finding about its URLs: it is tried
    again, never sealed."""
    rows = sealed.table.num_rows
    late = sealed.errors.get("no_time", 0)
    if late > MAX_NO_TIME_SHARE * rows:
        raise ConnectionError(
            f"{late} of {rows} URLs were not asked in time: take more threads (VECLIP_DOWNLOAD_THREADS), or give a shard more than"
            " its hour (VECLIP_SHARD_DEADLINE_S)"
        )
    failed = sum(count for reason, count in sealed.errors.items() if reason in OUTAGE_REASONS)
    if rows >= OUTAGE_MIN_ROWS and failed > OUTAGE_SHARE * rows:
        raise ConnectionError(
            f"{failed} of {rows} URLs failed in the network ({dict(sealed.errors)}): is there a connection?"
        )


def _counts(sealed: Sealed) -> RowCounts:
    rows, failed = sealed.table.num_rows, sum(sealed.errors.values())
    pixels = pc.sum(pc.multiply(sealed.table["width"], sealed.table["height"])).as_py() or 0
    return RowCounts(rows, rows - failed, sealed.errors, extra={"pixels": float(pixels)})
