"""How far a judge is to be trusted: against reference labels, against itself in the other order, and when it is asked again.

Scores are in [0, 1] from the side of the pair's first model: above 1/2 a win, 1/2 a tie, below 1/2 a loss. Every entry
is one pair of answers; leave out pairs of identical texts, which no judge was asked about, and unscored ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.stats._arrays import CONSTANT, Floats, UnusableScores, finite_vector, same_length, two_sided_z
from harness.stats.winrate import WinRate, wilson, win_rate

CLASSES = ("win", "tie", "loss")


@dataclass(frozen=True)
class Kappa:
    """Cohen's kappa, in [-1, 1]; always finite."""

    estimate: float
    low: float
    high: float
    se: float  # large-sample; 0 where all labels agree, the interval is not
    n: int


@dataclass(frozen=True, eq=False)
class JudgeAgreement:
    """What a judge's verdicts are worth, from pairs whose true label is known."""

    accuracy: WinRate  # share of pairs with the same label, of three
    kappa: Kappa | None  # None where both sides used one and the same label throughout: there is no chance to beat
    sensitivity: WinRate | None  # mean score on reference wins; None without any
    specificity: WinRate | None  # 1 - mean score on reference losses; None without any
    table: NDArray[np.int64]  # shape (3, 3): rows the reference's label, columns the judge's, in the order of CLASSES
    n: int  # pairs


def judge_agreement(scores: ArrayLike, reference: ArrayLike, level: float = 0.95) -> JudgeAgreement:
    """A judge's `scores` beside `reference` labels, shapes (n,), one entry per pair of answers, both in [0, 1].

    Accuracy and kappa (Cohen 1960) compare labels. Sensitivity and specificity are means of the judge's score, so that
    its ties count one half, as they do in a win rate: this is what `rogan_gladen` corrects by. Reference ties belong to
    neither. Their intervals and the accuracy's are `win_rate`'s.

    Kappa's interval: with its large-sample variance (Fleiss, Cohen and Everitt 1969), carried to the scale of the observed
    agreement, where it sets the effective n of a Wilson interval, and back. Unlike the normal interval it ends at 1 and
    has width where all labels agree.

    Raises UnusableScores for empty, unequal-length, NaN or out-of-range input.
    """
    what = "Agreement with a reference"
    s, r = finite_vector(scores, what, 0, 1), finite_vector(reference, what, 0, 1)
    same_length(what, s, r)
    table = _table(_labels(r), _labels(s))
    wins, losses = s[r > 0.5], s[r < 0.5]
    return JudgeAgreement(
        accuracy=win_rate(_labels(s) == _labels(r), level),
        kappa=_kappa(table, level),
        sensitivity=win_rate(wins, level) if wins.size else None,
        specificity=win_rate(1 - losses, level) if losses.size else None,
        table=table,
        n=s.size,
    )


def cohens_kappa(one: ArrayLike, two: ArrayLike, level: float = 0.95) -> Kappa | None:
    """Cohen's kappa of two judges' scores for the same pairs, as in `judge_agreement`, which it is symmetric to."""
    what = "Cohen's kappa"
    a, b = finite_vector(one, what, 0, 1), finite_vector(two, what, 0, 1)
    same_length(what, a, b)
    return _kappa(_table(_labels(a), _labels(b)), level)


@dataclass(frozen=True)
class PositionBias:
    """What the order of the answers does to a judge, from pairs that it saw in both."""

    consistency: WinRate  # share of pairs with the same label in both orders
    share_first: float | None  # of the verdicts that are no tie, those for the answer shown first; None without any
    share_first_low: float | None
    share_first_high: float | None
    prefer_first: int  # pairs decided for the answer shown first, in both orders
    prefer_second: int  # pairs decided for the answer shown second, in both orders
    n: int  # pairs


def position_bias(scores_ab: ArrayLike, scores_ba: ArrayLike, level: float = 0.95) -> PositionBias:
    """Verdicts on the same pairs in both orders, shapes (n,), each in [0, 1] from the side of the same model a.

    a was shown first in `scores_ab` and second in `scores_ba`. The interval of `share_first` is Wilson's at the effective n
    of the ratio of first places to decided verdicts, linearised over pairs (Cochran 1977, section 6.4), since the two
    verdicts on a pair are not independent, with Student's t over the pairs.

    Raises UnusableScores for empty, unequal-length, NaN or out-of-range input.
    """
    what = "Position consistency"
    ab, ba = finite_vector(scores_ab, what, 0, 1), finite_vector(scores_ba, what, 0, 1)
    same_length(what, ab, ba)
    one, two = _labels(ab), _labels(ba)
    first = (one == 0).astype(float) + (two == 2)  # verdicts of a pair for the answer shown first: 0, 1 or 2
    decided = (one != 1).astype(float) + (two != 1)
    share, low, high = _ratio(first, decided, level) if decided.any() else (None, None, None)
    return PositionBias(
        consistency=win_rate(one == two, level),
        share_first=share,
        share_first_low=low,
        share_first_high=high,
        prefer_first=int(((one == 0) & (two == 2)).sum()),
        prefer_second=int(((one == 2) & (two == 0)).sum()),
        n=ab.size,
    )


def repeat_agreement(scores: ArrayLike, pair_ids: ArrayLike, level: float = 0.95) -> WinRate:
    """How often two verdicts on the same pair, asked again, have the same label: shapes (rows,), `n` counts pairs.

    A pair's value is the share of agreeing couples among its repeats (P_i of Fleiss 1971); the estimate is their mean over
    the pairs with two verdicts or more. Keep the two answer orders apart: they are different questions, with ids of their
    own.

    Raises UnusableScores when no pair was judged twice, and for empty, unequal-length, NaN or out-of-range input.
    """
    what = "Repeat agreement"
    s = finite_vector(scores, what, 0, 1)
    index, repeats = _items(s, pair_ids, what)
    counts = np.stack([np.bincount(index, weights=_labels(s) == k, minlength=repeats.size) for k in range(3)])
    again = repeats >= 2
    if not again.any():
        raise UnusableScores(
            f"{what} needs pairs that were judged twice or more, and all {repeats.size} were judged once."
        )
    agreeing = (counts * (counts - 1)).sum(axis=0)[again] / (repeats * (repeats - 1))[again]
    return win_rate(agreeing, level)


def _labels(scores: Floats) -> NDArray[np.int64]:
    """0, 1, 2 for win, tie, loss."""
    return 1 - np.sign(scores - 0.5).astype(np.int64)


def _table(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.bincount(3 * rows + columns, minlength=9).reshape(3, 3)


def _items(scores: Floats, ids: ArrayLike, what: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The number of each row's item, shape (rows,), and how often each item occurs, shape (items,)."""
    names = np.asarray(ids)
    same_length(what, scores, names)
    _, index, repeats = np.unique(names, return_inverse=True, return_counts=True)
    return index, repeats


def _kappa(table: NDArray[np.int64], level: float) -> Kappa | None:
    n, z = int(table.sum()), two_sided_z(level)
    p = table / n
    rows, columns = p.sum(axis=1), p.sum(axis=0)
    observed, expected = float(np.trace(p)), float(rows @ columns)
    if 1 - expected <= CONSTANT:
        return None
    kappa = (observed - expected) / (1 - expected)
    weights = columns[:, None] + rows[None, :]
    off = float((p * weights**2).sum() - (np.diag(p) * np.diag(weights) ** 2).sum())
    on = float((np.diag(p) * (1 - np.diag(weights) * (1 - kappa)) ** 2).sum())
    variance = max(0.0, on + (1 - kappa) ** 2 * off - (kappa - expected * (1 - kappa)) ** 2) / (n * (1 - expected) ** 2)
    spread = variance * (1 - expected) ** 2  # of the observed agreement that has this kappa
    n_eff = observed * (1 - observed) / spread if min(spread, observed * (1 - observed)) > CONSTANT else n
    low, high = ((limit - expected) / (1 - expected) for limit in wilson(observed, n_eff, z))
    return Kappa(kappa, max(-1.0, min(low, kappa)), min(1.0, max(high, kappa)), math.sqrt(variance), n)


def _ratio(part: Floats, whole: Floats, level: float) -> tuple[float, float, float]:
    from scipy.special import stdtrit

    two_sided_z(level)  # refuses a bad level
    total, n = float(whole.sum()), int((whole > 0).sum())
    ratio = float(part.sum()) / total
    variance = float(((part - ratio * whole) ** 2).sum()) / total**2 * n / max(1, n - 1)
    n_eff = ratio * (1 - ratio) / variance if variance > CONSTANT**2 else float(n)
    low, high = wilson(ratio, n_eff, float(stdtrit(max(1, n - 1), (1 + level) / 2)))
    return ratio, max(0.0, min(low, ratio)), min(1.0, max(high, ratio))
