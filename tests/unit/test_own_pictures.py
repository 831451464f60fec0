"""One's own pictures as the first two stages: folders with tables, tars as they are found, damaged ones too."""

import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from veclip_core.captioning.describe import pictures_in
from veclip_core.pipeline.data import Chain
from veclip_core.samples import ShardKey, canonical_url, url_id
from veclip_core.scales import SCALES
from veclip_core.settings import Settings
from veclip_core.shards import ShardSet
from veclip_core.sources.own_pictures import Listing, OwnPictures, OwnPicturesError
from veclip_core.sources.picture_tars import CUT_OFF
from veclip_core.stage import ShardJob, output_of


def picture(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def made(listing: Listing, root: Path) -> tuple[ShardSet, ShardSet]:
    """Both stages of all shards, published as a run does."""
    listed_by, packed_by = listing.operations()
    listed = output_of(listed_by, str(root), "own", {})
    packed = output_of(packed_by, str(root), "own", {"list_urls": listed})
    for key in listing.grid.keys():  # noqa: SIM118
        with listed_by.open() as work:
            marker = ShardJob(listed_by, {}, listed).make(work, key, {})
        with packed_by.open() as work:
            ShardJob(packed_by, {"list_urls": listed}, packed).make(work, key, {"list_urls": marker["sha256"]})
    return listed, packed


KEY = ShardKey(0, 0)


def test_a_folder_with_a_table(tmp_path: Path):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(picture())
    (folder / "deep" / "b.PNG").write_bytes(picture("blue"))
    (folder / "c.jpg").write_bytes(b"no picture")
    (folder / "d.jpg").write_bytes(b"")
    (folder / "c.txt").write_text("beside")
    (folder / "alts.tsv").write_text("image\ttext\na.jpg\tfrom the table\nb\tby its name alone\n")
    listed, packed = made(OwnPictures(str(folder), str(folder / "alts.tsv")).scan(), tmp_path / "root")
    alts = {row["url"]: row["alt_text"] for row in listed.read_table(KEY).to_pylist()}
    assert alts == {"a.jpg": "from the table", "deep/b.PNG": "by its name alone", "c.jpg": "beside"}
    rows = {row["url"]: row for row in packed.read_table(KEY).to_pylist()}
    assert {name: (row["status"], row["error"], row["width"]) for name, row in rows.items()} == {
        "a.jpg": ("ok", None, 60), "deep/b.PNG": ("ok", None, 60), "c.jpg": ("error", "not_an_image", None),
    }  # fmt: skip
    places = {row["url_id"]: (row["offset"], row["bytes"]) for row in rows.values() if row["status"] == "ok"}
    with packed.open(KEY, "tar") as tar:
        assert {data for _, data in pictures_in(tar, places)} == {picture(), picture("blue")}


def test_a_name_that_several_pictures_have_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = tmp_path / "in"
    for name in ("a/cat.jpg", "b/cat.jpg", "dog.jpg", "dog.png", "b/owl.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture())
    table = folder / "alts.csv"
    table.write_text("file,alt\ncat.jpg,whose?\nb/cat.jpg,of b\ndog,which?\ndog.png,the png\nowl,the owl\n")
    listed, _ = made(OwnPictures(str(folder), str(table)).scan(), tmp_path / "root")
    alts = {row["url"]: row["alt_text"] for row in listed.read_table(KEY).to_pylist()}
    assert alts == {
        "a/cat.jpg": "", "b/cat.jpg": "of b", "dog.jpg": "", "dog.png": "the png", "b/owl.jpg": "the owl",
    }  # fmt: skip
    assert "2 names are those of several pictures, such as 'cat.jpg': write their paths" in caplog.text


def test_a_table_may_name_a_tars_samples_in_several_ways(tmp_path: Path):
    tar_of(tmp_path / "a.tar", {f"{key}.jpg": picture() for key in ("01", "02", "03", "04")})
    uri = str(tmp_path / "a.tar")
    table = tmp_path / "alts.csv"
    table.write_text(f"file,alt\n01,by its key\n02.jpg,by its file\nfile://{uri}#03,by both\n")
    listed, _ = made(OwnPictures(uri, str(table)).scan(), tmp_path / "root")
    alts = {row["url"].rpartition("#")[2]: row["alt_text"] for row in listed.read_table(KEY).to_pylist()}
    assert alts == {"01": "by its key", "02": "by its file", "03": "by both", "04": ""}


def test_a_table_of_other_pictures_is_one_clear_error(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(picture())
    (tmp_path / "alts.csv").write_text("file,alt\n/somewhere/else/b.jpg,a text\n")
    settings = Settings(
        root=str(tmp_path / "root"), pictures=str(tmp_path / "in"), alt_texts=str(tmp_path / "alts.csv"), mlflow="off"
    )
    with pytest.raises(OwnPicturesError, match=r"no row of .*alts.csv names a picture .* such as 'a.jpg'"):
        Chain(settings, SCALES["own"]).raw_urls()


def test_a_changed_folder_is_another_identity(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(picture())
    before = OwnPictures(str(tmp_path)).scan().config.identity()
    assert OwnPictures(str(tmp_path)).scan().config.identity() == before
    (tmp_path / "b.jpg").write_bytes(picture())
    assert OwnPictures(str(tmp_path)).scan().config.identity() != before


def test_tars_are_read_where_they_lie(tmp_path: Path):
    url = "https://example.org/a.jpg"
    first = {
        "x/0001.jpg": picture(), "x/0001.json": json.dumps({"url": url, "caption": "in json"}).encode(), "x/0001.txt": b"in txt",
        "x/0002.txt": b"no picture", "0003.png": picture("blue"), "0003.json": b"{broken", "0003.seg.png": picture("green"),
    }  # fmt: skip
    tar_of(tmp_path / "00000.tar", first)
    tar_of(tmp_path / "00001.tar", {"k.webp": picture("green"), "k.json": b'{"alt": "green"}'})
    for uri in (str(tmp_path), f"{tmp_path}/{{00000..00001}}.tar", f"{tmp_path}/*.tar"):
        assert len(OwnPictures(uri).scan().shards) == 2
    listed, packed = made(OwnPictures(str(tmp_path)).scan(), tmp_path / "root")
    rows = listed.read_table(KEY).to_pylist()
    assert sorted((row["url"].rpartition("#")[2], row["alt_text"]) for row in rows) == [
        ("0003", ""),
        ("x/0001", "in txt"),
    ]
    assert url_id(canonical_url(url)) in {row["url_id"] for row in rows}, "it joins with every other table"
    assert not list((tmp_path / "root").rglob("*.tar")), "nothing is copied"
    places = {row["url_id"]: (row["offset"], row["bytes"]) for row in packed.read_table(KEY).to_pylist()}
    with packed.open(KEY, "tar") as tar:
        assert [data for _, data in pictures_in(tar, places)] == [picture(), picture("blue")]
    second = listed.read_table(ShardKey(0, 1)).to_pylist()
    assert [row["alt_text"] for row in second] == ["green"]


@pytest.mark.parametrize("where", ["inside a picture", "between members", "inside a header"])
def test_of_a_tar_cut_in_half_what_is_whole_is_taken_and_the_loss_is_a_row(tmp_path: Path, where: str):
    assert 512 < len(picture()) <= 1024, "a member is a header and two blocks"
    whole = tar_of(tmp_path / "whole.tar", {f"{n}.jpg": picture() for n in range(6)}).read_bytes()
    (tmp_path / "whole.tar").unlink()
    member = 512 + 1024
    cuts = {"inside a picture": 2 * member + 700, "between members": 2 * member, "inside a header": 2 * member + 100}
    (tmp_path / "cut.tar").write_bytes(whole[: cuts[where]])
    listed, packed = made(OwnPictures(str(tmp_path)).scan(), tmp_path / "root")
    rows = listed.read_table(KEY).to_pylist()
    errors = [row["error"] for row in rows if row["status"] == "error"]
    assert errors == [CUT_OFF]
    good = packed.read_table(KEY).to_pylist()
    assert 1 <= len(good) < 6
    places = {row["url_id"]: (row["offset"], row["bytes"]) for row in good}
    with packed.open(KEY, "tar") as tar:
        assert all(data == picture() for _, data in pictures_in(tar, places))
    assert listed.marker(KEY)["errors"] == {CUT_OFF: 1}  # type: ignore[index]


def test_nothing_there_is_one_clear_error(tmp_path: Path):
    with pytest.raises(OwnPicturesError, match="no picture and no tar at"):
        OwnPictures(str(tmp_path)).scan()
    with pytest.raises(OwnPicturesError, match=r"'shards/\{00000..00009\}.tar'"):
        OwnPictures(str(tmp_path / "nowhere")).scan()


def test_samples_that_share_a_pages_url_keep_their_own_pictures(tmp_path: Path):
    page = json.dumps({"url": "https://shop.example/page"}).encode()
    members = {"a.jpg": picture("red"), "a.json": page, "b.jpg": picture("blue"), "b.json": page}
    tar_of(tmp_path / "00000.tar", members)
    listed, packed = made(OwnPictures(str(tmp_path)).scan(), tmp_path / "root")
    assert len({row["url_id"] for row in listed.read_table(KEY).to_pylist()}) == 2
    places = {row["url_id"]: (row["offset"], row["bytes"]) for row in packed.read_table(KEY).to_pylist()}
    with packed.open(KEY, "tar") as tar:
        assert [data for _, data in pictures_in(tar, places)] == [picture("red"), picture("blue")]


def test_links_in_a_tar_are_rows_with_a_reason(tmp_path: Path):
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for name, kind in (("a.jpg", tarfile.SYMTYPE), ("b.jpg", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("c.jpg")
        info.size = len(picture())
        tar.addfile(info, io.BytesIO(picture()))
    listed, packed = made(OwnPictures(str(tmp_path)).scan(), tmp_path / "root")
    assert Counter(row["error"] for row in listed.read_table(KEY).to_pylist()) == {None: 1, "no_plain_file": 2}
    assert packed.read_table(KEY).num_rows == 1


def test_a_changed_text_is_another_identity_and_another_place_is_not(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(picture())
        (tmp_path / name / "a.txt").write_text("tea")
        for file in ("a.jpg", "a.txt"):
            os.utime(tmp_path / name / file, (1_000, 1_000))
    one, two = (OwnPictures(str(tmp_path / name)).scan().config.identity() for name in ("one", "two"))
    assert one == two
    (tmp_path / "two" / "a.txt").write_text("cup")
    assert OwnPictures(str(tmp_path / "two")).scan().config.identity() != one


def test_our_own_work_inside_the_folder_is_no_input(tmp_path: Path):
    (tmp_path / "data" / "cache").mkdir(parents=True)
    (tmp_path / "a.jpg").write_bytes(picture())
    (tmp_path / "data" / "cache" / "b.jpg").write_bytes(picture())
    assert OwnPictures(str(tmp_path)).scan(without=[str(tmp_path / "data")]).shards == (("a.jpg",),)
    inside = OwnPictures(str(tmp_path / "data" / "cache")).scan(without=[str(tmp_path)])
    assert inside.shards == (("b.jpg",),), "pictures that lie inside the root are pictures all the same"


def test_a_folder_of_pictures_and_tars_is_one_clear_error(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(picture())
    tar_of(tmp_path / "b.tar", {"c.jpg": picture()})
    with pytest.raises(OwnPicturesError, match="holds 1 tars and 1 pictures"):
        OwnPictures(str(tmp_path)).scan()
