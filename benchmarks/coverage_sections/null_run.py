"""How often does a report of nothing say "beats"? Runs that compare a model with copies of itself."""

from __future__ import annotations

import itertools
import math

import numpy as np

from coverage_sections._cells import cell
from harness.stats import cluster_means, holm, sign_flip_p, win_rate

MARGIN = 0.742
"""Two responses whose qualities (standard normal) differ by less tie: 40% of pairs."""


def null_run(simulations: int) -> None:
    """n queries of two tasks together, two principles of each split a query.

    "beats": Holm's p over all pooled rows of at most .05, and an interval that excludes one half, on either side.
    """
    runs = max(200, simulations // 2)
    print(f"  n     comparisons  says so   bar    by the interval alone ({runs} runs)")
    rng = np.random.default_rng(12)
    for n, comparisons in itertools.product((18, 36, 120, 250), (2, 6)):
        found = [sentences(rng, n, comparisons) for _ in range(runs)]
        beats, ahead = np.mean(found, axis=0)
        bar = 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)
        cell(f"{n:<5} {comparisons:<11}", beats, bar=bar, at_most=True, tail=f"{ahead:.1%}")


def sentences(rng: np.random.Generator, n: int, comparisons: int) -> tuple[bool, bool]:
    """Whether a run of `n` queries says "beats" anywhere, and whether any interval excludes one half."""
    p_values, clear = [], []
    queries = np.repeat(np.arange(n), 2)  # two principles a query
    for _ in ("learned", "held-out"):
        test = rng.normal(0, 1, queries.size)
        for _ in range(comparisons):
            ahead = test - rng.normal(0, 1, queries.size)
            s = np.where(np.abs(ahead) < MARGIN, 0.5, ahead > 0)
            means = cluster_means(s, queries).means
            rate = win_rate(means)
            p_values.append(sign_flip_p(means, 1 - means))
            clear.append(rate.low > 0.5 or rate.high < 0.5)
    return bool((np.array(clear) & (holm(p_values) <= 0.05)).any()), any(clear)
