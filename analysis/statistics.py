"""Effects with intervals: bootstrap over images, and over attack and training seeds where there are several.

Rates, whose bootstrap would have no width at 0 and 1, are drawn from Jeffreys' posterior instead.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, rankdata, sem, t

DRAWS = 2000
LEVEL = 0.95
_Z = float(norm.ppf((1 + LEVEL) / 2))


def wilson_interval(hits: npt.ArrayLike, n: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """95 % Wilson score intervals of proportions: the lower and the upper bounds, float64.

    The formula of SciPy's `binomtest`, for many proportions at once and without its test.
    """
    hits, n = np.asarray(hits, dtype=float), np.asarray(n, dtype=float)
    centre = (hits + _Z**2 / 2) / (n + _Z**2)
    half = _Z / (n + _Z**2) * np.sqrt(hits * (n - hits) / n + _Z**2 / 4)
    return np.where(hits == 0, 0, centre - half), np.where(hits == n, 1, centre + half)


@dataclass(frozen=True)
class Estimate:
    """A statistic and what is known of its spread.

    Attributes:
        value: its value.
        draws: bootstrap replicates, (DRAWS,), NaN where one has no value; empty where only the value was published.
        spread: largest difference between two training seeds; 0 with a single one.
        n: images behind it.
        seeds: training seeds behind it.
    """

    value: float
    draws: np.ndarray
    spread: float = 0.0
    n: int = 0
    seeds: int = 1

    @property
    def interval(self) -> tuple[float, float]:
        """The middle 95 % of the replicates, and the value itself, which lies beyond them where no image or every
        image counts; NaN where there are no replicates.
        """
        known = self.draws[np.isfinite(self.draws)]
        if not len(known):
            return (float("nan"), float("nan"))
        low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return min(float(low), self.value), max(float(high), self.value)


def generator(*key: object) -> np.random.Generator:
    """For replicates that depend on what they are of, and not on what was computed before."""
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def mean_estimate(samples: Sequence[Sequence[np.ndarray]], rng: np.random.Generator) -> Estimate:
    """The mean of values of images, averaged over attack seeds and then over training seeds.

    Images are resampled within each run, attack seeds and training seeds where there are several.

    Args:
        samples: per training seed the values of each attack seed.

    Raises:
        ValueError: no values.
    """
    trainings = [[np.asarray(values, dtype=float) for values in runs if len(values)] for runs in samples]
    trainings = [runs for runs in trainings if runs]
    if not trainings:
        raise ValueError("no values to average")
    means = np.array([np.mean([values.mean() for values in runs]) for runs in trainings])
    replicates = [_mean_of_resampled([_resampled_means(values, rng) for values in runs], rng) for runs in trainings]
    return Estimate(
        float(means.mean()),
        _mean_of_resampled(replicates, rng),
        spread=float(np.ptp(means)),
        n=sum(len(values) for runs in trainings for values in runs),
        seeds=len(trainings),
    )


def _mean_of_resampled(parts: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Mean over as many parts, drawn with replacement, as there are; each part has DRAWS replicates."""
    stacked = np.stack(parts)
    chosen = rng.integers(len(parts), size=stacked.shape)
    return np.asarray(np.take_along_axis(stacked, chosen, axis=0).mean(axis=0))


def _resampled_means(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    n = len(values)
    if np.isin(values, (0, 1)).all():
        return _rate_draws(int(values.sum()), n, rng)
    return np.array([values[rng.integers(n, size=n)].mean() for _ in range(DRAWS)])


def _rate_draws(hits: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Jeffreys' posterior of a rate, which unlike the bootstrap has a width where no image or every image counts."""
    return rng.beta(hits + 0.5, n - hits + 0.5, size=DRAWS)


def rate_estimate(rate: float, n: int, rng: np.random.Generator) -> Estimate:
    """A published rate of which only its value and the number of images are known."""
    return Estimate(rate, _rate_draws(round(rate * n), n, rng), n=n)


def constant(value: float) -> Estimate:
    """A value without uncertainty, to hold an estimate against."""
    return Estimate(value, np.full(DRAWS, value))


def difference(a: Estimate, b: Estimate) -> Estimate:
    """a − b of independent estimates; its spread is the larger of the two."""
    draws = a.draws - b.draws if len(a.draws) and len(b.draws) else np.array([])
    known = [part.n for part in (a, b) if part.n]
    return Estimate(
        a.value - b.value,
        draws,
        spread=max(a.spread, b.spread),
        n=min(known, default=0),
        seeds=max(a.seeds, b.seeds),
    )


def shared_resamplings(places: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of that many images is drawn in each replicate, (places, DRAWS), float32.

    For rates on overlapping sets of images, so that a replicate draws an image for all of them or for none. The counts
    are of Poisson's distribution, to which those of drawing with replacement tend.
    """
    return rng.poisson(1.0, size=(places, DRAWS)).astype(np.float32)


def weighted_mean_estimate(values: np.ndarray, weights: np.ndarray) -> Estimate:
    """The mean of values of images, with replicates by `shared_resamplings`' rows of the same images."""
    drawn = np.asarray(values, dtype=np.float32) @ weights
    return Estimate(float(np.mean(values)), drawn / weights.sum(axis=0), n=len(values))


def mean_difference(pairs: Sequence[float]) -> tuple[float, float, float]:
    """The mean of a few differences, with its 95 % t interval.

    >>> [round(value, 3) for value in mean_difference([1.0, 2.0, 3.0])]
    [2.0, -0.484, 4.484]
    """
    mean, half = float(np.mean(pairs)), float(t.ppf((1 + LEVEL) / 2, len(pairs) - 1) * sem(pairs))
    return mean, mean - half, mean + half


def average(parts: Sequence[Estimate]) -> Estimate:
    """The mean of estimates, replicate by replicate.

    Its spread is the mean of theirs, which is not below the spread of the mean.
    """
    known = all(len(part.draws) for part in parts)
    return Estimate(
        float(np.mean([part.value for part in parts])),
        np.mean([part.draws for part in parts], axis=0) if known else np.array([]),
        spread=float(np.mean([part.spread for part in parts])),
        n=min(part.n for part in parts),
        seeds=min(part.seeds for part in parts),
    )


def rank_correlation(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> Estimate:
    """Spearman's rank correlation of paired values, with replicates over the pairs."""
    value = _spearman(x[None], y[None])[0]
    picks = rng.integers(len(x), size=(DRAWS, len(x)))
    return Estimate(float(value), _spearman(x[picks], y[picks]), n=len(x))


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Row by row; NaN where all values of a row are the same."""
    ranks = [rankdata(values, axis=1) for values in (x, y)]
    a, b = (values - values.mean(axis=1, keepdims=True) for values in ranks)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1)))
