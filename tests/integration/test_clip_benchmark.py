"""Our scores of a model against CLIP_benchmark's, each on its own code path from the same files: loader, model, metrics."""

from pathlib import Path

import pytest

from tests.clip_benchmark_sets import clip_benchmark, write_set
from tests.unit.clip_models import write_open_clip
from veclip_core.evaluation.evaluate import Evaluation, EvaluationConfig
from veclip_core.evaluation.sets import EvaluationSet
from veclip_core.networks import network_config
from veclip_core.pipeline.scoring import Candidate, score
from veclip_core.settings import Settings


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_open_clip(tmp_path_factory.mktemp("model") / "open_clip"))


def scored(model: str, evaluation_set: EvaluationSet, root: Path) -> Evaluation:
    settings = Settings(root=str(root), threads=1)
    candidate = Candidate("ours", network_config(model, settings.root))
    return score(settings, [candidate], [evaluation_set], EvaluationConfig(draws=10))[0]


def test_retrieval_with_five_captions_a_picture(model: str, tmp_path: Path) -> None:
    evaluation_set = write_set(tmp_path / "retrieval", 130, retrieval=True)
    theirs = clip_benchmark(model, tmp_path / "retrieval", retrieval=True)
    ours = scored(model, evaluation_set, tmp_path / "root")
    for k in (1, 5, 10):
        assert ours.metric(f"i2t_r@{k}") / 100 == pytest.approx(theirs[f"text_retrieval_recall@{k}"], abs=1e-6)
        assert ours.metric(f"t2i_r@{k}") / 100 == pytest.approx(theirs[f"image_retrieval_recall@{k}"], abs=1e-6)
    assert 0.01 < theirs["image_retrieval_recall@10"] < 0.5


def test_classification_with_templates(model: str, tmp_path: Path) -> None:
    evaluation_set = write_set(tmp_path / "classes", 200, retrieval=False)
    theirs = clip_benchmark(model, tmp_path / "classes", retrieval=False)
    ours = scored(model, evaluation_set, tmp_path / "root")
    for metric, of_theirs in (("top1", "acc1"), ("top5", "acc5"), ("per_class", "mean_per_class_recall")):
        assert ours.metric(f"zeroshot_{metric}_class") / 100 == pytest.approx(theirs[of_theirs], abs=1e-6)
    assert 0.02 < theirs["acc1"] < 0.5
