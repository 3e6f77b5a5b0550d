"""The plan's arithmetic: the figures of the design, statsmodels' power, and the round trip."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t
from statsmodels.stats.power import normal_power

from harness.stats import (
    expected_half_width,
    minimum_detectable_effect,
    principles_floor,
    principles_half_width,
    principles_interval,
    required_n,
    score_sd,
    win_rate,
)
from harness.stats.winrate import interval


def test_the_designs_figures() -> None:
    assert minimum_detectable_effect(0.5, 250) == pytest.approx(0.0886, abs=5e-5)
    assert minimum_detectable_effect(1, 1) == pytest.approx(2.8016, abs=5e-5)
    assert required_n(0.5, 0.05) == 785


@pytest.mark.parametrize(("sd", "n", "level", "power"), [(0.5, 250, 0.95, 0.8), (0.3, 60, 0.99, 0.9)])
def test_the_effect_has_the_power_asked_for(sd: float, n: int, level: float, power: float) -> None:
    effect = minimum_detectable_effect(sd, n, level, power)
    assert normal_power(effect / sd, n, 1 - level) == pytest.approx(power, abs=1e-4)


@given(st.floats(0.01, 1), st.integers(1, 100_000))
def test_required_n_inverts_the_effect(sd: float, n: int) -> None:
    assert required_n(sd, minimum_detectable_effect(sd, n)) == n


def test_scores_that_never_vary_need_one_query() -> None:
    assert required_n(0, 0.05) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0.5, 0), "at least one query"),
        ((-0.1, 10), "standard deviation"),
        ((math.nan, 10), "standard deviation"),
        ((0.5, 10, 95), "confidence level"),
        ((0.5, 10, 0.95, 1), "Power"),
    ],
)
def test_impossible_plans_are_refused(arguments: tuple[float, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        minimum_detectable_effect(*arguments)


@pytest.mark.parametrize("effect", [0, -0.1, math.nan])
def test_an_effect_that_is_not_positive_is_refused(effect: float) -> None:
    with pytest.raises(ValueError, match="effect"):
        required_n(0.5, effect)


# --- Widths to expect -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(125, 0, 125), (75, 100, 75), (3, 1, 2), (190, 40, 20)])
def test_the_sd_and_the_width_are_those_of_such_scores(counts: tuple[int, int, int]) -> None:
    scores = np.repeat([1.0, 0.5, 0.0], counts)
    n, p, tie_rate = scores.size, float(scores.mean()), counts[1] / scores.size
    assert score_sd(p, tie_rate) == pytest.approx(scores.std())
    found = win_rate(scores, 0.9)
    assert expected_half_width(n, p, tie_rate, 0.9) == pytest.approx((found.high - found.low) / 2)


def test_ties_lower_the_effect_that_is_detectable() -> None:
    assert minimum_detectable_effect(score_sd(tie_rate=0.6), 250) == pytest.approx(0.0886 * math.sqrt(0.4), abs=5e-5)


def test_the_floor_of_few_principles() -> None:
    """t_4 = 2.776: sd 0.1 over 5 principles."""
    assert principles_floor(5, 0.1) == pytest.approx(t.ppf(0.975, 4) * 0.1 / math.sqrt(5))
    assert principles_floor(5, 0) == 0


def test_the_width_to_expect_is_what_the_report_has_on_average() -> None:
    """1,000 simulated runs of 120 queries on 8 principles whose win rates differ by a standard deviation of 0.12."""
    rng = np.random.default_rng(0)
    principles = (np.arange(120) % 8).tolist()
    variances = []
    for _ in range(1000):
        chance = np.clip(rng.normal(0.5, 0.12, 8), 0, 1)[principles]
        u = rng.random(120)
        scores = np.where(u < 0.6 * chance, 1.0, np.where(u < 0.6 * chance + 0.4, 0.5, 0.0))
        variances.append(principles_interval(scores, range(120), principles).se ** 2)
    sd = 0.6 * 0.12  # 40% ties leave the rest of a principle's effect
    planned = principles_half_width(120, 8, sd, tie_rate=0.4)
    low, high = interval(0.5, float(np.mean(variances)), 7, 0.95)
    assert planned == pytest.approx((high - low) / 2, rel=0.06)


@given(st.integers(6, 500), st.integers(5, 50), st.floats(0.01, 0.3))
def test_more_queries_end_at_the_floor_and_more_principles_do_not(n: int, g: int, sd: float) -> None:
    now = principles_half_width(n, g, sd)
    assert principles_half_width(2 * n, g, sd) < now
    assert principles_half_width(n, 2 * g, sd) < now
    endless = principles_half_width(10**9, g, sd)
    z = t.ppf(0.975, g - 1)  # Wilson's limits are nearer than the mean's own by this
    n_eff = 0.25 * g / sd**2
    assert endless == pytest.approx(principles_floor(g, sd) / math.sqrt(1 + z**2 / n_eff), rel=1e-3)


@pytest.mark.parametrize(
    ("function", "arguments", "sentence"),
    [
        (score_sd, (1.1,), "win rate"),
        (score_sd, (0.9, 0.3), "between 0 and 0.2"),
        (score_sd, (0.5, -0.1), "tie rate"),
        (expected_half_width, (0,), "at least one query"),
        (expected_half_width, (10, 0.5, 0, 95), "confidence level"),
        (principles_floor, (1, 0.1), "several"),
        (principles_floor, (5, -0.1), "standard deviation"),
        (principles_floor, (5, 0.1, 95), "confidence level"),
        (principles_half_width, (10, 5, math.nan), "standard deviation"),
    ],
)
def test_impossible_widths_are_refused(
    function: Callable[..., float], arguments: tuple[float, ...], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        function(*arguments)
