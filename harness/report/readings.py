"""The words for a result, and the tests that each needs. Every table and sentence takes its words from here.

    beats         the adjusted p is at most 1 - level, and the interval over queries excludes one half
    ahead of      the interval alone
    –             neither: not distinguishable, which is not a proof of equality

Likewise "loses to" and "behind". What is said of new principles needs an interval over principles as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from harness.report.words import NONE, Results, Row, counted, rows_of

UNCLEAR = "–"
NO_SCORE = "no score"
UNLIKE = "unlike"
"""Of two runs whose verdicts do not mean the same."""


class Words(NamedTuple):
    """Marks for a table, by the side on which an interval lies and whether the adjusted test agrees."""

    above: str
    above_alone: str
    below_alone: str
    below: str


WIN_RATE = Words("beats", "ahead*", "behind*", "loses to")
GAP = Words("learned higher", "learned higher*", "held-out higher*", "held-out higher")
RUNS = Words("A higher", "A higher*", "B higher*", "B higher")
GOOD = {WIN_RATE.above, GAP.above, RUNS.above}
BAD = {WIN_RATE.below, GAP.below, RUNS.below}
SENTENCE = {
    WIN_RATE.above: "beats",
    WIN_RATE.above_alone: "is ahead of",
    UNCLEAR: "is not distinguishable from",
    WIN_RATE.below_alone: "is behind",
    WIN_RATE.below: "loses to",
    NO_SCORE: "has no score against",
}


def side(low: float | None, high: float | None, nothing: float = 0.5) -> int:
    """1 where an interval lies above the value that means "no difference", -1 below it, 0 where it holds it or is missing."""
    if low is None or high is None:
        return 0
    return int(low > nothing) - int(high < nothing)


def reading(row: Row, level: float, words: Words = WIN_RATE, nothing: float = 0.5) -> str:
    """The mark of a row with `ci_low`, `ci_high` and `p_holm`; `level` is that of the interval."""
    low, high, p = row.get("ci_low"), row.get("ci_high"), row.get("p_holm")
    if low is None or high is None:
        return NO_SCORE
    tested = p is not None and p <= 1 - level + 1e-12
    above, below = (words.above, words.below) if tested else (words.above_alone, words.below_alone)
    return {1: above, -1: below, 0: UNCLEAR}[side(low, high, nothing)]


def level_of(results: Results) -> float:
    return float(results.get("level") or 0.95)


def family_size(results: Results, name: str, row: Row) -> int:
    """For how many rows the p value of `row` is adjusted; older results have one family for each judge and principle set."""
    if row.get("n_family"):
        return int(row["n_family"])
    same = ("judge", "principle_set")
    return sum(
        other.get("p_value") is not None and all(other.get(key) == row.get(key) for key in same)
        for other in rows_of(results, name)
    )


def not_adjusted(results: Results, name: str, row: Row) -> str:
    return f"not after adjustment for {counted(family_size(results, name, row), 'row')}"


def new_principles(row: Row) -> int:
    """What a row says of principles like its own: 1 above one half, -1 below, 0 nothing."""
    found = row.get("principles_ci") or {}
    return side(found.get("low"), found.get("high"))


def legend(marks: Iterable[str], sizes: Sequence[int] = ()) -> list[str]:
    """What the marks that occur mean; `sizes`: rows in the families of those with a star."""
    there = set(marks)
    said = [f"{NONE} not distinguishable"] if UNCLEAR in there else []
    if any(mark.endswith("*") for mark in there):
        many = "/".join(map(str, sorted(set(sizes))))
        said.append(f"* not after adjustment{f' for {many} rows' if many else ''}")
    return said
