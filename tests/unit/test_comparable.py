"""The report compares arms that differ in their captions alone."""

from typing import Any

import pytest

from veclip_core.pipeline.evaluation import require_comparable
from veclip_core.pipeline.training import Arm, Trained
from veclip_core.shards import NotMadeYet

SAME = {"manifest_digest": "m", "steps": 300, "batch_size": 256, "parameters": 10, "precision": "bf16"}


def training(arm: Arm, **other: Any) -> Trained:
    return Trained("sample", arm, 0, "identity", "checkpoint", None, "m", False, {**SAME, **other})


def test_equal_settings_are_comparable() -> None:
    require_comparable([training("clip"), training("veclip")])


@pytest.mark.parametrize(("what", "value"), [("steps", 50), ("manifest_digest", "older"), ("batch_size", 64)])
def test_other_settings_are_refused_and_the_command_that_mends_it_is_named(what: str, value: Any) -> None:
    with pytest.raises(NotMadeYet, match=rf"{what} is .*--select clip_sample,veclip_sample"):
        require_comparable([training("clip", **{what: value}), training("veclip")])
