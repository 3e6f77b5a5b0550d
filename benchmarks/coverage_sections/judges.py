"""Agreement of judges, and corrections for their errors."""

from __future__ import annotations

import itertools

import numpy as np
from scipy.special import expit, logit

from coverage_sections._cells import RATES, TIES, Array, cell, drawn, holds
from harness.stats import UnusableScores, cohens_kappa, position_bias, ppi_mean, rogan_gladen, win_rate


def agreement(simulations: int) -> None:
    print("  n    judge right  kappa    bar    share of the first answer")
    rng = np.random.default_rng(6)
    ability = rng.normal(0, 2, 400_000)
    for n, right in itertools.product((50, 250), (0.6, 0.8, 0.95)):
        bias = float(logit(right))  # here how far the judge leans to the first answer
        share = float(expit(ability + bias).mean())
        kappas, first = [], []
        for _ in range(simulations // 2):
            reference = rng.integers(0, 2, n)
            kappa = cohens_kappa(np.where(rng.random(n) < right, reference, 1 - reference), reference)
            kappas.append(kappa is not None and holds(kappa, 2 * right - 1))
            own = rng.normal(0, 2, n)
            ab, ba = ((own + shift + rng.logistic(size=n) > 0).astype(float) for shift in (bias, -bias))
            position = position_bias(ab, ba)
            first.append((position.share_first_low or 0) <= share <= (position.share_first_high or 0))
        cell(f"{n:<4} {right:<11}", float(np.mean(kappas)))
        cell(f"{n:<4} {right:<11}", float(np.mean(first)), tail="share of first")


def correction(simulations: int) -> None:
    """A judge of sensitivity .9 and specificity .8. Rogan-Gladen's labels are half wins; the others' are a random sample."""
    print("  n    labels ties  p     coverage  bar    estimator, refused, mean width; raw covers")
    rng = np.random.default_rng(7)
    for (n, labels), tie_rate, p in itertools.product([(50, 50), (250, 50), (250, 250)], TIES, RATES):
        found: dict[str, list[tuple[bool, float]]] = {"Rogan-Gladen": [], "PPI": [], "raw": []}
        for _ in range(simulations):
            truth = drawn(rng, np.full(n, p), tie_rate)
            balanced = np.repeat([1.0, 0.0], [labels // 2, labels - labels // 2])
            sample = drawn(rng, np.full(labels, p), tie_rate)
            s = judged(rng, truth)
            for name, reference, estimate in (("Rogan-Gladen", balanced, rogan_gladen), ("PPI", sample, ppi_mean)):
                try:
                    result = estimate(s, judged(rng, reference), reference)  # type: ignore[operator]
                    found[name].append((holds(result, p), result.high - result.low))
                except UnusableScores:
                    continue
            found["raw"].append((holds(win_rate(s), p), 0))
        raw = np.mean([hit for hit, _ in found["raw"]])
        for name in ("Rogan-Gladen", "PPI"):
            covered, widths = np.array(found[name], dtype=float).T
            refused = 1 - len(covered) / simulations
            tail = f"{name:12} {refused:6.1%} {widths.mean():6.3f}; {raw:.1%}"
            cell(f"{n:<4} {labels:<6} {tie_rate:<5} {p:<5}", float(covered.mean()), tail=tail)


def judged(rng: np.random.Generator, truth: Array) -> Array:
    chance = np.where(truth == 1, 0.9, np.where(truth == 0, 0.2, 0.55))
    return np.where(rng.random(truth.size) < 0.1, 0.5, rng.random(truth.size) < chance)
