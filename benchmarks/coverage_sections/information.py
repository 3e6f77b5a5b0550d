"""InfoNCE where most queries are at its limit, and the share of responses whose own constitution is the likeliest."""

from __future__ import annotations

import itertools

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from coverage_sections._cells import Array, cell, holds
from harness.stats import infonce, own_likeliest

BAR = 0.93
AT_LIMIT = 6.9
"""Nats by which the own constitution must be the likelier for a query's value to be within 0.001 of log 2."""
SPREADS = {"narrow": 3.0, "wide": 8.0}
"""Standard deviation of those nats over queries."""


def limit(simulations: int) -> None:
    """A query's gain is normal over queries; the mean puts a share of them at the limit. Refused: no interval is given."""
    print("  n    at the limit  spread  coverage  bar    refused")
    rng = np.random.default_rng(21)
    for (name, spread), n, share in itertools.product(SPREADS.items(), (30, 50, 100), (0.5, 0.7, 0.9, 0.95)):
        mean = AT_LIMIT + spread * norm.ppf(share)
        truth = float(infonce(tables(rng.normal(mean, spread, 400_000))).estimate)
        covered = []
        for seed in range(simulations // 4):
            found = infonce(tables(rng.normal(mean, spread, n)), seed=seed)
            if found.low is not None:
                covered.append(holds(found, truth))
        refused = 1 - len(covered) / (simulations // 4)
        # where nearly all runs are refused, those that are not were selected for having many queries off the limit
        if covered:
            head = f"{n:<4} {share:<13} {name:7}"
            cell(head, float(np.mean(covered)), bar=BAR, barred=refused < 0.5, tail=f"{refused:.1%}")
        else:
            print(f"  {n:<4} {share:<13} {name:7}     none")


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
