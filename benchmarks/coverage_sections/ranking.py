"""Strengths and ranks of leaderboards."""

from __future__ import annotations

import itertools

import numpy as np
from scipy.special import expit, logit

from coverage_sections._cells import RATES, TIES, cell, drawn, holds
from harness.stats import bradley_terry


def leaderboard(simulations: int) -> None:
    """Four models against one base with the win rates of the grid, correlated by the query's ease where ties are 0."""
    print("  n    ties  p     coverage  bar    of its rank: Bonferroni, bootstrap")
    rng = np.random.default_rng(5)
    names = [f"model {p}" for p in RATES]
    for n, tie_rate in itertools.product((50, 250), TIES):
        ease = 0.0 if tie_rate else 0.8
        shared = rng.normal(0, ease, 400_000) if ease else np.zeros(1)
        truth = {name: float(expit(logit(p) + shared).mean()) for name, p in zip(names, RATES, strict=True)}
        true_rank = {name: len(RATES) - k for k, name in enumerate(names)}  # the weakest is the base's equal
        found: dict[str, list[tuple[bool, bool, bool | None]]] = {name: [] for name in names}
        for run in range(simulations):
            s = np.concatenate(
                [drawn(rng, expit(logit(p) + q), tie_rate) for q in [rng.normal(0, ease, n)] for p in RATES]
            )
            rows = np.repeat(names, n), np.full(s.size, "base"), s, np.tile(np.arange(n), len(RATES))
            boards = [bradley_terry(*rows, base="base")]
            if run % 20 == 0:
                boards.append(bradley_terry(*rows, base="base", resamples=500, seed=run))
            for lines in zip(*(sorted(b.models, key=lambda m: m.name) for b in boards), strict=True):
                name = lines[0].name
                if name in truth:
                    ranks = [m.rank_low <= true_rank[name] <= m.rank_high for m in lines]
                    covered = holds(lines[0], float(logit(truth[name])))
                    found[name].append((covered, ranks[0], ranks[1] if len(ranks) > 1 else None))
        for p, name in zip(RATES, names, strict=True):
            covered, one, two = zip(*found[name], strict=True)
            resampled = [hit for hit in two if hit is not None]
            cell(
                f"{n:<4} {tie_rate:<5} {p:<5}",
                float(np.mean(covered)),
                tail=f"{np.mean(one):.1%}, {np.mean(resampled):.1%}",
            )
