"""Does the longer answer win? What every win rate is shown beside, and two win rates that take length out."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from harness.stats._arrays import Floats, UnusableScores, constant, finite_vector, same_length, two_sided_z
from harness.stats.winrate import wilson

FEWEST = 10
"""A half of `length_stratified`, and all of `length_glm`, needs this many queries."""


@dataclass(frozen=True)
class LengthSummary:
    """Mean lengths in the unit that was passed (tokens or words), and how the score goes with the difference."""

    mean_a: float
    mean_b: float
    n: int  # queries
    spearman: float | None  # in [-1, 1]; None when it is not defined


def length_summary(lengths_a: ArrayLike, lengths_b: ArrayLike, scores: ArrayLike) -> LengthSummary:
    """Mean lengths of both sides, and Spearman's rank correlation (Spearman 1904) of a's score with a's extra length.

    All shapes (n,), one entry per query: lengths at least 0, scores in [0, 1] from a's side. The correlation is None
    with fewer than 3 queries, or when all scores or all length differences are equal.

    Raises UnusableScores for empty, unequal-length, NaN or out-of-range input.
    """
    s, a, b = _checked(scores, lengths_a, lengths_b, "Length and score")
    spearman = None
    if s.size >= 3 and not constant(s) and not constant(a - b):
        from scipy.stats import spearmanr

        spearman = float(spearmanr(s, a - b).statistic)
    return LengthSummary(float(a.mean()), float(b.mean()), s.size, spearman)


@dataclass(frozen=True)
class LengthStratified:
    """The mean of the win rates on the two halves, in [0, 1]; always finite, and low <= estimate <= high."""

    estimate: float
    low: float
    high: float
    se: float  # 1/2 sqrt(s1^2/n1 + s2^2/n2), s^2 with ddof 1; 0 where both halves are constant, the interval is not
    n_longer: int  # queries with a's answer longer than b's
    n_other: int  # queries with a's answer shorter or of equal length
    rate_longer: float
    rate_other: float
    n: int  # queries


def length_stratified(
    scores: ArrayLike, lengths_a: ArrayLike, lengths_b: ArrayLike, level: float = 0.95
) -> LengthStratified:
    """The win rate of a, as if its answers were the longer ones on one half of the queries (Fränken et al. 2024).

    Queries are split by whether a's answer is longer than b's, or shorter or equal; the estimate is the unweighted mean
    of the two mean scores. All shapes (n,), one entry per query, scores in [0, 1] from a's side.

    The interval joins an interval of each half by the square-and-add rule for independent estimates (Zou and Donner
    2008; Newcombe 1998): estimate - 1/2 sqrt((p1 - l1)^2 + (p2 - l2)^2), and likewise above. A half's is Wilson's with
    effective n, as in `win_rate`, but made for few queries: Student's t for the normal quantile and ddof 1 in the
    variance. It keeps its width where a half has only wins: a normal interval from `se` covers 74% with 25 and 225
    queries at a win rate of .95, this one at least 93.4% in all of benchmarks/coverage.py.

    Raises UnusableScores when a half has fewer than 10 queries, and as `length_summary` does.
    """
    s, a, b = _checked(scores, lengths_a, lengths_b, "A length-stratified win rate")
    longer, other = s[a > b], s[a <= b]
    if min(longer.size, other.size) < FEWEST:
        raise UnusableScores(
            f"A length-stratified win rate needs {FEWEST} queries in each half: the answer is longer than the "
            f"opponent's in {longer.size} and not longer in {other.size}; use the plain win rate with the lengths beside it."
        )
    one, two = float(longer.mean()), float(other.mean())
    (low_1, high_1), (low_2, high_2) = _half_interval(longer, level), _half_interval(other, level)
    estimate = (one + two) / 2
    low = max(0.0, estimate - math.hypot(one - low_1, two - low_2) / 2)
    high = min(1.0, estimate + math.hypot(high_1 - one, high_2 - two) / 2)
    se = math.sqrt(_variance_of_mean(longer) + _variance_of_mean(other)) / 2
    return LengthStratified(estimate, low, high, se, longer.size, other.size, one, two, s.size)


def _half_interval(s: Floats, level: float) -> tuple[float, float]:
    from scipy.special import stdtrit

    two_sided_z(level)  # refuses a bad level
    n, p = s.size - 1, float(s.mean())
    n_eff = n if constant(s) else n * p * (1 - p) / float(s.var())
    low, high = wilson(p, n_eff, float(stdtrit(n, (1 + level) / 2)))
    return min(low, p), max(high, p)


@dataclass(frozen=True)
class LengthGlm:
    """The win rate that a logistic model expects at equal lengths, in [0, 1]; always finite."""

    estimate: float
    low: float
    high: float
    se: float  # of the estimate, on the scale of rates
    slope: float  # log-odds of a win for one unit of tanh(delta / sd); positive when longer answers win
    slope_se: float
    n: int  # queries
    extrapolated: bool  # no length difference is 0 or has the other sign: equal lengths lie outside the data


def length_glm(scores: ArrayLike, lengths_a: ArrayLike, lengths_b: ArrayLike, level: float = 0.95) -> LengthGlm:
    """The win rate of a at equal lengths: logistic regression of the score on tanh(delta / sd(delta)), read at delta = 0.

    delta is a's length minus b's; sd has ddof 1. A binomial GLM without penalty whose outcome may be a fraction
    (Papke and Wooldridge 1996), with the sandwich covariance over queries (White 1980; factor n / (n - 2)) and
    a normal interval on the logit scale. This is the part of length-controlled AlpacaEval (Dubois et al. 2024) that does
    not depend on AlpacaEval's own instructions. All shapes (n,), one entry per query, scores in [0, 1] from a's side.
    Where all scores are the same fraction the sandwich is zero, and the binomial covariance is used.

    Raises UnusableScores for fewer than 10 queries, when all differences are equal, when length separates wins
    from losses so that no finite fit exists (Albert and Anderson 1984), and as `length_summary` does.
    """
    what = "A length-controlled win rate"
    s, a, b = _checked(scores, lengths_a, lengths_b, what)
    z = two_sided_z(level)
    if s.size < FEWEST:
        raise UnusableScores(f"{what} needs at least {FEWEST} queries for its regression, and got {s.size}.")
    delta = a - b
    if constant(delta):
        raise UnusableScores(
            f"{what} needs length differences that vary, and all {s.size} are {delta[0]:g}; use the plain win rate."
        )
    x = np.tanh(delta / delta.std(ddof=1))
    if constant(x):
        raise UnusableScores(
            f"{what} needs length differences near 0: from {delta.min():g} to {delta.max():g}, all are too far from it to "
            "be told apart; use the plain win rate with the lengths beside it."
        )
    _refuse_separation(x[s > 0], x[s < 1], what)
    fit = _binomial_fit(s, np.column_stack([np.ones_like(x), x]), robust=not constant(s))
    logit, slope = (float(value) for value in fit.params)
    logit_se, slope_se = (float(value) for value in fit.bse)
    rate, low, high = (_expit(logit + q * logit_se) for q in (0, -z, z))
    return LengthGlm(
        rate, low, high, rate * (1 - rate) * logit_se, slope, slope_se, s.size, bool((delta > 0).all() or (delta < 0).all())
    )  # fmt: skip


def _binomial_fit(s: Floats, design: Floats, *, robust: bool) -> Any:
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM

    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that is no use is refused below, in words
        model = GLM(s, design, family=Binomial())
        if robust:  # "HC1" would leave out its factor here
            fit = model.fit(cov_type="cluster", cov_kwds={"groups": np.arange(s.size)}, maxiter=200)
        else:
            fit = model.fit(maxiter=200)
    if not (fit.converged and np.isfinite(fit.params).all() and np.isfinite(fit.bse).all()):
        raise UnusableScores(
            "A length-controlled win rate could not be fitted: length all but separates wins from losses; "
            "use the plain win rate with the lengths beside it."
        )
    return fit


def _refuse_separation(won_at: Floats, lost_at: Floats, what: str) -> None:
    """A score between 0 and 1 is won in part and lost in part, so it stands on both sides."""
    if won_at.size == 0 or lost_at.size == 0:
        raise UnusableScores(f"{what} needs wins and losses, and all scores are {0 if won_at.size == 0 else 1}.")
    for first, then in ((lost_at, won_at), (won_at, lost_at)):
        if first.max() <= then.min():
            raise UnusableScores(
                f"{what} needs wins and losses that overlap in length, and here length alone separates them: the "
                f"{'longer' if first is lost_at else 'shorter'} answers won all; use the plain win rate with the lengths beside it."
            )


def _checked(scores: ArrayLike, lengths_a: ArrayLike, lengths_b: ArrayLike, what: str) -> tuple[Floats, Floats, Floats]:
    a, b = finite_vector(lengths_a, "Length of a", low=0), finite_vector(lengths_b, "Length of b", low=0)
    s = finite_vector(scores, what, 0, 1)
    same_length("Length of a and b", a, b)
    same_length(what, a, s)
    return s, a, b


def _variance_of_mean(values: Floats) -> float:
    return 0.0 if constant(values) else float(values.var(ddof=1)) / values.size


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else 1 - 1 / (1 + math.exp(x))
