"""Evaluation sets in the layouts that others use, whole and damaged."""

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.unit.set_layouts import (
    add,
    captions,
    labelled_samples,
    picture,
    retrieval_samples,
    write_karpathy,
    write_parquet,
    write_pictures,
    write_webdataset,
)
from veclip_core.evaluation import set_specs
from veclip_core.evaluation.layouts import found as limits
from veclip_core.evaluation.sets import EvaluationSet, EvaluationSetError
from veclip_core.evaluation.zeroshot import in_template

N = 24


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def texts_of(evaluation_set: EvaluationSet) -> list[list[str]]:
    return [list(texts) for texts in evaluation_set.captions_of]


def bytes_of(evaluation_set: EvaluationSet) -> list[bytes]:
    return [place.read() for place in evaluation_set.pictures]


# -- annotations in json


def test_karpathy_gives_the_test_split_with_every_caption(tmp_path: Path, cache: Path) -> None:
    """COCO's test pictures have five to seven captions; CLIP_benchmark uses them all."""
    texts = captions(N, (5, 5, 6, 7))
    path = write_karpathy(tmp_path / "coco", texts)
    by_folder, by_file = (set_specs.open_set(f"coco={told}", cache) for told in (path.parent, path))
    assert texts_of(by_folder) == texts_of(by_file) == texts
    assert bytes_of(by_folder) == [picture(number) for number in range(N)]
    assert (by_folder.content, by_folder.name, by_folder.notes) == (by_file.content, "coco", {})


def catalogue(folder: Path, entries: dict[str, Any]) -> str:
    path = folder / "sets.yaml"
    path.write_text(json.dumps(entries))  # JSON is YAML
    return str(path)


def test_the_first_captions_are_taken_and_the_others_counted(tmp_path: Path, cache: Path) -> None:
    path = write_karpathy(tmp_path / "coco", captions(N, (5, 4, 6, 7)))
    entries = {"coco": {"path": "coco/dataset_coco.json", "captions": 5}, "all": str(path)}
    told = catalogue(tmp_path, entries)
    cut = set_specs.open_set("coco", cache, told)
    assert texts_of(cut)[:4] == [own[:5] for own in captions(4, (5, 4, 6, 7))]
    assert cut.notes == {"captions_left_out": 3 * N // 4, "pictures_with_fewer_captions": N // 4}
    whole = set_specs.open_set("all", cache, told)
    assert cut.content != whole.content
    assert cut.pictures_digest == whole.pictures_digest is not None, "the pictures are embedded once"


def test_pictures_may_lie_elsewhere_and_flat(tmp_path: Path, cache: Path) -> None:
    path = write_karpathy(tmp_path / "coco", captions(N))
    (tmp_path / "coco" / "val2014").rename(tmp_path / "flat")
    with pytest.raises(EvaluationSetError, match=r"24 of 24 pictures are not below .*coco.*name their folder"):
        set_specs.open_set(str(path), cache)
    found = set_specs.open_set("coco", cache, catalogue(tmp_path, {"coco": {"path": str(path), "pictures": "flat"}}))
    assert bytes_of(found) == [picture(number) for number in range(N)]


def test_cocos_own_format_is_read_in_the_order_of_torchvision(tmp_path: Path, cache: Path) -> None:
    """CLIP_benchmark reads its annotations by torchvision's CocoCaptions: by id, which pycocotools sorts."""
    ids = np.random.default_rng(0).permutation(N).tolist()
    write_pictures(tmp_path / "coco" / "val2014", [f"{number}.png" for number in range(N)])
    texts = [(number, f"{number}: {k}") for k in range(2) for number in ids]
    (tmp_path / "coco" / "coco_test_karpathy.json").write_text(
        json.dumps(
            {
                "images": [{"id": number, "file_name": f"{number}.png"} for number in ids],
                "annotations": [{"image_id": number, "caption": text} for number, text in texts],
            }
        )
    )
    found = set_specs.open_set(str(tmp_path / "coco"), cache)
    assert texts_of(found) == [[f"{number}: 0", f"{number}: 1"] for number in range(N)]
    assert bytes_of(found) == [picture(number) for number in range(N)]


def test_sugar_crepe_is_a_choice_of_which_the_first_is_right(tmp_path: Path, cache: Path) -> None:
    folder = write_pictures(tmp_path / "sugar" / "val2017", [f"{number}.png" for number in range(N)]).parent
    entries = {
        str(2 * n): {"filename": f"{n}.png", "caption": f"right {n}", "negative_caption": f"wrong {n}"}
        for n in range(N)
    }
    (folder / "swap_att.json").write_text(json.dumps(entries))
    found = set_specs.open_set(str(folder), cache)
    assert found.right_M is not None
    rights = [text for text, right in zip(found.captions, found.right_M, strict=True) if right]
    assert rights == [f"right {n}" for n in range(N)]
    assert found.right_M.sum() == N == len(found.captions) // 2


def test_sugar_crepe_as_clip_benchmark_exports_it(tmp_path: Path, cache: Path) -> None:
    samples = retrieval_samples([[f"right {n}", f"wrong {n}"] for n in range(N)])
    folder = write_webdataset(tmp_path / "wds_sugar_crepe-swap_att", samples, kind="retrieval")
    by_name = set_specs.open_set(f"sugar_crepe_swap_att={folder}", cache)
    told = set_specs.open_set("odd", cache, catalogue(tmp_path, {"odd": {"path": str(folder), "choice": True}}))
    plain = set_specs.open_set(f"plain={folder}", cache)
    by_folder = set_specs.open_set(str(folder), cache)
    assert by_name.right_M is not None
    assert by_name.right_M.tolist() == [True, False] * N
    assert by_folder.content == by_name.content == told.content != plain.content
    assert by_name.pictures_digest == plain.pictures_digest
    assert plain.right_M is None


# -- CLIP_benchmark's WebDatasets


def judged(folder: Path) -> tuple[list[bytes], list[Any], Any]:
    """What CLIP_benchmark's own loader reads: pixels, texts or labels, and the dataset."""
    from clip_benchmark.datasets.builder import build_wds_dataset

    dataset = build_wds_dataset("any", transform=lambda image: image.convert("RGB").tobytes(), data_dir=str(folder))
    pictures, told = zip(*dataset, strict=True)
    return list(pictures), list(told), dataset


def pixels_of(evaluation_set: EvaluationSet) -> list[bytes]:
    return [evaluation_set.open_picture(row).tobytes() for row in range(len(evaluation_set))]


def test_a_retrieval_webdataset_is_read_as_clip_benchmark_reads_it(tmp_path: Path, cache: Path) -> None:
    folder = write_webdataset(tmp_path / "set", retrieval_samples(captions(N, (5, 3, 6))), kind="retrieval")
    found = set_specs.open_set(str(folder), cache)
    pictures, texts, _ = judged(folder)
    assert (pixels_of(found), texts_of(found)) == (pictures, texts)
    assert len(pictures) == N


def test_a_classification_webdataset_is_read_as_clip_benchmark_reads_it(tmp_path: Path, cache: Path) -> None:
    labels = np.random.default_rng(0).choice([0, 1, 3], N).tolist()
    samples = labelled_samples(labels)
    samples[4] = {"png": picture(90), **samples[4], "jpg": picture(91, "JPEG")}  # of several, the webp
    folder = write_webdataset(
        tmp_path / "set", samples, classnames="cat\nsea {lion}\nempty\nnew-born owl\n",
        zeroshot_classification_templates="a photo of a {c}.\n{c} {here}\n",
    )  # fmt: skip
    found = set_specs.open_set(str(folder), cache)
    pictures, told, dataset = judged(folder)
    labelling = found.labels["class"]
    assert pixels_of(found) == pictures
    assert labelling.target_N.tolist() == told
    assert list(labelling.classes) == dataset.classes
    assert labelling.templates is not None
    prompts = [in_template(template, "sea {lion}") for template in labelling.templates]
    assert prompts == ["a photo of a sea {lion}.", "sea {lion} {here}"]
    assert found.notes == {"empty_classes": 1}
    assert not found.captions


@pytest.mark.parametrize(
    ("labels", "files", "message"),
    [
        ([0, 1, 7], {"classnames": "cat\ndog"}, "labels beyond the 2 lines of the class list: 7"),
        ([0, 1], {}, "there are labels but no texts of the classes: put a classnames.txt"),
        ([0, 1], {"classnames": "cat\n\n"}, "labels beyond the 1 lines of the class list: 1"),
        ([0, 2], {"classnames": "cat\n \ndog"}, "classes without a text"),
        ([0, 1], {"classnames": "cat\ndog", "zeroshot_classification_templates": "a photo"}, "has no place for the class"),
    ],
)  # fmt: skip
def test_class_lists_that_disagree(
    tmp_path: Path, cache: Path, labels: list[int], files: dict[str, str], message: str
) -> None:
    folder = write_webdataset(tmp_path / "set", labelled_samples(labels * 12), **files)
    with pytest.raises(EvaluationSetError, match=message):
        set_specs.open_set(str(folder), cache)


def test_labels_that_are_no_numbers_and_several_a_picture(tmp_path: Path, cache: Path) -> None:
    samples = [{"png": picture(n), "cls": b"cat"} for n in range(N)]
    with pytest.raises(EvaluationSetError, match=r"s0000000\.cls holds b'cat': the number of a class"):
        set_specs.open_set(str(write_webdataset(tmp_path / "a", samples)), cache)
    samples = [{"png": picture(n), "npy": b"x"} for n in range(N)]
    with pytest.raises(EvaluationSetError, match="several labels a picture"):
        set_specs.open_set(str(write_webdataset(tmp_path / "b", samples, kind="multilabel")), cache)


def test_samples_that_are_not_whole_are_named(tmp_path: Path, cache: Path) -> None:
    samples = retrieval_samples(captions(N))
    del samples[3]["txt"], samples[20]["png"]
    folder = write_webdataset(tmp_path / "set", samples, kind="retrieval")
    with pytest.raises(EvaluationSetError, match=r"2 samples.*0/s0000003 \(no txt\), 2/s0000020 \(no picture\)"):
        set_specs.open_set(str(folder), cache)


@pytest.mark.parametrize("damage", ["cut in a picture", "cut in a header", "no tar", "bad header"])
def test_damaged_tars_are_an_error(tmp_path: Path, cache: Path, damage: str) -> None:
    folder = write_webdataset(tmp_path / "set", retrieval_samples(captions(N)), kind="retrieval")
    tar = folder / "test" / "1.tar"
    data = bytearray(tar.read_bytes())
    if damage == "bad header":
        data[2048:2560] = b"x" * 512
    tar.write_bytes(
        {"cut in a picture": data[:700], "cut in a header": data[:2300], "no tar": b"<html>"}.get(damage, data)
    )
    with pytest.raises(EvaluationSetError, match=r"1\.tar is damaged or cut off .*fetch it again"):
        set_specs.open_set(str(folder), cache)


def test_shards_that_are_given_themselves(tmp_path: Path, cache: Path) -> None:
    """Their own texts are nearer than those above, which are taken where there are no others."""
    texts = {"classnames": "cat\nowl\n", "zeroshot_classification_templates": "a drawn {c}\n"}
    folder = write_webdataset(tmp_path / "set", labelled_samples([0, 1] * 12), kind="classification", **texts)
    whole = set_specs.open_set(str(folder), cache)
    shards = folder / "test"
    assert set_specs.open_set(str(shards), cache).content == whole.content
    for file in ("classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt"):
        (folder / file).rename(shards / file)
    assert set_specs.open_set(str(shards), cache).content == whole.content
    (folder / "classnames.txt").write_text("of\nanother set\n")
    (folder / "dataset_type.txt").write_text("retrieval\n")
    found = set_specs.open_set(str(shards), cache)
    assert (found.content, found.labels["class"].templates) == (whole.content, ("a drawn {}",))


def test_what_lies_beside_shards_makes_no_other_set_of_them(tmp_path: Path, cache: Path) -> None:
    """Nor is it looked at: the folder above may be a whole disk."""
    folder = write_webdataset(tmp_path / "set", retrieval_samples(captions(N)), kind="retrieval")
    for told in (folder, folder / "test"):
        set_specs.open_set(f"a={told}", cache)
    kept = set((cache / set_specs.FOLDER).iterdir())
    (folder / "notes.txt").write_text("x")
    write_pictures(folder / "other" / "deep", ["0.png", "a\udcff.png"])
    for told in (folder, folder / "test"):
        set_specs.open_set(f"a={told}", cache)
    assert set((cache / set_specs.FOLDER).iterdir()) == kept
    (folder / "dataset_type.txt").write_text("image_caption_selection")
    assert set_specs.open_set(f"a={folder}", cache).right_M is not None


def test_a_missing_tar_is_named(tmp_path: Path, cache: Path) -> None:
    folder = write_webdataset(tmp_path / "set", retrieval_samples(captions(N)), kind="retrieval")
    (folder / "test" / "2.tar").unlink()
    with pytest.raises(EvaluationSetError, match=r"says 3 tars, and some are missing: 2\.tar"):
        set_specs.open_set(str(folder), cache)


def test_hostile_members_are_only_keys(tmp_path: Path, cache: Path) -> None:
    folder = write_webdataset(tmp_path / "set", retrieval_samples(captions(N)), kind="retrieval")
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for name in ("../../../evil", "/etc/passwd", "a/../b", "c\udcff"):
            add(tar, f"{name}.png", picture(1))
            add(tar, f"{name}.txt", b"text \xff")
    found = set_specs.open_set(str(folder), cache)
    assert found.ids[:2] == ("0/../../../evil", "0//etc/passwd")
    assert all(place.address.startswith(str(folder)) for place in found.pictures)
    assert not list(tmp_path.rglob("evil*"))
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        add(tar, "a.txt", b"text")
    with pytest.raises(EvaluationSetError, match="no plain file"):
        set_specs.open_set(str(folder), cache)


# -- folders and tables


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], delimiter: str = ",") -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


@pytest.mark.parametrize("shape", ["rows", "columns", "json list", "parquet lists", "jsonl", "tsv"])
def test_a_folder_with_a_table_of_captions(tmp_path: Path, cache: Path, shape: str) -> None:
    files = [f"sub/{n}.png" for n in range(N)]
    folder = write_pictures(tmp_path / "mine", files)
    texts = captions(N, (2,))
    pairs = [(file, text) for file, own in zip(files, texts, strict=True) for text in own]
    if shape == "rows":
        write_table(folder / "texts.csv", ["Filename", "Caption"], pairs)
    elif shape == "tsv":
        write_table(folder / "texts.tsv", ["file", "text"], pairs, "\t")
    elif shape == "columns":
        rows = [(f"{n}.png", *own) for n, own in enumerate(texts)]  # a name without its folder that no other has
        write_table(folder / "texts.csv", ["image", "caption_1", "caption_2"], rows)
    elif shape == "json list":
        write_table(
            folder / "texts.csv",
            ["filename", "raw"],
            [(f, json.dumps(own)) for f, own in zip(files, texts, strict=True)],
        )
    elif shape == "jsonl":
        lines = [json.dumps({"path": file, "captions": own}) for file, own in zip(files, texts, strict=True)]
        (folder / "texts.jsonl").write_text("\n".join(lines))
    else:
        pq.write_table(pa.table({"image_path": files, "sentences": texts}), folder / "texts.parquet")
    found = set_specs.open_set(f"mine={folder}", cache)
    assert texts_of(found) == texts
    assert (found.ids, bytes_of(found)) == (tuple(files), [picture(number) for number in range(N)])


def test_a_table_of_classes(tmp_path: Path, cache: Path) -> None:
    files = [f"{n}.png" for n in range(N)]
    folder = write_pictures(tmp_path / "mine", files)
    rows = [(file, ("sea-lion", "owl")[n % 2], f"text {n}") for n, file in enumerate(files)]
    write_table(folder / "labels.csv", ["file", "label", "caption"], rows)
    found = set_specs.open_set(str(folder), cache)
    assert found.labels["class"].classes == ("owl", "sea lion")
    assert found.labels["class"].target_N.tolist() == [1, 0] * (N // 2)
    assert len(found.captions) == N
    write_table(folder / "labels.csv", ["file", "label"], [*[row[:2] for row in rows], ("0.png", "owl")])
    with pytest.raises(EvaluationSetError, match=r"1 pictures without one class in label: 0\.png \(owl, sea-lion\)"):
        set_specs.open_set(str(folder), cache)


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        ("label", ["0", "0", "1", "1"]),
        ("category", ["", "", "dog", "dog"]),
        ("category", [""] * 4),
        ("target", ["0", "0", "0.5", "0.5"]),
        ("label", ["right", "right", "right", "wrong"]),
    ],
)
def test_a_column_beside_captions_that_says_no_classes_is_left_out(
    tmp_path: Path, cache: Path, column: str, cells: list[str]
) -> None:
    """Nobody said that it is one of classes; once it is told, what is wrong with it is an error."""
    files = [f"{n}.png" for n in range(N)]
    folder = write_pictures(tmp_path / "mine", files)
    rows = [(f"{n // 2}.png", f"text {n}", cells[n % 4]) for n in range(2 * N)]
    write_table(folder / "t.csv", ["file", "caption", column], rows)
    found = set_specs.open_set(str(folder), cache)
    assert (found.labels, found.notes) == ({}, {"class_columns_left_out": 1})
    assert (len(found), len(found.captions)) == (N, len(rows))
    if column == "target":
        return
    told = catalogue(tmp_path, {"m": {"path": "mine", "label_column": column}})
    with pytest.raises(EvaluationSetError, match=r"no texts of the classes|pictures without one class in"):
        set_specs.open_set("m", cache, told)


def test_numbers_beside_captions_are_classes_where_their_texts_are_there(tmp_path: Path, cache: Path) -> None:
    files = [f"{n}.png" for n in range(N)]
    folder = write_pictures(tmp_path / "mine", files)
    write_table(folder / "t.csv", ["file", "caption", "label"], [(f, "text", str(n % 2)) for n, f in enumerate(files)])
    (folder / "classnames.txt").write_text("owl\nseal\n")
    found = set_specs.open_set(str(folder), cache)
    assert (found.labels["class"].classes, found.notes) == (("owl", "seal"), {})


@pytest.mark.parametrize("labels", [[0, 1], [0.0, 0.5], [-1, 0], ["", "dog"], [None, "dog"]])
def test_parquet_with_captions_and_a_column_that_says_no_classes(
    tmp_path: Path, cache: Path, labels: list[Any]
) -> None:
    columns = {
        "image": [picture(n) for n in range(N)],
        "caption": [f"text {n}" for n in range(N)],
        "label": labels * (N // 2),
    }
    found = set_specs.open_set(str(write_parquet(tmp_path / "hf" / "test.parquet", columns)), cache)
    assert (found.labels, found.notes, len(found.captions)) == ({}, {"class_columns_left_out": 1}, N)


def test_rows_and_pictures_that_do_not_match(tmp_path: Path, cache: Path) -> None:
    files = [f"{n}.png" for n in range(N)]
    folder = write_pictures(tmp_path / "mine", [*files, "unnamed.png"])
    (tmp_path / "outside.png").write_bytes(picture(0))
    rows = [(file, f"text of {file}") for file in files]
    write_table(folder / "t.csv", ["file", "caption"], rows)
    assert set_specs.open_set(str(folder), cache).notes == {"pictures_without_text": 1}
    absent = [("../outside.png", "x"), (str(tmp_path / "outside.png"), "x"), ("n.png", "x"), ("m.png", "x")]
    write_table(folder / "t.csv", ["file", "caption"], [*rows, *absent])
    named = r"4 of 28 rows name no picture below .*'\.\./outside\.png' \(row 25\).* and 1 more"
    with pytest.raises(EvaluationSetError, match=named):
        set_specs.open_set(str(folder), cache)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,caption\n0.png,a, b\n", "line 2: 3 cells in place of 2 .*quotation marks"),
        ("name,words\n0.png,a\n", "no column is known to hold captions or classes. It has name, words"),
        ("picture,caption\n0.png,a\n", "no column is known to hold the pictures' files. It has picture, caption"),
        ("file,caption,caption\n0.png,a,b\n", "two columns have one name"),
        ("file,caption\n", "has no rows"),
        ('file,caption\n0.png,"a\n', "can't be read|cells in place|fewer than 10"),
    ],
)
def test_tables_that_can_not_be_read(tmp_path: Path, cache: Path, table: str, message: str) -> None:
    folder = write_pictures(tmp_path / "mine", [f"{n}.png" for n in range(N)])
    (folder / "t.csv").write_text(table)
    with pytest.raises(EvaluationSetError, match=message):
        set_specs.open_set(str(folder), cache)


def test_empty_captions_are_named(tmp_path: Path, cache: Path) -> None:
    files = [f"{n}.png" for n in range(N)]
    folder = write_pictures(tmp_path / "mine", files)
    rows = [(file, "" if n in (3, 9) else " \t" if n == 5 else "text") for n, file in enumerate(files)]
    write_table(folder / "t.csv", ["file", "caption"], rows)
    with pytest.raises(EvaluationSetError, match=r"3 pictures with an empty caption: 3\.png, 5\.png, 9\.png\. Write"):
        set_specs.open_set(str(folder), cache)


def test_rows_of_other_splits_are_counted(tmp_path: Path, cache: Path) -> None:
    files = [f"{n}.png" for n in range(N)]
    folder = write_pictures(tmp_path / "mine", files)
    rows = [(file, "text", "train" if n < 4 else "test") for n, file in enumerate(files)]
    write_table(folder / "t.csv", ["file", "caption", "split"], rows)
    found = set_specs.open_set(str(folder), cache)
    assert found.ids == tuple(files[4:])
    assert found.notes == {"rows_of_other_splits": 4}
    with pytest.raises(EvaluationSetError, match=r"no row is of the split 'dev'\. There are test, train"):
        set_specs.open_set("m", cache, catalogue(tmp_path, {"m": {"path": "mine", "split": "dev"}}))


# -- class folders


def test_class_folders(tmp_path: Path, cache: Path) -> None:
    names = [f"{('zebra', 'sea_lion')[n % 2]}/{n:02d}.png" for n in range(N)]
    folder = write_pictures(tmp_path / "animals", names)
    (folder / "auk").mkdir()
    found = set_specs.open_set(str(folder), cache)
    labelling = found.labels["class"]
    assert labelling.classes == ("auk", "sea lion", "zebra")
    assert labelling.target_N.tolist() == [1] * 12 + [2] * 12
    assert found.ids[:2] == ("sea_lion/01.png", "sea_lion/03.png")
    assert found.notes == {"empty_classes": 1}
    (folder / "emu").mkdir()
    assert set_specs.open_set(str(folder), cache).notes == {"empty_classes": 2}
    (folder / "emu").rmdir()
    (folder / "classnames.csv").write_text('zebra,a zebra\nsea_lion,"a seal, of sorts"\nauk,an auk\nyak,a yak\n')
    found = set_specs.open_set(str(folder), cache)
    assert found.labels["class"].classes == ("a zebra", "a seal, of sorts", "an auk", "a yak")
    assert found.labels["class"].target_N.tolist() == [1] * 12 + [0] * 12
    assert found.notes == {"empty_classes": 2}
    (folder / "classnames.csv").write_text("zebra,a zebra\nauk,an auk\n")
    with pytest.raises(EvaluationSetError, match="1 classes that the class list lacks: sea_lion"):
        set_specs.open_set(str(folder), cache)
    (folder / "classnames.csv").unlink()
    (folder / "classnames.txt").write_text("one\ntwo\n")
    with pytest.raises(EvaluationSetError, match="the class list has 2 lines and there are 3 classes"):
        set_specs.open_set(str(folder), cache)
    (folder / "lost.png").write_bytes(picture(99))
    with pytest.raises(EvaluationSetError, match="1 pictures lie beside the class folders: lost"):
        set_specs.open_set(str(folder), cache)


def test_imagenet_has_open_clips_names_and_openais_templates(tmp_path: Path, cache: Path) -> None:
    """By WordNet id, and of ImageNetV2 by number: its folders sort 0, 1, 10, 100 as texts."""
    wnids = ["n01440764", "n01443537", "n15075141"]
    folder = write_pictures(tmp_path / "imagenet-r", [f"{wnids[n % 3]}/{n}.png" for n in range(N)])
    found = set_specs.open_set(str(folder), cache).labels["class"]
    assert found.classes == ("tench", "goldfish", "toilet paper")
    assert found.templates is not None
    assert (len(found.templates), found.templates[0]) == (80, "a bad photo of a {}.")
    assert set_specs.open_set(f"wds_ImageNet-R={folder}", cache).labels["class"].classes == found.classes
    assert len(set_specs.open_set(f"wds_ImageNet-R={folder}", cache).labels["class"].templates or ()) == 80
    folder = write_pictures(tmp_path / "imagenetv2", [f"{(0, 2, 10, 999)[n % 4]}/{n}.png" for n in range(N)])
    found = set_specs.open_set(str(folder), cache).labels["class"]
    assert len(found.classes) == 1000
    assert [found.classes[target] for target in np.unique(found.target_N)] == [
        "tench", "great white shark", "brambling", "toilet paper",
    ]  # fmt: skip


# -- Hugging Face's parquet


def test_parquet_with_captions(tmp_path: Path, cache: Path) -> None:
    texts = captions(N, (5, 2))
    images = [picture(number) for number in range(N)]
    write_parquet(tmp_path / "hf" / "data" / "test-00000-of-00001.parquet", {"image": images, "caption": texts})
    write_parquet(
        tmp_path / "hf" / "data" / "train-00000-of-00001.parquet", {"image": images[:2], "caption": texts[:2]}
    )
    found = set_specs.open_set(f"hf={tmp_path / 'hf'}", cache)
    assert (texts_of(found), bytes_of(found)) == (texts, images)
    assert all(place.address.endswith("pictures.tar") for place in found.pictures)


def test_parquet_rows_of_one_picture_are_captions_of_it(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "hf" / "test.parquet"
    path.parent.mkdir()
    images = [{"bytes": picture(n // 2), "path": f"{n // 2}.png"} for n in range(2 * N)]
    pq.write_table(pa.table({"image": images, "sentences": [{"raw": f"text {n}"} for n in range(2 * N)]}), path)
    found = set_specs.open_set(str(path), cache)
    assert texts_of(found) == [[f"text {2 * n}", f"text {2 * n + 1}"] for n in range(N)]
    assert bytes_of(found) == [picture(n) for n in range(N)]


@pytest.mark.parametrize("path", ["", None, "named"])
@pytest.mark.parametrize("labelled", [False, True])
def test_parquet_rows_of_one_picture_without_a_path_or_beside_classes(
    tmp_path: Path, cache: Path, path: str | None, labelled: bool
) -> None:
    rows = [n // 5 for n in range(5 * N)]
    images = [{"bytes": picture(n), "path": f"{n}.png" if path else path} for n in rows]
    columns = {"image": images, "caption": [f"text {n}" for n in range(5 * N)]}
    columns |= {"label": [("cat", "dog")[n % 2] for n in rows]} if labelled else {}
    (tmp_path / "hf").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "hf" / "test.parquet")
    found = set_specs.open_set(str(tmp_path / "hf"), cache)
    assert texts_of(found) == [[f"text {5 * n + k}" for k in range(5)] for n in range(N)]
    assert (bytes_of(found), found.notes) == ([picture(n) for n in range(N)], {})
    if labelled:
        assert found.labels["class"].target_N.tolist() == [0, 1] * (N // 2)


def test_parquet_rows_of_equal_bytes_that_are_not_one_picture(tmp_path: Path, cache: Path) -> None:
    """Apart without a path, of two classes, or without captions: each is a picture, and counted as equal to another."""
    (tmp_path / "hf").mkdir()
    images = [{"bytes": picture(n % N), "path": ""} for n in range(2 * N)]
    beside = [{"bytes": picture(n // 2), "path": ""} for n in range(2 * N)]
    texts, classes = [f"text {n}" for n in range(2 * N)], ["cat", "dog"] * N
    for columns in (
        {"image": images, "caption": texts},
        {"image": beside, "caption": texts, "label": classes},
        {"image": beside, "label": ["cat"] * N + ["dog"] * N},
    ):
        pq.write_table(pa.table(columns), tmp_path / "hf" / "test.parquet")
        found = set_specs.open_set(str(tmp_path / "hf"), cache)
        assert (len(found), found.notes) == (2 * N, {"duplicate_pictures": N})


def test_parquet_with_class_labels(tmp_path: Path, cache: Path) -> None:
    images = [picture(n) for n in range(N)]
    columns = {"image": images, "fine_label": [n % 3 for n in range(N)], "coarse_label": [n % 2 for n in range(N)]}
    names = {"fine_label": ["cat", "sea_lion", "owl", "yak"], "coarse_label": ["wet", "dry"]}
    path = write_parquet(tmp_path / "hf" / "validation-00000-of-00001.parquet", columns, names)
    found = set_specs.open_set(str(path.parent), cache)
    assert found.labels["fine_label"].classes == ("cat", "sea lion", "owl", "yak")
    assert found.labels["fine_label"].target_N.tolist() == columns["fine_label"]
    assert found.labels["coarse_label"].classes == ("wet", "dry")
    assert found.notes == {"empty_classes": 1}
    (tmp_path / "wet.txt").write_text("in water\non land\n")
    told = {"path": "hf", "classes": "wet.txt"}
    one = catalogue(tmp_path, {"one": told | {"label_column": "coarse_label"}, "both": told})
    assert set_specs.open_set("one", cache, one).labels["class"].classes == ("in water", "on land")
    with pytest.raises(EvaluationSetError, match="labels fine_label, coarse_label: name with `label_column` which"):
        set_specs.open_set("both", cache, one)
    write_parquet(path, {"image": images, "fine_label": [-1] * N}, {"fine_label": ["cat", "dog"]})
    with pytest.raises(EvaluationSetError, match="labels in fine_label that are no class: -1"):
        set_specs.open_set(str(path.parent), cache)


def test_damaged_parquet_and_rows_without_bytes(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "hf" / "test.parquet"
    path.parent.mkdir()
    images = [{"bytes": picture(n) if n else None, "path": f"{n}.png"} for n in range(N)]
    pq.write_table(pa.table({"image": images, "caption": ["text"] * N}), path)
    with pytest.raises(EvaluationSetError, match=r"1 rows without the bytes of a picture: test\.parquet, row 0"):
        set_specs.open_set(str(path), cache)
    write_parquet(path, {"image": [picture(n) for n in range(N)], "caption": ["text"] * N})
    data = bytearray(path.read_bytes())
    data[4:600] = bytes(596)
    path.write_bytes(data)
    with pytest.raises(EvaluationSetError, match="can't be read to its end"):
        set_specs.open_set(str(path), cache)
    assert not list((cache / set_specs.FOLDER).rglob("*.tar"))


# -- of every layout


def test_duplicates_are_counted_and_small_sets_refused(tmp_path: Path, cache: Path) -> None:
    samples = [{"png": picture(n % 20), "txt": f"text {n}".encode()} for n in range(N)]
    found = set_specs.open_set(str(write_webdataset(tmp_path / "a", samples, kind="retrieval")), cache)
    assert (len(found), found.notes) == (N, {"duplicate_pictures": 4})
    folder = write_webdataset(tmp_path / "b", retrieval_samples(captions(9)), kind="retrieval")
    with pytest.raises(EvaluationSetError, match="b has 9 pictures, and a score of fewer than 10 says nothing"):
        set_specs.open_set(str(folder), cache)


def test_content_follows_what_decides_scores_alone(tmp_path: Path, cache: Path) -> None:
    texts = captions(N, (1,))
    folder = write_webdataset(tmp_path / "a", retrieval_samples(texts), kind="retrieval")
    elsewhere = write_webdataset(tmp_path / "b", retrieval_samples(texts), kind="retrieval", per_tar=7)
    content = set_specs.open_set(str(folder), cache).content
    assert set_specs.open_set(f"other={elsewhere}", cache).content == content
    table = write_pictures(tmp_path / "c", [f"{n}.png" for n in range(N)])
    write_table(table / "t.csv", ["file", "text"], [(f"{n}.png", own[0]) for n, own in enumerate(texts)])
    assert set_specs.open_set(str(table), cache).content == content
    (table / "3.png").write_bytes(picture(77))
    assert set_specs.open_set(str(table), cache).content != content


def test_a_set_is_read_once_until_a_file_changes(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_pictures(tmp_path / "mine", [f"{n % 3}/{n}.png" for n in range(N)])
    first = set_specs.open_set(str(folder), cache)
    reads: list[int] = []
    whole = set_specs.detect

    def counted(*args: Any) -> Any:
        reading = whole(*args)
        return type(reading)(
            reading.layout, reading.facts, lambda copy: (reads.append(1), reading.read(copy))[1], reading.folders
        )

    monkeypatch.setattr(set_specs, "detect", counted)
    again = set_specs.open_set(str(folder), cache)
    assert (again.content, again.ids, again.pictures, reads) == (first.content, first.ids, first.pictures, [])
    (kept,) = (cache / set_specs.FOLDER).rglob("found.parquet")
    kept.write_bytes(kept.read_bytes()[:100])
    assert set_specs.open_set(str(folder), cache).content == first.content
    assert reads == [1]
    (folder / "0" / "0.png").write_bytes(picture(88))
    assert set_specs.open_set(str(folder), cache).content != first.content
    assert reads == [1, 1]


def test_pictures_are_not_decoded(tmp_path: Path, cache: Path) -> None:
    """What can't be read as a picture is found, counted and told by the embedding."""
    samples = retrieval_samples(captions(N))
    samples[0]["png"] = b"no picture"
    found = set_specs.open_set(str(write_webdataset(tmp_path / "a", samples, kind="retrieval")), cache)
    assert len(found) == N
    with pytest.raises(Image.UnidentifiedImageError):
        Image.open(io.BytesIO(found.pictures[0].read()))


def test_links_of_a_folder_are_followed_and_lead_nowhere_twice(tmp_path: Path, cache: Path) -> None:
    real = write_pictures(tmp_path / "disk", [f"{n}.png" for n in range(N)])
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "a").symlink_to(real)
    (real / "back").symlink_to(folder)
    (folder / "itself").symlink_to("itself")
    (folder / "gone.png").symlink_to(tmp_path / "gone")
    assert sorted(set_specs.open_set(str(folder), cache).ids) == sorted(f"a/{n}.png" for n in range(N))


def test_a_copy_that_was_removed_is_made_again_and_moves_with_the_cache(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "test.parquet"
    write_parquet(path, {"image": [picture(n) for n in range(N)], "caption": ["text"] * N})
    set_specs.open_set(str(path), cache)
    cache.rename(tmp_path / "moved")
    found = set_specs.open_set(str(path), tmp_path / "moved")
    assert bytes_of(found) == [picture(n) for n in range(N)]
    Path(found.pictures[0].address).unlink()
    assert bytes_of(set_specs.open_set(str(path), tmp_path / "moved")) == bytes_of(found)


def test_halves_of_surrogates_in_captions(tmp_path: Path, cache: Path) -> None:
    path = write_karpathy(tmp_path / "coco", [["a \ud83d cat"] for _ in range(N)])
    assert set(set_specs.open_set(str(path), cache).captions) == {"a ? cat"}


def test_names_that_are_no_utf8_are_told(tmp_path: Path, cache: Path) -> None:
    folder = write_pictures(tmp_path / "mine", [f"a/{n}.png" for n in range(N)])
    (folder / "a" / "\udcff.png").write_bytes(picture(0))
    with pytest.raises(EvaluationSetError, match="names that are no UTF-8"):
        set_specs.open_set(str(folder), cache)


def test_annotations_that_are_none_of_those_known(tmp_path: Path, cache: Path) -> None:
    for text, message in (
        ('{"images": [{"filename": "a.png"}]}', "an entry lacks 'split'. Known are Karpathy's JSON"),
        ('{"images": [{"filename": 3, "split": "test", "sentences": []}]}', "3 in place of a text"),
        ('{"images": [], "sentences": ', "can't be read as annotations"),
        ('{"images": ' + "[" * 100_000, "can't be read as annotations"),
        ('[{"images": 1}]', "can't be read as annotations .no object"),
        ('{"images": [{"split": "val"}]}', "no picture is of the split 'test'. There are val"),
    ):
        (tmp_path / "dataset_x.json").write_text(text)
        with pytest.raises(EvaluationSetError, match=message):
            set_specs.open_set(str(tmp_path), cache)


@pytest.mark.parametrize("kind", ["json", "csv", "csv without a line's end", "csv.gz", "jsonl", "parquet"])
def test_texts_without_measure_are_refused_before_they_fill_the_memory(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = write_pictures(tmp_path / "mine", [f"{n}.png" for n in range(N)])
    rows = [(f"{n % N}.png", f"text {n}") for n in range(3_000)]
    if kind == "json":
        entries = [{"filename": file, "split": "test", "sentences": [{"raw": text}]} for file, text in rows]
        (folder / "t.json").write_text(json.dumps({"images": entries}))
    elif kind == "parquet":
        files, texts = zip(*rows, strict=True)
        pq.write_table(pa.table({"file": files, "caption": texts, "scan": [b"x" * 999] * 3_000}), folder / "t.parquet")
    elif kind == "jsonl":
        lines = [json.dumps({"file": file, "caption": text}) for file, text in rows]
        (folder / "t.jsonl").write_text("\n".join(lines))
    else:
        write_table(folder / "t.csv", ["file", "caption"], rows)
        if kind == "csv.gz":
            (folder / "t.csv.gz").write_bytes(gzip.compress((folder / "t.csv").read_bytes()))
            (folder / "t.csv").unlink()
        elif kind != "csv":
            (folder / "t.csv").write_text("file,caption" + "x" * 60_000)
    (told,) = (path for path in folder.iterdir() if path.suffix != ".png")
    monkeypatch.setattr(limits, "MAX_TOLD_BYTES", 2 << 20)
    if kind not in ("json", "csv without a line's end"):  # what is not read of a parquet does not count
        assert len(set_specs.open_set(f"a={folder}", cache)) == N
    monkeypatch.setattr(limits, "MAX_TOLD_BYTES", 40_000)
    told.touch()
    with pytest.raises(EvaluationSetError, match=r"t\.\w+.* holds more than 0 MiB of texts, .*COCO's .*150 MB.*Cut it"):
        set_specs.open_set(f"a={folder}", cache)
