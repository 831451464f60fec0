import hashlib
import http.client
import json
import tarfile
from collections import Counter
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.unit.small_world import BOMB, real_packages, small_cache  # noqa: F401  (fixtures)
from veclip_core.captioning.features import FeatureNetwork
from veclip_core.sources import sample_packages
from veclip_core.sources.debian_archive import unpack
from veclip_core.sources.near_duplicates import Looks, NearDuplicateConfig, find_near_duplicates, looks_of
from veclip_core.sources.openmoji import OpenMojiSet
from veclip_core.sources.sample_packages import PackageReport, SampleWorldError, fetch_packages
from veclip_core.sources.sample_server import SampleServer
from veclip_core.sources.sample_world import WorldConfig, WorldReport, build_world

CONFIG = WorldConfig(port=18737, max_per_title=20, dead_links=8, repeated_rows=4, described_rows=4)


@pytest.fixture(scope="module")
def world(small_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> WorldReport:  # noqa: F811
    return build_world(small_cache, tmp_path_factory.mktemp("small world"), CONFIG)


@pytest.fixture(scope="module")
def rows(world: WorldReport) -> list[dict[str, str]]:
    return pq.read_table(world.urls).to_pylist()


def debian_package(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    """A .deb as dpkg writes it: an ar archive of debian-binary, control.tar, data.tar.xz. `links`: name to where it points."""
    data = BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, BytesIO(content))
        for name, points_to in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, points_to
            archive.addfile(member)
    out = b"!<arch>\n"
    for name, body in (("debian-binary", b"2.0\n"), ("control.tar", b"odd"), ("data.tar.xz", data.getvalue())):
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n".encode() + body + b"\n" * (len(body) % 2)
    path.write_bytes(out)
    return path


def get(server: SampleServer, path: str) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.headers["Content-Type"], answer.read()


def test_unpack_takes_only_what_is_asked_for(tmp_path: Path) -> None:
    deb = debian_package(tmp_path / "a.deb", {"./usr/share/a/x.png": b"picture", "./usr/bin/tool": b"no"})
    assert unpack(deb, tmp_path / "out", keep="./usr/share/a/", strip="./usr/share/") == 1
    assert [p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")] == ["a/x.png"]
    assert (tmp_path / "out/a/x.png").read_bytes() == b"picture"


@pytest.mark.parametrize("points_to", ["/etc", "../../../etc", "../b/../../out"])
def test_a_link_may_not_point_out_of_the_folder(tmp_path: Path, points_to: str) -> None:
    deb = debian_package(tmp_path / "a.deb", {}, {"./usr/share/a/link": points_to})
    with pytest.raises(ValueError, match=r"a/link.* has no place"):
        unpack(deb, tmp_path / "out", keep="./usr/share/", strip="./usr/share/")


def test_a_link_inside_stays_a_link(tmp_path: Path) -> None:
    deb = debian_package(
        tmp_path / "a.deb", {"./usr/share/b/x.png": b"picture"}, {"./usr/share/a/link.png": "../b/x.png"}
    )
    unpack(deb, tmp_path / "out", keep="./usr/share/", strip="./usr/share/")
    assert (tmp_path / "out/a/link.png").is_symlink()
    assert (tmp_path / "out/a/link.png").read_bytes() == b"picture"


def test_unpack_stays_in_its_folder(tmp_path: Path) -> None:
    deb = debian_package(tmp_path / "a.deb", {"./usr/share/../../../escaped": b"x"})
    with pytest.raises(ValueError, match=r"escaped.* has no place"):
        unpack(deb, tmp_path / "deep" / "out", keep="./usr/share/", strip="./usr/share/")


def test_another_version_is_refused_by_name(tmp_path: Path) -> None:
    debian_package(tmp_path / "openclipart-png_1%3a0.18+dfsg-20_all.deb", {"./usr/share/x": b""})
    with pytest.raises(
        SampleWorldError, match=r"expected openclipart-png 1:0\.18\+dfsg-19 .* found version 1:0\.18\+dfsg-20"
    ):
        fetch_packages(tmp_path / "cache", tmp_path)


def test_missing_package_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(SampleWorldError, match=r"No openclipart-png_\*\.deb"):
        fetch_packages(tmp_path / "cache", tmp_path)


def test_without_apt_get_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SampleWorldError, match=r"container image, or give a folder .* your own URL list or pictures"):
        fetch_packages(tmp_path / "cache")


def test_missing_python_part_names_the_remedy() -> None:
    with pytest.raises(SampleWorldError, match=r"no_such_part; `make setup`"):
        sample_packages.require_python_parts({"no_such_part": ""})


def test_real_packages_are_whole(real_packages: PackageReport) -> None:  # noqa: F811
    assert sum(1 for _ in real_packages.png.rglob("*.png")) == 8121
    assert sum(1 for _ in real_packages.svg.rglob("*.svg")) == 8121
    assert fetch_packages(real_packages.root.parent).fetched == 0


def test_counts_add_up(world: WorldReport, rows: list[dict[str, str]], small_cache: Path) -> None:  # noqa: F811
    files = sum(1 for _ in small_cache.rglob("*.png"))
    assert sum(world.pictures.values()) == files
    assert sum(world.rows.values()) == world.total_rows == len(rows)
    assert world.rows["pictures"] == world.pictures["listed"]
    assert world.pictures["no_licence_tag"] >= 1
    assert world.pictures["title_too_common"] > 0
    assert world.pictures["same_content"] > 0
    assert world.rows["dead_links"] == 8


def test_list_is_noisy_in_the_ways_it_says(world: WorldReport, rows: list[dict[str, str]]) -> None:
    urls = Counter(row["url"] for row in rows)
    listed = world.rows["pictures"] + world.rows["dead_links"]
    assert len(urls) == listed
    assert sum(count - 1 for count in urls.values()) == world.rows["repeated"] + world.rows["described"]
    assert sum(not row["alt_text"] for row in rows) >= 2
    assert any(BOMB in row["url"] for row in rows)
    titles = Counter(row["alt_text"] for row in rows)
    assert titles["Lemon SVG theme"] <= CONFIG.max_per_title + CONFIG.dead_links + CONFIG.repeated_rows


def test_building_again_is_free_and_elsewhere_is_the_same(
    world: WorldReport,
    small_cache: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    assert build_world(small_cache, world.root, CONFIG).seconds == 0.0
    for features in world.root.glob("features*.npz"):
        (tmp_path / features.name).write_bytes(features.read_bytes())
    elsewhere = build_world(small_cache, tmp_path, CONFIG)
    assert elsewhere.digest == world.digest
    assert pq.read_table(elsewhere.urls).equals(pq.read_table(world.urls))


def test_server_serves_every_url(world: WorldReport, rows: list[dict[str, str]]) -> None:
    about = json.loads((world.root / "world.json").read_text())
    png = world.root / about["png_root"]
    statuses: Counter[int] = Counter()
    with SampleServer(world.root) as server:
        for url in sorted({row["url"] for row in rows}):
            assert url.startswith(server.url)
            status, kind, body = get(server, urlsplit(url).path)
            statuses[status] += 1
            if status == 200:
                assert kind == "image/png"
                assert hashlib.sha256(body).digest() in {
                    hashlib.sha256((png / urlsplit(url).path.removeprefix("/png/")).read_bytes()).digest()
                }
        assert get(server, "/png/../world.json")[0] == 404
        assert get(server, "/png/%2e%2e/%2e%2e/etc/passwd")[0] == 404
        assert get(server, f"/png/{'x' * 40_000}")[0] == 400
    assert statuses == {200: world.rows["pictures"], 404: 4, 410: 2, 500: 2}
    with pytest.raises(ConnectionRefusedError):
        get(server, "/healthz")


def test_two_servers_of_one_world_share_the_port_and_another_world_may_not(world: WorldReport, tmp_path: Path) -> None:
    with SampleServer(world.root) as first:
        with SampleServer(world.root):
            assert get(first, "/healthz")[0] == 200
        assert all(get(first, "/healthz")[0] == 200 for _ in range(20))
        (tmp_path / "urls.parquet").write_bytes(world.urls.read_bytes())
        about = json.loads((world.root / "world.json").read_text()) | {"digest": "another"}
        (tmp_path / "world.json").write_text(json.dumps(about))
        with pytest.raises(SampleWorldError, match="it serves another sample world"), SampleServer(tmp_path):
            pass


def test_no_world_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(SampleWorldError, match="veclip sample fetch"):
        SampleServer(tmp_path)


def tampered(picture: Image.Image) -> Image.Image:
    """A copy as it travels: another size, another background, saved as a poor JPEG."""
    pixels = np.asarray(picture).copy()
    pixels[(pixels > 250).all(axis=2)] = (225, 238, 250)
    buffer = BytesIO()
    Image.fromarray(pixels).resize((150, 150)).save(buffer, "JPEG", quality=50)
    return Image.open(buffer).convert("RGB")


def test_planted_copies_are_caught_and_other_drawings_are_not(world: WorldReport) -> None:
    openmoji = OpenMojiSet.load(world.root)
    network = FeatureNetwork()
    pictures = [openmoji.picture(item) for item in openmoji.items]
    theirs = looks_of(pictures, network)
    planted = [index for index in range(0, len(pictures), 12)]
    copies = looks_of([tampered(pictures[index]) for index in planted], network)
    found = find_near_duplicates(copies, theirs, NearDuplicateConfig())
    caught = found >= 0
    assert caught.mean() > 0.9
    assert world.pictures["copy_of_evaluation_picture"] < 0.05 * world.pictures["listed"]


def test_either_agreement_alone_or_both_make_a_copy() -> None:
    generator = np.random.default_rng(0)
    theirs = Looks(
        generator.normal(size=(50, 64)).astype(np.float32), generator.uniform(0, 255, (50, 48)).astype(np.float32)
    )

    def found(feature_noise: float, thumbnail_shift: float) -> bool:
        noise = generator.normal(size=64) * feature_noise
        looks = Looks(
            (theirs.features[7] + noise)[None].astype(np.float32), theirs.thumbnails[7][None] + thumbnail_shift
        )
        return bool(find_near_duplicates(looks, theirs, NearDuplicateConfig())[0] == 7)

    assert found(0.0, 200.0)
    assert found(5.0, 5.0)
    assert found(0.7, 30.0)
    assert not found(0.7, 60.0)
    assert not found(5.0, 30.0)


def dense_rule(pictures: Looks, of: Looks, config: NearDuplicateConfig) -> np.ndarray:
    """The rule over all pairs at once, as the module's docstring states it."""

    def directions(features: np.ndarray) -> np.ndarray:
        centred = features - of.features.mean(axis=0)
        return centred / np.linalg.norm(centred, axis=1, keepdims=True)

    cosine_NM = directions(pictures.features) @ directions(of.features).T
    rms_NM = np.sqrt(((pictures.thumbnails[:, None] - of.thumbnails[None]) ** 2).mean(axis=2))
    both = (cosine_NM > config.both_cosine) & (rms_NM < config.both_rms)
    copy_NM = both | (cosine_NM > config.cosine_alone) | (rms_NM < config.rms_alone)
    return np.where(copy_NM.any(axis=1), np.where(copy_NM, cosine_NM, -np.inf).argmax(axis=1), -1)


def test_the_search_finds_what_comparing_every_pair_finds() -> None:
    generator = np.random.default_rng(1)
    theirs = Looks(
        generator.normal(size=(400, 64)).astype(np.float32), generator.uniform(0, 255, (400, 48)).astype(np.float32)
    )
    source = generator.integers(0, 400, 600)
    noise, shift = generator.uniform(0, 3, (600, 1)), generator.uniform(0, 80, (600, 1))
    ours = Looks(
        (theirs.features[source] + noise * generator.normal(size=(600, 64))).astype(np.float32),
        (theirs.thumbnails[source] + shift * generator.choice([-1, 1], (600, 48))).astype(np.float32),
    )
    wanted = dense_rule(ours, theirs, NearDuplicateConfig())
    assert 100 < (wanted >= 0).sum() < 500
    assert np.array_equal(find_near_duplicates(ours, theirs, NearDuplicateConfig()), wanted)
