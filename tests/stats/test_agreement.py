"""A judge beside labels, beside itself in the other order, and asked again: statsmodels, loops, hand computation."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t
from statsmodels.stats import inter_rater

from harness.stats import (
    UnusableScores,
    cohens_kappa,
    judge_agreement,
    mean_over_pairs,
    position_bias,
    repeat_agreement,
    win_rate,
)
from harness.stats.winrate import interval

LABELS = st.sampled_from([1.0, 0.5, 0.0])
PAIRS = st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=40)
CONFUSION = st.lists(st.integers(0, 30), min_size=9, max_size=9).filter(lambda cells: sum(cells) > 1)


def from_table(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Judge's scores and reference with this table of counts (rows the reference)."""
    values = np.array([1, 0.5, 0])
    rows, columns = np.repeat(np.arange(9), np.ravel(table)) // 3, np.repeat(np.arange(9), np.ravel(table)) % 3
    return values[columns], values[rows]


@given(PAIRS)
def test_the_table_counts_labels_and_the_accuracy_its_diagonal(pairs: list[tuple[float, float]]) -> None:
    scores, reference = zip(*pairs, strict=True)
    result = judge_agreement(scores, reference)
    for (i, r), (j, s) in itertools.product(enumerate([1, 0.5, 0]), repeat=2):
        assert result.table[i, j] == pairs.count((s, r))
    assert astuple(result.accuracy) == pytest.approx(astuple(win_rate([float(s == r) for s, r in pairs])))
    assert result.n == len(pairs)


@given(PAIRS)
def test_sensitivity_and_specificity_are_the_mean_scores_on_wins_and_losses(pairs: list[tuple[float, float]]) -> None:
    result = judge_agreement(*zip(*pairs, strict=True))
    wins, losses = [s for s, r in pairs if r == 1], [1 - s for s, r in pairs if r == 0]
    for found, values in ((result.sensitivity, wins), (result.specificity, losses)):
        assert (found is None) == (not values)
        assert found is None or astuple(found) == pytest.approx(astuple(win_rate(values)))


def test_scores_of_two_orders_count_as_the_side_they_lean_to() -> None:
    result = judge_agreement([0.75, 0.25, 0.5], [1, 0, 1])
    assert result.table.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


@given(CONFUSION)
def test_kappa_and_its_variance_are_statsmodels(cells: list[int]) -> None:
    table = np.array(cells).reshape(3, 3)
    result = judge_agreement(*from_table(table)).kappa
    p = table / table.sum()
    if math.isclose(float(p.sum(0) @ p.sum(1)), 1):
        assert result is None
        return
    expected = inter_rater.cohens_kappa(table)
    assert result is not None
    assert result.estimate == pytest.approx(expected.kappa, abs=1e-9)
    assert result.se == pytest.approx(math.sqrt(max(0, expected.var_kappa)), abs=1e-6)


@given(CONFUSION)
def test_kappas_interval_is_in_range_contains_it_and_is_symmetric_in_the_judges(cells: list[int]) -> None:
    one, two = from_table(np.array(cells))
    result = cohens_kappa(one, two)
    if result is not None:
        assert -1 <= result.low <= result.estimate <= result.high <= 1
        assert result.low < result.high
        other = cohens_kappa(two, one)
        assert other is not None
        assert (other.low, other.estimate, other.high) == pytest.approx((result.low, result.estimate, result.high))


def test_full_agreement_has_an_interval_with_width() -> None:
    result = cohens_kappa([1, 0] * 20, [1, 0] * 20)
    assert result is not None
    assert (result.estimate, result.high, result.se) == (1, 1, 0)
    assert 0.7 < result.low < 0.9


@pytest.mark.parametrize("p_agree", [0.6, 0.8, 0.95])
def test_kappas_interval_covers(p_agree: float) -> None:
    """100 pairs with wins and losses in equal parts: kappa is 2 p - 1; 1,000 simulated samples."""
    rng = np.random.default_rng(8)
    covered = 0
    for _ in range(1000):
        reference = rng.integers(0, 2, 100)
        scores = np.where(rng.random(100) < p_agree, reference, 1 - reference)
        kappa = cohens_kappa(scores, reference)
        covered += kappa is not None and kappa.low <= 2 * p_agree - 1 <= kappa.high
    assert covered / 1000 >= 0.935 - 2 * math.sqrt(0.05 * 0.95 / 1000)


CLUSTERED = st.lists(st.tuples(st.integers(0, 9), LABELS, LABELS), min_size=2, max_size=40)


@given(CLUSTERED)
def test_a_mean_over_pairs_is_a_ratio_of_sums_over_queries(rows: list[tuple[int, float, float]]) -> None:
    """Cochran's variance of a ratio, and the floor, written out in a loop over queries."""
    ids, values, _ = zip(*rows, strict=True)
    found = mean_over_pairs(values, ids)
    mean, names = sum(values) / len(values), sorted(set(ids))
    squares = sum(sum(v - mean for i, v in zip(ids, values, strict=True) if i == name) ** 2 for name in names)
    n = len(names)
    smoothed = (n * mean + 1) / (n + 2)
    variance = squares / len(values) ** 2 + smoothed * (1 - smoothed) / n**2
    assert (found.estimate, found.n) == (pytest.approx(mean), n)
    assert (found.low, found.high) == pytest.approx(interval(mean, variance, n - 1, 0.95))


def kappa_of(rows: list[tuple[int, float, float]], heavier: int = -1, weight: float = 1.0) -> float:
    """Kappa where the pairs of the query `heavier` count `weight` times."""
    table = np.zeros((3, 3))
    for query, one, two in rows:
        table[round(2 * one), round(2 * two)] += weight if query == heavier else 1
    p = table / table.sum()
    expected = float(p.sum(0) @ p.sum(1))
    return math.nan if expected > 1 - 1e-9 else (float(np.trace(p)) - expected) / (1 - expected)


@given(CLUSTERED)
def test_kappas_variance_is_that_of_its_derivatives_by_the_queries(rows: list[tuple[int, float, float]]) -> None:
    """The influence of a query is how kappa moves as its pairs gain weight."""
    ids, one, two = zip(*rows, strict=True)
    found = cohens_kappa(one, two, query_ids=ids)
    if found is None:
        return
    moved = [(kappa_of(rows, q, 1 + 1e-6) - kappa_of(rows, q, 1 - 1e-6)) / 2e-6 for q in set(ids)]
    assert found.estimate == pytest.approx(kappa_of(rows), abs=1e-12)
    assert found.se == pytest.approx(math.hypot(*moved), rel=1e-4, abs=1e-6)


def test_pairs_that_go_together_count_once_for_kappa() -> None:
    rng = np.random.default_rng(12)
    reference = rng.integers(0, 2, 60)
    scores = np.where(rng.random(60) < 0.8, reference, 1 - reference)
    once, twice = (
        cohens_kappa(scores, reference),
        judge_agreement(np.tile(scores, 4), np.tile(reference, 4), query_ids=np.tile(np.arange(60), 4)).kappa,
    )
    assert once is not None
    assert twice is not None
    assert (twice.low, twice.estimate, twice.high) == pytest.approx((once.low, once.estimate, once.high))
    assert (once.n, twice.n) == (60, 240)


@given(PAIRS)
def test_position_bias_is_its_counts(pairs: list[tuple[float, float]]) -> None:
    result = position_bias(*zip(*pairs, strict=True))
    assert result.consistency == win_rate([float(one == two) for one, two in pairs])
    assert (result.prefer_first, result.prefer_second) == (pairs.count((1, 0)), pairs.count((0, 1)))
    shown_first = [s for one, two in pairs for s in (one, 1 - two) if s != 0.5]
    if shown_first:
        assert result.share_first == pytest.approx(np.mean(shown_first))
        assert result.share_first_low is not None
        assert result.share_first_high is not None
        assert 0 <= result.share_first_low <= result.share_first <= result.share_first_high <= 1
        assert result.share_first_low < result.share_first_high
    else:
        assert (result.share_first, result.share_first_low, result.share_first_high) == (None, None, None)


def test_the_share_of_first_places_is_clustered_by_pair() -> None:
    """A judge who always takes the first: 40 pairs, not 80 verdicts. A consistent one: one first place in each pair."""
    always = position_bias([1] * 40, [0] * 40)
    k = t.ppf(0.975, 39) ** 2 / 40  # t^2 / n_eff, in Wilson's equation
    assert always.share_first_low == pytest.approx(1 / (1 + k))
    consistent = position_bias([1, 0] * 20, [1, 0] * 20)
    assert consistent.share_first == 0.5


def test_the_share_of_first_places_covers() -> None:
    """Pairs differ in how obvious they are, so that their two verdicts are correlated; 1,000 runs of 100 pairs."""
    rng = np.random.default_rng(9)
    covered = 0
    for _ in range(1000):
        ability, bias = rng.normal(0, 2, 100), 0.7
        ab = (ability + bias + rng.logistic(size=100) > 0).astype(float)
        ba = (ability - bias + rng.logistic(size=100) > 0).astype(float)
        result = position_bias(ab, ba)
        covered += (result.share_first_low or 0) <= TRUE_SHARE <= (result.share_first_high or 0)
    assert covered / 1000 >= 0.935 - 2 * math.sqrt(0.05 * 0.95 / 1000)


_ABILITY = np.random.default_rng(10).normal(0, 2, 1_000_000)
TRUE_SHARE = float((1 / (1 + np.exp(-(_ABILITY + 0.7)))).mean())


@given(st.lists(st.tuples(st.sampled_from("abc"), LABELS), min_size=1, max_size=25))
def test_repeat_agreement_is_the_share_of_agreeing_couples(rows: list[tuple[str, float]]) -> None:
    repeats = defaultdict(list)
    for pair, score in rows:
        repeats[pair].append(score)
    shares = [
        np.mean([x == y for x, y in itertools.combinations(scores, 2)])
        for scores in repeats.values()
        if len(scores) > 1
    ]
    ids, scores = zip(*rows, strict=True)
    if shares:
        result = repeat_agreement(scores, ids)
        assert result.estimate == pytest.approx(np.mean(shares))
        assert result.n == len(shares)
    else:
        with pytest.raises(UnusableScores, match="judged once"):
            repeat_agreement(scores, ids)


@pytest.mark.parametrize(
    ("one", "two"), [([], []), ([1], [1, 0]), ([math.nan], [1]), ([2], [1]), (["win"], [1])]
)  # fmt: skip
def test_unusable_verdicts_are_refused(one: list[float], two: list[float]) -> None:
    for function in (judge_agreement, cohens_kappa, position_bias, repeat_agreement):
        with pytest.raises(UnusableScores):
            function(one, two)
