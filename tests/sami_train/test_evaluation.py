"""Intervals of what unseen queries show."""

from __future__ import annotations

import math

import pytest
from scipy.stats import binomtest, t, ttest_rel

from sami_train.evaluation import loss_change, mean_interval, share_interval


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


def test_a_change_of_the_loss_is_paired_by_query() -> None:
    """Queries differ by far more than training moves them: their own intervals overlap, and that of the change does not reach 0."""
    before = [0.2, 0.9, 0.4, 0.7, 0.1, 0.6]
    after = [b - d for b, d in zip(before, [0.02, 0.03, 0.01, 0.02, 0.04, 0.03], strict=True)]
    found = loss_change({"losses": before}, {"losses": after})
    paired = ttest_rel(after, before).confidence_interval(0.95)
    assert found["loss_change"] == pytest.approx(-0.025)
    assert found["loss_change_ci"] == pytest.approx([paired.low, paired.high])
    assert found["loss_change_ci"][1] < 0
    assert mean_interval(after)[1] > mean_interval(before)[0]


def test_figures_of_an_older_version_give_no_change() -> None:
    assert loss_change({"loss": 0.5}, {"losses": [0.4, 0.6]}) == {"loss_change": None, "loss_change_ci": None}
