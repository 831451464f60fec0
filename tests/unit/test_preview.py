"""The caption table for Dagster."""

import html
import re

from veclip_core.captioning.preview import CaptionPreview, markdown_table


def test_hostile_texts_stay_in_their_cells() -> None:
    hostile = '| a | <script>alert(1)</script> ![x](http://example.com/y.png) `code` Half_egg *b* & "c"\nnew | line'
    table = markdown_table([CaptionPreview("id", b"jpg", hostile, "vec", "vecap", "concatenated", "drops_alt", None)])
    _, _, row = table.split("\n")
    cells = re.split(r"\s\|\s", row.strip("| "))
    assert len(cells) == 5, "a pipe or a line break of the text would make another cell"
    assert "<" not in cells[1]
    assert "](" not in cells[1]
    assert html.unescape(cells[1]) == " ".join(hostile.split()), "escaped once, so that people read what was written"
    assert cells[4] == "concatenated &#40;drops&#95;alt&#41;"


def test_long_texts_are_cut() -> None:
    table = markdown_table([CaptionPreview("id", b"", "x" * 5000, "", "", "alt", None, None)])
    assert len(table) < 1000
    assert "…" in table
