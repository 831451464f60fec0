"""The stage `fuse`: a language model makes one sentence of AltText and VeC.

Each prompt of the configuration is one round. The first answers every sample that has both texts, each further one only the
samples whose answers so far were all rejected. Every candidate is kept; which one stands is decided by `select`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa

from veclip_core.captioning.captioners import SMALL_FUSER
from veclip_core.captioning.check import usable_texts
from veclip_core.captioning.engines.base import Engine, EngineConfig, EngineRuntime, Sampling, opened
from veclip_core.captioning.engines.weights import SMOLLM2
from veclip_core.captioning.prompts import VICUNA_TEMPLATE, FusePrompt, fuse_prompt
from veclip_core.captioning.quality import QualityThresholds, judge
from veclip_core.captioning.styles import Style
from veclip_core.config import Config
from veclip_core.samples import BLOCKED, FUSE_SCHEMA
from veclip_core.stage import RowCounts, ShardTask


class FuseConfig(Config):
    """What decides the candidates."""

    engine: EngineConfig = EngineConfig()
    """The language model."""
    prompts: tuple[FusePrompt, ...] = (fuse_prompt("fuse-sentence-v2"), fuse_prompt("fuse-title-first-v3"))
    """One a round, in this order."""
    sampling: Sampling = Sampling()
    """How the answers are drawn."""
    thresholds: QualityThresholds = QualityThresholds()
    """What sends a sample to the next round."""


def fuse_config_for(fuser: str, style: Style | None = None) -> FuseConfig:
    """The configuration for a fuser's name: `smollm2`, or a model's path or hub id, which gets the reconstructed prompt.

    With a style its prompts, its length and its thresholds.
    """
    small = fuser in (SMALL_FUSER, SMOLLM2)
    config = FuseConfig()
    if not small:
        template = VICUNA_TEMPLATE if "vicuna" in fuser.lower() else None
        config = FuseConfig(
            engine=EngineConfig(model=fuser, chat_template=template),
            prompts=(fuse_prompt("fuse-reconstructed-v1"), fuse_prompt("fuse-capsfusion-v1")),
            sampling=Sampling(max_tokens=96),
        )
    if style is None:
        return config
    prompts = style.fuse_by_example if small else style.fuse
    return FuseConfig(
        engine=config.engine,
        prompts=tuple(fuse_prompt(prompt) for prompt in prompts),
        sampling=Sampling(max_tokens=style.fuse_tokens, stop=("\n",) if small else style.stop),
        thresholds=style.thresholds,
    )


@dataclass(frozen=True)
class Candidate:
    """One fused caption and what became of it."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    prompt_id: str
    rejected: str | None


def fuse_rows(pairs: Sequence[tuple[str, str]], engine: Engine, config: FuseConfig) -> list[list[Candidate]]:
    """The candidates of each (AltText, VeC), in the order of the rounds; none where either text is empty.

    Equal pairs are asked once.
    """
    asked = sorted({pair for pair in pairs if pair[0].strip() and pair[1].strip()})
    candidates: dict[tuple[str, str], list[Candidate]] = {pair: [] for pair in asked}
    for prompt in config.prompts:
        if not asked:
            break
        answers = engine.generate([prompt.request(alt_text, vec) for alt_text, vec in asked], config.sampling)
        for (alt_text, vec), generations in zip(asked, answers, strict=True):
            for made in generations:
                text = " ".join(made.text.split())
                reason = judge(text, alt_text, vec, made.finish_reason, config.thresholds, prompt.own_texts)
                candidates[alt_text, vec].append(
                    Candidate(text, made.finish_reason, made.prompt_tokens, made.completion_tokens, prompt.id, reason)
                )
        asked = [pair for pair in asked if all(candidate.rejected for candidate in candidates[pair])]
    return [candidates.get(pair, []) for pair in pairs]


@dataclass(frozen=True)
class FuseOperation:
    """Inputs: `list_urls` (AltText), `describe` (VeC, one row a good picture) and `check` (what of both is refused)."""

    name: ClassVar[str] = "fuse"
    config: FuseConfig = field(default_factory=FuseConfig)
    runtime: EngineRuntime = field(default_factory=EngineRuntime)

    @contextmanager
    def open(self) -> Iterator[Callable[[ShardTask], RowCounts]]:
        with opened(self.config.engine, self.runtime) as engine:
            yield lambda task: fuse_shard(task, engine, self.config)


def fuse_shard(task: ShardTask, engine: Engine, config: FuseConfig) -> RowCounts:
    """Write the shard's candidates. A sample is ok when it has one; it is a fallback when all of its candidates are rejected."""
    described = task.read("describe", ["url_id", "vec", "error"]).to_pylist()
    vecs = {row["url_id"]: row["vec"] or "" for row in described if row["error"] not in BLOCKED}
    listed = task.read("list_urls", ["url_id", "sample_id", "alt_text", "status"]).to_pylist()
    samples = [row for row in listed if row["status"] == "ok" and row["url_id"] in vecs]
    checked = {row["sample_id"]: row for row in task.read("check").to_pylist()}
    pairs = [usable_texts(row["alt_text"] or "", vecs[row["url_id"]], checked.get(row["sample_id"])) for row in samples]
    fused = fuse_rows(pairs, engine, config)
    task.write(table_of(samples, fused, engine.model_id))
    refused = [checked.get(row["sample_id"], {}) for row in samples]
    return counts_of_fusion(pairs, fused, refused)


def table_of(samples: Sequence[Mapping[str, Any]], fused: Sequence[Sequence[Candidate]], model: str) -> pa.Table:
    """The candidates of a shard's samples as rows of `fuse`, in the order of ids."""
    rows = [
        {
            "sample_id": sample["sample_id"],
            "url_id": sample["url_id"],
            "candidate": number,
            "text": candidate.text,
            "finish_reason": candidate.finish_reason,
            "prompt_tokens": candidate.prompt_tokens,
            "completion_tokens": candidate.completion_tokens,
            "model": model,
            "prompt_id": candidate.prompt_id,
            "rejected": candidate.rejected,
        }
        for sample, candidates in zip(samples, fused, strict=True)
        for number, candidate in enumerate(candidates)
    ]
    rows.sort(key=lambda row: (row["url_id"], row["sample_id"], row["candidate"]))
    return pa.Table.from_pylist(rows, schema=FUSE_SCHEMA)


def counts_of_fusion(
    pairs: Sequence[tuple[str, str]],
    fused: Sequence[Sequence[Candidate]],
    refused: Sequence[Mapping[str, str | None]],
) -> RowCounts:
    """The sums of a shard: a sample is ok when it has a candidate, a fallback when all of them are rejected."""
    errors: Counter[str] = Counter()
    extra: Counter[str] = Counter(
        distinct_pairs=len({pair for pair, candidates in zip(pairs, fused, strict=True) if candidates})
    )
    for (alt_text, _), candidates, checked in zip(pairs, fused, refused, strict=True):
        if not candidates:
            missing = "vec" if alt_text.strip() else "alt"
            named = "no_vec" if missing == "vec" else "no_alt_text"
            errors[f"{missing}_refused" if checked.get(f"{missing}_refused") else named] += 1
        for candidate in candidates:
            extra["candidates"] += 1
            extra["prompt_tokens"] += candidate.prompt_tokens
            extra["completion_tokens"] += candidate.completion_tokens
            extra[f"rejected_{candidate.rejected}" if candidate.rejected else f"accepted_{candidate.prompt_id}"] += 1
    return RowCounts(
        rows_in=len(pairs),
        rows_ok=len(pairs) - sum(errors.values()),
        errors=dict(errors),
        fallbacks=sum(bool(made) and all(candidate.rejected for candidate in made) for made in fused),
        extra=dict(extra),
    )
