"""An object of any size and with every fault, read in pieces of any size."""

import io
import json
import random

import pytest

from veclip_core.sources import json_object
from veclip_core.sources.json_object import NoJson, NotAnObject, entries_of

TEXTS = (
    'a "quoted", text',
    ",",
    '","',
    '", "',
    "",
    "\\",
    '\\",',
    "}",
    "{",
    "[1]",
    "港",
    "\u2028",
    "line\nbreak",
    '"',
    '\\"',
    "x" * 300,
)


def test_pieces_of_any_size_give_the_same_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = random.Random(0)
    entries = [(f"{drawn.choice(TEXTS)}{n}", drawn.choice(TEXTS)) for n in range(300)]
    for indent, ascii_only in ((None, True), (None, False), (2, False)):
        text = json.dumps(dict(entries), indent=indent, ensure_ascii=ascii_only).encode()
        for block in (7, 64, 1_000, 1 << 20):
            monkeypatch.setattr(json_object, "BLOCK_BYTES", block)
            assert list(entries_of(io.BytesIO(text))) == entries


def test_values_of_every_kind_and_names_that_come_twice() -> None:
    text = b'\xef\xbb\xbf \n{"a": null, "b": ["x", "y"], "a": "again", "c": {"d": "e"}, "h": 1.5, "bad \xff": "caf\xe9"}\n '
    names = [name for name, _ in entries_of(io.BytesIO(text))]
    assert names == ["a", "b", "a", "c", "h", "bad \N{REPLACEMENT CHARACTER}"]
    assert list(entries_of(io.BytesIO(b"{}"))) == []


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"", NotAnObject), (b'["a"]', NotAnObject), (b'{"a": "b"}{"c": "d"}', NotAnObject), (b'{"a": "b", "c"', ValueError),
        (b'{"a": "b"', ValueError), (b'{"a": "b', ValueError), (b'{"a": b}', ValueError), (b'{"a": "b" "c": "d"}', ValueError),
    ],
)  # fmt: skip
def test_what_is_no_object_is_an_error(text: bytes, error: type[ValueError]) -> None:
    with pytest.raises(error):
        list(entries_of(io.BytesIO(text)))


@pytest.mark.parametrize(
    "text", [b'{"a": NaN}', b'{"a": "b", c: "d"}', b'{"a": "b\x01"}', b'{"a": b}', b'{"a": "b" "c": "d"}']
)
def test_what_is_no_json_is_told_from_what_is_cut_off(text: bytes) -> None:
    with pytest.raises(NoJson):
        list(entries_of(io.BytesIO(text)))
    with pytest.raises(ValueError, match="ends before the object does"):
        list(entries_of(io.BytesIO(b'{"a": "b", "c')))


def test_blanks_before_the_object_are_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_object, "BLOCK_BYTES", 2)
    assert list(entries_of(io.BytesIO(b"\xef\xbb\xbf" + b" " * 99 + b'{"a": "b"}'))) == [("a", "b")]


def test_memory_is_bounded_whatever_an_entry_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_object, "BLOCK_BYTES", 1_000)
    monkeypatch.setattr(json_object, "MAX_ENTRY_BYTES", 20_000)
    long = json.dumps({"a": "x" * 15_000, "b": "y"}).encode()
    assert [name for name, _ in entries_of(io.BytesIO(long))] == ["a", "b"]
    endless = io.BytesIO(b'{"a": "' + b"x" * 1_000_000)
    with pytest.raises(NotAnObject, match="one entry has more than"):
        list(entries_of(endless))
    assert endless.tell() < 30_000
