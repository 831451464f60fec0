"""What the report shows beside the results: plain, frozen rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Picture = bytes | Path
"""The encoded bytes of a picture, or its file."""


@dataclass(frozen=True)
class LossCurve:
    """Training loss of one model and seed, one point a logged step."""

    model: str
    seed: int
    steps: Sequence[int]
    losses: Sequence[float]


@dataclass(frozen=True)
class CaptionExample:
    """One sample's three texts. All texts are shown as they are: they may be hostile."""

    picture: Picture
    alt_text: str
    vec: str
    vecap: str
    status: str
    """Of the `select` stage: "fused", "concatenated", "vec" or "alt"."""
    reason: str | None = None
    """Why the text is not the fusion model's."""
    rejected: str | None = None
    """What the fusion model wrote, where that was refused."""


@dataclass(frozen=True)
class Captions:
    """What the fusing model made of the samples, and samples to look at."""

    random: Sequence[CaptionExample]
    by_reason: Mapping[str, Sequence[CaptionExample]] = field(default_factory=dict)
    """Why a fused caption was refused -> samples of it."""
    asked: int = 0
    """Samples whose AltText and VeC the model was asked to fuse."""
    fused: float = 0.0
    """Share of samples whose VeCap is the model's."""
    control: Mapping[str, float] | None = None
    """Of the control's captions: `fused`, and in `same_text` how many pictures got a description equal to their own."""
    control_rows: Sequence[CaptionExample] = ()
    """Samples of the control: their VeC is another picture's."""
    accepted: Mapping[str, int] = field(default_factory=dict)
    """Prompt -> candidates that passed the check."""
    refused: Mapping[str, int] = field(default_factory=dict)
    """Reason -> candidates that did not."""


@dataclass(frozen=True)
class Source:
    """One collection of pictures, texts or weights."""

    name: str
    use: str
    licence: str
    items: int | None = None
    url: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class StageRows:
    """The sum of one stage: rows_in = rows_ok + errors."""

    stage: str
    rows_in: int
    rows_ok: int
    errors: Mapping[str, int] = field(default_factory=dict)
    fallbacks: int = 0


@dataclass(frozen=True)
class StandIn:
    """A part of the paper's chain that something smaller stands in for."""

    part: str
    stand_in: str
    stands_for: str
    note: str | None = None


@dataclass(frozen=True)
class DataCard:
    sources: Sequence[Source]
    stages: Sequence[StageRows]
    caption_statuses: Mapping[str, int] = field(default_factory=dict)
    """Samples of the manifest by status of their VeCap."""
    stand_ins: Sequence[StandIn] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class HowTo:
    """How to repeat the results."""

    commands: Sequence[str]
    facts: Mapping[str, str] = field(default_factory=dict)
    """Machine, versions, identities, durations: name -> value."""


@dataclass(frozen=True)
class Chart:
    """A figure that is ready for a page."""

    title: str
    note: str
    """How to read it, in a few words."""
    svg: str
    """Of `figures.py`: it is put into the page as it is."""


@dataclass(frozen=True)
class Contamination:
    """What is known of copies of an evaluation set's pictures among the training pictures."""

    set: str
    pictures: int
    """Of the evaluation set."""
    copies: int | None
    """Of these, with a near copy among the pictures that were trained on; None where nobody looked."""
    looked: str
    """How it was looked for, or the command that does."""
    left_out: int = 0
    """Pictures left out of training because they are near copies of the set's."""
