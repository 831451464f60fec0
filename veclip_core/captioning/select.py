"""The stage `select`: which text stands as a sample's VeCap. Cheap, on the CPU: a new threshold costs no new caption.

The best fused candidate that passes the check, else `{AltText}, {VeC}`, else the VeC, else the AltText; the row says which.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa

from veclip_core.captioning.check import usable_texts
from veclip_core.captioning.prompts import fuse_prompts
from veclip_core.captioning.quality import QualityThresholds, judge, kept_shares
from veclip_core.captioning.released import RELEASED_ID
from veclip_core.captioning.template import template_fusion
from veclip_core.config import Config
from veclip_core.samples import BLOCKED, SELECT_SCHEMA, UNDECODABLE
from veclip_core.stage import RowCounts, ShardTask


class SelectConfig(Config):
    """What decides the choice."""

    thresholds: QualityThresholds = QualityThresholds()
    """What a fused caption must satisfy to stand."""
    fallback_words: int | None = None
    """A longer fallback gives way to the next, and of none that is short enough the shortest is taken; None for any length."""


@dataclass(frozen=True)
class Choice:
    """The text that stands for one sample."""

    vecap: str
    status: str
    """`fused`, `concatenated`, `vec`, `alt` or `error`."""
    reason: str | None = None
    """Why no fused caption stands."""
    candidate: Mapping[str, Any] | None = None
    """The fused candidate that was taken."""
    scores: Mapping[str, Any] = field(default_factory=dict)


def choose_caption(alt_text: str, vec: str, candidates: Sequence[Mapping[str, Any]], config: SelectConfig) -> Choice:
    """The choice for one sample. `candidates` are rows of `fuse`, in order; of those that pass, the one that keeps most wins."""
    thresholds = config.thresholds
    alt_text, vec = alt_text.strip(), vec.strip()
    passed, reasons = [], []
    for candidate in candidates:
        prompt = fuse_prompts().get(candidate["prompt_id"])
        own_texts = prompt.own_texts if prompt else ()
        if candidate["prompt_id"] == RELEASED_ID:
            reason = candidate["rejected"]  # made by others, and judged alone where it was read
        else:
            reason = judge(candidate["text"], alt_text, vec, candidate["finish_reason"], thresholds, own_texts)
        reasons.append(reason)
        if reason is None:
            passed.append((candidate, kept_shares(candidate["text"], alt_text, vec)))
    if passed:
        best, kept = max(passed, key=lambda pair: sum(pair[1].values()))
        return Choice(best["text"], "fused", candidate=best, scores=kept)
    rejected = [reason for reason in reasons if reason]
    scores: dict[str, Any] = {"rejected": rejected} if rejected else {}
    if alt_text and vec:
        why = rejected[-1] if rejected else "no_candidate"
        fallbacks = {"concatenated": template_fusion(alt_text, vec), "vec": vec, "alt": alt_text}
        length = {name: len(text.split()) for name, text in fallbacks.items()}
        fitting = [name for name in fallbacks if config.fallback_words is None or length[name] <= config.fallback_words]
        status = fitting[0] if fitting else min(length, key=lambda name: length[name])
        return Choice(fallbacks[status], status, why, scores=scores)
    if vec:
        return Choice(vec, "vec", "no_alt_text")
    why = rejected[-1] if rejected else None
    if alt_text:
        return Choice(alt_text, "alt", why or "no_vec", scores=scores)
    return Choice("", "error", why or "no_text", scores=scores)


@dataclass(frozen=True)
class SelectOperation:
    """Inputs: `list_urls`, `download` (which pictures are good), `describe`, `check` (what is refused) and `fuse`."""

    name: ClassVar[str] = "select"
    config: SelectConfig = field(default_factory=SelectConfig)

    @contextmanager
    def open(self) -> Iterator[Callable[[ShardTask], RowCounts]]:
        yield lambda task: select_shard(task, self.config)


def select_shard(task: ShardTask, config: SelectConfig) -> RowCounts:
    """Write one row for each sample whose picture is good."""
    good = {row["url_id"] for row in task.read("download", ["url_id", "status"]).to_pylist() if row["status"] == "ok"}
    described = {row["url_id"]: row for row in task.read("describe").to_pylist()}
    checked = {row["sample_id"]: row for row in task.read("check").to_pylist()}
    candidates: dict[str, list[dict[str, Any]]] = {}
    for candidate in sorted(task.read("fuse").to_pylist(), key=lambda row: row["candidate"]):
        candidates.setdefault(candidate["sample_id"], []).append(candidate)
    listed = task.read("list_urls", ["url_id", "sample_id", "alt_text", "status"]).to_pylist()
    samples = [row for row in listed if row["status"] == "ok" and row["url_id"] in good]
    rows = [
        _row(
            sample,
            described.get(sample["url_id"], {}),
            checked.get(sample["sample_id"], {}),
            candidates.get(sample["sample_id"], []),
            config,
        )
        for sample in samples
    ]
    rows.sort(key=lambda row: (row["url_id"], row["sample_id"]))
    task.write(pa.Table.from_pylist(rows, schema=SELECT_SCHEMA))
    statuses = Counter(row["status"] for row in rows)
    errors = Counter(row["error"] for row in rows if row["status"] == "error")
    ok = len(rows) - statuses["error"]
    return RowCounts(
        rows_in=len(rows),
        rows_ok=ok,
        errors=dict(errors),
        fallbacks=ok - statuses["fused"],
        extra={f"status_{status}": count for status, count in sorted(statuses.items())},
    )


def _row(
    sample: Mapping[str, Any],
    described: Mapping[str, Any],
    checked: Mapping[str, Any],
    candidates: list[dict[str, Any]],
    config: SelectConfig,
) -> dict[str, Any]:
    alt_text, vec = usable_texts(sample["alt_text"] or "", described.get("vec") or "", checked)
    refused = [f"{text}: {reason}" for text in ("alt", "vec") if (reason := checked.get(f"{text}_refused"))]
    if UNDECODABLE in (described.get("error"), *(candidate["finish_reason"] for candidate in candidates)):
        # What the describer could not open, training can't either.
        choice = Choice("", "error", UNDECODABLE)
    elif described.get("error") in BLOCKED:
        choice = Choice("", "error", described["error"])
    else:
        choice = choose_caption(alt_text, vec, candidates, config)
    taken = choice.candidate or {}
    reason = _refusal_named(choice.reason, checked)
    return {
        "sample_id": sample["sample_id"],
        "url_id": sample["url_id"],
        "alt_text": alt_text,
        "vec": vec,
        "vecap": choice.vecap,
        "status": choice.status,
        "reason": None if choice.status == "error" else reason,
        "refused": "; ".join(refused) or None,
        "error": reason if choice.status == "error" else None,
        "model": taken.get("model"),
        "prompt_id": taken.get("prompt_id"),
        "vec_model": described.get("model"),
        "vec_prompt_id": described.get("prompt_id"),
        "scores": json.dumps(dict(choice.scores), sort_keys=True),
    }


def _refusal_named(reason: str | None, checked: Mapping[str, Any]) -> str | None:
    """`no_alt_text` of a sample that had one, but for its refusal, is `alt_refused`; so for the others."""
    if reason == "no_alt_text" and checked.get("alt_refused"):
        return "alt_refused"
    if reason == "no_vec" and checked.get("vec_refused"):
        return "vec_refused"
    if reason == "no_text" and (checked.get("alt_refused") or checked.get("vec_refused")):
        return "texts_refused"
    return reason
