"""Bootstrap percentile intervals over queries, widened by Student's t for the seeds where there are several.

The unit that is drawn is the picture, with all its captions: captions of one picture are not independent of each other.
A draw is a vector of weights over pictures; a metric is a function of weights, so that the same draws serve every metric,
model and seed, and differences are paired. Shapes: B draws, N pictures, S seeds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]
"""Weights over pictures [B, N] -> values [B]."""

CELLS_AT_ONCE = 262_144
"""Weights of a block of draws: 2 MB, which stay in a core's cache while every metric reads them."""


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def ratio(total_N: np.ndarray, count_N: np.ndarray | None = None) -> Statistic:
    """The mean of a value over queries, where picture n carries `count_N[n]` queries (default 1) that sum to `total_N[n]`."""
    total = np.asarray(total_N, dtype=np.float64)
    count = np.ones_like(total) if count_N is None else np.asarray(count_N, dtype=np.float64)

    def value(weights_BN: np.ndarray) -> np.ndarray:
        return (weights_BN @ total) / (weights_BN @ count)

    return value


def mean_of(statistics: Sequence[Statistic]) -> Statistic:
    """The mean of several metrics, drawn together."""

    def value(weights_BN: np.ndarray) -> np.ndarray:
        return np.mean([statistic(weights_BN) for statistic in statistics], axis=0)

    return value


def mean_per_class(value_N: np.ndarray, class_N: np.ndarray) -> Statistic:
    """The mean over classes of the class's mean; a class of which a draw holds no picture is left out of that draw."""
    _, class_of_N = np.unique(class_N, return_inverse=True)
    order_N = np.argsort(class_of_N, kind="stable")
    first_C = np.flatnonzero(np.diff(class_of_N[order_N], prepend=-1))
    value_ordered_N = np.asarray(value_N, dtype=np.float64)[order_N]

    def value(weights_BN: np.ndarray) -> np.ndarray:
        ordered_BN = weights_BN[:, order_N]
        count_BC = np.add.reduceat(ordered_BN, first_C, axis=1)
        ordered_BN *= value_ordered_N
        total_BC = np.add.reduceat(ordered_BN, first_C, axis=1)
        per_class_BC = np.divide(total_BC, count_BC, out=np.zeros_like(total_BC), where=count_BC > 0)
        return per_class_BC.sum(1) / (count_BC > 0).sum(1)

    return value


def median(value_Q: np.ndarray, picture_Q: np.ndarray | None = None) -> Statistic:
    """The median over queries, the middle of two; query q weighs what picture `picture_Q[q]` does (default: its own)."""
    order_Q = np.argsort(value_Q, kind="stable")
    value_ordered_Q = np.asarray(value_Q, dtype=np.float64)[order_Q]
    picture_ordered_Q = order_Q if picture_Q is None else picture_Q[order_Q]

    def value(weights_BN: np.ndarray) -> np.ndarray:
        count_BQ = np.cumsum(weights_BN[:, picture_ordered_Q], axis=1)
        half_B = count_BQ[:, -1] / 2
        pairs = zip(count_BQ, half_B, strict=True)
        lower_B, upper_B = np.transpose(
            [(np.searchsorted(count_Q, half), np.searchsorted(count_Q, half, side="right")) for count_Q, half in pairs]
        )
        return np.asarray((value_ordered_Q[lower_B] + value_ordered_Q[upper_B]) / 2)

    return value


def weight_blocks(mask_N: np.ndarray, draws: int, seed: int, *, cells: int = CELLS_AT_ONCE) -> Iterator[np.ndarray]:
    """How often each picture is drawn, some draws at a time [b, N]; only pictures in the mask are. The numbers do not depend on
    how many at a time."""
    chosen, pictures = np.flatnonzero(mask_N), len(mask_N)
    random = np.random.default_rng([seed, len(chosen)])
    at_once = max(1, cells // pictures)
    for start in range(0, draws, at_once):
        block = min(at_once, draws - start)
        drawn_BN = chosen[random.integers(len(chosen), size=(block, len(chosen)))]
        places = drawn_BN + np.arange(block)[:, None] * pictures
        counts = np.bincount(places.ravel(), minlength=block * pictures)
        yield counts.reshape(block, pictures).astype(np.float64)


def draw_weights(mask_N: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """All draws at once [draws, N]."""
    return np.concatenate(list(weight_blocks(mask_N, draws, seed)))


@dataclass(frozen=True)
class Drawn:
    """A metric of one model and seed: its value, and its value in every draw."""

    value: float
    draws_B: np.ndarray


def draw(statistic: Statistic, mask_N: np.ndarray, weights_BN: np.ndarray) -> Drawn:
    return Drawn(float(statistic(np.asarray(mask_N, dtype=np.float64)[None])[0]), statistic(weights_BN))


def draw_all(statistics: Mapping[str, Statistic], mask_N: np.ndarray, draws: int, seed: int) -> dict[str, Drawn]:
    """Every statistic on the same draws."""
    whole_1N = np.asarray(mask_N, dtype=np.float64)[None]
    found: dict[str, list[np.ndarray]] = {name: [] for name in statistics}
    for weights_BN in weight_blocks(mask_N, draws, seed):
        for name, statistic in statistics.items():
            found[name].append(statistic(weights_BN))
    return {
        name: Drawn(float(statistic(whole_1N)[0]), np.concatenate(found[name]))
        for name, statistic in statistics.items()
    }


def draw_students_t(seeds: int, draws: int, seed: int) -> np.ndarray:
    """Draws of Student's t with S - 1 degrees of freedom [draws]: its quantiles in a random order, so that the tails, long for
    few seeds, do not depend on luck."""
    from scipy.stats import t

    quantiles = t.ppf((np.arange(draws) + 0.5) / draws, df=seeds - 1)
    return np.random.default_rng([seed, seeds, 1]).permutation(quantiles)


def interval(
    by_seed: Sequence[Drawn], minus: Sequence[Drawn] | None = None, *, seed: int, confidence: float = 0.95
) -> Interval:
    """The interval of the mean over seeds of a metric, or of its paired difference to `minus` (same seeds, same draws).

    Pictures are drawn anew; over several seeds each draw also gets the error of a mean of S seeds, s / sqrt(S) times a draw of
    Student's t. Drawing seeds from so few would cover too little: of three, 81 % instead of 95 %. What pictures and seeds do
    together is counted in both, so that the interval is a little too wide rather than too narrow."""
    value_S, draws_BS = _paired(by_seed, minus)
    draws, seeds = draws_BS.shape
    draws_B = draws_BS.mean(axis=1)
    if seeds > 1:
        draws_B = draws_B + draw_students_t(seeds, draws, seed) * value_S.std(ddof=1) / np.sqrt(seeds)
    return _percentiles(value_S, draws_B, confidence)


@dataclass(frozen=True)
class Spread:
    """Where the width of an interval over pictures and seeds comes from."""

    pictures: Interval
    """With these seeds, as if there were no others."""
    seed_deviation: float
    """Standard deviation of the value from seed to seed."""
    seed_half_width: float
    """What that leaves open of the mean over so few seeds, by Student's t."""


def spread(
    by_seed: Sequence[Drawn], minus: Sequence[Drawn] | None = None, *, confidence: float = 0.95
) -> Spread | None:
    """The two parts of `interval`; None for a single seed."""
    from scipy.stats import t

    value_S, draws_BS = _paired(by_seed, minus)
    seeds = len(value_S)
    if seeds == 1:
        return None
    deviation = float(value_S.std(ddof=1))
    half_width = deviation / np.sqrt(seeds) * t.ppf((1 + confidence) / 2, df=seeds - 1)
    return Spread(_percentiles(value_S, draws_BS.mean(axis=1), confidence), deviation, float(half_width))


def _paired(by_seed: Sequence[Drawn], minus: Sequence[Drawn] | None) -> tuple[np.ndarray, np.ndarray]:
    """Values by seed [S] and draws [B, S], of a metric or of its difference to `minus`."""
    value_S = np.array([drawn.value for drawn in by_seed])
    draws_BS = np.stack([drawn.draws_B for drawn in by_seed], axis=1)
    if minus is None:
        return value_S, draws_BS
    if len(minus) != len(by_seed):
        raise ValueError(f"a paired difference needs the same seeds on both sides, not {len(by_seed)} and {len(minus)}")
    return (
        value_S - np.array([drawn.value for drawn in minus]),
        draws_BS - np.stack([drawn.draws_B for drawn in minus], axis=1),
    )


def _percentiles(value_S: np.ndarray, draws_B: np.ndarray, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws_B, [tail, 1 - tail])
    return Interval(float(value_S.mean()), float(low), float(high))
