"""Win rates: the interval against statsmodels, its exact coverage, its edges, and what must hold for any scores."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, t
from statsmodels.stats.proportion import proportion_confint

from harness.stats import ScoreCounts, UnusableScores, cluster_means, tie_rules, win_rate
from harness.stats.winrate import interval, variance_of_mean

UNIT = st.floats(0, 1)
TIED = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
SCORES = st.lists(UNIT, min_size=1, max_size=60) | st.lists(TIED, min_size=1, max_size=60)


def wilson_by_statsmodels(p: float, n_eff: float, df: float, level: float) -> tuple[float, float]:
    """statsmodels' Wilson interval, whose normal quantile is made Student's by asking for another level."""
    return proportion_confint(p * n_eff, n_eff, 2 * norm.sf(t.ppf((1 + level) / 2, df)), "wilson")


@pytest.mark.parametrize(
    "counts", [(5, 0, 5), (162, 0, 88), (249, 0, 1), (30, 12, 8), (1, 1, 1), (3, 4, 0), (2, 60, 1)]
)
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_it_is_wilsons_interval_at_the_effective_n_with_students_quantile(
    counts: tuple[int, ...], level: float
) -> None:
    scores = [1.0] * counts[0] + [0.5] * counts[1] + [0.0] * counts[2]
    n, p = len(scores), sum(scores) / len(scores)
    smoothed = (sum(scores) + 1) / (n + 2)
    v = (sum((s - p) ** 2 for s in scores) + smoothed * (1 - smoothed)) / n
    n_eff = n * p * (1 - p) / v
    result = win_rate(scores, level)
    assert (result.estimate, result.n, result.n_eff) == pytest.approx((p, n, n_eff))
    assert (result.low, result.high) == pytest.approx(wilson_by_statsmodels(p, n_eff, n - 1, level), abs=1e-9)
    assert result.method == "Wilson, effective n, Student's t"


def test_few_queries_with_little_spread_do_not_shrink_or_fill_the_interval() -> None:
    """Six queries, two of them ahead by one of four verdicts."""
    result = win_rate([0.75, 0.75, 0.5, 0.5, 0.5, 0.5])
    assert (result.low, result.high) == pytest.approx((0.346, 0.787), abs=5e-4)


@pytest.mark.parametrize("n", [1, 2, 9, 10, 250])
@pytest.mark.parametrize("score", [0, 1])
def test_where_all_won_or_lost_the_effective_n_is_n(score: int, n: int) -> None:
    result = win_rate([score] * n)
    assert (result.low, result.high) == pytest.approx(wilson_by_statsmodels(score, n, max(n - 1, 1), 0.95), abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, 9, 10, 250])
@pytest.mark.parametrize("score", [0, 0.1, 0.5, 1])
def test_equal_scores_have_an_interval_with_width(score: float, n: int) -> None:
    """Nothing varied, and yet one more query may: at least what a query of variance 1/4 would move the mean by."""
    result = win_rate([score] * n)
    assert 0 <= result.low <= score <= result.high <= 1
    smoothed = (n * score + 1) / (n + 2)
    assert result.high - result.low > math.sqrt(smoothed * (1 - smoothed)) / n


@given(SCORES, st.floats(0.01, 0.99))
def test_more_variance_widens_the_interval_on_both_sides(scores: list[float], share: float) -> None:
    s = np.array(scores)
    variance = variance_of_mean(s)
    narrow, wide = (interval(float(s.mean()), v, s.size - 1, 0.95) for v in (share * variance, variance))
    assert wide[0] <= narrow[0] + 1e-12
    assert narrow[1] <= wide[1] + 1e-12


def test_the_interval_refuses_a_variance_of_zero() -> None:
    with pytest.raises(ValueError, match="above zero"):
        interval(0.5, 0.0, 9, 0.95)


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        ([], "at least one number"),
        ([1, math.nan, 0, math.nan], r"2 of 4 are not \(the first at index 1\)"),
        ([math.inf], "finite"),
        ([0.5, None], "finite"),
        ([0, 1.5], r"from 0 to 1: 1 of 2 are outside \(the first is 1.5, at index 1\)"),
        ([-0.1], "from 0 to 1"),
        ([[1, 0], [0, 1]], "flat list"),
        (["a", "tie"], "not labels"),
    ],
)
def test_unusable_scores_are_refused_in_one_sentence(scores: list[object], sentence: str) -> None:
    with pytest.raises(UnusableScores, match=sentence):
        win_rate(scores)  # type: ignore[arg-type]


@pytest.mark.parametrize("level", [0, 1, 95, math.nan])
@pytest.mark.parametrize("n", [5, 20])
def test_a_level_outside_zero_to_one_is_refused(level: float, n: int) -> None:
    with pytest.raises(ValueError, match="confidence level"):
        win_rate([0, 1] * n, level)


@given(SCORES)
def test_the_interval_is_in_range_and_contains_the_estimate(scores: list[float]) -> None:
    result = win_rate(scores)
    assert 0 <= result.low <= result.estimate <= result.high <= 1
    assert 0 < result.n_eff < math.inf


@given(SCORES)
def test_changing_sides_mirrors_the_interval(scores: list[float]) -> None:
    ours, theirs = win_rate(scores), win_rate([1 - s for s in scores])
    assert (theirs.low, theirs.high) == pytest.approx((1 - ours.high, 1 - ours.low), abs=1e-6)


@given(SCORES)
def test_a_higher_level_is_never_narrower(scores: list[float]) -> None:
    narrow, wide = win_rate(scores, 0.8), win_rate(scores, 0.95)
    assert wide.low <= narrow.low + 1e-12
    assert wide.high >= narrow.high - 1e-12


@pytest.mark.parametrize("n", [6, 8, 10, 20, 30, 50, 250])
def test_the_interval_covers(n: int) -> None:
    """Exact, not simulated: every (wins, ties) that n queries can give, weighted by its multinomial probability.

    Where losses cannot happen (ties .9 at .55), 93.2%; the type I error for 0/1 scores swings about 5% with n.
    """
    table = np.array([(w, t) for w in range(n + 1) for t in range(n + 1 - w)])
    results = [win_rate(np.repeat([1.0, 0.5, 0.0], (w, t, n - w - t))) for w, t in table]
    low, high = np.array([(r.low, r.high) for r in results]).T
    for p, tie_rate in itertools.product((0.5, 0.55, 0.65, 0.77, 0.95), (0, 0.1, 0.3, 0.6, 0.9)):
        if p + tie_rate / 2 <= 1:
            probability = multinomial(table, n, p - tie_rate / 2, tie_rate)
            assert probability.sum() == pytest.approx(1)
            assert probability[(low <= p) & (p <= high)].sum() >= 0.93, (p, tie_rate)
            if p == 0.5:
                assert probability[(low > 0.5) | (high < 0.5)].sum() <= 0.055, tie_rate


def multinomial(table: np.ndarray, n: int, p_win: float, p_tie: float) -> np.ndarray:
    from scipy.special import gammaln, xlogy

    wins, ties = table.T
    losses = n - wins - ties
    log_ways = gammaln(n + 1) - gammaln(wins + 1) - gammaln(ties + 1) - gammaln(losses + 1)
    p_loss = max(0.0, round(1 - p_win - p_tie, 12))
    return np.exp(log_ways + xlogy(wins, p_win) + xlogy(ties, p_tie) + xlogy(losses, p_loss))


def test_the_interval_of_query_means_covers_where_that_of_rows_does_not() -> None:
    """250 queries in two orders, correlated within the query: 2,000 simulated runs."""
    rng = np.random.default_rng(20)
    runs, n = 2000, 250
    ability = np.clip(rng.normal(0.65, 0.25, (runs, n, 1)), 0, 1)
    verdicts = (rng.random((runs, n, 2)) < ability).astype(float)
    truth = np.clip(rng.normal(0.65, 0.25, 2_000_000), 0, 1).mean()
    ids = np.repeat(np.arange(n), 2)

    def covered(scores: np.ndarray) -> bool:
        result = win_rate(scores)
        return bool(result.low <= truth <= result.high)

    of_rows = np.mean([covered(run.ravel()) for run in verdicts])
    of_queries = np.mean([covered(cluster_means(run.ravel(), ids).means) for run in verdicts])
    assert of_queries >= 0.935
    assert of_rows < of_queries - 0.01


@given(st.lists(st.tuples(st.sampled_from("abcde"), UNIT), min_size=1))
def test_cluster_means_are_the_means_of_each_clusters_rows(rows: list[tuple[str, float]]) -> None:
    expected = defaultdict(list)
    for name, value in rows:
        expected[name].append(value)
    ids, means = cluster_means([value for _, value in rows], [name for name, _ in rows])
    assert ids.tolist() == sorted(expected)
    assert means == pytest.approx([sum(expected[name]) / len(expected[name]) for name in sorted(expected)])


def test_cluster_means_need_an_id_for_each_row() -> None:
    with pytest.raises(UnusableScores, match="same length"):
        cluster_means([1, 0, 1], ["a", "b"])


def test_tie_rules() -> None:
    assert tie_rules(6, 2, 2) == (0.7, 0.75, 0.6)
    assert tie_rules(0, 3, 0) == (0.5, None, 0)


@pytest.mark.parametrize("counts", [(0, 0, 0), (1, -1, 3)])
def test_tie_rules_refuse_impossible_counts(counts: tuple[int, int, int]) -> None:
    with pytest.raises(UnusableScores):
        tie_rules(*counts)


@given(st.lists(st.sampled_from([0, 0.5, 1]), min_size=1))
def test_counting_a_tie_as_half_a_win_is_the_win_rate(scores: list[float]) -> None:
    counts = ScoreCounts.of(scores)
    assert tie_rules(*counts[:3]).half == pytest.approx(win_rate(scores).estimate)


def test_score_counts() -> None:
    counts = ScoreCounts.of([1, 1, 0.75, 0.5, 0.25, 0], unscored=2)
    assert counts == (3, 1, 2, 2)
    assert counts.expected == 8
    assert counts.unscored_share == 0.25
    assert ScoreCounts.of([], unscored=3).unscored_share == 1
    assert ScoreCounts.of([]).unscored_share == 0
