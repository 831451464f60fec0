"""Queries that models found and missed, picked without looking: by a hash of the query's id within each outcome."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from veclip_core.config import digest_of
from veclip_core.evaluation.evaluate import Evaluation
from veclip_core.evaluation.retrieval import Ranked
from veclip_core.evaluation.sets import EvaluationSet

Direction = Literal["t2i", "i2t", "class", "choice"]
"""A caption's picture, a picture's caption, its class, or the right one among its own captions."""
Outcome = Literal["both", "only_ours", "only_baseline", "neither", "hit", "miss"]
"""Of two models, and of one alone."""

HALF = 0.5
"""A query is told as a hit where a random order of what is tied makes it one at least this often."""


@dataclass(frozen=True)
class Answer:
    """What one model puts first. `rows` are pictures for a text query; captions, or classes, for a picture query."""

    model: str
    rank: float
    rows: tuple[int, ...]
    right: tuple[bool, ...]


@dataclass(frozen=True)
class RetrievalExample:
    direction: Direction
    outcome: Outcome
    query: int
    """Row of the caption (t2i) or of the picture."""
    answers: tuple[Answer, ...]
    """Of the baseline where there is one, then of the other model."""


@dataclass(frozen=True)
class RetrievalExamples:
    evaluation_set: EvaluationSet
    baseline: str | None
    """None: one model alone."""
    ours: str
    seed: int
    hit_within: int
    """Of retrieval; a class and a choice are hit by the first answer alone."""
    counts: Mapping[str, Mapping[Outcome, int]]
    """By direction: how many queries of the whole set had which outcome."""
    examples: tuple[RetrievalExample, ...]
    labelling: str | None = None
    """By which classes, where the direction is `class`."""


def retrieval_examples(
    *evaluations: Evaluation, each: int = 2, hit_within: int = 10, shown: int = 5
) -> RetrievalExamples:
    """`each` examples of every outcome and direction; a hit has its right match among the first `hit_within`.

    Args:
        evaluations: one model's; or the baseline's and another's, of one set and one seed.
    """
    ours, baseline = evaluations[-1], evaluations[0] if len(evaluations) > 1 else None
    evaluation_set = ours.evaluation_set
    if any(e.evaluation_set.content != evaluation_set.content or e.seed != ours.seed for e in evaluations):
        raise ValueError("retrieval examples need two evaluations of the same set and the same seed")
    labelling = _labelling(ours)
    examples: list[RetrievalExample] = []
    counts: dict[str, dict[Outcome, int]] = {}
    for direction in _directions(evaluation_set, labelling):
        within = hit_within if direction in ("t2i", "i2t") else 1
        ranks = [_ranked(evaluation, direction, labelling) for evaluation in evaluations]
        masks = _masks([of_model.within(within) >= HALF for of_model in ranks])
        counts[direction] = {outcome: int(mask_Q.sum()) for outcome, mask_Q in masks.items()}
        answer = _answering(direction, labelling, shown)
        for outcome, mask_Q in masks.items():
            chosen = sorted(np.flatnonzero(mask_Q).tolist(), key=lambda row: _lot(evaluation_set, direction, row))
            examples += [
                RetrievalExample(
                    direction,
                    outcome,
                    query,
                    tuple(
                        Answer(evaluation.model, float(of_model.rank_Q[query]), *answer(evaluation, query))
                        for evaluation, of_model in zip(evaluations, ranks, strict=True)
                    ),
                )
                for query in chosen[:each]
            ]
    base = baseline.model if baseline else None
    return RetrievalExamples(
        evaluation_set, base, ours.model, ours.seed, hit_within, counts, tuple(examples), labelling
    )


def _labelling(evaluation: Evaluation) -> str | None:
    """The finest of the labellings, where pictures are evaluated by classes alone."""
    evaluation_set = evaluation.evaluation_set
    if evaluation_set.captions or not evaluation.classes:
        return None
    return max(evaluation.classes, key=lambda label: len(evaluation_set.labels[label].classes))


def _directions(evaluation_set: EvaluationSet, labelling: str | None) -> tuple[Direction, ...]:
    if evaluation_set.right_M is not None:
        return ("choice",)
    if evaluation_set.captions:
        return ("t2i", "i2t")
    return ("class",) if labelling else ()


def _masks(hits: list[np.ndarray]) -> dict[Outcome, np.ndarray]:
    if len(hits) == 1:
        return {"hit": hits[0], "miss": ~hits[0]}
    theirs_Q, ours_Q = hits
    return {
        "both": theirs_Q & ours_Q,
        "only_ours": ~theirs_Q & ours_Q,
        "only_baseline": theirs_Q & ~ours_Q,
        "neither": ~theirs_Q & ~ours_Q,
    }


def _lot(evaluation_set: EvaluationSet, direction: Direction, row: int) -> str:
    picture = int(evaluation_set.caption_picture_M[row]) if direction == "t2i" else row
    return digest_of([evaluation_set.ids[picture], evaluation_set.captions[row] if direction == "t2i" else ""])


def _ranked(evaluation: Evaluation, direction: Direction, labelling: str | None) -> Ranked:
    """Where the right match of every query stands."""
    if direction == "t2i":
        return evaluation.ranks.t2i
    if direction == "i2t":
        return evaluation.ranks.i2t
    return evaluation.ranks.classes[labelling] if labelling else evaluation.ranks.selected


def _answering(
    direction: Direction, labelling: str | None, shown: int
) -> Callable[[Evaluation, int], tuple[tuple[int, ...], tuple[bool, ...]]]:
    """What an evaluation puts first for a query: rows, and whether each is right."""

    def first(evaluation: Evaluation, query: int) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        evaluation_set = evaluation.evaluation_set
        owner_M, pictures_ND = evaluation_set.caption_picture_M, evaluation.pictures_ND
        rows = None
        if direction == "t2i":
            scores, right = pictures_ND @ evaluation.captions_MD[query], np.arange(len(pictures_ND)) == owner_M[query]
        elif labelling:
            scores = evaluation.classes[labelling] @ pictures_ND[query]
            right = np.arange(len(scores)) == evaluation_set.labels[labelling].target_N[query]
        elif direction == "choice":
            rows = np.flatnonzero(owner_M == query)
            scores, right = evaluation.captions_MD[rows] @ pictures_ND[query], np.asarray(evaluation_set.right_M)[rows]
        else:
            scores, right = evaluation.captions_MD @ pictures_ND[query], owner_M == query
        order = np.argsort(-scores, kind="stable")[:shown]
        return tuple((order if rows is None else rows[order]).tolist()), tuple(right[order].astype(bool).tolist())

    return first
