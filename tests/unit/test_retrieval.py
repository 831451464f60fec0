"""Retrieval against CLIP_benchmark and against a naive computation."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.unit.evaluation_world import PlantedModel, openmoji, unit_rows, write_openmoji
from veclip_core.evaluation.evaluate import EvaluationConfig, compare, evaluate
from veclip_core.evaluation.metrics import Ranks, chance, metric_statistics
from veclip_core.evaluation.retrieval import (
    chance_median_rank,
    chance_rank_percent,
    chance_recall,
    rank_percent,
    ranked,
    retrieval_ranks,
    selected,
)
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
        assert ranks.i2t.within(k).mean() == pytest.approx(expected[f"text_retrieval_recall@{k}"], abs=1e-6)
        assert ranks.t2i.within(k).mean() == pytest.approx(expected[f"image_retrieval_recall@{k}"], abs=1e-6)
    assert 0.05 < expected["text_retrieval_recall@10"] < 0.95


@pytest.mark.parametrize("shape", SHAPES)
def test_ranks_equal_a_full_sort(shape: str) -> None:
    pictures, captions, owner = embeddings(SHAPES[shape], seed=1)
    scores = pictures.astype(np.float64) @ captions.T.astype(np.float64)
    i2t = [1 + min(np.flatnonzero(owner[np.argsort(-row)] == n)) for n, row in enumerate(scores)]
    t2i = [1 + np.flatnonzero(np.argsort(-row) == owner[m])[0] for m, row in enumerate(scores.T)]
    ranks = retrieval_ranks(pictures, captions, owner, cells=50 * len(owner))
    np.testing.assert_array_equal(ranks.i2t.rank_Q, i2t)
    np.testing.assert_array_equal(ranks.t2i.rank_Q, t2i)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_that_gives_one_score_to_all_has_what_chance_gives(shape: str) -> None:
    owner = np.repeat(np.arange(len(SHAPES[shape])), SHAPES[shape])
    rows = [np.full((count, 4), 0.5, np.float32) for count in (len(SHAPES[shape]), len(owner))]
    found = retrieval_ranks(*rows, owner)
    texts = [[f"{n} {m}" for m in np.flatnonzero(owner == n)] for n in range(len(rows[0]))]
    evaluation_set = ragged_set("same", [Path(f"{n}.jpg") for n in range(len(texts))], texts, content="x")
    expected = chance(evaluation_set, "all")
    for metric, statistic in metric_statistics(Ranks(found.i2t, found.t2i, {}), evaluation_set).items():
        if metric != "i2t_median_rank" or shape == "one":  # the median of a mean rank is not that of ranks
            assert statistic(np.ones((1, len(texts))))[0] == pytest.approx(expected[metric], rel=1e-9), metric


def test_ties_count_as_every_order_of_them_does_on_average() -> None:
    """The scores are small numbers: of each query, every order of its gallery that sorts them is enumerated."""
    generator = np.random.default_rng(8)
    for right, wrong in itertools.product((1, 2, 3), (1, 2, 3, 4)):
        scores = generator.integers(0, 3, size=(1, right + wrong)).astype(np.float32)
        found = ranked(np.ones((1, 1), np.float32), scores.T, np.zeros(1, int), np.repeat([0, 1], [right, wrong]))
        orders = [
            order
            for order in itertools.permutations(range(right + wrong))
            if (np.diff(scores[0, list(order)]) <= 0).all()
        ]
        best = np.array([1 + min(order.index(item) for item in range(right)) for order in orders])
        assert found.rank_Q[0] == pytest.approx(best.mean(), rel=1e-12)
        for k in range(1, right + wrong + 3):
            assert found.within(k)[0] == pytest.approx((best <= k).mean(), abs=1e-12)


def test_a_choice_between_equal_captions_is_as_good_as_chance() -> None:
    picture, other = np.array([[1.0, 0.0]], np.float32), np.array([[0.0, 1.0]], np.float32)
    captions = np.concatenate([picture, other, picture, picture, other, picture])
    found = selected(np.concatenate([picture] * 3), captions, np.repeat([0, 1, 2], 2), np.array([1, 0] * 3))
    np.testing.assert_array_equal(found.within(1), [1, 0.5, 0])
    np.testing.assert_array_equal(found.rank_Q, [1, 1.5, 2])


def test_embeddings_that_are_not_finite_are_refused() -> None:
    pictures, captions, owner = embeddings(SHAPES["one"])
    pictures[7] = np.nan
    with pytest.raises(ValueError, match="1 picture embeddings are not finite"):
        retrieval_ranks(pictures, captions, owner)


@pytest.mark.parametrize("cells", [1, 997, 10**9])
def test_ranks_do_not_depend_on_how_many_at_a_time(cells: int) -> None:
    pictures, captions, owner = embeddings(SHAPES["ragged"], seed=4)
    # On a grid: scores are the same however they are summed, and many are tied.
    pictures, captions = (np.round(rows * 4).astype(np.float32) for rows in (pictures, captions))
    shuffled = np.random.default_rng(0).permutation(len(owner))
    whole = retrieval_ranks(pictures, captions, owner)
    assert (whole.i2t.rank_Q % 1 == 0.5).any()
    found = retrieval_ranks(pictures, captions[shuffled], owner[shuffled], cells=cells)
    np.testing.assert_array_equal(found.i2t.rank_Q, whole.i2t.rank_Q)
    np.testing.assert_array_equal(found.t2i.rank_Q, whole.t2i.rank_Q[shuffled])


def test_what_cannot_be_read_is_last_and_before_nothing() -> None:
    pictures, captions, owner = embeddings(SHAPES["ragged"], seed=5)
    scores = pictures.astype(np.float64) @ captions.T
    bad = [0, 77, 149]
    pictures[bad] = 0
    ranks = retrieval_ranks(pictures, captions, owner, unreadable=bad)
    scores[bad] = -np.inf
    lost = np.isin(owner, bad)
    assert set(ranks.i2t.rank_Q[bad]) == {float(len(owner))}
    assert set(ranks.t2i.rank_Q[lost]) == {150.0}
    t2i = 1 + (scores > scores[owner, np.arange(len(owner))]).sum(0)
    np.testing.assert_array_equal(ranks.t2i.rank_Q[~lost], t2i[~lost])


def test_chance_is_what_random_orders_give() -> None:
    right = np.array([1, 2, 5])
    generator = np.random.default_rng(0)
    best = np.array([[generator.permutation(40)[:r].min() + 1 for r in right] for _ in range(20_000)])
    assert chance_recall(5, 40, right) == pytest.approx(100 * (best <= 5).mean(), abs=0.5)
    assert chance_rank_percent(40, right) == pytest.approx(rank_percent(best, 40).mean(), abs=0.5)
    assert chance_rank_percent(1581, np.ones(3)) == pytest.approx(50)
    assert chance_median_rank(40, right) == pytest.approx(np.median(best), abs=1)
    assert (chance_median_rank(40, np.ones(2)), chance_median_rank(41, np.ones(2))) == (20.5, 21)


def test_metrics_with_several_captions_are_means_over_queries() -> None:
    pictures, captions, owner = embeddings(SHAPES["ragged"], seed=2)
    texts = [[f"{n} {m}" for m in np.flatnonzero(owner == n)] for n in range(len(pictures))]
    evaluation_set = ragged_set("coco", [Path(f"{n}.jpg") for n in range(len(pictures))], texts, content="x")
    found = retrieval_ranks(pictures, captions, owner)
    statistics = metric_statistics(Ranks(found.i2t, found.t2i, {}), evaluation_set)
    values = {metric: statistic(np.ones((1, len(pictures))))[0] for metric, statistic in statistics.items()}
    assert values["t2i_r@5"] == pytest.approx(100 * found.t2i.within(5).mean())
    assert values["i2t_mean_rank"] == pytest.approx((100 * (found.i2t.rank_Q - 1) / (len(owner) - 1)).mean())
    six = [values[f"{way}_r@{k}"] for way in ("i2t", "t2i") for k in (1, 5, 10)]
    assert values["mean_recall"] == pytest.approx(np.mean(six))
    assert values["i2t_median_rank"] == np.median(found.i2t.rank_Q)
    assert values["t2i_median_rank"] == np.median(found.t2i.rank_Q)
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
