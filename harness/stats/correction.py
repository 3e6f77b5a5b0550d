"""What the win rate would be if the judge were the reference, from a sample of pairs on which both spoke.

Both functions take the judge's `scores` on the pairs without a label, its `labelled_scores` on those with one, and the
`reference` labels of the latter, all in [0, 1] from the side of the same model, one entry per query. The labelled
queries must be drawn from the same kind of queries and be none of the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from harness.stats._arrays import Floats, UnusableScores, constant, finite_vector, same_length, two_sided_z
from harness.stats.winrate import wilson

FEWEST = 10
"""Labels needed in all, and for `rogan_gladen` among the reference's wins and among its losses."""


@dataclass(frozen=True)
class RoganGladen:
    """A corrected win rate in [0, 1] with its interval: always finite, and low <= estimate <= high."""

    estimate: float
    low: float
    high: float
    raw: float  # mean score before the correction
    sensitivity: float  # the judge's mean score on reference wins
    specificity: float  # 1 - its mean score on reference losses
    n: int  # queries without a label
    n_labelled: int  # reference wins and losses; ties tell nothing here


def rogan_gladen(
    scores: ArrayLike, labelled_scores: ArrayLike, reference: ArrayLike, level: float = 0.95
) -> RoganGladen:
    """The win rate by Rogan and Gladen (1978): (raw + specificity - 1) / (sensitivity + specificity - 1), cut to [0, 1].

    A judge's ties count one half, as everywhere. It assumes that the judge errs on the unlabelled queries as often as on
    the labelled ones, whatever their share of wins.

    The interval is that of Lang and Reiczigel (2014), which counts the errors of all three rates: each is moved towards
    1/2 (raw by z^2, the others by 2 pseudo-queries), and the centre by its second-order bias. For scores with ties their n
    is the effective n of `win_rate`.

    Raises UnusableScores when the labels hold fewer than 10 wins or 10 losses, when sensitivity + specificity is not
    clearly above 1 (its interval at `level` includes 1: the judge could as well be a coin), and for empty, unequal-length,
    NaN or out-of-range input.
    """
    what = "The Rogan-Gladen correction"
    s, f, y = _checked(scores, labelled_scores, reference, what)
    z = two_sided_z(level)
    hits, rejections = f[y > 0.5], 1 - f[y < 0.5]
    if min(hits.size, rejections.size) < FEWEST:
        raise UnusableScores(
            f"{what} needs {FEWEST} reference wins and {FEWEST} reference losses, and the labels hold {hits.size} and "
            f"{rejections.size}; label more pairs, or use ppi_mean."
        )
    raw, sensitivity, specificity = float(s.mean()), float(hits.mean()), float(rejections.mean())
    p, p_variance = _smoothed(s, z * z)
    se, se_variance = _smoothed(hits, 2)
    sp, sp_variance = _smoothed(rejections, 2)
    youden = se + sp - 1
    if min(youden, sensitivity + specificity - 1) <= z * math.sqrt(se_variance + sp_variance):
        raise UnusableScores(
            f"{what} needs a judge that is better than a coin: sensitivity {sensitivity:.3f} + specificity "
            f"{specificity:.3f}, from {hits.size} and {rejections.size} labels, is not clearly above 1; no correction helps."
        )
    estimate = min(1.0, max(0.0, (raw + specificity - 1) / (sensitivity + specificity - 1)))
    centre = (p + sp - 1) / youden
    shift = 2 * z * z * (centre * se_variance - (1 - centre) * sp_variance)
    half = z * math.sqrt(p_variance + centre**2 * se_variance + (1 - centre) ** 2 * sp_variance) / youden
    low, high = max(0.0, centre + shift - half), min(1.0, centre + shift + half)
    return RoganGladen(
        estimate, min(low, estimate), max(high, estimate), raw, sensitivity, specificity, s.size, hits.size + rejections.size
    )  # fmt: skip


@dataclass(frozen=True)
class PredictionPowered:
    """A win rate in [0, 1] by the reference's standard: always finite, and low <= estimate <= high."""

    estimate: float
    low: float
    high: float
    raw: float  # mean score of the judge on the queries without a label
    labelled: float  # mean of the labels: what they say without the judge
    weight: float  # how far the judge is relied on, in [0, 1]: 0 is the labels alone, 1 the plain estimator of 2023a
    n: int  # queries without a label
    n_labelled: int


def ppi_mean(
    scores: ArrayLike, labelled_scores: ArrayLike, reference: ArrayLike, level: float = 0.95
) -> PredictionPowered:
    """Prediction-powered inference for a mean (Angelopoulos et al. 2023a): the judge's mean plus its mean error.

    weight * mean(scores) + mean(reference - weight * labelled_scores), with variance
    weight^2 var(scores) / N + var(reference - weight * labelled_scores) / n. The weight is the one of least variance,
    cov(reference, labelled_scores) / ((1 + n / N) var(all scores)), cut to [0, 1] (PPI++, Angelopoulos, Duchi and Zrnic
    2023b), so that a useless judge does no harm. It asks nothing of the judge, only that the labelled queries are a random
    sample of all.

    The interval is Wilson's at the effective n that this variance gives, with Student's t of n - 1 degrees of freedom: a
    normal one covers too little near 0 and 1 (benchmarks/coverage.py).

    Raises UnusableScores for fewer than 10 labels, and for empty, unequal-length, NaN or out-of-range input.
    """
    from scipy.special import stdtrit

    what = "Prediction-powered inference"
    s, f, y = _checked(scores, labelled_scores, reference, what)
    two_sided_z(level)  # refuses a bad level
    if y.size < FEWEST:
        raise UnusableScores(f"{what} needs at least {FEWEST} labelled queries, and got {y.size}; label more.")
    weight = 0.0
    if not constant(f) and not constant(y):
        shared = float(((f - f.mean()) * (y - y.mean())).sum()) / (y.size - 1)
        weight = min(1.0, max(0.0, shared / ((1 + y.size / s.size) * float(np.concatenate([s, f]).var()))))
    errors = y - weight * f
    estimate = min(1.0, max(0.0, weight * float(s.mean()) + float(errors.mean())))
    variance = weight**2 * _variance_of_mean(s) + _variance_of_mean(errors)
    inside = estimate * (1 - estimate)
    n_eff = inside / variance if variance > 0 and inside > 0 else y.size - 1
    low, high = wilson(estimate, n_eff, float(stdtrit(y.size - 1, (1 + level) / 2)))
    low, high = max(0.0, min(low, estimate)), min(1.0, max(high, estimate))
    return PredictionPowered(estimate, low, high, float(s.mean()), float(y.mean()), weight, s.size, y.size)


def _checked(
    scores: ArrayLike, labelled_scores: ArrayLike, reference: ArrayLike, what: str
) -> tuple[Floats, Floats, Floats]:
    s = finite_vector(scores, what, 0, 1)
    f, y = (
        finite_vector(labelled_scores, f"{what}, where labelled,", 0, 1),
        finite_vector(reference, f"{what}'s reference", 0, 1),
    )
    same_length(what, f, y)
    return s, f, y


def _smoothed(s: Floats, extra: float) -> tuple[float, float]:
    """The mean of `s` with `extra` pseudo-queries at 1/2, and the variance of that mean."""
    p = float(s.mean())
    n = s.size if constant(s) else s.size * p * (1 - p) / float(s.var())
    p = (n * p + extra / 2) / (n + extra)
    return p, p * (1 - p) / (n + extra)


def _variance_of_mean(values: Floats) -> float:
    return 0.0 if constant(values) else float(values.var(ddof=1)) / values.size
