"""The two trainings of a scale, from a manifest in the store."""

import shutil
from pathlib import Path

from tests.unit.training_world import TINY, write_world
from veclip_core import storage
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.training import train_arm, trained
from veclip_core.samples import ShardKey
from veclip_core.scales import SCALES
from veclip_core.settings import Settings
from veclip_core.shards import Current, promote

OVERRIDES = {name: value for name, value in TINY.model_dump().items() if name not in ("weights", "seed")}


def test_a_shard_that_was_set_aside_does_not_stop_training(tmp_path: Path) -> None:
    root, scale = str(tmp_path), SCALES["sample"]
    uri, paths = write_world(tmp_path / scale.source.name)
    current = Current("mix", scale.name, "abc", "digest", 3, 1, 3, False, {"mix": "abc"}, rows_ok=96)
    shards = current.shard_set(root, scale.source.name)
    for part, path in enumerate(paths):
        key = ShardKey(part, 0)
        target = Path(shards.file(key, "parquet"))
        target.parent.mkdir(parents=True)
        shutil.copyfile(Path(uri) / path, target)
        storage.write_json(shards.file(key, "success.json"), {"identity": "x"})
    promote(root, scale.source.name, current, shards_made=3)
    chain = Chain(Settings(root=root, mlflow="off", threads=1), scale)
    reports = {arm: train_arm(chain, arm, overrides=OVERRIDES)[0] for arm in ("clip", "veclip")}  # type: ignore[arg-type]
    assert len(paths) == 2, "of the three shards of the grid, one was set aside"
    assert reports["clip"].samples == reports["veclip"].samples == TINY.steps * TINY.batch_size
    assert set(reports["clip"].choices) == {"alt"}, "the baseline reads AltText alone"
    assert set(reports["veclip"].choices) == {"alt", "vecap"}
    assert trained(chain, "veclip").partial, "a trial with other recipe fields is marked"
    assert trained(chain, "veclip").manifest_digest == trained(chain, "clip").manifest_digest
