"""Released checkpoints: read as the release's own code reads them, and nothing done that a hostile file asks for.

The weights are a stand-in's (tests/released_clip.py).
"""

import json
import math
import os
import pickle
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.released_clip import NAME, WORDS, write_folder, write_t5, write_zip
from tests.unit.clip_models import write_huggingface_clip, write_open_clip
from tests.unit.evaluation_world import openmoji
from tests.unit.training_world import draw
from veclip_core import released_checkpoints, storage
from veclip_core.captioning.engines.weights import WeightsMissing
from veclip_core.evaluation.evaluate import evaluate
from veclip_core.networks import ClipNetwork, ReleasedFiles, network_config, open_network
from veclip_core.pipeline.networks import network_named
from veclip_core.released_checkpoints import RELEASED, BadCheckpoint, unpacked
from veclip_core.released_clip import prepared
from veclip_core.settings import Settings
from veclip_core.sources.released_files import FetchError
from veclip_core.training.texts import T5Tokenizer, TokenizerMissing

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("stand-in"))


@pytest.fixture(scope="module")
def archive(stand_in: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_zip(tmp_path_factory.mktemp("zips") / f"{NAME}.zip", stand_in)


def opened(archive: Path, tmp_path: Path, t5: Path) -> ClipNetwork:
    return open_network(network_config(str(archive), str(tmp_path), ReleasedFiles(tokenizer=str(t5))))


def scalar_reference(pixels_HWC: np.ndarray, size: int) -> np.ndarray:
    """TensorFlow's `resize(bilinear, antialias=False, preserve_aspect_ratio=True)`, then the release's crop and whitening: pixel by
    pixel from their definitions. Where a pixel's centre falls is computed in float32, as TensorFlow does; the rest in float64.
    """

    def centre(number: int, length: int, resized: int) -> float:
        half = np.float32(0.5)
        return float((np.float32(number) + half) * (np.float32(length) / np.float32(resized)) - half)

    height, width = pixels_HWC.shape[:2]
    bound = (100_000, size) if height > width else (size, 100_000)
    scale = min(bound[0] / height, bound[1] / width)
    out_height, out_width = round(scale * height), round(scale * width)
    side = min(out_height, out_width)
    top, left = int((out_height - side) / 2), int((out_width - side) / 2)
    out = np.empty((3, side, side))
    for row in range(side):
        y = centre(row + top, height, out_height)
        for column in range(side):
            x = centre(column + left, width, out_width)
            for channel in range(3):
                value = 0.0
                for source_y, share_y in (
                    (math.floor(y), 1 - (y - math.floor(y))),
                    (math.floor(y) + 1, y - math.floor(y)),
                ):
                    for source_x, share_x in (
                        (math.floor(x), 1 - (x - math.floor(x))),
                        (math.floor(x) + 1, x - math.floor(x)),
                    ):
                        pixel = pixels_HWC[min(max(source_y, 0), height - 1), min(max(source_x, 0), width - 1), channel]
                        value += share_y * share_x * float(pixel)
                out[channel, row, column] = (value - MEAN[channel] * 255) / (STD[channel] * 255)
    return out


SHAPES = [(61, 47), (47, 61), (40, 40), (9, 13), (24, 24), (150, 24), (25, 131), (33, 90)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pictures_are_prepared_by_the_definition(shape: tuple[int, int]) -> None:
    pixels_HWC = np.random.default_rng(shape).integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = prepared(Image.fromarray(pixels_HWC), 24)
    assert found.shape == (3, 24, 24)
    assert found.dtype == np.float32
    assert np.abs(found - scalar_reference(pixels_HWC, 24)).max() < 1e-5


def test_pictures_are_prepared_as_torch_resizes_without_antialiasing() -> None:
    """A second, independent implementation, at the models' own sizes."""
    for (height, width), size in (((480, 640), 336), ((500, 333), 224), ((225, 224), 224)):
        pixels_HWC = np.random.default_rng(size).integers(0, 256, (height, width, 3), dtype=np.uint8)
        scale = np.float32(size) / np.float32(min(height, width))
        out = [int(np.rint(scale * np.float32(side))) for side in (height, width)]
        images = torch.from_numpy(pixels_HWC).permute(2, 0, 1)[None].float()
        resized = torch.nn.functional.interpolate(images, out, mode="bilinear", align_corners=False, antialias=False)
        top, left = ((side - size) // 2 for side in out)
        middle = resized[0, :, top : top + size, left : left + size].numpy()
        mean, std = (np.array(values, np.float32)[:, None, None] * 255 for values in (MEAN, STD))
        assert np.abs(prepared(Image.fromarray(pixels_HWC), size) - (middle - mean) / std).max() < 1e-4  # of 255 steps


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pictures_are_prepared_as_tensorflow_does(shape: tuple[int, int]) -> None:
    tf = pytest.importorskip("tensorflow")
    pixels_HWC = np.random.default_rng(shape).integers(0, 256, (*shape, 3), dtype=np.uint8)
    bound = (100_000, 24) if shape[0] > shape[1] else (24, 100_000)
    resized_HWC = tf.image.resize(pixels_HWC, bound, "bilinear", preserve_aspect_ratio=True, antialias=False).numpy()
    top, left = ((side - 24) // 2 for side in resized_HWC.shape[:2])
    middle = resized_HWC[top : top + 24, left : left + 24]
    mean, std = (np.array(values, np.float32) * 255 for values in (MEAN, STD))
    expected = ((middle - mean) / std).transpose(2, 0, 1)
    assert np.abs(prepared(Image.fromarray(pixels_HWC), 24) - expected).max() < 1e-5


def test_a_very_long_picture_takes_no_more_memory() -> None:
    found = prepared(Image.new("RGB", (60_000, 1), (255, 0, 0)), 224)
    assert found.shape == (3, 224, 224)
    assert np.ptp(found[0]) == 0


def test_a_zip_is_read_as_the_releases_own_code_reads_it(archive: Path, t5: Path, tmp_path: Path) -> None:
    """`CLIPModel` and `AutoTokenizer` on the unzipped files, as in the release's notebook; texts padded to the longest there."""
    from transformers import AutoTokenizer, CLIPModel

    pictures = [draw("red", "circle", seed) for seed in range(3)]
    network = opened(archive, tmp_path, t5)
    with zipfile.ZipFile(archive) as zipped:
        zipped.extractall(tmp_path / "by-hand")
    model = CLIPModel.from_pretrained(tmp_path / "by-hand" / NAME).eval()
    inputs = AutoTokenizer.from_pretrained(t5)(list(WORDS), return_tensors="pt", padding=True)
    pixels = torch.from_numpy(np.stack([prepared(picture, 32) for picture in pictures]))
    with torch.inference_mode():
        out = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, pixel_values=pixels)
    found = network.encode_image(pictures) @ network.encode_text(WORDS).T * network.logit_scale  # type: ignore[attr-defined]
    assert np.abs(found - out.logits_per_image.numpy()).max() < 1e-5
    assert found.std() > 0.1, "all the same would prove nothing"


def test_texts_are_lower_cased_and_pooled_at_their_end(archive: Path, t5: Path, tmp_path: Path) -> None:
    network = opened(archive, tmp_path, t5)
    low, high, marked, other = network.encode_text(["a red cat", "A RED Cat", "a red </s> cat <pad>", "a red dog"])
    assert np.allclose(low, high, atol=1e-6)
    assert np.allclose(low, marked, atol=1e-5), "an AltText's own mark must not end it"
    assert not np.allclose(low, other, atol=1e-3)
    long = network.encode_text(["a red cat " * 50])
    assert np.isfinite(long).all()


@pytest.mark.parametrize("eos_token_id", [2, 49_407])
def test_a_configuration_with_another_end_is_pooled_at_t5s(
    tmp_path: Path, t5: Path, stand_in: Path, eos_token_id: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Left to transformers the texts would be pooled at their largest id, or at their first token."""
    folder = write_folder(tmp_path / "odd", eos_token_id=eos_token_id)
    files = ReleasedFiles(tokenizer=str(t5))
    found = open_network(network_config(str(folder), str(tmp_path), files)).encode_text(WORDS)
    assert "texts are pooled at the latter" in caplog.text
    expected = open_network(network_config(str(stand_in), str(tmp_path), files)).encode_text(WORDS)
    assert np.allclose(found, expected, atol=1e-6)


def test_it_is_the_same_network_wherever_it_lies(archive: Path, stand_in: Path, t5: Path, tmp_path: Path) -> None:
    files = ReleasedFiles(tokenizer=str(t5))
    config = network_config(str(archive), str(tmp_path), files)
    assert (config.kind, config.model) == ("released", NAME)
    again = network_config(str(archive), str(tmp_path / "elsewhere"), files)
    assert again.identity() == config.identity()
    assert again.folder != config.folder
    assert archive.exists(), "one's own zip stays"
    folder = network_config(config.folder or "", str(tmp_path), files)
    assert folder.revision == config.revision
    other = write_t5(tmp_path / "t5")
    definition = json.loads((other / "tokenizer.json").read_text())
    definition["model"]["vocab"][10][1] -= 1.0
    (other / "tokenizer.json").write_text(json.dumps(definition))
    assert network_config(str(archive), str(tmp_path), ReleasedFiles(tokenizer=str(other))).revision != config.revision


def test_settings_name_it_and_evaluation_takes_it(archive: Path, t5: Path, tmp_path: Path) -> None:
    settings = Settings(root=str(tmp_path / "root"), t5_tokenizer=str(t5))
    config = network_named(str(archive), settings)
    assert config == network_named(str(archive), settings)
    assert Path(config.folder or "").is_relative_to(settings.cache_folder)
    evaluation_set = openmoji(tmp_path / "openmoji")
    evaluation = evaluate(open_network(config), NAME, evaluation_set, seed=0, checkpoint=config.revision or "")
    assert 0 <= evaluation.metric("mean_recall") <= 100


def test_a_zip_in_an_object_store_is_fetched(archive: Path, tmp_path: Path) -> None:
    storage.write_bytes(f"memory://zips/{NAME}.zip", archive.read_bytes())
    storage.write_bytes("memory://zips/cut.zip", archive.read_bytes()[:-500])
    with pytest.raises(BadCheckpoint, match="cut short"):
        unpacked("memory://zips/cut.zip", tmp_path / "cache")
    storage.write_bytes("memory://zips/cut.zip", archive.read_bytes())  # whole now: fetched anew
    assert unpacked("memory://zips/cut.zip", tmp_path / "cache").is_dir()
    folder = unpacked(f"memory://zips/{NAME}.zip", tmp_path / "cache")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    with pytest.raises(BadCheckpoint, match="use http, https or s3"):
        unpacked("simplecache::http://127.0.0.1/a.zip", tmp_path / "cache")


def test_two_zips_of_one_name_do_not_swap(
    archive: Path, t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is fetched and unpacked between the first's fetch and its unpacking."""
    cache, unpack = tmp_path / "cache", released_checkpoints._unpack
    other = write_zip(tmp_path / "zips" / f"{NAME}.zip", write_folder(tmp_path / "other", seed=1))
    first, second = f"memory://first/{NAME}.zip", f"memory://second/{NAME}.zip"
    storage.write_bytes(first, archive.read_bytes())
    storage.write_bytes(second, other.read_bytes())

    def meanwhile(fetched: Path, folder: Path) -> None:
        monkeypatch.setattr(released_checkpoints, "_unpack", unpack)
        unpacked(second, cache)
        unpack(fetched, folder)

    monkeypatch.setattr(released_checkpoints, "_unpack", meanwhile)
    for address, own in ((first, archive), (second, other)):
        with zipfile.ZipFile(own) as zipped:
            expected = zipped.read(f"{NAME}/model.safetensors")
        assert (unpacked(address, cache) / "model.safetensors").read_bytes() == expected, address
    assert not list(cache.rglob("*.zip"))


@pytest.mark.parametrize("attention", ["nobody/kernel", {"text_config": "nobody/kernel"}], ids=["both", "texts"])
def test_code_that_a_configuration_names_is_not_asked_for(
    tmp_path: Path, t5: Path, attention: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "transformers.modeling_utils.lazy_import_flash_attention", lambda kernel, **_: asked.append(kernel)
    )
    files = ReleasedFiles(tokenizer=str(t5))
    for write in (write_folder, write_huggingface_clip):
        folder = write(tmp_path / write.__name__)
        expected = open_network(network_config(str(folder), str(tmp_path), files)).encode_text(["a cat", "a dog"])
        described = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**described, "_attn_implementation": attention}))
        network = open_network(network_config(str(folder), str(tmp_path), files))
        assert np.array_equal(network.encode_text(["a cat", "a dog"]), expected)
    assert not asked


@pytest.mark.parametrize("part", ["", "text_config"])
def test_quantised_weights_are_refused_before_anything_is_asked_for(tmp_path: Path, t5: Path, part: str) -> None:
    for write in (write_folder, write_huggingface_clip):
        folder = write(tmp_path / write.__name__)
        described = json.loads((folder / "config.json").read_text())
        (described[part] if part else described)["quantization_config"] = {"quant_method": "fp8"}
        (folder / "config.json").write_text(json.dumps(described))
        with pytest.raises(WeightsMissing, match="are quantised"):
            open_network(network_config(str(folder), str(tmp_path), ReleasedFiles(tokenizer=str(t5))))


def test_a_missing_tokenizer_says_how_to_give_it(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for source in (str(tmp_path / "nowhere"), str(tmp_path), "nobody/has-this-tokenizer"):
        with pytest.raises(TokenizerMissing, match="Set VECLIP_T5_TOKENIZER to a folder"):
            network_config(str(archive), str(tmp_path), ReleasedFiles(tokenizer=source))


def test_clips_own_tokenizer_is_not_t5s(tmp_path: Path) -> None:
    with pytest.raises(TokenizerMissing, match="is no tokenizer of T5's: it pads with id"):
        T5Tokenizer.load(16, str(write_huggingface_clip(tmp_path)))


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path: Path, t5: Path, stand_in: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "small"
    folder.mkdir()
    config = json.loads((stand_in / "config.json").read_text())
    config["text_config"]["vocab_size"] = 20
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(stand_in / "model.safetensors")
    name = "text_model.embeddings.token_embedding.weight"
    save_file({**weights, name: weights[name][:20].contiguous()}, folder / "model.safetensors")
    with pytest.raises(BadCheckpoint, match="has 20 tokens, fewer than"):
        open_network(network_config(str(folder), str(tmp_path), ReleasedFiles(tokenizer=str(t5))))


def zipped_with(path: Path, entries: dict[str, bytes], links: tuple[str, ...] = ()) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = ((stat.S_IFLNK if name in links else stat.S_IFREG) | 0o644) << 16
            zipped.writestr(info, content)
    return path


@pytest.mark.parametrize(
    ("entries", "links", "message"),
    [
        ({"../outside.txt": b"x"}, (), "leads out of its folder"),
        ({"m/../../outside.txt": b"x"}, (), "leads out of its folder"),
        ({"..\\outside.txt": b"x"}, (), "leads out of its folder"),
        ({"/tmp/outside.txt": b"x"}, (), "leads out of its folder"),
        ({"m/config.json": b"/etc/passwd"}, ("m/config.json",), "is a link or device"),
        ({"m/model.safetensors": bytes(60_000_000)}, (), "would unpack to 60,"),
        ({f"m/{number}": b"" for number in range(200)}, (), "holds 202 files"),
        ({"n/config.json": b"{}"}, (), "must hold one config.json, and holds 2"),
    ],
    ids=["up", "up-inside", "backslash", "absolute", "link", "bomb", "many", "two"],
)
def test_a_hostile_zip_writes_nothing(
    tmp_path: Path, stand_in: Path, entries: dict[str, bytes], links: tuple[str, ...], message: str
) -> None:
    whole = {f"m/{name}": (stand_in / name).read_bytes() for name in ("config.json", "model.safetensors")}
    bad = zipped_with(tmp_path / "bad.zip", {**whole, **entries}, links)
    cache = tmp_path / "in" / "cache"
    with pytest.raises(BadCheckpoint, match=message):
        unpacked(str(bad), cache)
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path != bad and path.suffix != ".lock"]
    assert not written
    assert not Path("/tmp/outside.txt").exists()


def test_a_file_larger_than_the_zip_says_is_not_written_whole(tmp_path: Path, archive: Path) -> None:
    """The declared size in the central directory is a lie; the data goes on."""
    data = bytearray(archive.read_bytes())
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"model.safetensors"))
    data[at + 24 : at + 28] = (1000).to_bytes(4, "little")
    lying = tmp_path / "lying.zip"
    lying.write_bytes(bytes(data))
    with pytest.raises(BadCheckpoint, match=r"larger than the zip says|damaged or cut short"):
        unpacked(str(lying), tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.stat().st_size > 0]


def test_what_is_cut_short_or_another_thing_is_said(tmp_path: Path, archive: Path, stand_in: Path) -> None:
    cut = tmp_path / "cut.zip"
    cut.write_bytes(archive.read_bytes()[:-2000])
    flipped = tmp_path / "flipped.zip"
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 0xFF
    flipped.write_bytes(bytes(data))
    page = tmp_path / "page.zip"
    page.write_text("<html>404</html>")
    for bad in (cut, flipped, page):
        with pytest.raises(BadCheckpoint, match="damaged or cut short"):
            unpacked(str(bad), tmp_path / "cache")
    with pytest.raises(BadCheckpoint, match="there is no"):
        unpacked(str(tmp_path / "nowhere.zip"), tmp_path / "cache")
    config, weights = ((stand_in / name).read_bytes() for name in ("config.json", "model.safetensors"))
    described = json.loads(config)
    wider = json.dumps({**described, "projection_dim": 24}).encode()
    bert = json.dumps({**described, "model_type": "bert"}).encode()
    deep = json.dumps({**described, "text_config": {**described["text_config"], "num_hidden_layers": 10**9}}).encode()
    for name, entries, message in (
        (
            "a",
            {"config.json": config, "model.safetensors": weights[:-100]},
            "model.safetensors is damaged or cut short",
        ),
        ("b", {"config.json": wider, "model.safetensors": weights}, "another architecture than its config.json says"),
        (
            "c",
            {"config.json": bert, "model.safetensors": weights},
            "is another architecture: its config.json is of 'bert'",
        ),
        ("d", {"config.json": config}, "has no model.safetensors"),
        ("e", {"config.json": b"[]", "model.safetensors": weights}, "can't be read"),
        ("f", {"config.json": deep, "model.safetensors": weights}, "describes no model"),
        ("g", {"config.json": config, "pytorch_model.bin": b"x"}, "as a pickle .*weights_only=True"),
    ):
        bad = zipped_with(tmp_path / f"{name}.zip", entries)
        with pytest.raises(BadCheckpoint, match=message):
            unpacked(str(bad), tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


class Runs:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_inside_is_refused_in_every_format(tmp_path: Path, stand_in: Path, t5: Path) -> None:
    made = tmp_path / "it ran"
    hidden = {"logit_scale": Runs(made)}
    transformers_folder = write_huggingface_clip(tmp_path / "hf")
    (transformers_folder / "model.safetensors").unlink()
    open_clip_folder = write_open_clip(tmp_path / "open")
    (open_clip_folder / "open_clip_model.safetensors").unlink()
    for file in (transformers_folder / "pytorch_model.bin", open_clip_folder / "open_clip_pytorch_model.bin"):
        torch.save(hidden, file)
        with pytest.raises(WeightsMissing, match="pickle that would run code"):
            open_network(network_config(str(file.parent), str(tmp_path)))
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "config.json").write_bytes((stand_in / "config.json").read_bytes())
    torch.save(hidden, plain / "pytorch_model.bin")
    with pytest.raises(BadCheckpoint, match="which may run code"):
        open_network(network_config(str(plain), str(tmp_path), ReleasedFiles(tokenizer=str(t5))))
    assert not made.exists()
    pickle.loads(pickle.dumps(hidden))  # the trap works
    assert made.exists()


def test_code_that_a_model_brings_is_not_run(tmp_path: Path) -> None:
    made = tmp_path / "it ran"
    folder, t5 = write_huggingface_clip(tmp_path / "hf"), write_t5(tmp_path / "t5")
    code = f"import os\nos.mkdir({str(made)!r})\nclass Evil:\n    pass\n"
    for place, file, described in (
        (
            folder,
            "config.json",
            {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}},
        ),
        (
            t5,
            "tokenizer_config.json",
            {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}},
        ),
    ):
        (place / "evil.py").write_text(code)
        (place / file).write_text(json.dumps(described))
    with pytest.raises(WeightsMissing, match="holds no model that transformers knows"):
        open_network(network_config(str(folder), str(tmp_path)))
    with pytest.raises(TokenizerMissing, match="holds no tokenizer"):
        T5Tokenizer.load(16, str(t5))
    assert not made.exists()


def test_a_pickle_of_weights_alone_is_read(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for write, before, after in (
        (write_huggingface_clip, "model.safetensors", "pytorch_model.bin"),
        (write_open_clip, "open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    ):
        folder = write(tmp_path / write.__name__)
        expected = open_network(network_config(str(folder), str(tmp_path))).encode_text(["a cat", "a dog"])
        torch.save(load_file(folder / before), folder / after)
        (folder / before).unlink()
        found = open_network(network_config(str(folder), str(tmp_path))).encode_text(["a cat", "a dog"])
        assert np.array_equal(found, expected)


def test_every_released_name_is_known() -> None:
    assert {one.model for one in RELEASED.values()} == {"ViT-B-16", "ViT-L-14", "ViT-H-14"}
    assert RELEASED["vecapdfn_clip_h14_336"].image_size == 336
    assert len(RELEASED) == 7


def test_a_zip_is_fetched_once_and_only_from_where_one_may(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import functools
    import http.server
    import threading

    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *_: object) -> None:
            asked.append(self.command)

        def do_GET(self) -> None:
            if self.path.startswith("/elsewhere/"):
                self.send_response(302)
                self.send_header("Location", f"http://127.0.0.1:1/{NAME}.zip")
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                super().do_GET()

        do_HEAD = do_GET

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(archive.parent))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/{NAME}.zip"
        for address in (url, url.replace("127.0.0.1", "localhost"), url.replace("127.0.0.1", "0.0.0.0")):
            with pytest.raises(FetchError, match="inside a private network"):
                unpacked(address, tmp_path / "refused")
        assert not asked
        allowed = frozenset({f"127.0.0.1:{server.server_port}"})
        with pytest.raises(FetchError, match="inside a private network"):
            unpacked(url.replace(NAME, f"elsewhere/{NAME}"), tmp_path / "redirected", allowed)
        folder = unpacked(url, tmp_path / "cache", allowed)
        count = len(asked)
        assert unpacked(url, tmp_path / "cache", allowed) == folder
        assert len(asked) == count
        assert not list((tmp_path / "cache").rglob("*.zip")), "4 GB twice"
        monkeypatch.setattr(released_checkpoints, "MAX_ARCHIVE_BYTES", 1000)
        with pytest.raises(BadCheckpoint, match="that is no released checkpoint"):
            unpacked(f"{url}?large", tmp_path / "large", allowed)
    finally:
        server.shutdown()
        server.server_close()
