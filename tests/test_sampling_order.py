"""The order of queries: a permutation, the same everywhere, spread over the strata, and fair to every query."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.sampling_order import seeded_order

WRITTEN_DOWN = [3, 6, 1, 5, 0, 4, 7, 2]
STRATA = st.lists(st.one_of(st.integers(0, 3), st.tuples(st.sampled_from("ab"), st.integers(0, 2))), max_size=60)


@given(STRATA, st.integers())
def test_it_is_a_permutation_and_the_seed_decides_it(strata: list[int | tuple[str, int]], seed: int) -> None:
    order = seeded_order(strata, seed)
    assert sorted(order) == list(range(len(strata)))
    assert order == seeded_order(strata, seed)


def test_the_order_is_the_same_on_every_machine() -> None:
    assert seeded_order(["a"] * 3 + ["b"] * 3 + ["c"] * 2, seed=7) == WRITTEN_DOWN
    assert seeded_order(["a"] * 3 + ["b"] * 3 + ["c"] * 2, seed=8) != WRITTEN_DOWN


@pytest.mark.parametrize("seed", range(20))
def test_equal_strata_take_turns(seed: int) -> None:
    strata = [k % 7 for k in range(140)]
    order = seeded_order(strata, seed)
    for m in range(1, 141):
        counts = Counter(strata[i] for i in order[:m])
        assert max(counts.values()) - min(counts[k] for k in range(7)) <= 1


@pytest.mark.parametrize("seed", range(20))
def test_a_prefix_has_every_stratum_in_proportion_to_its_size(seed: int) -> None:
    strata = ["large"] * 200 + ["middle"] * 75 + ["small"] * 25
    order = seeded_order(strata, seed)
    for m in range(1, 301):
        counts = Counter(strata[i] for i in order[:m])
        for name, size in (("large", 200), ("middle", 75), ("small", 25)):
            assert abs(counts[name] - m * size / 300) < 2


def test_nested_strata_are_spread_at_every_level() -> None:
    """Two tasks of 40 principles with 3 queries each: 20 queries are 10 of each task, of 20 different principles."""
    strata = [(task, principle) for task in "ab" for principle in range(40) for _ in range(3)]
    first = [strata[i] for i in seeded_order(strata, seed=1)[:20]]
    assert Counter(task for task, _ in first) == {"a": 10, "b": 10}
    assert len(set(first)) == 20


def test_every_query_is_as_likely_as_any_other_to_be_among_the_first() -> None:
    strata = ["a"] * 5 + ["b"] * 11 + ["c"]
    runs, first = 4000, 6
    chosen = Counter(i for seed in range(runs) for i in seeded_order(strata, seed)[:first])
    expected = first / len(strata)
    share = np.array([chosen[i] for i in range(len(strata))]) / runs
    assert np.abs(share - expected).max() < 0.1 * expected


def test_a_drift_over_the_file_does_not_bias_a_prefix() -> None:
    """Scores that rise over the file: the first 50 queries of it are off by 40 points, the first 50 of the order are not."""
    scores = np.linspace(0, 1, 250)
    means = [scores[seeded_order(["all"] * 250, seed)[:50]].mean() for seed in range(200)]
    assert scores[:50].mean() < 0.11
    assert np.mean(means) == pytest.approx(0.5, abs=0.01)
