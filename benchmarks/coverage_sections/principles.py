"""Principles as a sample: coverage for principles that were not evaluated."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from scipy.special import expit, logit

from coverage_sections._cells import Array, cell, drawn, holds
from harness.stats import (
    cluster_means,
    paired_difference,
    principles_difference,
    principles_interval,
    welch_gap,
    win_rate,
)

BAR = 0.93
NESTED, CROSSED = "nested", "crossed"
EASE = 0.5
"""Standard deviation of the queries' effect on the logit, where queries are crossed with principles."""

CELLS = list(itertools.product((5, 10, 20), (0.0, 0.5, 1.0), (NESTED, CROSSED), (0.0, 0.6)))
"""Principles, standard deviation of their effect on the logit, design, ties"""


def interval(simulations: int) -> None:
    """150 queries with one principle each, or 40 with every principle. No bar at .95, with 250: principles' means are skewed."""
    print("  p     G   sd   design   ties  coverage  bar    of the interval over queries; mean widths")
    rng = np.random.default_rng(9)
    for p, (g, sd, design, tie_rate) in itertools.product((0.5, 0.77, 0.95), CELLS):
        truth = marginal(rng, p, np.hypot(sd, EASE * (design == CROSSED)))
        found = []
        for _ in range(simulations if p < 0.95 else simulations // 4):
            queries, principles = layout(g, design, 40 if p < 0.95 else 250)
            s = drawn(rng, expit(logit(p) + effects(rng, queries, principles, g, sd, design)), tie_rate)
            ours, over = principles_interval(s, queries, principles.tolist()), win_rate(cluster_means(s, queries).means)
            found.append((holds(ours, truth), holds(over, truth), ours.high - ours.low, over.high - over.low))
        share, over_queries, width, narrow = np.mean(found, axis=0)
        head = f"{p:<5} {g:<3} {sd:<4} {design:8} {tie_rate:<5}"
        cell(head, share, bar=BAR, barred=p < 0.95, tail=f"{over_queries:.1%}; {width:.3f}, {narrow:.3f}")


def constitutions(simulations: int) -> None:
    """150 queries with a constitution of two or three principles each, whose effects average; beside it, copies of the rows."""
    print("  G   size  sd   ties  coverage  bar    of copied rows; of the interval over queries")
    rng = np.random.default_rng(13)
    for g, size, sd, tie_rate in itertools.product((5, 10), (2, 3), (0.0, 0.5, 1.0), (0.0, 0.6)):
        truth = marginal(rng, 0.6, sd / np.sqrt(size))
        found = []
        for _ in range(simulations // 4):
            held = np.argsort(rng.random((150, g)), axis=1)[:, :size]
            s = drawn(rng, expit(logit(0.6) + rng.normal(0, sd, g)[held].mean(axis=1)), tie_rate)
            ours = principles_interval(s, range(150), [tuple(row) for row in held.tolist()])
            copied = principles_interval(np.repeat(s, size), np.repeat(np.arange(150), size), held.ravel().tolist())
            found.append([holds(result, truth) for result in (ours, copied, win_rate(s))])
        share, copies, over_queries = np.mean(found, axis=0)
        cell(f"{g:<3} {size:<5} {sd:<4} {tie_rate:<5}", share, bar=BAR, tail=f"{copies:.1%}; {over_queries:.1%}")


def gap(simulations: int) -> None:
    """Learned .77, held-out .5, on the same queries."""
    print("  G learned, held-out  sd   design   ties  coverage  bar    of the paired interval over queries")
    rng = np.random.default_rng(10)
    for sizes, sd, design, tie_rate in itertools.product(
        ((5, 5), (10, 5), (20, 20)), (0.0, 0.5, 1.0), (NESTED, CROSSED), (0.0, 0.6)
    ):
        spread = np.hypot(sd, EASE * (design == CROSSED))
        truth = marginal(rng, 0.77, spread) - marginal(rng, 0.5, spread)
        found = []
        for _ in range(simulations // 2):
            sides, means = [], []
            for s, queries, principles in two_splits(rng, sizes, sd, design, tie_rate):
                sides.append(principles_interval(s, queries, principles.tolist()))
                means.append(cluster_means(s, queries).means)
            found.append((holds(welch_gap(*sides), truth), holds(paired_difference(*means), truth)))
        share, over_queries = np.mean(found, axis=0)
        head = f"{sizes!s:20} {sd:<4} {design:8} {tie_rate:<5}"
        cell(head, share, bar=BAR, tail=f"{over_queries:.1%}")


def two_splits(
    rng: np.random.Generator, sizes: tuple[int, int], sd: float, design: str, tie_rate: float
) -> Iterator[tuple[Array, Array, Array]]:
    """Scores, queries and principles, learned and then held-out; the queries' effects are the same."""
    ease = rng.normal(0, EASE, 150)
    for g, p in zip(sizes, (0.77, 0.5), strict=True):
        queries, principles = layout(g, design)
        effect = rng.normal(0, sd, g)[principles] + (ease[queries] if design == CROSSED else 0)
        yield drawn(rng, expit(logit(p) + effect), tie_rate), queries, principles


def difference_of_differences(simulations: int) -> None:
    """Steerability of a trained model minus its base's, learned minus held-out: training moves a principle's logit by .8 or .2
    with standard deviation sd, and principles differ in difficulty by 1."""
    print("  G   sd   design   ties  coverage  bar    one side's difference")
    rng = np.random.default_rng(11)
    for g, sd, design, tie_rate in CELLS:
        shifts, ease = (0.8, 0.2), EASE * (design == CROSSED)
        truths = [moved(rng, shift, sd, ease) for shift in shifts]
        found = []
        for _ in range(simulations // 2):
            sides = []
            for shift in shifts:
                queries, principles = layout(g, design)
                base = effects(rng, queries, principles, g, 1.0, design)
                trained = base + rng.normal(shift, sd, g)[principles]
                a, b = (drawn(rng, expit(logits), tie_rate) for logits in (trained, base))
                sides.append(principles_difference(a, b, queries, principles.tolist()))
            found.append((holds(welch_gap(*sides), truths[0] - truths[1]), holds(sides[0], truths[0])))
        share, one = np.mean(found, axis=0)
        cell(f"{g:<3} {sd:<4} {design:8} {tie_rate:<5}", share, bar=BAR)
        cell(f"{g:<3} {sd:<4} {design:8} {tie_rate:<5}", one, bar=BAR, tail="one side")


def layout(g: int, design: str, crossed: int = 40) -> tuple[Array, Array]:
    """The query and the principle of each row."""
    if design == NESTED:
        return np.arange(150), np.arange(150) % g
    return np.repeat(np.arange(crossed), g), np.tile(np.arange(g), crossed)


def effects(rng: np.random.Generator, queries: Array, principles: Array, g: int, sd: float, design: str) -> Array:
    """Effects of principles and, where they are crossed, of queries, for each row."""
    ease = rng.normal(0, EASE, queries.max() + 1)[queries] if design == CROSSED else 0
    return rng.normal(0, sd, g)[principles] + ease


def marginal(rng: np.random.Generator, p: float, spread: float) -> float:
    """The mean win rate over all principles and queries."""
    return float(expit(logit(p) + rng.normal(0, spread, 1_000_000)).mean())


def moved(rng: np.random.Generator, shift: float, sd: float, ease: float) -> float:
    base = rng.normal(0, np.hypot(1.0, ease), 1_000_000)
    return float((expit(base + rng.normal(shift, sd, base.size)) - expit(base)).mean())
