"""The win rate and the interval that every table of the harness prints with it.

A score is what one query gives the test model: 1 for a win, 1/2 for a tie, 0 for a loss, and anything between when
several verdicts (two answer orders, repeats) were averaged. The query is the unit: average its rows with
`cluster_means` before asking for an interval, or the interval is too narrow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.stats._arrays import Floats, UnusableScores, constant, finite_vector, same_length, two_sided_z

SMALL = 10
"""Below this many queries the interval is Clopper-Pearson's."""

WILSON = "Wilson, effective n"
CLOPPER_PEARSON = "Clopper-Pearson, rounded counts"


@dataclass(frozen=True)
class WinRate:
    """A mean score in [0, 1] with its interval: always finite, within [0, 1], and low <= estimate <= high."""

    estimate: float
    low: float
    high: float
    n: int  # queries
    n_eff: float  # the 0/1 queries that would be as informative; n itself for the small-sample interval
    method: str  # WILSON or CLOPPER_PEARSON


def win_rate(scores: ArrayLike, level: float = 0.95) -> WinRate:
    """The mean of `scores`, shape (n,), each in [0, 1], one per query, with a two-sided interval at `level`.

    From 10 queries on: Wilson's interval (Wilson 1927) with n_eff = n p (1 - p) / v in the place of n, where v is the
    scores' variance (ddof 0). Ties make v smaller than p (1 - p), so n_eff >= n; for 0/1 scores n_eff = n and this is
    Wilson's interval itself. Equal scores (all wins, all ties) say nothing of v, and keep n_eff = n.

    Below 10 queries: Clopper and Pearson (1934), with the sum of the scores rounded to a count of wins, down for the
    lower limit and up for the upper one, so that half a win never narrows the interval.

    Raises UnusableScores for an empty list, for NaN and for scores outside [0, 1]; ValueError for a bad level.
    """
    s = finite_vector(scores, "A win rate", 0, 1)
    z = two_sided_z(level)
    n, p = s.size, float(s.mean())
    if n < SMALL:
        low, high = _clopper_pearson(float(s.sum()), n, level)
        n_eff, method = float(n), CLOPPER_PEARSON
    else:
        n_eff = float(n) if constant(s) else n * p * (1 - p) / float(s.var())
        low, high = wilson(p, n_eff, z)
        method = WILSON
    return WinRate(p, max(0.0, min(low, p)), min(1.0, max(high, p)), n, n_eff, method)


def wilson(p: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's score interval for a proportion `p` of `n` trials (Wilson 1927); `n` need not be whole."""
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return centre - half, centre + half


def _clopper_pearson(wins: float, n: int, level: float) -> tuple[float, float]:
    from scipy.special import betaincinv

    wins = round(wins, 9)  # 0.1 + 0.2 + 0.7 is one win
    fewest, most = math.floor(wins), math.ceil(wins)
    alpha = 1 - level
    low = 0.0 if fewest == 0 else float(betaincinv(fewest, n - fewest + 1, alpha / 2))
    high = 1.0 if most == n else float(betaincinv(most + 1, n - most, 1 - alpha / 2))
    return low, high


class TieRules(NamedTuple):
    """The win rate under the three ways to count a tie."""

    half: float  # a tie is half a win: what the harness reports
    drop: float | None  # ties leave the denominator; None when there is nothing else
    loss: float  # a tie is a loss: the strict win rate


def tie_rules(wins: int, ties: int, losses: int) -> TieRules:
    """The point estimates that the same verdicts give under each rule for ties.

    Raises UnusableScores for a negative count, or when all three are zero.
    """
    if min(wins, ties, losses) < 0:
        raise UnusableScores(f"Counts of verdicts cannot be negative: got {wins} wins, {ties} ties, {losses} losses.")
    n = wins + ties + losses
    if n == 0:
        raise UnusableScores("A win rate needs at least one scored verdict, and all three counts are zero.")
    decided = wins + losses
    return TieRules((wins + ties / 2) / n, wins / decided if decided else None, wins / n)


class ScoreCounts(NamedTuple):
    """How many scores were wins, ties and losses, and how many rows have no score."""

    wins: int
    ties: int
    losses: int
    unscored: int

    @classmethod
    def of(cls, scores: ArrayLike, unscored: int = 0) -> ScoreCounts:
        """Counts of `scores`, shape (n,), each in [0, 1]: above 1/2 a win, 1/2 a tie, below 1/2 a loss.

        With nothing scored the three counts are zero. Raises UnusableScores for NaN and for scores outside [0, 1].
        """
        if np.size(scores) == 0:
            return cls(0, 0, 0, unscored)
        s = finite_vector(scores, "A count of wins", 0, 1)
        wins, losses = int((s > 0.5).sum()), int((s < 0.5).sum())
        return cls(wins, s.size - wins - losses, losses, unscored)

    @property
    def expected(self) -> int:
        """Rows that should have had a score."""
        return self.wins + self.ties + self.losses + self.unscored

    @property
    def unscored_share(self) -> float:
        """Unscored rows over expected rows, in [0, 1]; 0 when none was expected."""
        return self.unscored / self.expected if self.expected else 0.0


class ClusterMeans(NamedTuple):
    """One mean for each distinct id: `means[k]` belongs to `ids[k]`; ids ascend. Shapes (k,)."""

    ids: NDArray[Any]
    means: Floats


def cluster_means(values: ArrayLike, cluster_ids: ArrayLike) -> ClusterMeans:
    """The mean of `values`, shape (rows,), over the rows of each id in `cluster_ids`, shape (rows,).

    Rows of one query are not independent, so intervals are taken over these means, never over the rows: 500 rows from
    250 queries judged in two orders would cover 92.4% at a nominal 95%.

    Raises UnusableScores for values that are empty or not finite, and for lists of different lengths.
    """
    rows = finite_vector(values, "A mean per query")
    ids = np.asarray(cluster_ids)
    same_length("A mean per query", rows, ids)
    names, index = np.unique(ids, return_inverse=True)
    return ClusterMeans(names, np.bincount(index, weights=rows) / np.bincount(index))
