"""Win rates: the interval's exact coverage, and how often it excludes one half where one half is the truth."""

from __future__ import annotations

import itertools

import numpy as np

from coverage_sections._cells import RATES, Array, cell, covers, limits, outcomes, scores
from harness.stats import win_rate

SIZES = (6, 8, 10, 20, 30, 36, 50, 100, 250)
TIE_RATES = (0.0, 0.1, 0.3, 0.6, 0.9)


def exact(_: int) -> None:
    print("  n    ties  p      coverage  bar    mean width")
    for n, tie_rate, p in itertools.product(SIZES, TIE_RATES, RATES):
        if (chances := trinomial(p, tie_rate)) is not None:
            table, weights = outcomes(n, chances)
            low, high = np.array([limits(win_rate(scores(counts))) for counts in table]).T
            cell(f"{n:<4} {tie_rate:<5} {p:<5}", covers((low, high), p, weights), tail=f"{weights @ (high - low):.3f}")


def trinomial(p: float, tie_rate: float) -> Array | None:
    """Probabilities of a win, a tie and a loss with mean p; None where so many ties leave no such mean."""
    chances = np.round([p - tie_rate / 2, tie_rate, 1 - p - tie_rate / 2], 12)
    return chances if chances.min() >= 0 else None
