"""Looks before the end: what each rule for stopping finds where there is nothing, what it saves, and whether its interval holds."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from coverage_sections._cells import Array, cell, drawn, scores
from harness.stats import StopRule, betting_interval, has_decided, sequential_rate, win_rate
from harness.stats.sequential import STAKES

LOOKS = (50, 100, 150, 200, 250)
PATHS = 2000
Stops = Callable[[int, int, int, int], bool]
"""(look, from 0; wins, ties, losses so far) -> whether the run stops there"""


def looks(simulations: int) -> None:
    """Planned looks to 250 queries; without a bar, what unplanned looks with the ordinary interval would do."""
    print("  rule                p    ties  off one half, bar; mean n")
    rule = StopRule(looks=LOOKS)
    planned: Stops = lru_cache(None)(lambda look, *counts: has_decided(rule.at(look + 1), scores(np.array(counts))))
    ordinary: Stops = lru_cache(None)(lambda _, *counts: _off_half(scores(np.array(counts))))
    for p, ties in ((0.5, 0.0), (0.5, 0.3), (0.5, 0.6)):
        found, n = _stopped(planned, LOOKS, p, ties, simulations)
        cell(f"O'Brien-Fleming     {p:<4} {ties:<4}", found, bar=0.055, at_most=True, tail=f"mean n {n:5.1f}")
    for p in (0.55, 0.6, 0.65, 0.7):
        found, n = _stopped(planned, LOOKS, p, 0, simulations)
        cell(f"O'Brien-Fleming     {p:<4} 0.0 ", found, bar=0.84, barred=p == 0.6, tail=f"mean n {n:5.1f}")
        if p == 0.6:
            cell("... mean n / 250    0.6  0.0 ", n / 250, bar=195 / 250, at_most=True)
    unplanned = {
        "limit raised once": (125, 250),
        "5 unplanned looks": LOOKS,
        "every 10 to 1,000": tuple(range(10, 1001, 10)),
    }
    for name, points in unplanned.items():
        found, n = _stopped(ordinary, points, 0.5, 0, simulations)
        cell(f"{name:19} 0.5  0.0 ", found, barred=False, tail=f"mean n {n:5.1f}")


def _off_half(values: Array) -> bool:
    rate = win_rate(values)
    return rate.low > 0.5 or rate.high < 0.5


def _counts(p: float, ties: float, n: int, paths: int, seed: int) -> Array:
    """Wins, ties and losses among the first 1 to n queries of each path, shape (3, paths, n)."""
    values = drawn(np.random.default_rng(seed), np.full((paths, n), p), ties)
    return np.array([(values == s).cumsum(1) for s in (1, 0.5, 0)])


def _stopped(stops: Stops, points: tuple[int, ...], p: float, ties: float, paths: int) -> tuple[float, float]:
    """Share of paths that a rule stops, and the mean number of queries."""
    counts = _counts(p, ties, points[-1], paths, 1)[:, :, np.array(points) - 1].tolist()
    found, ends = 0, 0
    for path in zip(*counts, strict=True):
        for look, seen in enumerate(zip(*path, strict=True)):
            if stops(look, *seen):
                found += 1
                break
        ends += points[look]
    return found / paths, ends / paths


def betting(_: int) -> None:
    """Whether the interval misses anywhere in the first 1,000 queries, on 2,000 paths; its half-width at 250."""
    print("  p     ties  ever misses in 1 to 1,000, bar; mean half-width at 250")
    bar = 0.05 + 2 * (0.05 * 0.95 / PATHS) ** 0.5
    cells = [(p, ties) for p in (0.5, 0.7, 0.95, 0.98) for ties in _possible(p, (0.0, 0.3, 0.6, 0.9))]
    for p, ties in cells:
        counts = _counts(p, ties, 1000, PATHS, 2)
        missed = _fortune(counts, (1, 0.5, 0), p) | _fortune(counts, (0, 0.5, 1), 1 - p)
        at_250 = counts[:, :200, 249].T
        limits = [betting_interval(scores(row)) for row in at_250]
        for (low, high), out in zip(limits, missed[:200, 249], strict=True):
            if (not low <= p <= high) != out:
                raise AssertionError(f"the interval and the fortunes at p = {p} do not agree")
        width = float(np.mean([high - low for low, high in limits])) / 2
        cell(f"{p:<5} {ties:<4}           ", float(missed.any(1).mean()), bar=bar, at_most=True)
        cell(f"{p:<5} {ties:<4} half-width", width, bar=0.1, at_most=True)


def _possible(p: float, ties: tuple[float, ...]) -> list[float]:
    """Tie rates that a mean of `p` leaves room for, each once."""
    return list(dict.fromkeys(round(min(rate, 2 * min(p, 1 - p)), 2) for rate in ties))


def _fortune(counts: Array, values: tuple[float, ...], mean: float) -> Array:
    """Whether the mean fortune of the gamblers against `mean` has reached 40, for each path and n: (paths, n)."""
    logs = [
        sum(count * np.log1p(stake * (value / mean - 1)) for count, value in zip(counts, values, strict=True))
        for stake in STAKES
    ]
    return np.asarray(np.logaddexp.reduce(logs) - np.log(len(STAKES)) >= np.log(2 / 0.05))


def anytime(simulations: int) -> None:
    """What the betting rule saves of 250 queries, with a decision after each of them from the 10th on."""
    print("  p           off one half; mean n")
    rule = StopRule(anytime=True)
    stops: Stops = lru_cache(None)(lambda _, *counts: has_decided(rule, scores(np.array(counts))))
    for p in (0.5, 0.55, 0.6, 0.65, 0.7):
        found, n = _stopped(stops, tuple(range(10, 251)), p, 0, min(simulations, 1000))
        cell(f"{p:<10}", found, bar=0.055, at_most=True, barred=p == 0.5, tail=f"mean n {n:5.1f}")


def half_width(simulations: int) -> None:
    """The ordinary interval where the run stops at a half-width of 5 points, after every query from the 30th on."""
    print("  p     ties  covers, bar; mean n of 400")
    rule = StopRule(half_width=0.05)
    stops: Stops = lru_cache(None)(lambda _, *counts: has_decided(rule, scores(np.array(counts))))
    limits = lru_cache(None)(lambda *counts: sequential_rate(rule, scores(np.array(counts))))
    cells = [(p, ties) for p in (0.5, 0.65, 0.8) for ties in _possible(p, (0.0, 0.3, 0.6, 0.9))]
    for p, ties in cells:
        paths = min(simulations, 2000)
        counts = _counts(p, ties, 400, paths, 3)
        covered, ends = 0, 0
        for path in range(paths):
            seen = counts[:, path].T.tolist()
            n = next((n for n in range(30, 400) if stops(0, *seen[n - 1])), 400)
            found = limits(*seen[n - 1])
            covered, ends = covered + (found.low <= p <= found.high), ends + n
        cell(f"{p:<5} {ties:<4}", covered / paths, tail=f"mean n {ends / paths:5.1f}")
