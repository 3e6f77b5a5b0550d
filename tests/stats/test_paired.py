"""Paired comparisons against naive loops, scipy and statsmodels, and Newcombe's published example."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multinomial, permutation_test
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from harness.stats import (
    PairedTable,
    UnusableScores,
    gap,
    holm,
    mcnemar_p,
    newcombe_interval,
    paired_difference,
    paired_table,
    sign_flip_p,
    win_rate,
)

TIED = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
TABLES = st.tuples(*[st.integers(0, 40)] * 4).filter(any).map(lambda counts: PairedTable(*counts))


def pairs(max_size: int) -> st.SearchStrategy[list[tuple[float, float]]]:
    return st.lists(st.tuples(TIED, TIED), min_size=1, max_size=max_size)


def example(n: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.choice([0, 0.5, 1], n, p=[0.2, 0.2, 0.6]), rng.choice([0, 0.5, 1], n, p=[0.3, 0.3, 0.4])


@given(pairs(60))
def test_the_interval_is_in_range_contains_the_estimate_and_mirrors(rows: list[tuple[float, float]]) -> None:
    a, b = zip(*rows, strict=True)
    forth, back = paired_difference(a, b), paired_difference(b, a)
    assert -1 <= forth.low <= forth.estimate <= forth.high <= 1
    assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low), abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, 29, 250])
def test_the_interval_is_the_win_rates_on_halved_differences(n: int) -> None:
    a, b = example(n)
    result, halved = paired_difference(a, b), win_rate((a - b + 1) / 2)
    assert (result.low, result.high) == pytest.approx((2 * halved.low - 1, 2 * halved.high - 1))
    assert result.method == f"{halved.method}, on (difference + 1) / 2"


@pytest.mark.parametrize(("a", "b"), [(1, 1), (0.5, 0), (0.1 + 0.2, 0.3)])
def test_equal_differences_get_an_interval_with_width(a: float, b: float) -> None:
    result = paired_difference([a] * 100, [b] * 100)
    assert result.low < a - b < result.high
    assert "Wilson" in result.method


@pytest.mark.parametrize("n", [10, 30, 50, 250])
def test_the_interval_covers(n: int) -> None:
    """Exact: every count of queries that only a won and that only b won. Least where b never wins alone: 92.2%."""
    table = np.array([(x, y) for x in range(n + 1) for y in range(n + 1 - x)])
    found = [paired_difference(np.repeat([1.0, 0, 0], c), np.repeat([0.0, 1, 0], c)) for c in with_rest(table, n)]
    low, high = np.array([(r.low, r.high) for r in found]).T
    for only_a, only_b in [(0.2, 0.2), (0.3, 0.1), (0.1, 0.02), (0.1, 0.0), (0.05, 0.0)]:
        weights = multinomial.pmf(with_rest(table, n), n, [only_a, only_b, 1 - only_a - only_b])
        covered = weights[(low <= only_a - only_b) & (only_a - only_b <= high)].sum()
        assert covered >= (0.93 if only_b else 0.92), (only_a, only_b)


def with_rest(table: np.ndarray, n: int) -> np.ndarray:
    return np.column_stack([table, n - table.sum(axis=1)])


@pytest.mark.parametrize(
    ("a", "b", "sentence"),
    [([], [], "none"), ([1], [1, 0], "same length"), ([math.nan], [1], "finite"), ([2], [1], "from 0 to 1")],
)
def test_unusable_pairs_are_refused(a: list[float], b: list[float], sentence: str) -> None:
    for function in (paired_difference, sign_flip_p, paired_table):
        with pytest.raises(UnusableScores, match=sentence):
            function(a, b)


def brute_force(d: list[float]) -> float:
    """Over all 2^n choices of signs."""
    flips = np.array(list(itertools.product((1, -1), repeat=len(d)))) @ d
    return float(np.mean(np.abs(flips) >= abs(sum(d)) - 1e-9))


@settings(deadline=None, max_examples=50)
@given(pairs(12))
def test_flips_of_verdicts_are_counted_exactly(rows: list[tuple[float, float]]) -> None:
    a, b = zip(*rows, strict=True)
    assert sign_flip_p(a, b) == pytest.approx(brute_force([x - y for x, y in rows]))


@pytest.mark.parametrize("denominator", [3, 6, 7, 12, 60])
def test_flips_of_means_of_several_verdicts_are_counted_exactly(denominator: int) -> None:
    """Thirds and sevenths are not exact in binary, and still on a lattice."""
    rng = np.random.default_rng(denominator)
    a, b = rng.integers(0, denominator + 1, (2, 12)) / denominator
    assert sign_flip_p(a, b) == pytest.approx(brute_force(list(a - b)))
    assert sign_flip_p(a, b, seed=1) == sign_flip_p(a, b)  # nothing was drawn


def test_a_mixed_lattice_has_the_common_step() -> None:
    a, b = [1 / 3, 1 / 2, 3 / 4, 1, 2 / 3, 1, 1 / 4, 1], [0, 0, 1, 1 / 6, 0, 1 / 2, 1 / 2, 0]
    assert sign_flip_p(a, b) == pytest.approx(brute_force([x - y for x, y in zip(a, b, strict=True)]))


def test_for_verdicts_of_0_and_1_it_is_mcnemars_test() -> None:
    a, b = [1] * 150 + [0] * 110, [0] * 150 + [1] * 110
    assert sign_flip_p(a, b) == pytest.approx(mcnemar_p(paired_table(a, b)), rel=1e-9)


def test_an_exact_p_is_as_small_as_two_of_all_choices_of_signs() -> None:
    assert sign_flip_p([1] * 100, [0] * 100) == pytest.approx(2**-99)


def test_flips_off_a_lattice_are_sampled_like_scipys() -> None:
    a, b = np.random.default_rng(3).random((2, 60)) ** 0.5 * [[1], [0.93]]
    theirs = permutation_test((a - b,), np.mean, permutation_type="samples", n_resamples=9999)
    assert 0.01 < theirs.pvalue < 0.9
    assert sign_flip_p(a, b) == pytest.approx(theirs.pvalue, abs=0.02)
    assert sign_flip_p(a, b, seed=1) != sign_flip_p(a, b)


def test_a_sampled_p_is_never_zero() -> None:
    a = np.random.default_rng(4).uniform(0.5, 1, 100)
    assert sign_flip_p(a, [0] * 100, resamples=99) == 1 / 100


def test_equal_scores_have_p_one() -> None:
    assert sign_flip_p([1, 0, 0.5], [1, 0, 0.5]) == 1
    assert mcnemar_p(paired_table([1, 0], [1, 0])) == 1


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1))
def test_the_table_counts_the_pairs(rows: list[tuple[int, int]]) -> None:
    a, b = zip(*rows, strict=True)
    assert paired_table(a, b) == tuple(rows.count(pair) for pair in [(1, 1), (1, 0), (0, 1), (0, 0)])


def test_the_table_refuses_ties() -> None:
    with pytest.raises(UnusableScores, match="sign-flip"):
        paired_table([1, 0.5], [1, 0])


@given(TABLES)
def test_mcnemar_is_statsmodels(table: PairedTable) -> None:
    both, only_a, only_b, neither = table
    expected = mcnemar([[both, only_a], [only_b, neither]], exact=True).pvalue
    assert mcnemar_p(table) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("counts", "interval"),
    [
        ((36, 12, 2, 0), (0.0569, 0.3404)),  # Newcombe 1998, method 10
        ((0, 0, 0, 10), (-0.2775, 0.2775)),  # phi undefined: two independent Wilson limits, 0 and 0.2775
    ],
)
def test_newcombes_interval(counts: tuple[int, int, int, int], interval: tuple[float, float]) -> None:
    assert newcombe_interval(PairedTable(*counts)) == pytest.approx(interval, abs=5e-5)


@given(TABLES)
def test_newcombes_interval_is_in_range_contains_the_estimate_and_mirrors(table: PairedTable) -> None:
    both, only_a, only_b, neither = table
    low, high = newcombe_interval(table)
    assert -1 <= low <= (only_a - only_b) / sum(table) + 1e-12
    assert (only_a - only_b) / sum(table) - 1e-12 <= high <= 1
    mirrored = newcombe_interval(PairedTable(both, only_b, only_a, neither))
    assert mirrored == pytest.approx((-high, -low), abs=1e-12)


@pytest.mark.parametrize("counts", [(0, 0, 0, 0), (5, -1, 2, 3)])
def test_impossible_tables_are_refused(counts: tuple[int, int, int, int]) -> None:
    for function in (mcnemar_p, newcombe_interval):
        with pytest.raises(UnusableScores, match="counts"):
            function(PairedTable(*counts))


@pytest.mark.parametrize(
    "p_values", [[0.04], [0.03, 0.001, 0.02, 0.02, 0.9], [1, 0, 0.5, 0.2], [0.06, 0.05, 0.04, 0.03]]
)
def test_holm_is_statsmodels(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_its_definition(p_values: list[float]) -> None:
    """Adjusted p of a hypothesis: the largest (m - k + 1) p_(k) over the p values up to its own."""
    m, ascending = len(p_values), sorted(p_values)
    expected = [min(1, max((m - k) * q for k, q in enumerate(ascending) if q <= p)) for p in p_values]
    assert holm(p_values) == pytest.approx(expected)


@pytest.mark.parametrize("p_values", [[], [0.1, math.nan], [1.2]])
def test_holm_refuses_what_is_not_a_p_value(p_values: list[float]) -> None:
    with pytest.raises(UnusableScores, match="Holm"):
        holm(p_values)


def test_the_gap_is_the_paired_difference_of_query_means() -> None:
    rng = np.random.default_rng(5)
    learned = {f"q{k}": rng.choice([0, 0.5, 1], 3, p=[0.1, 0.2, 0.7]).tolist() for k in range(40)}
    held_out = {f"q{k}": rng.choice([0, 0.5, 1], 2, p=[0.4, 0.2, 0.4]).tolist() for k in reversed(range(40))}
    result = gap(learned, held_out)
    by_hand = paired_difference(
        [np.mean(learned[q]) for q in sorted(learned)], [np.mean(held_out[q]) for q in sorted(learned)]
    )
    assert result == by_hand
    assert result.estimate > 0


def test_the_gap_counts_the_queries_it_leaves_out() -> None:
    result = gap({"q1": 1.0, "q2": [1, 0], "q3": 1}, {"q2": 0.0, "q1": [0.5], "q4": 0, "q5": 0})
    assert (result.estimate, result.n, result.n_unpaired) == (0.5, 2, 3)


@pytest.mark.parametrize(
    ("held_out", "sentence"), [({"q2": 1.0}, "no query has both"), ({"q1": []}, "query q1"), ({"q1": [3]}, "query q1")]
)
def test_an_unusable_gap_is_refused(held_out: dict[str, list[float]], sentence: str) -> None:
    with pytest.raises(UnusableScores, match=sentence):
        gap({"q1": 1.0}, held_out)
