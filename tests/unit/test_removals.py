"""Removed pictures and texts: in no new manifest, and nowhere in what is stored."""

import io
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.unit.shard_tables import KEY, made, put, task
from veclip_core.cli import app
from veclip_core.download.seal import add_member
from veclip_core.mixing.manifest import MixConfig, MixOperation
from veclip_core.mixing.removals import Removals, RemovalsError, read_removals
from veclip_core.pipeline import removal
from veclip_core.pipeline.removal import remove
from veclip_core.samples import DOWNLOAD_SCHEMA, LIST_URLS_SCHEMA, SELECT_SCHEMA, sample_id, url_id
from veclip_core.shards import ShardSet
from veclip_core.sources.blocklist import Blocklist

URLS = [f"http://host{n % 3}.example/{n}.png" for n in range(9)]
IDS = [url_id(url) for url in URLS]
PICTURE = b"\xff\xd8 the picture of "


def stored(root: Path) -> dict[str, ShardSet]:
    """Two AltTexts of each picture, through list, download and select."""
    samples = [
        (of_url, url, f"secret {text} of {url}")
        for of_url, url in zip(IDS, URLS, strict=True)
        for text in ("one", "two")
    ]
    listed: list[dict[str, Any]] = [
        {"url_id": of_url, "sample_id": sample_id(of_url, alt), "url": url, "alt_text": alt, "status": "ok"}
        for of_url, url, alt in samples
    ]
    selected = [
        {**row, "vec": "a drawing of it", "vecap": f"{row['alt_text']}, a drawing", "status": "fused"} for row in listed
    ]
    downloads = ShardSet(str(root), "test", "download", "0" * 16)
    Path(downloads.file(KEY, "tar")).parent.mkdir(parents=True)
    rows = []
    with tarfile.open(downloads.file(KEY, "tar"), "w", format=tarfile.USTAR_FORMAT) as tar:
        for of_url, url in zip(IDS, URLS, strict=True):
            data = PICTURE + url.encode()
            rows.append(
                {
                    "url_id": of_url,
                    "url": url,
                    "status": "ok",
                    "offset": add_member(tar, f"{of_url}.jpg", data),
                    "bytes": len(data),
                }
            )
            add_member(tar, f"{of_url}.json", url.encode())
    put(root, "download", DOWNLOAD_SCHEMA, rows)
    return {
        "list_urls": put(root, "list_urls", LIST_URLS_SCHEMA, listed),
        "download": downloads,
        "select": put(
            root, "select", SELECT_SCHEMA, [{name: row.get(name) for name in SELECT_SCHEMA.names} for row in selected]
        ),
    }


@pytest.fixture
def removals(tmp_path: Path) -> Removals:
    """A picture by its URL, one by its id, one text of a third, and all of a host."""
    one_text = sample_id(IDS[3], f"secret one of {URLS[3]}")
    lines = [
        "# asked for in May",
        URLS[0].replace("http://host0", "HTTP://Host0") + "#top",
        IDS[1],
        "",
        one_text,
        "host2.example",
    ]
    (tmp_path / "removed.txt").write_text("\n".join(lines))
    return read_removals(str(tmp_path / "removed.txt"))


def test_no_manifest_has_them(tmp_path: Path, removals: Removals) -> None:
    inputs = stored(tmp_path / "root")
    with MixOperation(MixConfig(removed=removals.digest), removals).open() as work:
        counts = work(task(tmp_path / "mixed", inputs))
    assert (counts.rows_in, counts.rows_ok, counts.errors) == (18, 7, {"removed": 11})
    rows = made(tmp_path / "mixed").to_pylist()
    assert {row["url_id"] for row in rows} == {IDS[n] for n in (3, 4, 6, 7)}
    assert [row["alt"] for row in rows if row["url_id"] == IDS[3]] == [f"secret two of {URLS[3]}"]
    assert MixConfig().identity() != MixConfig(removed=removals.digest).identity()


def test_they_are_nowhere_in_what_is_stored_and_all_else_is_where_it_was(tmp_path: Path, removals: Removals) -> None:
    inputs = stored(tmp_path / "root")
    before = Path(inputs["download"].file(KEY, "tar")).read_bytes()
    removed = remove(str(tmp_path / "root"), "test", removals)
    assert (removed.urls, removed.pictures, removed.elsewhere) == (5, 5, [])
    assert removed.rows == 11 + 5 + 11
    gone = [URLS[n] for n in (0, 1, 2, 5, 8)]
    for path in (tmp_path / "root").rglob("*"):
        if path.suffix == ".parquet":
            held = str(pq.read_table(path).to_pylist())
            assert not [url for url in [*gone, f"secret one of {URLS[3]}"] if url + "'" in held or url + "," in held], (
                path
            )
        elif path.is_file():
            assert not [url for url in gone if url.encode() in path.read_bytes()], path
    after = Path(inputs["download"].file(KEY, "tar")).read_bytes()
    assert len(after) == len(before)
    rows = pq.read_table(inputs["download"].file(KEY, "parquet")).to_pylist()
    for row, url in zip(rows, URLS, strict=True):
        if url in gone:
            assert (row["status"], row["error"], row["url"], row["bytes"]) == ("error", "removed", "", None)
        else:
            assert after[row["offset"] : row["offset"] + row["bytes"]] == PICTURE + url.encode()
    with tarfile.open(fileobj=io.BytesIO(after)) as tar:
        assert len(tar.getmembers()) == 18
    with MixOperation(MixConfig()).open() as work:
        counts = work(task(tmp_path / "mixed", inputs))
    assert (counts.rows_ok, counts.errors) == (7, {"no_picture": 10, "removed": 1})
    again = remove(str(tmp_path / "root"), "test", removals)
    assert (again.urls, again.rows, again.pictures) == (removed.urls, removed.rows, removed.pictures)
    assert Path(inputs["download"].file(KEY, "tar")).read_bytes() == after


@pytest.mark.parametrize("tables_done", range(3))
def test_a_killed_removal_is_finished_by_the_next(
    tmp_path: Path, removals: Removals, tables_done: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(tmp_path / "root")
    write, written = removal._write, []

    def dies(base: str, name: str, table: Any) -> None:
        if len(written) == tables_done:
            raise KeyboardInterrupt
        written.append(name)
        write(base, name, table)

    monkeypatch.setattr(removal, "_write", dies)
    with pytest.raises(KeyboardInterrupt):
        remove(str(tmp_path / "root"), "test", removals)
    monkeypatch.setattr(removal, "_write", write)
    assert remove(str(tmp_path / "root"), "test", removals).rows == 27
    texts = [str(pq.read_table(path).to_pylist()) for path in (tmp_path / "root").rglob("*.parquet")]
    assert not [text for text in texts if "host2.example" in text]


def test_the_command_says_where_more_of_it_lies(
    tmp_path: Path, removals: Removals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECLIP_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("VECLIP_CACHE", str(tmp_path / "cache"))
    said = CliRunner().invoke(app, ["remove", str(tmp_path / "removed.txt"), "--yes"], catch_exceptions=False).stdout
    for folder in ("pictures", "manifests"):
        assert str(tmp_path / "cache" / folder) in said


def test_a_list_that_can_not_be_read_removes_nothing(tmp_path: Path) -> None:
    with pytest.raises(RemovalsError, match="no list of removals"):
        read_removals(str(tmp_path / "none.txt"))
    for line in ("not a domain!", "ftp://a.example/x", "http://"):
        (tmp_path / "list.txt").write_text(f"a.example\n{line}\n")
        with pytest.raises(RemovalsError, match="line 2"):
            read_removals(str(tmp_path / "list.txt"))
    assert not Removals()
    assert Removals(domains=Blocklist(frozenset({"a.example"})))
