"""Captions that were made elsewhere and came with the URL list, such as Apple's released VeCap: nothing is described or fused.

`ReleasedOperation` stands in the place of `fuse`, the released caption being the one candidate; `check` and `select` are the same.
How faithful such a caption is can't be checked, there being no VeC to compare with: it is judged alone, as a description is.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from veclip_core.captioning.check import CheckConfig, Judge, WordList, judge_of, refusals
from veclip_core.captioning.fuse import Candidate, table_of
from veclip_core.captioning.quality import VecThresholds, judge_vec
from veclip_core.config import Config
from veclip_core.stage import RowCounts, ShardTask

RELEASED_ID = "released"
"""In the place of a model and of a prompt."""
NO_CAPTION = "no_released_caption"


class ReleasedConfig(Config):
    """What decides which released captions stand."""

    thresholds: VecThresholds = VecThresholds(script=None)
    """What a caption must satisfy by itself; one that does not is rejected for good."""
    check: CheckConfig = CheckConfig()
    """Which captions are refused, as the AltTexts and VeCs of other captioners are; no model judges them."""

    @property
    def ethics(self) -> WordList | None:
        return self.check.ethics if isinstance(self.check.ethics, WordList) else None


@dataclass(frozen=True)
class ReleasedOperation:
    """Inputs: `list_urls` (the caption) and `check` (which samples have a picture)."""

    name: ClassVar[str] = "fuse"
    needs_engine: ClassVar[bool] = False
    config: ReleasedConfig = field(default_factory=ReleasedConfig)

    @contextmanager
    def open(self) -> Iterator[Callable[[ShardTask], RowCounts]]:
        judge = judge_of(self.config.ethics)
        yield lambda task: released_shard(task, self.config, judge)


def released_shard(task: ShardTask, config: ReleasedConfig, judge: Judge) -> RowCounts:
    """Write the released caption of each sample with a picture as its candidate."""
    with_picture = {row["sample_id"] for row in task.read("check", ["sample_id"]).to_pylist()}
    columns = ["url_id", "sample_id", "released_caption", "status"]
    samples = [
        row
        for row in task.read("list_urls", columns).to_pylist()
        if row["status"] == "ok" and row["sample_id"] in with_picture
    ]
    texts = [" ".join((sample["released_caption"] or "").split()) for sample in samples]
    refused = refusals(texts, config.check, judge)
    made = []
    for text in texts:
        reason = refused.get(text) or judge_vec(text, "stop", config.thresholds)
        made.append([Candidate(text, "stop", 0, 0, RELEASED_ID, reason)] if text else [])
    task.write(table_of(samples, made, RELEASED_ID))
    missing = sum(not candidates for candidates in made)
    return RowCounts(
        rows_in=len(samples),
        rows_ok=len(samples) - missing,
        errors={NO_CAPTION: missing} if missing else {},
        fallbacks=sum(bool(candidates) and candidates[0].rejected is not None for candidates in made),
        extra={"candidates": len(samples) - missing},
    )
