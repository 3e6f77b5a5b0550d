"""Mutual information estimates against loops over the definition, their limits and their refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from harness.stats import UnusableScores, infonce, infonce_responses, own_likeliest, sami_repo, win_rate

TABLES = st.tuples(st.integers(2, 5), st.integers(2, 4)).flatmap(
    lambda shape: arrays(np.float64, (shape[0], shape[1], shape[1]), elements=st.floats(-300, 0))
)


def mean_exp_log(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values) / len(values))


@given(TABLES)
def test_each_value_is_its_definition(tables: np.ndarray) -> None:
    over_constitutions, over_responses, repo = infonce(tables), infonce_responses(tables), sami_repo(tables)
    c = tables.shape[1]
    for q, table in enumerate(tables.tolist()):
        columns = [[table[i][j] for i in range(c)] for j in range(c)]
        assert over_constitutions.per_query[q] == pytest.approx(
            sum(table[j][j] - mean_exp_log(columns[j]) for j in range(c)) / c, abs=1e-9
        )
        assert over_responses.per_query[q] == pytest.approx(
            sum(table[i][i] - mean_exp_log(table[i]) for i in range(c)) / c, abs=1e-9
        )
        assert repo.per_query[q] == pytest.approx(
            sum(table[j][j] - sum(columns[j]) / c for j in range(c)) / c, abs=1e-9
        )


@given(TABLES)
def test_infonce_is_at_most_log_c_and_few_queries_have_no_interval(tables: np.ndarray) -> None:
    for result in (infonce(tables), infonce_responses(tables)):
        assert result.log_c == pytest.approx(math.log(tables.shape[1]))
        assert (result.per_query <= result.log_c + 1e-9).all()
        assert result.estimate == pytest.approx(result.per_query.mean())
        assert (result.low, result.high) == (None, None)
        assert result.note == f"No interval: it needs 30 queries, and there are {len(tables)}."


def at_the_limit(rng: np.random.Generator, n: int, saturated: float) -> np.ndarray:
    """Tables of two constitutions whose value is log 2 for this share of queries, and trails off below it for the others."""
    gap = np.where(rng.random(n) < saturated, 60, rng.exponential(3, n))
    return -100 - gap[:, None, None] * (1 - np.eye(2))


def limits(tables: np.ndarray, **options: int) -> tuple[float, float]:
    found = infonce(tables, **options)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.estimate <= found.high <= found.log_c + 1e-9
    return found.low, found.high


def test_the_interval_is_the_bootstrap_t() -> None:
    """Against the same with resampled indices in a loop; both are random, so that quantiles agree to a few percent."""
    tables = np.random.default_rng(0).normal(-100, 2, (40, 3, 3))
    values, rng, pivots = sami_repo(tables).per_query, np.random.default_rng(1), []
    for _ in range(20_000):
        drawn = rng.choice(values, 40)
        pivots.append((drawn.mean() - values.mean()) / (drawn.std(ddof=1) / math.sqrt(40)))
    found, se = sami_repo(tables), values.std(ddof=1) / math.sqrt(40)
    assert found.low is not None
    assert found.high is not None
    reach = [(found.estimate - found.low) / se, (found.estimate - found.high) / se]
    assert reach == pytest.approx(np.quantile(pivots, [0.975, 0.025]), abs=0.25)


def test_the_lower_limit_allows_for_one_query_without_information() -> None:
    """Of 5 queries off the limit by little the bootstrap sees no more; one query at 0 among 61 is 0.011 nats."""
    tables = np.where(np.eye(2) > 0, -50.0, -500.0) * np.ones((60, 1, 1))
    tables[:5] = [[-50, -56], [-56, -50]]
    low, high = limits(tables)
    values = np.append(infonce(tables).per_query, 0)
    assert low < values.mean() - 2 * values.std(ddof=1) / math.sqrt(61) < math.log(2) - 0.03
    assert high > math.log(2) - 0.001


def test_the_interval_depends_on_the_seed_alone() -> None:
    tables = at_the_limit(np.random.default_rng(1), 60, 0.5)
    assert limits(tables) == limits(tables, seed=0)
    assert limits(tables) != limits(tables, seed=1)


@pytest.mark.parametrize("saturated", [0.5, 0.9])
def test_the_interval_covers_where_most_queries_are_at_the_limit(saturated: float) -> None:
    rng = np.random.default_rng(4)
    truth = infonce(at_the_limit(rng, 400_000, saturated)).estimate
    covered = [low <= truth <= high for low, high in (limits(at_the_limit(rng, 200, saturated)) for _ in range(150))]
    assert np.mean(covered) >= 0.93 - 2 * math.sqrt(0.05 * 0.95 / 150)


@pytest.mark.parametrize(("off", "has"), [(4, False), (5, True)])
def test_an_interval_needs_queries_off_the_limit(off: int, has: bool) -> None:
    tables = np.where(np.eye(2) > 0, -50.0, -500.0) * np.ones((60, 1, 1))
    tables[:off] = [[-50, -51], [-52, -50]]
    found = infonce(tables)
    assert (found.low is not None) == has
    assert has or found.note == f"No interval: it needs 5 queries off the limit log C, and there are {off}; raise C."


@given(TABLES)
def test_the_share_of_own_constitutions_is_that_of_a_loop(tables: np.ndarray) -> None:
    shares = []
    for table in tables.tolist():
        columns = [[row[j] for row in table] for j in range(len(table))]
        own = [(column[j] == max(column)) / column.count(max(column)) for j, column in enumerate(columns)]
        shares.append(sum(own) / len(own))
    found, expected = own_likeliest(tables), win_rate(shares)
    assert (found.estimate, found.low, found.high, found.n) == pytest.approx(
        (expected.estimate, expected.low, expected.high, len(tables))
    )


def test_own_constitutions_are_as_likely_as_chance_where_nothing_distinguishes_them() -> None:
    assert own_likeliest(np.full((5, 4, 4), -30.0)).estimate == pytest.approx(1 / 4)
    assert own_likeliest([[[-1, -9], [-9, -1]]]).estimate == 1


def test_a_constitution_that_changes_nothing_gives_no_information() -> None:
    tables = np.tile([-40.0, -90.0, -65.0], (5, 3, 1))  # each response equally likely under every constitution
    assert infonce(tables).estimate == pytest.approx(0)
    assert sami_repo(tables).estimate == pytest.approx(0)
    assert infonce(tables).saturated == 0


def test_certain_constitutions_saturate_at_log_c_and_the_repos_quantity_does_not() -> None:
    tables = np.where(np.eye(4) > 0, -50.0, -500.0) * np.ones((3, 1, 1))
    result = infonce(tables)
    assert result.estimate == pytest.approx(math.log(4))
    assert result.saturated == 1
    assert sami_repo(tables).estimate == pytest.approx(450 * 3 / 4)
    assert sami_repo(tables).saturated is None


def test_the_saturated_share_counts_queries() -> None:
    sure, unsure = [[-10.0, -90.0], [-90.0, -10.0]], [[-10.0, -11.0], [-11.0, -10.0]]
    assert infonce([sure, sure, sure, unsure]).saturated == 0.75


def test_the_two_contrasts_differ_when_one_response_is_likelier_throughout() -> None:
    tables = [[[-10.0, -50.0], [-12.0, -40.0]]] * 2
    assert infonce(tables).estimate > 0.6
    assert infonce_responses(tables).estimate < 0


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        (np.zeros((3, 2, 4)), "shape"),
        (np.zeros((3, 1, 1)), "at least 2"),
        (np.zeros((2, 2)), "shape"),
        ([], "shape"),
        (np.zeros((0, 2, 2)), "at least one query"),
        (np.full((3, 2, 2), np.nan), "finite"),
        (np.full((3, 2, 2), -np.inf), "finite"),
        ([[[-1, -2], [-2, -1]], [[-1, 2], [-2, -1]]], "index 1"),
        ([[[-1, -2], [-2, -1]], [[-1]]], "same C"),
    ],
)
def test_unusable_tables_are_refused(tables: object, sentence: str) -> None:
    for function in (infonce, infonce_responses, sami_repo, own_likeliest):
        with pytest.raises(UnusableScores, match=sentence):
            function(tables)  # type: ignore[arg-type]


def test_a_level_outside_zero_to_one_is_refused() -> None:
    with pytest.raises(ValueError, match="confidence level"):
        infonce(np.zeros((3, 2, 2)), 95)
