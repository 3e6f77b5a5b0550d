"""Paired differences: exact coverage for 0/1 scores and ties, and simulated coverage for scores of two orders."""

from __future__ import annotations

import itertools

import numpy as np
from scipy.special import expit, logit

from coverage_sections._cells import BAR, ONE_SIDED, cell, covers, holds, limits, outcomes
from harness.stats import PairedTable, newcombe_interval, paired_difference


def exact(_: int) -> None:
    """Where b never wins alone, few queries that a wins alone leave a Wald-like interval: a bar of their own."""
    print("  n    a only  b only  coverage  bar    mean width")
    for n in (6, 10, 20, 30, 36, 50, 100, 250):
        for only_a, only_b in [(0.2, 0.2), (0.3, 0.1), (0.1, 0.02), (0.1, 0.0), (0.05, 0.0)]:
            table, weights = outcomes(n, np.round([only_a, 1 - only_a - only_b, only_b], 12))
            results = [paired_difference(np.repeat([1.0, 0, 0], c), np.repeat([0, 0, 1.0], c)) for c in table]
            low, high = np.array([limits(r) for r in results]).T
            head, tail = f"{n:<4} {only_a:<7} {only_b:<7}", f"{weights @ (high - low):.3f}"
            covered = covers((low, high), only_a - only_b, weights)
            cell(head, covered, bar=BAR if only_b else ONE_SIDED, tail=tail)


def orders(simulations: int) -> None:
    """Each score the mean of two orders; the two models share the query's ease."""
    print("  n    p a    p b   coverage  bar")
    rng = np.random.default_rng(1)
    for n, (p_a, p_b) in itertools.product((10, 30, 50, 250), [(0.5, 0.5), (0.77, 0.65), (0.95, 0.77)]):
        ease = rng.normal(0, 1, 400_000)
        truth = expit(logit(p_a) + ease).mean() - expit(logit(p_b) + ease).mean()
        covered = []
        for _ in range(simulations):
            shared = rng.normal(0, 1, n)
            a, b = (rng.binomial(2, expit(logit(p) + shared)) / 2 for p in (p_a, p_b))
            covered.append(holds(paired_difference(a, b), truth))
        cell(f"{n:<4} {p_a:<6} {p_b:<6}", float(np.mean(covered)))


def newcombe(simulations: int) -> None:
    print("  n    both, a only, b only, neither  coverage  bar")
    rng = np.random.default_rng(2)
    for n, chances in itertools.product(
        (50, 250), [(0.4, 0.2, 0.1, 0.3), (0.7, 0.15, 0.05, 0.1), (0.9, 0.05, 0.03, 0.02)]
    ):
        table, counts = np.unique(rng.multinomial(n, chances, 4 * simulations), axis=0, return_counts=True)
        found = np.array([newcombe_interval(PairedTable(*row)) for row in table.tolist()]).T
        cell(f"{n:<4} {chances!s:30}", covers(found, chances[1] - chances[2], counts / counts.sum()))
