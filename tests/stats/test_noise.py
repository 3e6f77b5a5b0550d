"""The judge's share of the variance, against variances that are known."""

from __future__ import annotations

import numpy as np
import pytest

from harness.stats import UnusableScores, judge_share


def judged(rng: np.random.Generator, queries: int, pairs: int, judgings: int, noise: float) -> tuple[np.ndarray, ...]:  # type: ignore[type-arg]
    """Scores of queries whose pairs have means between 0.3 and 0.7 and a judge with this standard deviation."""
    means = rng.uniform(0.35, 0.65, size=(queries, 1, 1)) + rng.uniform(-0.05, 0.05, size=(queries, pairs, 1))
    scores = means + noise * rng.choice([-1.0, 1.0], size=(queries, pairs, judgings))
    query_ids, pair_ids, _ = np.indices(scores.shape)
    return scores.ravel(), (query_ids * pairs + pair_ids).ravel(), query_ids.ravel()


def test_the_noise_put_in_comes_out() -> None:
    found = judge_share(*judged(np.random.default_rng(0), 4000, 2, 3, 0.2))
    between, of_pairs, judge = 0.3**2 / 12, 0.1**2 / 12 / 2, 0.2**2 / 2
    assert found.sd == pytest.approx(0.2, rel=0.02)
    assert found.share == pytest.approx(judge / 3 / (between + of_pairs + judge / 3), rel=0.05)
    assert found.share_once == pytest.approx(judge / (between + of_pairs + judge), rel=0.05)
    assert found.n_pairs == 8000


def test_it_is_that_of_a_loop() -> None:
    rng = np.random.default_rng(1)
    pair_of = rng.integers(0, 12, size=40)
    query_of = pair_of // 3
    scores = rng.choice([0, 0.5, 1], size=40)
    squares, freedom = 0.0, 0
    by_query: dict[int, list[tuple[float, int]]] = {}
    for pair in range(12):
        own = [float(s) for s, p in zip(scores, pair_of, strict=True) if p == pair]
        if not own:
            continue
        mean = sum(own) / len(own)
        squares += sum((s - mean) ** 2 for s in own)
        freedom += len(own) - 1
        by_query.setdefault(pair // 3, []).append((mean, len(own)))
    within = squares / freedom
    of_queries = [sum(mean for mean, _ in pairs) / len(pairs) for pairs in by_query.values()]
    centre = sum(of_queries) / len(of_queries)
    total = sum((x - centre) ** 2 for x in of_queries) / (len(of_queries) - 1)
    parts = [sum(within / k for _, k in pairs) / len(pairs) ** 2 for pairs in by_query.values()]
    found = judge_share(scores, pair_of, query_of)
    assert found.sd == pytest.approx(within**0.5, abs=1e-12)
    assert found.share == pytest.approx(min(1.0, sum(parts) / len(parts) / total), abs=1e-12)


def test_its_range_is_that_of_resampled_queries() -> None:
    rng = np.random.default_rng(2)
    scores, pairs, queries = judged(rng, 60, 2, 3, 0.2)
    shares = []
    for _ in range(500):
        drawn = rng.integers(0, 60, 60)
        rows = np.concatenate([np.flatnonzero(queries == q) for q in drawn])
        place = np.repeat(np.arange(60), 6)  # a query that was drawn twice is two queries
        shares.append(judge_share(scores[rows], place * 200 + pairs[rows], place).share)
    found = judge_share(scores, pairs, queries)
    assert found.share is not None
    assert found.share_low is not None
    assert found.share_high is not None
    assert 0 <= found.share_low <= found.share <= found.share_high <= 1
    assert (found.share_low, found.share_high) == pytest.approx(tuple(np.quantile(shares, [0.025, 0.975])), abs=0.03)


def test_a_judge_that_says_the_same_has_no_part() -> None:
    found = judge_share([1, 1, 0, 0], [0, 0, 1, 1], ["q", "q", "r", "r"])
    assert (found.sd, found.share, found.share_once) == (0, 0, 0)


def test_without_spread_there_is_no_share() -> None:
    found = judge_share([0.5] * 4, [0, 0, 1, 1], [0, 0, 1, 1])
    assert (found.share, found.share_low, found.share_high, found.share_once) == (None, None, None, None)


@pytest.mark.parametrize(
    ("scores", "pairs", "queries"),
    [([1, 0], [0, 1], [0, 1]), ([1, 0], [0, 0], [0, 0]), ([], [], []), ([1, float("nan")], [0, 0], [0, 1])],
)
def test_what_cannot_tell_is_refused(scores: list[float], pairs: list[int], queries: list[int]) -> None:
    with pytest.raises(UnusableScores):
        judge_share(scores, pairs, queries)
