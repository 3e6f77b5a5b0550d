"""How small a difference a run can show, and how wide its intervals will be, before it is run."""

from __future__ import annotations

import math
from statistics import NormalDist

from harness.stats._arrays import two_sided_z


def score_sd(p: float = 0.5, tie_rate: float = 0.0) -> float:
    """The standard deviation of a query's score at win rate `p` where a share `tie_rate` of the queries ties.

    sqrt(p (1 - p) - tie_rate / 4), for scores of 1, 1/2 and 0: 0.5 at worst, 0.39 with 40% ties.

    Raises ValueError for `p` outside [0, 1] and for more ties than `p` leaves room for, 2 min(p, 1 - p).
    """
    if not 0 <= p <= 1:
        raise ValueError(f"A win rate lies between 0 and 1; got {p}.")
    if not 0 <= tie_rate <= 2 * min(p, 1 - p) + 1e-12:
        raise ValueError(
            f"At a win rate of {p:g} the tie rate lies between 0 and {2 * min(p, 1 - p):g}; got {tie_rate}."
        )
    return math.sqrt(max(0.0, p * (1 - p) - tie_rate / 4))


def minimum_detectable_effect(sd: float, n: int, level: float = 0.95, power: float = 0.8) -> float:
    """The true difference that a two-sided test over `n` queries finds with probability `power`.

    (z_(1-alpha/2) + z_power) sd / sqrt(n), which is 2.80 sd / sqrt(n) by default (Cohen 1988); `sd` is the standard
    deviation of one query's score (`score_sd`: 0.5 at worst, less with ties) or of its paired difference, and the effect has
    its unit: sd 0.5 with 250 queries gives 0.089, that is 8.9 points. The normal approximation is optimistic below about 30
    queries.

    Raises ValueError for n < 1, a negative or non-finite sd, and for a level or power outside (0, 1).
    """
    return _reach(sd, level, power) / math.sqrt(_counted(n))


def required_n(sd: float, effect: float, level: float = 0.95, power: float = 0.8) -> int:
    """The fewest queries whose `minimum_detectable_effect` is at most `effect`: sd 0.5, effect 0.05 gives 785.

    Raises ValueError for an effect that is not positive, and as `minimum_detectable_effect` does.
    """
    if not effect > 0:
        raise ValueError(f"The effect to detect must be above zero; got {effect}.")
    return max(1, math.ceil((_reach(sd, level, power) / effect) ** 2 * (1 - 1e-12)))  # whole numbers survive rounding


def expected_half_width(n: int, p: float = 0.5, tie_rate: float = 0.0, level: float = 0.95) -> float:
    """Half the width of the interval that `win_rate` gives `n` queries with win rate `p` and the tie rate named.

    The same model of variance as in the report: n `score_sd`^2 and the floor of `variance_of_mean`, over n^2, in `interval`.

    Raises ValueError for n < 1, and as `score_sd` and `interval` do.
    """
    return _half(p, _variance(n, p, tie_rate), n - 1, level)


def principles_half_width(
    n: int, n_principles: int, sd: float, p: float = 0.5, tie_rate: float = 0.0, level: float = 0.95
) -> float:
    """Half the width to expect of `principles_interval`, for `n` queries with one principle each of `n_principles`.

    `sd` is the standard deviation of the principles' own win rates: V = sd^2 / G and the variance over queries that
    `expected_half_width` has, with G - 1 degrees of freedom. Asked again at twice `n` or at twice `n_principles`, it says what
    more queries or more principles would bring; `principles_floor` is where more queries end.

    Raises ValueError as `expected_half_width` and `principles_floor` do.
    """
    principles_floor(n_principles, sd, level)  # refuses a bad number or sd
    return _half(p, sd**2 / n_principles + _variance(n, p, tie_rate), n_principles - 1, level)


def principles_floor(n_principles: int, sd: float, level: float = 0.95) -> float:
    """The half-width for new principles that no number of queries gets below: t_(G-1) sd / sqrt(G).

    `sd` is the standard deviation of the principles' own win rates: 5 principles with sd 0.1 give 0.124, 20 give 0.047. Wilson's
    limits are a little nearer, 3% for the 5 principles.

    Raises ValueError for fewer than 2 principles, a negative or non-finite sd, and a level outside (0, 1).
    """
    from scipy.special import stdtrit

    two_sided_z(level)  # refuses a bad level
    if n_principles < 2:
        raise ValueError(f"An interval for new principles needs several of them; got {n_principles}.")
    return float(stdtrit(n_principles - 1, (1 + level) / 2)) * _checked(sd) / math.sqrt(n_principles)


def _half(p: float, variance: float, df: float, level: float) -> float:
    from harness.stats.winrate import interval

    low, high = interval(p, variance, df, level)
    return (high - low) / 2


def _variance(n: int, p: float, tie_rate: float) -> float:
    """What `variance_of_mean` gives scores with exactly this win rate and these ties."""
    smoothed = (_counted(n) * p + 1) / (n + 2)
    return (n * score_sd(p, tie_rate) ** 2 + smoothed * (1 - smoothed)) / n**2


def _reach(sd: float, level: float, power: float) -> float:
    if not 0 < power < 1:
        raise ValueError(f"Power lies between 0 and 1, such as 0.8; got {power}.")
    return (two_sided_z(level) + NormalDist().inv_cdf(power)) * _checked(sd)


def _checked(sd: float) -> float:
    if not 0 <= sd < math.inf:
        raise ValueError(f"A standard deviation is a finite number of at least zero; got {sd}.")
    return sd


def _counted(n: int) -> int:
    if n < 1:
        raise ValueError(f"A plan needs at least one query; got n = {n}.")
    return n
