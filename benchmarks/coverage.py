"""How often do the harness's 95% intervals cover the truth? Run: python benchmarks/coverage.py (a minute or two).

Not simulated: every outcome that n queries can give (wins and ties, or wins of a only and of b only) is weighted by
its multinomial probability; for pairs, outcomes rarer than 1 in 10 million are left out. The bar is 93.5% for p in
{.5, .65, .77, .95}, tie rate in {0, .1} and n in {50, 250}; rows marked "-" lie beyond it and show the limits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import multinomial

from harness.stats import paired_difference, win_rate

BAR = 0.935
RATES = (0.5, 0.65, 0.77, 0.95)
LEAST = 1e-7


def main() -> None:
    print("win_rate, exact\n  n    ties  p     coverage  bar")
    for n in (5, 20, 50, 250):
        table = np.array([(w, t, n - w - t) for w in range(n + 1) for t in range(n + 1 - w)])
        results = [win_rate(scores(counts)) for counts in table]
        low, high = np.array([(r.low, r.high) for r in results]).T
        for tie_rate, p in [(t, p) for t in (0.0, 0.1) for p in RATES] + [(0.9, 0.5), (0.9, 0.55)]:
            chances = np.round([p - tie_rate / 2, tie_rate, 1 - p - tie_rate / 2], 12)
            covered = float(multinomial.pmf(table, n, chances)[(low <= p) & (p <= high)].sum())
            barred = n in (50, 250) and tie_rate <= 0.1
            print(f"  {n:<4} {tie_rate:<5} {p:<5} {covered:8.2%}  {verdict(covered) if barred else '-'}")

    print("\npaired_difference, 0/1 scores, exact\n  n    a only  b only  coverage  mean width  bar")
    for n in (10, 20, 30, 50, 250):
        table = np.array([(a, n - a - b, b) for a in range(n + 1) for b in range(n + 1 - a)])
        for only_a, only_b in [(0.2, 0.2), (0.3, 0.1), (0.1, 0.02), (0.1, 0.0), (0.05, 0.0)]:
            weights = multinomial.pmf(table, n, np.round([only_a, 1 - only_a - only_b, only_b], 12))
            likely = weights > LEAST
            results = [
                paired_difference(
                    np.repeat([1.0, 0.0, 0.0], counts), np.repeat([0.0, 0.0, 1.0], counts), resamples=1999, seed=seed
                )
                for seed, counts in enumerate(table[likely])  # one seed for all would bias every row the same way
            ]
            low, high = np.array([(r.low, r.high) for r in results]).T
            truth, weights = only_a - only_b, weights[likely] / weights[likely].sum()
            covered = float(weights[(low <= truth + 1e-9) & (truth - 1e-9 <= high)].sum())
            print(
                f"  {n:<4} {only_a:<7} {only_b:<7} {covered:8.2%}  {weights @ (high - low):10.3f}  "
                f"{verdict(covered) if n in (50, 250) else '-'}"
            )


def scores(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """`counts` of wins, ties and losses as one score per query."""
    return np.repeat([1.0, 0.5, 0.0], counts)


def verdict(covered: float) -> str:
    return "met" if covered >= BAR else "MISSED"


if __name__ == "__main__":
    main()
