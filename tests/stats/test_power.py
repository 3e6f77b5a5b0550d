"""The plan's arithmetic: the figures of the design, statsmodels' power, and the round trip."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.power import normal_power

from harness.stats import minimum_detectable_effect, required_n


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
