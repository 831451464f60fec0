"""Styles: further captions of every sample, as data and as columns."""

import json
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.unit.shard_tables import made, put, task
from veclip_core.captioning.captioners import captioner_named
from veclip_core.captioning.describe import VlmConfig
from veclip_core.captioning.fuse import FuseConfig
from veclip_core.captioning.prompts import describe_prompt, fuse_prompt
from veclip_core.captioning.quality import judge
from veclip_core.captioning.styles import Style, style_named, styles
from veclip_core.mixing.choose import caption_of
from veclip_core.mixing.manifest import MixOperation, mix_of
from veclip_core.pipeline import engines
from veclip_core.pipeline.budget import Limit
from veclip_core.pipeline.captions import MADE_BESIDE, captions_of, make_captions, make_styles
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.manifests import make_manifest, mix_config
from veclip_core.samples import DOWNLOAD_SCHEMA, SELECT_SCHEMA
from veclip_core.scales import SCALES
from veclip_core.settings import Settings, SettingsError
from veclip_core.shards import Current, NotMadeYet, promote
from veclip_core.stage import LimitReached
from veclip_core.training.recipe import Recipe


@pytest.mark.parametrize("style", styles().values(), ids=styles())
def test_a_style_is_whole_and_its_examples_pass_its_own_check(style: Style):
    for prompt_id in (*style.fuse, *style.fuse_by_example):
        prompt = fuse_prompt(prompt_id)
        for alt_text, vec, caption in prompt.examples:
            assert judge(caption, alt_text, vec, thresholds=style.thresholds) is None, caption
    if style.describe is not None:
        assert describe_prompt(style.describe).text
    assert style.name != "control", "the control's captions lie under that name"


def test_a_style_changes_prompts_and_thresholds_and_no_model():
    captioner = captioner_named("default")
    dense = style_named("dense")
    plain, styled = engines.fusing_config(captioner), engines.fusing_config(captioner, dense)
    assert isinstance(styled, FuseConfig)
    assert styled.engine == plain.engine
    assert [prompt.id for prompt in styled.prompts] == list(dense.fuse)
    assert engines.select_config_for(captioner, dense).thresholds == dense.thresholds
    described = engines.describing_config(captioner, dense)
    assert isinstance(described, VlmConfig)
    assert (described.prompt.id, described.sampling.max_tokens) == (dense.describe, dense.describe_tokens)
    assert engines.describing_config(captioner, style_named("short")) == engines.describing_config(captioner)
    assert engines.select_config_for(captioner) != engines.select_config_for(captioner, style_named("short"))


def test_the_stand_in_describes_in_one_way_only():
    assert engines.own_description(captioner_named("default"), style_named("dense"))
    assert not engines.own_description(captioner_named("sample"), style_named("dense"))
    mixed = mix_config(SCALES["3m"], Settings(styles=("short", "dense")))
    assert mixed.columns[3:] == ("vecap_short", "vecap_dense", "vec_dense")
    assert [column.name for column in mixed.further if column.text == "status"] == [
        "vecap_short_status",
        "vecap_dense_status",
    ]
    assert mix_config(SCALES["sample"], Settings(styles=("dense",))).columns[3:] == ("vecap_dense",)


def test_what_can_not_be_made_is_said_before_it_is_begun():
    with pytest.raises(SettingsError, match=r"no caption style 'long'; there are short, dense"):
        engines.styles_of(SCALES["sample"], Settings(styles=("long",)))
    with pytest.raises(SettingsError, match="in one pass there are none"):
        make_captions(Chain(Settings(styles=("short",), captioner="one-pass"), SCALES["sample"]))
    with pytest.raises(SettingsError, match="no caption style 'long'"):
        captions_of(Chain(Settings(), SCALES["sample"]), "long")
    with pytest.raises(ValidationError, match="experiment's control"):
        Style(name="control", note="", fuse=("fuse-short-own-v1",), fuse_by_example=("fuse-short-by-example-v2",))


def test_styles_are_columns_of_the_same_rows(tmp_path: Path):
    def captions(folder: str, vec: str, texts: list[str]):
        rows = [
            {"sample_id": f"s{n}", "url_id": f"u{n}", "alt_text": "Tea", "vec": vec, "vecap": text, "status": "fused"}
            for n, text in enumerate(texts)
        ]
        return put(tmp_path / folder, "select", SELECT_SCHEMA, rows)

    pictures = [{"url_id": f"u{n}", "status": "ok", "offset": n, "bytes": 2} for n in range(2)]
    inputs = {
        "download": put(tmp_path, "download", DOWNLOAD_SCHEMA, pictures),
        "select": captions("own", "a cup", ["Tea in a cup", "A cup, tea"]),
        "vecap_dense": captions("dense", "a white cup on a table", ["Tea in a white cup on a table", "Tea, a cup"]),
    }
    config = mix_of([style_named("dense")], with_own_description=["dense"])
    with MixOperation(config).open() as work:
        counts = work(task(tmp_path / "mixed", inputs))
    first, _ = made(tmp_path / "mixed").to_pylist()
    assert (first["vec"], first["vecap"]) == ("a cup", "Tea in a cup")
    assert first["vecap_dense_status"] == "fused"
    assert (first["vec_dense"], first["vecap_dense"]) == ("a white cup on a table", "Tea in a white cup on a table")
    assert counts.extra["with_vecap_dense"] == 2
    text, source, fell_back = caption_of(first, 0, 0, {"vecap_dense": 1.0})
    assert (text, source, fell_back) == ("Tea in a white cup on a table", "vecap_dense", False)
    lacking = {**inputs, "vecap_dense": captions("lacking", "", ["Tea in a white cup"])}
    with MixOperation(config).open() as work, pytest.raises(ValueError, match=r"1 samples of .* column vecap_dense"):
        work(task(tmp_path / "lacking-mixed", lacking))


def test_training_draws_from_styles_too():
    assert Recipe(weights={"alt": 0.5, "vecap_short": 0.5}).weights == {"alt": 0.5, "vecap_short": 0.5}
    with pytest.raises(ValidationError, match="unknown caption sources"):
        Recipe(weights={"vecap-short": 1.0})


def test_a_style_of_other_captions_is_not_joined(tmp_path: Path):
    """The sample_ids would match all the same."""
    chain = Chain(Settings(root=str(tmp_path), styles=("short",)), SCALES["sample"])
    lineage = {"list_urls": "l", "download": "d", "describe": "v", "check": "h", "fuse": "f", "select": "s"}
    promote(chain.root, chain.source, Current("select", "sample", "s", "digest", 1, 1, 1, False, lineage, 9), 1)
    with pytest.raises(NotMadeYet, match="VECLIP_STYLES=short"):
        captions_of(chain, "short")
    styled = {**lineage, "fuse": "g", "select": "t", MADE_BESIDE: "older"}
    promote(chain.root, chain.source, Current("select", "sample-short", "t", "digest", 1, 1, 1, False, styled, 9), 1)
    with pytest.raises(NotMadeYet, match="made beside other captions"):
        make_manifest(chain)


def put_marker(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"sha256": "0" * 64, "identity": "0" * 64}))


def test_styles_are_made_within_the_limit_of_the_captions_before_them(tmp_path: Path):
    """An hour for all of it: what the scale's own captions took is gone when the styles begin."""
    chain = Chain(Settings(root=str(tmp_path), styles=("short",), max_hours=1.0), SCALES["sample"])
    lineage = {"list_urls": "l", "download": "d", "describe": "v", "check": "h", "fuse": "f", "select": "s"}
    promote(chain.root, chain.source, Current("select", "sample", "s", "digest", 1, 1, 1, False, lineage, 9), 1)
    for stage, identity in lineage.items():
        put_marker(tmp_path / chain.source / stage / identity / "part-00000" / "00000.success.json")
    begun_long_ago = Limit(hours=1.0, cost=None, device_hour_price=0.0, started=time.monotonic() - 3601)
    with pytest.raises(LimitReached, match="fuse: the limit is reached with 0 of 1 shards done"):
        make_styles(chain, limit=begun_long_ago)
