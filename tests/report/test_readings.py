"""Which word needs which test."""

from __future__ import annotations

from typing import Any

import pytest

from harness.report.readings import GAP, RUNS, family_size, legend, new_principles, reading

ABOVE, BELOW, AROUND = (0.501, 0.7), (0.3, 0.499), (0.45, 0.6)


@pytest.mark.parametrize(
    ("interval", "p_holm", "expected"),
    [
        (ABOVE, 0.05, "beats"),
        (ABOVE, 0.0501, "ahead*"),
        (ABOVE, None, "ahead*"),
        (BELOW, 0.05, "loses to"),
        (BELOW, 0.0501, "behind*"),
        (AROUND, 0.001, "–"),
        ((0.5, 0.7), 0.001, "–"),
        ((0.3, 0.5), 0.001, "–"),
        ((None, None), None, "no score"),
    ],
)
def test_a_win_needs_the_interval_and_the_adjusted_p(
    interval: tuple[float | None, float | None], p_holm: float | None, expected: str
) -> None:
    row = {"ci_low": interval[0], "ci_high": interval[1], "p_holm": p_holm}
    assert reading(row, 0.95) == expected


def test_the_level_decides_how_small_p_must_be() -> None:
    row = {"ci_low": 0.51, "ci_high": 0.6, "p_holm": 0.08}
    assert (reading(row, 0.9), reading(row, 0.95)) == ("beats", "ahead*")


def test_differences_are_read_against_zero_by_the_same_rule() -> None:
    row = {"ci_low": 0.01, "ci_high": 0.2, "p_holm": 0.01}
    assert (reading(row, 0.95, GAP, 0), reading(row | {"p_holm": 0.2}, 0.95, GAP, 0)) == (
        "learned higher",
        "learned higher*",
    )
    row = {"ci_low": -0.2, "ci_high": -0.01, "p_holm": 0.01}
    assert (reading(row, 0.95, RUNS, 0), reading(row | {"p_holm": 0.2}, 0.95, RUNS, 0)) == ("B higher", "B higher*")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"low": 0.51, "high": 0.9}, 1),
        ({"low": 0.1, "high": 0.49}, -1),
        ({"low": 0.5, "high": 0.9}, 0),
        ({"low": None, "high": None, "note": "few"}, 0),
        (None, 0),
    ],
)
def test_new_principles_need_their_own_interval(found: dict[str, Any] | None, expected: int) -> None:
    assert new_principles({"principles_ci": found}) == expected


def test_the_size_of_the_family_is_said_or_counted() -> None:
    rows = [{"judge": judge, "principle_set": "s", "p_value": p} for judge in ("x", "y") for p in (0.1, 0.2, None)]
    assert family_size({"comparisons": rows}, "comparisons", rows[0]) == 2
    assert family_size({"comparisons": rows}, "comparisons", rows[0] | {"n_family": 7}) == 7


def test_the_legend_has_what_occurs() -> None:
    assert legend(["beats", "loses to"]) == []
    assert legend(["–", "ahead*"], [4, 8, 4]) == ["– not distinguishable", "* not after adjustment for 4/8 rows"]
