"""The filtering network's scores, and what manifests keep by them."""

import io
import random
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.unit.shard_tables import KEY, made, put, task
from veclip_core.download.seal import add_member
from veclip_core.mixing.manifest import SCORE, MixConfig, MixOperation, ScoreColumn
from veclip_core.mixing.score import Scores, score_shard
from veclip_core.samples import (
    DOWNLOAD_SCHEMA,
    LIST_URLS_SCHEMA,
    SCORE_SCHEMA,
    SCREEN_SCHEMA,
    SELECT_SCHEMA,
    ShardKey,
)
from veclip_core.shards import ShardSet

COLOURS = {"red": (1, 0, 0), "lime": (0, 1, 0), "blue": (0, 0, 1)}


class ColourNetwork:
    """A network that can be right: a picture's colour against the colours that a text names."""

    def __init__(self) -> None:
        self.pictures_seen = 0

    def encode_image(self, pictures: list[Image.Image]) -> np.ndarray:
        self.pictures_seen += len(pictures)
        return self._of_norm_1([np.asarray(picture.resize((1, 1)), np.float64)[0, 0] / 255 for picture in pictures])

    def encode_text(self, texts: list[str]) -> np.ndarray:
        return self._of_norm_1(
            [sum(np.array(COLOURS[word]) for word in text.split() if word in COLOURS) for text in texts]
        )

    @staticmethod
    def _of_norm_1(rows: list[Any]) -> np.ndarray:
        found = np.array([np.broadcast_to(row, (3,)) for row in rows], np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)  # a text without a colour: not finite


def listed(*samples: tuple[str, str, str]) -> list[dict[str, Any]]:
    return [{"url_id": of_url, "sample_id": sample, "url": f"http://{of_url}", "alt_text": alt, "status": "ok"}
            for of_url, sample, alt in samples]  # fmt: skip


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, ShardSet]:
    rows = listed(("a", "a1", "a red ball"), ("a", "a2", "the blue ball"), ("b", "b1", "lime"), ("c", "c1", "red"),
                  ("d", "d1", "lime"), ("b", "b2", " "), ("b", "b3", "nothing of the kind"))  # fmt: skip
    rows.append({"url_id": "e", "sample_id": "e1", "alt_text": "red", "status": "error", "error": "bad_url"})
    sets = {"list_urls": put(tmp_path, "list_urls", LIST_URLS_SCHEMA, rows)}
    downloads = []
    folder = Path(ShardSet(str(tmp_path), "test", "download", "0" * 16).file(KEY, "tar"))
    folder.parent.mkdir(parents=True)
    with tarfile.open(folder, "w", format=tarfile.USTAR_FORMAT) as tar:
        for of_url, colour in (("a", "red"), ("b", "lime"), ("d", None)):
            buffer = io.BytesIO(b"no picture at all" if colour is None else b"")
            if colour:
                Image.new("RGB", (20, 20), colour).save(buffer, "PNG")
            offset = add_member(tar, f"{of_url}.jpg", buffer.getvalue())
            downloads.append({"url_id": of_url, "status": "ok", "offset": offset, "bytes": len(buffer.getvalue())})
    downloads.append({"url_id": "c", "status": "error", "error": "http_404"})
    return {**sets, "download": put(tmp_path, "download", DOWNLOAD_SCHEMA, downloads)}


def test_every_sample_has_a_score_or_a_reason(tmp_path: Path, inputs: dict[str, ShardSet]) -> None:
    network = ColourNetwork()
    with np.errstate(invalid="ignore"):
        counts = score_shard(task(tmp_path / "out", inputs), network)
    rows = {row["sample_id"]: row for row in made(tmp_path / "out").to_pylist()}
    assert {sample: row["error"] for sample, row in rows.items() if row["error"]} == {
        "b2": "no_text", "b3": "not_finite", "c1": "no_picture", "d1": "undecodable",
    }  # fmt: skip
    assert {sample: row["score"] for sample, row in rows.items() if row["error"] is None} == pytest.approx(
        {"a1": 1.0, "a2": 0.0, "b1": 1.0}, abs=1e-3
    )
    assert (counts.rows_in, counts.rows_ok) == (7, 3)
    assert counts.extra["pictures_scored"] == 2
    assert network.pictures_seen == 2, "a picture with two AltTexts is embedded once, one without a text never"


def test_a_blocked_picture_is_neither_scored_nor_kept(tmp_path: Path, inputs: dict[str, ShardSet]) -> None:
    verdicts = [{"url_id": "a", "status": "error", "error": "nsfw"}, {"url_id": "b", "status": "ok"}]
    screened = {**inputs, "screen": put(tmp_path, "screen", SCREEN_SCHEMA, verdicts)}
    network = ColourNetwork()
    with np.errstate(invalid="ignore"):
        score_shard(task(tmp_path / "out", screened), network)
    rows = {row["sample_id"]: row["error"] for row in made(tmp_path / "out").to_pylist()}
    assert (rows["a1"], rows["a2"], rows["d1"]) == ("nsfw", "nsfw", "not_screened")
    assert network.pictures_seen == 1
    with np.errstate(invalid="ignore"):
        score_shard(task(tmp_path / "unscreened", inputs), network)  # scored before screening was switched on
    table = pa.Table.from_pylist(made(tmp_path / "unscreened").to_pylist(), SCORE_SCHEMA)
    scores = put(tmp_path, "score", SCORE_SCHEMA, table.to_pylist())
    config = MixConfig(captioned=False, scores=ScoreColumn(least=-1.0))
    counts, kept = mixed(tmp_path / "mixed", {**screened, "score": scores}, config)
    assert [row["sample_id"] for row in kept] == ["b1"]
    assert counts.errors["nsfw"] == 2


def scores_in(root: Path, shards: dict[ShardKey, list[float | None]]) -> tuple[ShardSet, list[ShardKey]]:
    found = ShardSet(str(root), "test", "score", "0" * 16)
    for key, values in shards.items():
        path = Path(found.file(key, "parquet"))
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"sample_id": str(n), "score": value} for n, value in enumerate(values)]
        pq.write_table(pa.Table.from_pylist(rows, SCORE_SCHEMA), path)
    return found, list(shards)


def test_the_top_share_is_exact_whatever_the_order(tmp_path: Path) -> None:
    values = [round(random.Random(n).uniform(-0.2, 0.6), 4) for n in range(1_000)]
    shards, keys = scores_in(tmp_path, {ShardKey(0, n): [*values[n * 100 : n * 100 + 100], None] for n in range(10)})
    scores = Scores.of(shards, reversed(keys))
    assert scores.total == 1_000
    for share in (0.001, 0.15, 0.3, 0.9, 1.0):
        least = scores.lowest_of_top(share)
        assert least == sorted(values, reverse=True)[max(1, round(share * 1_000)) - 1]
        assert scores.at_least(least) == sum(value >= least for value in values)
    assert sum(count for _, count in scores.histogram()) == 1_000


@pytest.mark.parametrize("percent", [7, 14, 28, 55, 56])
def test_a_share_is_no_sample_more_than_it_says(tmp_path: Path, percent: int) -> None:
    scores = Scores.of(*scores_in(tmp_path, {ShardKey(0, 0): [n / 100 for n in range(100)]}))
    assert scores.at_least(scores.lowest_of_top(percent / 100)) == percent


def test_equal_scores_are_kept_together(tmp_path: Path) -> None:
    scores = Scores.of(*scores_in(tmp_path, {ShardKey(0, 0): [0.5] * 6 + [0.1] * 4}))
    assert scores.lowest_of_top(0.3) == 0.5
    assert scores.at_least(0.5) == 6
    assert scores.lowest_of_top(0.61) == 0.1


def test_a_share_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no sample"):
        Scores.of(*scores_in(tmp_path, {ShardKey(0, 0): [None]})).lowest_of_top(0.5)


@pytest.fixture
def mixed_from(tmp_path: Path) -> dict[str, ShardSet]:
    """Six samples with pictures: scores of 0.1 to 0.4, one without, one that the scores do not know."""
    ids = [f"s{n}" for n in range(6)]
    scores: list[float | None] = [0.1, 0.2, 0.3, 0.4, None]
    downloads = [{"url_id": f"u{n}", "status": "ok", "offset": n, "bytes": 9} for n in range(6)]
    captions = [{"sample_id": one, "url_id": f"u{n}", "alt_text": f"tea {n}", "vec": "a cup", "vecap": "a cup of tea",
                 "status": "fused"} for n, one in enumerate(ids)]  # fmt: skip
    scored = [{"sample_id": one, "score": score} for one, score in zip(ids, scores, strict=False)]
    return {
        "download": put(tmp_path, "download", DOWNLOAD_SCHEMA, downloads),
        "select": put(tmp_path, "select", SELECT_SCHEMA, captions),
        "list_urls": put(
            tmp_path, "list_urls", LIST_URLS_SCHEMA, listed(*((f"u{n}", one, f"tea {n}") for n, one in enumerate(ids)))
        ),
        "score": put(tmp_path, "score", SCORE_SCHEMA, scored),
    }


def mixed(folder: Path, inputs: dict[str, ShardSet], config: MixConfig) -> tuple[Any, list[dict[str, Any]]]:
    with MixOperation(config).open() as work:
        counts = work(task(folder, inputs))
    return counts, made(folder).to_pylist()


def test_scores_are_a_column_of_the_manifest(tmp_path: Path, mixed_from: dict[str, ShardSet]) -> None:
    counts, rows = mixed(tmp_path / "out", mixed_from, MixConfig(scores=ScoreColumn()))
    assert [row[SCORE] for row in rows] == pytest.approx([0.1, 0.2, 0.3, 0.4, None, None])
    assert counts.rows_ok == 6


@pytest.mark.parametrize("captioned", [True, False])
def test_what_fits_too_little_is_left_out_and_counted(
    tmp_path: Path, mixed_from: dict[str, ShardSet], captioned: bool
) -> None:
    config = MixConfig(captioned=captioned, scores=ScoreColumn(least=0.3))
    counts, rows = mixed(tmp_path / "out", mixed_from, config)
    assert [(row["sample_id"], row["alt"], row["vecap"]) for row in rows] == [
        (f"s{n}", f"tea {n}", "a cup of tea" if captioned else "") for n in (2, 3)
    ]
    assert counts.errors == {"low_score": 2, "no_score": 2}
    assert {row["vecap_status"] for row in rows} == {"fused" if captioned else "alt"}
