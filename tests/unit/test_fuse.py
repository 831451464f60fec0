"""Rounds of fusion, and the choice of the text that stands, on real tables."""

import json
from collections.abc import Sequence
from pathlib import Path

from tests.unit.shard_tables import made, put, task
from veclip_core.captioning.engines.base import Generation, Request, Sampling
from veclip_core.captioning.fuse import FuseConfig, fuse_rows, fuse_shard
from veclip_core.captioning.select import SelectConfig, choose_caption, select_shard
from veclip_core.samples import (
    CHECK_SCHEMA,
    DESCRIBE_SCHEMA,
    DOWNLOAD_SCHEMA,
    FUSE_SCHEMA,
    LIST_URLS_SCHEMA,
    SELECT_SCHEMA,
)

VEC = "a drawing of a ring buoy or a boat, transport-water, red and white"
GOOD = "A drawing of {alt} with a ring buoy in red and white."


class ScriptedEngine:
    """Answers the first prompt badly for the AltTexts it is told to, everything else well; notes what it was asked."""

    model_id = "scripted"

    def __init__(self, *fails: str):
        self.fails = fails
        self.asked: list[list[str]] = []

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Generation]]:
        alts = [request.messages[-1].content.split("\n")[0].removeprefix("Title: ") for request in requests]
        self.asked.append(alts)
        bad = self.fails if len(self.asked) == 1 else self.fails[:1]
        return [[Generation("A drawing of a cow." if a in bad else GOOD.format(alt=a), "stop", 9, 7)] for a in alts]

    def close(self) -> None:
        return


def test_second_prompt_asks_only_what_was_rejected_and_equal_pairs_once():
    engine = ScriptedEngine("Lost", "Found")
    rows = fuse_rows(
        [("Tea", VEC), ("Lost", VEC), ("", VEC), ("Tea", VEC), ("Found", VEC), ("Tea", " ")], engine, FuseConfig()
    )
    assert engine.asked == [["Found", "Lost", "Tea"], ["Found", "Lost"]]
    assert [[candidate.rejected for candidate in row] for row in rows] == [
        [None], ["unfaithful", "unfaithful"], [], [None], ["unfaithful", None], [],
    ]  # fmt: skip
    assert [candidate.prompt_id for candidate in rows[4]] == ["fuse-sentence-v2", "fuse-title-first-v3"]


def test_choice_falls_back_in_the_stated_order():
    def candidate(text: str, number: int = 0) -> dict[str, object]:
        return {
            "text": text,
            "finish_reason": "stop",
            "prompt_id": "fuse-sentence-v2",
            "model": "m",
            "candidate": number,
        }

    limits = SelectConfig()
    good, better = GOOD.format(alt="Tea"), "A drawing of Tea, a ring buoy for water transport, in red and white."
    fused = choose_caption(
        "Tea", VEC, [candidate("A drawing of a cow."), candidate(good, 1), candidate(better, 2)], limits
    )
    assert (fused.vecap, fused.status, fused.reason) == (better, "fused", None)
    rejected = choose_caption("Tea", VEC, [candidate("A drawing of a cow.")], limits)
    assert (rejected.vecap, rejected.status, rejected.reason) == (f"Tea, {VEC}", "concatenated", "unfaithful")
    assert choose_caption("Tea", VEC, [], limits).reason == "no_candidate"
    assert (choose_caption(" ", VEC, [], limits).vecap, choose_caption(" ", VEC, [], limits).status) == (VEC, "vec")
    assert (choose_caption("Tea", "", [], limits).vecap, choose_caption("Tea", "", [], limits).status) == ("Tea", "alt")
    assert choose_caption("", " ", [], limits).status == "error"
    # Of a style that has a length, a fallback that is too long gives way, and of none the shortest stands.
    assert choose_caption("Tea", VEC, [], SelectConfig(fallback_words=len(VEC.split()))).status == "vec"
    assert choose_caption("Tea", VEC, [], SelectConfig(fallback_words=1)).status == "alt"
    assert choose_caption("Tea time", VEC, [], SelectConfig(fallback_words=1)).vecap == "Tea time"


def test_shards_of_both_stages_add_up(tmp_path: Path):
    samples = [
        # url, AltText, status, picture, VeC
        ("u1", "Tea", "ok", "ok", VEC),
        ("u1", "Lost", "ok", "ok", VEC),
        ("u2", "", "ok", "ok", VEC),
        ("u3", "Cup", "ok", "ok", ""),
        ("u4", "Dead", "ok", "error", None),
        ("u5", "Bad list row", "error", None, None),
        ("u6", "", "ok", "ok", ""),
        ("u1", "refused alt", "ok", "ok", VEC),
        ("u1", "refused vec", "ok", "ok", VEC),
        ("u1", "refused both", "ok", "ok", VEC),
    ]
    listed = [
        {"url_id": url, "sample_id": f"s{number}", "url": url, "alt_text": alt, "source": "t", "status": status}
        for number, (url, alt, status, _, _) in enumerate(samples)
    ]
    pictures = {url: picture for url, _, _, picture, _ in samples if picture}
    inputs = {
        "list_urls": put(tmp_path, "list_urls", LIST_URLS_SCHEMA, listed),
        "download": put(
            tmp_path, "download", DOWNLOAD_SCHEMA, [{"url_id": u, "status": s} for u, s in pictures.items()]
        ),
        "describe": put(
            tmp_path,
            "describe",
            DESCRIBE_SCHEMA,
            [
                {"url_id": url, "vec": vec, "status": "ok", "model": "v", "prompt_id": "p"}
                for url, vec in {url: vec for url, *_, vec in samples if vec is not None}.items()
            ],
        ),
    }
    refused = {
        "s7": {"alt_refused": "takeover"},
        "s8": {"vec_refused": "word_list"},
        "s9": {"alt_refused": "a", "vec_refused": "v"},
    }
    inputs["check"] = put(
        tmp_path,
        "check",
        CHECK_SCHEMA,
        [
            {"sample_id": row["sample_id"], "url_id": row["url_id"], **refused.get(row["sample_id"], {})}
            for row in listed
        ],
    )
    engine = ScriptedEngine("Lost")
    counts = fuse_shard(task(tmp_path / "a", inputs), engine, FuseConfig())
    assert not [alt for asked in engine.asked for alt in asked if "refused" in alt], "what is refused reaches no prompt"
    assert (counts.rows_in, counts.rows_ok, counts.fallbacks) == (8, 2, 1)
    assert counts.errors == {"no_alt_text": 2, "no_vec": 1, "alt_refused": 2, "vec_refused": 1}
    assert counts.extra["candidates"] == 3
    fused = made(tmp_path / "a")
    assert fused.schema == FUSE_SCHEMA

    inputs["fuse"] = put(tmp_path, "fuse", FUSE_SCHEMA, fused.to_pylist())
    counts = select_shard(task(tmp_path / "b", inputs), SelectConfig())
    assert (counts.rows_in, counts.rows_ok, counts.fallbacks) == (8, 6, 5)
    assert counts.errors == {"no_text": 1, "texts_refused": 1}
    table = made(tmp_path / "b")
    assert table.schema == SELECT_SCHEMA
    rows = {row["sample_id"]: row for row in table.to_pylist()}
    assert {name: row["status"] for name, row in rows.items()} == {
        "s0": "fused", "s1": "concatenated", "s2": "vec", "s3": "alt", "s6": "error", "s7": "vec", "s8": "alt", "s9": "error",
    }  # fmt: skip
    assert [(rows[name]["alt_text"], rows[name]["refused"]) for name in ("s7", "s9")] == [
        ("", "alt: takeover"), ("", "alt: a; vec: v"),
    ]  # fmt: skip
    assert (rows["s7"]["reason"], rows["s8"]["reason"], rows["s8"]["vec"]) == ("alt_refused", "vec_refused", "")
    assert rows["s0"]["prompt_id"] == "fuse-sentence-v2"
    assert json.loads(rows["s0"]["scores"])["alt"] == 1.0
    assert (rows["s1"]["reason"], rows["s1"]["prompt_id"], rows["s1"]["vec_model"]) == ("unfaithful", None, "v")
    assert (rows["s6"]["error"], rows["s6"]["reason"]) == ("no_text", None)
