"""The control: every AltText with another picture's VeC, in the same rows."""

from pathlib import Path
from typing import Any

import pytest

from tests.unit.shard_tables import made, put, task
from veclip_core.captioning.shuffle import NO_OTHER, ShuffleConfig, shuffle_shard
from veclip_core.mixing.choose import CONTROL
from veclip_core.mixing.manifest import CONTROL_MIX, MixConfig, MixOperation
from veclip_core.samples import DESCRIBE_SCHEMA, DOWNLOAD_SCHEMA, MIX_SCHEMA, SELECT_SCHEMA


def described(count: int) -> list[dict[str, Any]]:
    return [
        {
            "url_id": f"u{number:03d}",
            "vec": f"a drawing of thing {number}",
            "status": "ok",
            "model": "v",
            "detail": "{}",
        }
        for number in range(count)
    ]


def shuffled(folder: Path, rows: list[dict[str, Any]], seed: int = 0) -> tuple[Any, list[dict[str, Any]]]:
    inputs = {"describe": put(folder, "describe", DESCRIBE_SCHEMA, rows)}
    scratch = folder / f"scratch-{seed}-{len(rows)}"
    counts = shuffle_shard(task(scratch, inputs), ShuffleConfig(seed=seed))
    return counts, made(scratch).to_pylist()


def test_no_picture_keeps_its_own_description_and_none_is_lost(tmp_path: Path) -> None:
    rows = described(200)
    counts, found = shuffled(tmp_path, rows)
    assert (counts.rows_in, counts.rows_ok, counts.extra["same_text"]) == (200, 200, 0)
    assert [row["url_id"] for row in found] == [row["url_id"] for row in rows]
    assert all(after["vec"] != before["vec"] for before, after in zip(rows, found, strict=True))
    assert sorted(row["vec"] for row in found) == sorted(row["vec"] for row in rows)


def test_the_seed_decides_who_gets_whose(tmp_path: Path) -> None:
    rows = described(50)
    first, again, other = (shuffled(tmp_path / name, rows, seed)[1] for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert first == again != other


def test_equal_descriptions_of_two_pictures_are_counted(tmp_path: Path) -> None:
    rows = [row | {"vec": "a drawing of a cat"} for row in described(5)]
    counts, _ = shuffled(tmp_path, rows)
    assert counts.extra["same_text"] == 5, "another picture's, though nobody can tell"


def test_errors_stay_and_a_picture_alone_has_no_other(tmp_path: Path) -> None:
    failed = {"url_id": "u9", "vec": "", "status": "error", "error": "undecodable", "detail": "{}"}
    counts, found = shuffled(tmp_path, [*described(1), failed])
    assert (counts.rows_ok, counts.errors) == (0, {"undecodable": 1, NO_OTHER: 1})
    assert [(row["vec"], row["error"]) for row in found] == [("", NO_OTHER), ("", "undecodable")]


@pytest.mark.parametrize("with_control", [False, True])
def test_the_control_is_one_more_column_of_the_same_rows(tmp_path: Path, with_control: bool) -> None:
    texts = [
        # url, AltText, VeC, VeCap, status, control's VeCap
        ("u1", "Tea", "a cup", "a cup of tea", "fused", "tea with a dog"),
        ("u2", "Dog", "a dog", "a dog", "fused", ""),
        ("u3", "", "", "", "error", "never"),
        ("u4", "Gone", "a hat", "a hat, gone", "fused", "gone with a cup"),
    ]
    captions = [
        {"sample_id": f"s-{url}", "url_id": url, "alt_text": alt, "vec": vec, "vecap": vecap, "status": status,
         "error": "undecodable" if status == "error" else None}
        for url, alt, vec, vecap, status, _ in texts
    ]  # fmt: skip
    control = [
        row | {"vec": "x", "vecap": text, "status": "fused"} for row, (*_, text) in zip(captions, texts, strict=True)
    ]
    pictures = [{"url_id": url, "status": "ok", "offset": 1, "bytes": 2} for url in ("u1", "u2", "u3")]
    inputs = {
        "download": put(tmp_path, "download", DOWNLOAD_SCHEMA, pictures),
        "select": put(tmp_path, "select", SELECT_SCHEMA, captions),
    }
    config = MixConfig()
    if with_control:
        inputs[CONTROL] = put(tmp_path / "control", "select", SELECT_SCHEMA, control)
        config = CONTROL_MIX
    with MixOperation(config).open() as work:
        counts = work(task(tmp_path / "scratch", inputs))
    table = made(tmp_path / "scratch")
    assert (counts.rows_in, counts.rows_ok, counts.errors) == (4, 2, {"undecodable": 1, "no_picture": 1})
    assert table.select(MIX_SCHEMA.names).schema == MIX_SCHEMA
    assert table["sample_id"].to_pylist() == ["s-u1", "s-u2"]
    assert table["vecap"].to_pylist() == ["a cup of tea", "a dog"]
    assert table.column_names[len(MIX_SCHEMA) :] == ([CONTROL] if with_control else [])
    if with_control:
        assert table[CONTROL].to_pylist() == ["tea with a dog", ""]
        assert counts.extra[f"with_{CONTROL}"] == 1
