"""InfoNCE where most queries are at its limit, and the share of responses whose own constitution is the likeliest."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from coverage_sections._cells import Array, cell, holds
from harness.stats import infonce, own_likeliest

BAR = 0.93
AT_LIMIT = 6.9
"""Nats by which the own constitution must be the likelier for a query's value to be within 0.001 of log 2."""

Gains = Callable[[np.random.Generator, int, float], Array]


def limit(simulations: int) -> None:
    """A share of the queries is at the limit. The others lie a uniform or an exponential distance below it, or the gain of a query
    is normal with a standard deviation of 3 or 8 nats. Lognormal distances, up to 20 nats, show the limits. Refused: no interval.
    """
    print("  n    at the limit  others        coverage  bar    refused, mean width")
    rng = np.random.default_rng(21)
    for (name, gains), n, share in itertools.product(GAINS.items(), (30, 50, 100), (0.5, 0.7, 0.9, 0.95)):
        truth = float(infonce(tables(gains(rng, 400_000, share))).estimate)
        covered, widths = [], []
        for seed in range(simulations // 4):
            found = infonce(tables(gains(rng, n, share)), seed=seed)
            if found.low is not None and found.high is not None:
                covered.append(holds(found, truth))
                widths.append(found.high - found.low)
        refused = 1 - len(covered) / (simulations // 4)
        # where most runs are refused, those that are not were selected for having many queries off the limit
        if covered:
            tail = f"{refused:.1%}, {np.mean(widths):.2f}"
            head = f"{n:<4} {share:<13} {name:13}"
            cell(head, float(np.mean(covered)), bar=BAR, barred=refused < 0.5 and name != "lognormal", tail=tail)
        else:
            print(f"  {n:<4} {share:<13} {name:13}     none")


def normal(spread: float) -> Gains:
    return lambda rng, n, share: rng.normal(AT_LIMIT + spread * norm.ppf(share), spread, n)


def mixture(distance: Callable[[np.random.Generator, int], Array]) -> Gains:
    """Gains whose value is log 2, or lies so far below it."""
    return lambda rng, n, share: np.where(rng.random(n) < share, 60, -np.log(np.expm1(distance(rng, n))))


GAINS: dict[str, Gains] = {
    "uniform": mixture(lambda rng, n: rng.uniform(0.001, np.log(2), n)),
    "exponential": mixture(lambda rng, n: np.clip(rng.exponential(0.2, n), 0.001, 3)),
    "normal, 3": normal(3),
    "normal, 8": normal(8),
    "lognormal": mixture(lambda rng, n: np.clip(np.exp(rng.normal(-2, 1.5, n)), 0.001, 20)),
}
"""How many nats likelier the own constitution is, for each of n queries."""


def tables(gain: Array) -> Array:
    """Of two constitutions and responses: the own one is likelier by `gain` nats, shape (n,)."""
    worse = np.maximum(gain, 0)
    return -100 - np.where(np.eye(2) > 0, (worse - gain)[:, None, None], worse[:, None, None])


def likeliest(simulations: int) -> None:
    """Three constitutions; how likely the own one is to win differs by query, so that a query's responses go together."""
    print("  n    mean share  coverage  bar")
    rng = np.random.default_rng(22)
    for n, centre in itertools.product((10, 30, 100), (-0.5, 1.0, 3.0)):
        truth = float(expit(rng.normal(centre, 1.5, 400_000)).mean())
        covered = []
        for _ in range(simulations):
            own = rng.random((n, 3)) < expit(rng.normal(centre, 1.5, n))[:, None]
            table = np.where(np.eye(3) > 0, np.where(own, -1.0, -3.0)[:, None, :], -2.0)
            covered.append(holds(own_likeliest(table), truth))
        cell(f"{n:<4} {truth:<11.2f}", float(np.mean(covered)))
