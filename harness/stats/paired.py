"""Two sets of scores for the same queries: the difference, its interval, its tests, and Holm's adjustment.

Every vector holds one score per query, in [0, 1], and the two vectors list the queries in the same order. Average
several rows of a query first (`harness.stats.cluster_means`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.stats._arrays import (
    CONSTANT,
    Floats,
    UnusableScores,
    chunks,
    finite_vector,
    same_length,
    two_sided_z,
)
from harness.stats.winrate import wilson, win_rate

EXACT_WORK = 50_000_000
"""Additions up to which sign flips are counted exactly; beyond, they are sampled."""

LARGEST_DENOMINATOR = 5040
"""Of the lattice that differences of scores are looked for on."""


@dataclass(frozen=True)
class PairedDifference:
    """A mean difference in [-1, 1] with its interval: always finite, and low <= estimate <= high."""

    estimate: float
    low: float
    high: float
    n: int  # queries with both scores
    method: str
    n_unpaired: int = 0  # queries with one score only, left out


def paired_difference(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> PairedDifference:
    """The mean of a - b, shapes (n,), with a two-sided interval at `level`.

    The interval is the one `win_rate` gives (a - b + 1) / 2, carried back to [-1, 1], so it is exactly mirrored when a and b
    change places.

    Raises UnusableScores for empty, unequal-length or NaN input and for scores outside [0, 1].
    """
    halved = win_rate((_differences(a, b, "A paired difference") + 1) / 2, level)
    method = f"{halved.method}, on (difference + 1) / 2"
    return PairedDifference(2 * halved.estimate - 1, 2 * halved.low - 1, 2 * halved.high - 1, halved.n, method)


def gap(
    learned_by_query: Mapping[str, float | Sequence[float]],
    held_out_by_query: Mapping[str, float | Sequence[float]],
    level: float = 0.95,
) -> PairedDifference:
    """Learned minus held-out win rate, paired by query: positive when the learned principles are followed more.

    Each mapping gives a query's id its scores in [0, 1], one number or one for each principle and answer order. A
    query's scores are averaged first, so the interval of `paired_difference` is clustered by query. Queries that only
    one side has are left out and counted in `n_unpaired`. The interval speaks of new queries under these principles,
    not of new principles.

    Raises UnusableScores when no query has both, and for empty, NaN or out-of-range scores.
    """
    shared = sorted(learned_by_query.keys() & held_out_by_query.keys())
    if not shared:
        raise UnusableScores("A gap needs queries judged under learned and held-out principles, and no query has both.")

    def means(side: Mapping[str, float | Sequence[float]]) -> list[float]:
        return [
            float(finite_vector(np.atleast_1d(side[query]), f"The gap at query {query}", 0, 1).mean())
            for query in shared
        ]

    result = paired_difference(means(learned_by_query), means(held_out_by_query), level)
    n_unpaired = len(learned_by_query.keys() ^ held_out_by_query.keys())
    return PairedDifference(result.estimate, result.low, result.high, result.n, result.method, n_unpaired)


def sign_flip_p(a: ArrayLike, b: ArrayLike, *, resamples: int = 9999, seed: int = 0) -> float:
    """Two-sided p of the paired permutation test (Fisher 1935): how often do random signs give a mean as far from 0?

    Shapes (n,), scores in [0, 1]. Equal pairs do not matter; 1 when all pairs are equal. Differences on a lattice, which
    scores of verdicts are (multiples of 1/4, say), give the exact answer, by convolution of the n two-point distributions. For
    others, such as differences of probabilities, it is (k + 1) / (m + 1) for k of m sampled flips (Phipson and Smyth
    2010).

    Raises UnusableScores for empty, unequal-length or NaN input and for scores outside [0, 1].
    """
    d = _differences(a, b, "A sign-flip test")
    d = d[np.abs(d) > CONSTANT]
    if (steps := _lattice(d)) is not None:
        return _exact_flips(steps)
    observed = abs(d.sum()) - CONSTANT * d.size  # sums in another order may round below the observed one
    rng = np.random.default_rng(seed)
    extreme = 0
    for rows in chunks(resamples, d.size):
        kept = rng.integers(0, 2, size=(rows, d.size), dtype=np.int8) @ d  # sum of the differences that keep their sign
        extreme += int((np.abs(2 * kept - d.sum()) >= observed).sum())
    return (extreme + 1) / (resamples + 1)


def _lattice(d: Floats) -> NDArray[np.int64] | None:
    """The differences as whole multiples of their common step; None where there is none, or too fine a one to count on."""
    step = 1
    for value in np.unique(np.abs(d)):
        step = math.lcm(step, Fraction(float(value)).limit_denominator(LARGEST_DENOMINATOR).denominator)
        if step > LARGEST_DENOMINATOR:
            return None
    whole = np.rint(d * step)
    if (np.abs(d * step - whole) > CONSTANT * step * 10).any() or np.abs(whole).sum() * d.size > EXACT_WORK:
        return None
    return whole.astype(np.int64)


def _exact_flips(steps: NDArray[np.int64]) -> float:
    """P(|sum of randomly signed steps| >= |their sum|)."""
    sizes = np.abs(steps)
    total, reach = int(sizes.sum()), 0
    kept = np.zeros(total + 1)  # kept[k]: probability that the positive ones add up to k
    kept[0] = 1.0
    for size in sizes:
        kept[size : reach + size + 1] += kept[: reach + 1].copy()
        reach += int(size)
        kept[: reach + 1] /= 2
    return min(1.0, float(kept[np.abs(2 * np.arange(total + 1) - total) >= abs(steps.sum())].sum()))


class PairedTable(NamedTuple):
    """Counts of queries by which of the two won, for scores of 0 and 1."""

    both: int
    only_a: int
    only_b: int
    neither: int


def paired_table(a: ArrayLike, b: ArrayLike) -> PairedTable:
    """The 2 x 2 table of two 0/1 vectors, shapes (n,). Raises UnusableScores when a score is neither 0 nor 1."""
    what = "A paired table"
    x, y = finite_vector(a, what, 0, 1), finite_vector(b, what, 0, 1)
    same_length(what, x, y)
    if not (np.isin(x, (0, 1)).all() and np.isin(y, (0, 1)).all()):
        raise UnusableScores(
            "A paired table needs scores of 0 and 1 only; use the sign-flip test for scores with ties."
        )
    both, only_a, only_b = int((x * y).sum()), int((x > y).sum()), int((x < y).sum())
    return PairedTable(both, only_a, only_b, x.size - both - only_a - only_b)


def mcnemar_p(table: PairedTable) -> float:
    """Exact two-sided p of McNemar's test (McNemar 1947): a fair coin over the queries that only one side won."""
    from scipy.special import bdtr

    table = _checked(table)
    discordant = table.only_a + table.only_b
    return min(1.0, 2 * float(bdtr(min(table.only_a, table.only_b), discordant, 0.5)))


def newcombe_interval(table: PairedTable, level: float = 0.95) -> tuple[float, float]:
    """Interval for a's win rate minus b's, for 0/1 scores: method 10 of Newcombe (1998), "Improved confidence
    intervals for the difference between binomial proportions based on paired data".

    Wilson's limits of the two win rates, joined with the pairs' correlation (phi, continuity corrected when positive).
    Counts 36, 12, 2, 0 give 0.0569 to 0.3404. Raises UnusableScores for an empty table or negative counts.
    """
    both, only_a, only_b, neither = table = _checked(table)
    n, z = sum(table), two_sided_z(level)
    p_a, p_b = (both + only_a) / n, (both + only_b) / n
    (low_a, high_a), (low_b, high_b) = wilson(p_a, n, z), wilson(p_b, n, z)
    excess = float(both * neither - only_a * only_b)
    if excess > 0:
        excess = max(excess - n / 2, 0.0)
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    phi = excess / math.sqrt(margins) if margins else 0.0

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))

    difference = p_a - p_b
    low = difference - reach(p_a - low_a, high_b - p_b)
    high = difference + reach(high_a - p_a, p_b - low_b)
    return max(-1.0, low), min(1.0, high)


def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down adjusted p values (Holm 1979) for one family, shape (m,), in the order given.

    The k-th smallest is multiplied by m - k + 1, made to ascend, and capped at 1. Raises UnusableScores for an empty
    family and for values outside [0, 1].
    """
    p = finite_vector(p_values, "Holm's adjustment", 0, 1)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)))
    return adjusted


def _differences(a: ArrayLike, b: ArrayLike, what: str) -> Floats:
    x, y = finite_vector(a, what, 0, 1), finite_vector(b, what, 0, 1)
    same_length(what, x, y)
    return x - y


def _checked(table: PairedTable) -> PairedTable:
    if min(table) < 0 or sum(table) == 0:
        raise UnusableScores(f"A paired table needs counts of at least zero that are not all zero: got {tuple(table)}.")
    return PairedTable(*table)
