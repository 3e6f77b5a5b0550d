"""Lengths beside a win rate, and the two win rates that take length out: definitions, hand computation, refusals."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, variance
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import norm, t

from harness.stats import UnusableScores, length_glm, length_stratified, length_summary


def test_means_and_rank_correlation() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.integers(20, 200, 80), rng.integers(20, 200, 80)
    scores = np.where(rng.random(80) < 0.2, 0.5, (a - b + rng.normal(0, 80, 80) > 0))
    result = length_summary(a, b, scores)
    assert (result.mean_a, result.mean_b, result.n) == (a.mean(), b.mean(), 80)
    assert result.spearman == pytest.approx(np.corrcoef(ranks(scores), ranks(a - b))[0, 1])
    assert result.spearman > 0.3


def ranks(values: np.ndarray) -> list[float]:
    return [float((values < v).sum() + ((values == v).sum() + 1) / 2) for v in values]


def test_the_longer_answer_always_winning_is_a_perfect_correlation() -> None:
    assert length_summary([10, 20, 30], [10, 10, 10], [0, 0.5, 1]).spearman == pytest.approx(1)


@pytest.mark.parametrize(
    ("a", "b", "scores"),
    [([5, 6, 7], [1, 2, 3], [0, 1, 0]), ([5, 1, 7], [1, 2, 3], [1, 1, 1]), ([5, 1], [1, 2], [1, 0])],
)
def test_a_correlation_that_is_not_defined_is_none(a: list[int], b: list[int], scores: list[int]) -> None:
    result = length_summary(a, b, scores)
    assert result.spearman is None
    assert result.mean_a == sum(a) / len(a)


@pytest.mark.parametrize(
    ("a", "b", "scores"),
    [([1], [1, 2], [1]), ([1], [1], [1, 0]), ([], [], []), ([-1], [1], [1]), ([1], [math.nan], [0])],
)
def test_unusable_lengths_are_refused(a: list[float], b: list[float], scores: list[float]) -> None:
    with pytest.raises(UnusableScores):
        length_summary(a, b, scores)


# --- The length-stratified win rate -----------------------------------------------------------------------------------

HALVES = st.tuples(
    st.lists(st.sampled_from([0, 0.5, 1]), min_size=10, max_size=40),
    st.lists(st.sampled_from([0, 0.5, 1]), min_size=10, max_size=40),
)


def split(longer: list[float], other: list[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores and lengths: a's answer is longer in the first half; in the other one shorter or, at every third, equal."""
    lengths_b = np.full(len(longer) + len(other), 50)
    shorter = [50 if k % 3 == 0 else 30 for k in range(len(other))]
    return np.array([*longer, *other]), np.array([80] * len(longer) + shorter), lengths_b


@given(HALVES)
def test_length_stratified_is_the_mean_of_the_two_halves(halves: tuple[list[float], list[float]]) -> None:
    longer, other = halves
    result = length_stratified(*split(longer, other))
    assert (result.n_longer, result.n_other, result.n) == (len(longer), len(other), len(longer) + len(other))
    assert result.rate_longer == pytest.approx(fmean(longer))
    assert result.rate_other == pytest.approx(fmean(other))
    assert result.estimate == pytest.approx((fmean(longer) + fmean(other)) / 2)
    assert result.se == pytest.approx(math.sqrt(variance(longer) / len(longer) + variance(other) / len(other)) / 2)
    assert 0 <= result.low <= result.estimate <= result.high <= 1
    assert result.low < result.high


def test_the_stratified_interval_by_hand() -> None:
    """20 of 25 and 30 of 50. Wilson's formula is the root of (p - x)^2 = t^2 x (1 - x) / m, solved here with numpy."""
    longer, other = [1.0] * 20 + [0.0] * 5, [1.0] * 30 + [0.0] * 20

    def limits(p: float, n: int) -> np.ndarray:
        k = t.ppf(0.975, n - 1) ** 2 / (n - 1)
        return np.sort(np.roots([1 + k, -(2 * p + k), p * p]))

    (l1, h1), (l2, h2) = limits(0.8, 25), limits(0.6, 50)
    result = length_stratified(*split(longer, other))
    assert result.low == pytest.approx(0.7 - math.hypot(0.8 - l1, 0.6 - l2) / 2)
    assert result.high == pytest.approx(0.7 + math.hypot(h1 - 0.8, h2 - 0.6) / 2)


def test_the_stratified_interval_covers_where_a_half_has_nearly_only_wins() -> None:
    rng = np.random.default_rng(5)
    covered = normal = 0
    for _ in range(1000):
        scores, a, b = split(list(rng.random(25) < 0.95), list(rng.random(225) < 0.95))
        r = length_stratified(scores, a, b)
        covered += r.low <= 0.95 <= r.high
        normal += r.estimate - 1.96 * r.se <= 0.95 <= r.estimate + 1.96 * r.se
    assert covered / 1000 >= 0.935 - 2 * math.sqrt(0.05 * 0.95 / 1000)
    assert normal / 1000 < 0.8


@pytest.mark.parametrize(("longer", "other"), [(9, 30), (30, 9), (0, 30), (30, 0)])
def test_a_half_of_fewer_than_ten_queries_is_refused(longer: int, other: int) -> None:
    with pytest.raises(UnusableScores, match=f"longer than the opponent's in {longer} and not longer in {other}"):
        length_stratified(*split([1.0] * longer, [0.0] * other))


# --- The length-controlled win rate -----------------------------------------------------------------------------------


def by_length(n: int, seed: int, at_zero: float = 0.7, slope: float = 1.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores whose chance of a win is logistic in tanh(delta / sd), with lengths that favour a."""
    rng = np.random.default_rng(seed)
    b = rng.integers(300, 400, n)
    a = b + np.round(rng.normal(40, 60, n)).astype(int)
    p = expit(logit(at_zero) + slope * np.tanh((a - b) / (a - b).std(ddof=1)))
    return (rng.random(n) < p).astype(float), a, b


def test_length_glm_is_maximum_likelihood_with_the_sandwich() -> None:
    """Against a general optimiser on the likelihood, and the sandwich written out."""
    scores, a, b = by_length(200, 1)
    scores[:30] = 0.5
    x = np.column_stack([np.ones(200), np.tanh((a - b) / np.std(a - b, ddof=1))])

    def loss(beta: np.ndarray) -> float:
        eta = x @ beta
        return float(np.logaddexp(0, eta).sum() - scores @ eta)

    beta = minimize(loss, np.zeros(2), tol=1e-12).x
    fitted = expit(x @ beta)
    bread = np.linalg.inv((x * (fitted * (1 - fitted))[:, None]).T @ x)
    covariance = bread @ (x * ((scores - fitted) ** 2)[:, None]).T @ x @ bread * 200 / 198
    result = length_glm(scores, a, b)
    assert result.estimate == pytest.approx(expit(beta[0]), abs=1e-5)
    assert result.slope == pytest.approx(beta[1], abs=1e-4)
    assert result.slope_se == pytest.approx(math.sqrt(covariance[1, 1]), rel=1e-4)
    reach = norm.ppf(0.975) * math.sqrt(covariance[0, 0])
    assert (result.low, result.high) == pytest.approx((expit(beta[0] - reach), expit(beta[0] + reach)), abs=1e-5)


def test_length_glm_finds_the_rate_at_equal_lengths_and_covers_it() -> None:
    results = [length_glm(*by_length(250, seed)) for seed in range(300)]
    assert np.mean([r.estimate for r in results]) == pytest.approx(0.7, abs=0.01)
    assert np.mean([r.slope for r in results]) == pytest.approx(1.5, abs=0.1)
    assert np.mean([r.low <= 0.7 <= r.high for r in results]) >= 0.935 - 2 * math.sqrt(0.05 * 0.95 / 300)
    assert np.mean([by_length(250, seed)[0].mean() for seed in range(300)]) > 0.76  # which the plain rate is not


def test_length_glm_on_ties_alone_is_one_half_with_an_interval() -> None:
    result = length_glm([0.5] * 40, list(range(40)), [20] * 40)
    assert result.estimate == pytest.approx(0.5)
    assert 0 < result.low < 0.5 < result.high < 1


def test_length_glm_mirrors_when_the_sides_change_places() -> None:
    scores, a, b = by_length(100, 3)
    one, two = length_glm(scores, a, b), length_glm(1 - scores, b, a)
    assert (two.low, two.estimate, two.high) == pytest.approx((1 - one.high, 1 - one.estimate, 1 - one.low), abs=1e-6)
    assert two.slope == pytest.approx(one.slope, abs=1e-5)


def test_length_glm_says_when_equal_lengths_are_outside_the_data() -> None:
    scores, a, b = by_length(100, 3)
    assert not length_glm(scores, a, b).extrapolated
    assert length_glm(scores, a + 150, b).extrapolated
    with pytest.raises(UnusableScores, match="too far"):
        length_glm(scores, a + 100_000, b)


@pytest.mark.parametrize(
    ("scores", "delta", "sentence"),
    [
        ([1] * 20, range(20), "all scores are 1"),
        ([0] * 20, range(20), "all scores are 0"),
        ([0] * 10 + [1] * 10, range(20), "the longer answers won all"),
        ([1] * 10 + [0] * 10, range(20), "the shorter answers won all"),
        ([0] * 9 + [0.5] + [1] * 10, range(20), "the longer answers won all"),
        ([0] * 9 + [0, 1] + [1] * 9, [*range(10), 9, *range(10, 19)], "the longer answers won all"),
        ([0, 1] * 10, [7] * 20, "all 20 are 7"),
        ([0, 1, 0], [1, 2, 3], "at least 10"),
    ],
)
def test_length_glm_refuses_what_has_no_finite_fit(scores: list[float], delta: list[int], sentence: str) -> None:
    with pytest.raises(UnusableScores, match=sentence):
        length_glm(scores, np.array(delta) + 5, np.full(len(scores), 5))


@given(st.lists(st.tuples(st.sampled_from([0, 0.5, 1]), st.integers(-3, 3)), min_size=1, max_size=30))
def test_length_glm_is_finite_or_refuses(rows: list[tuple[float, int]]) -> None:
    scores, delta = (np.array(column) for column in zip(*rows, strict=True))
    with contextlib.suppress(UnusableScores):
        result = length_glm(scores, delta + 5, np.full(len(rows), 5))
        assert 0 <= result.low <= result.estimate <= result.high <= 1
        assert math.isfinite(result.se)
        assert math.isfinite(result.slope)


@pytest.mark.parametrize("function", [length_stratified, length_glm])
@pytest.mark.parametrize(
    ("scores", "a", "b"),
    [([1], [1, 2], [1]), ([1, 0], [1], [1]), ([], [], []), ([1], [-1], [1]), ([math.nan], [1], [1]), ([2], [1], [1])],
)
def test_unusable_input_is_refused(function: Callable[..., object], scores: Any, a: Any, b: Any) -> None:
    with pytest.raises(UnusableScores):
        function(scores, a, b)


# --- The authors' verdicts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "percent"),
    [
        ("3-vs-base-epoch-0.38-helpful", 66.92),
        ("3-vs-base-epoch-0.38-harmless", 77.78),
        ("3-vs-instruct-epoch-0.38-helpful", 54.98),
        ("3-vs-instruct-epoch-0.38-harmless", 57.93),
    ],
)
def test_the_papers_headline_figures(root: Path, name: str, percent: float) -> None:
    path = root.parent / f"shared/paper/typo/experiments/hh-rlhf/results_fixed/win_rates/{name}.json"
    if not path.is_file():
        pytest.skip("the authors' verdicts are not here")
    scores, lengths_base, lengths_test = np.array(json.loads(path.read_text()), dtype=float).T
    assert round(100 * length_stratified(scores, lengths_test, lengths_base).estimate, 2) == percent
