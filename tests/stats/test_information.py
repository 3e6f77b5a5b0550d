"""Mutual information estimates against loops over the definition, their limits and their refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import ttest_1samp

from harness.stats import UnusableScores, infonce, infonce_responses, sami_repo

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
def test_infonce_is_at_most_log_c_and_the_interval_contains_it(tables: np.ndarray) -> None:
    for result in (infonce(tables), infonce_responses(tables)):
        assert result.log_c == pytest.approx(math.log(tables.shape[1]))
        assert (result.per_query <= result.log_c + 1e-9).all()
        assert result.low <= result.estimate <= result.high <= result.log_c + 1e-9
        assert result.estimate == pytest.approx(result.per_query.mean())


def test_the_interval_is_students_t() -> None:
    tables = np.random.default_rng(0).normal(-100, 2, (40, 3, 3))
    result = sami_repo(tables)
    expected = ttest_1samp(result.per_query, 0).confidence_interval(0.95)
    assert (result.low, result.high, result.n) == pytest.approx((expected.low, expected.high, 40))


def test_the_interval_covers() -> None:
    """1,000 simulated runs of 100 queries; two standard errors below the bar of 93.5%."""
    rng = np.random.default_rng(4)
    truth = infonce(rng.normal(-100, 1, (200_000, 2, 2))).estimate
    results = [infonce(rng.normal(-100, 1, (100, 2, 2))) for _ in range(1000)]
    assert np.mean([r.low <= truth <= r.high for r in results]) >= 0.935 - 2 * math.sqrt(0.05 * 0.95 / 1000)


def test_a_constitution_that_changes_nothing_gives_no_information() -> None:
    tables = np.tile([-40.0, -90.0, -65.0], (5, 3, 1))  # each response equally likely under every constitution
    assert infonce(tables).estimate == pytest.approx(0)
    assert sami_repo(tables).estimate == pytest.approx(0)
    assert infonce(tables).saturated == 0


def test_certain_constitutions_saturate_at_log_c_and_the_repos_quantity_does_not() -> None:
    tables = np.where(np.eye(4) > 0, -50.0, -500.0) * np.ones((3, 1, 1))
    result = infonce(tables)
    assert (result.estimate, result.low, result.high) == pytest.approx([math.log(4)] * 3)
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
        (np.zeros((1, 2, 2)), "at least 2 queries"),
        (np.full((3, 2, 2), np.nan), "finite"),
        (np.full((3, 2, 2), -np.inf), "finite"),
        ([[[-1, -2], [-2, -1]], [[-1, 2], [-2, -1]]], "index 1"),
        ([[[-1, -2], [-2, -1]], [[-1]]], "same C"),
    ],
)
def test_unusable_tables_are_refused(tables: object, sentence: str) -> None:
    for function in (infonce, infonce_responses, sami_repo):
        with pytest.raises(UnusableScores, match=sentence):
            function(tables)  # type: ignore[arg-type]


def test_a_level_outside_zero_to_one_is_refused() -> None:
    with pytest.raises(ValueError, match="confidence level"):
        infonce(np.zeros((3, 2, 2)), 95)
