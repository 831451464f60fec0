"""Evaluate one model on one set: rank and draw, from embeddings. `compare` sets the evaluations of several models beside each
other, `pipeline/scoring.py` embeds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from veclip_core.config import Config, digest_of
from veclip_core.evaluation.compare import compare, score_rows
from veclip_core.evaluation.metrics import NO_RANKS, Ranks, is_retrieval, metric_statistics
from veclip_core.evaluation.retrieval import Ranked, retrieval_ranks, selected
from veclip_core.evaluation.sets import EvaluationSet
from veclip_core.evaluation.statistics import Drawn, draw_all
from veclip_core.evaluation.zeroshot import DRAWING_TEMPLATES, class_embeddings, class_ranks

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Embeddings", "EvalModel", "Evaluation", "EvaluationConfig", "compare", "evaluate", "scored"]


class EvalModel(Protocol):
    """What is evaluated: both ways return float32 [rows, D], L2-normalised."""

    def encode_image(self, pictures: "list[Image]") -> np.ndarray: ...

    def encode_text(self, texts: list[str]) -> np.ndarray: ...


class EvaluationConfig(Config):
    """How models are scored."""

    templates: tuple[str, ...] = DRAWING_TEMPLATES
    """Texts of which a class's embedding is the normalised mean; `{}` stands for the class name."""
    draws: int = 2_000
    """Bootstrap draws behind each interval."""
    confidence: float = 0.95
    """Coverage of the intervals."""
    bootstrap_seed: int = 0
    """Seed of the draws; the same draws serve all models, which pairs them."""


@dataclass(frozen=True)
class Embeddings:
    """What a model made of a set: all that metrics are computed from."""

    pictures_ND: np.ndarray
    """Float32, L2-normalised; zeros for a picture that can't be read."""
    captions_MD: np.ndarray
    classes: Mapping[str, np.ndarray]
    """By labelling [C, D]."""
    unreadable: Mapping[int, str] = field(default_factory=dict)
    """Row to reason."""


@dataclass(frozen=True)
class Evaluation:
    """One model of one seed on one set."""

    model: str
    seed: int
    identity: str
    """Digest of model, set and configuration."""
    config: EvaluationConfig
    evaluation_set: EvaluationSet = field(repr=False)
    pictures_ND: np.ndarray = field(repr=False)
    captions_MD: np.ndarray = field(repr=False)
    ranks: Ranks = field(repr=False)
    drawn: dict[tuple[str, str], Drawn] = field(repr=False)
    """By (split, metric): the value and its bootstrap draws; models of one set share the draws."""
    scores: tuple[dict[str, Any], ...] = field(repr=False)
    """Rows {model, set, split, metric, value, low, high, n, seed, chance}; percent, but for median ranks; intervals over
    queries."""
    unreadable: int = 0
    """Pictures that can't be read: misses, whatever the metric."""
    classes: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    """By labelling: an embedding of each class, [C, D]."""

    def metric(self, name: str, split: str = "all") -> float:
        """The value of one metric."""
        return next(row["value"] for row in self.scores if row["metric"] == name and row["split"] == split)


def scored(
    embeddings: Embeddings,
    name: str,
    evaluation_set: EvaluationSet,
    *,
    seed: int,
    model: str,
    config: EvaluationConfig | None = None,
) -> Evaluation:
    """Score what a model made of a set. `model` is a digest of its weights and of all else that decides its embeddings."""
    config = config or EvaluationConfig()
    ranks = _ranks(embeddings, evaluation_set)
    evaluation = Evaluation(
        model=name,
        seed=seed,
        identity=digest_of({"model": model, "set": evaluation_set.content, "config": config.identity()})[:32],
        config=config,
        evaluation_set=evaluation_set,
        pictures_ND=embeddings.pictures_ND,
        captions_MD=embeddings.captions_MD,
        ranks=ranks,
        drawn=_draw(ranks, evaluation_set, config),
        scores=(),
        unreadable=len(embeddings.unreadable),
        classes=embeddings.classes,
    )
    return replace(evaluation, scores=tuple(score_rows([evaluation], seed=seed)))


def evaluate(
    model: EvalModel,
    name: str,
    evaluation_set: EvaluationSet,
    *,
    seed: int,
    checkpoint: str,
    config: EvaluationConfig | None = None,
    batch: int = 64,
) -> Evaluation:
    """Score a loaded model; nothing is kept. `checkpoint` is a digest of its weights."""
    config = config or EvaluationConfig()

    def in_batches(rows: Sequence[Any], encode: Callable[[list[Any]], np.ndarray]) -> np.ndarray:
        starts = range(0, len(rows), batch)
        parts = [np.asarray(encode(list(rows[start : start + batch])), dtype=np.float32) for start in starts]
        return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)

    def encode_text(texts: list[str]) -> np.ndarray:
        return in_batches(texts, model.encode_text)

    def encode_rows(rows: list[int]) -> np.ndarray:
        return model.encode_image([evaluation_set.open_picture(row) for row in rows])

    pictures_ND = in_batches(range(len(evaluation_set)), encode_rows)
    captions_MD = encode_text(list(evaluation_set.captions))
    classes = {
        label: class_embeddings(encode_text, labelling.classes, labelling.templates_or(config.templates))
        for label, labelling in evaluation_set.labels.items()
    }
    embeddings = Embeddings(pictures_ND, captions_MD, classes)
    return scored(embeddings, name, evaluation_set, seed=seed, model=checkpoint, config=config)


def _ranks(embeddings: Embeddings, evaluation_set: EvaluationSet) -> Ranks:
    unreadable = np.array(list(embeddings.unreadable), np.int64)
    pictures_ND, captions_MD, owner_M = embeddings.pictures_ND, embeddings.captions_MD, evaluation_set.caption_picture_M
    i2t = t2i = of_choice = NO_RANKS
    if is_retrieval(evaluation_set):
        found = retrieval_ranks(pictures_ND, captions_MD, owner_M, unreadable=unreadable.tolist())
        i2t, t2i = found.i2t, found.t2i
    if evaluation_set.right_M is not None:
        of_choice = selected(pictures_ND, captions_MD, owner_M, evaluation_set.right_M)
        before = np.maximum(np.bincount(owner_M)[unreadable] - 1, 1)
        of_choice.put(unreadable, Ranked(before, np.zeros_like(before), np.ones_like(before)))
    classes = {}
    for label, labelling in evaluation_set.labels.items():
        classes[label] = class_ranks(pictures_ND, embeddings.classes[label], labelling.target_N)
        classes[label].put(unreadable, Ranked.last(len(unreadable), len(labelling.classes)))
    return Ranks(i2t, t2i, classes, of_choice)


def _draw(ranks: Ranks, evaluation_set: EvaluationSet, config: EvaluationConfig) -> dict[tuple[str, str], Drawn]:
    statistics = metric_statistics(ranks, evaluation_set)
    return {
        (split, metric): drawn
        for split, mask_N in evaluation_set.splits.items()
        for metric, drawn in draw_all(statistics, mask_N, config.draws, config.bootstrap_seed).items()
    }
