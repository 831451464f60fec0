"""The stage `describe` on a real tar: every good picture gets a row, described or with a reason."""

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from veclip_core.captioning.describe import decode, describe_shard
from veclip_core.samples import DESCRIBE_SCHEMA, DOWNLOAD_SCHEMA, ShardKey
from veclip_core.stage import ShardSet, ShardTask


@dataclass
class MeanColour:
    """A describer that can be right: it tells a picture's mean colour, and nothing about a black one."""

    model_id: str = "mean-colour"
    prompt_id: str = "none"
    batches: list[int] = field(default_factory=list)

    @dataclass
    class Said:
        text: str
        detail: dict[str, int]

    def describe(self, images: Sequence[Image.Image]) -> list["MeanColour.Said"]:
        self.batches.append(len(images))
        means = [tuple(image.resize((1, 1)).tobytes()) for image in images]
        return [self.Said("" if sum(mean) < 20 else f"mostly {mean[0] // 128}", {"red": mean[0]}) for mean in means]


def _jpg(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def test_every_good_picture_gets_a_row(tmp_path: Path):
    key = ShardKey(0, 0)
    pictures = {"a": _jpg("red"), "b": _jpg("blue"), "c": _jpg("red")[:200], "d": b"no picture", "e": _jpg("black")}
    listed = [{"url_id": name, "status": "ok"} for name in [*pictures, "f"]] + [{"url_id": "g", "status": "error"}]
    shards = ShardSet(str(tmp_path), "test", "download", "0" * 16)
    folder = Path(shards.file(key, "tar")).parent
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(listed, schema=DOWNLOAD_SCHEMA), shards.file(key, "parquet"))
    with tarfile.open(shards.file(key, "tar"), "w") as tar:
        for name, data in [*pictures.items(), ("g", _jpg("red"))]:
            for suffix, content in (("jpg", data), ("json", b"{}")):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    describer = MeanColour()
    (tmp_path / "out").mkdir()
    counts = describe_shard(ShardTask(key, {"download": shards}, tmp_path / "out"), describer, batch=2)
    assert (counts.rows_in, counts.rows_ok) == (6, 2)
    assert counts.errors == {"undecodable": 2, "empty_description": 1, "missing_in_tar": 1}
    table = pq.read_table(tmp_path / "out" / "00000.parquet")
    assert table.schema == DESCRIBE_SCHEMA
    rows = table.to_pylist()
    assert [row["url_id"] for row in rows] == ["a", "b", "c", "d", "e", "f"]
    assert [row["vec"] for row in rows] == ["mostly 1", "mostly 0", "", "", "", ""]
    assert rows[0]["detail"] == '{"red": 254}'
    assert describer.batches == [2, 1]


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
