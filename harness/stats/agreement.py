"""How far a judge is to be trusted: against reference labels, against itself in the other order, and when it is asked again.

Scores are in [0, 1] from the side of the pair's first model: above 1/2 a win, 1/2 a tie, below 1/2 a loss. Every entry
is one pair of answers; leave out pairs of identical texts, which no judge was asked about, and unscored ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.stats._arrays import (
    CONSTANT,
    Floats,
    UnusableScores,
    finite_vector,
    floor_variance,
    same_length,
    two_sided_z,
)
from harness.stats.winrate import WILSON, WinRate, effective_n, interval, win_rate

CLASSES = ("win", "tie", "loss")


@dataclass(frozen=True)
class Kappa:
    """Cohen's kappa, in [-1, 1]; always finite."""

    estimate: float
    low: float
    high: float
    se: float  # linearised over queries; 0 where all labels agree, the interval is not
    n: int  # pairs


@dataclass(frozen=True, eq=False)
class JudgeAgreement:
    """What a judge's verdicts are worth, from pairs whose true label is known."""

    accuracy: WinRate  # share of pairs with the same label, of three
    kappa: Kappa | None  # None where both sides used one and the same label throughout: there is no chance to beat
    sensitivity: WinRate | None  # mean score on reference wins; None without any
    specificity: WinRate | None  # 1 - mean score on reference losses; None without any
    table: NDArray[np.int64]  # shape (3, 3): rows the reference's label, columns the judge's, in the order of CLASSES
    n: int  # pairs


def judge_agreement(
    scores: ArrayLike, reference: ArrayLike, level: float = 0.95, query_ids: ArrayLike | None = None
) -> JudgeAgreement:
    """A judge's `scores` beside `reference` labels, shapes (n,), one entry per pair of answers, both in [0, 1].

    Accuracy and kappa (Cohen 1960) compare labels. Sensitivity and specificity are means of the judge's score, so that
    its ties count one half, as they do in a win rate: this is what `rogan_gladen` corrects by. Reference ties belong to
    neither. `query_ids`, shape (n,), says which pairs belong to one query (None: each to its own): the query is the unit of
    every interval, and `mean_over_pairs` gives all but kappa's.

    Kappa's interval: its influence function (for pairs that are independent, the variance of Fleiss, Cohen and Everitt
    1969) summed over each query's pairs, carried to the scale of the observed agreement, where `interval` holds, and back.
    Unlike the normal interval it ends at 1 and has width where all labels agree.

    Raises UnusableScores for empty, unequal-length, NaN or out-of-range input.
    """
    what = "Agreement with a reference"
    s, r = finite_vector(scores, what, 0, 1), finite_vector(reference, what, 0, 1)
    same_length(what, s, r)
    queries = _queries(s, query_ids, what)
    wins, losses = r > 0.5, r < 0.5
    return JudgeAgreement(
        accuracy=mean_over_pairs(_labels(s) == _labels(r), queries, level),
        kappa=_kappa(_labels(r), _labels(s), queries, level),
        sensitivity=mean_over_pairs(s[wins], queries[wins], level) if wins.any() else None,
        specificity=mean_over_pairs(1 - s[losses], queries[losses], level) if losses.any() else None,
        table=_table(_labels(r), _labels(s)),
        n=s.size,
    )


def cohens_kappa(
    one: ArrayLike, two: ArrayLike, level: float = 0.95, query_ids: ArrayLike | None = None
) -> Kappa | None:
    """Cohen's kappa of two judges' scores for the same pairs, as in `judge_agreement`, which it is symmetric to."""
    what = "Cohen's kappa"
    a, b = finite_vector(one, what, 0, 1), finite_vector(two, what, 0, 1)
    same_length(what, a, b)
    return _kappa(_labels(a), _labels(b), _queries(a, query_ids, what), level)


def mean_over_pairs(values: ArrayLike, query_ids: ArrayLike, level: float = 0.95) -> WinRate:
    """The mean of `values`, shape (pairs,), each in [0, 1], with queries as the unit of its interval; `n` counts queries.

    A query with more pairs weighs more, so the mean is a ratio of sums over queries, and its variance is that of a ratio,
    linearised (Cochran 1977, section 6.4). Where all queries have one pair this is `win_rate`.

    Raises UnusableScores for empty, unequal-length, NaN or out-of-range input.
    """
    what = "A mean over pairs"
    v = finite_vector(values, what, 0, 1)
    index, pairs = _items(v, query_ids, what)
    sums = np.bincount(index, weights=v).astype(np.float64)
    return _ratio(sums, pairs.astype(np.float64), level)


@dataclass(frozen=True)
class PositionBias:
    """What the order of the answers does to a judge, from pairs that it saw in both."""

    consistency: WinRate  # share of pairs with the same label in both orders
    share_first: float | None  # of the verdicts that are no tie, those for the answer shown first; None without any
    share_first_low: float | None
    share_first_high: float | None
    prefer_first: int  # pairs decided for the answer shown first, in both orders
    prefer_second: int  # pairs decided for the answer shown second, in both orders
    n: int  # pairs


def position_bias(scores_ab: ArrayLike, scores_ba: ArrayLike, level: float = 0.95) -> PositionBias:
    """Verdicts on the same pairs in both orders, shapes (n,), each in [0, 1] from the side of the same model a.

    a was shown first in `scores_ab` and second in `scores_ba`. `share_first` is the ratio of first places to decided
    verdicts, with the pair as the unit, since its two verdicts are not independent: see `mean_over_pairs`.

    Raises UnusableScores for empty, unequal-length, NaN or out-of-range input.
    """
    what = "Position consistency"
    ab, ba = finite_vector(scores_ab, what, 0, 1), finite_vector(scores_ba, what, 0, 1)
    same_length(what, ab, ba)
    one, two = _labels(ab), _labels(ba)
    first = (one == 0).astype(np.float64) + (two == 2)  # verdicts of a pair for the answer shown first: 0, 1 or 2
    decided = (one != 1).astype(np.float64) + (two != 1)
    seen = decided > 0
    share = _ratio(first[seen], decided[seen], level) if seen.any() else None
    return PositionBias(
        consistency=win_rate(one == two, level),
        share_first=share.estimate if share else None,
        share_first_low=share.low if share else None,
        share_first_high=share.high if share else None,
        prefer_first=int(((one == 0) & (two == 2)).sum()),
        prefer_second=int(((one == 2) & (two == 0)).sum()),
        n=ab.size,
    )


def repeat_agreement(scores: ArrayLike, pair_ids: ArrayLike, level: float = 0.95) -> WinRate:
    """How often two verdicts on the same pair, asked again, have the same label: shapes (rows,), `n` counts pairs.

    A pair's value is the share of agreeing couples among its repeats (P_i of Fleiss 1971); the estimate is their mean over
    the pairs with two verdicts or more. Keep the two answer orders apart: they are different questions, with ids of their
    own.

    Raises UnusableScores when no pair was judged twice, and for empty, unequal-length, NaN or out-of-range input.
    """
    what = "Repeat agreement"
    s = finite_vector(scores, what, 0, 1)
    index, repeats = _items(s, pair_ids, what)
    counts = np.stack([np.bincount(index, weights=_labels(s) == k, minlength=repeats.size) for k in range(3)])
    again = repeats >= 2
    if not again.any():
        raise UnusableScores(
            f"{what} needs pairs that were judged twice or more, and all {repeats.size} were judged once."
        )
    agreeing = (counts * (counts - 1)).sum(axis=0)[again] / (repeats * (repeats - 1))[again]
    return win_rate(agreeing, level)


def _labels(scores: Floats) -> NDArray[np.int64]:
    """0, 1, 2 for win, tie, loss."""
    return 1 - np.sign(scores - 0.5).astype(np.int64)


def _table(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.bincount(3 * rows + columns, minlength=9).reshape(3, 3)


def _items(scores: Floats, ids: ArrayLike, what: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The number of each row's item, shape (rows,), and how often each item occurs, shape (items,)."""
    names = np.asarray(ids)
    same_length(what, scores, names)
    _, index, repeats = np.unique(names, return_inverse=True, return_counts=True)
    return index, repeats


def _queries(rows: Floats, ids: ArrayLike | None, what: str) -> NDArray[np.int64]:
    """The number of each row's query, shape (rows,)."""
    return np.arange(rows.size) if ids is None else _items(rows, ids, what)[0]


def _kappa(one: NDArray[np.int64], two: NDArray[np.int64], queries: NDArray[np.int64], level: float) -> Kappa | None:
    two_sided_z(level)  # refuses a bad level
    n = one.size
    p = _table(one, two) / n
    rows, columns = p.sum(axis=1), p.sum(axis=0)
    observed, expected = float(np.trace(p)), float(rows @ columns)
    if 1 - expected <= CONSTANT:
        return None
    kappa = (observed - expected) / (1 - expected)
    # what a pair adds to the observed agreement beyond what it adds to the expected one, on the scale of the former
    influence = (one == two) - observed - (1 - kappa) * (columns[one] + rows[two] - 2 * expected)
    of_query = np.bincount(queries, weights=influence)
    variance, n_queries = float(of_query @ of_query) / n**2, of_query.size
    found = interval(observed, variance + floor_variance(observed, n_queries), n_queries - 1, level)
    low, high = ((limit - expected) / (1 - expected) for limit in found)
    return Kappa(kappa, max(-1.0, min(low, kappa)), min(1.0, max(high, kappa)), math.sqrt(variance) / (1 - expected), n)


def _ratio(part: Floats, whole: Floats, level: float) -> WinRate:
    """sum(part) / sum(whole) over units, shapes (units,), with 0 <= part <= whole and whole > 0."""
    n, ratio = whole.size, float(part.sum()) / float(whole.sum())
    variance = float(((part - ratio * whole) ** 2).sum()) / float(whole.sum()) ** 2 + floor_variance(ratio, n)
    low, high = interval(ratio, variance, n - 1, level)
    return WinRate(ratio, low, high, n, effective_n(ratio, variance, n), WILSON)
