"""Win rates: exact coverage, how often the interval excludes one half where that is the truth, and several rows a query."""

from __future__ import annotations

import itertools

import numpy as np
from scipy.special import expit, logit

from coverage_sections._cells import BAR, ONE_SIDED, Array, cell, covers, drawn, holds, limits, outcomes, scores
from harness.stats import cluster_means, sign_flip_p, win_rate

SIZES = (6, 8, 10, 20, 30, 36, 50, 100, 250)
TIE_RATES = (0.0, 0.1, 0.3, 0.6, 0.9)


def exact(_: int) -> None:
    """Losses or wins that cannot happen (ties .9 at .55) have a bar of their own."""
    print("  n    ties  p      coverage  bar    mean width")
    for n, tie_rate, p in itertools.product(SIZES, TIE_RATES, (0.5, 0.55, 0.65, 0.77, 0.95)):
        if p + tie_rate / 2 <= 1:
            table, weights = outcomes(n, trinomial(p, tie_rate))
            low, high = intervals(table)
            bar = ONE_SIDED if tie_rate and p + tie_rate / 2 == 1 else BAR
            tail = f"{weights @ (high - low):.3f}"
            cell(f"{n:<4} {tie_rate:<5} {p:<5}", covers((low, high), p, weights), bar=bar, tail=tail)


def one_half(_: int) -> None:
    """Without ties the counts are coarse, and the error of any interval swings about 5% with n: Wilson's own is 5.7% at 100.

    "beats" asks for sign flips too, whose error is exact.
    """
    print("  n    ties   error     bar    with sign flips of p <= .05")
    both = []
    for n, tie_rate in itertools.product(SIZES, TIE_RATES):
        table, weights = outcomes(n, trinomial(0.5, tie_rate))
        off = excluded(table)
        clear = np.array([sign_flip_p(scores(c), 1 - scores(c)) <= 0.05 for c in table[off]], dtype=bool)
        both.append(float(weights[off][clear].sum()))
        head, bar = f"{n:<4} {tie_rate:<5}", 0.055 if tie_rate else 0.0575
        cell(head, float(weights[off].sum()), bar=bar, at_most=True, tail=f"{both[-1]:.2%}")
    errors = {}
    for n in range(6, 251):
        table, weights = outcomes(n, trinomial(0.5, 0.0))
        errors[n] = float(weights[excluded(table)].sum())
    worst = max(errors, key=errors.__getitem__)
    cell("the worst of n = 6 to 250", errors[worst], bar=0.0575, at_most=True, tail=f"n = {worst}, no ties")
    cell("their mean               ", float(np.mean(list(errors.values()))), bar=0.05, at_most=True)
    cell("the worst with sign flips", max(both), bar=0.05, at_most=True)


def clusters(simulations: int) -> None:
    """Rows of a query share its ease; queries have two rows, four, or one to four."""
    print("  n    rows   p     coverage  bar    of the interval over rows")
    rng = np.random.default_rng(8)
    for n, rows, p in itertools.product((20, 50, 250), ("2", "4", "1 to 4"), (0.5, 0.77)):
        truth = float(expit(logit(p) + rng.normal(0, 1, 400_000)).mean())
        covered, naive = [], []
        for _ in range(simulations):
            ids = np.repeat(np.arange(n), rng.integers(1, 5, n) if rows == "1 to 4" else int(rows))
            s = drawn(rng, expit(logit(p) + rng.normal(0, 1, n)[ids]), 0.1)
            covered.append(holds(win_rate(cluster_means(s, ids).means), truth))
            naive.append(holds(win_rate(s), truth))
        cell(f"{n:<4} {rows:6} {p:<5}", float(np.mean(covered)), tail=f"{np.mean(naive):.1%}")


def trinomial(p: float, tie_rate: float) -> Array:
    """Probabilities of a win, a tie and a loss with mean p."""
    return np.round([p - tie_rate / 2, tie_rate, 1 - p - tie_rate / 2], 12)


def intervals(table: Array) -> Array:
    """Lows and highs, shape (2, outcomes)."""
    return np.array([limits(win_rate(scores(counts))) for counts in table]).T


def excluded(table: Array) -> Array:
    low, high = intervals(table)
    return (low > 0.5) | (high < 0.5)
