"""Agreement of judges, and corrections for their errors."""

from __future__ import annotations

import itertools
from collections import ChainMap
from typing import Any

import numpy as np
from scipy.special import expit, logit

from coverage_sections._cells import RATES, TIES, Array, cell, drawn, holds
from harness.judges.card import corrected
from harness.stats import (
    Labels,
    UnusableScores,
    cohens_kappa,
    judge_share,
    position_bias,
    post_stratified,
    ppi_mean,
    rogan_gladen,
    win_rate,
    worth_in_labels,
)


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


def clustered(simulations: int) -> None:
    """Kappa from several pairs of a query. How often the judge is right differs by query, and so do the labels."""
    print("  queries pairs of each  judge right  coverage  bar")
    rng = np.random.default_rng(16)
    for n, m, right in itertools.product((50, 250), (2, 6), (0.6, 0.8, 0.95)):
        truth = kappa_by_hand(*agreeing(rng, 100_000, m, right))
        covered = []
        for _ in range(simulations // 2):
            scores, reference = agreeing(rng, n, m, right)
            kappa = cohens_kappa(scores, reference, query_ids=np.repeat(np.arange(n), m))
            covered.append(kappa is not None and holds(kappa, truth))
        cell(f"{n:<7} {m:<14} {right:<11}", float(np.mean(covered)))


def agreeing(rng: np.random.Generator, n: int, m: int, right: float) -> tuple[Array, Array]:
    """Scores and labels, 0 or 1, of m pairs of each of n queries."""
    chance, wins = (np.repeat(expit(logit(p) + rng.normal(0, 2, n)), m) for p in (right, 0.6))
    reference = (rng.random(n * m) < wins).astype(float)
    return np.where(rng.random(n * m) < chance, reference, 1 - reference), reference


def kappa_by_hand(one: Array, two: Array) -> float:
    expected = one.mean() * two.mean() + (1 - one.mean()) * (1 - two.mean())
    return float(((one == two).mean() - expected) / (1 - expected))


def correction(simulations: int) -> None:
    """A judge of sensitivity .9 and specificity .8. Labels are a random sample; those of Rogan-Gladen, without ties, half wins."""
    print("  n    labels ties  p     coverage  bar    estimator, refused, mean width; raw covers")
    rng = np.random.default_rng(7)
    for (n, labels), tie_rate, p in itertools.product([(50, 50), (250, 50), (250, 250)], TIES, RATES):
        found: dict[str, list[tuple[bool, float]]] = {}
        raw = []
        for _ in range(simulations):
            ties = 0.1 if tie_rate else 0.0  # of the judge's own
            s, sample = (drawn(rng, np.full(size, p), tie_rate) for size in (n, labels))
            s, f = (judged(rng, truth, ties) for truth in (s, sample))
            half = np.repeat([1.0, 0.0], [labels // 2, labels - labels // 2])
            estimates = {
                "labels": lambda f=f, y=sample: win_rate(y),
                "PPI": lambda s=s, f=f, y=sample: ppi_mean(s, f, y),
                "post-strat.": lambda s=s, f=f, y=sample: post_stratified(s, f, y),
            }
            if not tie_rate:
                estimates["Rogan-Gladen"] = lambda s=s, y=half: rogan_gladen(s, judged(rng, y, 0.0), y)
            for name, estimate in estimates.items():
                try:
                    result: Any = estimate()
                except UnusableScores:
                    continue
                found.setdefault(name, []).append((holds(result, p), result.high - result.low))
            raw.append(holds(win_rate(s), p))
        for name, results in found.items():
            covered, widths = np.array(results, dtype=float).T
            refused = 1 - len(covered) / simulations
            tail = f"{name:12} {refused:6.1%} {widths.mean():6.3f}; {np.mean(raw):.1%}"
            cell(f"{n:<4} {labels:<6} {tie_rate:<5} {p:<5}", float(covered.mean()), tail=tail)


TASKS = {
    "unequal": ((250, 250, 0.8, 0.95, 0.9), (250, 50, 0.5, 0.7, 0.6)),
    "three": ((100, 80, 0.9, 0.97, 0.97), (200, 40, 0.5, 0.8, 0.6), (300, 30, 0.3, 0.6, 0.9)),
    "few": ((60, 40, 0.77, 0.9, 0.8), (60, 12, 0.5, 0.7, 0.7)),
}
"""Of each task: queries, those labelled, rate of wins, sensitivity and specificity of the judge."""


def strata(simulations: int) -> None:
    """From verdicts to the row of results.json: tasks that differ in labels and in how good the judge is."""
    print(
        "  tasks    ties  estimator         coverage  bar    mean estimate, mean width; truth; all tasks in one pool covers"
    )
    rng = np.random.default_rng(17)
    for (name, tasks), tie_rate in itertools.product(TASKS.items(), TIES):
        total = sum(n for n, *_ in tasks)
        truth = sum(n * p for n, _, p, *_ in tasks) / total
        found: dict[str, list[tuple[float, bool, float, bool]]] = {"post_stratified": [], "ppi": []}
        for _ in range(simulations // 4):
            rows = {}
            for number, (n, labelled, p, sensitivity, specificity) in enumerate(tasks):
                reference = drawn(rng, np.full(n, p), tie_rate)
                scores = judged(rng, reference, tie_rate, sensitivity, specificity)
                queries = [f"{number}-{query}" for query in range(n)]
                known = dict(zip(queries[:labelled], reference.tolist(), strict=False))
                rows[str(number)] = (dict(zip(queries, scores.tolist(), strict=True)), known)
            row = corrected(rows, 0.95)
            pool = corrected({"all": tuple(ChainMap(*side) for side in zip(*rows.values(), strict=True))}, 0.95)  # type: ignore[dict-item]
            for key, results in found.items():
                (low, high), (low_1, high_1) = row[f"{key}_ci"], pool[f"{key}_ci"]
                results.append((row[key], low <= truth <= high, high - low, low_1 <= truth <= high_1))
        for key, results in found.items():
            mean, covered, width, one_pool = np.mean(results, axis=0)
            cell(
                f"{name:8} {tie_rate:<5} {key:17}",
                covered,
                tail=f"{mean:.3f}, {width:.3f}; {truth:.3f}; {one_pool:.1%}",
            )


def worth(simulations: int) -> None:
    """How many labels 1,000 verdicts of a judge are worth beside n, by its accuracy on wins and losses in equal parts."""
    print("  n    judge right  coverage  bar    truth, mean estimate")
    rng = np.random.default_rng(18)
    for n, right in itertools.product((50, 250), (0.5, 0.6, 0.8, 0.95)):
        explained = (2 * right - 1) ** 2
        truth = 1 / ((1 - explained) / n + explained / (n + 1000)) - n
        covered, estimates = [], []
        for seed in range(simulations // 4):
            said = rng.integers(0, 2, n)
            reference = np.where(rng.random(n) < right, said, 1 - said)
            found = worth_in_labels([Labels(said, reference, 1000)], seed=seed)
            covered.append(holds(found, truth))
            estimates.append(found.labels)
        cell(f"{n:<4} {right:<11}", float(np.mean(covered)), bar=ROUGH, tail=f"{truth:.1f}, {np.mean(estimates):.1f}")


def share(simulations: int) -> None:
    """The judge's share of the variance, each query judged three times; percentiles of a bootstrap are rough with few queries."""
    print("  queries  spread of queries  coverage  bar    truth, mean width")
    rng = np.random.default_rng(19)
    for n, spread in itertools.product((50, 100, 250), (0.5, 1.5, 3.0)):
        chances = expit(0.3 + rng.normal(0, spread, 400_000))
        noise = float((chances * (1 - chances)).mean()) / 3
        truth = noise / (noise + float(chances.var()))
        covered, widths = [], []
        for seed in range(simulations // 4):
            chance = np.repeat(expit(0.3 + rng.normal(0, spread, n)), 3)
            ids = np.repeat(np.arange(n), 3)
            found = judge_share((rng.random(3 * n) < chance).astype(float), ids, ids, seed=seed)
            low, high = found.share_low or 0.0, found.share_high or 0.0
            covered.append(low <= truth <= high)
            widths.append(high - low)
        cell(f"{n:<8} {spread:<17}", float(np.mean(covered)), bar=ROUGH, tail=f"{truth:.2f}, {np.mean(widths):.2f}")


ROUGH = 0.9
"""The bar of percentile intervals from a bootstrap."""


def judged(
    rng: np.random.Generator, truth: Array, ties: float = 0.1, sensitivity: float = 0.9, specificity: float = 0.8
) -> Array:
    chance = np.where(
        truth == 1, sensitivity, np.where(truth == 0, 1 - specificity, (1 + sensitivity - specificity) / 2)
    )
    return np.where(rng.random(truth.size) < ties, 0.5, rng.random(truth.size) < chance)
