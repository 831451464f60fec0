"""The stage `describe` on a real tar: every good picture gets a row, described or with a reason."""

import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from veclip_core.captioning import describe
from veclip_core.captioning.describe import decode, describe_shard
from veclip_core.download.seal import add_member
from veclip_core.samples import DESCRIBE_SCHEMA, DOWNLOAD_SCHEMA, ShardKey
from veclip_core.stage import ShardSet, ShardTask


@dataclass
class MeanColour:
    """A describer that can be right: it tells a picture's mean colour, and nothing about a black one."""

    model_id: str = "mean-colour"
    prompt_id: str = "none"
    max_side_px: int | None = 20
    sides: list[int] = field(default_factory=list)

    @dataclass
    class Said:
        text: str
        detail: dict[str, int]

    def describe(self, images: Iterable[Image.Image]) -> list["MeanColour.Said"]:
        pictures = list(images)
        self.sides += [max(picture.size) for picture in pictures]
        means = [tuple(picture.resize((1, 1)).tobytes()) for picture in pictures]
        return [self.Said("" if sum(mean) < 20 else f"mostly {mean[0] // 128}", {"red": mean[0]}) for mean in means]


def _jpg(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def test_every_good_picture_gets_a_row(tmp_path: Path):
    key = ShardKey(0, 0)
    pictures = {"a": _jpg("red"), "b": _jpg("blue"), "c": _jpg("red")[:200], "d": b"no picture", "e": _jpg("black")}
    listed: list[dict[str, Any]] = [{"url_id": name, "status": "ok"} for name in [*pictures, "f"]]
    listed.append({"url_id": "g", "status": "error"})
    shards = ShardSet(str(tmp_path), "test", "download", "0" * 16)
    folder = Path(shards.file(key, "tar")).parent
    folder.mkdir(parents=True)
    listed[5] |= {"offset": 10**9, "bytes": 100}  # beyond the tar's end
    with tarfile.open(shards.file(key, "tar"), "w", format=tarfile.USTAR_FORMAT) as tar:
        for row, (name, data) in zip(listed, pictures.items(), strict=False):
            row |= {"offset": add_member(tar, f"{name}.jpg", data), "bytes": len(data)}
            add_member(tar, f"{name}.json", b"{}")
    pq.write_table(pa.Table.from_pylist(listed, schema=DOWNLOAD_SCHEMA), shards.file(key, "parquet"))
    describer = MeanColour()
    (tmp_path / "out").mkdir()
    counts = describe_shard(ShardTask(key, {"download": shards}, tmp_path / "out"), describer)
    assert (counts.rows_in, counts.rows_ok) == (6, 2)
    assert counts.errors == {"undecodable": 2, "empty_description": 1, "missing_in_tar": 1}
    table = pq.read_table(tmp_path / "out" / "00000.parquet")
    assert table.schema == DESCRIBE_SCHEMA
    rows = table.to_pylist()
    assert [row["url_id"] for row in rows] == ["a", "b", "c", "d", "e", "f"]
    assert [row["vec"] for row in rows] == ["mostly 1", "mostly 0", "", "", "", ""]
    assert rows[0]["detail"] == '{"red": 254}'
    assert describer.sides == [20, 20, 20], "it is handed nothing larger than it asked for"


def test_pictures_are_decoded_ahead_of_the_engine_and_no_further_than_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(describe, "AHEAD", 3)
    read: list[str] = []

    def tar() -> Iterator[tuple[str, bytes]]:
        for number in range(10):
            read.append(str(number))
            yield str(number), _jpg("red")

    pictures = describe.decoded_ahead(tar(), None)
    assert next(pictures)[0] == "0"
    assert read == ["0", "1", "2"]
    assert [name for name, _ in pictures] == list("123456789")


def test_pictures_are_seen_upright_and_on_white():
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    seen = decode(_bytes_of(clear, "PNG"))
    assert seen is not None
    assert seen.getpixel((0, 0)) == (255, 255, 255), "what is transparent hides black, mostly"
    lying = Image.new("RGB", (8, 4), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    seen = decode(_bytes_of(lying, "JPEG", exif=exif))
    assert seen is not None
    assert seen.size == (4, 8)


def test_only_known_formats_are_opened():
    """Pillow knows many more, and runs Ghostscript for one of them. A plain PPM stands for those: Pillow alone can read it."""
    ppm = _bytes_of(Image.new("RGB", (8, 8), "red"), "PPM")
    assert Image.open(io.BytesIO(ppm)).size == (8, 8)
    assert decode(ppm) is None


def _bytes_of(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_too_many_pixels_are_refused_before_decoding():
    assert decode(_jpg("red"), max_pixels=1000) is None
    picture = decode(_jpg("red"), max_pixels=1200)
    assert picture is not None
    assert picture.size == (40, 30)
