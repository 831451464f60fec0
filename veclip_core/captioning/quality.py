"""Whether a fused caption may stand: a pure check of one text against the AltText and the VeC it came from. And whether a
description may be used at all.

The check of captions compares words, not meaning: it sees a fact that was added or dropped when the fact has a word of its own, and
is blind to words put together wrongly. Its false acceptance and false rejection on planted corruptions are measured in its test.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

from pydantic import Field

from veclip_core.captioning.words import Words, content_words, names, scripts, words
from veclip_core.config import Config

Reason = Literal[
    "empty",
    "too_short",
    "too_long",
    "truncated",
    "refusal",
    "echo",
    "of_the_image",
    "script",
    "repetition",
    "concatenation",
    "unfaithful",
    "drops_alt",
    "drops_vec",
]
REASONS: tuple[str, ...] = get_args(Reason)

NO_ANSWER = ("content_filter", "refused_by_server")
"""Finish reasons of a server that would not answer."""
REFUSAL = re.compile(
    r"\b(as an? (ai|language model)|i'?m sorry|i am sorry|i can'?t|i cannot|i am unable|i'?m unable|i am not able|i apologi[sz]e)\b"
)
INSTRUCTION = re.compile(
    r"\b(rephras\w*|re-?writ\w*|the (two|following|given|above) (sentences?|instructions?|captions?|texts?)"
    r"|alt ?text|without introducing|one (short )?(sentence|caption)|(here is|here's|this is) (the|a|your) \w*\s?"
    r"(sentence|caption)|(title|visual|caption|answer|fused|sentence [12]) ?:)"
)
OF_THE_IMAGE = re.compile(
    r"\b((in|of) (the|this) (image|picture|photo)|(the|this) (image|picture|photo) (is|shows|depicts|features|displays|contains))\b"
)


class QualityThresholds(Config):
    """What a fused caption must satisfy. Changing one changes which candidates are kept, not the candidates."""

    min_words: int = Field(3, ge=0)
    """Captions of fewer words are rejected."""
    max_words: int = Field(45, ge=1)
    """Captions of more words are rejected."""
    min_alt_share: float = Field(0.6, ge=0, le=1)
    """Least share of the AltText's content words that must be kept."""
    min_name_share: float = Field(0.75, ge=0, le=1)
    """Least share of the AltText's names and numbers that must be kept."""
    min_vec_share: float = Field(0.4, ge=0, le=1)
    """Least share of the VeC's content words that must be kept."""
    max_added_words: int = Field(0, ge=0)
    """Content words allowed that neither input has."""
    max_repeats: int = Field(1, ge=0)
    """How often a content word may occur beyond its count in both inputs together."""
    echo_words: int = Field(5, ge=2)
    """So many consecutive words shared with the prompt's own text, and with neither input, are an echo."""


def judge(
    text: str,
    alt_text: str,
    vec: str,
    finish_reason: str | None = "stop",
    thresholds: QualityThresholds | None = None,
    prompt_texts: Sequence[str] = (),
) -> Reason | None:
    """The first reason to reject `text` as the fusion of `alt_text` and `vec`, or None when it may stand.

    `prompt_texts` are the instruction and the examples of the prompt that was used, to recognise an echo of them.
    """
    limits = thresholds or QualityThresholds()
    said = words(text)
    if finish_reason in NO_ANSWER:
        return "refusal"
    if not said:
        return "empty"
    if finish_reason not in (None, "stop"):
        return "truncated"
    if len(said) < limits.min_words:
        return "too_short"
    if len(said) > limits.max_words:
        return "too_long"
    plain, inputs = _plain(text), f"{_plain(alt_text)} {_plain(vec)}"
    for pattern, reason in _PATTERNS:
        if any(match.group(0) not in inputs for match in pattern.finditer(plain)):
            return reason
    known = Words(alt_text, vec)
    given_in = scripts(f"{alt_text} {vec}")
    if given_in and scripts(text) - given_in:
        return "script"
    if _echoes(said, known, [words(shown) for shown in prompt_texts], limits.echo_words):
        return "echo"
    alt_content, vec_content, content = content_words(alt_text), content_words(vec), content_words(text)
    if content in (alt_content + vec_content, vec_content + alt_content):
        return "concatenation"
    given = alt_content + vec_content
    if _repeats(content, given, limits.max_repeats):
        return "repetition"
    if sum(word not in known for word in content) > limits.max_added_words or _asserts_both(said, alt_text, vec):
        return "unfaithful"
    shares = kept_shares(text, alt_text, vec)
    if shares["names"] < limits.min_name_share or shares["alt"] < limits.min_alt_share:
        return "drops_alt"
    return "drops_vec" if shares["vec"] < limits.min_vec_share else None


def kept_shares(text: str, alt_text: str, vec: str) -> dict[str, float]:
    """What share of the AltText's words (`alt`), of its names and numbers (`names`) and of the VeC's words (`vec`) is kept."""
    kept = Words(text)
    return {
        "alt": round(_share(_facts(alt_text), kept), 3),
        "names": round(_share(names(alt_text), kept), 3),
        "vec": round(max(_share(_facts(reading), kept) for reading in _readings(vec)), 3),
    }


_PATTERNS: tuple[tuple[re.Pattern[str], Reason], ...] = (
    (REFUSAL, "refusal"),
    (INSTRUCTION, "echo"),
    (OF_THE_IMAGE, "of_the_image"),
)


def _plain(text: str) -> str:
    return " ".join(text.casefold().replace("’", "'").split())


def _facts(text: str) -> list[str]:
    """Content words, or every word of a text that has none (`Who is who`)."""
    return content_words(text) or words(text)


def _share(wanted: list[str], kept: Words) -> float:
    return sum(word in kept for word in wanted) / len(wanted) if wanted else 1.0


def _repeats(content: list[str], given: list[str], allowed: int) -> bool:
    before = Counter(given)
    return any(count > max(1, before[word]) + allowed - 1 and count > 1 for word, count in Counter(content).items())


def _echoes(said: list[str], known: Words, prompt_texts: list[list[str]], length: int) -> bool:
    """Whether a run of words comes from the prompt and not from the inputs: `a drawing of a` alone is everyone's."""
    shown = {run for text in prompt_texts for run in _runs(text, length)}
    return any(
        run in shown and any(word not in known for word in content_words(" ".join(run))) for run in _runs(said, length)
    )


def _runs(text: list[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(text[start : start + length]) for start in range(len(text) - length + 1)}


def _readings(vec: str) -> list[str]:
    """`a drawing of a cat or a dog, red` as it stands, and with either alternative left out, which is no fact dropped."""
    before, found, after = vec.partition(" or ")
    if not found:
        return [vec]
    _, comma, rest = after.partition(",")
    return [vec, f"{before}{comma}{rest}", after]


def _asserts_both(said: list[str], alt_text: str, vec: str) -> bool:
    """Whether `a cat or a dog` became a statement of both: an uncertainty of the captioner turned into a fact."""
    before, found, after = vec.partition(" or ")
    if not found or "or" in said:
        return False
    kept, other = Words(" ".join(said)), after.split(",")[0]
    first = [word for word in content_words(before) if word not in Words(other, alt_text)]
    second = [word for word in content_words(other) if word not in Words(before, alt_text)]
    return bool(first and second) and _share(first, kept) > 0.5 and _share(second, kept) > 0.5


class VecThresholds(Config):
    """What a description must satisfy before anything is fused with it."""

    min_words: int = Field(2, ge=0)
    """Descriptions of fewer words are refused."""
    max_words: int = Field(120, ge=1)
    """Descriptions of more words are refused."""
    max_repeats: int = Field(5, ge=1)
    """How often a content word may stand in it: a model in a loop says one again and again."""
    script: str | None = "LATIN"
    """The script it must be written in, by Unicode's name for it (`LATIN`, `CJK`, `CYRILLIC`); None for any."""


def judge_vec(vec: str, finish_reason: str | None, thresholds: VecThresholds) -> str | None:
    """Why a description is not to be used, or None: the first of refusal, truncated, too_short, too_long, script, repetition."""
    said = words(vec)
    if finish_reason in NO_ANSWER or REFUSAL.search(_plain(vec)):
        return "refusal"
    if finish_reason not in (None, "stop"):
        return "truncated"
    if len(said) < thresholds.min_words:
        return "too_short"
    if len(said) > thresholds.max_words:
        return "too_long"
    if thresholds.script and thresholds.script not in scripts(vec):
        return "script"
    often = Counter(content_words(vec)).most_common(1)
    return "repetition" if often and often[0][1] > thresholds.max_repeats else None
