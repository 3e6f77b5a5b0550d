"""Looking at a win rate before all queries are judged: rules for stopping, and what holds after each of them.

An ordinary interval promises its level at one look, at an n that was fixed before. Who looks again and again, and stops when it
leaves one half, is wrong far more often: 15% of the time with 5 looks to 250 queries, 35% with a look every 10 to 1,000. Three
rules keep the promise:

    half_width  stop when the interval is narrow enough; the ordinary interval
    looks       test at numbers of queries that are fixed before; the repeated confidence interval (O'Brien and Fleming 1979)
    anytime     look whenever you like; the betting interval (Waudby-Smith and Ramdas, arXiv 2010.09686)

Scores have shape (n,), one per query, each in [0, 1], in an order that is random in itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.stats._arrays import Floats, UnusableScores, finite_vector, two_sided_z
from harness.stats.paired import sign_flip_p
from harness.stats.winrate import win_rate

BETTING = "betting, valid at every look"
STAKES = np.geomspace(0.05, 0.95, 16)
"""What the gamblers of the betting interval stake: the mean of their fortunes counts."""
FIRST_LOOK = 25
"""Queries before the first decision of `anytime`, and between two decisions of the rules without fixed looks."""
MOST_LOOKS = 100
_LARGEST_Z = 8.0
"""Critical values above this cannot be told from it: 1 - level is a rounding error."""


# --- Rules


@dataclass(frozen=True)
class StopRule:
    """When there are enough queries: one of `half_width` (of the interval, a fraction), `looks` (numbers of queries) and `anytime`.

    `look` says at which of its looks, from 1, scores are seen; 0 where looks are not numbered.
    """

    half_width: float | None = None
    at_least: int = 30  # queries before half_width may stop
    looks: tuple[int, ...] = ()
    anytime: bool = False
    look: int = 0

    def __post_init__(self) -> None:
        if (self.half_width is not None) + bool(self.looks) + self.anytime != 1:
            raise ValueError("A rule for stopping is one of half_width, looks and anytime.")

    @property
    def kind(self) -> Literal["half_width", "looks", "anytime"]:
        return "looks" if self.looks else "anytime" if self.anytime else "half_width"

    def schedule(self, total: int) -> tuple[int, ...]:
        """The numbers of queries, ascending, at which a run of `total` queries at most decides whether to go on.

        `looks` has its own. The other rules hold at any n, so theirs are chosen for cost alone: a tenth of what is there,
        and 25 queries at least, is added each time.

        Raises UnusableScores for a look beyond `total`.
        """
        if self.looks:
            if self.looks[-1] > total:
                raise UnusableScores(
                    f"The last look is at {self.looks[-1]} queries and there are {total}; lower it, or add queries."
                )
            return self.looks
        points = [min(total, self.at_least if self.half_width is not None else FIRST_LOOK)]
        while points[-1] < total:
            points.append(min(total, points[-1] + max(FIRST_LOOK, points[-1] // 10)))
        return tuple(points)

    def at(self, look: int) -> StopRule:
        return replace(self, look=look)


ANYTIME = StopRule(anytime=True)
"""What holds for a look that no rule planned."""


class Sequential(NamedTuple):
    """What holds of a mean at a look: a two-sided interval, its method in words, and the p value against one half."""

    low: float
    high: float
    method: str
    p_value: float


def sequential_rate(rule: StopRule | None, scores: ArrayLike, level: float = 0.95) -> Sequential:
    """The interval and the p value of the mean of `scores` that are valid under `rule`; None: n was fixed before.

    half_width and None: `win_rate`'s interval and sign flips. looks: `win_rate`'s interval with the critical value of this
    look in the place of the level's own, so that all looks together miss with probability 1 - level (the repeated confidence
    interval of Jennison and Turnbull 1989), and the smallest 1 - level at which it excludes one half, the sign flips' p as z.
    anytime: `betting_interval` and `betting_p`.

    Raises UnusableScores for scores that are empty, not finite or outside [0, 1]; ValueError for a look that the rule lacks.
    """
    if rule is None or rule.kind == "half_width":
        rate = win_rate(scores, level)
        return Sequential(rate.low, rate.high, rate.method, _against_half(scores))
    if rule.kind == "anytime":
        return Sequential(*betting_interval(scores, level), BETTING, betting_p(scores))
    if not 1 <= rule.look <= len(rule.looks):
        raise ValueError(f"The rule has {len(rule.looks)} looks, and no look {rule.look}.")
    critical = min(obrien_fleming(rule.looks, level)[rule.look - 1], _LARGEST_Z)
    rate = win_rate(scores, 1 - 2 * NormalDist().cdf(-critical))
    method = f"repeated, look {rule.look} of {len(rule.looks)} (O'Brien-Fleming); {rate.method}"
    return Sequential(rate.low, rate.high, method, _repeated_p(rule, _against_half(scores)))


def has_decided(rule: StopRule, scores: ArrayLike, level: float = 0.95) -> bool:
    """Whether `scores` suffice: half_width: `enough_width`; the others: their interval leaves out one half.

    Raises as `sequential_rate`.
    """
    if rule.half_width is not None:
        return enough_width(scores, rule.half_width, rule.at_least, level)
    found = sequential_rate(rule, scores, level)
    return found.low > 0.5 or found.high < 0.5


def enough_width(scores: ArrayLike, half_width: float, at_least: int = 30, level: float = 0.95) -> bool:
    """Whether there are `at_least` scores and half the width of `win_rate`'s interval is at most `half_width`.

    The width hardly depends on which side of one half the mean lies, so the ordinary interval keeps its coverage (Chow and
    Robbins 1965, asymptotically; 94.4 to 98.3% by simulation, benchmarks/coverage.py).

    Raises UnusableScores as `win_rate`.
    """
    rate = win_rate(scores, level)
    return rate.n >= at_least and (rate.high - rate.low) / 2 <= half_width


def _against_half(scores: ArrayLike) -> float:
    return sign_flip_p(scores, np.full(np.size(scores), 0.5))


# --- Fixed looks


def obrien_fleming(looks: Sequence[int], level: float = 0.95) -> tuple[float, ...]:
    """The critical value of |z| at each of `looks`, ascending numbers of queries of which the last is the planned end.

    C / sqrt(n_k / n_K) (O'Brien and Fleming 1979), with the C under which standard Brownian motion, seen at the looks'
    shares of the end, leaves [-C, C] with probability 1 - level: five equal looks at 0.95 have 4.562, 3.226, 2.634, 2.281,
    2.040. The type I error of all looks together is 1 - level for normal means; early looks hardly spend any of it.

    Raises UnusableScores for looks that do not ascend from 1, or more than 100; ValueError for a bad level.
    """
    return _critical(tuple(looks), level)


@lru_cache
def _critical(looks: tuple[int, ...], level: float) -> tuple[float, ...]:
    from scipy.optimize import brentq

    if not 1 <= len(looks) <= MOST_LOOKS or looks[0] < 1 or any(a >= b for a, b in pairwise(looks)):
        raise UnusableScores(
            f"Looks are 1 to {MOST_LOOKS} ascending numbers of queries, such as 50, 100, 150; got {list(looks)[:8]}."
        )
    alone = two_sided_z(level)
    share = [n / looks[-1] for n in looks]
    found = alone
    if len(looks) > 1:
        most = NormalDist().inv_cdf(1 - (1 - level) / (2 * len(looks)))  # Bonferroni at the end is more than enough
        found = float(brentq(lambda c: _crossing(c, looks) - (1 - level), alone - 1e-6, most, xtol=1e-7))
    return tuple(found / math.sqrt(t) for t in share)


def _crossing(barrier: float, looks: Sequence[int]) -> float:
    """The probability that standard Brownian motion, seen at `looks` / their last, is ever outside [-barrier, barrier].

    The density of the paths that are still inside is carried from look to look by numerical integration (Armitage,
    McPherson and Rowe 1969), here with Gauss-Legendre nodes, several to each standard deviation of the shortest step.
    """
    from scipy.special import ndtr

    if barrier <= 0:
        return 1.0
    steps = np.sqrt(np.diff([0, *looks]) / looks[-1])
    nodes, weights = np.polynomial.legendre.leggauss(32 + 4 * math.ceil(2 * barrier / steps.min()))
    x, w = nodes * barrier, weights * barrier
    inside = np.exp(-0.5 * (x / steps[0]) ** 2) / (steps[0] * math.sqrt(2 * math.pi))
    crossed = 2 * float(ndtr(-barrier / steps[0]))
    for sd in steps[1:]:
        out = ndtr((x - barrier) / sd) + ndtr(-(x + barrier) / sd)
        crossed += float((w * inside) @ out)
        move = np.exp(-0.5 * ((x[:, None] - x) / sd) ** 2) / (sd * math.sqrt(2 * math.pi))
        inside = move @ (w * inside)
    return min(1.0, crossed)


def _repeated_p(rule: StopRule, p_value: float) -> float:
    """The chance, over all looks, to be as far out as a fixed-n `p_value` at this look (Jennison and Turnbull 1989)."""
    z = min(-NormalDist().inv_cdf(max(p_value, 1e-300) / 2), _LARGEST_Z)
    return _crossing(z * math.sqrt(rule.looks[rule.look - 1] / rule.looks[-1]), rule.looks)


# --- Any time


def betting_interval(scores: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """The two-sided interval at `level` of the mean of `scores` that holds at all n together.

    (Waudby-Smith and Ramdas, arXiv 2010.09686.) A gambler who believes that the mean is above m bets the share u of his
    fortune on every query: at mean m the average fortune of gamblers with u in `STAKES` is a martingale, and passes
    2 / (1 - level) with probability (1 - level) / 2 at most, ever (Ville 1939). The lower limit is the least m at which it
    has not; the upper one is its mirror image. So the intervals at n = 1, 2, ... contain the mean all at once with probability
    `level` at least, whatever the distribution, for scores whose mean given all earlier ones is the same. It depends on
    how often each value comes, not on the order, and contains the mean of `scores`.

    Raises UnusableScores for scores that are empty, not finite or outside [0, 1]; ValueError for a bad level.
    """
    s = finite_vector(scores, "A betting interval", 0, 1)
    two_sided_z(level)  # refuses a bad level
    values, counts = np.unique(s, return_counts=True)
    bar = math.log(2 / (1 - level))
    return _least(values, counts, bar), 1 - _least(1 - values, counts, bar)


def betting_p(scores: ArrayLike) -> float:
    """The p value against a mean of one half that holds at all n together: `betting_interval` at 1 - p just excludes it.

    Raises UnusableScores for scores that are empty, not finite or outside [0, 1].
    """
    values, counts = np.unique(finite_vector(scores, "A betting p value", 0, 1), return_counts=True)
    return min(1.0, 2 * math.exp(-max(_log_fortune(v, counts, 0.5) for v in (values, 1 - values))))


def _least(values: Floats, counts: NDArray[Any], bar: float) -> float:
    """The least m at which the fortune is below exp(`bar`), by bisection: the fortune falls in m, and is 1 at most at the mean."""
    low, high = 0.0, float(values @ counts / counts.sum())
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _log_fortune(values, counts, middle) >= bar else (low, middle)
    return low


def _log_fortune(values: Floats, counts: NDArray[Any], mean: float) -> float:
    """The logarithm of the average fortune: mean over u of prod (1 + u (s / m - 1))."""
    logs = np.log1p(STAKES[:, None] * (values / mean - 1)) @ counts
    top = logs.max()
    return float(top + np.log(np.exp(logs - top).mean()))
