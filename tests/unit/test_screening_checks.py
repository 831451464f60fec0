"""What is looked at in pictures: each check on real pictures, and on what strangers send in their place."""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from tests.tiny_yunet import save_tiny_yunet
from tests.unit.shard_tables import KEY, made, task
from veclip_core.captioning.engines.weights import WeightsMissing
from veclip_core.download.seal import add_member
from veclip_core.pipeline.screening import checks_of, nsfw_config, thresholds_of
from veclip_core.samples import DOWNLOAD_SCHEMA
from veclip_core.screening.checks import CHOICES, ScreeningError
from veclip_core.screening.evaluation_copies import EvaluationCheck, EvaluationConfig, keep_looks
from veclip_core.screening.faces import FacesCheck, boxes_of, faces_config
from veclip_core.screening.hashes import HashCheck, codes_of
from veclip_core.screening.known import read_known
from veclip_core.screening.look import LookOperation, look_shard
from veclip_core.screening.nsfw import NsfwCheck
from veclip_core.settings import Settings, SettingsError
from veclip_core.shards import ShardSet
from veclip_core.sources.near_duplicates import NearDuplicateConfig, UnreadablePicture


def scene(seed: int, pixels: int = 200) -> Image.Image:
    """A picture with edges: forty random ellipses."""
    generator = np.random.default_rng(seed)
    image = Image.new("RGB", (pixels, pixels), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(40):
        (left, top), (width, height) = generator.uniform(0, 0.9, 2) * pixels, generator.uniform(0.05, 0.4, 2) * pixels
        draw.ellipse((left, top, left + width, top + height), fill=tuple(generator.integers(0, 256, 3).tolist()))
    return image


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def downloaded(root: Path, pictures: dict[str, bytes]) -> ShardSet:
    """A shard of `download` with its tar."""
    shards = ShardSet(str(root), "test", "download", "0" * 16)
    Path(shards.file(KEY, "tar")).parent.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    with tarfile.open(shards.file(KEY, "tar"), "w", format=tarfile.USTAR_FORMAT) as tar:
        for url_id, data in sorted(pictures.items()):
            place = {"offset": add_member(tar, f"{url_id}.jpg", data), "bytes": len(data)}
            rows.append({"url_id": url_id, "status": "ok", "sha256": hashlib.sha256(data).hexdigest(), **place})
    pq.write_table(pa.Table.from_pylist(rows, schema=DOWNLOAD_SCHEMA), shards.file(KEY, "parquet"))
    return shards


def distance(one: str, other: str) -> int:
    return int(np.unpackbits(codes_of([one])[0] ^ codes_of([other])[0]).sum())


def test_a_copy_that_was_scaled_and_saved_poorly_has_nearly_the_same_hash_and_another_picture_has_not() -> None:
    small = Image.open(io.BytesIO(jpeg(scene(1).resize((90, 90)), quality=40)))
    found = HashCheck().open()([scene(1), small, scene(2)])
    same, copy, other = found["pdq"]
    assert distance(same, copy) <= 20
    assert distance(same, other) > 60
    assert min(found["pdq_quality"]) >= 50
    assert all(len(pdq) == 64 for pdq in found["pdq"])


def test_flat_and_tiny_pictures_have_a_hash_that_says_it_is_poor() -> None:
    found = HashCheck().open()(
        [Image.new("RGB", (1, 1)), Image.new("RGB", (300, 2), "red"), Image.new("RGB", (64, 64))]
    )
    assert found["pdq_quality"] == [0, 0, 0]


def test_damaged_pictures_are_rows_with_their_reason(tmp_path: Path) -> None:
    pictures = {"a": jpeg(scene(1)), "b": jpeg(scene(2))[:400], "c": b"no picture", "d": jpeg(Image.new("RGB", (1, 1)))}
    shards = downloaded(tmp_path, {**pictures, "e": jpeg(scene(3))})
    tar = Path(shards.file(KEY, "tar"))
    tar.write_bytes(tar.read_bytes()[: pq.read_table(shards.file(KEY, "parquet"))["offset"].to_pylist()[-1] + 10])
    with LookOperation((HashCheck(),)).open() as work:
        counts = work(task(tmp_path / "out", {"download": shards}))
    assert (counts.rows_in, counts.rows_ok, dict(counts.errors)) == (5, 2, {"undecodable": 2, "missing_in_tar": 1})
    rows = {row["url_id"]: row for row in made(tmp_path / "out").to_pylist()}
    assert {url_id: row["error"] for url_id, row in rows.items()} == {
        "a": None, "b": "undecodable", "c": "undecodable", "d": None, "e": "missing_in_tar",
    }  # fmt: skip
    assert rows["b"]["pdq"] is None
    assert rows["a"]["pdq_quality"] >= 50


def test_many_pictures_go_through_in_batches_and_stay_with_their_ids(tmp_path: Path) -> None:
    def mean(pictures: Any) -> dict[str, list[float]]:
        assert len(pictures) <= 64
        return {"pdq": [str(np.asarray(one).mean().round()) for one in pictures], "pdq_quality": [1] * len(pictures)}

    shards = downloaded(tmp_path, {f"{n:03d}": jpeg(Image.new("RGB", (8, 8), (n, n, n))) for n in range(150)})
    look_shard(task(tmp_path / "out", {"download": shards}), (HashCheck(),), [mean])
    assert [(row["url_id"], float(row["pdq"])) for row in made(tmp_path / "out").to_pylist()] == [
        (f"{n:03d}", n) for n in range(150)
    ]


def test_copies_of_evaluation_pictures_are_found_by_set_and_name(tmp_path: Path) -> None:
    files = [tmp_path / f"{seed}.png" for seed in range(6)]
    for seed, file in enumerate(files):
        scene(seed).save(file)
    named = [(file.name, hashlib.sha256(file.read_bytes()).hexdigest(), file) for file in files]
    rule = NearDuplicateConfig()
    of, uri = keep_looks("drawings", named, str(tmp_path / "root"), tmp_path / "cache.npz", rule)
    check = EvaluationCheck(EvaluationConfig(sets=(of,), rule=rule), (uri,), threads=1)
    poor = Image.open(io.BytesIO(jpeg(scene(4).resize((120, 120)), quality=50)))
    tiny = Image.new("RGB", (1, 1))
    assert check.open()([poor, scene(77), tiny])["evaluation_copy"] == ["drawings/4.png", None, None]
    again, _ = keep_looks("drawings", named[::-1], str(tmp_path / "root"), tmp_path / "cache.npz", rule)
    assert again == of, "the order in which files are listed is no part of the set"
    with pytest.raises(ScreeningError, match="no pictures in the evaluation set empty"):
        keep_looks("empty", [], str(tmp_path / "root"), tmp_path / "cache.npz", rule)
    (tmp_path / "bad.png").write_bytes(files[0].read_bytes()[:500])
    with pytest.raises(UnreadablePicture, match=r"bad\.png"):
        keep_looks("bad", [("bad.png", "0", tmp_path / "bad.png")], str(tmp_path / "root"), tmp_path / "c.npz", rule)


def save_tiny_classifier(folder: Path, labels: dict[int, str]) -> Path:
    """A ViT of random weights, large enough that every picture has a score of its own."""
    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        image_size=16,
        patch_size=16,
        initializer_range=1.0,
        id2label=labels,
        label2id={name: number for number, name in labels.items()},
    )
    torch.manual_seed(0)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def test_the_score_is_the_probability_of_the_unsafe_labels_whatever_the_size_of_the_picture(tmp_path: Path) -> None:
    folder = save_tiny_classifier(tmp_path / "model", {0: "neutral", 1: "Porn", 2: "drawings", 3: "hentai"})
    config = nsfw_config(Settings(root=str(tmp_path), nsfw_model=str(folder)))
    assert config.model == "model"
    assert str(config.revision).startswith("sha256:")
    pictures = [scene(1), Image.new("RGB", (1, 1)), Image.new("RGB", (300, 40), "red")]
    scores = NsfwCheck(config, threads=1).open()(pictures)["nsfw"]
    model = ViTForImageClassification.from_pretrained(folder).eval()
    pixels = ViTImageProcessor.from_pretrained(folder)(images=pictures, return_tensors="pt")
    with torch.inference_mode():
        wanted = model(**pixels).logits.softmax(dim=-1)[:, [1, 3]].sum(dim=-1)
    assert scores == pytest.approx(wanted.tolist(), abs=1e-5)
    assert len({round(score, 4) for score in scores}) == 3, "no score of a network that sees nothing"


def test_a_classifier_that_can_not_be_used_is_said_before_any_work(tmp_path: Path) -> None:
    folder = save_tiny_classifier(tmp_path / "cats", {0: "cat", 1: "dog"})
    with pytest.raises(ScreeningError, match=r"labels are cat, dog.*id2label"):
        nsfw_config(Settings(root=str(tmp_path), nsfw_model=str(folder)))
    with pytest.raises(WeightsMissing, match="no model folder"):
        nsfw_config(Settings(root=str(tmp_path), nsfw_model=str(tmp_path / "nowhere")))
    folder = save_tiny_classifier(tmp_path / "cut", {0: "sfw", 1: "nsfw"})
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    config = nsfw_config(Settings(root=str(tmp_path), nsfw_model=str(folder)))
    with pytest.raises(ScreeningError, match="Fetch the model again"):
        NsfwCheck(config, threads=1).open()


def test_opencv_finds_the_bright_face_and_the_box_is_a_share_of_the_picture(tmp_path: Path) -> None:
    model = str(save_tiny_yunet(tmp_path / "yunet.onnx"))
    look = FacesCheck(faces_config(model), model).open()
    picture = Image.new("RGB", (200, 100))
    picture.paste((255, 255, 255), (96, 32, 128, 64))
    one, none, tiny = (
        json.loads(boxes)
        for boxes in look([picture, Image.new("RGB", (64, 48)), Image.new("RGB", (1, 1))])["face_boxes"]
    )
    # Of 32 pixels around (96, 32): OpenCV decodes an offset of 0 as the cell's own corner.
    assert [0.4, 0.16, 0.56, 0.48, 1.0] in one
    assert all(0.4 <= left < right <= 0.62 and 0.16 <= top < bottom <= 0.64 for left, top, right, bottom, _ in one)
    assert none == tiny == []


def test_boxes_are_cut_at_the_picture_s_edges_and_the_surest_is_first() -> None:
    rows = np.zeros((2, 15), np.float32)
    rows[0, [0, 1, 2, 3, 14]] = (-10, 20, 60, 200, 0.7)
    rows[1, [0, 1, 2, 3, 14]] = (50, 50, 25, 25, 0.9)
    assert boxes_of(rows, 100, 200) == [[0.5, 0.25, 0.75, 0.375, 0.9], [0.0, 0.1, 0.5, 1.0, 0.7]]
    assert boxes_of(None, 5, 5) == []


def test_a_face_model_that_is_missing_or_damaged_is_said(tmp_path: Path) -> None:
    with pytest.raises(ScreeningError, match="VECLIP_FACE_MODEL: no file"):
        faces_config(str(tmp_path / "none.onnx"))
    damaged = tmp_path / "cut.onnx"
    damaged.write_bytes(save_tiny_yunet(tmp_path / "yunet.onnx").read_bytes()[:300])
    with pytest.raises(ScreeningError, match="is no YuNet model"):
        FacesCheck(faces_config(str(damaged)), str(damaged)).open()


def test_known_pictures_are_matched_by_file_exactly_and_by_hash_within_a_distance(tmp_path: Path) -> None:
    file, pdq = hashlib.sha256(b"a file").hexdigest(), "0f" * 32
    (tmp_path / "known.txt").write_text(f"# shared in May\n\n{file.upper()}\n{pdq}\n{pdq}\n")
    known = read_known(str(tmp_path / "known.txt"))
    assert known.hashes == tuple(sorted([file, pdq]))
    near, far = "f0" * 3 + "0f" * 29, "f0" * 4 + "0f" * 28  # 24 and 32 bits away
    other = hashlib.sha256(b"another").hexdigest()
    assert known.find([file, other, other, None, other], [far, near, far, pdq, None], 31) == [
        file,
        pdq,
        None,
        pdq,
        None,
    ]
    assert known.find([other], [near], 23) == [None]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no hash"),
        ("# nothing\n\n", "holds no hash"),
        ("ab\n", "line 1: 'ab' is no hash"),
        ("g" * 64, "no hash"),
    ],
)
def test_a_list_of_known_pictures_that_can_not_be_read_is_said(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "known.txt").write_text(content)
    with pytest.raises(ScreeningError, match=said):
        read_known(str(tmp_path / "known.txt"))
    with pytest.raises(ScreeningError, match="no list of hashes"):
        read_known(str(tmp_path / "nowhere.txt"))


def test_settings_that_can_not_be_are_refused_with_what_they_may_be() -> None:
    def settings(**given: str) -> Settings:
        return Settings.from_environment({f"VECLIP_{name.upper()}": value for name, value in given.items()})

    assert checks_of(settings()) == ()
    assert checks_of(settings(screen="evaluation, duplicates")) == ("duplicates", "evaluation")
    with pytest.raises(SettingsError, match=f"there is no nudity; there are {', '.join(CHOICES)}"):
        checks_of(settings(screen="nudity"))
    with pytest.raises(SettingsError, match="VECLIP_SCREEN=nsfw needs VECLIP_NSFW_MODEL"):
        checks_of(settings(screen="nsfw"))
    assert thresholds_of(settings(screen_thresholds='{"duplicate_distance": 20}')).duplicate_distance == 20
    for wrong in ('{"duplicate_distance": 300}', '{"distance": 3}'):
        with pytest.raises(SettingsError, match=r"VECLIP_SCREEN_THRESHOLDS.*duplicate_distance"):
            thresholds_of(settings(screen_thresholds=wrong))
