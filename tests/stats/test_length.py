"""Lengths beside a win rate: the means, the rank correlation and where it is not defined."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.stats import UnusableScores, length_summary


def test_means_and_rank_correlation() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.integers(20, 200, 80), rng.integers(20, 200, 80)
    scores = np.where(rng.random(80) < 0.2, 0.5, (a - b + rng.normal(0, 80, 80) > 0))
    result = length_summary(a, b, scores)
    assert (result.mean_a, result.mean_b, result.n) == (a.mean(), b.mean(), 80)
    assert result.spearman == pytest.approx(np.corrcoef(ranks(scores), ranks(a - b))[0, 1])
    assert result.spearman > 0.3


def ranks(values: np.ndarray) -> list[float]:
    return [float((values < v).sum() + ((values == v).sum() + 1) / 2) for v in values]


def test_the_longer_answer_always_winning_is_a_perfect_correlation() -> None:
    assert length_summary([10, 20, 30], [10, 10, 10], [0, 0.5, 1]).spearman == pytest.approx(1)


@pytest.mark.parametrize(
    ("a", "b", "scores"),
    [([5, 6, 7], [1, 2, 3], [0, 1, 0]), ([5, 1, 7], [1, 2, 3], [1, 1, 1]), ([5, 1], [1, 2], [1, 0])],
)
def test_a_correlation_that_is_not_defined_is_none(a: list[int], b: list[int], scores: list[int]) -> None:
    result = length_summary(a, b, scores)
    assert result.spearman is None
    assert result.mean_a == sum(a) / len(a)


@pytest.mark.parametrize(
    ("a", "b", "scores"),
    [([1], [1, 2], [1]), ([1], [1], [1, 0]), ([], [], []), ([-1], [1], [1]), ([1], [math.nan], [0])],
)
def test_unusable_lengths_are_refused(a: list[float], b: list[float], scores: list[float]) -> None:
    with pytest.raises(UnusableScores):
        length_summary(a, b, scores)
