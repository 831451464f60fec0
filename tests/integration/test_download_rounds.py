"""A shard's two rounds: who waited in vain for a busy host is asked once more, and nobody else waits for them."""

import io
import math
from pathlib import Path

import pytest
from PIL import Image

from tests.unit.shard_tables import made, put, task
from veclip_core.download.download import DownloadConfig, DownloadOperation, DownloadRuntime
from veclip_core.download.guard import Fetcher
from veclip_core.download.manners import BUSY
from veclip_core.download.refused import Refused
from veclip_core.samples import LIST_URLS_SCHEMA, url_id

KINDS = ("good", "slow", "never")


def made_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: int = 0
) -> tuple[dict[str, str | None], list[float]]:
    """Kind of URL -> its rows' error, and the patience of every fetch; `late` URLs are never asked in time."""
    buffer, waits = io.BytesIO(), []
    Image.new("RGB", (30, 20), "red").save(buffer, "PNG")

    def fetch(self: Fetcher, url: str, until: float, patience_s: float) -> bytes:
        waits.append(patience_s)
        if "late" in url:
            raise Refused("no_time")
        if "never" in url or ("slow" in url and patience_s < math.inf):
            raise Refused(BUSY, final=True)
        return buffer.getvalue() + url.encode()  # each another file

    monkeypatch.setattr(Fetcher, "fetch", fetch)
    urls = [f"http://{kind}.example/{n}.png" for kind in KINDS for n in range(30)]
    urls += [f"http://late.example/{n}.png" for n in range(late)]
    listed = [
        {"url_id": url_id(url), "sample_id": url_id(url), "url": url, "status": "ok"}
        for url in sorted(urls, key=url_id)
    ]
    inputs = {"list_urls": put(tmp_path, "list_urls", LIST_URLS_SCHEMA, listed)}
    with DownloadOperation(DownloadConfig(image_size=32), DownloadRuntime(threads=4)).open() as work:
        counts = work(task(tmp_path / "made", inputs))
    rows = made(tmp_path / "made").to_pylist()
    assert [row["url_id"] for row in rows] == sorted(map(url_id, urls))
    assert counts.rows_in == len(urls) == counts.rows_ok + sum(counts.errors.values())
    errors = {kind: {row["error"] for row in rows if kind in row["url"]} for kind in KINDS}
    return {kind: one for kind, (one,) in errors.items()}, waits


def test_a_busy_host_is_asked_again_when_all_others_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors, waits = made_with(tmp_path, monkeypatch)
    assert errors == {"good": None, "slow": None, "never": BUSY}
    assert waits == [10.0] * 90 + [math.inf] * 60


def test_a_shard_that_ran_out_of_time_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConnectionError, match=r"2 of 92 URLs were not asked in time.*VECLIP_SHARD_DEADLINE_S"):
        made_with(tmp_path, monkeypatch, late=2)
