"""Intervals: coverage by simulation, pairing, and agreement with SciPy's bootstrap."""

import numpy as np
import pytest

from veclip_core.evaluation.statistics import (
    Interval,
    draw,
    draw_all,
    draw_students_t,
    draw_weights,
    interval,
    mean_of,
    mean_per_class,
    median,
    ratio,
    spread,
    weight_blocks,
)

N = 150


def bootstrap(by_seed: np.ndarray, minus: np.ndarray | None = None, draws: int = 2000, seed: int = 0) -> Interval:
    mask = np.ones(by_seed.shape[1], dtype=bool)
    weights = draw_weights(mask, draws, seed)
    ours, theirs = (
        [draw(ratio(row), mask, weights) for row in rows] for rows in (by_seed, by_seed if minus is None else minus)
    )
    return interval(ours, None if minus is None else theirs, seed=seed)


def covers(by_seed: np.ndarray, truth: float, trial: int, minus: np.ndarray | None = None) -> bool:
    found = bootstrap(by_seed, minus, draws=400, seed=trial)
    return found.low <= truth <= found.high


def coverage(one_trial, trials: int = 400) -> float:
    return float(np.mean([one_trial(np.random.default_rng(trial), trial) for trial in range(trials)]))


def test_an_interval_over_queries_covers_the_truth_as_often_as_it_says() -> None:
    found = coverage(lambda generator, trial: covers(generator.exponential(2.0, size=(1, N)), 2.0, trial))
    assert 0.91 <= found <= 0.975


def test_a_paired_interval_covers_though_the_models_share_their_difficulties() -> None:
    def trial(generator: np.random.Generator, number: int) -> bool:
        difficulty = generator.normal(0, 10, size=(1, N))
        base = difficulty + generator.normal(size=(1, N))
        ours = difficulty + 0.5 + generator.normal(size=(1, N))
        return covers(ours, 0.5, number, minus=base)

    assert 0.91 <= coverage(trial) <= 0.98


def test_an_interval_over_queries_and_seeds_covers_where_one_over_queries_alone_does_not() -> None:
    def results(generator: np.random.Generator) -> np.ndarray:
        return (
            generator.normal(0, 1, size=(1, N))
            + generator.normal(0, 0.2, size=(6, 1))
            + generator.normal(0, 1, size=(6, N))
        )

    assert 0.9 <= coverage(lambda generator, trial: covers(results(generator), 0.0, trial)) <= 0.99
    alone = coverage(lambda generator, trial: covers(results(generator)[:1], 0.0, trial))
    assert alone < 0.88


def test_pairing_narrows_the_interval() -> None:
    generator = np.random.default_rng(0)
    difficulty = generator.normal(0, 10, size=N)
    ours, base = difficulty + 0.5 + generator.normal(size=N), difficulty + generator.normal(size=N)
    paired, alone = bootstrap(ours[None], base[None]), bootstrap(ours[None])
    assert paired.value == pytest.approx((ours - base).mean())
    assert paired.high - paired.low < 0.3 * (alone.high - alone.low)
    assert not alone.excludes_zero


def test_the_interval_agrees_with_scipy() -> None:
    from scipy import stats

    values = np.random.default_rng(1).exponential(size=300)
    found = bootstrap(values[None], draws=5000)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=5000, method="percentile", random_state=0
    ).confidence_interval
    assert found.low == pytest.approx(expected.low, abs=0.01)
    assert found.high == pytest.approx(expected.high, abs=0.01)


def test_draws_are_a_function_of_their_seed_and_stay_in_the_mask() -> None:
    mask = np.arange(N) % 3 == 0
    weights = draw_weights(mask, 50, 7)
    np.testing.assert_array_equal(weights, draw_weights(mask, 50, 7))
    assert (weights != draw_weights(mask, 50, 8)).any()
    assert weights[:, ~mask].sum() == 0
    assert (weights.sum(1) == mask.sum()).all()


@pytest.mark.parametrize("seeds", [2, 3])
def test_few_seeds_that_differ_much_are_covered_too(seeds: int) -> None:
    """A bootstrap that draws three seeds from three covers the truth in four of five trials only."""

    def trial(generator: np.random.Generator, number: int) -> bool:
        return covers(generator.normal(0, 1, size=(seeds, 1)) + generator.normal(0, 0.1, size=(seeds, N)), 0.0, number)

    assert 0.92 <= coverage(trial) <= 0.98


def test_the_width_is_told_apart() -> None:
    generator = np.random.default_rng(4)
    mask = np.ones(N, dtype=bool)
    weights = draw_weights(mask, 500, 0)
    by_seed = [draw(ratio(generator.normal(shift, 1, N)), mask, weights) for shift in (1.0, 1.4, 1.8)]
    parts = spread(by_seed)
    assert parts is not None
    assert parts.seed_deviation == pytest.approx(np.std([one.value for one in by_seed], ddof=1))
    assert parts.seed_half_width == pytest.approx(4.303 * parts.seed_deviation / 3**0.5, rel=1e-3)
    whole = interval(by_seed, seed=0)
    assert parts.pictures.excludes_zero
    assert parts.pictures.high - parts.pictures.low < whole.high - whole.low
    assert spread(by_seed[:1]) is None


def test_seeds_are_students_t() -> None:
    from scipy import stats

    drawn = draw_students_t(3, 2000, 0)
    np.testing.assert_allclose(np.quantile(drawn, [0.025, 0.5, 0.975]), stats.t.ppf([0.025, 0.5, 0.975], 2), atol=0.05)
    assert (drawn == draw_students_t(3, 2000, 0)).all()
    assert (drawn != np.sort(drawn)).any()


@pytest.mark.parametrize("cells", [1, 1_000, 7 * N, 10**9])
def test_draws_in_blocks_are_the_draws_at_once(cells: int) -> None:
    mask = np.arange(N) % 4 != 0
    blocks = list(weight_blocks(mask, 61, 5, cells=cells))
    assert max(block.size for block in blocks) <= max(cells, N)
    chosen = np.flatnonzero(mask)
    drawn = chosen[np.random.default_rng([5, len(chosen)]).integers(len(chosen), size=(61, len(chosen)))]
    at_once = np.stack([np.bincount(row, minlength=N) for row in drawn])
    np.testing.assert_array_equal(np.concatenate(blocks), at_once)


def test_statistics_drawn_together_are_those_drawn_alone() -> None:
    generator = np.random.default_rng(6)
    pictures = 70_000  # several blocks of few draws
    mask, classes = generator.random(pictures) < 0.5, generator.integers(0, 1_000, pictures)
    hit = 100.0 * (generator.random(pictures) < 0.3)
    together = draw_all({"top1": ratio(hit), "per_class": mean_per_class(hit, classes)}, mask, 12, 1)
    weights = draw_weights(mask, 12, 1)
    for name, statistic in (("top1", ratio(hit)), ("per_class", mean_per_class(hit, classes))):
        alone = draw(statistic, mask, weights)
        assert together[name].value == pytest.approx(alone.value, rel=1e-12)
        np.testing.assert_allclose(together[name].draws_B, alone.draws_B, rtol=1e-12)


def test_intervals_of_medians_and_of_means_per_class_cover_too() -> None:
    classes = np.arange(N) % 5

    def trial(statistic_of, truth: float):
        def one(generator: np.random.Generator, number: int) -> bool:
            mask = np.ones(N, dtype=bool)
            values = generator.exponential(2.0, N) + classes
            drawn = draw(statistic_of(values), mask, draw_weights(mask, 400, number))
            found = interval([drawn], seed=number)
            return found.low <= truth <= found.high

        return one

    per_class = trial(lambda values: mean_per_class(values, classes), 2.0 + classes.mean())
    assert 0.9 <= coverage(per_class, trials=200) <= 0.985
    # Where the five shifted exponentials' mixture has half its mass.
    edges = np.linspace(0, 12, 120_001)
    mass = np.mean([np.where(edges > c, 1 - np.exp(-(edges - c) / 2), 0) for c in range(5)], axis=0)
    middle = edges[np.searchsorted(mass, 0.5)]
    assert 0.9 <= coverage(trial(median, float(middle)), trials=200) <= 0.985


def test_weights_mean_what_repeating_the_pictures_means() -> None:
    generator = np.random.default_rng(2)
    value, count = generator.random(10), generator.integers(1, 4, 10)
    classes = np.array(list("aabbbccccc"))
    weights = draw_weights(np.ones(10, dtype=bool), 20, 3)
    drawn = [np.repeat(np.arange(10), row.astype(int)) for row in weights]
    np.testing.assert_allclose(ratio(value, count)(weights), [value[d].sum() / count[d].sum() for d in drawn])
    both = mean_of([ratio(value), ratio(value, count)])(weights)
    np.testing.assert_allclose(both, [(value[d].mean() + value[d].sum() / count[d].sum()) / 2 for d in drawn])
    by_class = [np.mean([value[d][classes[d] == c].mean() for c in set(classes[d])]) for d in drawn]
    np.testing.assert_allclose(mean_per_class(value, classes)(weights), by_class)
    np.testing.assert_allclose(median(value)(weights), [np.median(value[d]) for d in drawn])
    owner = np.repeat(np.arange(10), count)
    of_captions = generator.integers(1, 6, len(owner)).astype(float)
    repeated = [np.concatenate([of_captions[owner == picture] for picture in d]) for d in drawn]
    np.testing.assert_allclose(median(of_captions, owner)(weights), [np.median(values) for values in repeated])


def test_seeds_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="same seeds"):
        bootstrap(np.ones((2, 4)), minus=np.ones((1, 4)))
