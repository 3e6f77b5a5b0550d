"""Lengths beside a win rate, and the two win rates that take length out: definitions, hand computation, refusals."""

from __future__ import annotations

import contextlib
import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import t

from harness.stats import (
    UnusableScores,
    adjusted_win_rate,
    echo_adjusted,
    length_glm,
    length_stratified,
    length_summary,
    style_adjusted,
    win_rate,
)
from harness.stats.winrate import variance_of_mean


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


# --- The length-stratified win rate -----------------------------------------------------------------------------------

HALVES = st.tuples(
    st.lists(st.sampled_from([0, 0.5, 1]), min_size=10, max_size=40),
    st.lists(st.sampled_from([0, 0.5, 1]), min_size=10, max_size=40),
)


def split(longer: list[float], other: list[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores and lengths: a's answer is longer in the first half; in the other one shorter or, at every third, equal."""
    lengths_b = np.full(len(longer) + len(other), 50)
    shorter = [50 if k % 3 == 0 else 30 for k in range(len(other))]
    return np.array([*longer, *other]), np.array([80] * len(longer) + shorter), lengths_b


@given(HALVES)
def test_length_stratified_is_the_mean_of_the_two_halves(halves: tuple[list[float], list[float]]) -> None:
    longer, other = halves
    result = length_stratified(*split(longer, other))
    assert (result.n_longer, result.n_other, result.n) == (len(longer), len(other), len(longer) + len(other))
    assert result.rate_longer == pytest.approx(fmean(longer))
    assert result.rate_other == pytest.approx(fmean(other))
    assert result.estimate == pytest.approx((fmean(longer) + fmean(other)) / 2)
    variances = [variance_of_mean(np.asarray(half, dtype=float)) for half in halves]
    assert result.se == pytest.approx(math.sqrt(sum(variances)) / 2)
    assert 0 <= result.low <= result.estimate <= result.high <= 1
    assert result.low < result.high


def test_the_stratified_interval_by_hand() -> None:
    """20 of 25 and 30 of 50, each with the interval of a win rate."""
    longer, other = [1.0] * 20 + [0.0] * 5, [1.0] * 30 + [0.0] * 20
    one, two = win_rate(longer), win_rate(other)
    result = length_stratified(*split(longer, other))
    assert result.low == pytest.approx(0.7 - math.hypot(0.8 - one.low, 0.6 - two.low) / 2)
    assert result.high == pytest.approx(0.7 + math.hypot(one.high - 0.8, two.high - 0.6) / 2)


def test_the_stratified_interval_covers_where_a_half_has_nearly_only_wins() -> None:
    rng = np.random.default_rng(5)
    covered = normal = 0
    for _ in range(1000):
        longer, other = (rng.random(n) < 0.95 for n in (25, 225))
        scores, a, b = split(list(longer), list(other))
        r = length_stratified(scores, a, b)
        covered += r.low <= 0.95 <= r.high
        reach = 1.96 * math.sqrt(longer.var(ddof=1) / 25 + other.var(ddof=1) / 225) / 2
        normal += r.estimate - reach <= 0.95 <= r.estimate + reach
    assert covered / 1000 >= 0.935 - 2 * math.sqrt(0.05 * 0.95 / 1000)
    assert normal / 1000 < 0.8


@pytest.mark.parametrize(("longer", "other"), [(9, 30), (30, 9), (0, 30), (30, 0)])
def test_a_half_of_fewer_than_ten_queries_is_refused(longer: int, other: int) -> None:
    with pytest.raises(UnusableScores, match=f"longer than the opponent's in {longer} and not longer in {other}"):
        length_stratified(*split([1.0] * longer, [0.0] * other))


# --- The length-controlled win rate -----------------------------------------------------------------------------------


def by_length(n: int, seed: int, at_zero: float = 0.7, slope: float = 1.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores whose chance of a win is logistic in tanh(delta / sd), with lengths that favour a."""
    rng = np.random.default_rng(seed)
    b = rng.integers(300, 400, n)
    a = b + np.round(rng.normal(40, 60, n)).astype(int)
    p = expit(logit(at_zero) + slope * np.tanh((a - b) / (a - b).std(ddof=1)))
    return (rng.random(n) < p).astype(float), a, b


def test_length_glm_is_maximum_likelihood_with_the_leave_one_out_sandwich() -> None:
    """Against a general optimiser on the likelihood, and the sandwich written out."""
    scores, a, b = by_length(200, 1)
    scores[:30] = 0.5
    x = np.column_stack([np.ones(200), np.tanh((a - b) / np.std(a - b, ddof=1))])

    def loss(beta: np.ndarray) -> float:
        eta = x @ beta
        return float(np.logaddexp(0, eta).sum() - scores @ eta)

    beta = minimize(loss, np.zeros(2), tol=1e-12).x
    fitted = expit(x @ beta)
    bread = np.linalg.inv((x * (fitted * (1 - fitted))[:, None]).T @ x)
    leverage = np.diag(x @ bread @ x.T) * fitted * (1 - fitted)
    covariance = bread @ (x * (((scores - fitted) / (1 - leverage)) ** 2)[:, None]).T @ x @ bread
    result = length_glm(scores, a, b)
    assert result.estimate == pytest.approx(expit(beta[0]), abs=1e-5)
    assert result.slope == pytest.approx(beta[1], abs=1e-4)
    assert result.slope_se == pytest.approx(math.sqrt(covariance[1, 1]), rel=1e-4)
    reach = t.ppf(0.975, 198) * math.sqrt(covariance[0, 0])
    assert (result.low, result.high) == pytest.approx((expit(beta[0] - reach), expit(beta[0] + reach)), abs=1e-5)


def test_length_glm_finds_the_rate_at_equal_lengths_and_covers_it() -> None:
    results = [length_glm(*by_length(250, seed)) for seed in range(300)]
    assert np.mean([r.estimate for r in results]) == pytest.approx(0.7, abs=0.01)
    assert np.mean([r.slope for r in results]) == pytest.approx(1.5, abs=0.1)
    assert np.mean([r.low <= 0.7 <= r.high for r in results]) >= 0.935 - 2 * math.sqrt(0.05 * 0.95 / 300)
    assert np.mean([by_length(250, seed)[0].mean() for seed in range(300)]) > 0.76  # which the plain rate is not


def test_length_glm_on_ties_alone_is_one_half_with_an_interval() -> None:
    result = length_glm([0.5] * 40, list(range(40)), [20] * 40)
    assert result.estimate == pytest.approx(0.5)
    assert 0 < result.low < 0.5 < result.high < 1


def test_length_glm_mirrors_when_the_sides_change_places() -> None:
    scores, a, b = by_length(100, 3)
    one, two = length_glm(scores, a, b), length_glm(1 - scores, b, a)
    assert (two.low, two.estimate, two.high) == pytest.approx((1 - one.high, 1 - one.estimate, 1 - one.low), abs=1e-6)
    assert two.slope == pytest.approx(one.slope, abs=1e-5)


@pytest.mark.parametrize(
    ("shorter", "equal", "n", "reached"),
    [(19, 0, 100, False), (20, 0, 100, True), (24, 0, 250, False), (25, 0, 250, True), (10, 9, 100, False),
     (10, 10, 100, True), (0, 0, 100, False), (0, 30, 100, True)],
)  # fmt: skip
def test_length_glm_needs_queries_at_equal_lengths_or_on_both_sides_of_it(
    shorter: int, equal: int, n: int, reached: bool
) -> None:
    delta = np.r_[-np.arange(1, shorter + 1), np.zeros(equal), np.arange(1, n - shorter - equal + 1)]
    scores = np.random.default_rng(6).integers(0, 2, n)
    for sign in (1, -1):
        lengths = 500 + sign * delta, np.full(n, 500)
        if reached:
            assert length_glm(scores, *lengths).n == n
        else:
            with pytest.raises(UnusableScores, match=f"only {shorter + equal} of {n} queries"):
                length_glm(scores, *lengths)


SIDES = range(-20, 20)


@pytest.mark.parametrize(
    ("scores", "delta", "sentence"),
    [
        ([1] * 40, SIDES, "all scores are 1"),
        ([0] * 40, SIDES, "all scores are 0"),
        ([0] * 20 + [1] * 20, SIDES, "length separates them"),
        ([1] * 20 + [0] * 20, SIDES, "length separates them"),
        ([0] * 20 + [0.5] + [1] * 19, SIDES, "length separates them"),
        ([0] * 21 + [1] * 21, [*range(-20, 1), *range(21)], "length separates them"),
        ([0, 1] * 20, [7] * 40, "only 0 of 40"),
        ([0, 1] * 20, [0] * 40, "nothing to adjust for"),
        ([0, 1, 0], [-1, 0, 3], "it needs 20"),
    ],
)
def test_length_glm_refuses_what_has_no_finite_fit(scores: list[float], delta: list[int], sentence: str) -> None:
    with pytest.raises(UnusableScores, match=sentence):
        length_glm(scores, np.array(delta) + 500, np.full(len(scores), 500))


@given(st.lists(st.tuples(st.sampled_from([0, 0.5, 1]), st.integers(-3, 3)), min_size=1, max_size=60))
def test_length_glm_is_finite_or_refuses(rows: list[tuple[float, int]]) -> None:
    scores, delta = (np.array(column) for column in zip(*rows, strict=True))
    with contextlib.suppress(UnusableScores):
        result = length_glm(scores, delta + 5, np.full(len(rows), 5))
        assert 0 <= result.low <= result.estimate <= result.high <= 1
        assert math.isfinite(result.se)
        assert math.isfinite(result.slope)


# --- Other covariates


def styled(n: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Scores that go with two of three differences, a fifth of them ties; the rate is 0.6 where all are 0."""
    rng = np.random.default_rng(seed)
    length = rng.normal(0.3, 1, n)
    covariates = {
        "length": length,
        "bold": rng.poisson(1, n) - rng.poisson(1, n) + np.round(length),
        "copied": np.where(rng.random(n) < 0.7, 0, rng.random(n)),
    }
    eta = logit(0.6) + 0.8 * covariates["length"] - 1.5 * covariates["copied"]
    scores = np.where(rng.random(n) < 0.2, 0.5, rng.random(n) < expit(eta))
    return scores, covariates


def test_an_adjusted_win_rate_is_statsmodels_glm_read_at_zero() -> None:
    """Coefficients of statsmodels' own GLM, and HC3 from its own sandwich over the design."""
    scores, covariates = styled(300, 1)
    design = sm.add_constant(np.column_stack(list(covariates.values())))
    fit = sm.GLM(scores, design, family=sm.families.Binomial()).fit(cov_type="HC3")
    weights = fit.fittedvalues * (1 - fit.fittedvalues)
    bread = np.linalg.inv(design.T @ (design * weights[:, None]))
    leverage = np.einsum("ni,ij,nj->n", design, bread, design) * weights
    meat = design * ((scores - fit.fittedvalues) / (1 - leverage))[:, None]
    errors = np.sqrt(np.diag(bread @ meat.T @ meat @ bread))
    found = adjusted_win_rate(scores, covariates)
    assert found.estimate == pytest.approx(expit(fit.params[0]), abs=1e-8)
    assert list(found.slopes.values()) == pytest.approx(list(fit.params[1:]), abs=1e-7)
    assert list(found.slope_ses.values()) == pytest.approx(list(errors[1:]), rel=1e-6)
    reach = t.ppf(0.975, 296) * errors[0]
    assert (found.low, found.high) == pytest.approx(
        (expit(fit.params[0] - reach), expit(fit.params[0] + reach)), abs=1e-7
    )


def test_an_adjusted_win_rate_covers_the_rate_at_no_difference() -> None:
    """At 0 a fifth of ties draws 0.6 towards one half: 0.8 * 0.6 + 0.1."""
    found = [adjusted_win_rate(*styled(250, seed)) for seed in range(300)]
    assert np.mean([r.low <= 0.58 <= r.high for r in found]) >= 0.935 - 2 * math.sqrt(0.05 * 0.95 / 300)


def test_a_covariate_that_is_zero_throughout_is_left_out() -> None:
    scores, covariates = styled(200, 2)
    with_zeros = adjusted_win_rate(scores, covariates | {"headings": np.zeros(200)})
    assert with_zeros == adjusted_win_rate(scores, covariates)


def test_units_do_not_matter() -> None:
    scores, covariates = styled(200, 3)
    one, two = (adjusted_win_rate(scores, covariates | {"length": covariates["length"] * unit}) for unit in (1, 1e6))
    assert (two.low, two.estimate, two.high) == pytest.approx((one.low, one.estimate, one.high))
    assert two.slopes["length"] * 1e6 == pytest.approx(one.slopes["length"])


def test_covariates_that_follow_from_each_other_and_that_separate_together_are_refused() -> None:
    scores, covariates = styled(200, 4)
    with pytest.raises(UnusableScores, match="one follows from the others"):
        adjusted_win_rate(scores, covariates | {"twice": 2 * covariates["length"]})
    rng = np.random.default_rng(5)
    one, two = rng.normal(size=(2, 200))
    with pytest.raises(UnusableScores, match="one and two separates them"):
        adjusted_win_rate((one + two > 0).astype(float), {"one": one, "two": two})
    assert adjusted_win_rate((one + two > 0).astype(float), {"one": one}).n == 200


def test_echo_adjusted_takes_the_difference_in_copied_share() -> None:
    """a copies on a third of the queries, and wins there; elsewhere it wins half."""
    rng = np.random.default_rng(7)
    copied = np.where(rng.random(240) < 1 / 3, rng.uniform(0.2, 0.9, 240), 0)
    scores = np.where(copied > 0, rng.random(240) < 0.95, rng.random(240) < 0.5).astype(float)
    found = echo_adjusted(scores, copied, np.zeros(240))
    assert found.estimate == adjusted_win_rate(scores, {"copied": copied}).estimate
    assert found.low < 0.5 < found.high
    assert win_rate(scores).low > 0.5
    with pytest.raises(UnusableScores, match="from 0 to 1"):
        echo_adjusted(scores, copied + 1, copied)


def test_style_adjusted_takes_relative_differences_of_every_count() -> None:
    rng = np.random.default_rng(8)
    a, b = ([{"words": float(w), "bold": float(x)} for w, x in zip(rng.integers(20, 90, 200), rng.poisson(1, 200), strict=True)]
            for _ in "ab")  # fmt: skip
    scores = rng.integers(0, 2, 200)
    relative = {
        name: np.array([(x[name] - y[name]) / (x[name] + y[name]) if x[name] + y[name] else 0 for x, y in zip(a, b, strict=True)])
        for name in ("words", "bold")
    }  # fmt: skip
    found, expected = style_adjusted(scores, a, b), adjusted_win_rate(scores, relative)
    assert (found.low, found.estimate, found.high) == pytest.approx((expected.low, expected.estimate, expected.high))
    with pytest.raises(UnusableScores, match="for bold"):
        style_adjusted(scores, a, [{"words": 3.0}, *b[1:]])
    with pytest.raises(UnusableScores, match="same length"):
        style_adjusted(scores, a, b[1:])


@pytest.mark.parametrize("function", [length_stratified, length_glm])
@pytest.mark.parametrize(
    ("scores", "a", "b"),
    [([1], [1, 2], [1]), ([1, 0], [1], [1]), ([], [], []), ([1], [-1], [1]), ([math.nan], [1], [1]), ([2], [1], [1])],
)
def test_unusable_input_is_refused(function: Callable[..., object], scores: Any, a: Any, b: Any) -> None:
    with pytest.raises(UnusableScores):
        function(scores, a, b)


# --- Other people's verdicts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "percent"),
    [
        ("3-vs-base-epoch-0.38-helpful", 66.92),
        ("3-vs-base-epoch-0.38-harmless", 77.78),
        ("3-vs-instruct-epoch-0.38-helpful", 54.98),
        ("3-vs-instruct-epoch-0.38-harmless", 57.93),
    ],
)
def test_the_papers_headline_figures(root: Path, name: str, percent: float) -> None:
    path = root.parent / f"shared/paper/typo/experiments/hh-rlhf/results_fixed/win_rates/{name}.json"
    if not path.is_file():
        pytest.skip("the authors' verdicts are not here")
    scores, lengths_base, lengths_test = np.array(json.loads(path.read_text()), dtype=float).T
    assert round(100 * length_stratified(scores, lengths_test, lengths_base).estimate, 2) == percent


def alpaca_eval(root: Path, model: str) -> tuple[float, list[list[float]]]:
    """AlpacaEval 2's own length-controlled win rate of a model, and [score, length, length of the baseline] by query."""
    folder = root.parent / "shared/data/verdicts/alpaca-eval"
    if not folder.is_dir():
        pytest.skip("AlpacaEval's annotations are not here")
    with (folder / "leaderboard.csv").open() as file:
        controlled = {row[""]: row["length_controlled_winrate"] for row in csv.DictReader(file)}
    rows = json.loads((folder / model / "annotations.json").read_text())
    return float(controlled[model]) / 100, [
        [min(1, max(0, float(row["preference"]) - 1)), len(row["output_2"]), len(row["output_1"])] for row in rows
    ]


def test_length_glms_interval_has_alpaca_evals_own_figure_within_support(root: Path) -> None:
    """Its model has a term for each instruction's difficulty besides, so that the estimates are not the same."""
    expected, rows = alpaca_eval(root, "gemma-7b-it")
    found = length_glm(*np.transpose(rows))
    assert found.low < expected < found.high
    assert found.estimate == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("model", ["alpaca-7b", "gpt4_gamed"])
def test_models_that_are_nearly_always_shorter_are_refused(root: Path, model: str) -> None:
    with pytest.raises(UnusableScores, match="of 805 queries"):
        length_glm(*np.transpose(alpaca_eval(root, model)[1]))
