"""How much a response says about its constitution, from one table of likelihoods per query.

`logprob_sums` has shape (n, C, C): for query q, `logprob_sums[q, i, j]` is log p(y_j | x_q, c_i) in nats, summed over
the tokens of response y_j, which was written under constitution c_j. The training loss uses means over tokens; its
numbers are on another scale and are not to be set beside these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from harness.stats._arrays import Floats, UnusableScores, constant

SATURATED = 1e-3
"""Nats below log C within which a query's value is called saturated: it cannot show any further gain."""


@dataclass(frozen=True, eq=False)
class Information:
    """Nats per response, averaged over queries, with an interval over queries."""

    estimate: float
    low: float
    high: float
    n: int  # queries
    log_c: float  # nats; the most that an InfoNCE estimate can reach
    saturated: float | None  # share of queries within SATURATED of log C, in [0, 1]; None where log C is not a limit
    per_query: Floats  # shape (n,)


def infonce(logprob_sums: ArrayLike, level: float = 0.95) -> Information:
    """InfoNCE with constitutions as the contrast (van den Oord et al. 2018; Poole et al. 2019), at most log C.

    A query's value is the mean over j of log p(y_j|x,c_j) - log mean_i p(y_j|x,c_i): log C minus the cross-entropy of
    each column. Its mean over queries is a lower bound on the mutual information of response and constitution.

    The interval is Student's t over queries, its upper limit cut at log C. Where most queries are saturated it is too
    narrow (all of them: no width), which is why the share is reported beside it: raise C.

    Raises UnusableScores for a shape other than (n >= 2, C >= 2, C), NaN, infinities and positive log-probabilities.
    """
    return _contrast(_tables(logprob_sums), axis=1, level=level)


def infonce_responses(logprob_sums: ArrayLike, level: float = 0.95) -> Information:
    """As `infonce`, with responses as the contrast: the cross-entropy of each row, mean over i of
    log p(y_i|x,c_i) - log mean_j p(y_j|x,c_i). Sums over tokens favour short responses here.
    """
    return _contrast(_tables(logprob_sums), axis=2, level=level)


def sami_repo(logprob_sums: ArrayLike, level: float = 0.95) -> Information:
    """The quantity of the SAMI repository: log p(y|x,c) minus the arithmetic mean of the C log-probabilities.

    It is not capped by log C and bounds no mutual information; it is here to reproduce the paper's figures. A query's
    value is the mean of the diagonal minus the mean of the whole table, whichever way the contrast runs. Interval and
    refusals as in `infonce`.
    """
    tables = _tables(logprob_sums)
    own = np.trace(tables, axis1=1, axis2=2) / tables.shape[1]
    return _over_queries(own - tables.mean(axis=(1, 2)), tables.shape[1], level, capped=False)


def _contrast(tables: Floats, axis: int, level: float) -> Information:
    from scipy.special import logsumexp

    c = tables.shape[1]
    own = np.diagonal(tables, axis1=1, axis2=2)  # (n, C)
    per_query = (own - logsumexp(tables, axis=axis)).mean(axis=1) + math.log(c)
    return _over_queries(per_query, c, level, capped=True)


def _over_queries(per_query: Floats, c: int, level: float, *, capped: bool) -> Information:
    from scipy.special import stdtrit

    if not 0 < level < 1:
        raise ValueError(f"A confidence level lies between 0 and 1, such as 0.95; got {level}.")
    n, estimate, log_c = per_query.size, float(per_query.mean()), math.log(c)
    deviation = 0.0 if constant(per_query) else float(per_query.std(ddof=1))
    half = float(stdtrit(n - 1, (1 + level) / 2)) * deviation / math.sqrt(n)
    high = estimate + half
    saturated = float((per_query >= log_c - SATURATED).mean()) if capped else None
    if capped:
        high = max(estimate, min(high, log_c))
    return Information(estimate, estimate - half, high, n, log_c, saturated, per_query)


def _tables(logprob_sums: ArrayLike) -> Floats:
    try:
        tables = np.asarray(logprob_sums, dtype=np.float64)
    except (TypeError, ValueError):
        raise UnusableScores(
            "Mutual information needs one C x C table of numbers per query, with the same C for every query."
        ) from None
    if tables.ndim != 3 or tables.shape[1] != tables.shape[2] or tables.shape[1] < 2:
        raise UnusableScores(
            f"Mutual information needs shape (queries, C, C) with C of at least 2, and got {tables.shape}."
        )
    if len(tables) < 2:
        raise UnusableScores(f"Mutual information needs at least 2 queries for an interval, and got {len(tables)}.")
    bad = ~(np.isfinite(tables) & (tables <= 1e-6)).all(axis=(1, 2))
    if bad.any():
        raise UnusableScores(
            f"Mutual information needs finite log-probabilities of at most 0: {bad.sum()} of {len(tables)} queries "
            f"have others (the first at index {bad.argmax()}); a positive number is a loss with its sign turned."
        )
    return tables
