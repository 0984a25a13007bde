"""The statistics against known values, brute force, other libraries, and simulations."""

from itertools import combinations, pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.api import OLS
from statsmodels.stats.multitest import multipletests

from pdr_graph.eval.stats import (
    IntervalOptions,
    Votes,
    holm,
    maj_at_k,
    mean_by_problem,
    paired_difference,
    pass_at_k,
    sign_flip_p,
    token_ratio,
)

SHARE = st.integers(0, 64).map(lambda right: right / 64)
SHARES = st.lists(SHARE, min_size=2, max_size=30)

# ------------------------------------------------------------------------------ pass@k, maj@k


@given(st.integers(1, 12), st.data())
def test_pass_at_k_is_the_share_of_draws_that_hold_a_correct_one(num_attempts, data):
    """It is counted over all C(n, k) draws without replacement."""
    num_correct = data.draw(st.integers(0, num_attempts))
    k = data.draw(st.integers(1, num_attempts))
    draws = list(combinations([1] * num_correct + [0] * (num_attempts - num_correct), k))
    votes = Votes(num_correct, num_silent=num_attempts - num_correct)
    assert pass_at_k(votes, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@given(st.integers(1, 200), st.data())
def test_pass_at_1_is_the_mean_and_pass_at_k_grows(num_attempts, data):
    """More draws never make success less likely."""
    num_correct = data.draw(st.integers(0, num_attempts))
    votes = Votes(num_correct, num_silent=num_attempts - num_correct)
    values = [pass_at_k(votes, k) for k in range(1, num_attempts + 1)]
    assert values[0] == pytest.approx(num_correct / num_attempts)
    assert all(before <= after + 1e-12 for before, after in pairwise(values))


@given(st.integers(0, 4), st.lists(st.integers(1, 3), max_size=3), st.integers(0, 2), st.data())
def test_maj_at_k_is_the_share_of_draws_that_the_correct_answer_wins(correct, wrong, silent, data):
    """A tie counts by the share of its winners; a silent attempt does not vote."""
    attempts = ["right"] * correct + [None] * silent
    attempts += [f"wrong {index}" for index, count in enumerate(wrong) for _ in range(count)]
    if not attempts:
        return
    k = data.draw(st.integers(1, len(attempts)))
    won = []
    for draw in combinations(attempts, k):
        counts = {each: draw.count(each) for each in draw if each is not None}
        best = [each for each, count in counts.items() if count == max(counts.values())]
        won.append(best.count("right") / len(best) if best else 0.0)
    assert maj_at_k(Votes(correct, tuple(wrong), silent), k) == pytest.approx(np.mean(won))


# ------------------------------------------------------------------------------ one arm


@given(SHARES)
def test_the_interval_is_students(values):
    """It is scipy's interval, cut to the range of a share."""
    estimate = mean_by_problem(values, bounds=(0.0, 1.0))
    if np.ptp(values) == 0:
        return
    low, high = scipy_stats.t.interval(
        0.95, len(values) - 1, np.mean(values), scipy_stats.sem(values)
    )
    assert estimate.interval.low == pytest.approx(max(0.0, low), abs=1e-9)
    assert estimate.interval.high == pytest.approx(min(1.0, high), abs=1e-9)


def test_the_interval_is_that_of_a_regression_clustered_by_problem():
    """It is statsmodels' CR1 on single attempts, with equally many for every problem."""
    rng = np.random.default_rng(3)
    attempts = rng.random((20, 8)) < rng.random((20, 1))
    problems = np.repeat(np.arange(20), 8)
    fit = OLS(attempts.ravel().astype(float), np.ones(160)).fit(
        cov_type="cluster", cov_kwds={"groups": problems}, use_t=True
    )
    estimate = mean_by_problem(attempts.mean(axis=1))
    low, high = fit.conf_int()[0]
    assert estimate.value == pytest.approx(fit.params[0])
    assert estimate.interval.low == pytest.approx(low, rel=1e-6)
    assert estimate.interval.high == pytest.approx(high, rel=1e-6)


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Problems of random difficulty with 8 attempts each: 95 % of the intervals hold the true mean.

    Intervals that take attempts as independent would hold it in about half of the cases.
    """
    rng = np.random.default_rng(5)
    rates = rng.beta(0.5, 0.5, (1500, 30))
    means = rng.binomial(8, rates) / 8
    held = [
        estimate.interval.low <= 0.5 <= estimate.interval.high
        for estimate in (mean_by_problem(row, bounds=(0.0, 1.0)) for row in means)
    ]
    assert 0.93 <= np.mean(held) <= 0.97


def test_a_mean_without_spread_still_has_an_interval():
    """If 30 of 30 problems are solved, up to 9.5 % of all may be unsolved: 1 - 0.05^(1/30)."""
    estimate = mean_by_problem([1.0] * 30, bounds=(0.0, 1.0))
    assert estimate.interval.high == 1.0
    assert estimate.interval.low == pytest.approx(0.05 ** (1 / 30))


def test_one_problem_has_no_interval():
    """One problem does not show how much problems differ."""
    assert mean_by_problem([0.5]).interval is None


# ------------------------------------------------------------------------------ pairs of arms


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), min_size=1, max_size=9))
@settings(deadline=None)
def test_the_sign_flip_p_is_exact_for_few_problems(differences):
    """It is the share of all sign patterns with a mean at least as far from zero."""
    seen = abs(np.mean(differences))
    means = [
        abs(np.mean(np.multiply(differences, signs)))
        for signs in product([-1, 1], repeat=len(differences))
    ]
    expected = np.mean([mean >= seen - 1e-12 for mean in means])
    assert sign_flip_p(np.array(differences)) == pytest.approx(expected)


def test_the_drawn_sign_flip_p_is_near_students():
    """For many normal differences, both tests agree."""
    rng = np.random.default_rng(1)
    values = rng.normal(0.1, 0.4, 80)
    assert sign_flip_p(values, num_flips=9_999) == pytest.approx(
        scipy_stats.ttest_1samp(values, 0).pvalue, abs=0.01
    )


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=20, deadline=None)
def test_holm_is_statsmodels_holm(p_values):
    """A corrected p is never below the raw p, nor above 1."""
    corrected = holm(p_values)
    expected = multipletests(p_values, method="holm")[1]
    assert corrected == pytest.approx(list(expected))
    assert all(raw <= each <= 1 for raw, each in zip(p_values, corrected, strict=True))


@given(SHARES, st.data())
@settings(max_examples=20, deadline=None)
def test_a_difference_changes_its_sign_with_its_order(reference, data):
    """The p stays the same."""
    other = data.draw(st.lists(SHARE, min_size=len(reference), max_size=len(reference)))
    arms = np.array(reference), np.array(other)
    there = paired_difference(*arms, IntervalOptions(num_resamples=99))
    back = paired_difference(*reversed(arms), IntervalOptions(num_resamples=99))
    assert there.value == pytest.approx(-back.value)
    assert there.p_value == pytest.approx(back.p_value, abs=0.02)


def test_the_bootstrap_covers_the_truth_as_often_as_it_says():
    """Simulated differences on 40 problems; BCa at 90 %."""
    rng = np.random.default_rng(9)
    options = IntervalOptions(confidence=0.9, num_resamples=199)
    held = []
    for _ in range(60):
        reference, other = rng.random(40) < 0.4, rng.random(40) < 0.6
        found = paired_difference(reference.astype(float), other.astype(float), options).bootstrap
        held.append(found.low <= 0.2 <= found.high)
    assert 0.8 <= np.mean(held) <= 0.99


def test_the_token_ratio_is_that_of_the_means():
    """Without spread it has no interval; otherwise the interval holds it."""
    even = token_ratio(np.array([1, 2, 3]), np.array([2, 4, 6]), IntervalOptions())
    assert (even.value, even.bootstrap) == (pytest.approx(2), None)
    costs = np.array([100, 200, 300, 400]), np.array([90, 50, 160, 100])
    found = token_ratio(*costs, IntervalOptions())
    assert found.value == pytest.approx(0.4)
    assert found.bootstrap.low < 0.4 < found.bootstrap.high


def test_there_is_no_ratio_to_nothing():
    """A reference may have spent no tokens."""
    assert token_ratio(np.zeros(2), np.array([1, 2]), IntervalOptions()) is None
