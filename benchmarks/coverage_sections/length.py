"""Estimators that allow for the length of responses."""

from __future__ import annotations

import itertools
from contextlib import suppress
from statistics import NormalDist

import numpy as np
from scipy.special import expit, logit

from coverage_sections._cells import RATES, TIES, cell, covers, drawn, holds, limits, scores
from harness.stats import UnusableScores, adjusted_win_rate, length_glm, length_stratified, win_rate

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
    """Rate p at equal lengths; a's responses longer by half a standard deviation; log-odds rise by 1.5 with tanh(delta / sd)."""
    print("  n    ties  p     coverage  bar    refused")
    rng = np.random.default_rng(4)
    for n, tie_rate, p in itertools.product((80, 250), TIES, RATES):
        covered, refused = [], 0
        for _ in range(simulations // 2):
            delta = np.round(rng.normal(30, 60, n))
            s = drawn(rng, expit(logit(p) + 1.5 * np.tanh(delta / delta.std(ddof=1))), tie_rate)
            try:
                covered.append(holds(length_glm(s, delta + 500, np.full(n, 500)), p))
            except UnusableScores:
                refused += 1
        cell(f"{n:<4} {tie_rate:<5} {p:<5}", float(np.mean(covered)), tail=f"{refused / (simulations // 2):.1%}")


def adjusted(simulations: int) -> None:
    """Rate p at no difference; a copies on a part of the queries, or differs in four counts of style, and wins by it."""
    print("  n    covariates  p     coverage  bar    refused; win_rate covers")
    rng = np.random.default_rng(24)
    for n, (what, effects), p in itertools.product((80, 250), EFFECTS.items(), (0.5, 0.77)):
        covered, plain, runs = [], [], simulations // 4
        for _ in range(runs):
            differences = {name: rng.normal(0.3, 1, n) for name in effects}
            if what == "copied":
                differences = {"copied": np.where(rng.random(n) < 0.4, rng.uniform(0.1, 1, n), 0)}
            eta = logit(p) + sum(effect * differences[name] for name, effect in effects.items())
            s = drawn(rng, expit(eta), 0.0)
            plain.append(holds(win_rate(s), p))
            with suppress(UnusableScores):
                covered.append(holds(adjusted_win_rate(s, differences), p))
        tail = f"{1 - len(covered) / runs:.1%}; {np.mean(plain):.1%}"
        cell(f"{n:<4} {what:<11} {p:<5}", float(np.mean(covered)), tail=tail)


EFFECTS = {"copied": {"copied": 2.0}, "style": {"words": 0.8, "list items": 0.3, "headings": 0.0, "bold": -0.3}}
