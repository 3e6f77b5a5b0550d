"""Looks before the end: critical values, repeated intervals and the betting interval, against slow and exact counterparts."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from harness.stats import (
    ANYTIME,
    StopRule,
    UnusableScores,
    betting_interval,
    betting_p,
    enough_width,
    has_decided,
    obrien_fleming,
    sequential_rate,
    sign_flip_p,
    win_rate,
)

LOOKS = (50, 100, 150, 200, 250)
TIED = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
SCORES = st.lists(TIED, min_size=1, max_size=40) | st.lists(st.floats(0, 1), min_size=1, max_size=40)


def scores(wins: int, ties: int, losses: int) -> list[float]:
    return [1.0] * wins + [0.5] * ties + [0.0] * losses


# --- Fixed looks


def test_five_equal_looks_have_o_brien_and_flemings_constants() -> None:
    assert [round(c, 3) for c in obrien_fleming(LOOKS)] == [4.562, 3.226, 2.634, 2.281, 2.040]
    assert obrien_fleming([10, 20, 30, 40, 50]) == pytest.approx(obrien_fleming(LOOKS))


def test_one_look_has_the_quantile_of_a_fixed_n() -> None:
    assert obrien_fleming([250]) == pytest.approx([1.959964])
    assert obrien_fleming([80], 0.9) == pytest.approx([1.644854])


@pytest.mark.parametrize("looks", [(100, 200), (30, 100, 250), (10, 20, 400), (10, 11, 12)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_all_looks_together_cross_with_the_chance_of_the_level(looks: tuple[int, ...], level: float) -> None:
    """The joint normal of the looks' z, integrated over the box by scipy."""
    critical = np.array(obrien_fleming(looks, level))
    share = np.array(looks) / looks[-1]
    covariance = np.sqrt(np.minimum.outer(share, share) / np.maximum.outer(share, share))
    inside = multivariate_normal(np.zeros(len(looks)), covariance).cdf(
        critical, lower_limit=-critical, rng=np.random.default_rng(0)
    )
    assert inside == pytest.approx(level, abs=2e-4)
    assert critical * np.sqrt(share) == pytest.approx(np.full(len(looks), critical[-1]))


def test_a_hundred_looks_cross_as_often_as_paths_do() -> None:
    looks = list(range(10, 1001, 10))
    critical = np.array(obrien_fleming(looks))
    steps = np.random.default_rng(0).normal(size=(20_000, len(looks)))
    z = steps.cumsum(1) / np.sqrt(np.arange(1, len(looks) + 1))
    assert (np.abs(z) > critical).any(1).mean() == pytest.approx(0.05, abs=0.005)


@pytest.mark.parametrize("looks", [[], [0, 10], [20, 10], [10, 10], list(range(1, 102))])
def test_looks_that_are_none_are_refused(looks: list[int]) -> None:
    with pytest.raises(UnusableScores, match="ascending numbers of queries"):
        obrien_fleming(looks)


def test_the_interval_at_a_look_is_the_ordinary_one_at_the_looks_critical_value() -> None:
    rule = StopRule(looks=LOOKS)
    for look, z in enumerate((4.561742, 3.225639, 2.633723, 2.280871, 2.040073), start=1):
        n = 50 * look
        found = sequential_rate(rule.at(look), scores(32 * look, 6 * look, 12 * look))
        ordinary = win_rate(scores(32 * look, 6 * look, 12 * look), math.erf(z / math.sqrt(2)))
        assert (found.low, found.high) == pytest.approx((ordinary.low, ordinary.high), abs=1e-5)
        assert f"look {look} of 5" in found.method
        assert n == ordinary.n


def test_the_p_value_at_a_look_agrees_with_its_interval() -> None:
    """Sign flips and Wilson's interval differ by a win or two at the edge, and nowhere else."""
    rule = StopRule(looks=LOOKS)
    for look in range(2, 6):
        n = 50 * look
        out = [sequential_rate(rule.at(look), scores(w, 0, n - w)) for w in range(n // 2, n + 1)]
        by_interval = next(i for i, found in enumerate(out) if found.low > 0.5)
        by_p = next(i for i, found in enumerate(out) if found.p_value <= 0.05)
        assert abs(by_interval - by_p) <= 2
        assert [found.p_value for found in out] == sorted((found.p_value for found in out), reverse=True)
    single = StopRule(looks=(60,)).at(1)
    assert sequential_rate(single, scores(40, 0, 20)).p_value == pytest.approx(
        sign_flip_p(scores(40, 0, 20), [0.5] * 60), rel=1e-6
    )


def test_a_look_that_the_rule_lacks_is_refused() -> None:
    for look in (0, 6):
        with pytest.raises(ValueError, match="no look"):
            sequential_rate(StopRule(looks=LOOKS).at(look), [1.0])


# --- Any time


def naive_lower(values: list[float], level: float) -> float:
    """The least m of a fine grid at which the mean over stakes of the product is below 2 / (1 - level)."""
    stakes = np.geomspace(0.05, 0.95, 16)
    for m in np.linspace(1e-4, 1, 10_000):
        fortunes = [math.prod(1 + u * (s / m - 1) for s in values) for u in stakes]
        if np.mean(fortunes) < 2 / (1 - level):
            return float(m)
    return 1.0


@pytest.mark.parametrize(
    "values", [scores(9, 2, 4), scores(1, 0, 0), scores(30, 5, 1), [0.1, 0.9, 0.4], scores(2, 30, 2)]
)
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_betting_interval_is_its_definition(values: list[float], level: float) -> None:
    low, high = betting_interval(values, level)
    assert low == pytest.approx(naive_lower(values, level), abs=1.5e-4)
    assert 1 - high == pytest.approx(naive_lower([1 - s for s in values], level), abs=1.5e-4)


@settings(deadline=None, max_examples=60)
@given(SCORES, st.sampled_from([0.8, 0.95, 0.99]))
def test_the_betting_interval_contains_the_mean_whatever_the_order_and_is_mirrored(
    values: list[float], level: float
) -> None:
    low, high = betting_interval(values, level)
    mean = float(np.mean(values))
    assert 0 <= low <= mean + 1e-9
    assert mean - 1e-9 <= high <= 1
    assert betting_interval(values[::-1], level) == pytest.approx((low, high), abs=1e-9)
    assert betting_interval([1 - s for s in values], level) == pytest.approx((1 - high, 1 - low), abs=1e-9)


@pytest.mark.parametrize("p", [0.3, 0.5, 0.9])
def test_the_betting_interval_misses_ever_at_most_as_often_as_promised(p: float) -> None:
    """Every path of 12 wins and losses, with its probability; a level of one half, so that there is something to miss."""
    known: dict[tuple[int, int], bool] = {}

    def misses(n: int, wins: int) -> bool:
        if (n, wins) not in known:
            low, high = betting_interval(scores(wins, 0, n - wins), 0.5)
            known[n, wins] = not low <= p <= high
        return known[n, wins]

    ever = 0.0
    for path in itertools.product((0, 1), repeat=12):
        wins = np.cumsum(path)
        if any(misses(n, int(w)) for n, w in enumerate(wins, start=1)):
            ever += p ** wins[-1] * (1 - p) ** (12 - wins[-1])
    assert 0 < ever <= 0.5


@settings(deadline=None, max_examples=60)
@given(SCORES)
def test_the_betting_p_is_the_level_at_which_one_half_is_left_out(values: list[float]) -> None:
    p = betting_p(values)
    assert 0 < p <= 1
    if 1e-12 < p < 0.99:
        for level, out in ((1 - 1.01 * p, True), (1 - 0.99 * p, False)):
            if 0 < level < 1:
                low, high = betting_interval(values, level)
                assert (low > 0.5 or high < 0.5) == out


# --- Rules


@pytest.mark.parametrize("rule", [None, StopRule(half_width=0.05)])
def test_where_n_does_not_depend_on_the_side_the_interval_is_the_ordinary_one(rule: StopRule | None) -> None:
    values = scores(30, 10, 20)
    found, ordinary = sequential_rate(rule, values, 0.9), win_rate(values, 0.9)
    assert (found.low, found.high, found.method) == (ordinary.low, ordinary.high, ordinary.method)
    assert found.p_value == sign_flip_p(values, [0.5] * 60)


def test_a_rule_decides_by_its_own_interval() -> None:
    strong, weak = scores(45, 0, 5), scores(30, 0, 20)
    assert has_decided(ANYTIME, strong)
    assert not has_decided(ANYTIME, weak)
    assert has_decided(StopRule(looks=LOOKS).at(1), strong)
    assert not has_decided(StopRule(looks=LOOKS).at(1), scores(36, 0, 14)), "p = 0.003, and too early"
    assert has_decided(StopRule(looks=LOOKS).at(5), scores(36, 0, 14))
    assert not has_decided(StopRule(half_width=0.05), strong), "far off one half, and wide"


def test_the_width_rule_waits_for_its_least_n() -> None:
    ties = [0.5] * 29
    assert (win_rate(ties).high - win_rate(ties).low) / 2 < 0.05
    assert not enough_width(ties, 0.05)
    assert enough_width([0.5] * 30, 0.05)
    assert not enough_width([0.5] * 30, 0.001)


@pytest.mark.parametrize(
    ("rule", "total", "expected"),
    [
        (StopRule(looks=(2, 5)), 9, (2, 5)),
        (ANYTIME, 10, (10,)),
        (ANYTIME, 60, (25, 50, 60)),
        (StopRule(half_width=0.1), 60, (30, 55, 60)),
        (StopRule(half_width=0.1, at_least=8), 8, (8,)),
    ],
)
def test_when_a_run_decides(rule: StopRule, total: int, expected: tuple[int, ...]) -> None:
    assert rule.schedule(total) == expected


def test_decisions_get_rarer_and_end_with_the_last_query() -> None:
    points = ANYTIME.schedule(5000)
    assert points[-1] == 5000
    assert len(points) < 60
    assert min(b - a for a, b in itertools.pairwise(points[:-1])) == 25


def test_a_look_beyond_the_end_is_refused() -> None:
    with pytest.raises(UnusableScores, match="last look is at 250 queries and there are 144"):
        StopRule(looks=LOOKS).schedule(144)


@pytest.mark.parametrize("fields", [{}, {"half_width": 0.1, "anytime": True}, {"looks": (1, 2), "anytime": True}])
def test_a_rule_is_one_of_three(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="one of half_width, looks and anytime"):
        StopRule(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [[], [math.nan], [1.5], [[0.5]]])
def test_what_is_no_score_is_refused_in_words(values: list[float]) -> None:
    for ask in (betting_interval, betting_p, lambda v: sequential_rate(ANYTIME, v), lambda v: enough_width(v, 0.1)):
        with pytest.raises(UnusableScores, match="needs"):
            ask(values)
