"""What the sections share: the printed cell and its bar, exact outcomes, random scores, and the check that limits hold."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import multinomial

BAR = 0.935
ONE_SIDED = 0.92
"""Where losses (or wins) cannot happen beside the ties."""

RATES = (0.5, 0.65, 0.77, 0.95)
TIES = (0.0, 0.1)
LEAST = 1e-7

Array = NDArray[Any]
Limits = tuple[Any, Any]

missed: list[str] = []
"""Cells below their bar, in words."""

_section = ""


def begin(title: str) -> None:
    """Prints the title of a section; cells that miss their bar are named after it."""
    global _section
    _section = title
    print(f"\n{title}")


def cell(
    head: str, covered: float, *, bar: float = BAR, barred: bool = True, at_most: bool = False, tail: str = ""
) -> None:
    """Prints one row: `head`, a share in [0, 1], "met" or "MISSED" ("-" where `barred` is false), and `tail`.

    The share must be at least `bar`, or with `at_most` (an error rate) at most `bar`. A miss makes the exit code 1.
    """
    met = covered <= bar if at_most else covered >= bar
    if barred and not met:
        missed.append(f"{_section} {' '.join(head.split())}")
    print(f"  {head} {covered:8.2%}  {('met' if met else 'MISSED') if barred else '-':6} {tail}".rstrip())


def outcomes(n: int, chances: Array) -> tuple[Array, Array]:
    """Counts of wins, ties and losses that n queries can give, and their probabilities."""
    most = n if chances[1] else 0
    table = np.array([(w, k, n - w - k) for w in range(n + 1) for k in range(min(most, n - w) + 1)])
    weights = multinomial.pmf(table, n, chances)
    likely = weights > LEAST
    return table[likely], weights[likely] / weights[likely].sum()


def scores(counts: Array) -> Array:
    """`counts` of wins, ties and losses as one score per query."""
    return np.repeat([1.0, 0.5, 0.0], counts)


def drawn(rng: np.random.Generator, p: Array, tie_rate: float) -> Array:
    """One score for each expected score in `p`; fewer ties where wins or losses leave no room for them."""
    tie, u = np.minimum(tie_rate, 2 * np.minimum(p, 1 - p)), rng.random(p.shape)
    return np.where(u < p - tie / 2, 1, np.where(u < p + tie / 2, 0.5, 0))


def limits(result: Any) -> Limits:
    return result.low, result.high


def holds(result: Any, truth: float) -> bool:
    return bool(result.low <= truth + 1e-9 and truth - 1e-9 <= result.high)


def covers(found: Any, truth: float, weights: Array) -> float:
    low, high = found
    return float(weights[(low <= truth + 1e-9) & (truth - 1e-9 <= high)].sum())
