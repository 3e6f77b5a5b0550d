"""Principles as a sample: intervals for principles like these, of a win rate, a difference, and learned minus held-out.

`win_rate` answers for new queries under the same principles. "Generalises" is a claim about new principles, for which the
principle is a unit too: five principles are five observations, however many queries each of them has.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.stats._arrays import Floats, UnusableScores, finite_vector, same_length, two_sided_z
from harness.stats.winrate import effective_n, interval, variance_of_mean

FEWEST = 5
"""Principles that an interval for new ones needs."""

TWO_WAY = "Wilson, effective n, Student's t over principles, variance clustered by principle and query"


@dataclass(frozen=True)
class PrinciplesInterval:
    """A mean score, or a mean difference, for new principles and new queries: finite, and low <= estimate <= high."""

    estimate: float
    low: float
    high: float
    n_principles: int
    n_queries: int
    n_eff: float  # the independent 0/1 queries whose mean has this variance
    se: float
    method: str


def principles_interval(
    scores: ArrayLike,
    query_ids: ArrayLike,
    principle_ids: Sequence[Hashable | tuple[Hashable, ...]],
    level: float = 0.95,
) -> PrinciplesInterval:
    """The mean over queries of each query's mean score, with a two-sided interval at `level` for principles like these.

    `scores`, shape (rows,), each in [0, 1], has a row for each query and constitution (several for orders and repeats).
    `principle_ids` has the row's principle or, where a constitution holds several, the tuple of them. Do not repeat a row
    for each of its principles: the score depends on all of them, which copies of the row would hide.

    V = max(V_p, V_q, V_p + V_q - V_pair), clustered two ways (Cameron, Gelbach and Miller 2011). V_p is the delete-one-principle
    jackknife (Tukey 1958), (G - 1) / G times the sum over principles g of (theta_(-g) - mean of theta_(.))^2, where
    theta_(-g) is the estimate from the rows that do not hold g. V_q is `variance_of_mean` of the query means, with its floor.
    V_pair takes every pair of query and constitution as independent. Where each query has one principle,
    V_q - V_pair is the floor alone. As V is at least V_q, the interval is never narrower than that for these principles.
    The limits are `interval` at V with G - 1 degrees of freedom. With K principles a constitution, V_p overstates the part of
    the queries by about K (G - 1) / (G - K).

    Raises UnusableScores below 5 principles, where every row holds the same principle, for a row without principles, for
    empty, unequal-length or NaN input and for scores outside [0, 1]; ValueError for a bad level.
    """
    what = "An interval for new principles"
    s = finite_vector(scores, what, 0, 1)
    query = np.unique(np.asarray(query_ids), return_inverse=True)[1]
    same_length(what, s, query)
    same_length(what, s, principle_ids)
    constitutions, held = _held(principle_ids, what)

    rows, totals = np.bincount(query).astype(np.float64), np.bincount(query, weights=s).astype(np.float64)
    means = totals / rows
    estimate = float(means.mean())
    v_p = _jackknife(s, rows, totals, query, held[constitutions], what)
    v_q = variance_of_mean(means)
    pair = query * len(held) + constitutions
    v_pair = float((np.bincount(pair, weights=(s - estimate) / rows[query]) ** 2).sum()) / means.size**2
    variance, g = max(v_p, v_q, v_p + v_q - v_pair), held.shape[1]
    low, high = interval(estimate, variance, g - 1, level)
    n_eff = effective_n(estimate, variance, g)
    return PrinciplesInterval(estimate, low, high, g, means.size, n_eff, math.sqrt(variance), TWO_WAY)


def principles_difference(
    a: ArrayLike,
    b: ArrayLike,
    query_ids: ArrayLike,
    principle_ids: Sequence[Hashable | tuple[Hashable, ...]],
    level: float = 0.95,
) -> PrinciplesInterval:
    """The mean of a - b, shapes (rows,), both in [0, 1], in [-1, 1]: as `principles_interval` of (a - b + 1) / 2, carried back.

    Raises as `principles_interval` does, and UnusableScores where a and b differ in length.
    """
    what = "A difference for new principles"
    x, y = finite_vector(a, what, 0, 1), finite_vector(b, what, 0, 1)
    same_length(what, x, y)
    halved = principles_interval((x - y + 1) / 2, query_ids, principle_ids, level)
    return PrinciplesInterval(
        2 * halved.estimate - 1,
        2 * halved.low - 1,
        2 * halved.high - 1,
        halved.n_principles,
        halved.n_queries,
        halved.n_eff,
        2 * halved.se,
        f"{halved.method}, on (difference + 1) / 2",
    )


@dataclass(frozen=True)
class WelchGap:
    """Learned minus held-out for new principles of both kinds: finite, and low <= estimate <= high."""

    estimate: float
    low: float
    high: float
    se: float
    df: float
    p_value: float  # two-sided, of no gap
    n_learned: int  # principles
    n_held_out: int


def welch_gap(learned: PrinciplesInterval, held_out: PrinciplesInterval, level: float = 0.95) -> WelchGap:
    """Learned minus held-out, with a two-sided interval at `level` for new principles on both sides (Welch 1947).

    Of two `principles_interval` it is the gap between win rates. Of two `principles_difference` (the trained model's steerability
    minus its base's) it is the difference of differences, which does not mix up training with how hard the two sets of
    principles are. Student's t with Satterthwaite's (1946) degrees of freedom from G - 1 on each side: with one principle
    a query and equally many queries for each, that is Welch's test on the principles' means. As both variances have the
    floor of the queries, equal means still give a width. The two sides are taken as independent; on the same queries they
    correlate, mostly to the safe side. The limits are cut at [-1, 1] for scores and at [-2, 2] for differences.

    Raises ValueError for a bad level. Each side has at least 5 principles, or there would be no interval to pass.
    """
    from scipy.special import stdtr, stdtrit

    two_sided_z(level)  # refuses a bad level
    variances = learned.se**2, held_out.se**2
    df = sum(variances) ** 2 / sum(
        v**2 / (side.n_principles - 1) for v, side in zip(variances, (learned, held_out), strict=True)
    )
    estimate, se = learned.estimate - held_out.estimate, math.sqrt(sum(variances))
    half = float(stdtrit(df, (1 + level) / 2)) * se
    most = 1.0 if min(learned.low, held_out.low) >= 0 else 2.0
    p = 2 * float(stdtr(df, -abs(estimate) / se))
    return WelchGap(
        estimate=estimate,
        low=max(-most, estimate - half),
        high=min(most, estimate + half),
        se=se,
        df=df,
        p_value=p,
        n_learned=learned.n_principles,
        n_held_out=held_out.n_principles,
    )


def _held(
    principle_ids: Sequence[Hashable | tuple[Hashable, ...]], what: str
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The constitution of each row, shape (rows,), and the principles that each constitution holds, shape (C, G)."""
    rows = [frozenset(ids) if isinstance(ids, tuple) else frozenset([ids]) for ids in principle_ids]
    if not all(rows):
        raise UnusableScores(f"{what} needs a principle in each row, and row {rows.index(frozenset())} has none.")
    distinct: dict[frozenset[Any], int] = {ids: k for k, ids in enumerate(dict.fromkeys(rows))}
    names = {name: k for k, name in enumerate(sorted(set().union(*distinct), key=str))}
    if len(names) < FEWEST:
        raise UnusableScores(
            f"{what} needs at least {FEWEST} principles, and got {len(names)}; evaluate on a set with more of them."
        )
    held = np.zeros((len(distinct), len(names)), dtype=np.bool_)
    for ids, k in distinct.items():
        held[k, [names[name] for name in ids]] = True
    return np.array([distinct[ids] for ids in rows], dtype=np.int64), held


def _jackknife(
    s: Floats, rows: Floats, totals: Floats, query: NDArray[np.int64], held: NDArray[np.bool_], what: str
) -> float:
    """V_p. `rows` and `totals` of each query, shape (Q,); `query` and `held` of each row, shapes (rows,) and (rows, G)."""
    g: int = held.shape[1]
    row, principle = np.nonzero(held)
    cell, shape = query[row] * g + principle, (rows.size, g)
    left = rows[:, None] - np.bincount(cell, minlength=rows.size * g).reshape(shape)
    sums = totals[:, None] - np.bincount(cell, weights=s[row], minlength=rows.size * g).reshape(shape)
    kept = (left > 0).sum(axis=0)  # queries with a row that does not hold the principle
    if not kept.all():
        raise UnusableScores(f"{what} needs rows without each principle, and one principle is in all of them.")
    without = np.where(left > 0, sums / np.maximum(left, 1), 0).sum(axis=0) / kept
    return (g - 1) / g * float(np.sum((without - without.mean()) ** 2))
