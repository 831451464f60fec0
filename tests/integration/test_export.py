"""A manifest as WebDataset: every sample once with its texts, read by open_clip's own trainer."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import webdataset

from tests.conftest import FOREIGN
from tests.integration.test_released import PICTURES, SCALE, origin, rows_of, settings_in  # noqa: F401
from veclip_core.mixing.removals import Removals
from veclip_core.pipeline.captions import make_captions
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.export import Exported, make_export
from veclip_core.pipeline.manifests import make_manifest
from veclip_core.pipeline.removal import remove
from veclip_core.training.manifest_table import ColumnsMissing
from veclip_core.training.recipe import MIXED

TINY_MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
TRAIN = """
import sys, open_clip
from open_clip_train.main import main
open_clip.add_model_config(sys.argv[1])
main(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def chain(origin: str, tmp_path_factory: pytest.TempPathFactory) -> Chain:  # noqa: F811
    made = Chain(settings_in(tmp_path_factory.mktemp("export"), origin), SCALE)
    made.raw_urls()
    made.shards()
    make_captions(made)
    return made


@pytest.fixture(scope="module")
def manifest(chain: Chain) -> str:
    return make_manifest(chain)[1]


@pytest.fixture(scope="module")
def exported(chain: Chain, manifest: str) -> Exported:
    return make_export(chain, MIXED)


def tars_of(exported: Exported) -> list[str]:
    return sorted(webdataset.shardlists.expand_urls(exported.tars))


def test_every_sample_is_there_once_with_its_texts(chain: Chain, manifest: str, exported: Exported) -> None:
    rows, found = rows_of(manifest), {}
    for sample in webdataset.WebDataset(tars_of(exported), shardshuffle=False):
        assert sample["__key__"] not in found
        found[sample["__key__"]] = sample
    assert found.keys() == rows.keys()
    for key, row in rows.items():
        told = json.loads(found[key]["json"])
        assert {name: told[name] for name in ("alt", "vecap", "url_id")} == {
            name: row[name] for name in ("alt", "vecap", "url_id")
        }
        assert found[key]["txt"].decode() in (row["alt"], row["vecap"])
        tar = Path(chain.root, chain.source, row["tar"])
        assert found[key]["jpg"] == tar.read_bytes()[row["offset"] : row["offset"] + row["bytes"]]
    drawn = {found[key]["txt"].decode() == row["vecap"] for key, row in rows.items()}
    assert drawn == {True, False}
    assert make_export(chain, MIXED).report.shards_made_now == 0
    with pytest.raises(
        ColumnsMissing, match="manifest_tiny has no texts vecap_short: it has alt, vec, vecap, template"
    ):
        make_export(chain, {"vecap_short": 1.0})


def test_open_clips_own_trainer_reads_it(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "tiny.json").write_text(json.dumps(TINY_MODEL))
    options = {
        "dataset-type": "webdataset", "train-data": exported.tars, "train-num-samples": PICTURES, "model": "tiny",
        "batch-size": 8, "epochs": 1, "workers": 1, "warmup": 1, "precision": "fp32", "device": "cpu",
        "logs": tmp_path, "name": "run", "log-every-n-steps": 1,
    }  # fmt: skip
    arguments = [f"--{name}={value}" for name, value in options.items()]
    trained = subprocess.run(
        [sys.executable, "-c", TRAIN, tmp_path / "tiny.json", *arguments],
        capture_output=True, text=True, timeout=200, cwd=tmp_path, env=FOREIGN,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert (tmp_path / "run" / "checkpoints" / "epoch_1.pt").exists()
    assert "Handling webdataset error" not in trained.stderr
    assert f"/{PICTURES} (" in trained.stderr, "batches of the export's samples"


def test_what_is_removed_is_blank_in_it_too(chain: Chain, manifest: str, exported: Exported) -> None:
    key, row = next(iter(rows_of(manifest).items()))
    (of_sample,) = [tar for tar in tars_of(exported) if holds(tar, key)]
    remove(chain.root, chain.source, Removals(frozenset({row["url_id"]})))
    with tarfile.open(of_sample) as tar:
        says = {member.name: bool(tar.extractfile(member).read().strip(b"\0")) for member in tar}  # type: ignore[union-attr]
    assert [name.partition(".")[0] for name, something in says.items() if not something] == [key] * 3
    again = make_export(chain, {"vecap": 1.0})
    assert again.report.errors == {"removed": 1}
    assert not any(holds(tar, key) for tar in tars_of(again))


def holds(tar: str, key: str) -> bool:
    with tarfile.open(tar) as file:
        return f"{key}.jpg" in file.getnames()
