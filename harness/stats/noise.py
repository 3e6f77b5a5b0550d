"""How much of the spread of the queries' scores is the judge's own: what judging a pair again tells of a win rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from harness.stats._arrays import CONSTANT, Floats, UnusableScores, finite_vector, same_length, two_sided_z

RESAMPLES = 2000


@dataclass(frozen=True)
class JudgeShare:
    """The judge's part in the variance of the queries' scores."""

    sd: float  # standard deviation of a pair's score between judgings, in [0, 1]
    share: float | None  # of the variance of the queries' scores as they are, judgings averaged; None where that is 0
    share_low: float | None
    share_high: float | None
    share_once: float | None  # the same, had each pair been judged once
    n_pairs: int  # pairs with two scored judgings or more


def judge_share(
    scores: ArrayLike, pair_ids: ArrayLike, query_ids: ArrayLike, level: float = 0.95, seed: int = 0
) -> JudgeShare:
    """Components of variance, from judgings `scores`, shape (rows,), each in [0, 1], of pairs that belong to queries.

    A query may have several pairs (constitutions, samples), whose differences are not the judge's doing. Random effects
    (Searle, Casella and McCulloch 1992, chapter 3): the variance s² between judgings of a pair is the pooled one, over all
    pairs with two judgings or more. A query's score is the mean over its m pairs of the mean of their k judgings, so that
    the judge adds the variance (1/m²) Σ s²/k to it; `share` is the mean of that over queries, divided by the variance of
    the queries' scores (ddof 1), at most 1. Its range is the percentiles of a bootstrap over queries (Efron and Tibshirani
    1993): rough with few queries, and wide.

    Raises UnusableScores where no pair was judged twice, with fewer than 2 queries, and for NaN or scores outside [0, 1].
    """
    what = "The judge's share"
    two_sided_z(level)  # refuses a bad level
    s = finite_vector(scores, what, 0, 1)
    pairs, pair_of = np.unique(np.asarray(pair_ids), return_inverse=True)
    queries, query_of = np.unique(np.asarray(query_ids), return_inverse=True)
    same_length(what, s, pair_of)
    same_length(what, s, query_of)
    k = np.bincount(pair_of)
    if not (k > 1).any() or queries.size < 2:
        raise UnusableScores(f"{what} needs a pair that was judged twice, and two queries; run with more epochs.")
    means = np.bincount(pair_of, weights=s) / k
    query_of_pair = np.zeros(pairs.size, dtype=np.intp)
    query_of_pair[pair_of] = query_of
    m = np.bincount(query_of_pair)
    pair_squares = np.bincount(pair_of, weights=(s - means[pair_of]) ** 2)
    sums = np.column_stack([np.bincount(query_of_pair, weights=of_pair) for of_pair in (pair_squares, k - 1, 1 / k)])
    query_scores = np.bincount(query_of_pair, weights=means) / m
    parts = np.column_stack([sums[:, :2], sums[:, 2] / m**2, 1 / m, query_scores, query_scores**2])
    within, noise, once, total = (float(x[0]) for x in _components(np.ones((1, m.size)), parts))
    total_once = max(total - noise, 0.0) + once
    share = min(1.0, noise / total) if total > CONSTANT else None
    low = high = None
    if share is not None:
        draws = np.random.default_rng(seed).multinomial(m.size, np.full(m.size, 1 / m.size), RESAMPLES)
        _, noises, _, totals = _components(draws.astype(np.float64), parts)
        shares = np.minimum(1, noises / np.maximum(totals, CONSTANT))
        ends = np.quantile(shares, [(1 - level) / 2, (1 + level) / 2])
        low, high = min(float(ends[0]), share), max(float(ends[1]), share)
    return JudgeShare(
        sd=within**0.5,
        share=share,
        share_low=low,
        share_high=high,
        share_once=once / total_once if total_once > CONSTANT else None,
        n_pairs=int((k > 1).sum()),
    )


def _components(counts: Floats, parts: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """For each row of `counts`, shape (rows, queries), how often each query is there: the variance between judgings of a pair,
    what it adds to the variance of the queries' scores as they are and with one judging each, and that variance.
    """
    squares, freedom, noise, once, mean, mean_square = (counts @ parts / [1, 1, *[parts.shape[0]] * 4]).T
    within = squares / np.maximum(freedom, 1)
    n = parts.shape[0]
    return within, within * noise, within * once, (mean_square - mean**2) * n / (n - 1)
