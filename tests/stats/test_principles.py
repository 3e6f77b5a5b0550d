"""Intervals for new principles: against plain loops and statsmodels' clustered covariance, scipy's Welch test, and simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_ind
from statsmodels.api import OLS
from statsmodels.stats.sandwich_covariance import cov_cluster_2groups

from harness.stats import (
    PrinciplesInterval,
    UnusableScores,
    principles_difference,
    principles_interval,
    welch_gap,
    win_rate,
)
from harness.stats.winrate import interval, variance_of_mean

Rows = tuple[list[float], list[str], list[Any]]
"""scores, query ids, principles"""


def nested(n: int, g: int, seed: int, spread: float = 0.2) -> Rows:
    """One principle a query, each principle for as many."""
    rng = np.random.default_rng(seed)
    chance = np.clip(0.6 + rng.normal(0, spread, g), 0, 1)
    scores = [float(rng.random() < chance[k % g]) for k in range(n)]
    return scores, [f"q{k}" for k in range(n)], [f"p{k % g}" for k in range(n)]


def crossed(n: int, g: int, seed: int, spread: float = 0.2) -> Rows:
    """Every principle on every query; queries differ too."""
    rng = np.random.default_rng(seed)
    chance = np.clip(0.6 + rng.normal(0, spread, g)[None, :] + rng.normal(0, 0.2, n)[:, None], 0, 1)
    scores = (rng.random((n, g)) < chance).astype(float).ravel().tolist()
    return scores, [f"q{k}" for k in range(n) for _ in range(g)], [f"p{k}" for _ in range(n) for k in range(g)]


def mean_of_query_means(rows: list[tuple[float, str, Any]]) -> float:
    by_query: dict[str, list[float]] = {}
    for score, query, _ in rows:
        by_query.setdefault(query, []).append(score)
    return float(np.mean([np.mean(scores) for scores in by_query.values()]))


def variance_by_loops(scores: list[float], queries: list[str], principles: list[Any]) -> float:
    """The definition, one principle and one pair at a time."""
    rows = list(zip(scores, queries, principles, strict=True))
    held = [set(p) if isinstance(p, tuple) else {p} for p in principles]
    names = sorted(set().union(*held))
    g, theta = len(names), mean_of_query_means(rows)
    without = [mean_of_query_means([r for r, own in zip(rows, held, strict=True) if name not in own]) for name in names]
    v_p = (g - 1) / g * sum((w - np.mean(without)) ** 2 for w in without)
    of_query = {q: [s for s, own, _ in rows if own == q] for q in queries}
    v_q = variance_of_mean(np.array([np.mean(own) for own in of_query.values()]))
    pairs: dict[Any, float] = {}
    for score, query, principle in rows:
        pairs[query, principle] = pairs.get((query, principle), 0) + (score - theta) / len(of_query[query])
    v_pair = sum(x**2 for x in pairs.values()) / len(of_query) ** 2
    return max(v_p, v_q, v_p + v_q - v_pair)


@pytest.mark.parametrize(
    "rows",
    [
        nested(60, 5, 1),
        nested(47, 6, 2),
        nested(60, 5, 3, spread=0),
        crossed(20, 7, 4),
        crossed(20, 7, 5, spread=0),
        ([0.0, 1, 1, 0.5, 1, 0], ["x", "y", "x", "z", "z", "x"], ["a", "b", "c", "d", "e", "a"]),
        (
            [0.0, 1, 1, 0.5, 1, 0],
            ["x", "y", "x", "z", "z", "x"],
            [("a", "b"), ("b", "c"), "c", ("d", "e"), "e", ("a", "b")],
        ),
    ],
)
def test_it_is_the_definition_in_loops(rows: Rows) -> None:
    result = principles_interval(*rows)
    variance = variance_by_loops(*rows)
    assert result.estimate == pytest.approx(mean_of_query_means(list(zip(*rows, strict=True))))
    assert result.se**2 == pytest.approx(variance)
    assert (result.low, result.high) == pytest.approx(
        interval(result.estimate, variance, result.n_principles - 1, 0.95)
    )
    assert result.n_eff == pytest.approx(result.estimate * (1 - result.estimate) / variance)
    assert (result.n_principles, result.n_queries) == (len(set().union(*map(_set, rows[2]))), len(set(rows[1])))


def _set(principles: Any) -> set[str]:
    return set(principles) if isinstance(principles, tuple) else {principles}


def test_with_one_principle_a_query_it_is_the_variance_of_the_principles_means_and_the_floor() -> None:
    scores, queries, principles = nested(100, 5, 6, spread=0.4)
    means = np.array(scores).reshape(20, 5).mean(axis=0)
    p = np.mean(scores)
    smoothed = (100 * p + 1) / 102
    expected = means.var(ddof=1) / 5 + smoothed * (1 - smoothed) / 100**2
    assert principles_interval(scores, queries, principles).se ** 2 == pytest.approx(expected)


def test_crossed_it_is_the_two_way_clustered_covariance_of_statsmodels() -> None:
    """Up to the factors for few clusters, and the floor, both of which vanish with many of both."""
    scores, queries, principles = crossed(150, 80, 7)
    groups = [np.unique(ids, return_inverse=True)[1] for ids in (queries, principles)]
    fit = OLS(np.array(scores), np.ones(len(scores))).fit()
    expected = cov_cluster_2groups(fit, *groups, use_correction=False)[0][0, 0]
    assert principles_interval(scores, queries, principles).se ** 2 == pytest.approx(expected, rel=0.03)


@given(st.integers(0, 10_000), st.integers(5, 9), st.booleans(), st.sampled_from([0.0, 0.3]))
def test_it_contains_the_interval_for_these_principles(seed: int, g: int, is_nested: bool, spread: float) -> None:
    scores, queries, principles = nested(40, g, seed, spread) if is_nested else crossed(10, g, seed, spread)
    wide = principles_interval(scores, queries, principles)
    narrow = win_rate(
        np.array([np.mean([s for s, q in zip(scores, queries, strict=True) if q == query]) for query in set(queries)])
    )
    assert wide.estimate == pytest.approx(narrow.estimate)
    assert 0 <= wide.low <= narrow.low + 1e-9
    assert narrow.high - 1e-9 <= wide.high <= 1


@pytest.mark.parametrize("score", [0, 0.5, 1])
def test_equal_scores_have_an_interval_with_width(score: float) -> None:
    result = principles_interval([score] * 20, list(range(20)), [k % 5 for k in range(20)])
    assert result.low <= score <= result.high
    assert result.high - result.low > 0.1
    assert result.se > 0


def test_rows_of_one_query_and_constitution_are_one_observation() -> None:
    scores, queries, principles = crossed(20, 6, 8)
    once = principles_interval(scores, queries, principles)
    twice = principles_interval(scores * 2, queries * 2, principles * 2)
    assert (twice.estimate, twice.se) == pytest.approx((once.estimate, once.se))


def test_a_constitution_of_several_principles_is_left_out_for_each_of_them() -> None:
    """Two principles of five in each row; the score follows the first of the two alone: copies of rows would halve that."""
    rng = np.random.default_rng(9)
    effects = dict(zip("abcde", [0.9, 0.7, 0.5, 0.3, 0.1], strict=True))
    pairs = [tuple(rng.permutation(list("abcde"))[:2].tolist()) for _ in range(2000)]
    scores = [np.mean([effects[p] for p in pair]) for pair in pairs]
    result = principles_interval(scores, list(range(2000)), pairs)
    assert result.se == pytest.approx(np.std(list(effects.values()), ddof=1) / math.sqrt(5), rel=0.1)
    swapped = principles_interval(scores, list(range(2000)), [pair[::-1] for pair in pairs])
    assert swapped.se == pytest.approx(result.se)


@pytest.mark.parametrize("design", [nested, crossed])
@pytest.mark.parametrize("g", [5, 10])
def test_it_covers_new_principles_where_the_interval_over_queries_does_not(design: Any, g: int) -> None:
    """600 simulated runs, new principles in each; three standard errors below the bar of 93%."""
    truth = np.clip(
        0.6 + np.hypot(0.2, 0.2 * (design is crossed)) * np.random.default_rng(0).normal(size=10**6), 0, 1
    ).mean()
    n = 100 if design is nested else 40
    ours = over_queries = 0
    for seed in range(600):
        scores, queries, principles = design(n, g, 1000 + seed)
        found = principles_interval(scores, queries, principles)
        ours += found.low <= truth <= found.high
        rate = win_rate(np.array(scores).reshape(n, -1).mean(axis=1))
        over_queries += rate.low <= truth <= rate.high
    assert ours / 600 >= 0.93 - 3 * math.sqrt(0.07 * 0.93 / 600)
    assert over_queries < ours - 30


@settings(max_examples=30)
@given(st.integers(0, 1000))
def test_the_difference_is_mirrored_and_is_the_interval_of_halves(seed: int) -> None:
    a, queries, principles = nested(30, 6, seed)
    b = nested(30, 6, seed + 1)[0]
    forth, back = principles_difference(a, b, queries, principles), principles_difference(b, a, queries, principles)
    halved = principles_interval((np.array(a) - np.array(b) + 1) / 2, queries, principles)
    assert (forth.estimate, forth.low, forth.high, forth.se) == pytest.approx(
        (2 * halved.estimate - 1, 2 * halved.low - 1, 2 * halved.high - 1, 2 * halved.se)
    )
    assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low), abs=1e-9)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (nested(40, 4, 0), "at least 5 principles, and got 4"),
        (([1.0] * 5, list("vwxyz"), [("a", p) for p in "bcdef"]), "one principle is in all"),
        (([1.0] * 5, list("vwxyz"), ["a", "b", "c", "d", ()]), "row 4 has none"),
        (([1.0] * 5, list("vwxyz"), list("abcd")), "same length"),
        (([1.0] * 5, list("wxyz"), list("abcde")), "same length"),
        (([], [], []), "at least one number"),
        (([1.0, 0, 1, 1, math.nan], list("vwxyz"), list("abcde")), "finite"),
        (([1.0, 0, 1, 1, 2], list("vwxyz"), list("abcde")), "from 0 to 1"),
    ],
)
def test_unusable_rows_are_refused(rows: Rows, sentence: str) -> None:
    with pytest.raises(UnusableScores, match=sentence):
        principles_interval(*rows)
    with pytest.raises(UnusableScores, match=sentence):
        principles_difference(rows[0], rows[0], *rows[1:])


def test_a_difference_needs_two_scores_a_row() -> None:
    with pytest.raises(UnusableScores, match="same length"):
        principles_difference([1.0], [1.0, 0], ["q"], ["p"])


def test_a_level_outside_zero_to_one_is_refused() -> None:
    found = principles_interval(*nested(40, 5, 0))
    with pytest.raises(ValueError, match="confidence level"):
        principles_interval(*nested(40, 5, 0), level=95)
    with pytest.raises(ValueError, match="confidence level"):
        welch_gap(found, found, level=95)


# --- Learned minus held-out -------------------------------------------------------------------------------------------


def side(means: list[float], queries: int = 40_000) -> PrinciplesInterval:
    """Principles with these means, each on as many queries, so many that the floor of the queries vanishes."""
    each = queries // len(means)
    scores = np.concatenate([np.arange(each) < round(m * each) for m in means]).astype(float)
    return principles_interval(scores, np.arange(scores.size), np.repeat(np.arange(len(means)), each).tolist())


def test_with_equally_many_queries_it_is_welchs_test_on_principle_means() -> None:
    learned, held_out = [0.9, 0.75, 0.6, 0.8, 0.7], [0.5, 0.7, 0.55, 0.45, 0.6, 0.65, 0.4, 0.5]
    result = welch_gap(side(learned), side(held_out))
    theirs = ttest_ind(learned, held_out, equal_var=False)
    limits = theirs.confidence_interval()
    assert result.estimate == pytest.approx(np.mean(learned) - np.mean(held_out))
    assert (result.low, result.high) == pytest.approx((limits.low, limits.high), abs=1e-4)
    assert (result.df, result.p_value) == pytest.approx((theirs.df, theirs.pvalue), rel=1e-3)
    assert (result.n_learned, result.n_held_out) == (5, 8)


def test_changing_sides_mirrors_the_gap() -> None:
    one, two = side([0.9, 0.75, 0.6, 0.8, 0.7]), side([0.5, 0.7, 0.55, 0.45, 0.6])
    forth, back = welch_gap(one, two), welch_gap(two, one)
    assert (back.estimate, back.low, back.high) == pytest.approx((-forth.estimate, -forth.high, -forth.low))
    assert back.p_value == pytest.approx(forth.p_value)


def test_equal_means_have_a_gap_with_width() -> None:
    result = welch_gap(side([0.5] * 5, 100), side([0.5] * 6, 120))
    assert result.low < -0.05 < result.estimate == 0 < 0.05 < result.high
    assert result.p_value == 1


def test_the_limits_stay_where_a_gap_can_be() -> None:
    assert welch_gap(side([1.0] * 5, 20), side([0.0] * 5, 20)).high == 1
    queries, principles = list(range(20)), [k % 5 for k in range(20)]
    up, down = (principles_difference([a] * 20, [1 - a] * 20, queries, principles) for a in (1, 0))
    result = welch_gap(up, down)
    assert (result.estimate, result.high) == (2, 2)
    assert result.low > 1


def test_the_gap_covers() -> None:
    """600 simulated runs of 5 learned and 5 held-out principles; three standard errors below the bar of 93%."""
    covered = 0
    for seed in range(600):
        result = welch_gap(*(principles_interval(*nested(60, 5, 2 * seed + k)) for k in range(2)))
        covered += result.low <= 0 <= result.high
    assert covered / 600 >= 0.93 - 3 * math.sqrt(0.07 * 0.93 / 600)
