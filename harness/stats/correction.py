"""What the win rate would be if the judge were the reference, from a sample of queries on which both spoke.

The estimators take the judge's `scores` on the queries without a label, its `labelled_scores` on those with one, and the
`reference` labels of the latter, all in [0, 1] from the side of the same model, one entry per query. The labelled
queries must be a random sample of all and be none of the others. Where some strata (tasks, say) are labelled more than
others, that holds within each: correct each alone, and join them with `pooled`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.stats._arrays import (
    CONSTANT,
    Floats,
    UnusableScores,
    constant,
    finite_vector,
    floor_variance,
    same_length,
    two_sided_z,
)
from harness.stats.winrate import interval, variance_of_mean

FEWEST = 10
"""Labels needed in all, and for `rogan_gladen` among the reference's wins and among its losses."""
FEWEST_OF_LEVEL = 5
"""Labels that each level of the judge's verdict needs in `post_stratified`."""
BINS = 10
"""Scores that take more values than this are put into so many bins."""
RESAMPLES = 2000


@dataclass(frozen=True)
class PostStratified:
    """A win rate in [0, 1] by the reference's standard: always finite, and low <= estimate <= high."""

    estimate: float
    low: float
    high: float
    labelled: float  # mean of the labels: what they say without the judge
    levels: int  # of the judge's verdict, after merging
    n: int  # queries without a label
    n_labelled: int


def post_stratified(
    scores: ArrayLike, labelled_scores: ArrayLike, reference: ArrayLike, level: float = 0.95
) -> PostStratified:
    """The labels' mean at each level of the judge's verdict, weighted by how often the judge gives it (arXiv 2601.05420).

    theta = sum_k W_k m_k, with W_k the share of level k (win, tie, loss, ...) among all n + N queries and m_k the mean label
    where the judge said k; its variance is sum_k W_k^2 s_k^2 / n_k + sum_k W_k (m_k - theta)^2 / (n + N), with s_k^2 the variance
    of the level's n_k labels (ddof 0), and the labels' `floor_variance`. Scores of more than 10 values (probabilities, means of
    several) are put into 10 bins of equal counts, and a level with fewer than 5 labels is merged with the neighbour whose mean
    score is nearest. It asks nothing of the judge, only that the labelled queries are a random sample of all; what the judge
    means by a verdict need not be linear, as it must be for `ppi_mean` to be efficient.

    The interval is `interval` with n minus the number of levels degrees of freedom.

    Raises UnusableScores for fewer than 10 labels, and for empty, unequal-length, NaN or out-of-range input.
    """
    what = "A post-stratified win rate"
    s, f, y = _checked(scores, labelled_scores, reference, what)
    _enough_labels(y, what)
    every = np.concatenate([f, s])
    of_query = _levels(every, y.size)
    shares, of_label = np.bincount(of_query) / every.size, of_query[: y.size]
    sizes = np.bincount(of_label)
    means = np.bincount(of_label, weights=y) / sizes
    estimate = float(shares @ means)
    within = float((shares / sizes) ** 2 @ np.bincount(of_label, weights=(y - means[of_label]) ** 2))
    between = float(shares @ (means - estimate) ** 2)
    variance = within + floor_variance(float(y.mean()), y.size) + between / every.size
    low, high = interval(estimate, variance, y.size - shares.size, level)
    return PostStratified(estimate, low, high, float(y.mean()), shares.size, s.size, y.size)


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
    n_labelled: int


def rogan_gladen(
    scores: ArrayLike, labelled_scores: ArrayLike, reference: ArrayLike, level: float = 0.95
) -> RoganGladen:
    """The win rate by Rogan and Gladen (1978): (raw + specificity - 1) / (sensitivity + specificity - 1), cut to [0, 1].

    For wins and losses alone: a tie is neither, and counted as half of each it biases the estimate by 5 to 19 points. It
    assumes that the judge errs on the unlabelled queries as often as on the labelled ones, whatever their share of wins.

    The interval is that of Lang and Reiczigel (2014), which counts the errors of all three rates: each is moved towards
    1/2 (raw by z^2, the others by 2 pseudo-queries), and the centre by its second-order bias.

    Raises UnusableScores for scores or labels other than 0 and 1, when the labels hold fewer than 10 wins or 10 losses, when
    sensitivity + specificity is not clearly above 1 (its interval at `level` includes 1: the judge could as well be a
    coin), and for empty, unequal-length, NaN or out-of-range input.
    """
    what = "The Rogan-Gladen correction"
    s, f, y = _checked(scores, labelled_scores, reference, what)
    z = two_sided_z(level)
    undecided = [int(((side > 0) & (side < 1)).sum()) for side in (np.concatenate([s, f]), y)]
    if any(undecided):
        raise UnusableScores(
            f"{what} needs wins and losses alone, and {undecided[0]} scores and {undecided[1]} labels are ties or between; "
            "use post_stratified."
        )
    hits, rejections = f[y > 0.5], 1 - f[y < 0.5]
    if min(hits.size, rejections.size) < FEWEST:
        raise UnusableScores(
            f"{what} needs {FEWEST} reference wins and {FEWEST} reference losses, and the labels hold {hits.size} and "
            f"{rejections.size}; label more queries, or use post_stratified."
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

    Both variances have a floor: that of the scores is `variance_of_mean`, that of the errors is raised by the labels'
    `floor_variance`. The interval is `interval` with n - 1 degrees of freedom.

    Raises UnusableScores for fewer than 10 labels, and for empty, unequal-length, NaN or out-of-range input.
    """
    what = "Prediction-powered inference"
    s, f, y = _checked(scores, labelled_scores, reference, what)
    _enough_labels(y, what)
    weight = 0.0
    if not constant(f) and not constant(y):
        shared = float(((f - f.mean()) * (y - y.mean())).sum()) / (y.size - 1)
        weight = min(1.0, max(0.0, shared / ((1 + y.size / s.size) * float(np.concatenate([s, f]).var()))))
    errors = y - weight * f
    estimate = min(1.0, max(0.0, weight * float(s.mean()) + float(errors.mean())))
    variance = float(errors.var()) / y.size + floor_variance(float(y.mean()), y.size) + weight**2 * variance_of_mean(s)
    low, high = interval(estimate, variance, y.size - 1, level)
    return PredictionPowered(estimate, low, high, float(s.mean()), float(y.mean()), weight, s.size, y.size)


class Part(NamedTuple):
    """What is known of one stratum of the queries."""

    n: int  # queries, labelled and not
    estimate: float
    low: float
    high: float


def pooled(parts: Sequence[Part]) -> tuple[float, float, float]:
    """Estimate, low and high over all strata: sum_t w_t theta_t with w_t = n_t / n, the strata being independent.

    Limits by the square-and-add rule (Zou and Donner 2008; Newcombe 1998): estimate - sqrt(sum_t w_t^2 (theta_t - low_t)^2)
    and likewise above, which is the variance sum_t w_t^2 V_t with each stratum's own skewness. Raises UnusableScores for none.
    """
    if not parts:
        raise UnusableScores("An estimate over strata needs at least one stratum, and got none.")
    n, estimates, lows, highs = np.array(parts, dtype=np.float64).T
    weights = n / n.sum()
    estimate = float(weights @ estimates)
    low = estimate - math.hypot(*(weights * (estimates - lows)))
    high = estimate + math.hypot(*(weights * (highs - estimates)))
    return estimate, max(0.0, low), min(1.0, high)


class Labels(NamedTuple):
    """The labelled queries of one stratum, and how many more the judge alone has seen."""

    labelled_scores: ArrayLike  # shape (n,), each in [0, 1]
    reference: ArrayLike  # shape (n,), each in [0, 1]
    n_verdicts: int


@dataclass(frozen=True)
class Worth:
    """How many labels a judge's verdicts stand for; at least 0 and at most `n_verdicts`."""

    labels: float
    low: float
    high: float
    n_labelled: int
    n_verdicts: int  # on queries without a label


def worth_in_labels(strata: Sequence[Labels], level: float = 0.95, seed: int = 0) -> Worth:
    """How many labels more would narrow the labels' own interval as much as the judge's verdicts narrow the corrected one.

    n Var_labels / Var_corrected - n, for n labels in all. In a stratum Var_labels is (W + B) / n_t and Var_corrected, that of
    `post_stratified`, W / n_t + B / (n_t + N_t): W is the labels' variance within the levels of the judge's verdict and B what
    is left of their variance (ddof 1 both, so that a judge that tells nothing is worth nothing on average; B at least 0).
    Strata are joined as in `pooled`. The interval is the percentiles of a bootstrap over the labelled queries of each stratum
    (Efron and Tibshirani 1993), shifted by its bias on the scale of Var_corrected / Var_labels.

    Raises UnusableScores for no strata, a stratum of fewer than 10 labels or none but equal ones, and as `ppi_mean` does.
    """
    what = "The worth in labels"
    two_sided_z(level)  # refuses a bad level
    rng = np.random.default_rng(seed)
    checked = [(*_checked([0.0], f, y, what)[1:], n_verdicts) for f, y, n_verdicts in strata]
    for _, y, _ in checked:
        _enough_labels(y, what)
    if not checked or all(constant(y) for _, y, _ in checked):
        raise UnusableScores(f"{what} needs labels that differ: equal ones have no variance that a judge could lower.")
    n, n_verdicts = sum(y.size for _, y, _ in checked), sum(more for *_, more in checked)
    alone, corrected = np.zeros(1 + RESAMPLES), np.zeros(1 + RESAMPLES)
    for f, y, more in checked:
        counts = np.vstack([np.ones(y.size), rng.multinomial(y.size, np.full(y.size, 1 / y.size), RESAMPLES)])
        within, between = _components(counts, _levels(f, y.size), y)
        weight = ((y.size + more) / (n + n_verdicts)) ** 2
        alone += weight * (within + between) / y.size
        corrected += weight * (within / y.size + between / (y.size + more))
    ratios = corrected / np.maximum(alone, CONSTANT)
    ratio, resampled = ratios[0], ratios[1:] + ratios[0] - ratios[1:].mean()
    least = n / (n + n_verdicts)
    high, low = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    labels, low, high = (n / min(1.0, max(float(r), least)) - n for r in (ratio, max(low, ratio), min(high, ratio)))
    return Worth(labels, low, high, n, n_verdicts)


def _components(counts: Floats, levels: NDArray[np.int64], y: Floats) -> tuple[Floats, Floats]:
    """Variance of the labels `y` within the levels, and what is left of it, for each row of `counts`, shape (rows, n)."""
    membership = (levels[:, None] == np.arange(levels.max() + 1)).astype(np.float64)
    sizes, sums = counts @ membership, counts @ (membership * y[:, None])
    squares = counts @ y**2
    explained = (sums**2 / np.maximum(sizes, 1)).sum(axis=1)
    within = (squares - explained).clip(0) / (y.size - (sizes > 0).sum(axis=1))
    total = (squares - sums.sum(axis=1) ** 2 / y.size).clip(0) / (y.size - 1)
    within = np.minimum(within, total)
    return within, total - within


def _levels(scores: Floats, n_labelled: int) -> NDArray[np.int64]:
    """The level of each score, from 0, each with 5 of the first `n_labelled` queries or more; shape (n,)."""
    values, index = np.unique(scores, return_inverse=True)
    if values.size > BINS:
        edges = np.unique(np.quantile(scores, np.linspace(0, 1, BINS + 1)[1:-1]))
        _, index = np.unique(np.searchsorted(edges, scores, side="right"), return_inverse=True)
    while (size := int(index.max()) + 1) > 1:
        labels = np.bincount(index[:n_labelled], minlength=size)
        least = int(labels.argmin())
        if labels[least] >= FEWEST_OF_LEVEL:
            break
        means = np.bincount(index, weights=scores) / np.bincount(index)
        beside = [k for k in (least - 1, least + 1) if 0 <= k < size]
        nearest = min(beside, key=lambda k: abs(means[k] - means[least]))
        index = index - (index >= max(least, nearest))
    return index


def _enough_labels(reference: Floats, what: str) -> None:
    if reference.size < FEWEST:
        raise UnusableScores(f"{what} needs at least {FEWEST} labelled queries, and got {reference.size}; label more.")


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
    """The mean of 0/1 scores with `extra` pseudo-queries at 1/2, and the variance of that mean."""
    p = (float(s.sum()) + extra / 2) / (s.size + extra)
    return p, p * (1 - p) / (s.size + extra)
