"""Intervals of what unseen queries show."""

from __future__ import annotations

import math

import pytest
from scipy.stats import binomtest, t

from sami_train.evaluation import mean_interval, share_interval


def test_the_interval_of_a_mean_is_students() -> None:
    values = [0.2, 0.9, 0.4, 0.7, 0.1]
    low, high = mean_interval(values)
    mean = sum(values) / 5
    sd = math.sqrt(sum((v - mean) ** 2 for v in values) / 4)
    assert (low, high) == pytest.approx(t.interval(0.95, 4, loc=mean, scale=sd / math.sqrt(5)))
    assert share_interval(values) == pytest.approx([max(0.0, low), min(1.0, high)])
    assert share_interval([0.0, 0.0, 1.0])[0] == 0.0


@pytest.mark.parametrize("n", [2, 8, 30])
def test_equal_shares_leave_room_for_others(n: int) -> None:
    """For ones alone and zeros alone it is the exact interval of a proportion."""
    exact = binomtest(n, n).proportion_ci(0.95, method="exact")
    assert share_interval([1.0] * n) == pytest.approx([exact.low, exact.high])
    none = binomtest(0, n).proportion_ci(0.95, method="exact")
    assert share_interval([0.0] * n) == pytest.approx([none.low, none.high])
    low, high = share_interval([0.5] * n)
    assert 0 < low < 0.5 < high < 1
    assert high - low == pytest.approx(1 - 0.025 ** (1 / n))
