"""Zero-shot classification against scikit-learn and CLIP_benchmark."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.evaluation_world import unit_rows
from veclip_core.evaluation.metrics import Ranks, metric_statistics
from veclip_core.evaluation.retrieval import Ranked
from veclip_core.evaluation.sets import ragged_set
from veclip_core.evaluation.zeroshot import DRAWING_TEMPLATES, class_embeddings, class_ranks, readable

CLASSES = [f"class-{c:02d}" for c in range(12)]


@pytest.fixture(scope="module")
def world() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    centres = unit_rows(generator.normal(size=(12, 20)))
    target = generator.choice(12, size=400, p=np.arange(1, 13) / 78)
    return unit_rows(centres[target] + 0.35 * generator.normal(size=(400, 20))), centres, target


def test_accuracies_equal_sklearn_and_clip_benchmark(world: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    from clip_benchmark.metrics.zeroshot_classification import accuracy
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score

    pictures, classes, target = world
    names = tuple(CLASSES[t] for t in target)
    files = [Path(f"{n}.png") for n in range(len(target))]
    evaluation_set = ragged_set(
        "set", files, [[str(n)] for n in range(len(target))], labels={"kind": names}, content="x"
    )
    queries = Ranked.last(len(target), len(target))
    ranks = Ranks(queries, queries, {"kind": class_ranks(pictures, classes, target)})
    statistics = metric_statistics(ranks, evaluation_set)
    value = {metric: statistic(np.ones((1, len(target))))[0] / 100 for metric, statistic in statistics.items()}

    scores = pictures @ classes.T
    predicted = scores.argmax(1)
    assert value["zeroshot_top1_kind"] == pytest.approx(accuracy_score(target, predicted), abs=1e-6)
    assert value["zeroshot_top5_kind"] == pytest.approx(top_k_accuracy_score(target, scores, k=5), abs=1e-6)
    assert value["zeroshot_per_class_kind"] == pytest.approx(balanced_accuracy_score(target, predicted), abs=1e-6)
    top1, top5 = accuracy(torch.tensor(scores), torch.tensor(target), topk=(1, 5))
    assert value["zeroshot_top1_kind"] == pytest.approx(top1, abs=1e-6)
    assert value["zeroshot_top5_kind"] == pytest.approx(top5, abs=1e-6)
    assert 0.2 < top1 < 0.95


def test_of_classes_with_the_same_text_either_may_be_meant(world: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """As of ImageNet's `missile` and `sunglasses`: CLIP_benchmark's sort keeps one of the two, whichever; we count both by half."""
    from clip_benchmark.metrics.zeroshot_classification import accuracy

    pictures, classes, target = world
    twins = [5, 11]
    classes = classes.copy()
    classes[11] = classes[5]
    scores, twin = torch.tensor(pictures @ classes.T), np.isin(target, twins)
    found = class_ranks(pictures, classes, target)
    assert (found.tied_wrong_Q[twin] == 1).all()
    for k in (1, 5):
        # Its sort may keep either: all of one, or all of the other.
        kept = []
        for first in (5, 11):
            told = scores.clone()
            told[:, [twin for twin in twins if twin != first]] -= 1e-6
            kept.append(accuracy(told, torch.tensor(target), topk=(k,))[0])
        low, high = min(kept), max(kept)
        assert low < found.within(k).mean() < high
        assert found.within(k).mean() == pytest.approx((low + high) / 2, abs=2e-3)
        assert low - 1e-6 <= accuracy(scores, torch.tensor(target), topk=(k,))[0] <= high + 1e-6
        alone = accuracy(scores[~twin], torch.tensor(target[~twin]), topk=(k,))[0]
        assert found.within(k)[~twin].mean() == pytest.approx(alone, abs=1e-6 if k == 1 else 0.01)


def test_class_embeddings_equal_clip_benchmark() -> None:
    from clip_benchmark.metrics.zeroshot_classification import zero_shot_classifier

    def encode(texts: list[str]) -> np.ndarray:
        seeds = [np.frombuffer(text.encode().ljust(64), dtype=np.uint32) for text in texts]
        return unit_rows(np.stack([np.random.default_rng(seed).normal(size=16) for seed in seeds]))

    class Encoder:
        encode_text = staticmethod(lambda tokens: 3 * tokens)

    expected = zero_shot_classifier(
        Encoder(), lambda texts: torch.tensor(encode(texts)), CLASSES, [t.replace("{}", "{c}") for t in DRAWING_TEMPLATES],
        "cpu", amp=False,
    )  # fmt: skip
    found = class_embeddings(encode, CLASSES, DRAWING_TEMPLATES)
    np.testing.assert_allclose(found, expected.numpy().T, atol=1e-6)


def test_labels_become_words() -> None:
    assert readable("animal-mammal") == "animal mammal"
    assert readable("Smileys & Emotion") == "Smileys and Emotion"
