import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm

from analysis.statistics import (
    DRAWS,
    Estimate,
    average,
    constant,
    difference,
    mean_estimate,
    rank_correlation,
    rate_estimate,
    wilson_interval,
)

NAN = float("nan")


def rng(seed=0):
    return np.random.default_rng(seed)


def hits(k, n):
    return np.arange(n) < k


def width(estimate):
    low, high = estimate.interval
    return high - low


def test_wilson_intervals_are_those_of_scipy():
    n = np.array([1, 1, 10, 10, 1000, 1000, 1000])
    k = np.array([0, 1, 0, 7, 0, 300, 1000])
    tests = [binomtest(int(hits), int(of)).proportion_ci(method="wilson") for hits, of in zip(k, n, strict=True)]
    low, high = wilson_interval(k, n)
    assert low == pytest.approx([interval.low for interval in tests], abs=1e-12)
    assert high == pytest.approx([interval.high for interval in tests], abs=1e-12)
    assert (low.min(), high.max()) == (0, 1)


def test_the_mean_is_over_attack_seeds_and_then_over_training_seeds():
    estimate = mean_estimate([[hits(2, 10), hits(40, 100)], [hits(9, 10)]], rng())
    assert estimate.value == pytest.approx(((0.2 + 0.4) / 2 + 0.9) / 2)
    assert estimate.spread == pytest.approx(0.6)
    assert (estimate.n, estimate.seeds, estimate.draws.shape) == (120, 2, (DRAWS,))


@pytest.mark.parametrize(("k", "n"), [(30, 200), (500, 1000), (3, 1000)])
def test_the_interval_of_a_rate_is_the_binomial_one(k, n):
    low, high = mean_estimate([[hits(k, n)]], rng()).interval
    wanted = binom.ppf([0.025, 0.975], n, k / n) / n
    assert [low, high] == pytest.approx(list(wanted), abs=0.15 * np.sqrt(k) / n + 1 / n)


def test_the_interval_of_a_mean_is_the_normal_one():
    values = rng(1).normal(3.0, 2.0, size=400)
    estimate = mean_estimate([[values]], rng())
    error = values.std() / np.sqrt(400)
    assert estimate.interval == pytest.approx(norm.interval(0.95, values.mean(), error), abs=0.15 * error)


def test_the_interval_covers_the_truth_in_about_95_of_100_samples():
    samples = rng(2).random((300, 500)) < 0.3
    intervals = [mean_estimate([[sample]], rng()).interval for sample in samples]
    assert 0.92 < np.mean([low <= 0.3 <= high for low, high in intervals]) < 0.98


def test_more_images_narrow_the_interval():
    assert width(mean_estimate([[hits(400, 4000)]], rng())) < 0.5 * width(mean_estimate([[hits(40, 400)]], rng()))


@pytest.mark.parametrize(
    "apart", [[[hits(300, 1000), hits(700, 1000)]], [[hits(300, 1000)], [hits(700, 1000)]]], ids=["attack", "training"]
)
def test_seeds_that_disagree_widen_the_interval(apart):
    alike = [[hits(500, 1000), hits(500, 1000)]]
    assert width(mean_estimate(apart, rng())) > 3 * width(mean_estimate(alike, rng()))


def test_replicates_depend_on_the_generator_alone():
    same, again, other = (mean_estimate([[hits(3, 9)]], rng(seed)).draws for seed in (5, 5, 6))
    assert (same == again).all()
    assert (same != other).any()


def test_runs_without_values_do_not_count():
    estimate = mean_estimate([[hits(1, 2), np.array([])], [np.array([])]], rng())
    assert (estimate.value, estimate.n, estimate.seeds) == (0.5, 2, 1)
    with pytest.raises(ValueError, match="no values"):
        mean_estimate([[np.array([])], []], rng())


def test_a_difference_is_taken_replicate_by_replicate():
    a, b = (Estimate(value, rng(seed).normal(value, size=DRAWS), spread) for seed, value, spread in
            ((0, 2.0, 0.5), (1, 0.5, 0.75)))  # fmt: skip
    gap = difference(a, b)
    assert (gap.value, gap.spread) == (1.5, 0.75)
    assert (gap.draws == a.draws - b.draws).all()
    assert difference(a, a).interval == (0, 0)
    assert difference(a, constant(2.0)).interval == pytest.approx([bound - 2 for bound in a.interval])


def test_an_average_is_taken_replicate_by_replicate():
    parts = [Estimate(value, np.full(DRAWS, value + 1), spread, n) for value, spread, n in ((1, 0.2, 7), (4, 0.4, 5))]
    mean = average(parts)
    assert (mean.value, mean.n) == (2.5, 5)
    assert mean.spread == pytest.approx(0.3)
    assert (mean.draws == 3.5).all()


def test_without_replicates_there_is_no_interval():
    bare = Estimate(5.2, np.array([]))
    for estimate in (bare, difference(bare, constant(1.0)), average([bare, constant(1.0)])):
        assert np.isnan(estimate.interval).all()
    assert difference(bare, constant(1.0)).value == pytest.approx(4.2)


def test_a_published_rate_has_the_binomial_interval():
    estimate = rate_estimate(0.2, 3000, rng())
    wanted = binom.ppf([0.025, 0.975], 3000, 0.2) / 3000
    assert estimate.interval == pytest.approx(list(wanted), abs=0.002)
    assert (estimate.value, estimate.n) == (0.2, 3000)


def test_a_rate_of_zero_has_an_interval_of_some_width_and_is_in_it():
    low, high = rate_estimate(0.0, 3000, rng()).interval
    assert low == 0
    assert 1 / 3000 < high < 4 / 3000
    assert rate_estimate(1.0, 3000, rng()).interval[1] == 1


@pytest.mark.parametrize(
    ("x", "y", "rho"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 31], 1),
        ([1, 2, 3, 4], [9, 4, 1, 0], -1),
        ([1, 2, 2, 4], [1, 2, 3, 4], np.sqrt(0.9)),  # by hand: ranks 1, 2.5, 2.5, 4
        ([1, 2, 3], [5, 5, 5], NAN),
    ],
)
def test_rank_correlation_of_known_values(x, y, rho):
    assert rank_correlation(np.array(x), np.array(y), rng()).value == pytest.approx(rho, nan_ok=True)


def test_replicates_without_a_correlation_are_left_out_of_its_interval():
    estimate = rank_correlation(np.array([1.0, 2, 3]), np.array([1.0, 2, 3]), rng())
    assert np.isnan(estimate.draws).any()
    assert estimate.interval == (1, 1)
    assert difference(estimate, constant(0.5)).interval == (0.5, 0.5)
