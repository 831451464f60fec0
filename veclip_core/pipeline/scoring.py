"""Any models on any evaluation sets: embedded by the resumable stage `embed`, then ranked and drawn."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from veclip_core import storage
from veclip_core.evaluation.embed import EmbedOperation, of_pictures, of_texts, readable_now
from veclip_core.evaluation.evaluate import Embeddings, Evaluation, EvaluationConfig, scored
from veclip_core.evaluation.index import Index, index_captions, index_classes, index_pictures
from veclip_core.evaluation.opening import MISSING
from veclip_core.evaluation.sets import EvaluationSet, EvaluationSetError
from veclip_core.execution.here import ThisProcess
from veclip_core.execution.local import LocalExecutor
from veclip_core.networks import ClipNetwork, NetworkConfig, open_network
from veclip_core.pipeline import executors
from veclip_core.settings import Settings
from veclip_core.shards import ShardSet
from veclip_core.stage import Executor, StageFailed, run_stage

logger = logging.getLogger(__name__)

MOST_UNREADABLE = 0.01
"""Of a set's pictures. With more it is another set."""
SHOWN = 3


@dataclass(frozen=True)
class Candidate:
    """A model to be scored."""

    name: str
    """As pages and tables show it."""
    network: NetworkConfig
    seed: int = 0


def score(
    settings: Settings,
    candidates: Sequence[Candidate],
    sets: Sequence[EvaluationSet],
    config: EvaluationConfig | None = None,
) -> list[Evaluation]:
    """Evaluate every model on every set, sets outer. What is embedded already is read, whoever embedded it.

    Raises:
        EvaluationSetError: when more than 1 % of a set's pictures can't be read, or workers don't reach them.
        StageFailed: when a model can't be loaded, or gives what can't be ranked.
    """
    config = config or EvaluationConfig()
    made: dict[tuple[int, int], Embeddings] = {}
    for number, candidate in enumerate(candidates):
        embedding = _Embedding.of(settings, candidate.network)
        for place, evaluation_set in enumerate(sets):
            logger.info("%s, seed %d, on %s", candidate.name, candidate.seed, evaluation_set.name)
            made[place, number] = embedding.of_set(evaluation_set, config)
    return [
        scored(
            made.pop((place, number)),
            candidate.name,
            evaluation_set,
            seed=candidate.seed,
            model=candidate.network.identity(),
            config=config,
        )
        for place, evaluation_set in enumerate(sets)
        for number, candidate in enumerate(candidates)
    ]


@dataclass(frozen=True)
class _Embedding:
    """One model at work."""

    root: str
    operation: EmbedOperation
    executor: Executor

    @classmethod
    def of(cls, settings: Settings, network: NetworkConfig) -> "_Embedding":
        operation = EmbedOperation(network, settings.threads)
        executor = executors.for_captions(settings, operation)
        if isinstance(executor, LocalExecutor) and executor.workers == 1 and not executor.gpus:
            # A process of its own would import torch for each model and set: seconds, where a small set takes one.
            opener: Callable[[], ClipNetwork] = cache(lambda: open_network(network, settings.threads))
            return cls(settings.root, replace(operation, opener=opener), ThisProcess())
        return cls(settings.root, operation, executor)

    def of_set(self, evaluation_set: EvaluationSet, config: EvaluationConfig) -> Embeddings:
        """The set's embeddings and its classes'."""
        picture_ND, unreadable = self._pictures(evaluation_set)
        caption_MD = np.zeros((0, 1), np.float32)
        if evaluation_set.captions:
            captions = index_captions(self.root, evaluation_set.captions)
            caption_MD = of_texts(self._made(captions, f"captions of {evaluation_set.name}"), captions)
        classes = {}
        for label, labelling in evaluation_set.labels.items():
            texts = index_classes(self.root, labelling, labelling.templates_or(config.templates))
            classes[label] = of_texts(self._made(texts, f"classes of {evaluation_set.name}"), texts)
        return Embeddings(picture_ND, caption_MD, classes, unreadable)

    def _pictures(self, evaluation_set: EvaluationSet) -> tuple[np.ndarray, dict[int, str]]:
        """Their embeddings, and those that can't be read; what can be by now is embedded again."""
        index = index_pictures(self.root, evaluation_set)
        embedded = self._made(index, evaluation_set.name)
        picture_ND, unreadable = of_pictures(embedded, index, len(evaluation_set))
        if by_now := readable_now(evaluation_set, unreadable):
            for key in index.keys_of(by_now):
                storage.delete(embedded.file(key, "success.json"))
            embedded = self._made(index, evaluation_set.name)
            picture_ND, unreadable = of_pictures(embedded, index, len(evaluation_set))
            _require_within_reach(evaluation_set, [row for row in by_now if unreadable.get(row) == MISSING])
        _require_readable(evaluation_set, unreadable)
        return picture_ND, unreadable

    def _made(self, index: Index, name: str) -> ShardSet:
        report = run_stage(
            self.operation,
            root=self.root,
            source=index.shards.source,
            scale=name,
            grid=index.grid,
            parts=1,
            partial=False,
            inputs={"index": index.shards},
            executor=self.executor,
        )
        embedded = ShardSet(self.root, index.shards.source, self.operation.name, report.identity)
        for key, why in embedded.quarantined(index.shard_keys()).items():
            raise StageFailed(f"{self.operation.config.model} on {name}: shard {key} can't be embedded: {why['error']}")
        return embedded


def _require_within_reach(evaluation_set: EvaluationSet, rows: Sequence[int]) -> None:
    """These can be read here, and those who embed just found no file."""
    if not rows:
        return
    raise EvaluationSetError(
        f"{evaluation_set.name}: {len(rows):,} of {len(evaluation_set):,} pictures are there for this process but not for the"
        f" workers, {evaluation_set.pictures[rows[0]].address} first: the workers need the set's folder at the same path, as on a"
        " disk that all of them share, or the set by an address (s3://..., https://...). Or evaluate where it lies, with"
        " VECLIP_EXECUTOR=local"
    )


def _require_readable(evaluation_set: EvaluationSet, unreadable: Mapping[int, str]) -> None:
    if len(unreadable) <= MOST_UNREADABLE * len(evaluation_set):
        return
    first = [f"{evaluation_set.pictures[row].address} ({evaluation_set.ids[row]}): {why}" for row, why in
             list(unreadable.items())[:SHOWN]]  # fmt: skip
    raise EvaluationSetError(
        f"{evaluation_set.name}: {len(unreadable):,} of {len(evaluation_set):,} pictures can't be read, which would be another set:"
        f" {'; '.join(first)}. Fetch them again, then run the same command: what is embedded stays"
    )
