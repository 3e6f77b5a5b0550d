"""Estimators that allow for the length of responses."""

from __future__ import annotations

import itertools
from statistics import NormalDist

import numpy as np
from scipy.special import expit, logit

from coverage_sections._cells import RATES, TIES, cell, covers, holds, limits, scores
from harness.stats import UnusableScores, length_glm, length_stratified

Z = NormalDist().inv_cdf(0.975)


def stratified(simulations: int) -> None:
    print("  longer other  ties  p longer p other  coverage  bar    normal")
    rng = np.random.default_rng(3)
    halves = [(25, 25), (10, 40), (125, 125), (25, 225)]
    pairs = [*zip(RATES, RATES, strict=True), (0.95, 0.5), (0.95, 0.77), (0.77, 0.65)]
    for (n1, n2), tie_rate, (p1, p2) in itertools.product(halves, TIES, pairs):
        draws = [
            rng.multinomial(n, np.round([p - tie_rate / 2, tie_rate, 1 - p - tie_rate / 2], 12), 2 * simulations)
            for n, p in ((n1, p1), (n2, p2))
        ]
        table, counts = np.unique(np.hstack(draws), axis=0, return_counts=True)
        lengths = np.repeat([2, 1], [n1, n2])
        results = [length_stratified(np.r_[scores(c[:3]), scores(c[3:])], lengths, 3 - lengths) for c in table]
        truth, weights = (p1 + p2) / 2, counts / counts.sum()
        ours = np.array([limits(r) for r in results]).T
        middle, reach = np.array([(r.estimate, Z * r.se) for r in results]).T
        normal = covers((middle - reach, middle + reach), truth, weights)
        cell(f"{n1:<6} {n2:<6} {tie_rate:<5} {p1:<8} {p2:<7}", covers(ours, truth, weights), tail=f"{normal:5.1%}")


def glm(simulations: int) -> None:
    """Rate p at equal lengths; a's answers longer by half a standard deviation; log-odds rise by 1.5 with tanh(delta / sd)."""
    print("  n    ties  p     coverage  bar    refused")
    rng = np.random.default_rng(4)
    for n, tie_rate, p in itertools.product((50, 250), TIES, RATES):
        covered, refused = [], 0
        for _ in range(simulations // 2):
            delta = np.round(rng.normal(30, 60, n))
            chance = expit(logit(p) + 1.5 * np.tanh(delta / delta.std(ddof=1)))
            tie = np.minimum(tie_rate, 2 * np.minimum(chance, 1 - chance))
            u = rng.random(n)
            s = np.where(u < chance - tie / 2, 1, np.where(u < chance + tie / 2, 0.5, 0))
            try:
                covered.append(holds(length_glm(s, delta + 500, np.full(n, 500)), p))
            except UnusableScores:
                refused += 1
        cell(f"{n:<4} {tie_rate:<5} {p:<5}", float(np.mean(covered)), tail=f"{refused / (simulations // 2):.1%}")
