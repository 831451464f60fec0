"""What training reads: rows, pictures, tokens and batches."""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import torch
from cachetools import LRUCache
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image

from tests.unit.training_world import TINY, write_world
from veclip_core import storage
from veclip_core.sources.pictures import on_white
from veclip_core.training import manifest_table
from veclip_core.training.data import Batches, UnreadablePictures, pictures_for, tokenizer_for
from veclip_core.training.manifest_table import ManifestTable, load_manifest
from veclip_core.training.order import PIECE_ROWS, RowPlan, WindowPlan
from veclip_core.training.pictures import PictureCache, StreamedPictures, square
from veclip_core.training.recipe import ALT_TEXT_ONLY, RECIPES, SAMPLE, Recipe
from veclip_core.training.report import Runtime
from veclip_core.training.texts import BpeTokenizer, SampleTokenizer, tokenizer_from_json


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    return write_world(tmp_path_factory.mktemp("source with a space"), 48)


def test_a_manifest_is_the_same_in_memory_and_memory_mapped(world: tuple[str, list[str]], tmp_path: Path) -> None:
    plain, mapped = load_manifest(*world), load_manifest(*world, cache_folder=tmp_path)
    assert len(plain) == len(mapped) == 48
    order = np.random.default_rng(0).permutation(48)
    assert plain.rows(order) == mapped.rows(order)
    table = plain.table.to_pylist()
    assert plain.rows(order) == [table[position] for position in order]
    assert plain.digest == mapped.digest == load_manifest(*world).digest
    assert load_manifest(world[0], world[1][:1]).digest != plain.digest


def test_a_manifest_is_mapped_once_for_all_that_ask_at_once(
    world: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a lock both write their own, for as long as neither is there."""
    read, writing = manifest_table._tables, []

    def slowly(uris: Sequence[str], columns: Sequence[str]) -> Iterator[pa.Table]:
        writing.append(uris)
        time.sleep(0.5)
        yield from read(uris, columns)

    monkeypatch.setattr(manifest_table, "_tables", slowly)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: load_manifest(*world, cache_folder=tmp_path), range(3)))
    assert len(writing) == 1
    assert [one.rows([3, 40]) for one in found] == [load_manifest(*world).rows([3, 40])] * 3


def test_what_a_killed_process_left_of_a_mapped_manifest_goes(world: tuple[str, list[str]], tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from veclip_core.training import manifest_table as it; read = it._tables\n"
        "def tables(*given):\n"
        "    yield next(read(*given))\n"
        "    os.kill(os.getpid(), 9)\n"
        "it._tables = tables\n"
        "it.load_manifest(sys.argv[1], sys.argv[3:], cache_folder=Path(sys.argv[2]))\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, world[0], tmp_path, *world[1]], check=False)
    assert killed.returncode == -9
    assert len(list(tmp_path.glob(".*.tmp"))) == 1
    assert len(load_manifest(*world, cache_folder=tmp_path)) == 48
    assert not list(tmp_path.glob(".*.tmp"))


def test_what_a_killed_process_left_of_decoded_pictures_goes(world: tuple[str, list[str]], tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from veclip_core.training import manifest_table, pictures as it\n"
        "it._decode = lambda *_: os.kill(os.getpid(), 9)\n"
        "manifest = manifest_table.load_manifest(sys.argv[1], sys.argv[3:])\n"
        "it.PictureCache.open(manifest, 36, 'pad', Path(sys.argv[2]))\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, world[0], tmp_path, *world[1]], check=False)
    assert killed.returncode == -9
    assert len(list(tmp_path.glob(".*.tmp"))) == 1
    PictureCache.open(load_manifest(*world), 36, "pad", tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]


def test_a_manifest_without_rows_says_so(world: tuple[str, list[str]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no rows"):
        load_manifest(world[0], [])
    with pytest.raises(ValueError, match="no rows"):
        load_manifest(world[0], [], cache_folder=tmp_path)
    assert not list(tmp_path.glob("*.arrow"))


def test_cached_and_streamed_pictures_have_the_same_pixels(world: tuple[str, list[str]], tmp_path: Path) -> None:
    manifest = load_manifest(*world)
    for fit in ("pad", "squash", "crop"):
        cache = PictureCache.open(manifest, 36, fit, tmp_path, threads=2)
        streamed = StreamedPictures(manifest, 36, fit, threads=2)
        rows = [40, 3, 3, 17]
        assert cache.read(rows)[0].shape == (4, 36, 36, 3)
        assert np.array_equal(cache.read(rows)[0], streamed.read(rows)[0])
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".npy"] * 3


def test_a_cache_is_made_once(world: tuple[str, list[str]], tmp_path: Path) -> None:
    manifest = load_manifest(*world)
    made = PictureCache.open(manifest, 36, "pad", tmp_path).path
    stamp = made.stat().st_mtime_ns
    assert PictureCache.open(manifest, 36, "pad", tmp_path).path == made
    assert made.stat().st_mtime_ns == stamp
    assert PictureCache.open(manifest, 40, "pad", tmp_path).path != made


def test_a_damaged_tar_is_named(tmp_path: Path) -> None:
    world = write_world(tmp_path / "source", 8)
    for tar in (tmp_path / "source" / "download").iterdir():
        tar.write_bytes(b"\0" * tar.stat().st_size)
    with pytest.raises(ValueError, match=r"download/0000.\.tar at \d+: .* no readable picture"):
        PictureCache.open(load_manifest(*world), 36, "pad", tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_transparent_parts_become_white() -> None:
    picture = Image.new("RGBA", (20, 10), (0, 0, 0, 0))
    picture.putpixel((0, 0), (255, 0, 0, 255))
    pixels = np.asarray(on_white(picture))
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[5, 5].tolist() == [255, 255, 255]
    palette = Image.new("P", (4, 4), 0)
    palette.info["transparency"] = 0
    assert np.asarray(on_white(palette)).min() == 255
    assert square(picture, 32, "pad").shape == (32, 32, 3)


def test_every_row_once_an_epoch_and_epochs_differ() -> None:
    plan = RowPlan(batch_size=8, seed=1, sources=((50, 50),))
    epochs = []
    for epoch in range(2):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        rows = np.concatenate([plan.share(step, 0, 1)[1] for step in steps])
        assert {plan.share(step, 0, 1)[0] for step in steps} == {epoch}
        assert len(rows) == len(set(rows.tolist())) == 48
        epochs.append(rows)
    assert not np.array_equal(*epochs)


def test_a_batch_depends_on_its_step_alone(world: tuple[str, list[str]]) -> None:
    manifest = load_manifest(*world)
    pictures, tokenizer = StreamedPictures(manifest, 36, "pad"), tokenizer_for(TINY, manifest)
    forwards, alone = (Batches.of(manifest, pictures, tokenizer, TINY) for _ in range(2))
    in_order = [forwards.at(step) for step in range(7)]
    for step in (6, 2):
        batch = alone.at(step)
        assert torch.equal(batch.images_BCHW, in_order[step].images_BCHW)
        assert torch.equal(batch.tokens_BL, in_order[step].tokens_BL)
        assert batch.texts == in_order[step].texts
    assert not torch.equal(in_order[0].images_BCHW, in_order[3].images_BCHW)
    assert in_order[0].images_BCHW.shape == (16, 3, 32, 32)


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_shares_of_ranks_are_the_batch(world: tuple[str, list[str]], ranks: int) -> None:
    manifest = load_manifest(*world)
    pictures, tokenizer = StreamedPictures(manifest, 36, "pad"), tokenizer_for(TINY, manifest)
    whole = Batches.of(manifest, pictures, tokenizer, TINY).at(3)
    shares = [Batches.of(manifest, pictures, tokenizer, TINY, rank, ranks).at(3) for rank in range(ranks)]
    assert torch.equal(torch.cat([share.images_BCHW for share in shares]), whole.images_BCHW)
    assert torch.equal(torch.cat([share.tokens_BL for share in shares]), whole.tokens_BL)
    with pytest.raises(ValueError, match="can't be shared by 3 ranks"):
        Batches.of(manifest, pictures, tokenizer, TINY, 0, 3)


def test_the_arms_differ_in_texts_only(world: tuple[str, list[str]]) -> None:
    manifest = load_manifest(*world)
    pictures = StreamedPictures(manifest, 36, "pad")
    arms = []
    for weights in (ALT_TEXT_ONLY, TINY.weights):
        recipe = TINY.model_copy(update={"weights": weights})
        arms.append(Batches.of(manifest, pictures, tokenizer_for(recipe, manifest), recipe))
    assert arms[0].tokenizer == arms[1].tokenizer
    plain, mixed = (arm.at(4) for arm in arms)
    assert torch.equal(plain.images_BCHW, mixed.images_BCHW)
    assert plain.sources == {"alt": 16}
    assert set(mixed.sources) == {"alt", "vecap"}
    assert any(a == b for a, b in zip(plain.texts, mixed.texts, strict=True))


def test_fallbacks_and_sources_are_counted(tmp_path: Path) -> None:
    manifest = load_manifest(*write_world(tmp_path / "source", 32, empty_alts=8))
    recipe = TINY.model_copy(update={"weights": ALT_TEXT_ONLY})
    batches = Batches.of(manifest, StreamedPictures(manifest, 36, "pad"), tokenizer_for(recipe, manifest), recipe)
    epoch = [batches.at(step) for step in range(2)]
    assert sum((Counter(batch.sources) for batch in epoch), Counter()) == {"alt": 24, "none": 8}
    assert sum(batch.fallbacks for batch in epoch) == 8


def test_texts_longer_than_the_context_are_cut_and_counted(world: tuple[str, list[str]]) -> None:
    manifest = load_manifest(*world)
    recipe = TINY.model_copy(update={"weights": {"vecap": 1.0}, "context_length": 8, "tokenizer": "bpe"})
    pictures = StreamedPictures(manifest, 36, "pad")
    lengths = [len(SimpleTokenizer().encode(row["vecap"])) for row in manifest.rows(list(range(48)))]
    too_long = sum(length > 8 - 2 for length in lengths)
    assert too_long == 48, "all of these are"
    cut = [Batches.of(manifest, pictures, BpeTokenizer(8), recipe).at(step) for step in range(3)]
    assert sum(batch.truncated for batch in cut) == too_long
    assert all(batch.tokens_BL.shape == (16, 8) for batch in cut)
    fits = [Batches.of(manifest, pictures, BpeTokenizer(max(lengths) + 2), recipe).at(step) for step in range(3)]
    assert sum(batch.truncated for batch in fits) == 0, "one that just fits is whole"


def test_the_sample_tokenizer_is_clips_renumbered() -> None:
    texts = ["Red Circle", "a drawing of a square &amp; more", "naïve café 12"]
    small, whole = SampleTokenizer.of_texts(texts, 12), BpeTokenizer(12)
    back = torch.tensor(small.clip_ids())
    assert torch.equal(back[small(texts)], whole(texts))
    assert torch.equal(whole(texts), SimpleTokenizer(context_length=12)(texts))
    assert (small(texts).argmax(1) == whole(texts).argmax(1)).all()
    assert int(small(texts).max()) == small.vocab_size - 1
    assert tokenizer_from_json(small.to_json()) == small


def test_an_unknown_token_drops_out_and_a_long_text_is_cut() -> None:
    small = SampleTokenizer.of_texts(["red circle"], 6)
    assert torch.equal(small(["red zebra circle"]), small(["RED circle"]))
    cut = small(["red circle red circle red circle"])
    assert cut[0, -1] == small.vocab_size - 1
    assert small([""]).tolist() == [[small.vocab_size - 2, small.vocab_size - 1, 0, 0, 0, 0]]


def test_recipes_are_valid_and_identified_by_content() -> None:
    for recipe in RECIPES.values():
        Recipe(**recipe.model_dump())
    mixed = {"alt": 0.5, "vecap": 0.5}
    reversed_mix = dict(reversed(mixed.items()))
    assert Recipe(weights=mixed).identity() == Recipe(weights=reversed_mix).identity() != SAMPLE.identity()
    for wrong in ({"weights": {"caption": 1.0}}, {"cache_size": 40, "image_size": 64}, {"weights": {"alt": 0.0}}):
        with pytest.raises(ValueError):  # noqa: PT011
            Recipe(**wrong)


def test_remote_tars_are_copied_once_and_give_the_same_pictures(world: tuple[str, list[str]], tmp_path: Path) -> None:
    source, paths = world
    local = load_manifest(source, paths)
    memory = fsspec.filesystem("memory")
    for path in sorted((Path(source) / "download").glob("*.tar")):
        memory.pipe_file(f"/tars/download/{path.name}", path.read_bytes())
    remote = ManifestTable("memory://tars", local.table, local.digest)
    limits = Runtime(cache_folder=tmp_path, max_cache_bytes=0, max_tar_cache_bytes=10**9, loader_threads=2)
    rows = [0, len(local) - 1, 5]
    expected = StreamedPictures(local, TINY.cache_size, TINY.fit).read(rows)[0]
    assert np.array_equal(pictures_for(TINY, remote, limits).read(rows)[0], expected)
    assert len(list(tmp_path.rglob("*.tar"))) == 2
    memory.rm("/tars", recursive=True)
    assert np.array_equal(pictures_for(TINY, remote, limits).read(rows)[0], expected), "nobody is asked again"
    small = replace(limits, cache_folder=tmp_path / "none", max_tar_cache_bytes=10)
    _, problems = pictures_for(TINY, remote, small).read(rows)
    assert set(problems) == {0, 1, 2}
    assert all("is not there" in problem for problem in problems.values())
    assert not list((tmp_path / "none").rglob("*.tar"))


def test_pictures_that_cannot_be_read_are_counted_or_stop_it(tmp_path: Path) -> None:
    source, paths = write_world(tmp_path / "source", 48)
    manifest = load_manifest(source, paths)
    broken = manifest.rows([7])[0]
    with open(f"{source}/{broken['tar']}", "r+b") as tar:
        tar.seek(broken["offset"])
        tar.write(bytes(broken["bytes"]))
    pictures, tokenizer = StreamedPictures(manifest, 36, "pad"), tokenizer_for(TINY, manifest)
    batches = [Batches.of(manifest, pictures, tokenizer, TINY).at(step) for step in range(3)]
    assert sum(batch.unreadable for batch in batches) == 1
    assert all(batch.images_BCHW.flatten(1).any(1).all() for batch in batches), "no black picture is trained on"
    (with_stand_in,) = (batch for batch in batches if batch.unreadable)
    assert len(with_stand_in.texts) == 16
    assert len(set(with_stand_in.texts)) == 15
    Path(f"{source}/{broken['tar']}").unlink()
    with pytest.raises(
        UnreadablePictures, match=r"pictures of a batch can't be read, among them: .*\.tar is not there"
    ):
        Batches.of(manifest, pictures, tokenizer, TINY).at(0)


def epoch_of(plan: WindowPlan, epoch: int, ranks: int = 1) -> list[np.ndarray]:
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    return [np.concatenate([plan.share(step, rank, ranks)[1] for rank in range(ranks)]) for step in steps]


@pytest.mark.parametrize(("rows", "batch_size"), [(100_003, 512), (5_003, 48), (70, 64)])
def test_windows_read_every_row_once_an_epoch_whatever_the_ranks(rows: int, batch_size: int) -> None:
    plan = WindowPlan(batch_size, 3, ((rows, rows),))
    first, second = epoch_of(plan, 0), epoch_of(plan, 1)
    for epoch in (first, second):
        read = np.concatenate(epoch)
        assert len(read) == len(np.unique(read)) == rows // batch_size * batch_size
        assert read.min() >= 0
        assert read.max() < rows
    assert not np.array_equal(first, second)
    assert set(np.concatenate(first)) != set(np.concatenate(second)), "what is left out is not the same each time"
    for ranks in (2, 4, 16):
        assert np.array_equal(epoch_of(plan, 0, ranks), first)


def test_more_ranks_than_tars_share_each_batch(world: tuple[str, list[str]]) -> None:
    manifest = load_manifest(*world)
    assert len(set(manifest.table["tar"].to_pylist())) == 2
    windows = TINY.model_copy(update={"order": "windows"})
    pictures, tokenizer = pictures_for(windows, manifest, Runtime()), tokenizer_for(windows, manifest)
    whole = Batches.of(manifest, pictures, tokenizer, windows).at(1)
    shares = [Batches.of(manifest, pictures, tokenizer, windows, rank, 8).at(1) for rank in range(8)]
    assert torch.equal(torch.cat([share.images_BCHW for share in shares]), whole.images_BCHW)
    assert [text for share in shares for text in share.texts] == list(whole.texts)


def test_windows_ask_for_neighbours_evenly() -> None:
    """A rank's step wants few pieces that the steps before did not, and no step many at once."""
    plan = WindowPlan(1024, 0, ((2_000_000, 2_000_000),))
    kept: LRUCache[int, bool] = LRUCache(plan.rows_in_reach(4) // PIECE_ROWS)
    new = []
    for step in range(300):
        pieces = {int(row) // PIECE_ROWS for row in plan.share(step, 1, 4)[1]}
        new.append(len(pieces - set(kept)))
        kept.update(dict.fromkeys(pieces, True))
    assert sum(new[20:]) < 1.3 * 280 * 256 / PIECE_ROWS, "what a request brings is read before it is let go"
    assert max(new[20:]) < 16


def test_windows_over_remote_tars_are_a_request_a_piece(world: tuple[str, list[str]]) -> None:
    source, paths = world
    local = load_manifest(source, paths)
    memory = fsspec.filesystem("memory")
    for path in sorted((Path(source) / "download").glob("*.tar")):
        memory.pipe_file(f"/far/download/{path.name}", path.read_bytes())
    asked: list[str] = []
    remote = ManifestTable("memory://far", local.table, local.digest)
    windows = TINY.model_copy(update={"order": "windows"})
    pictures = pictures_for(windows, remote, Runtime())
    read_bytes = storage.read_bytes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "read_bytes", lambda uri, *where: asked.append(uri) or read_bytes(uri, *where))
        far, problems = pictures.read(range(48))
    assert not problems
    assert np.array_equal(far, StreamedPictures(local, TINY.cache_size, TINY.fit).read(range(48))[0])
    assert sorted(asked) == ["memory://far/download/00000.tar", "memory://far/download/00001.tar"]
    memory.rm("/far", recursive=True)
