"""Queries that the models found and missed, picked without looking: by a hash of the query's id within each outcome."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from veclip_core.config import digest_of
from veclip_core.evaluation.evaluate import Evaluation
from veclip_core.evaluation.sets import EvaluationSet

Outcome = Literal["both", "only_ours", "only_baseline", "neither"]
OUTCOMES: tuple[Outcome, ...] = ("both", "only_ours", "only_baseline", "neither")


@dataclass(frozen=True)
class Answer:
    """What one model puts first. `rows` are pictures for a text query, captions for a picture query."""

    model: str
    rank: float
    rows: tuple[int, ...]
    right: tuple[bool, ...]


@dataclass(frozen=True)
class RetrievalExample:
    direction: Literal["t2i", "i2t"]
    outcome: Outcome
    query: int
    """Row of the caption (t2i) or of the picture (i2t)."""
    answers: tuple[Answer, Answer]
    """Of the baseline, then of the other model."""


@dataclass(frozen=True)
class RetrievalExamples:
    evaluation_set: EvaluationSet
    baseline: str
    ours: str
    seed: int
    hit_within: int
    counts: Mapping[str, Mapping[Outcome, int]]
    """By direction: how many queries of the whole set had which outcome."""
    examples: tuple[RetrievalExample, ...]


def retrieval_examples(
    baseline: Evaluation, ours: Evaluation, *, each: int = 2, hit_within: int = 10, shown: int = 5
) -> RetrievalExamples:
    """`each` examples of every outcome and direction; a hit has its right match among the first `hit_within`.
    The two evaluations are of one set and one seed."""
    if baseline.evaluation_set.content != ours.evaluation_set.content or baseline.seed != ours.seed:
        raise ValueError("retrieval examples need two evaluations of the same set and the same seed")
    evaluation_set = ours.evaluation_set
    examples: list[RetrievalExample] = []
    counts: dict[str, dict[Outcome, int]] = {}
    directions: tuple[Literal["t2i", "i2t"], ...] = ("t2i", "i2t")
    for direction in directions:
        ranks = [e.ranks.t2i_M if direction == "t2i" else e.ranks.i2t_N for e in (baseline, ours)]
        theirs_hit, ours_hit = (rank <= hit_within for rank in ranks)
        masks = {
            "both": theirs_hit & ours_hit,
            "only_ours": ~theirs_hit & ours_hit,
            "only_baseline": theirs_hit & ~ours_hit,
            "neither": ~theirs_hit & ~ours_hit,
        }
        counts[direction] = {outcome: int(masks[outcome].sum()) for outcome in OUTCOMES}
        for outcome in OUTCOMES:
            candidates = sorted(
                np.flatnonzero(masks[outcome]).tolist(), key=lambda row: _lot(evaluation_set, direction, row)
            )
            examples += [
                RetrievalExample(
                    direction,
                    outcome,
                    query,
                    (_answer(baseline, direction, query, shown), _answer(ours, direction, query, shown)),
                )
                for query in candidates[:each]
            ]
    return RetrievalExamples(evaluation_set, baseline.model, ours.model, ours.seed, hit_within, counts, tuple(examples))


def _lot(evaluation_set: EvaluationSet, direction: str, row: int) -> str:
    picture = int(evaluation_set.caption_picture_M[row]) if direction == "t2i" else row
    return digest_of([evaluation_set.ids[picture], evaluation_set.captions[row] if direction == "t2i" else ""])


def _answer(evaluation: Evaluation, direction: Literal["t2i", "i2t"], query: int, shown: int) -> Answer:
    owner_M = evaluation.evaluation_set.caption_picture_M
    if direction == "t2i":
        scores, right = evaluation.pictures_ND @ evaluation.captions_MD[query], np.arange(len(evaluation.pictures_ND))
        rank, wanted = evaluation.ranks.t2i_M[query], owner_M[query]
    else:
        scores, right = evaluation.captions_MD @ evaluation.pictures_ND[query], owner_M
        rank, wanted = evaluation.ranks.i2t_N[query], query
    first = np.argsort(-scores, kind="stable")[:shown]
    return Answer(evaluation.model, float(rank), tuple(first.tolist()), tuple((right[first] == wanted).tolist()))
