"""Does the longer answer win? What every win rate is shown beside."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.typing import ArrayLike

from harness.stats._arrays import constant, finite_vector, same_length


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
    a, b = finite_vector(lengths_a, "Length of a", low=0), finite_vector(lengths_b, "Length of b", low=0)
    s = finite_vector(scores, "Length and score", 0, 1)
    same_length("Length of a and b", a, b)
    same_length("Length and score", a, s)
    spearman = None
    if s.size >= 3 and not constant(s) and not constant(a - b):
        from scipy.stats import spearmanr

        spearman = float(spearmanr(s, a - b).statistic)
    return LengthSummary(float(a.mean()), float(b.mean()), s.size, spearman)
