"""How small a difference a run can show, before it is run."""

from __future__ import annotations

import math
from statistics import NormalDist

from harness.stats._arrays import two_sided_z


def minimum_detectable_effect(sd: float, n: int, level: float = 0.95, power: float = 0.8) -> float:
    """The true difference that a two-sided test over `n` queries finds with probability `power`.

    (z_(1-alpha/2) + z_power) sd / sqrt(n), which is 2.80 sd / sqrt(n) by default (Cohen 1988); `sd` is the standard
    deviation of one query's score (0.5 at worst) or of its paired difference, and the answer has its unit: sd 0.5 with
    250 queries gives 0.089, that is 8.9 points. The normal approximation is optimistic below about 30 queries.

    Raises ValueError for n < 1, a negative or non-finite sd, and for a level or power outside (0, 1).
    """
    if n < 1:
        raise ValueError(f"A plan needs at least one query; got n = {n}.")
    return _reach(sd, level, power) / math.sqrt(n)


def required_n(sd: float, effect: float, level: float = 0.95, power: float = 0.8) -> int:
    """The fewest queries whose `minimum_detectable_effect` is at most `effect`: sd 0.5, effect 0.05 gives 785.

    Raises ValueError for an effect that is not positive, and as `minimum_detectable_effect` does.
    """
    if not effect > 0:
        raise ValueError(f"The effect to detect must be above zero; got {effect}.")
    return max(1, math.ceil((_reach(sd, level, power) / effect) ** 2 * (1 - 1e-12)))  # whole numbers survive rounding


def _reach(sd: float, level: float, power: float) -> float:
    if not 0 <= sd < math.inf:
        raise ValueError(f"A standard deviation is a finite number of at least zero; got {sd}.")
    if not 0 < power < 1:
        raise ValueError(f"Power lies between 0 and 1, such as 0.8; got {power}.")
    return (two_sided_z(level) + NormalDist().inv_cdf(power)) * sd
