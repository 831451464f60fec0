"""One pass in place of two: a vision-language model sees the picture and its AltText, and rewrites the AltText.

`Undescribed` stands in the place of `describe`, `RewriteOperation` in that of `fuse`; `check` and `select` are the same. There is
no VeC to compare the answer with: of its faithfulness only the AltText's part is checked.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from veclip_core.captioning.check import usable_texts
from veclip_core.captioning.describe import decoded_ahead, pictures_in
from veclip_core.captioning.engines.base import Engine, EngineConfig, EngineRuntime, Request, Sampling, opened
from veclip_core.captioning.fuse import Candidate, counts_of_fusion, table_of
from veclip_core.captioning.prompts import RewritePrompt, rewrite_prompt
from veclip_core.captioning.quality import QualityThresholds, judge
from veclip_core.config import Config
from veclip_core.samples import DESCRIBE_SCHEMA, UNDECODABLE
from veclip_core.screening.verdicts import admitted
from veclip_core.stage import RowCounts, ShardTask

ONE_PASS = QualityThresholds(min_vec_share=0.0, max_added_words=1_000, min_alt_share=0.3)
"""What the picture adds can't be checked against a VeC, and what it contradicts may go."""


class UndescribedConfig(Config):
    """Nothing decides an empty description."""


@dataclass(frozen=True)
class Undescribed:
    """Input: `download`, and `screen` where pictures are screened. A row without a VeC for each good picture."""

    name: ClassVar[str] = "describe"
    needs_engine: ClassVar[bool] = False
    config: UndescribedConfig = field(default_factory=UndescribedConfig)

    @contextmanager
    def open(self) -> Iterator[Callable[[ShardTask], RowCounts]]:
        yield _undescribed


def _undescribed(task: ShardTask) -> RowCounts:
    pictures, refused = admitted(task, [])
    blank = dict.fromkeys(DESCRIBE_SCHEMA.names) | {"vec": "", "detail": "{}"}
    rows = [blank | {"url_id": row["url_id"], "status": "ok"} for row in pictures]
    rows += [blank | {"url_id": url_id, "status": "error", "error": reason} for url_id, reason in refused.items()]
    task.write(pa.Table.from_pylist(rows, DESCRIBE_SCHEMA))
    return RowCounts(len(rows), len(pictures), dict(Counter(refused.values())))


class RewriteConfig(Config):
    """What decides the candidates."""

    engine: EngineConfig
    """The vision-language model."""
    prompt: RewritePrompt = rewrite_prompt("rewrite-own-v1")
    """What it is asked."""
    sampling: Sampling = Sampling(max_tokens=96)
    """How the answers are drawn."""
    thresholds: QualityThresholds = ONE_PASS
    """What is noted as rejected."""
    max_side_px: int = Field(1024, ge=32)
    """Larger pictures are scaled down to this first."""


@dataclass(frozen=True)
class RewriteOperation:
    """Inputs: `list_urls` (AltText), `download` (the picture), `check` (what is refused); `screen` where pictures are screened."""

    name: ClassVar[str] = "fuse"
    config: RewriteConfig
    runtime: EngineRuntime = field(default_factory=EngineRuntime)

    @contextmanager
    def open(self) -> Iterator[Callable[[ShardTask], RowCounts]]:
        with opened(self.config.engine, self.runtime) as engine:
            yield lambda task: rewrite_shard(task, engine, self.config)


def rewrite_shard(task: ShardTask, engine: Engine, config: RewriteConfig) -> RowCounts:
    """Write the candidates of each sample with a picture. A picture with five AltTexts is read once and shown five times."""
    checked = {row["sample_id"]: row for row in task.read("check").to_pylist()}
    listed = task.read("list_urls", ["url_id", "sample_id", "alt_text", "status"]).to_pylist()
    samples_of: dict[str, list[dict[str, Any]]] = {}
    for row in listed:
        if row["status"] == "ok" and row["sample_id"] in checked:
            samples_of.setdefault(row["url_id"], []).append(row)
    pictures, _ = admitted(task, ["offset", "bytes"])
    places = {row["url_id"]: (row["offset"], row["bytes"]) for row in pictures if row["url_id"] in samples_of}
    shown: list[dict[str, Any]] = []
    pairs: list[tuple[str, str]] = []
    unseen: list[dict[str, Any]] = []

    def requests(tar: Any) -> Iterator[Request]:
        for url_id, image in decoded_ahead(pictures_in(tar, places), config.max_side_px):
            if image is None:
                unseen.extend(samples_of[url_id])
                continue
            for sample in samples_of[url_id]:
                alt_text, _ = usable_texts(sample["alt_text"] or "", "", checked[sample["sample_id"]])
                shown.append(sample)
                pairs.append((alt_text, ""))
                yield config.prompt.request(alt_text, image)

    with task.inputs["download"].open(task.key, "tar") as tar:
        answers = engine.generate(requests(tar), config.sampling)
    rewritten = []
    for (alt_text, _), made in zip(pairs, answers, strict=True):
        found = []
        for one in made:
            text = " ".join(one.text.split())
            reason = judge(text, alt_text, "", one.finish_reason, config.thresholds, config.prompt.own_texts)
            found.append(
                Candidate(text, one.finish_reason, one.prompt_tokens, one.completion_tokens, config.prompt.id, reason)
            )
        rewritten.append(found)
    # What can't be opened gets a candidate that says so: `select` makes an error of it.
    failed = [[Candidate("", UNDECODABLE, 0, 0, config.prompt.id, UNDECODABLE)] for _ in unseen]
    task.write(table_of([*shown, *unseen], [*rewritten, *failed], engine.model_id))
    counts = counts_of_fusion(pairs, rewritten, [checked[sample["sample_id"]] for sample in shown])
    errors = {**counts.errors, UNDECODABLE: len(unseen)} if unseen else counts.errors
    return replace(counts, rows_in=counts.rows_in + len(unseen), errors=errors)
