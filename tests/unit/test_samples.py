"""Ids, canonical URLs and clean AltText."""

import pytest

from veclip_core.samples import Grid, PartRange, ShardKey, canonical_url, clean_alt_text, sample_id, url_id


@pytest.mark.parametrize(
    ("raw", "canonical"),
    [
        ("HTTP://Example.COM:80/a", "http://example.com/a"),
        ("https://example.com", "https://example.com/"),
        ("https://example.com:8443/a?b=2&a=1#top", "https://example.com:8443/a?b=2&a=1"),
        ("http://example.com/%7euser/%e4%bd%a0", "http://example.com/~user/%E4%BD%A0"),
        ("http://example.com/你 a", "http://example.com/%E4%BD%A0%20a"),
        ("http://bücher.example/x", "http://xn--bcher-kva.example/x"),
        ("http://[::1]:8000/x", "http://[::1]:8000/x"),
        ("  http://example.com./x\n", "http://example.com/x"),
    ],
)
def test_one_spelling_of_a_url(raw: str, canonical: str) -> None:
    assert canonical_url(raw) == canonical
    assert canonical_url(canonical) == canonical


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("", "empty_url"),
        ("ftp://example.com/x", "scheme_not_http"),
        ("javascript:alert(1)", "scheme_not_http"),
        ("http://", "bad_url"),
        ("http://example.com:99999/", "bad_url"),
        ("http://exa\x00mple.com/", "bad_url"),
        ("http://[::1", "bad_url"),
        ("http://example.com/" + "a" * 5000, "url_too_long"),
        ("http://" + "ü" * 300 + ".example/", "bad_url"),
    ],
)
def test_what_is_no_url_has_a_reason(raw: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}$"):
        canonical_url(raw)


def test_ids_are_fixed_for_ever() -> None:
    """These ids stand in stored data: a change here orphans it."""
    of_url = url_id("http://example.com/a.png")
    assert of_url == "42634d170c7883ceafce699904a2b4d9"
    assert sample_id(of_url, "Caf\u00e9") == "3fd8e721f7a611da21b15f1a707d1536"
    assert sample_id(of_url, "e\u0301") == sample_id(of_url, "\u00e9"), "NFC: one text, one id"
    assert sample_id(of_url, "a") != sample_id(of_url, "A")
    assert sample_id(of_url, "\ud800") == sample_id(of_url, "?"), "a lone surrogate is no text"


def test_clean_alt_text_is_one_short_printable_line() -> None:
    assert clean_alt_text(" a\x00b\t\n c\u2028d ") == "a b c d"
    assert len(clean_alt_text("x" * 100_000)) == 4096
    assert clean_alt_text("👩\u200d🚀") == "👩\u200d🚀", "joiners belong to emoji and to scripts"


def test_grid_places_every_id_in_its_range() -> None:
    grid = Grid(parts=3, shards_per_part=4)
    keys = [grid.key_of(url_id(f"http://example.com/{number}")) for number in range(4000)]
    assert set(keys) == set(grid.keys())
    assert grid.key_of("0" * 32) == ShardKey(0, 0)
    assert grid.key_of("f" * 32) == ShardKey(2, 3)
    ids = sorted(url_id(f"http://example.com/{number}") for number in range(4000))
    assert [grid.key_of(one) for one in ids] == sorted(keys), "the order of ids is the order of shards"
    assert grid.keys(parts=1) == [ShardKey(0, shard) for shard in range(4)]


def test_a_parts_range_of_ids_holds_its_shards_and_no_other() -> None:
    ids = [url_id(f"http://example.com/{number}") for number in range(4000)]
    for parts in (1, 3, 7, 300):
        grid = Grid(parts, 4)
        for part in range(parts):
            first, beyond = grid.ids_of(part)
            inside = {one for one in ids if first <= one and (beyond is None or one < beyond)}
            assert inside == {one for one in ids if grid.key_of(one).part == part}
        assert grid.key_of(grid.ids_of(parts - 1)[0]) == ShardKey(parts - 1, 0)


def test_parts_by_number() -> None:
    some = PartRange.parse("17-19")
    assert [part for part in range(30) if ShardKey(part, 5) in some] == [17, 18, 19]
    for text in ("17", "19-17", "-3", "a-b", "1-2-3", ""):
        with pytest.raises(ValueError, match="write it as 17-19"):
            PartRange.parse(text)
