"""Does the longer response win? What every win rate is shown beside, and win rates that take length, or style, out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from harness.stats._arrays import Floats, UnusableScores, constant, finite_vector, same_length, two_sided_z
from harness.stats.winrate import interval, variance_of_mean

FEWEST = 10
"""A half of `length_stratified` needs this many queries."""
SUPPORT = 20
"""Queries that `adjusted_win_rate` needs on the rarer side of equality, ..."""
SUPPORT_SHARE = 0.1
"""... and their share of all."""
WHAT = "An adjusted win rate"
LENGTH = "length"


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
    se: float  # 1/2 sqrt(V1 + V2), each half's `variance_of_mean`
    n_longer: int  # queries with a's response longer than b's
    n_other: int  # queries with a's response shorter or of equal length
    rate_longer: float
    rate_other: float
    n: int  # queries


def length_stratified(
    scores: ArrayLike, lengths_a: ArrayLike, lengths_b: ArrayLike, level: float = 0.95
) -> LengthStratified:
    """The mean of a's win rates where its response is the longer and where it is not (Fränken et al. 2024).

    Queries are split by whether a's response is longer than b's, or shorter or equal; the estimate is the unweighted mean
    of the two mean scores. All shapes (n,), one entry per query, scores in [0, 1] from a's side. It is the win rate had a's
    responses been the longer ones on one half of the queries, by as much as they are. It is not a win rate at equal lengths:
    under an effect that grows with the difference it is 6 to 11 points off. For that see `length_glm`.

    The interval joins that of each half, as `win_rate` has it, by the square-and-add rule for independent estimates (Zou and
    Donner 2008; Newcombe 1998): estimate - 1/2 sqrt((p1 - l1)^2 + (p2 - l2)^2), and likewise above. It keeps its width
    where a half has only wins: a normal interval from the standard deviations covers 74% with 25 and 225 queries at .95.

    Raises UnusableScores when a half has fewer than 10 queries, and as `length_summary` does.
    """
    s, a, b = _checked(scores, lengths_a, lengths_b, "A length-stratified win rate")
    longer, other = s[a > b], s[a <= b]
    if min(longer.size, other.size) < FEWEST:
        raise UnusableScores(
            f"A length-stratified win rate needs {FEWEST} queries in each half: the response is longer than the "
            f"opponent's in {longer.size} and not longer in {other.size}; use the plain win rate with the lengths beside it."
        )
    one, two = float(longer.mean()), float(other.mean())
    v1, v2 = variance_of_mean(longer), variance_of_mean(other)
    low_1, high_1 = interval(one, v1, longer.size - 1, level)
    low_2, high_2 = interval(two, v2, other.size - 1, level)
    estimate = (one + two) / 2
    low = max(0.0, estimate - math.hypot(one - low_1, two - low_2) / 2)
    high = min(1.0, estimate + math.hypot(high_1 - one, high_2 - two) / 2)
    return LengthStratified(estimate, low, high, math.sqrt(v1 + v2) / 2, longer.size, other.size, one, two, s.size)


@dataclass(frozen=True)
class LengthGlm:
    """The win rate that a logistic model expects at equal lengths, in [0, 1]; always finite."""

    estimate: float
    low: float
    high: float
    se: float  # of the estimate, on the scale of rates
    slope: float  # log-odds of a win for one unit of tanh(delta / sd); positive when longer responses win
    slope_se: float
    n: int  # queries


def length_glm(scores: ArrayLike, lengths_a: ArrayLike, lengths_b: ArrayLike, level: float = 0.95) -> LengthGlm:
    """The win rate of a at equal lengths: `adjusted_win_rate` with the covariate tanh(delta / sd(delta)).

    delta is a's length minus b's; sd has ddof 1. This is the part of length-controlled AlpacaEval (Dubois et al. 2024) that
    does not depend on AlpacaEval's own instructions. All shapes (n,), one entry per query, scores in [0, 1] from a's side.

    Raises UnusableScores as `adjusted_win_rate` and `length_summary` do.
    """
    s, a, b = _checked(scores, lengths_a, lengths_b, "A length-controlled win rate")
    delta = a - b
    found = adjusted_win_rate(s, {LENGTH: np.tanh(delta / _spread(delta))}, level)
    slope, slope_se = found.slopes[LENGTH], found.slope_ses[LENGTH]
    return LengthGlm(found.estimate, found.low, found.high, found.se, slope, slope_se, found.n)


def echo_adjusted(scores: ArrayLike, copied_a: ArrayLike, copied_b: ArrayLike, level: float = 0.95) -> AdjustedWinRate:
    """The win rate of a where both responses copy the same share of words: `adjusted_win_rate` with a's share minus b's.

    All shapes (n,), one entry per query, all in [0, 1]. Raises UnusableScores as `adjusted_win_rate` does.
    """
    a, b = (finite_vector(x, f"The share that {side} copies", 0, 1) for x, side in ((copied_a, "a"), (copied_b, "b")))
    same_length("Copied shares", a, b)
    return adjusted_win_rate(scores, {"the share of copied words": a - b}, level)


def style_adjusted(
    scores: ArrayLike,
    styles_a: Sequence[Mapping[str, float]],
    styles_b: Sequence[Mapping[str, float]],
    level: float = 0.95,
) -> AdjustedWinRate:
    """The win rate of a where both responses are alike in style, such as `harness.style.style_counts` counts it.

    `adjusted_win_rate` with the covariates of Chatbot Arena's style control (Li, Angelopoulos and Chiang 2024): for each count,
    (a - b) / (a + b), 0 where both have none. A mapping for each query and side, all with the keys of the first.

    Raises UnusableScores for a count that is missing or below 0, and as `adjusted_win_rate` does.
    """
    what = "A style-adjusted win rate"
    same_length(what, styles_a, styles_b)
    differences = {}
    for name in styles_a[0] if styles_a else ():
        a, b = (
            finite_vector([style.get(name, math.nan) for style in side], f"{what}, for {name},", low=0)
            for side in (styles_a, styles_b)
        )
        differences[name] = (a - b) / np.maximum(a + b, np.finfo(np.float64).tiny)
    return adjusted_win_rate(scores, differences, level)


@dataclass(frozen=True)
class AdjustedWinRate:
    """The win rate that a logistic model expects where all differences are 0, in [0, 1]; always finite."""

    estimate: float
    low: float
    high: float
    se: float  # of the estimate, on the scale of rates
    slopes: dict[str, float]  # log-odds of a win for one unit of a covariate
    slope_ses: dict[str, float]
    n: int  # queries


def adjusted_win_rate(scores: ArrayLike, covariates: Mapping[str, ArrayLike], level: float = 0.95) -> AdjustedWinRate:
    """The win rate of a where two responses are alike: logistic regression of the score on `covariates`, read at 0.

    Each covariate is a difference, a minus b, shape (n,), one entry per query like `scores`, which are in [0, 1] from a's
    side. A binomial GLM without penalty whose outcome may be a fraction (Papke and Wooldridge 1996). A covariate that is 0
    throughout is left out.

    The interval is Student's t of n minus the coefficients' number on the logit scale, with the sandwich that leaves out each
    query in turn (HC3 of MacKinnon and White 1985): the plain one covers 90% with 50 queries at a win rate of .95. Where
    all scores are the same fraction that is zero, and the binomial covariance is used.

    The data must reach what they are read at. For each covariate by itself, the queries whose difference is 0 or of the rarer
    sign must be 20 and 10% of all: a reading at 0 needs queries at 0, or on both sides of it. So a covariate with a difference
    on few queries (copied words) is supported by the many at 0, and one that is positive throughout is not.

    Raises UnusableScores outside that support, when all differences are 0, when one covariate follows from the others, when
    they separate wins from losses so that no finite fit exists (Albert and Anderson 1984), and for empty, unequal-length, NaN or
    out-of-range input.
    """
    from scipy.special import expit, stdtrit

    s = finite_vector(scores, WHAT, 0, 1)
    two_sided_z(level)  # refuses a bad level
    found = {name: finite_vector(values, f"The difference in {name}") for name, values in covariates.items()}
    for values in found.values():
        same_length(WHAT, s, values)
    given = {name: values for name, values in found.items() if values.any()}
    if not given:
        raise UnusableScores(f"{WHAT} has nothing to adjust for: all differences are 0, and the plain win rate is it.")
    for name, values in given.items():
        _refuse_outside_support(name, values)
    names = " and ".join(given)
    design = np.column_stack([np.ones_like(s), *(values / _spread(values) for values in given.values())])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise UnusableScores(
            f"{WHAT} cannot tell the differences in {names} apart: one follows from the others; leave it out."
        )
    _refuse_separation(s, design, names)
    beta, covariance = _binomial_fit(s, design, names)
    half = float(stdtrit(max(1, s.size - beta.size), (1 + level) / 2)) * math.sqrt(covariance[0, 0])
    rate = float(expit(beta[0]))
    scales = [_spread(values) for values in given.values()]
    ses = np.sqrt(np.diag(covariance))
    return AdjustedWinRate(
        estimate=rate,
        low=float(expit(beta[0] - half)),
        high=float(expit(beta[0] + half)),
        se=rate * (1 - rate) * float(ses[0]),
        slopes={name: float(b / scale) for name, b, scale in zip(given, beta[1:], scales, strict=True)},
        slope_ses={name: float(se / scale) for name, se, scale in zip(given, ses[1:], scales, strict=True)},
        n=s.size,
    )


def _refuse_outside_support(name: str, values: Floats) -> None:
    n, positive, negative = values.size, int((values > 0).sum()), int((values < 0).sum())
    reached, needed = n - max(positive, negative), max(SUPPORT, math.ceil(SUPPORT_SHARE * n))
    if reached < needed:
        raise UnusableScores(
            f"{WHAT} is read where the difference in {name} is 0, and only {reached} of {n} queries lie there or on its "
            f"other side; it needs {needed}. Use the plain win rate with the difference beside it."
        )


def _refuse_separation(s: Floats, design: Floats, names: str) -> None:
    """Refuses where some combination of the covariates is at least 0 for every win and at most 0 for every loss.

    A score between 0 and 1 is won in part and lost in part, so it must lie at 0. The combination, each coefficient within
    [-1, 1], that lies farthest on the right side in all is found by linear programming (Konis 2007); if it is not 0 everywhere,
    the likelihood has no maximum.
    """
    from scipy.optimize import linprog

    if not (s > 0).any() or not (s < 1).any():
        raise UnusableScores(f"{WHAT} needs wins and losses, and all scores are {s[0]:g}.")
    side = np.sign(s - 0.5) * ((s == 0) | (s == 1))
    won_or_lost, between = side[side != 0][:, None] * design[side != 0], design[side == 0]
    if not won_or_lost.size:
        return
    found = linprog(
        -won_or_lost.sum(axis=0),
        A_ub=-won_or_lost,
        b_ub=np.zeros(len(won_or_lost)),
        A_eq=between if len(between) else None,
        b_eq=np.zeros(len(between)) if len(between) else None,
        bounds=(-1, 1),
    )
    if found.success and -(found.fun or 0.0) > 1e-6 * s.size:
        raise UnusableScores(
            f"{WHAT} needs wins and losses that overlap in {names}, and here {names} separates them, so that no finite fit "
            "exists; use the plain win rate with the difference beside it."
        )


def _binomial_fit(s: Floats, design: Floats, names: str) -> tuple[Floats, Floats]:
    """Coefficients, and their jackknife covariance."""
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM

    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that is no use is refused below, in words
        fit = GLM(s, design, family=Binomial()).fit(maxiter=200)
        covariance = bread = np.asarray(fit.normalized_cov_params)
        if not constant(s):
            leverage = fit.mu * (1 - fit.mu) * np.einsum("ni,ij,nj->n", design, bread, design)
            meat = design * ((s - fit.mu) / (1 - leverage))[:, None]
            covariance = bread @ meat.T @ meat @ bread
    if not (fit.converged and np.isfinite(fit.params).all() and np.isfinite(covariance).all()):
        raise UnusableScores(
            f"{WHAT} could not be fitted: {names} all but separates wins from losses; use the plain win rate with the "
            "difference beside it."
        )
    return np.asarray(fit.params, dtype=np.float64), covariance


def _checked(scores: ArrayLike, lengths_a: ArrayLike, lengths_b: ArrayLike, what: str) -> tuple[Floats, Floats, Floats]:
    a, b = finite_vector(lengths_a, "Length of a", low=0), finite_vector(lengths_b, "Length of b", low=0)
    s = finite_vector(scores, what, 0, 1)
    same_length("Length of a and b", a, b)
    same_length(what, a, s)
    return s, a, b


def _spread(values: Floats) -> float:
    """The standard deviation (ddof 1); 1 where there is none."""
    return 1.0 if constant(values) else float(values.std(ddof=1))
