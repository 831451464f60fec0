"""The report compares arms that differ in their captions alone."""

from pathlib import Path
from typing import Any

import pytest

from veclip_core import storage
from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.evaluation import require_comparable, require_current
from veclip_core.pipeline.manifests import make_control_manifest
from veclip_core.pipeline.trained import Trained
from veclip_core.scales import SCALES
from veclip_core.settings import Settings
from veclip_core.shards import Current, NotMadeYet, promote

SAME = {"manifest_digest": "m", "steps": 300, "batch_size": 256, "parameters": 10, "precision": "bf16"}


def make_current(chain: Chain, label: str, digest: str, inputs: dict[str, str], rows: int = 9) -> None:
    current = Current("mix", label, "i", digest, 1, 1, 1, False, inputs, rows_ok=rows)
    promote(chain.root, chain.source, current, shards_made=1)


def training(arm: str, **other: Any) -> Trained:
    return Trained("sample", arm, 0, "identity", "checkpoint", None, "m", False, {**SAME, **other})


def test_equal_settings_are_comparable() -> None:
    require_comparable([training("clip"), training("veclip")])


@pytest.mark.parametrize(("what", "value"), [("steps", 50), ("precision", "fp32"), ("batch_size", 64)])
def test_other_settings_are_refused_and_the_command_that_mends_it_is_named(what: str, value: Any) -> None:
    with pytest.raises(NotMadeYet, match=rf"{what} is .*--select clip_sample,veclip_sample"):
        require_comparable([training("clip", **{what: value}), training("veclip")])


def test_a_report_is_of_the_manifest_that_was_trained_on(tmp_path: Path) -> None:
    """Else its data card and examples would be of another one, made since."""
    chain = Chain(Settings(root=str(tmp_path)), SCALES["sample"])
    make_current(chain, "sample", "m", {"fuse": "f", "mix": "i"})
    require_current(chain, [training("clip")])
    make_current(chain, "sample", "newer", {"fuse": "f", "mix": "i"})
    with pytest.raises(NotMadeYet, match=r"trained on another manifest.*--select clip_sample"):
        require_current(chain, [training("clip")])


def test_the_control_is_of_the_same_captions(tmp_path: Path) -> None:
    """Its manifest is a file of its own: that of an older prompt must not stand beside the new arms."""
    chain = Chain(Settings(root=str(tmp_path)), SCALES["sample"])
    make_current(chain, "sample", "m", {"fuse": "f", "mix": "i"})
    with pytest.raises(NotMadeYet, match="manifest_control_sample"):
        require_current(chain, [training("clip"), training("control")])
    make_current(chain, "sample-control", "m", {"fuse": "f", "control": "c", "mix": "j"})
    require_current(chain, [training("clip"), training("control")])
    make_current(chain, "sample", "m", {"fuse": "f", "vecap_short": "s", "mix": "i"})
    require_current(chain, [training("clip"), training("control")])  # a style beside it changes nothing
    for fuse, rows in (("older", 9), ("f", 8)):
        make_current(chain, "sample-control", "m", {"fuse": fuse, "control": "c", "mix": "j"}, rows)
        with pytest.raises(NotMadeYet, match=r"--select manifest_sample,vecap_control_sample,manifest_control_sample"):
            require_current(chain, [training("clip"), training("control")])


@pytest.mark.parametrize(
    ("stage", "label", "older", "named"),
    [
        ("mix", "sample", {"fuse": "older"}, "--select manifest_sample"),
        ("select", "sample-control", {"describe": "older"}, "other descriptions.*--select vecap_control_sample"),
        ("select", "sample-control", {"fuse": "of another model"}, "other settings.*--select vecap_control_sample"),
    ],
)
def test_a_control_is_not_joined_with_captions_it_was_not_made_for(
    tmp_path: Path, stage: str, label: str, older: dict[str, str], named: str
) -> None:
    """The sample_ids would still match, so that nobody would notice."""
    chain = Chain(Settings(root=str(tmp_path)), SCALES["sample"])
    inputs = {"list_urls": "l", "download": "d", "describe": "v", "check": "h", "fuse": "f", "select": "s"}
    for of_stage, identity, model in (
        ("check", "h", ""),
        ("fuse", "f", "a"), ("fuse", "g", "a"), ("fuse", "of another model", "b"), ("select", "s", ""), ("select", "t", ""),
    ):  # fmt: skip
        uri = storage.join(chain.root, chain.source, of_stage, identity, "config.json")
        storage.write_json(uri, {"config": {"model": model}})
    for of_stage, of_label, lineage in (
        ("select", "sample", inputs),
        ("mix", "sample", {**inputs, "mix": "i"}),
        ("select", "sample-control", {**inputs, "fuse": "g", "select": "t", "shuffle": "x"}),
    ):
        made_from = {**lineage, **(older if (of_stage, of_label) == (stage, label) else {})}
        current = Current(of_stage, of_label, "i", "digest", 1, 1, 1, False, made_from, rows_ok=9)
        promote(chain.root, chain.source, current, shards_made=1)
    with pytest.raises(NotMadeYet, match=named):
        make_control_manifest(chain)


def test_what_trains_an_arm_is_named() -> None:
    with pytest.raises(NotMadeYet, match=r"--select arms_sample,clip_sample"):
        require_comparable([training("vec_only", steps=50), training("clip")])
