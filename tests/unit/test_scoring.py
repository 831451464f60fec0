"""Embedding once and scoring often: what is re-used, what is resumed, and pictures that can't be read."""

import dataclasses
import errno
import io
import os
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.clip_benchmark_sets import CLASSES, TEMPLATES, write_set
from tests.conftest import FOREIGN, PROJECT
from tests.unit.clip_models import write_huggingface_clip, write_open_clip
from tests.unit.evaluation_world import openmoji
from tests.unit.saved_checkpoints import write_checkpoint
from veclip_core import storage
from veclip_core.evaluation import embed, index
from veclip_core.evaluation.embed import embed_pictures, readable_now
from veclip_core.evaluation.evaluate import Evaluation, EvaluationConfig, compare, evaluate
from veclip_core.evaluation.opening import MISSING, Unreadable, picture_at
from veclip_core.evaluation.report import shown_examples
from veclip_core.evaluation.sets import EvaluationSet, EvaluationSetError, Labelling, PicturePlace
from veclip_core.networks import NetworkConfig, network_config, open_network
from veclip_core.pipeline import models_evaluation, scoring
from veclip_core.pipeline.models import Model
from veclip_core.pipeline.scoring import Candidate, score
from veclip_core.settings import Settings
from veclip_core.stage import StageFailed
from veclip_core.training.model import architecture
from veclip_core.training.recipe import SAMPLE
from veclip_core.training.texts import BpeTokenizer

CONFIG = EvaluationConfig(draws=20)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> NetworkConfig:
    folder = tmp_path_factory.mktemp("model")
    return network_config(str(write_open_clip(folder / "open_clip")), str(folder))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What models that are opened in this process are given to embed, from now on."""
    found: list[str] = []

    def opened(config: NetworkConfig, threads: int | None = None) -> object:
        network = open_network(config, threads)
        pictures, texts = network.encode_image, network.encode_text
        network.encode_image = lambda some: (found.extend(["picture"] * len(some)), pictures(some))[1]  # type: ignore[method-assign]
        network.encode_text = lambda some: (found.extend(some), texts(some))[1]  # type: ignore[method-assign]
        return network

    monkeypatch.setattr(scoring, "open_network", opened)
    return found


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "PICTURES_A_SHARD", 8)
    monkeypatch.setattr(index, "TEXTS_A_SHARD", 9)


def values(evaluation: Evaluation) -> dict[tuple[str, str], tuple[float, float, float]]:
    """By split and metric, with the interval's ends."""
    return {(row["split"], row["metric"]): (row["value"], row["low"], row["high"]) for row in evaluation.scores}


def settings_at(folder: Path, **told: object) -> Settings:
    return Settings(root=str(folder / "root"), threads=1).model_copy(update=told)


def test_what_is_embedded_is_not_embedded_again(tmp_path: Path, model: NetworkConfig, seen: list[str]) -> None:
    classes = write_set(tmp_path / "classes", 30, retrieval=False)
    one = Candidate("one", model)
    first = score(settings_at(tmp_path), [one], [classes], CONFIG)
    assert seen.count("picture") == 30
    assert len(seen) == 30 + len(CLASSES) * len(TEMPLATES)
    seen.clear()
    again = score(settings_at(tmp_path), [one], [classes], CONFIG)
    assert values(again[0]) == values(first[0])
    more = score(settings_at(tmp_path), [one], [classes], CONFIG.model_copy(update={"draws": 50, "bootstrap_seed": 3}))
    assert more[0].metric("zeroshot_top1_class") == first[0].metric("zeroshot_top1_class")
    assert seen == [], "neither again nor for other intervals"

    labelling = dataclasses.replace(classes.labels["class"], templates=("a plain {}", "one {0.__class__} {}"))
    other = dataclasses.replace(classes, labels={"class": labelling})
    score(settings_at(tmp_path), [one], [other], CONFIG)
    assert len(seen) == 2 * len(CLASSES)
    assert "one {0.__class__} red house" in seen, "a template is a stranger's text, not a format"


def test_a_set_that_is_moved_keeps_its_embeddings(tmp_path: Path, model: NetworkConfig, seen: list[str]) -> None:
    emoji = openmoji(tmp_path / "openmoji", 24)
    first = score(settings_at(tmp_path), [Candidate("one", model)], [emoji], CONFIG)
    seen.clear()
    (tmp_path / "openmoji").rename(tmp_path / "moved")
    moved = dataclasses.replace(
        emoji, pictures=tuple(PicturePlace(one.address.replace("openmoji", "moved")) for one in emoji.pictures)
    )
    assert values(score(settings_at(tmp_path), [Candidate("one", model)], [moved], CONFIG)[0]) == values(first[0])
    assert seen == []


def test_scores_are_those_of_the_model_in_memory(tmp_path: Path, small_shards: None) -> None:
    tokenizer = BpeTokenizer(SAMPLE.context_length)
    checkpoint = write_checkpoint(tmp_path / "run", SAMPLE, architecture(SAMPLE, tokenizer.vocab_size), tokenizer)
    networks = [
        NetworkConfig(kind="checkpoint", model="clip_sample", revision="digest", folder=checkpoint),
        network_config(str(write_huggingface_clip(tmp_path / "huggingface")), str(tmp_path)),
    ]
    five = write_set(tmp_path / "five", 30, retrieval=True)
    found = score(settings_at(tmp_path), [Candidate(one.model, one) for one in networks], [five], CONFIG)
    for evaluation, network in zip(found, networks, strict=True):
        loaded = open_network(network)
        alone = evaluate(loaded, network.model, five, seed=0, checkpoint="any", config=CONFIG)
        np.testing.assert_allclose(evaluation.pictures_ND, alone.pictures_ND, atol=1e-6)
        np.testing.assert_allclose(evaluation.captions_MD, alone.captions_MD, atol=1e-6)
        assert values(evaluation) == values(alone)


def test_two_workers_find_what_one_does(tmp_path: Path, model: NetworkConfig, small_shards: None) -> None:
    sets = [write_set(tmp_path / "five", 20, retrieval=True), write_set(tmp_path / "classes", 20, retrieval=False)]
    one, two = (
        score(settings_at(tmp_path / str(workers), caption_workers=workers), [Candidate("one", model)], sets, CONFIG)
        for workers in (None, 2)
    )
    assert [values(evaluation) for evaluation in one] == [values(evaluation) for evaluation in two]
    np.testing.assert_array_equal(one[0].captions_MD, two[0].captions_MD)


KILLED = """
import sys
from pathlib import Path
from tests.clip_benchmark_sets import write_set
from veclip_core.evaluation import index
from veclip_core.networks import network_config
from veclip_core.pipeline.scoring import Candidate, score
from veclip_core.settings import Settings

folder, model = Path(sys.argv[1]), sys.argv[2]
index.PICTURES_A_SHARD = 8
score(Settings(root=str(folder / "root"), threads=1), [Candidate("one", network_config(model, str(folder)))],
      [write_set(folder / "five", 30, retrieval=True)])
"""


@pytest.mark.parametrize("point", ["before_move", "before_marker", "after_marker"])
def test_a_killed_run_goes_on_where_it_was(
    tmp_path: Path, model: NetworkConfig, seen: list[str], small_shards: None, point: str
) -> None:
    path = f"{PROJECT / 'tests' / 'killing'}{os.pathsep}{PROJECT}"
    told = {**FOREIGN, "PYTHONPATH": path, "VECLIP_TEST_KILL": f"embed:part-00000/00001:{point}"}
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(model.folder)], env=told, capture_output=True
    )
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()[-2000:]
    (tmp_path / "again").mkdir()
    five = write_set(tmp_path / "again" / "five", 30, retrieval=True)
    resumed = score(settings_at(tmp_path), [Candidate("one", model)], [five], CONFIG)
    assert seen.count("picture") == (14 if point == "after_marker" else 22)
    undisturbed = score(settings_at(tmp_path / "other"), [Candidate("one", model)], [five], CONFIG)
    assert values(resumed[0]) == values(undisturbed[0])


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


def tiff_with_offset(kind: int, offset: bytes) -> bytes:
    """A TIFF whose pixels lie where a number of another kind says: Pillow's parser takes it as it comes."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "TIFF")
    content = bytearray(file.getvalue())
    first = int.from_bytes(content[4:8], "little")
    for at in range(first + 2, first + 2 + 12 * int.from_bytes(content[first : first + 2], "little"), 12):
        if content[at : at + 2] == struct.pack("<H", 273):
            content[at + 2 : at + 12] = struct.pack("<HII", kind, 1, len(content))
    return bytes(content) + offset


OVERFLOWING = tiff_with_offset(16, b"\xff" * 8)
FLOATING = tiff_with_offset(12, struct.pack("<d", 8))
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n0 0 9 9 rectfill\n%%EOF\n"


def long_picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (1, 5_000)).save(file, "PNG")
    return file.getvalue()


def jpeg(width: int = 20) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, 12), "red").save(file, "JPEG")
    return file.getvalue()


def spoiled(evaluation_set: EvaluationSet, folder: Path, files: dict[int, bytes]) -> EvaluationSet:
    """The set with other contents of some of its pictures."""
    pictures = list(evaluation_set.pictures)
    for row, content in files.items():
        (folder / f"spoiled-{row}").write_bytes(content)
        pictures[row] = PicturePlace(str(folder / f"spoiled-{row}"))
    content = f"{evaluation_set.content}, spoiled {sorted(files)}"
    return dataclasses.replace(evaluation_set, pictures=tuple(pictures), content=content, pictures_digest=None)


def test_unreadable_pictures_are_misses_and_counted(
    tmp_path: Path, model: NetworkConfig, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "MOST_UNREADABLE", 0.2)
    five, classes = (write_set(tmp_path / name, 40, retrieval=name == "five") for name in ("five", "classes"))
    files = {3: b"no picture", 8: bomb(), 9: long_picture(), 21: b""}
    bad = [3, 8, 9, 21]
    found = [
        score(settings_at(tmp_path), [Candidate("one", model)], [one], CONFIG)[0]
        for one in (five, classes, spoiled(five, tmp_path, files), spoiled(classes, tmp_path, files))
    ]
    whole, whole_classes, broken, broken_classes = (evaluation.ranks for evaluation in found)
    assert set(broken.i2t.rank_Q[bad]) == {200.0}
    assert set(broken.t2i.rank_Q[np.isin(five.caption_picture_M, bad)]) == {40.0}
    assert set(broken_classes.classes["class"].rank_Q[bad]) == {float(len(CLASSES))}
    good = np.delete(np.arange(40), bad)
    np.testing.assert_array_equal(broken.i2t.rank_Q[good], whole.i2t.rank_Q[good])
    np.testing.assert_array_equal(
        broken_classes.classes["class"].rank_Q[good], whole_classes.classes["class"].rank_Q[good]
    )
    others = ~np.isin(five.caption_picture_M, bad)
    assert (broken.t2i.rank_Q[others] <= whole.t2i.rank_Q[others]).all(), "what can't be read stands before nothing"
    assert compare(found[2:3])["sets"]["five"]["notes"]["unreadable"] == 4
    assert found[3].metric("zeroshot_top1_class") < 100 * 36 / 40

    seen.clear()
    score(settings_at(tmp_path), [Candidate("one", model)], [spoiled(five, tmp_path, files)], CONFIG)
    assert seen == [], "they are looked at again, and nothing is embedded"


class NoRoom(OSError):
    """As of a full disk."""

    errno = errno.ENOSPC


def test_one_picture_that_no_parser_can_take_ends_nothing(model: NetworkConfig, tmp_path: Path) -> None:
    network = open_network(model)
    places = {}
    for row, content in enumerate((OVERFLOWING, FLOATING, EPS, jpeg())):
        (tmp_path / f"{row}.jpg").write_bytes(content)
        places[row] = PicturePlace(str(tmp_path / f"{row}.jpg"))
    embedded, errors = embed_pictures(places, network)
    assert list(embedded) == [3]
    assert errors == {0: "undecodable", 1: "undecodable", 2: "undecodable"}


@pytest.mark.parametrize(
    ("raised", "ends"),
    [(ZeroDivisionError(), False), (OSError("x"), False), (MemoryError(), True), (NoRoom("disk"), True)],
)
def test_a_preprocessing_that_raises_costs_its_picture_but_not_where_the_machine_is_out_of_room(
    model: NetworkConfig, tmp_path: Path, raised: Exception, ends: bool
) -> None:
    network = open_network(model)
    preprocess = network.preprocess

    def fails(picture: Image.Image) -> object:
        if picture.width == 7:
            raise raised
        return preprocess(picture)

    network.preprocess = fails  # type: ignore[method-assign, assignment]
    for row, width in enumerate((7, 9)):
        (tmp_path / str(row)).write_bytes(jpeg(width))
    places = {row: PicturePlace(str(tmp_path / str(row))) for row in range(2)}
    if ends:
        with pytest.raises(type(raised)):
            embed_pictures(places, network)
        return
    embedded, errors = embed_pictures(places, network)
    assert (list(embedded), errors) == ([1], {0: "not_preprocessed"})
    five = write_set(tmp_path / "five", 12, retrieval=True)
    assert readable_now(five, {0: "not_preprocessed", 1: "missing"}) == [1]


@pytest.mark.parametrize("content", [OVERFLOWING, FLOATING, EPS, bomb(), b""])
def test_the_page_opens_no_more_than_the_model_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    def started(*args: object, **options: object) -> None:
        raise AssertionError("Ghostscript")

    monkeypatch.setattr(subprocess, "check_call", started)
    broken = spoiled(openmoji(tmp_path / "openmoji", 12), tmp_path, {3: content})
    with pytest.raises(Unreadable):
        broken.open_picture(3)
    assert shown_examples._seen(broken, 3).startswith("data:image/webp")


def test_results_are_kept_where_the_page_cannot_be_drawn(
    tmp_path: Path, model: NetworkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object, **options: object) -> None:
        raise RuntimeError("no page")

    monkeypatch.setattr(models_evaluation, "write_models_page", fails)
    five = write_set(tmp_path / "five", 12, retrieval=True)
    asked = models_evaluation.Asked(
        [Model(Candidate("one", model), "told")], [five], "mine", "Mine", ["veclip"], CONFIG
    )
    with pytest.raises(RuntimeError, match="no page"):
        models_evaluation.evaluate_models(settings_at(tmp_path), asked)
    assert storage.read_json(str(tmp_path / "root" / "reports" / "mine.json"))["models"] == ["one"]


def test_too_many_unreadable_pictures_are_an_error_until_they_are_mended(
    tmp_path: Path, model: NetworkConfig, seen: list[str], small_shards: None
) -> None:
    five = write_set(tmp_path / "five", 40, retrieval=True)
    broken = spoiled(five, tmp_path, {11: b"half a pic"})
    with pytest.raises(
        EvaluationSetError, match=r"five: 1 of 40 pictures can't be read.*spoiled-11 \(000011\): undecodable"
    ):
        score(settings_at(tmp_path), [Candidate("one", model)], [broken], CONFIG)
    (tmp_path / "spoiled-11").unlink()
    with pytest.raises(EvaluationSetError, match="can't be read"):
        score(settings_at(tmp_path), [Candidate("one", model)], [broken], CONFIG)
    (tmp_path / "spoiled-11").write_bytes(five.pictures[11].read())
    seen.clear()
    mended = score(settings_at(tmp_path), [Candidate("one", model)], [broken], CONFIG)[0]
    assert seen.count("picture") == 8, "the shard that held it"
    assert mended.unreadable == 0
    whole = score(settings_at(tmp_path), [Candidate("one", model)], [five], CONFIG)[0]
    np.testing.assert_array_equal(mended.pictures_ND, whole.pictures_ND)


def test_a_member_that_a_cut_tar_lacks_is_unreadable(tmp_path: Path, model: NetworkConfig) -> None:
    five = write_set(tmp_path / "five", 20, retrieval=True, shards=1)
    path = Path(five.pictures[0].address)
    path.write_bytes(path.read_bytes()[: five.pictures[19].offset + 10])
    with pytest.raises(EvaluationSetError, match=r"1 of 20 .*\(000019\): cut_short"):
        score(settings_at(tmp_path), [Candidate("one", model)], [five], CONFIG)


@pytest.mark.parametrize("name", ["../../../escaped", "/etc/passwd", "..", "a b\n<i>", "x" * 300, ".hidden"])
def test_a_sets_name_is_in_no_path(tmp_path: Path, model: NetworkConfig, seen: list[str], name: str) -> None:
    emoji = openmoji(tmp_path / "openmoji", 12)
    first = score(settings_at(tmp_path), [Candidate("one", model)], [emoji], CONFIG)[0]
    files = sorted(tmp_path.rglob("*"))
    seen.clear()
    renamed = dataclasses.replace(emoji, name=name)
    again = score(settings_at(tmp_path), [Candidate("one", model)], [renamed], CONFIG)[0]
    assert (seen, sorted(tmp_path.rglob("*"))) == ([], files)
    assert values(again) == values(first)


def test_only_what_changed_is_embedded(tmp_path: Path, model: NetworkConfig, seen: list[str]) -> None:
    emoji = openmoji(tmp_path / "openmoji", 12)
    one = [Candidate("one", model)]
    score(settings_at(tmp_path), one, [emoji], CONFIG)
    seen.clear()
    changed = dataclasses.replace(emoji, captions=tuple(f"{text}!" for text in emoji.captions), content="captions")
    score(settings_at(tmp_path), one, [changed], CONFIG)
    assert seen == list(changed.captions)
    seen.clear()
    group = dataclasses.replace(emoji.labels["group"], templates=("{}?",))
    changed = dataclasses.replace(changed, labels={**emoji.labels, "group": group}, content="templates")
    score(settings_at(tmp_path), one, [changed], CONFIG)
    assert seen == [f"{name}?" for name in group.classes]
    seen.clear()
    other = dataclasses.replace(
        changed, pictures=changed.pictures[::-1], pictures_digest="reversed", content="pictures"
    )
    score(settings_at(tmp_path), one, [other], CONFIG)
    assert seen == ["picture"] * 12


def test_pictures_that_only_this_process_reaches_are_told(
    tmp_path: Path, model: NetworkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a cluster whose nodes share no disk."""
    emoji = openmoji(tmp_path / "openmoji", 12)

    def absent(place: PicturePlace) -> Image.Image:
        raise Unreadable(MISSING)

    def reached(evaluation_set: EvaluationSet, unreadable: dict[int, str]) -> list[int]:
        with monkeypatch.context() as here:
            here.setattr(embed, "picture_at", picture_at)
            return readable_now(evaluation_set, unreadable)

    monkeypatch.setattr(embed, "picture_at", absent)
    monkeypatch.setattr(scoring, "readable_now", reached)
    with pytest.raises(EvaluationSetError, match=r"12 of 12 pictures.*not for the workers.*the same path"):
        score(settings_at(tmp_path), [Candidate("one", model)], [emoji], CONFIG)


def test_captions_of_any_order_number_and_letters(tmp_path: Path, model: NetworkConfig, small_shards: None) -> None:
    emoji = openmoji(tmp_path / "openmoji", 20)
    owner_M = np.random.default_rng(0).permutation(np.r_[np.arange(20), [3, 3, 19, 0]])
    texts = (*(f"caption {m}" for m in range(23)), "half a \ud83d character\0")
    odd = dataclasses.replace(emoji, captions=texts, caption_picture_M=owner_M, content="odd")
    found = score(settings_at(tmp_path), [Candidate("one", model)], [odd], CONFIG)[0]
    expected = open_network(model).encode_text([*texts[:23], "half a ? character\0"])
    np.testing.assert_allclose(found.captions_MD, expected, atol=1e-6)
    assert compare([found])["sets"]["openmoji"]["captions_per_picture"] == [1, 3]


def test_models_that_cannot_be_scored_say_so(tmp_path: Path, model: NetworkConfig) -> None:
    five = write_set(tmp_path / "five", 12, retrieval=True)
    (tmp_path / "empty").mkdir()
    nowhere = NetworkConfig(kind="huggingface", model="nowhere", revision="0", folder=str(tmp_path / "empty"))
    with pytest.raises(StageFailed, match="empty"):
        score(settings_at(tmp_path), [Candidate("none", nowhere)], [five], CONFIG)
    from safetensors.torch import load_file, save_file

    spoilt = write_open_clip(tmp_path / "spoilt")
    weights = load_file(spoilt / "open_clip_model.safetensors")
    weights["text_projection"][:] = float("nan")
    save_file(weights, spoilt / "open_clip_model.safetensors")
    network = network_config(str(spoilt), str(tmp_path))
    with pytest.raises(StageFailed, match="not as L2-normalised rows"):
        score(settings_at(tmp_path), [Candidate("spoilt", network)], [five], CONFIG)


def test_a_set_of_choices_and_one_of_classes_are_compared_by_what_they_have(
    tmp_path: Path, model: NetworkConfig
) -> None:
    five = write_set(tmp_path / "choice", 20, retrieval=True, captions=2)
    choice = dataclasses.replace(five, right_M=np.arange(40) % 2 == 0, content="choice")
    # A class without a picture is a choice, and none of those whose mean counts.
    target_N = np.arange(20) % 3
    classes = dataclasses.replace(
        write_set(tmp_path / "classes", 20, retrieval=False),
        labels={"kind": Labelling(("a fox", "an owl", "a bee", "nothing"), target_N)},
        content="kinds",
    )
    candidates = [Candidate("one", model), Candidate("two", model.model_copy(update={"revision": "other"}))]
    found = score(settings_at(tmp_path), candidates, [choice, classes], CONFIG)
    assert [(one.evaluation_set.name, one.model) for one in found] == [
        (name, model_name) for name in ("choice", "classes") for model_name in ("one", "two")
    ]
    results = compare(found, baseline=None)
    assert results["headline"]["metrics"] == ["selection_accuracy", "zeroshot_top1_kind"]
    assert (results["differences"], results["baseline"]) == ([], None)
    assert {row["metric"] for row in results["scores"]} == {
        "selection_accuracy", "zeroshot_top1_kind", "zeroshot_per_class_kind",
    }  # fmt: skip
    pictures_ND, captions_MD = found[0].pictures_ND, found[0].captions_MD
    own_N2 = np.einsum("nd,nkd->nk", pictures_ND, captions_MD.reshape(20, 2, -1))
    assert found[0].metric("selection_accuracy") == pytest.approx(100 * (own_N2[:, 0] > own_N2[:, 1]).mean())
    hit_N = found[2].ranks.classes["kind"].within(1)
    by_class = [hit_N[target_N == label].mean() for label in range(3)]
    assert found[2].metric("zeroshot_per_class_kind") == pytest.approx(100 * np.mean(by_class))
    told = compare(found, baseline="one")
    assert told["headline"]["contrasts"] == [["two", "one"]]
    assert {row["value"] for row in told["differences"]} == {0.0}
    assert [row["chance"] for row in told["summary"] if row["metric"] == "selection_accuracy"] == [50.0, 50.0]
