"""One run of the download over all that a hostile web does: over in time, each row with its reason, nothing private asked."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.hostile_server import MAX_BYTES, answers, hostile_server, reply
from tests.integration.test_download import bomb, encoded, noise
from veclip_core.download.download import DownloadConfig, DownloadOperation, DownloadRuntime
from veclip_core.execution.local import LocalExecutor
from veclip_core.samples import url_id
from veclip_core.sources.list_urls import scan
from veclip_core.sources.urls import UrlList
from veclip_core.stage import output_of, run_stage

GOOD = 20
SHARD_DEADLINE_S = 60.0
CONFIG = DownloadConfig(image_size=64, max_pixels=1_000_000, max_bytes=MAX_BYTES)
RUNTIME = DownloadRuntime(
    threads=16, timeout_s=2.0, deadline_s=4.0, retries=1, shard_deadline_s=SHARD_DEADLINE_S, grace_s=30.0
)


def test_a_run_over_all_of_them_ends_in_time_and_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hostile_server() as web, hostile_server() as private:
        hostile = answers(encoded(noise(60, 50, 1), "PNG"), web.origin, private.origin)
        web.answers = {path: answer for path, (answer, _) in hostile.items()}
        expected = {f"http://{web.origin}{path}": reason for path, (_, reason) in hostile.items()}
        web.answers["/robots.txt"] = reply(b"User-agent: *\nDisallow: /closed/\n")
        pictures = {f"/good-{n}.png": encoded(noise(60, 50, 100 + n), "PNG") for n in range(GOOD)}
        pictures |= {f"/healed-{status}.png": encoded(noise(60, 50, status), "PNG") for status in (429, 500, 503)}
        web.answers |= {path: reply(body) for path, body in pictures.items()}
        web.once = {f"/healed-{status}.png": reply(b"", status=f"{status} Later") for status in (429, 500, 503)}
        expected |= {f"http://{web.origin}{path}": None for path in pictures}
        jpeg = encoded(noise(200, 150, 2), "JPEG")
        broken = {"/bomb.png": bomb(60_000), "/cut.jpg": jpeg[: len(jpeg) // 2], "/empty.jpg": b""}
        web.answers |= {path: reply(body) for path, body in broken.items()}
        reasons = zip(broken, ("too_many_pixels", "truncated", "empty"), strict=True)
        expected |= {f"http://{web.origin}{path}": reason for path, reason in reasons}
        private.answers = dict.fromkeys(("/secret.png", "/robots.txt"), reply(encoded(noise(60, 50, 3), "PNG")))
        port = private.origin.partition(":")[2]
        expected |= {
            f"http://{private.origin}/secret.png": "forbidden_address",
            f"http://localhost:{port}/secret.png": "forbidden_address",
            f"http://rebinding.example:{port}/secret.png": "forbidden_address",
            "http://no-such-name.invalid/1.png": "dns",
        }
        rebinding = [str(PROJECT / "tests" / "rebinding"), str(PROJECT)]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(rebinding))
        monkeypatch.setenv("VECLIP_TEST_PUBLIC", web.origin.partition(":")[2])

        lines = [json.dumps({"url": url, "alt": f"picture {n}"}) for n, url in enumerate(expected)]
        (tmp_path / "list.jsonl").write_text("\n".join(lines))
        found = scan(
            UrlList((str(tmp_path / "list.jsonl"),)), tmp_path / "work", rows_per_part=1_000, rows_per_shard=1_000
        )
        listing, fetching = (
            found.operation("web"),
            DownloadOperation(CONFIG, replace(RUNTIME, allowed_hosts=(web.origin,))),
        )
        where = {"root": str(tmp_path / "root"), "source": "web"}
        common = {
            **where,
            "scale": "test",
            "grid": found.grid,
            "parts": 1,
            "partial": False,
            "executor": LocalExecutor(1),
        }
        run_stage(listing, inputs={}, **common)  # type: ignore[arg-type]
        inputs = {"list_urls": output_of(listing, inputs={}, **where)}
        started = time.monotonic()
        report = run_stage(fetching, inputs=inputs, **common)  # type: ignore[arg-type]
        assert time.monotonic() - started < SHARD_DEADLINE_S

    shards = output_of(fetching, inputs=inputs, **where)
    rows = {row["url_id"]: row for key in found.grid.keys() for row in shards.read_table(key).to_pylist()}  # noqa: SIM118
    assert {url: rows[url_id(url)]["error"] for url in expected} == expected
    assert len(rows) == len(expected) == report.rows_in == report.rows_ok + sum(report.errors.values())
    assert report.rows_ok == sum(reason is None for reason in expected.values())
    assert private.asked == [], "nobody told a private server anything"
    assert web.asked.count("/robots.txt") == 2, "its own, and the rebinding name's while that was a public address"
    assert "/closed/1.png" not in web.asked
    assert [web.asked.count(f"/healed-{status}.png") for status in (429, 500, 503)] == [2, 2, 2]
