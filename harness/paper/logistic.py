"""The win rate of the paper's Tables 2 and 3: a logistic length correction whose strength is cross-validated.

The text does not say how the correction was made. Of what the paper's public verdicts allow to try, this reproduces all
fourteen cells to their last printed digit or the one beside it, and nothing simpler does: a tie counts as a loss;
logistic regression of the win on tanh(delta / sd(delta)), where delta is the test answer's length minus the
opponent's, with a ridge penalty on the slope; the penalty is the one of ten (C from 1e-4 to 1e4, equally spaced in
their logarithm) with the least log loss in five-fold cross-validation, the folds stratified by the outcome and taken in
the order of the queries; read at delta = 0. That is how AlpacaEval 2 (Dubois et al. 2024) fits its length term. The
penalty pulls the rate back towards the uncorrected one: `harness.stats.length_glm` has none.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.stats import UnusableScores

FOLDS = 5
STRENGTHS = np.logspace(-4, 4, 10)
"""C: the weight of the log loss against half the squared slope."""
_STEPS = 100

Floats = NDArray[np.float64]


def logistic_cv(scores: ArrayLike, lengths_test: ArrayLike, lengths_baseline: ArrayLike) -> float:
    """The rate in [0, 1]. All shapes (n,), one entry per query in the queries' order; scores in [0, 1], a tie counts as a loss.

    Raises UnusableScores when there are fewer than five wins or five others, or when all length differences are equal.
    """
    won = (np.asarray(scores, dtype=np.float64) == 1).astype(np.float64)
    delta = np.asarray(lengths_test, dtype=np.float64) - np.asarray(lengths_baseline, dtype=np.float64)
    fewest = int(min(won.sum(), won.size - won.sum()))
    if fewest < FOLDS:
        raise UnusableScores(
            f"The paper's logistic correction needs {FOLDS} wins and {FOLDS} others; one side has {fewest}."
        )
    if np.ptp(delta) == 0:
        raise UnusableScores("The paper's logistic correction needs length differences that vary, and all are equal.")
    x = np.tanh(delta / delta.std())
    folds = _folds(won)
    losses = [np.mean([_held_out_loss(x, won, folds == k, c) for k in range(FOLDS)]) for c in STRENGTHS]
    intercept, _ = _fit(x, won, float(STRENGTHS[int(np.argmin(losses))]))
    return 1 / (1 + math.exp(-intercept))


def _folds(won: Floats) -> NDArray[np.int64]:
    """The fold of each query: every fold gets its share of wins and of others, in their order.

    Whose outcome came first is dealt out first, one to a fold in turn, then the other one goes on where it stopped.
    """
    folds = np.empty(won.size, dtype=np.int64)
    dealt = 0
    for outcome in (won[0], 1 - won[0]):
        places = np.flatnonzero(won == outcome)
        sizes = np.bincount((np.arange(places.size) + dealt) % FOLDS, minlength=FOLDS)
        folds[places] = np.repeat(np.arange(FOLDS), sizes)
        dealt += places.size
    return folds


def _held_out_loss(x: Floats, won: Floats, held_out: NDArray[np.bool_], strength: float) -> float:
    """Mean log loss on the held-out queries of a fit to the others."""
    intercept, slope = _fit(x[~held_out], won[~held_out], strength)
    z = intercept + slope * x[held_out]
    return float(np.mean(np.logaddexp(0, z) - won[held_out] * z))


def _fit(x: Floats, won: Floats, strength: float) -> tuple[float, float]:
    """Intercept and slope that minimise C x log loss + slope^2 / 2, by Newton's method (strictly convex; halved steps)."""

    def loss(at: Floats) -> float:
        z = at[0] + at[1] * x
        return float(strength * (np.logaddexp(0, z) - won * z).sum() + at[1] ** 2 / 2)

    share = float(won.mean())
    at = np.array([math.log(share / (1 - share)), 0.0])
    design = np.column_stack([np.ones_like(x), x])
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-(design @ at)))
        gradient = strength * design.T @ (p - won) + np.array([0.0, at[1]])
        curvature = strength * (design * (p * (1 - p))[:, None]).T @ design + np.diag([0.0, 1.0])
        step = np.linalg.solve(curvature, gradient)
        now = loss(at)
        while loss(at - step) > now and np.abs(step).max() > 1e-12:
            step = step / 2
        at = at - step
        if np.abs(step).max() < 1e-10:
            break
    return float(at[0]), float(at[1])
