"""What every statistic asks of its input: one refusal, one check for vectors, one normal quantile."""

from __future__ import annotations

import math
from collections.abc import Sized
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

CONSTANT = 1e-12
"""Values that span no more than this are the same value; what is left of them is rounding."""


class UnusableScores(ValueError):
    """The numbers cannot give this statistic. The message is one sentence: what for, what is wrong, what to do."""


def finite_vector(values: ArrayLike, what: str, low: float = -math.inf, high: float = math.inf) -> Floats:
    """`values` as a float vector of shape (n,), n >= 1, finite and within [low, high].

    Raises UnusableScores, in words that begin with `what`, for anything else.
    """
    try:
        vector = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise UnusableScores(
            f"{what} needs numbers, and got something that is not one; pass scores, not labels."
        ) from None
    if vector.ndim != 1:
        raise UnusableScores(f"{what} needs one flat list of numbers, and got an array of shape {vector.shape}.")
    if vector.size == 0:
        raise UnusableScores(f"{what} needs at least one number, and got none.")
    bad = ~np.isfinite(vector)
    if bad.any():
        raise UnusableScores(
            f"{what} needs finite numbers: {bad.sum()} of {vector.size} are not (the first at index {bad.argmax()}); "
            "leave unscored rows out and report their count."
        )
    bad = (vector < low) | (vector > high)
    if bad.any():
        raise UnusableScores(
            f"{what} needs numbers from {low:g} to {high:g}: {bad.sum()} of {vector.size} are outside "
            f"(the first is {vector[bad][0]:g}, at index {bad.argmax()})."
        )
    return vector


def same_length(what: str, a: Sized, b: Sized) -> None:
    """Raises UnusableScores when two vectors that must be paired differ in length."""
    if len(a) != len(b):
        raise UnusableScores(
            f"{what} needs two lists of the same length, in the same order: got {len(a)} and {len(b)}."
        )


def constant(values: NDArray[Any]) -> bool:
    return bool(np.ptp(values) <= CONSTANT)


def two_sided_z(level: float) -> float:
    """The standard normal quantile of a two-sided interval: 1.96 for level 0.95. Raises ValueError outside (0, 1)."""
    if not 0 < level < 1:
        raise ValueError(f"A confidence level lies between 0 and 1, such as 0.95; got {level}.")
    return NormalDist().inv_cdf((1 + level) / 2)


def floor_variance(mean: float, n: float) -> float:
    """What the variance of a mean of `n` values in [0, 1] is given beyond their spread, so that equal ones have some.

    p~ (1 - p~) / n^2 with p~ = (n mean + 1) / (n + 2): one more query at the variance that Laplace's rule of succession leaves.
    """
    smoothed = (n * mean + 1) / (n + 2)
    return smoothed * (1 - smoothed) / n**2


def chunks(total: int, width: int) -> list[int]:
    """Row counts that add up to `total`, each of about 4 million numbers in `width` columns at most: 32 MB."""
    rows = max(1, (1 << 22) // width)
    return [rows] * (total // rows) + [total % rows] * (total % rows > 0)
