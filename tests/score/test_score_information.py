"""InfoNCE in the results of a run."""

from __future__ import annotations

import math
import random
from itertools import product

import pytest
from score_rows import inputs, likelihood, strictly

from harness.score import score
from harness.stats import infonce, own_likeliest


def test_infonce_is_that_of_the_tables() -> None:
    rng = random.Random(3)
    tables = [[[-rng.uniform(5, 9) for _ in range(2)] for _ in range(2)] for _ in range(6)]
    rows = [likelihood(f"q{i}", table) for i, table in enumerate(tables)]
    row = score(inputs({}, likelihoods=rows))["infonce"][0]
    naive = [sum(t[j][j] - math.log((math.exp(t[0][j]) + math.exp(t[1][j])) / 2) for j in range(2)) / 2 for t in tables]
    assert row["infonce"] == pytest.approx(sum(naive) / 6, abs=1e-12)
    assert (row["n"], row["log_c"], row["ci_low"], row["ci_high"]) == (6, pytest.approx(math.log(2)), None, None)
    assert "needs 30 queries" in row["note"]
    own = own_likeliest(tables)
    assert (row["own_likeliest"], row["own_likeliest_ci"], row["chance"]) == (own.estimate, [own.low, own.high], 0.5)


def test_infonce_of_many_queries_has_its_interval() -> None:
    rng = random.Random(3)
    tables = [[[-rng.uniform(5, 9) for _ in range(2)] for _ in range(2)] for _ in range(40)]
    row = score(inputs({}, likelihoods=[likelihood(f"q{i:02}", table) for i, table in enumerate(tables)]))["infonce"][0]
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((infonce(tables).low, infonce(tables).high), abs=1e-12)
    assert "note" not in row


def test_infonce_of_likelihoods_that_are_none_is_null_with_the_reason() -> None:
    result = score(inputs({}, likelihoods=[likelihood("q", [[1, -2], [-2, -1]])]))
    strictly(result)
    row = result["infonce"][0]
    assert (row["n"], row["infonce"], row["log_c"], row["own_likeliest_ci"]) == (1, None, None, None)
    assert "at most 0" in row["note"]


def test_infonce_pools_the_tasks() -> None:
    rows = [likelihood(f"q{i}", [[-1, -2], [-2, -1 - i]], task=t) for i, t in product(range(3), ("dialogue", "posts"))]
    assert [(r["task"], r["n"]) for r in score(inputs({}, likelihoods=rows))["infonce"]] == [
        ("dialogue", 3), ("posts", 3), ("all", 6),
    ]  # fmt: skip
