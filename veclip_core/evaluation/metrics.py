"""The metrics of an evaluation by name, each as a function of picture weights, and what chance gives.

All are in percent, but for median ranks, which are ranks. In a split, the queries are those of the split's pictures; the gallery
and the classes are the whole set's, so that splits are compared at the same difficulty.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from veclip_core.evaluation import statistics
from veclip_core.evaluation.retrieval import (
    RECALL_AT,
    Ranked,
    chance_median_rank,
    chance_rank_percent,
    chance_recall,
    rank_percent,
)
from veclip_core.evaluation.sets import EvaluationSet
from veclip_core.evaluation.statistics import Statistic

HEADLINE = ("mean_recall", "mean_rank")
"""Of retrieval."""
SELECTION = "selection_accuracy"
CLASS_TOP = (1, 5)
FEWEST_CLASSES_FOR_TOP_5 = 10
NO_RANKS = Ranked.last(0, 1)


@dataclass(frozen=True)
class Ranks:
    """Where the right match of every query stands, for one model on one set."""

    i2t: Ranked
    """Empty, as `t2i`, for a set without retrieval."""
    t2i: Ranked
    classes: Mapping[str, Ranked]
    """By labelling: the right class of each picture."""
    selected: Ranked = field(default_factory=lambda: NO_RANKS)
    """Of a choice among each picture's captions: the best right one. Empty for a set without."""


def better(metric: str) -> Literal["higher", "lower"]:
    return "lower" if metric.endswith(("mean_rank", "median_rank")) else "higher"


def is_retrieval(evaluation_set: EvaluationSet) -> bool:
    """Whether captions are to be found among all; of a choice among each picture's own, the wrong ones are nobody's."""
    return bool(evaluation_set.captions) and evaluation_set.right_M is None


def headline_of(evaluation_set: EvaluationSet) -> tuple[str, ...]:
    """By what models are compared on a set: retrieval where it has captions, else a choice among captions, else classes."""
    if is_retrieval(evaluation_set):
        return HEADLINE
    if evaluation_set.right_M is not None:
        return (SELECTION,)
    return tuple(f"zeroshot_top1_{label}" for label in evaluation_set.labels)


def metric_statistics(ranks: Ranks, evaluation_set: EvaluationSet) -> dict[str, Statistic]:
    """Every metric of the set, in the order of the report."""
    found = _retrieval_statistics(ranks, evaluation_set) if is_retrieval(evaluation_set) else {}
    if evaluation_set.right_M is not None:
        found[SELECTION] = statistics.ratio(100.0 * ranks.selected.within(1))
    for label, of_classes in ranks.classes.items():
        for k in _tops(len(evaluation_set.labels[label].classes)):
            found[f"zeroshot_top{k}_{label}"] = statistics.ratio(100.0 * of_classes.within(k))
        found[f"zeroshot_per_class_{label}"] = statistics.mean_per_class(
            100.0 * of_classes.within(1), evaluation_set.labels[label].target_N
        )
    return found


def _retrieval_statistics(ranks: Ranks, evaluation_set: EvaluationSet) -> dict[str, Statistic]:
    pictures, captions = len(evaluation_set), len(evaluation_set.captions)
    owner_M = evaluation_set.caption_picture_M
    captions_N = np.bincount(owner_M, minlength=pictures)

    def over_captions(value_M: np.ndarray) -> Statistic:
        return statistics.ratio(np.bincount(owner_M, weights=value_M, minlength=pictures), captions_N)

    found: dict[str, Statistic] = {}
    for k in RECALL_AT:
        found[f"i2t_r@{k}"] = statistics.ratio(100.0 * ranks.i2t.within(k))
        found[f"t2i_r@{k}"] = over_captions(100.0 * ranks.t2i.within(k))
    ways = {
        "i2t_mean_rank": statistics.ratio(rank_percent(ranks.i2t.rank_Q, captions)),
        "t2i_mean_rank": over_captions(rank_percent(ranks.t2i.rank_Q, pictures)),
    }
    return {
        "mean_recall": statistics.mean_of(list(found.values())),
        "mean_rank": statistics.mean_of(list(ways.values())),
        **found,
        **ways,
        "i2t_median_rank": statistics.median(ranks.i2t.rank_Q),
        "t2i_median_rank": statistics.median(ranks.t2i.rank_Q, owner_M),
    }


def chance(evaluation_set: EvaluationSet, split: str) -> dict[str, float]:
    """What a random order of the gallery gives for the queries of the split."""
    mask_N = evaluation_set.splits[split]
    found = _retrieval_chance(evaluation_set, mask_N) if is_retrieval(evaluation_set) else {}
    if evaluation_set.right_M is not None:
        owner_M, pictures = evaluation_set.caption_picture_M, len(evaluation_set)
        right_N = np.bincount(owner_M, weights=evaluation_set.right_M, minlength=pictures)
        found[SELECTION] = float(100 * (right_N / np.bincount(owner_M, minlength=pictures))[mask_N].mean())
    for label, labelling in evaluation_set.labels.items():
        classes = len(labelling.classes)
        for k in _tops(classes):
            found[f"zeroshot_top{k}_{label}"] = 100 * k / classes
        found[f"zeroshot_per_class_{label}"] = 100 / classes
    return found


def _retrieval_chance(evaluation_set: EvaluationSet, mask_N: np.ndarray) -> dict[str, float]:
    pictures, captions = len(evaluation_set), len(evaluation_set.captions)
    right_i2t = np.bincount(evaluation_set.caption_picture_M, minlength=pictures)[mask_N]
    right_t2i = np.ones(int(mask_N[evaluation_set.caption_picture_M].sum()))
    found: dict[str, float] = {}
    for k in RECALL_AT:
        found[f"i2t_r@{k}"] = chance_recall(k, captions, right_i2t)
        found[f"t2i_r@{k}"] = chance_recall(k, pictures, right_t2i)
    ways = {
        "i2t_mean_rank": chance_rank_percent(captions, right_i2t),
        "t2i_mean_rank": chance_rank_percent(pictures, right_t2i),
    }
    return found | {
        "mean_recall": float(np.mean(list(found.values()))),
        "mean_rank": float(np.mean(list(ways.values()))),
        **ways,
        "i2t_median_rank": chance_median_rank(captions, right_i2t),
        "t2i_median_rank": chance_median_rank(pictures, right_t2i),
    }


def _tops(classes: int) -> tuple[int, ...]:
    """Top-5 of nine classes says nothing."""
    return CLASS_TOP if classes >= FEWEST_CLASSES_FOR_TOP_5 else CLASS_TOP[:1]


def queries(evaluation_set: EvaluationSet, split: str, metric: str) -> int:
    """How many queries the metric is a mean of: captions for t2i, pictures otherwise."""
    mask_N = evaluation_set.splits[split]
    return int(mask_N[evaluation_set.caption_picture_M].sum() if metric.startswith("t2i") else mask_N.sum())
