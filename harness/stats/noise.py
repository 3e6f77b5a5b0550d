"""How much of the spread of the queries' scores is the judge's own: what judging a pair again tells of a win rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from harness.stats._arrays import CONSTANT, UnusableScores, finite_vector, same_length


@dataclass(frozen=True)
class JudgeShare:
    """The judge's part in the variance of the queries' scores."""

    sd: float  # standard deviation of a pair's score between judgings, in [0, 1]
    share: float | None  # of the variance of the queries' scores as they are, judgings averaged; None where that is 0
    share_once: float | None  # the same, had each pair been judged once
    n_pairs: int  # pairs with two scored judgings or more


def judge_share(scores: ArrayLike, pair_ids: ArrayLike, query_ids: ArrayLike) -> JudgeShare:
    """Components of variance, from judgings `scores`, shape (rows,), each in [0, 1], of pairs that belong to queries.

    A query may have several pairs (constitutions, samples), whose differences are not the judge's doing. Random effects
    (Searle, Casella and McCulloch 1992, chapter 3): the variance s² between judgings of a pair is the pooled one, over all
    pairs with two judgings or more. A query's score is the mean over its m pairs of the mean of their k judgings, so that
    the judge adds the variance (1/m²) Σ s²/k to it; `share` is the mean of that over queries, divided by the variance of
    the queries' scores (ddof 1), at most 1.

    Raises UnusableScores where no pair was judged twice, with fewer than 2 queries, and for NaN or scores outside [0, 1].
    """
    what = "The judge's share"
    s = finite_vector(scores, what, 0, 1)
    pairs, pair_of = np.unique(np.asarray(pair_ids), return_inverse=True)
    queries, query_of = np.unique(np.asarray(query_ids), return_inverse=True)
    same_length(what, s, pair_of)
    same_length(what, s, query_of)
    k = np.bincount(pair_of)
    if not (k > 1).any() or queries.size < 2:
        raise UnusableScores(f"{what} needs a pair that was judged twice, and two queries; run with more epochs.")
    means = np.bincount(pair_of, weights=s) / k
    within = float(((s - means[pair_of]) ** 2).sum()) / int((k - 1).sum())
    query_of_pair = np.zeros(pairs.size, dtype=np.intp)
    query_of_pair[pair_of] = query_of
    m = np.bincount(query_of_pair)
    total = float((np.bincount(query_of_pair, weights=means) / m).var(ddof=1))
    noise = within * float((np.bincount(query_of_pair, weights=1 / k) / m**2).mean())
    once = within * float((1 / m).mean())
    total_once = max(total - noise, 0.0) + once
    return JudgeShare(
        sd=within**0.5,
        share=min(1.0, noise / total) if total > CONSTANT else None,
        share_once=once / total_once if total_once > CONSTANT else None,
        n_pairs=int((k > 1).sum()),
    )
