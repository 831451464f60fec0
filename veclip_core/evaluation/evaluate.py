"""Evaluate one model on one set: embed, rank, score. `compare` sets the evaluations of several models beside each other."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from veclip_core.config import Config, digest_of
from veclip_core.evaluation.compare import compare, score_rows
from veclip_core.evaluation.metrics import Ranks, metric_statistics
from veclip_core.evaluation.retrieval import retrieval_ranks
from veclip_core.evaluation.sets import EvaluationSet
from veclip_core.evaluation.statistics import Drawn, draw, draw_weights
from veclip_core.evaluation.zeroshot import DRAWING_TEMPLATES, class_embeddings, class_ranks

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["EvalModel", "Evaluation", "EvaluationConfig", "compare", "evaluate"]

logger = logging.getLogger(__name__)


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
class Evaluation:
    """One model of one seed on one set."""

    model: str
    seed: int
    identity: str
    """Digest of checkpoint, set and configuration; the name of the embeddings' file."""
    config: EvaluationConfig
    evaluation_set: EvaluationSet = field(repr=False)
    pictures_ND: np.ndarray = field(repr=False)
    captions_MD: np.ndarray = field(repr=False)
    ranks: Ranks = field(repr=False)
    drawn: dict[tuple[str, str], Drawn] = field(repr=False)
    """By (split, metric): the value and its bootstrap draws; models of one set share the draws."""
    scores: tuple[dict[str, Any], ...] = field(repr=False)
    """Rows {model, set, split, metric, value, low, high, n, seed, chance}; percent; intervals over queries."""
    classes: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    """By labelling: an embedding of each class, [C, D]."""

    def metric(self, name: str, split: str = "all") -> float:
        """The value of one metric, in percent."""
        return next(row["value"] for row in self.scores if row["metric"] == name and row["split"] == split)


def evaluate(
    model: EvalModel,
    name: str,
    evaluation_set: EvaluationSet,
    *,
    seed: int,
    checkpoint: str,
    config: EvaluationConfig | None = None,
    folder: Path | None = None,
    batch: int = 64,
) -> Evaluation:
    """Score a model. `checkpoint` is a digest of its weights; with a `folder`, embeddings and ranks are kept there as
    `<identity>.npz`, and a second call with the same identity reads them instead of running the model."""
    config = config or EvaluationConfig()
    identity = digest_of({"checkpoint": checkpoint, "set": evaluation_set.content, "config": config.identity()})[:32]
    kept = folder / f"{identity}.npz" if folder else None
    if kept and kept.is_file():
        logger.info("%s, seed %d: embeddings read from %s", name, seed, kept)
        with np.load(kept, allow_pickle=False) as arrays:
            embeddings = {key: arrays[key] for key in arrays.files}
    else:
        embeddings = _embed(model, name, evaluation_set, config, batch)
    ranks = _ranks(embeddings, evaluation_set)
    if kept and not kept.is_file():
        _keep(kept, embeddings, ranks)
    evaluation = Evaluation(
        model=name,
        seed=seed,
        identity=identity,
        config=config,
        evaluation_set=evaluation_set,
        pictures_ND=embeddings["pictures"],
        captions_MD=embeddings["captions"],
        ranks=ranks,
        drawn=_draw(ranks, evaluation_set, config),
        scores=(),
        classes={label: embeddings[f"classes_{label}"] for label in evaluation_set.labels},
    )
    return replace(evaluation, scores=tuple(score_rows([evaluation], seed=seed)))


def _embed(
    model: EvalModel, name: str, evaluation_set: EvaluationSet, config: EvaluationConfig, batch: int
) -> dict[str, np.ndarray]:
    def in_batches(rows: Sequence[Any], what: str, encode: Callable[[list[Any]], np.ndarray]) -> np.ndarray:
        from tqdm import tqdm

        starts = tqdm(range(0, len(rows), batch), desc=f"{name}: {what}", unit="batch", disable=len(rows) <= batch)
        encoded = np.concatenate([np.asarray(encode(list(rows[i : i + batch])), dtype=np.float32) for i in starts])
        lengths = np.linalg.norm(encoded, axis=1)
        if len(encoded) != len(rows) or not np.allclose(lengths, 1, atol=1e-3):
            raise ValueError(f"{name}: {what} came back as {encoded.shape} with lengths {lengths.min():.3f}..{lengths.max():.3f}"
                             f", expected {len(rows)} L2-normalised rows")  # fmt: skip
        return encoded

    def encode_text(texts: list[str]) -> np.ndarray:
        return in_batches(texts, "texts", model.encode_text)

    def encode_rows(rows: list[int]) -> np.ndarray:
        return model.encode_image([evaluation_set.open_picture(row) for row in rows])

    embeddings = {
        "pictures": in_batches(range(len(evaluation_set)), "pictures", encode_rows),
        "captions": encode_text(list(evaluation_set.captions)),
    }
    for label, labelling in evaluation_set.labels.items():
        templates = labelling.templates or config.templates
        embeddings[f"classes_{label}"] = class_embeddings(encode_text, labelling.classes, templates)
    return embeddings


def _ranks(embeddings: dict[str, np.ndarray], evaluation_set: EvaluationSet) -> Ranks:
    found = retrieval_ranks(embeddings["pictures"], embeddings["captions"], evaluation_set.caption_picture_M)
    classes = {}
    for label, labelling in evaluation_set.labels.items():
        classes[label] = class_ranks(embeddings["pictures"], embeddings[f"classes_{label}"], labelling.target_N)
    return Ranks(found.i2t_N, found.t2i_M, classes)


def _draw(ranks: Ranks, evaluation_set: EvaluationSet, config: EvaluationConfig) -> dict[tuple[str, str], Drawn]:
    drawn = {}
    for split, mask_N in evaluation_set.splits.items():
        weights_BN = draw_weights(mask_N, config.draws, config.bootstrap_seed)
        for metric, statistic in metric_statistics(ranks, evaluation_set).items():
            drawn[split, metric] = draw(statistic, mask_N, weights_BN)
    return drawn


def _keep(path: Path, embeddings: dict[str, np.ndarray], ranks: Ranks) -> None:
    """Written aside and moved, so that a killed evaluation leaves no half file under the final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    by_query = {"ranks_i2t": ranks.i2t_N, "ranks_t2i": ranks.t2i_M}
    by_query |= {f"ranks_classes_{label}": rank_N for label, rank_N in ranks.classes.items()}
    np.savez(aside, **embeddings, **by_query)  # type: ignore[arg-type]  # numpy's stub takes the names for `allow_pickle`
    aside.replace(path)
