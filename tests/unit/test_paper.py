"""Measured scores beside the published ones: what is held against what, and when."""

from typing import Any

import pytest

from veclip_core import released_checkpoints
from veclip_core.evaluation import paper
from veclip_core.evaluation.paper import PAPER_SETS, RELEASED, ROWS, PaperVerdict, Release, paper_set, verdicts


def results(values: dict[str, float], name: str = "coco", pictures: int = 5_000, **classes: int) -> dict[str, Any]:
    rows = [
        {"model": "theirs", "set": name, "split": split, "metric": metric, "value": value + (split != "all") * 50}
        for metric, value in values.items()
        for split in ("fitted", "all")
    ]
    of_set = {"pictures": pictures, "classes": classes, "captions_per_picture": [5, 7], "notes": {}}
    return {"sets": {name: of_set}, "summary": rows}


def of(found: list[PaperVerdict]) -> dict[str, bool | None]:
    return {one.column: one.holds for one in found}


def test_scores_within_the_tolerance_hold() -> None:
    # published: 22.30 and 13.01
    found = verdicts(results({"i2t_r@1": 22.60, "t2i_r@1": 12.70, "i2t_r@5": 99.0}), {"theirs": "veclip_b16_3m"})
    assert of(found) == {"coco_i2t_r1": True, "coco_t2i_r1": False}
    assert [one.difference for one in found] == [pytest.approx(0.30), pytest.approx(-0.31)]
    assert [one.note for one in found] == [None, None]
    assert all(one.tolerance == 0.3 for one in found)


def test_a_classification_is_known_by_its_only_labels() -> None:
    found = verdicts(
        results({"zeroshot_top1_label": 31.9}, "wds_imagenetv2", 10_000, label=1_000), {"theirs": "veclip_b16_12m"}
    )
    assert [(one.column, one.metric, one.published, one.holds) for one in found] == [
        ("imagenet_v2", "zeroshot_top1_label", 32.53, False)
    ]


def test_a_cut_set_is_said() -> None:
    (one,) = verdicts(results({"i2t_r@1": 73.9}, "flickr30k", pictures=31), {"theirs": "veclip_b16_12m"})
    assert one.holds is None, "though the number is the published one"
    assert one.word == "no verdict: a set of another size"
    assert one.note == "measured on 31 pictures, published on 1,000"


@pytest.mark.parametrize(
    ("captions", "left_out", "told"),
    [
        ([5, 5], 10, None), ([5, 7], 0, None), ([1, 1], 20_000, "1 caption"), ([5, 6], 3, "5 to 6 captions"),
        ([4, 5], 0, "4 to 5 captions"),
    ],
)  # fmt: skip
def test_other_captions_are_said(captions: list[int], left_out: int, told: str | None) -> None:
    found = results({"i2t_r@1": 22.3})
    found["sets"]["coco"] |= {"captions_per_picture": captions, "notes": {"captions_left_out": left_out}}
    (one,) = verdicts(found, {"theirs": "veclip_b16_3m"})
    assert one.holds
    assert one.note == (f"measured with {told} a picture, published with 5 or all" if told else None)


def test_other_templates_are_said() -> None:
    found = results({"zeroshot_top1_label": 38.11}, "imagenet", 50_000, label=1_000)
    (usual,) = verdicts(found, {"theirs": "veclip_b16_12m"})
    (other,) = verdicts(found, {"theirs": "veclip_b16_12m"}, ["imagenet"])
    assert usual.note is None
    assert other.holds
    assert other.note == "measured with other templates of the classes than open_clip's for ImageNet"


def test_three_rows_of_one_file_are_all_said() -> None:
    (one,) = verdicts(results({"i2t_r@1": 66.0}), {"theirs": "vecapdfn_clip_b16"})
    assert (one.published, one.holds) == (66.28, True)
    assert one.note is not None
    assert "DFN 62.96" in one.note
    assert "VeCap 300M 64.74" in one.note


@pytest.mark.parametrize(
    ("row", "name", "metric"), [(0, "imagenet", "zeroshot_top1_class"), (2, "flickr30k", "t2i_r@1")]
)
def test_a_misprint_gives_no_verdict(row: int, name: str, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The release has no checkpoint of these rows: one is made up."""
    monkeypatch.setitem(paper.RELEASED, "clip", Release(ROWS[row], "https://a.example/clip.zip"))
    pictures = PAPER_SETS[name].pictures
    (one,) = verdicts(results({metric: 5.46}, name, pictures, **{"class": 1_000}), {"theirs": "clip"})
    assert one.holds is None
    assert one.misprint is not None
    assert "printed as" in one.misprint
    assert one.word == "no verdict: misprinted"


def test_other_models_and_sets_have_no_verdict() -> None:
    assert verdicts(results({"i2t_r@1": 22.3}), {"theirs": "another"}) == []
    assert verdicts(results({"i2t_r@1": 22.3}), {}) == []
    assert verdicts(results({"i2t_r@1": 22.3}, "mine"), {"theirs": "veclip_b16_3m"}) == []
    assert verdicts(results({"zeroshot_top1_class": 22.3}), {"theirs": "veclip_b16_3m"}) == [], "COCO by its classes"


def test_sets_are_known_by_their_usual_names() -> None:
    names = ["coco", "wds_mscoco_captions", "COCO", "flickr30k", "wds_imagenet1k", "imagenet-v2", "imagenetv2", "cocoa"]
    assert [paper_set(name) for name in names] == [
        "coco", "coco", "coco", "flickr30k", "imagenet", "imagenetv2", "imagenetv2", None,
    ]  # fmt: skip


def test_every_released_checkpoint_has_its_row() -> None:
    assert RELEASED.keys() == released_checkpoints.RELEASED.keys()
    rows = [(one.row.data, one.row.model) for one in RELEASED.values()]
    assert len(set(rows)) == len(rows) == 7
    assert all(one.address.endswith(f"/{name}.zip") for name, one in RELEASED.items())
