"""What no interval may fail on: all wins, all ties, one query, NaN, nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

from coverage_sections._cells import Limits, limits, missed
from harness.stats import (
    UnusableScores,
    bradley_terry,
    gap,
    judge_agreement,
    length_glm,
    length_stratified,
    paired_difference,
    position_bias,
    post_stratified,
    ppi_mean,
    principles_interval,
    repeat_agreement,
    rogan_gladen,
    win_rate,
    win_rate_matrix,
)


def edges(_: int) -> None:
    """Each must be a finite interval that contains its estimate, or a refusal in words."""
    inputs = {
        "all wins": [1.0] * 60,
        "all losses": [0.0] * 60,
        "all ties": [0.5] * 60,
        "one query": [1.0],
        "NaN": [1.0, math.nan] * 30,
        "nothing": [],
    }
    for (name, interval), (what, given) in itertools.product(INTERVALS.items(), inputs.items()):
        try:
            results = list(interval(given))
        except UnusableScores as error:
            said, fine = f"refused: {str(error)[:74]}", True
        else:
            fine = all(map(math.isfinite, itertools.chain(*results))) and all(low < high for low, high in results)
            said = ", ".join(f"{low:.4f} to {high:.4f}" for low, high in results) or "nothing to estimate"
        if not fine:
            missed.append(f"{name} on {what}")
        print(f"  {name:18} {what:11} {'' if fine else 'MISSED '}{said}")


def _position(s: list[float]) -> Iterator[Limits]:
    found = position_bias(s, s)
    yield limits(found.consistency)
    if found.share_first is not None:
        yield found.share_first_low, found.share_first_high


def _agreement(s: list[float]) -> Iterator[Limits]:
    found = judge_agreement(s, s)
    yield from (limits(r) for r in (found.accuracy, found.kappa, found.sensitivity, found.specificity) if r is not None)


def _board(resamples: int) -> Callable[[list[float]], Iterator[Limits]]:
    def found(s: list[float]) -> Iterator[Limits]:
        board = bradley_terry(["test"] * len(s), ["base"] * len(s), s, range(len(s)), base="base", resamples=resamples)
        yield from (limits(m) for m in board.models if m.name != "base")

    return found


def _matrix(s: list[float]) -> Iterator[Limits]:
    found = win_rate_matrix(["test"] * len(s), ["base"] * len(s), s, range(len(s)))
    yield found.lows[0][1], found.highs[0][1]


def _lengths(s: list[float]) -> tuple[range, list[int]]:
    return range(len(s)), [len(s) // 2] * len(s)


LABELS = [1.0] * 20 + [0.0] * 20
INTERVALS: dict[str, Callable[[list[float]], Any]] = {
    "win_rate": lambda s: [limits(win_rate(s))],
    "principles_interval": lambda s: [limits(principles_interval(s, range(len(s)), [k % 5 for k in range(len(s))]))],
    "paired_difference": lambda s: [limits(paired_difference(s, [0.5] * len(s)))],
    "gap": lambda s: [limits(gap(dict(enumerate(s)), dict.fromkeys(range(len(s)), 0.5)))],  # type: ignore[arg-type]
    "length_stratified": lambda s: [limits(length_stratified(s, *_lengths(s)))],
    "length_glm": lambda s: [limits(length_glm(s, *_lengths(s)))],
    "bradley_terry": _board(0),
    "... resampled": _board(200),
    "win_rate_matrix": _matrix,
    "judge_agreement": _agreement,
    "position_bias": _position,
    "repeat_agreement": lambda s: [limits(repeat_agreement(s, [k // 2 for k in range(len(s))]))],
    "rogan_gladen": lambda s: [limits(rogan_gladen(s, LABELS, LABELS))],
    "post_stratified": lambda s: [limits(post_stratified(s, LABELS, LABELS))],
    "ppi_mean": lambda s: [limits(ppi_mean(s, LABELS, LABELS))],
    "... of labels": lambda s: [limits(ppi_mean(LABELS, s, s))],
}
