"""URL lists of every layout and with every fault become shards whose rows add up."""

import bz2
import gzip
import json
import lzma
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import zstandard

from veclip_core.samples import LIST_URLS_SCHEMA, sample_id, url_id
from veclip_core.sources.blocklist import BlocklistError, read_blocklist
from veclip_core.sources.list_urls import Scan, scan
from veclip_core.sources.urls import ListError, RawRow, UrlList
from veclip_core.stage import RowCounts, ShardTask

ROWS = [(f"http://host{n % 7}.example/{n}.png", f"picture {n}") for n in range(1_000)]


def scanned(path: Path | str, work: Path, **how: object) -> Scan:
    sizes = {"rows_per_part": how.pop("rows_per_part", 250), "rows_per_shard": how.pop("rows_per_shard", 50)}
    return scan(UrlList(files=(str(path),), **how), work, **sizes)  # type: ignore[arg-type]


def shards(found: Scan, folder: Path) -> tuple[list[dict], list[RowCounts], list[pa.Table]]:
    """All rows, the counts and the tables of every shard, in order."""
    operation = found.operation("test")
    counts, tables = [], []
    with operation.open() as work:
        for key in found.grid.keys():  # noqa: SIM118  a Grid is no mapping
            scratch = folder / str(key)
            scratch.mkdir(parents=True)
            task = ShardTask(key, {}, scratch)
            counts.append(work(task))
            tables.append(pq.read_table(task.out("parquet")))
    return [row for table in tables for row in table.to_pylist()], counts, tables


def write_csv(path: Path, header: tuple[str, str] = ("url", "caption"), rows: list[tuple[str, str]] = ROWS) -> Path:
    columns = zip(*rows, strict=True)
    pacsv.write_csv(pa.table(dict(zip(header, map(list, columns), strict=True))), path)
    return path


def test_rows_are_cut_by_url_id_and_sorted_and_none_is_lost(tmp_path: Path) -> None:
    found = scanned(write_csv(tmp_path / "list.csv"), tmp_path / "work")
    assert (found.rows, found.grid.parts, found.grid.shards_per_part) == (1_000, 4, 5)
    rows, counts, tables = shards(found, tmp_path / "out")
    assert all(table.schema.equals(LIST_URLS_SCHEMA) for table in tables)
    assert sorted((row["url"], row["alt_text"]) for row in rows) == sorted(ROWS)
    order = [(row["url_id"], row["sample_id"]) for row in rows]
    assert order == sorted(order)
    for key, table in zip(found.grid.keys(), tables, strict=True):
        assert {found.grid.key_of(of_url) for of_url in table["url_id"].to_pylist()} <= {key}
    assert sum(count.rows_in for count in counts) == sum(count.rows_ok for count in counts) == 1_000
    first = rows[0]
    assert first["url_id"] == url_id(first["url"])
    assert first["sample_id"] == sample_id(first["url_id"], first["alt_text"])


def test_every_format_and_layout_gives_the_same_rows(tmp_path: Path) -> None:
    urls, alts = [url for url, _ in ROWS], [alt for _, alt in ROWS]
    pq.write_table(pa.table({"TEXT": alts, "URL": urls}), tmp_path / "laion.parquet")
    pq.write_table(
        pa.table({"image_url": pa.array(urls).dictionary_encode(), "alt_text": alts}), tmp_path / "x.parquet"
    )
    write_csv(tmp_path / "a.csv", ("url", "alt"))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    (tmp_path / "a.csv.zst").write_bytes(zstandard.compress((tmp_path / "a.csv").read_bytes()))
    (tmp_path / "cc3m.tsv").write_text("".join(f"{alt}\t{url}\n" for url, alt in ROWS))
    (tmp_path / "coyo.jsonl").write_text("".join(json.dumps({"url": url, "text": alt}) + "\n" for url, alt in ROWS))
    for part in range(4):
        lines = [f"{url}\t{alt}\n" for url, alt in ROWS[part * 250 : part * 250 + 250]]
        (tmp_path / f"many-{part}.tsv").write_text("".join(lines))
    names = ["laion.parquet", "x.parquet", "a.csv", "a.csv.gz", "a.csv.zst", "cc3m.tsv", "coyo.jsonl", "many-*.tsv"]
    found = {name: scanned(tmp_path / name, tmp_path / "work" / name) for name in names}
    assert {one.digest for one in found.values()} == {found["a.csv"].digest}
    assert {one.grid for one in found.values()} == {found["a.csv"].grid}
    rows, _, _ = shards(found["many-*.tsv"], tmp_path / "out")
    assert sorted((row["url"], row["alt_text"]) for row in rows) == sorted(ROWS)


def test_remote_lists_are_read_through_fsspec(tmp_path: Path) -> None:
    import fsspec

    with fsspec.open("memory://lists/remote.csv", "wb") as file:
        file.write(write_csv(tmp_path / "local.csv").read_bytes())
    remote = scanned("memory://lists/remote.csv", tmp_path / "remote")
    assert remote.digest == scanned(tmp_path / "local.csv", tmp_path / "local").digest


def test_faults_are_rows_with_reasons(tmp_path: Path) -> None:
    lines = [
        "url,caption",
        "http://a.example/1.png,one",
        "HTTP://A.example:80/1.png#top,one",  # the same picture and text
        "http://a.example/1.png,another text",
        "ftp://a.example/2.png,scheme",
        "http://,no host",
        ",no url",
        "http://a.example/3.png,",  # an empty AltText is no error: the picture can be described
        "http://a.example/4.png,too,many,cells",
        "only one cell",
        "",
        "http://a.example/5.png," + "x" * 100_000,
        'http://a.example/6.png,"bell\x07 and\nnewline"',
    ]
    path = tmp_path / "list.csv"
    path.write_bytes("\n".join(lines).encode() + b"\nhttp://a.example/7.png,caf\xe9 in latin-1\n")
    rows, (count,), _ = shards(
        scanned(path, tmp_path / "work", rows_per_part=10**6, rows_per_shard=10**4), tmp_path / "out"
    )
    assert count.rows_in == 12 == len(rows)
    assert count.errors == {"duplicate": 1, "scheme_not_http": 1, "bad_url": 1, "empty_url": 1, "malformed_row": 2}
    assert count.rows_ok == 6
    assert count.extra["urls"] == 5
    ok = {row["url"]: row["alt_text"] for row in rows if row["status"] == "ok"}
    assert ok["http://a.example/3.png"] == ""
    assert len(ok["http://a.example/5.png"]) == 4_096
    assert ok["http://a.example/6.png"] == "bell and newline"
    assert ok["http://a.example/7.png"] == "caf\N{REPLACEMENT CHARACTER} in latin-1"
    samples = [row["sample_id"] for row in rows if row["status"] == "ok"]
    assert len(set(samples)) == len(samples)
    assert all(len(row["url_id"]) == 32 and row["status"] == ("error" if row["error"] else "ok") for row in rows)


def test_jsonl_faults(tmp_path: Path) -> None:
    lines = ['{"url": "http://a.example/1", "text": "one"}', "{broken", "[1]", '{"url": 7, "text": "x"}', "",
             '{"url": "http://a.example/\\ud800", "text": "surrogate"}', '{"text": "no url"}', "[" * 100_000]  # fmt: skip
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    _, (count,), _ = shards(scanned(tmp_path / "list.jsonl", tmp_path / "work", rows_per_shard=100), tmp_path / "out")
    assert (count.rows_in, count.rows_ok) == (7, 1)
    assert count.errors == {"malformed_row": 4, "bad_url": 1, "empty_url": 1}


def test_an_unclosed_quote_costs_its_neighbours_and_no_crash(tmp_path: Path) -> None:
    lines = [f'http://a.example/{n},"text {n:080}"' for n in range(20_000)]
    lines[5] = 'http://a.example/5,"never closed'
    (tmp_path / "list.csv").write_text("url,alt\n" + "\n".join(lines))
    found = scanned(tmp_path / "list.csv", tmp_path / "work", rows_per_part=10**6, rows_per_shard=10**6)
    _, (count,), _ = shards(found, tmp_path / "out")
    assert count.rows_ok >= 5
    assert count.rows_in == count.rows_ok + sum(count.errors.values())


def test_a_limit_of_rows_is_another_list(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "list.csv")
    whole, some = scanned(path, tmp_path / "a"), scanned(path, tmp_path / "b", rows=100)
    assert some.rows == 100
    assert some.digest != whole.digest
    assert some.operation("x").config.identity() != whole.operation("x").config.identity()
    rows, _, _ = shards(some, tmp_path / "out")
    assert {row["url"] for row in rows} == {url for url, _ in ROWS[:100]}


def test_a_second_scan_reads_nothing_until_the_list_changes(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "list.csv")
    first = scanned(path, tmp_path / "work")
    before = (first.work_dir / "sorted.parquet").stat().st_mtime_ns
    assert scanned(path, tmp_path / "work") == first
    assert (first.work_dir / "sorted.parquet").stat().st_mtime_ns == before
    write_csv(path, rows=ROWS[:-1])
    assert scanned(path, tmp_path / "work").rows == 999


def test_an_unknown_layout_is_one_error_that_says_what_to_do(tmp_path: Path) -> None:
    pq.write_table(pa.table({"where": ["http://a.example/1"], "what": ["one"]}), tmp_path / "odd.parquet")
    with pytest.raises(ListError, match=r"where, what.*VECLIP_URL_COLUMN=.*VECLIP_ALT_COLUMN="):
        scanned(tmp_path / "odd.parquet", tmp_path / "work")
    found = scanned(tmp_path / "odd.parquet", tmp_path / "work", url_column="where", alt_column="what")
    assert found.rows == 1
    assert scanned(tmp_path / "odd.parquet", tmp_path / "work", url_column="where", alt_column="").rows == 1
    with pytest.raises(ListError, match="no column 'nowhere'"):
        scanned(tmp_path / "odd.parquet", tmp_path / "work", url_column="nowhere")


def test_a_zst_that_unpacks_to_gigabytes_is_read_in_bounded_memory(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.csv.zst"
    writer = zstandard.ZstdCompressor().compressobj()
    with open(bomb, "wb") as file:
        for _ in range(256):
            file.write(writer.compress(bytes(1 << 20)))
        file.write(writer.flush())
    assert bomb.stat().st_size < 100_000
    code = (
        "import resource; from veclip_core.sources.compressed import open_list\n"
        f"with open_list({str(bomb)!r}) as file:\n"
        "    file.read(10)\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    while file.read(1 << 20):\n"
        "        pass\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(grown.stdout) < 50, "MB"


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_a_compressed_list_that_is_damaged_is_no_shorter_list(tmp_path: Path, suffix: str) -> None:
    compress = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.compress}[suffix]
    one = compress(write_csv(tmp_path / "list.csv").read_bytes())
    damaged = bytearray(one)
    damaged[len(one) // 2 : len(one) // 2 + 20] = bytes(20)
    for number, broken in enumerate((one[: len(one) // 2], one[:-5], one + one[: len(one) // 2], bytes(damaged))):
        (tmp_path / f"broken-{number}.csv.{suffix}").write_bytes(broken)
        with pytest.raises(ListError, match="fetch it again"):
            scanned(tmp_path / f"broken-{number}.csv.{suffix}", tmp_path / "work")
    (tmp_path / f"twice.csv.{suffix}").write_bytes(one + one)
    assert scanned(tmp_path / f"twice.csv.{suffix}", tmp_path / "work").rows == 2 * len(ROWS) + 1, "and its header"


def test_a_parquet_list_cut_or_damaged_in_the_middle_is_no_shorter_list(tmp_path: Path) -> None:
    urls, alts = (list(column) for column in zip(*ROWS, strict=True))
    pq.write_table(pa.table({"url": urls, "text": alts}), tmp_path / "whole.parquet", row_group_size=200)
    whole = (tmp_path / "whole.parquet").read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2 : len(whole) // 2 + 1_000] = bytes(1_000)
    for name, broken in (("cut", whole[: len(whole) // 2]), ("damaged", bytes(damaged)), ("empty", b"")):
        (tmp_path / f"{name}.parquet").write_bytes(broken)
        with pytest.raises(ListError, match="fetch it again"):
            scanned(tmp_path / f"{name}.parquet", tmp_path / "work")
        assert not list((tmp_path / "work").glob(".*")), "nothing is left of it"


def test_bad_utf_8_costs_no_row(tmp_path: Path) -> None:
    def raw(*cells: bytes) -> pa.Array:
        """A column of strings as parquet writers that do not look at them make it."""
        return pa.array(cells, pa.binary()).view(pa.string())

    urls = raw(b"http://a.example/\xff", b"http://a.example/2", b"http://a.example/3")
    texts = raw(b"caf\xe9", "\u6e2f".encode(), b"three")
    pq.write_table(pa.table({"url": urls, "text": texts}), tmp_path / "list.parquet")
    pq.write_table(pa.table({"url": urls, "text": texts.dictionary_encode()}), tmp_path / "dictionary.parquet")
    lines = [b'{"url": "http://a.example/\xff", "text": "caf\xe9"}', '{"url": "http://a.example/2", "text": "\u6e2f"}'.encode(),
             b'{"url": "http://a.example/3", "text": "three"}']  # fmt: skip
    (tmp_path / "list.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "list.tsv").write_bytes(
        b"url\ttext\nhttp://a.example/\xff\tcaf\xe9\nhttp://a.example/2\t\xe6\xb8\xaf\nhttp://a.example/3\tthree\n"
    )
    for name in ("list.parquet", "dictionary.parquet", "list.jsonl", "list.tsv"):
        rows, _, _ = shards(scanned(tmp_path / name, tmp_path / "work" / name), tmp_path / "out" / name)
        assert {row["url"]: row["alt_text"] for row in rows} == {
            "http://a.example/%EF%BF%BD": "caf\N{REPLACEMENT CHARACTER}",
            "http://a.example/2": "\u6e2f",
            "http://a.example/3": "three",
        }, name


def test_ten_megabytes_in_a_cell_are_one_row(tmp_path: Path) -> None:
    """Cut to what an AltText may have, or refused with the row; its neighbours stay."""
    rows = [(f"http://a.example/{n}", "x" * 10_000_000 if n == 1 else "short") for n in range(3)]
    urls, alts = (list(column) for column in zip(*rows, strict=True))
    pq.write_table(pa.table({"url": urls, "text": alts}), tmp_path / "list.parquet")
    (tmp_path / "list.jsonl").write_text("".join(json.dumps({"url": url, "text": alt}) + "\n" for url, alt in rows))
    (tmp_path / "list.tsv").write_text("".join(f"{url}\t{alt}\n" for url, alt in rows))
    (tmp_path / "list.csv").write_text("".join(f"{url},{alt}\n" for url, alt in rows))
    (tmp_path / "list.json").write_text(json.dumps(dict(rows)))
    pq.write_table(
        pa.table({"url": [urls[0], urls[1] + alts[1], urls[2]], "text": ["a"] * 3}), tmp_path / "url.parquet"
    )
    errors = {"list.tsv": {"malformed_row": 1}, "list.csv": {"malformed_row": 1}, "url.parquet": {"url_too_long": 1}}
    for name in ("list.parquet", "list.jsonl", "list.json", *errors):
        made, counts, _ = shards(scanned(tmp_path / name, tmp_path / "work" / name), tmp_path / "out" / name)
        assert Counter(row["error"] for row in made if row["error"]) == errors.get(name, {}), name
        assert sum(count.rows_in for count in counts) == 3
        longest = max(
            len(text or "") for row in made for text in (row["url"], row["alt_text"], row["released_caption"])
        )
        assert longest <= 4_096, name


def test_columns_of_another_type_are_texts_or_rows_without_a_url(tmp_path: Path) -> None:
    urls = [f"http://a.example/{n}" for n in range(2)]
    pq.write_table(pa.table({"url": [1, 2], "text": ["a", "b"]}), tmp_path / "numbers.parquet")
    pq.write_table(pa.table({"url": [{"a": url} for url in urls], "text": ["a", "b"]}), tmp_path / "structs.parquet")
    pq.write_table(pa.table({"url": urls, "text": [["a", "b"], None]}), tmp_path / "lists.parquet")
    for name in ("numbers.parquet", "structs.parquet"):
        rows, _, _ = shards(scanned(tmp_path / name, tmp_path / "work" / name), tmp_path / "out" / name)
        assert [row["error"] for row in rows] == ["malformed_row"] * 2
    rows, _, _ = shards(scanned(tmp_path / "lists.parquet", tmp_path / "work"), tmp_path / "out")
    assert {row["url"]: row["alt_text"] for row in rows} == {urls[0]: '["a", "b"]', urls[1]: ""}


def test_lists_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    with pytest.raises(ListError, match="No URL list at"):
        scanned(tmp_path / "missing.csv", tmp_path / "work")
    (tmp_path / "list.doc").write_text("x")
    with pytest.raises(ListError, match="suffixes"):
        scanned(tmp_path / "list.doc", tmp_path / "work")
    whole = gzip.compress(write_csv(tmp_path / "list.csv").read_bytes())
    (tmp_path / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ListError, match="fetch it again"):
        scanned(tmp_path / "cut.csv.gz", tmp_path / "work")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ListError, match="fetch it again"):
        scanned(tmp_path / "cut.parquet", tmp_path / "work")
    (tmp_path / "none.csv").write_text("url,caption\n")
    with pytest.raises(ListError, match="No rows"):
        scanned(tmp_path / "none.csv", tmp_path / "work")


def test_an_object_of_captions_is_a_list_without_alt_text(tmp_path: Path) -> None:
    captions = {f"http://host{n % 7}.example/{n}.png": f'A "caption", {n}, of \u6e2f' for n in range(500)}
    (tmp_path / "wit_300m-00-of-10.json").write_text(json.dumps(captions, ensure_ascii=False), encoding="utf-8")
    rows, _, _ = shards(scanned(tmp_path / "wit_300m-*-of-10.json", tmp_path / "work"), tmp_path / "out")
    assert {row["url"]: row["released_caption"] for row in rows} == captions
    assert {row["alt_text"] for row in rows} == {""}
    (tmp_path / "objects.json").write_text(
        '{"url": "http://a.example/1", "text": "x"}\n{"url": "http://a.example/2", "text": "y"}'
    )
    with pytest.raises(ListError, match=r"an object a line is \.jsonl"):
        scanned(tmp_path / "objects.json", tmp_path / "work")
    (tmp_path / "cut.json").write_text(json.dumps(captions)[:-100])
    with pytest.raises(ListError, match="fetch it again"):
        scanned(tmp_path / "cut.json", tmp_path / "work")


def test_released_captions_join_the_alt_texts_by_url(tmp_path: Path) -> None:
    """Whichever list comes first, and however many AltTexts a URL has."""
    both = [
        ("http://a.example/1", "one"),
        ("http://a.example/1", "uno"),
        ("http://a.example/2", ""),
        ("http://a.example/3", "c"),
    ]
    write_csv(tmp_path / "alts.csv", rows=both)
    captions = {"HTTP://a.example:80/1": "A one.", "http://a.example/2": "A two.", "http://a.example/4": "A four."}
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    made = []
    for files in (("alts.csv", "captions.json"), ("captions.json", "alts.csv")):
        urls = UrlList(tuple(str(tmp_path / name) for name in files))
        found = scan(urls, tmp_path / "work", rows_per_part=100, rows_per_shard=100)
        rows, (count,), _ = shards(found, tmp_path / "-".join(files))
        assert count.rows_in == 7 == count.rows_ok + sum(count.errors.values())
        assert count.errors == {"joined": 1, "duplicate": 1}, (
            "a row without AltText is the same as one that brings a caption"
        )
        made.append(
            sorted((row["url"], row["alt_text"], row["released_caption"]) for row in rows if row["status"] == "ok")
        )
    assert made[0] == made[1] == [
        ("http://a.example/1", "one", "A one."), ("http://a.example/1", "uno", "A one."), ("http://a.example/2", "", "A two."),
        ("http://a.example/3", "c", None), ("http://a.example/4", "", "A four."),
    ]  # fmt: skip


def test_captions_of_any_format_join(tmp_path: Path) -> None:
    """Columns that are named may belong to one of the lists only."""
    pq.write_table(pa.table({"url": ["http://a.example/1"], "words": ["one"]}), tmp_path / "alts.parquet")
    pq.write_table(pa.table({"url": ["http://a.example/1"], "caption": ["A one."]}), tmp_path / "captions.parquet")
    pq.write_table(pa.table({"url": ["http://a.example/1"], "re_caption": ["A one."]}), tmp_path / "others.parquet")

    def rows_of(*names: str, **how: str) -> list[RawRow]:
        return list(UrlList(tuple(str(tmp_path / name) for name in names), **how).read())  # type: ignore[arg-type]

    one, caption = RawRow("http://a.example/1", "one"), RawRow("http://a.example/1", "", "A one.")
    assert rows_of("alts.parquet", "others.parquet", alt_column="words") == [one, caption]
    named = {"alt_column": "words", "caption_column": "caption"}
    assert rows_of("alts.parquet", "captions.parquet", **named) == [one, caption]
    assert rows_of("captions.parquet", caption_column="caption") == [caption], "one column is not two texts"
    with pytest.raises(ListError, match="no column 'nowhere'"):
        rows_of("captions.parquet", caption_column="nowhere")


def test_a_blocked_domain_is_an_error_and_another_list(tmp_path: Path) -> None:
    (tmp_path / "blocked.txt").write_text(
        "# of the day\nhost1.example\n0.0.0.0 other.example Host2.Example # a hosts file's line\n\nb\u00fccher.example\n"
    )
    blocked = read_blocklist(str(tmp_path / "blocked.txt"))
    path = write_csv(tmp_path / "list.csv", rows=[*ROWS, ("http://www.xn--bcher-kva.example/1", "below a blocked one")])
    found = scan(UrlList((str(path),)), tmp_path / "work", rows_per_part=2_000, rows_per_shard=2_000, blocked=blocked)
    rows, (count,), _ = shards(found, tmp_path / "out")
    hosts = {row["url"].split("/")[2] for row in rows if row["status"] == "ok"}
    assert hosts == {f"host{n}.example" for n in (0, 3, 4, 5, 6)}
    assert count.errors == {"blocked_domain": 287}
    whole = scan(UrlList((str(path),)), tmp_path / "work", rows_per_part=2_000, rows_per_shard=2_000)
    assert whole.operation("t").config.identity() != found.operation("t").config.identity()
    (tmp_path / "odd.txt").write_text("http://host.example/path\n")
    with pytest.raises(BlocklistError, match="line 1"):
        read_blocklist(str(tmp_path / "odd.txt"))
    with pytest.raises(BlocklistError, match="VECLIP_BLOCKED_DOMAINS"):
        read_blocklist(str(tmp_path / "none.txt"))


def test_a_list_in_another_order_is_the_same_list(tmp_path: Path) -> None:
    """Also where rows differ in no more than their captions, or not at all."""
    rows = [{"url": url, "alt": alt, "released_caption": f"{number} of them"} for number, (url, alt) in enumerate(ROWS)]
    rows += [{**row, "released_caption": "another"} for row in rows[:300]] + rows[:50]
    made = []
    for name in ("in-order", "shuffled"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = scanned(tmp_path / f"{name}.jsonl", tmp_path / "work")
        made.append((found.digest, found.grid, shards(found, tmp_path / name)[0]))
        random.Random(0).shuffle(rows)
    assert made[0] == made[1]
    (tmp_path / "once.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    assert scanned(tmp_path / "once.jsonl", tmp_path / "work").digest != made[0][0], "a row less is another list"
