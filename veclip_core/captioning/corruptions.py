"""How often the check of fused captions lets a wrong one pass, measured on captions it accepted, with faults planted in them.

The faults are made from the data itself: what is added comes from the next picture's AltText, what is dropped is all that only
one of the two inputs has. The check compares words, so faults without a word of their own are not among these.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from veclip_core.captioning.prompts import FusePrompt
from veclip_core.captioning.quality import QualityThresholds, judge
from veclip_core.captioning.words import Words, content_words, words


@dataclass(frozen=True)
class Fused:
    """A caption that stands, and the two texts it was fused from."""

    alt_text: str
    vec: str
    vecap: str


@dataclass(frozen=True)
class FaultRate:
    """How many captions with a planted fault the check took for good."""

    fault: str
    planted: int
    accepted: int


def false_acceptance(
    rows: Sequence[Fused], prompts: Sequence[FusePrompt], thresholds: QualityThresholds | None = None
) -> list[FaultRate]:
    """The rate for each kind of fault. `prompts` are those the captions were asked with: echoes of them are planted too."""
    own = tuple(text for prompt in prompts for text in prompt.own_texts)
    echoes = [caption for prompt in prompts for _, _, caption in prompt.examples]
    planted: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    for row, following in zip(rows, [*rows[1:], *rows[:1]], strict=True):
        for fault, text in _faults(row, following, echoes):
            planted[fault] += 1
            accepted[fault] += judge(text, row.alt_text, row.vec, "stop", thresholds, own) is None
    return [FaultRate(fault, count, accepted[fault]) for fault, count in planted.items()]


def _faults(row: Fused, following: Fused, echoes: Sequence[str]) -> Iterator[tuple[str, str]]:
    text = row.vecap.rstrip(". ")
    known = Words(row.alt_text, row.vec)
    foreign = [word for word in content_words(following.alt_text) if word not in known and not word.isdigit()]
    if foreign:
        yield "a word of another picture added", f"{text} and {foreign[0]}."
    if "1850" not in known:
        yield "a number added", f"{text} 1850."
    for name, lost, kept in (("AltText", row.alt_text, row.vec), ("VeC", row.vec, row.alt_text)):
        only_there = Words(" ".join(word for word in content_words(lost) if word not in Words(kept)))
        left = [word for word in words(text) if word not in only_there]
        if only_there.all and len(left) < len(words(text)):
            yield f"all that only the {name} says dropped", " ".join(left)
    if row.vecap != following.vecap and any(word not in known for word in content_words(following.vecap)):
        yield "another picture's caption", following.vecap
    for echo in echoes:
        if any(word not in known for word in content_words(echo)):
            yield "an example of the prompt", echo
