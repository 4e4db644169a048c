"""Statistics of a handful of runs: known values, and what the definitions promise for any scores."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from rlx2_jax.analysis import statistics
from rlx2_jax.analysis.statistics import estimate, summarize

SCORES = st.lists(st.integers(-100, 3000).map(float), min_size=1, max_size=9).map(np.array)


@given(SCORES)
def test_the_interquartile_mean_leaves_out_the_lowest_and_highest_quarter(scores):
    cut = len(scores) // 4
    kept = sorted(scores)[cut : len(scores) - cut]
    np.testing.assert_allclose(statistics.iqm([scores]), np.mean(kept))


def test_the_interquartile_mean_does_not_see_one_run_in_four_that_failed():
    assert statistics.iqm([np.array([0.0, 90.0, 100.0, 1e9])]) == 95


def test_the_interquartile_mean_pools_tasks():
    assert statistics.iqm([np.array([0.0, 10.0]), np.array([20.0, 90.0])]) == 15


def test_tasks_weigh_the_same_in_the_interquartile_mean_however_many_seeds_they_have():
    many, few = np.array([1.0, 2.0, 3.0, 4.0]), np.array([5.0, 6.0])
    assert statistics.iqm([many, few]) == statistics.iqm([many, np.repeat(few, 2)]) == (3 + 4 + 5 + 5) / 4
    drawn = np.stack([few, few[::-1]])
    np.testing.assert_allclose(statistics.iqm([np.stack([many] * 2), drawn]), [(3 + 4 + 5 + 5) / 4] * 2)


def test_scores_over_a_reference_are_as_uncertain_as_that():
    sample, spread = [np.full(4, 90.0), np.full(4, 9.0)], [np.array([80.0, 120.0]), np.array([8.0, 12.0])]
    found = estimate(statistics.iqm_ratio, sample, spread)
    assert found.value == pytest.approx(0.9)
    assert found.low < 0.8 < 1.0 < found.high


@given(SCORES, SCORES)
def test_the_probability_of_improvement_is_the_share_of_pairs(a, b):
    wins = np.mean([1.0 if x > y else 0.5 if x == y else 0.0 for x in a for y in b])
    np.testing.assert_allclose(statistics.improvement([a], [b]), wins)
    np.testing.assert_allclose(statistics.improvement([b], [a]), 1 - wins, atol=1e-12)


FEW = SCORES.filter(lambda scores: 2 <= scores.size <= 5)


@given(FEW, FEW)
def test_a_permutation_test_counts_the_ways_in_which_means_differ_as_much(a, b):
    distance = lambda x, y, axis: abs(x.mean(axis) - y.mean(axis))
    exact = scipy.stats.permutation_test((a, b), distance, n_resamples=np.inf, alternative="greater")
    p = statistics.permutation([a], [b])
    assert p == pytest.approx(exact.pvalue)
    assert p == pytest.approx(statistics.permutation([b], [a]))
    assert 1 / math.comb(a.size + b.size, a.size) <= p <= 1


def test_scores_far_apart_have_the_least_p_that_so_many_can():
    low, high = np.array([1.0, 2.0, 3.0, 4.0]), np.array([15.0, 16.0, 17.0, 18.0])
    assert statistics.permutation([low], [high]) == pytest.approx(2 / 70)
    assert statistics.permutation([low[:3]], [high[:3]]) == pytest.approx(2 / 20)
    assert statistics.permutation([low[:1]], [high[:1]]) == 1


def test_scores_are_exchanged_within_their_task():
    # Between the tasks lies more than between the methods.
    a, b = [np.array([1.0, 2.0, 3.0]), np.array([101.0, 102.0, 103.0])], [np.arange(4.0, 7), np.arange(104.0, 107)]
    assert statistics.permutation(a, b) == pytest.approx(2 / 20**2)
    assert statistics.permutation([np.concatenate(a)], [np.concatenate(b)]) > 0.5


def test_many_scores_are_exchanged_at_random():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 40), rng.normal(0.5, 1, 40)
    assert statistics.permutation([a], [b]) == pytest.approx(scipy.stats.ttest_ind(a, b).pvalue, abs=0.01)
    assert statistics.permutation([a], [a + 10]) == pytest.approx(1 / 20_001)


def test_equal_methods_are_rarely_told_apart():
    rng = np.random.default_rng(0)
    found = [statistics.permutation([rng.normal(size=4)], [rng.normal(size=4)]) for _ in range(1000)]
    assert 0.03 < np.mean(np.array(found) < 0.0999) < 0.13


def test_tasks_weigh_the_same_however_many_seeds_they_have():
    many, few = np.full(8, 2.0), np.full(2, 1.0)
    assert statistics.mean([many, few]) == 1.5
    assert statistics.ratio([many, few], [np.full(3, 4.0), np.full(5, 1.0)]) == 0.75


@given(SCORES)
def test_an_interval_lies_within_the_scores_and_around_the_mean(scores):
    found = estimate(statistics.mean, [scores], resamples=200)
    assert scores.min() - 1e-9 <= found.low <= found.high <= scores.max() + 1e-9
    assert found.n == len(scores)
    assert found.value == pytest.approx(scores.mean())


def test_strata_are_drawn_each_by_itself():
    # Two tasks without spread: however far apart they are, nothing is uncertain.
    found = estimate(statistics.mean, [np.full(4, 1.0), np.full(4, 1000.0)])
    assert found == (8, 500.5, 500.5, 500.5, 4)


def test_a_ratio_is_uncertain_by_both_its_parts():
    spread, steady = np.array([80.0, 90.0, 110.0, 120.0]), np.full(4, 100.0)
    of_spread = estimate(statistics.ratio, [spread], [steady])
    by_spread = estimate(statistics.ratio, [steady], [spread])
    assert of_spread.value == by_spread.value == 1
    assert of_spread.low < 0.95 < 1.05 < of_spread.high
    assert by_spread.low < 0.95 < 1.05 < by_spread.high


def test_the_interval_of_a_ratio_of_many_is_that_of_the_delta_method():
    rng = np.random.default_rng(0)
    a, b = rng.normal(95, 5, 400), rng.normal(100, 10, 400)
    found = estimate(statistics.ratio, [a], [b])
    half = 1.96 * found.value * np.sqrt(a.var() / 400 / a.mean() ** 2 + b.var() / 400 / b.mean() ** 2)
    np.testing.assert_allclose((found.low, found.high), (found.value - half, found.value + half), atol=5e-4)


@pytest.mark.parametrize("bad", [[], [np.array([])], [np.array([1.0, np.nan])]])
def test_nothing_is_estimated_from_nothing_or_from_what_is_not_finite(bad):
    with pytest.raises(ValueError, match="finite score"):
        estimate(statistics.mean, bad)
    with pytest.raises(ValueError, match="finite score"):
        statistics.permutation(bad, bad)


def test_the_scores_of_a_single_task_need_no_list():
    a, b = np.array([1.0, 2.0, 4.0]), np.array([2.0, 3.0, 5.0])
    assert estimate(statistics.ratio, a, b) == estimate(statistics.ratio, [a], [b])
    assert estimate(statistics.mean, [1.0, 2.0]) == estimate(statistics.mean, [np.array([1.0, 2.0])])
    assert statistics.permutation(a, b) == statistics.permutation([a], [b])
    assert estimate(statistics.mean, iter([a, b])) == estimate(statistics.mean, [a, b])


def test_an_estimate_knows_its_smallest_part():
    found = statistics.estimate(statistics.ratio, [np.ones(3), np.ones(2)], [np.ones(4), np.ones(1)])
    assert (found.n, found.fewest) == (5, 1)


def test_scores_are_a_measure_if_all_are_above_zero():
    assert statistics.is_measure([np.array([1.0, 2.0]), np.array([0.5])])
    assert not statistics.is_measure([np.array([1.0, 2.0]), np.array([5.0, 0.0])])


def test_summary_of_one_value_is_that_value_with_no_spread():
    assert summarize(np.array([3.5])) == (1, 3.5, 0.0, 3.5, 3.5)


def test_summary_has_the_sample_deviation_and_an_interval_around_the_mean():
    summary = summarize(np.array([1.0, 2.0, 3.0, 6.0]))
    assert summary.n == 4
    assert summary.mean == 3
    assert np.isclose(summary.std, np.sqrt(14 / 3))
    assert 1 <= summary.low < 3 < summary.high <= 6


def test_the_bootstrap_interval_of_many_values_is_that_of_the_central_limit():
    values = np.random.default_rng(0).normal(5.0, 2.0, 400)
    summary = summarize(values)
    half = 1.96 * summary.std / np.sqrt(400)
    np.testing.assert_allclose((summary.low, summary.high), (summary.mean - half, summary.mean + half), atol=0.02)


def test_an_interval_of_few_values_is_widened_as_students_is():
    episodes = np.random.default_rng(2).normal(size=5)
    wide = estimate(statistics.mean, [episodes], confidence=statistics.for_few(0.95, 5))
    plain = estimate(statistics.mean, [episodes])
    summary = summarize(episodes)
    assert (summary.low, summary.high) == (wide.low, wide.high)
    assert summary.low < plain.low < plain.high < summary.high


def test_the_same_values_give_the_same_interval():
    values = np.arange(8.0)
    assert summarize(values) == summarize(values)
    other = summarize(np.random.default_rng(1).normal(size=8), seed=1)
    assert other != summarize(np.random.default_rng(1).normal(size=8))


@pytest.mark.parametrize(("n", "plain", "widened"), [(5, (0.80, 0.87), (0.89, 0.97)), (8, (0.85, 0.91), (0.92, 0.97))])
def test_an_interval_for_few_scores_holds_the_mean_about_as_often_as_it_should(n, plain, widened):
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(1000, n))
    for confidence, (least, most) in ((0.95, plain), (statistics.for_few(0.95, n), widened)):
        found = [estimate(statistics.mean, [s], confidence=confidence, resamples=1000) for s in samples]
        assert least < np.mean([e.low <= 0 <= e.high for e in found]) < most
    assert statistics.for_few(0.95, 10**6) == pytest.approx(0.95, abs=1e-5)
