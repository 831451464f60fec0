"""Retrieval against CLIP_benchmark and against a naive computation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.unit.evaluation_world import PlantedModel, openmoji, unit_rows, write_openmoji
from veclip_core.evaluation.evaluate import EvaluationConfig, compare, evaluate
from veclip_core.evaluation.metrics import Ranks, chance, metric_statistics
from veclip_core.evaluation.retrieval import chance_rank_percent, chance_recall, rank_percent, retrieval_ranks
from veclip_core.evaluation.sets import EvaluationSetError, ragged_set, read_openmoji


def embeddings(captions_each: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    concepts = generator.normal(size=(len(captions_each), 24))
    owner = np.repeat(np.arange(len(captions_each)), captions_each)
    pictures = unit_rows(concepts + 2 * generator.normal(size=concepts.shape))
    captions = unit_rows(concepts[owner] + 2 * generator.normal(size=(len(owner), 24)))
    return pictures, captions, owner


SHAPES = {"one": [1] * 300, "five": [5] * 120, "ragged": [1 + i % 4 for i in range(150)]}


@pytest.mark.parametrize("shape", SHAPES)
def test_recall_equals_clip_benchmark(shape: str) -> None:
    from clip_benchmark.metrics import zeroshot_retrieval

    pictures, captions, owner = embeddings(SHAPES[shape])

    class Given:
        """CLIP_benchmark's own loop, fed with embeddings in the place of pictures and of tokens."""

        encode_image = staticmethod(lambda rows: rows)
        encode_text = staticmethod(lambda rows: rows)

    numbers = [[str(m) for m in np.flatnonzero(owner == n)] for n in range(len(pictures))]
    batches = [(torch.tensor(pictures[i : i + 64]), numbers[i : i + 64]) for i in range(0, len(pictures), 64)]
    expected = zeroshot_retrieval.evaluate(
        Given(),
        batches,
        lambda texts: torch.tensor(captions[[int(t) for t in texts]]),
        "cpu",
        amp=False,
        recall_k_list=[1, 5, 10],
    )

    ranks = retrieval_ranks(pictures, captions, owner, cells=37 * len(owner))
    for k in (1, 5, 10):
        assert (ranks.i2t_N <= k).mean() == pytest.approx(expected[f"text_retrieval_recall@{k}"], abs=1e-6)
        assert (ranks.t2i_M <= k).mean() == pytest.approx(expected[f"image_retrieval_recall@{k}"], abs=1e-6)
    assert 0.05 < expected["text_retrieval_recall@10"] < 0.95


@pytest.mark.parametrize("shape", SHAPES)
def test_ranks_equal_a_full_sort(shape: str) -> None:
    pictures, captions, owner = embeddings(SHAPES[shape], seed=1)
    scores = pictures.astype(np.float64) @ captions.T.astype(np.float64)
    i2t = [1 + min(np.flatnonzero(owner[np.argsort(-row)] == n)) for n, row in enumerate(scores)]
    t2i = [1 + np.flatnonzero(np.argsort(-row) == owner[m])[0] for m, row in enumerate(scores.T)]
    ranks = retrieval_ranks(pictures, captions, owner, cells=50 * len(owner))
    np.testing.assert_array_equal(ranks.i2t_N, i2t)
    np.testing.assert_array_equal(ranks.t2i_M, t2i)


def test_a_model_that_gives_one_score_to_all_has_the_rank_of_chance_and_no_recall() -> None:
    same = np.ones((41, 4), dtype=np.float32) / 2
    ranks = retrieval_ranks(same, same, np.arange(41))
    assert set(ranks.i2t_N) == {21.0}
    assert rank_percent(ranks.t2i_M, 41).mean() == 50


def test_embeddings_that_are_not_finite_are_refused() -> None:
    pictures, captions, owner = embeddings(SHAPES["one"])
    pictures[7] = np.nan
    with pytest.raises(ValueError, match="1 picture embeddings are not finite"):
        retrieval_ranks(pictures, captions, owner)


def test_chance_is_what_random_orders_give() -> None:
    right = np.array([1, 2, 5])
    generator = np.random.default_rng(0)
    best = np.array([[generator.permutation(40)[:r].min() + 1 for r in right] for _ in range(20_000)])
    assert chance_recall(5, 40, right) == pytest.approx(100 * (best <= 5).mean(), abs=0.5)
    assert chance_rank_percent(40, right) == pytest.approx(rank_percent(best, 40).mean(), abs=0.5)
    assert chance_rank_percent(1581, np.ones(3)) == pytest.approx(50)


def test_metrics_with_several_captions_are_means_over_queries() -> None:
    pictures, captions, owner = embeddings(SHAPES["ragged"], seed=2)
    texts = [[f"{n} {m}" for m in np.flatnonzero(owner == n)] for n in range(len(pictures))]
    evaluation_set = ragged_set("coco", [Path(f"{n}.jpg") for n in range(len(pictures))], texts, content="x")
    found = retrieval_ranks(pictures, captions, owner)
    statistics = metric_statistics(Ranks(found.i2t_N, found.t2i_M, {}), evaluation_set)
    values = {metric: statistic(np.ones((1, len(pictures))))[0] for metric, statistic in statistics.items()}
    assert values["t2i_r@5"] == pytest.approx(100 * (found.t2i_M <= 5).mean())
    assert values["i2t_mean_rank"] == pytest.approx((100 * (found.i2t_N - 1) / (len(owner) - 1)).mean())
    six = [values[f"{way}_r@{k}"] for way in ("i2t", "t2i") for k in (1, 5, 10)]
    assert values["mean_recall"] == pytest.approx(np.mean(six))
    assert chance(evaluation_set, "all").keys() == values.keys()


def test_a_missing_or_incomplete_set_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(EvaluationSetError, match="veclip sample fetch"):
        read_openmoji(tmp_path / "nowhere")
    folder = write_openmoji(tmp_path / "openmoji")
    (folder / "images" / "0003.png").unlink()
    with pytest.raises(EvaluationSetError, match=r"1 of 24 .*0003\.png.*veclip sample fetch"):
        read_openmoji(folder)


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    evaluation_set = openmoji(tmp_path / "openmoji")
    assert evaluation_set.open_picture(0).getpixel((5, 5)) == (255, 255, 255)
    assert evaluation_set.open_picture(1).mode == "RGB"
    assert evaluation_set.splits["unseen"].sum() == 5


def test_evaluations_of_two_models_and_seeds_are_compared(tmp_path: Path) -> None:
    evaluation_set = openmoji(tmp_path / "openmoji", 60)
    config = EvaluationConfig(draws=400)
    found = [
        evaluate(PlantedModel(evaluation_set, signal, seed), name, evaluation_set, seed=seed, checkpoint=f"{name}{seed}",
                 config=config, batch=16)
        for name, signal in (("clip", 0.2), ("veclip", 1.5))
        for seed in (0, 1, 2)
    ]  # fmt: skip
    results = compare(found)
    row = next(r for r in results["differences"] if r["metric"] == "mean_rank" and r["split"] == "all")
    assert row["value"] < 0
    assert row["resolved"]
    assert row["favours"] == "veclip"
    assert row["better"] == "lower"
    assert row["seeds"] == [0, 1, 2]
    ours, theirs = (np.mean([e.metric("mean_rank") for e in found if e.model == m]) for m in ("veclip", "clip"))
    assert row["value"] == pytest.approx(ours - theirs)
    splits = {(r["split"], r["n"]) for r in results["scores"] if r["metric"] == "t2i_r@1"}
    assert splits == {("all", 60), ("fitted", 48), ("unseen", 12)}
    assert all(r["low"] <= r["value"] <= r["high"] for r in results["scores"])
    with pytest.raises(ValueError, match="twice"):
        compare([found[0], found[0]])
    with pytest.raises(ValueError, match="shares no seed"):
        compare([found[0], found[4]])


def test_a_real_open_clip_model_is_evaluated(tmp_path: Path) -> None:
    import open_clip

    torch.manual_seed(0)
    model = open_clip.model.CLIP(
        32,
        open_clip.model.CLIPVisionCfg(image_size=32, layers=1, width=32, head_width=16, patch_size=8),
        open_clip.model.CLIPTextCfg(context_length=16, vocab_size=49408, width=32, heads=2, layers=1),
    ).eval()
    tokenizer = open_clip.SimpleTokenizer(context_length=16)

    class OpenClip:
        @torch.no_grad()
        def encode_image(self, pictures: list[Image.Image]) -> np.ndarray:
            pixels = [torch.from_numpy(np.array(p.resize((32, 32)))).permute(2, 0, 1) / 255 for p in pictures]
            return model.encode_image(torch.stack(pixels), normalize=True).numpy()

        @torch.no_grad()
        def encode_text(self, texts: list[str]) -> np.ndarray:
            return model.encode_text(tokenizer(texts), normalize=True).numpy()

    evaluation = evaluate(OpenClip(), "clip", openmoji(tmp_path / "openmoji"), seed=0, checkpoint="random")
    assert evaluation.pictures_ND.shape == (24, 32)
    assert 20 < evaluation.metric("mean_rank") < 80  # random weights: about chance
