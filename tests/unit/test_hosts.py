"""Where a crawl loses its pictures."""

from pathlib import Path

from tests.unit.shard_tables import KEY, put
from veclip_core.download.hosts import dead_share, hosts_of
from veclip_core.samples import DOWNLOAD_SCHEMA


def test_hosts_that_lost_most_come_first(tmp_path: Path) -> None:
    rows = [{"url_id": f"a{n}", "url": f"http://a.example/{n}", "status": "ok"} for n in range(5)]
    rows += [{"url_id": f"b{n}", "url": f"https://b.example:8080/{n}", "error": "http_404"} for n in range(3)]
    rows += [{"url_id": "b9", "url": "https://b.example:8080/9", "error": "timeout"}]
    rows += [{"url_id": "a9", "url": "http://a.example/9", "error": "dns"}]
    found = hosts_of(put(tmp_path, "download", DOWNLOAD_SCHEMA, rows), [KEY])
    assert [(host.name, host.urls, host.commonest_reason) for host in found] == [
        ("b.example:8080", 4, "http_404"),
        ("a.example", 6, "dns"),
    ]
    assert [round(host.ok_share, 2) for host in found] == [0.0, 0.83]
    assert hosts_of(put(tmp_path / "none", "download", DOWNLOAD_SCHEMA, []), []) == []


def test_only_what_will_not_come_back_is_dead() -> None:
    errors = {"http_404": 3, "dns": 1, "timeout": 5, "robots": 2}
    assert dead_share(errors, 20) == 0.2
    assert dead_share({}, 0) == 0.0
