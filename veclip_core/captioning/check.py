"""The stage `check`: which AltTexts and which VeCs may be used at all, before anything is fused (the ethical check of PAPER.md).

A refused text is blank from here on: it reaches neither the fusion prompt nor the manifest, and the sample keeps its other text.
The row says what was refused and why. Three kinds of reason: the text speaks to the model (`takeover`), it is offensive by a
word list or by a language model's word (`word_list`, `judge`), or it is a broken description (the reasons of `quality.judge_vec`).
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, ClassVar, Literal, Protocol

import pyarrow as pa
from pydantic import Field

from veclip_core.captioning.engines.base import Engine, EngineConfig, EngineRuntime, Generation, Sampling, opened
from veclip_core.captioning.prompts import JudgePrompt, judge_prompt
from veclip_core.captioning.quality import VecThresholds, judge_vec
from veclip_core.captioning.takeover import rules_digest, takes_over
from veclip_core.config import Config
from veclip_core.samples import BLOCKED, CHECK_SCHEMA
from veclip_core.stage import RowCounts, ShardTask

TAKEOVER, WORD_LIST, JUDGE = "takeover", "word_list", "judge"

HARMLESS = (
    "alaskan pipeline", "bareback", "barenaked", "bastardized", "big black", "birdlock", "bs", "butt", "clitoris",
    "cock", "cocks", "coon", "coons", "cornhole", "domination", "escort", "eunuch", "fecal", "fingering",
    "fuck buttons", "girl on", "grope", "guro", "hard core", "hardcore", "hoe", "hooker", "huge fat", "intercourse",
    "jackass", "jelly donut", "lolita", "mf", "mr hands", "negro", "nipple", "nipples", "nude", "octopussy", "penis",
    "playboy", "poof", "rectum", "scat", "simp", "skeet", "snatch", "snowballing", "spunk", "suck", "sucks",
    "swinger", "tainted love", "taste my", "tied up", "tight white", "tit", "tits", "tongue in a", "tushy", "twinkie",
    "vagina", "violet wand", "vulva", "xx",
)  # fmt: skip
"""Entries of the library's list that name something harmless at least as often (a garden hoe, a Maine Coon, Moby Dick, anatomy,
art): a captioner for the web has to keep them."""


class WordList(Config):
    """Refuses a text that holds a word or phrase of glin-profanity's lists, also masked or spelled with digits."""

    kind: Literal["word_list"] = "word_list"
    languages: tuple[str, ...] = ("english",)
    """The library's lists to use; those of other languages hold many everyday words of English."""
    harmless: tuple[str, ...] = HARMLESS
    """Entries left out."""
    added: tuple[str, ...] = ()
    """Words and phrases of one's own."""
    library: str = Field(default_factory=lambda: version("glin-profanity"))
    """The lists' version: other lists refuse other texts."""


class LlmJudge(Config):
    """Refuses a text that a language model calls unfit."""

    kind: Literal["judge"] = "judge"
    engine: EngineConfig = EngineConfig()
    """The language model."""
    prompt: JudgePrompt = judge_prompt("judge-own-v1")
    """What it is asked."""
    sampling: Sampling = Sampling(max_tokens=4)
    """How its answer is drawn."""


class CheckConfig(Config):
    """What decides which texts are refused."""

    takeover: bool = True
    """Whether a text that speaks to the model is refused."""
    takeover_rules: str = Field(default_factory=rules_digest)
    """Digest of the rules."""
    ethics: WordList | LlmJudge | None = WordList()
    """Who judges whether a text is offensive; None for nobody."""
    vec: VecThresholds = VecThresholds()
    """What a description must satisfy."""


class Judge(Protocol):
    """Says of each text why it is refused, or None."""

    def __call__(self, texts: Sequence[str]) -> list[str | None]: ...


@dataclass(frozen=True)
class CheckOperation:
    """Inputs: `list_urls` (AltText) and `describe` (VeC)."""

    name: ClassVar[str] = "check"
    config: CheckConfig = field(default_factory=CheckConfig)
    runtime: EngineRuntime = field(default_factory=EngineRuntime)

    @property
    def needs_engine(self) -> bool:
        return isinstance(self.config.ethics, LlmJudge)

    @contextmanager
    def open(self) -> Iterator[Callable[[ShardTask], RowCounts]]:
        ethics = self.config.ethics
        if isinstance(ethics, LlmJudge):
            with opened(ethics.engine, self.runtime) as engine:
                yield lambda task: check_shard(task, self.config, judged_by(engine, ethics))
        else:
            judge = judge_of(ethics)
            yield lambda task: check_shard(task, self.config, judge)


def judge_of(ethics: WordList | None) -> Judge:
    """The judge that needs no model."""
    return word_list_judge(ethics) if ethics else _refuses_nothing


def _refuses_nothing(texts: Sequence[str]) -> list[str | None]:
    return [None] * len(texts)


def word_list_judge(config: WordList) -> Judge:
    """The library's filter with the configured lists."""
    from glin_profanity import Filter

    words = Filter(
        {
            "languages": list(config.languages),
            "custom_words": list(config.added),
            "ignore_words": list(config.harmless),
            "detect_leetspeak": True,
        }
    )
    return lambda texts: [WORD_LIST if words.is_profane(text) else None for text in texts]


def judged_by(engine: Engine, config: LlmJudge) -> Judge:
    """A language model's word. A text that it won't or can't judge (too long, refused by its server) is refused."""

    def judge(texts: Sequence[str]) -> list[str | None]:
        answers = engine.generate([config.prompt.request(text) for text in texts], config.sampling)
        return [None if _answered(made) and not _says_yes(made) else JUDGE for made, *_ in answers]

    return judge


def _answered(made: Generation) -> bool:
    return made.finish_reason in ("stop", "length") and bool(made.text.strip())


def _says_yes(made: Generation) -> bool:
    return made.text.strip().casefold().startswith("yes")


def refusals(texts: Sequence[str], config: CheckConfig, judge: Judge) -> dict[str, str | None]:
    """Each distinct text with the reason why it is refused, or None."""
    distinct = sorted({text for text in texts if text.strip()})
    found: dict[str, str | None] = dict.fromkeys(distinct)
    if config.takeover:
        found = {text: TAKEOVER if takes_over(text) else None for text in distinct}
    # What speaks to a model is not shown to one that judges.
    open_to_judge = [text for text in distinct if found[text] is None]
    return found | dict(zip(open_to_judge, judge(open_to_judge), strict=True))


def check_shard(task: ShardTask, config: CheckConfig, judge: Judge) -> RowCounts:
    """Write one row for each sample whose picture was to be described: which of its texts is refused, and why."""
    described = {row["url_id"]: row for row in task.read("describe").to_pylist() if row["error"] not in BLOCKED}
    listed = task.read("list_urls", ["url_id", "sample_id", "alt_text", "status"]).to_pylist()
    samples = [row for row in listed if row["status"] == "ok" and row["url_id"] in described]
    vecs = {url_id: row["vec"] or "" for url_id, row in described.items()}
    reasons = refusals([*(row["alt_text"] or "" for row in samples), *vecs.values()], config, judge)
    of_vec = {
        url_id: reasons.get(vecs[url_id]) or judge_vec(vecs[url_id], _finish_reason(row), config.vec)
        for url_id, row in described.items()
        if row["status"] == "ok" and vecs[url_id]  # in one pass there is none
    }
    rows = [
        {
            "sample_id": sample["sample_id"],
            "url_id": sample["url_id"],
            "alt_refused": reasons.get(sample["alt_text"] or ""),
            "vec_refused": of_vec.get(sample["url_id"]),
        }
        for sample in samples
    ]
    rows.sort(key=lambda row: (row["url_id"], row["sample_id"]))
    task.write(pa.Table.from_pylist(rows, schema=CHECK_SCHEMA))
    return _counts(rows)


def usable_texts(alt_text: str, vec: str, checked: Mapping[str, str | None] | None) -> tuple[str, str]:
    """AltText and VeC of one sample, each blank where its row of `check` refuses it."""
    checked = checked or {}
    return "" if checked.get("alt_refused") else alt_text, "" if checked.get("vec_refused") else vec


def _finish_reason(described: Mapping[str, Any]) -> str:
    return str(json.loads(described["detail"] or "{}").get("finish_reason", "stop"))


def _counts(rows: Sequence[Mapping[str, str | None]]) -> RowCounts:
    both = sum(bool(row["alt_refused"] and row["vec_refused"]) for row in rows)
    one = sum(bool(row["alt_refused"]) != bool(row["vec_refused"]) for row in rows)
    extra: Counter[str] = Counter()
    for row in rows:
        for text in ("alt", "vec"):
            if reason := row[f"{text}_refused"]:
                extra[f"{text}_refused_{reason}"] += 1
    errors = {"both_texts_refused": both} if both else {}
    return RowCounts(len(rows), len(rows) - both, errors, fallbacks=one, extra=dict(extra))
