"""The report compares arms that differ in their captions alone."""

from pathlib import Path
from typing import Any

import pytest

from veclip_core.pipeline.data import Chain
from veclip_core.pipeline.evaluation import require_comparable, require_current
from veclip_core.pipeline.training import Arm, Trained
from veclip_core.scales import SCALES
from veclip_core.settings import Settings
from veclip_core.shards import Current, NotMadeYet, promote

SAME = {"manifest_digest": "m", "steps": 300, "batch_size": 256, "parameters": 10, "precision": "bf16"}


def training(arm: Arm, **other: Any) -> Trained:
    return Trained("sample", arm, 0, "identity", "checkpoint", None, "m", False, {**SAME, **other})


def test_equal_settings_are_comparable() -> None:
    require_comparable([training("clip"), training("veclip")])


@pytest.mark.parametrize(("what", "value"), [("steps", 50), ("manifest_digest", "older"), ("batch_size", 64)])
def test_other_settings_are_refused_and_the_command_that_mends_it_is_named(what: str, value: Any) -> None:
    with pytest.raises(NotMadeYet, match=rf"{what} is .*--select clip_sample,veclip_sample"):
        require_comparable([training("clip", **{what: value}), training("veclip")])


def test_a_report_is_of_the_manifest_that_was_trained_on(tmp_path: Path) -> None:
    """Else its data card and examples would be of another one, made since."""
    chain = Chain(Settings(root=str(tmp_path)), SCALES["sample"])
    promote(chain.root, chain.source, Current("mix", "sample", "i", "m", 1, 1, 1, False, {}, rows_ok=9), shards_made=1)
    require_current(chain, [training("clip")])
    promote(
        chain.root, chain.source, Current("mix", "sample", "i", "newer", 1, 1, 1, False, {}, rows_ok=9), shards_made=1
    )
    with pytest.raises(NotMadeYet, match=r"trained on another manifest.*--select clip_sample"):
        require_current(chain, [training("clip")])
