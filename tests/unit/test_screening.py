"""What screening blocks is neither captioned nor trained on, and everything that is blocked is counted."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from tests.unit.shard_tables import KEY, made, put, task
from tests.unit.test_rewrite import Seeing
from tests.unit.test_screening_checks import downloaded, jpeg, scene
from veclip_core.captioning.check import CheckOperation
from veclip_core.captioning.describe import VlmDescription, describe_shard
from veclip_core.captioning.engines.base import EngineConfig, Generation, Request, Sampling
from veclip_core.captioning.fuse import FuseConfig, fuse_shard
from veclip_core.captioning.rewrite import RewriteConfig, Undescribed, rewrite_shard
from veclip_core.captioning.select import SelectConfig, select_shard
from veclip_core.mixing.manifest import MixConfig, MixOperation
from veclip_core.mixing.removals import Removals
from veclip_core.samples import DUPLICATES_SCHEMA, LIST_URLS_SCHEMA, SCREEN_SCHEMA, SELECT_SCHEMA
from veclip_core.screening.evaluation_copies import EvaluationCheck
from veclip_core.screening.faces import FacesCheck
from veclip_core.screening.hashes import HashCheck
from veclip_core.screening.known import KnownPictures
from veclip_core.screening.look import look_schema
from veclip_core.screening.nsfw import NsfwCheck
from veclip_core.screening.screen import ScreenConfig, Thresholds, screen_shard
from veclip_core.shards import ShardSet

ALL = ("duplicates", "evaluation", "nsfw", "faces", "known")
COLUMNS = pa.schema([*look_schema([HashCheck()]), *FacesCheck.columns, *EvaluationCheck.columns, *NsfwCheck.columns])


def looked_at(root: Path, rows: list[dict[str, Any]]) -> ShardSet:
    usual = {"status": "ok", "pdq": "00" * 32, "pdq_quality": 90, "nsfw": 0.1, "face_boxes": "[]"}
    return put(root, "look", COLUMNS, [usual | row for row in rows])


def test_each_picture_has_one_verdict_and_the_sums_add_up(tmp_path: Path) -> None:
    file = hashlib.sha256(jpeg(scene(1))).hexdigest()
    inputs = {
        "download": downloaded(tmp_path, {name: jpeg(scene(n)) for n, name in enumerate("abcdefghi")}),
        "look": looked_at(
            tmp_path,
            [
                {"url_id": "a"},
                {"url_id": "b"},  # a known file
                {"url_id": "c", "nsfw": 0.5, "face_boxes": "[[0, 0, 1, 1, 0.9], [0, 0, 1, 1, 0.8]]"},
                {"url_id": "d", "evaluation_copy": "coco/7.jpg", "nsfw": 0.9},
                {"url_id": "e"},  # a near-duplicate
                {"url_id": "f", "pdq": "ff" * 32, "pdq_quality": 20},  # known, if its hash could be trusted
                {"url_id": "g", "status": "error", "error": "undecodable", "pdq": None, "pdq_quality": None, "nsfw": None},
                {"url_id": "h", "pdq": "ff" * 31 + "f0"},  # a known picture
                {"url_id": "i", "nsfw": float("nan")},  # a broken model's answer
            ],
        ),
        "duplicates": put(tmp_path, "duplicates", DUPLICATES_SCHEMA, [{"url_id": of, "copy_of": "a"} for of in "ce"]),
    }  # fmt: skip
    known = KnownPictures(tuple(sorted([file, "ff" * 32])))
    counts = screen_shard(task(tmp_path / "out", inputs), ScreenConfig(checks=ALL, known=known.digest), known)
    assert {row["url_id"]: (row["error"], row["copy_of"]) for row in made(tmp_path / "out").to_pylist()} == {
        "a": (None, None),
        "b": ("known_picture", file),
        "c": ("nsfw", None),
        "d": ("copy_of_evaluation_picture", "coco/7.jpg"),
        "e": ("near_duplicate", "a"),
        "f": (None, None),
        "g": ("undecodable", None),
        "h": ("known_picture", "ff" * 32),
        "i": ("nsfw", None),
    }
    assert (counts.rows_in, counts.rows_ok, counts.errors["known_picture"]) == (9, 2, 2)
    assert counts.extra == {"low_hash_quality": 1, "faces": 2, "pictures_with_faces": 1}
    lenient = ScreenConfig(checks=("nsfw",), thresholds=Thresholds(nsfw=0.8))
    screen_shard(task(tmp_path / "lenient", inputs), lenient)
    assert [row["url_id"] for row in made(tmp_path / "lenient").to_pylist() if row["error"] == "nsfw"] == ["d", "i"]


class Showing:
    """A describer that keeps what it was shown."""

    model_id, prompt_id, max_side_px = "showing", "p", None

    def __init__(self) -> None:
        self.shown: list[Any] = []

    def describe(self, images: Iterable[Image.Image]) -> list[VlmDescription]:
        colours = [image.resize((1, 1)).getpixel((0, 0)) for image in images]
        self.shown += colours
        return [VlmDescription(f"a square of {colour}", {}) for colour in colours]


class Writing:
    """A language model that keeps what it was asked."""

    model_id = "writing"

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> list[list[Generation]]:
        asked = list(requests)
        self.requests += asked
        return [[Generation("A cup.", "stop", 1, 1)] for _ in asked]

    def close(self) -> None:
        return


class Asked(Seeing):
    """A one-pass model that keeps how many pictures it was shown."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Any:
        self.requests = list(requests)
        return super().generate(self.requests, sampling)


def publish(root: Path, stage: str) -> ShardSet:
    return put(root, stage, (table := made(root / f"{stage}-out")).schema, table.to_pylist())


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, ShardSet]:
    """Three pictures with an AltText each; screening refuses the green one, and has never seen the fourth."""
    colours = {"u1": "red", "u2": "lime", "u3": "blue", "u4": "white"}
    pictures = {url: jpeg(Image.new("RGB", (20, 20), colour)) for url, colour in colours.items()}
    listed = [{"url_id": url, "sample_id": f"s{url}", "alt_text": f"Cup {url}", "status": "ok"} for url in pictures]
    verdicts = [
        {"url_id": "u1", "status": "ok"},
        {"url_id": "u2", "status": "error", "error": "nsfw"},
        {"url_id": "u3", "status": "ok"},
    ]
    return {
        "download": downloaded(tmp_path, pictures),
        "list_urls": put(tmp_path, "list_urls", LIST_URLS_SCHEMA, listed),
        "screen": put(tmp_path, "screen", SCREEN_SCHEMA, verdicts),
    }


def test_a_blocked_picture_is_in_no_request_and_in_no_manifest(tmp_path: Path, inputs: dict[str, ShardSet]) -> None:
    describer = Showing()
    counts = describe_shard(task(tmp_path / "describe-out", inputs), describer)
    assert dict(counts.errors) == {"nsfw": 1, "not_screened": 1}
    assert (counts.rows_in, counts.rows_ok) == (4, 2)
    assert [(red > 200, blue > 200) for red, _, blue in describer.shown] == [(True, False), (False, True)]
    inputs["describe"] = publish(tmp_path, "describe")
    with CheckOperation().open() as check:
        assert check(task(tmp_path / "check-out", inputs)).rows_in == 2
    inputs["check"] = publish(tmp_path, "check")
    engine = Writing()
    assert fuse_shard(task(tmp_path / "fuse-out", inputs), engine, FuseConfig()).rows_in == 2
    asked = " ".join(message.content for one in engine.requests for message in one.messages)
    assert {name for name in ("Cup u1", "Cup u2", "Cup u3", "Cup u4") if name in asked} == {"Cup u1", "Cup u3"}
    inputs["fuse"] = publish(tmp_path, "fuse")
    assert set(inputs["fuse"].read_table(KEY)["url_id"].to_pylist()) == {"u1", "u3"}
    counts = select_shard(task(tmp_path / "select-out", inputs), SelectConfig())
    assert (counts.rows_in, counts.rows_ok, dict(counts.errors)) == (4, 2, {"nsfw": 1, "not_screened": 1})


def test_in_one_pass_too_and_its_rows_say_why(tmp_path: Path, inputs: dict[str, ShardSet]) -> None:
    with Undescribed().open() as undescribed:
        assert dict(undescribed(task(tmp_path / "describe-out", inputs)).errors) == {"nsfw": 1, "not_screened": 1}
    inputs["describe"] = publish(tmp_path, "describe")
    with CheckOperation().open() as check:
        check(task(tmp_path / "check-out", inputs))
    inputs["check"] = publish(tmp_path, "check")
    engine = Asked()
    rewrite_shard(task(tmp_path / "fuse-out", inputs), engine, RewriteConfig(engine=EngineConfig(model="seeing")))
    assert len(engine.requests) == 2
    inputs["fuse"] = publish(tmp_path, "fuse")
    counts = select_shard(task(tmp_path / "select-out", inputs), SelectConfig())
    assert dict(counts.errors) == {"nsfw": 1, "not_screened": 1}
    inputs["select"] = publish(tmp_path, "select")
    with MixOperation(MixConfig()).open() as mix:
        counts = mix(task(tmp_path / "mix-out", {name: inputs[name] for name in ("download", "select")}))
    assert (counts.rows_in, counts.rows_ok, counts.errors) == (4, 2, {"nsfw": 1, "not_screened": 1})


def test_in_one_pass_a_picture_that_was_checked_before_it_was_screened_is_not_shown(
    tmp_path: Path, inputs: dict[str, ShardSet]
) -> None:
    with Undescribed().open() as undescribed:
        undescribed(task(tmp_path / "describe-out", {"download": inputs["download"]}))
    inputs["describe"] = publish(tmp_path, "describe")
    with CheckOperation().open() as check:
        assert check(task(tmp_path / "check-out", inputs)).rows_in == 4
    inputs["check"] = publish(tmp_path, "check")
    engine = Asked()
    rewrite_shard(task(tmp_path / "fuse-out", inputs), engine, RewriteConfig(engine=EngineConfig(model="seeing")))
    assert len(engine.requests) == 2


def test_a_manifest_leaves_out_what_was_captioned_before_it_was_screened(
    tmp_path: Path, inputs: dict[str, ShardSet]
) -> None:
    captioned = [
        {"sample_id": f"s{url}", "url_id": url, "alt_text": "a cup", "vec": "", "vecap": "a cup", "status": "alt"}
        for url in ("u1", "u2", "u3", "u4")
    ]
    inputs["select"] = put(tmp_path, "select", SELECT_SCHEMA, captioned)
    takes = {name: inputs[name] for name in ("download", "select", "screen")}
    removed = Removals(ids=frozenset({"u1"}))
    with MixOperation(MixConfig(removed=removed.digest), removed).open() as mix:
        counts = mix(task(tmp_path / "out", takes))
    assert (counts.rows_in, counts.rows_ok, counts.errors) == (4, 1, {"removed": 1, "nsfw": 1, "not_screened": 1})
    assert made(tmp_path / "out")["url_id"].to_pylist() == ["u3"]
    del takes["screen"]
    with MixOperation(MixConfig()).open() as mix:
        assert mix(task(tmp_path / "unscreened", takes)).rows_ok == 4
