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

from harness.stats._arrays import CONSTANT, Floats, UnusableScores, chunks, two_sided_z
from harness.stats.winrate import WinRate, win_rate

SATURATED = 1e-3
"""Nats below log C within which a query's value is called saturated: it cannot show any further gain."""
FEWEST = 30
"""Queries that an interval needs."""
FEWEST_OFF_LIMIT = 5
"""Queries off the limit log C that an interval needs."""
RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class Information:
    """Nats per response, averaged over queries, with an interval over queries where there can be one."""

    estimate: float
    low: float | None  # both None where there is no interval
    high: float | None
    note: str | None  # why there is none
    n: int  # queries
    log_c: float  # nats; the most that an InfoNCE estimate can reach
    saturated: float | None  # share of queries within SATURATED of log C, in [0, 1]; None where log C is not a limit
    per_query: Floats  # shape (n,)


def infonce(logprob_sums: ArrayLike, level: float = 0.95, seed: int = 0) -> Information:
    """InfoNCE with constitutions as the contrast (van den Oord et al. 2018; Poole et al. 2019), at most log C.

    A query's value is the mean over j of log p(y_j|x,c_j) - log mean_i p(y_j|x,c_i): log C minus the cross-entropy of
    each column. Its mean over queries is a lower bound on the mutual information of response and constitution.

    The interval is the bootstrap-t over queries (Efron and Tibshirani 1993, chapter 12), its upper limit cut at log C:
    values that pile up at the limit and trail off below it are skewed, and Student's t covers 73 to 95% of the time. What is
    rare and far below the limit may be missing from the sample, and then the bootstrap has nothing to draw it from: so the
    lower limit is also taken from the sample with one more query, of value 0, and the lower of the two counts. Below 30
    queries, or with fewer than 5 off the limit, there is no interval, and `note` says so: raise C, or see `own_likeliest`.

    Raises UnusableScores for a shape other than (n >= 1, C >= 2, C), NaN, infinities and positive log-probabilities.
    """
    return _contrast(_tables(logprob_sums), axis=1, level=level, seed=seed)


def infonce_responses(logprob_sums: ArrayLike, level: float = 0.95, seed: int = 0) -> Information:
    """As `infonce`, with responses as the contrast: the cross-entropy of each row, mean over i of
    log p(y_i|x,c_i) - log mean_j p(y_j|x,c_i). Sums over tokens favour short responses here.
    """
    return _contrast(_tables(logprob_sums), axis=2, level=level, seed=seed)


def sami_repo(logprob_sums: ArrayLike, level: float = 0.95, seed: int = 0) -> Information:
    """The quantity of the SAMI repository: log p(y|x,c) minus the arithmetic mean of the C log-probabilities.

    It is not capped by log C and bounds no mutual information; it is here to reproduce the paper's figures. A query's
    value is the mean of the diagonal minus the mean of the whole table, whichever way the contrast runs. Interval and
    refusals as in `infonce`, but that there is no limit to be at.
    """
    tables = _tables(logprob_sums)
    own = np.trace(tables, axis1=1, axis2=2) / tables.shape[1]
    return _over_queries(own - tables.mean(axis=(1, 2)), tables.shape[1], level, seed, capped=False)


def own_likeliest(logprob_sums: ArrayLike, level: float = 0.95) -> WinRate:
    """The share of responses whose own constitution is the likeliest of the C to have led to them; chance is 1 / C.

    A response that k constitutions, its own among them, make equally likely counts 1 / k. `win_rate` over queries of the
    mean over their responses. Unlike `infonce` it says nothing of by how much, and has an interval for every n.

    Raises UnusableScores as `infonce` does.
    """
    tables = _tables(logprob_sums)
    best = tables == tables.max(axis=1, keepdims=True)
    return win_rate((np.diagonal(best, axis1=1, axis2=2) / best.sum(axis=1)).mean(axis=1), level)


def _contrast(tables: Floats, axis: int, level: float, seed: int) -> Information:
    from scipy.special import logsumexp

    c = tables.shape[1]
    own = np.diagonal(tables, axis1=1, axis2=2)  # (n, C)
    per_query = (own - logsumexp(tables, axis=axis)).mean(axis=1) + math.log(c)
    return _over_queries(per_query, c, level, seed, capped=True)


def _over_queries(per_query: Floats, c: int, level: float, seed: int, *, capped: bool) -> Information:
    two_sided_z(level)  # refuses a bad level
    n, estimate, log_c = per_query.size, float(per_query.mean()), math.log(c)
    off = int((per_query < log_c - SATURATED).sum()) if capped else n
    low = high = note = None
    if n < FEWEST:
        note = f"No interval: it needs {FEWEST} queries, and there are {n}."
    elif off < FEWEST_OFF_LIMIT:
        note = f"No interval: it needs {FEWEST_OFF_LIMIT} queries off the limit log C, and there are {off}; raise C."
    else:
        below, above = _bootstrap_t(per_query, level, seed)
        low, high = (_moved(per_query, side) for side in (below, above))
        if capped:
            low = min(low, _moved(np.append(per_query, 0.0), below))
            high = max(estimate, min(high, log_c))
    saturated = 1 - off / n if capped else None
    return Information(estimate, low, high, note, n, log_c, saturated, per_query)


def _bootstrap_t(values: Floats, level: float, seed: int) -> tuple[float, float]:
    """By how many standard errors the limits of the mean lie from it, -low and high: quantiles of (mean* - mean) / se*, turned
    over. A resample without spread lies at infinity.
    """
    rng, n, mean = np.random.default_rng(seed), values.size, float(values.mean())
    centred, found = values - mean, []
    for rows in chunks(RESAMPLES, n):
        drawn = centred[rng.integers(0, n, (rows, n))]
        moved, spread = drawn.mean(axis=1), drawn.std(axis=1, ddof=1) / math.sqrt(n)
        found.append(np.where(spread > CONSTANT, moved / np.maximum(spread, CONSTANT), np.copysign(np.inf, moved)))
    ends = np.quantile(np.concatenate(found), [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return -max(float(ends[1]), 0.0), -min(float(ends[0]), 0.0)


def _moved(values: Floats, errors: float) -> float:
    """The mean, moved by so many standard errors."""
    return float(values.mean()) + errors * float(values.std(ddof=1)) / math.sqrt(values.size)


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
    if not len(tables):
        raise UnusableScores("Mutual information needs at least one query, and got none.")
    bad = ~(np.isfinite(tables) & (tables <= 1e-6)).all(axis=(1, 2))
    if bad.any():
        raise UnusableScores(
            f"Mutual information needs finite log-probabilities of at most 0: {bad.sum()} of {len(tables)} queries "
            f"have others (the first at index {bad.argmax()}); a positive number is a loss with its sign turned."
        )
    return tables
