"""Bradley-Terry against statsmodels, a plain loop and simulation; models without a finite estimate; the matrix."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.api import GLM, families

from harness.stats import BradleyTerry, UnusableScores, bradley_terry, cluster_means, win_rate, win_rate_matrix

Rows = tuple[list[str], list[str], list[float], list[str]]
"""a, b, scores, query ids"""

TRUTH = {"base": 0.0, "fair": 0.1, "good": 0.8, "poor": -0.6}


def league(queries: int, seed: int, truth: dict[str, float] = TRUTH, ties: float = 0.1, spread: float = 0.0) -> Rows:
    """Every pair on every query; with `spread`, models' strengths differ by query, so that a query's rows are correlated."""
    rng = np.random.default_rng(seed)
    names = np.array(list(truth))
    strengths = np.array(list(truth.values())) + rng.normal(0, spread, (queries, len(names)))
    a, b = np.array(list(combinations(range(len(names)), 2))).T
    p = 1 / (1 + np.exp(strengths[:, b] - strengths[:, a]))
    t = ties * np.minimum(p, 1 - p)
    u = rng.random(p.shape)
    scores = np.where(u < p - t / 2, 1, np.where(u < p + t / 2, 0.5, 0))
    ids = [f"q{q}" for q in range(queries) for _ in a]
    return [*names[a]] * queries, [*names[b]] * queries, scores.ravel().tolist(), ids


def star(scores_by_model: dict[str, list[float]]) -> Rows:
    """Every model against "base" only."""
    rows = [(name, "base", s, f"q{q}") for name, scores in scores_by_model.items() for q, s in enumerate(scores)]
    return tuple(map(list, zip(*rows, strict=True)))  # type: ignore[return-value]


def strengths(result: BradleyTerry) -> dict[str, float]:
    return {model.name: model.strength for model in result.models}


def fitted_by_statsmodels(rows: Rows) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names without the base, strengths, and their covariance, by logistic regression on the design.

    Clustered by query, without statsmodels' factors for few clusters, and with one more query for each pair in its middle.
    """
    a, b, scores, queries = rows
    names = sorted({*a, *b} - {"base"})
    design = np.array([[(x == n) - (y == n) for n in names] for x, y in zip(a, b, strict=True)], dtype=float)
    groups = np.unique(queries, return_inverse=True)[1]
    fit = GLM(np.array(scores), design, family=families.Binomial()).fit(cov_type="cluster", cov_kwds={"groups": groups})
    n, k, q = *design.shape, groups.max() + 1
    clustered = fit.cov_params() * (n - k) / (n - 1) * (q - 1) / q
    bread = GLM(np.array(scores), design, family=families.Binomial()).fit().cov_params()
    middle = np.zeros((k, k))
    for pair in {(x, y) for x, y in zip(a, b, strict=True)}:
        own = [k for k in range(n) if (a[k], b[k]) == pair]
        smoothed = (sum(scores[k] for k in own) + 1) / (len(own) + 2)
        middle += smoothed * (1 - smoothed) * np.outer(design[own[0]], design[own[0]])
    return names, fit.params, clustered + bread @ middle @ bread


def test_strengths_and_covariance_are_those_of_a_clustered_logistic_regression() -> None:
    rows = league(80, 1, spread=1.0)
    result = bradley_terry(*rows, base="base")
    names, expected, covariance = fitted_by_statsmodels(rows)
    assert strengths(result) == pytest.approx({"base": 0} | dict(zip(names, expected, strict=True)), abs=1e-7)
    order = [model.name for model in result.models]
    for i, j in np.ndindex(3, 3):
        ours = result.covariance[order.index(names[i]), order.index(names[j])]
        assert ours == pytest.approx(covariance[i, j], rel=1e-6)
    assert all(model.se == 0 for model in result.models if model.name == "base")


def test_strengths_are_those_of_a_plain_loop() -> None:
    """Hunter's (2004) minorise-maximise updates, on worths."""
    a, b, scores, _ = rows = league(40, 2)
    worth = dict.fromkeys(TRUTH, 1.0)
    for _ in range(50):
        for name in worth:
            won = sum(s for x, s in zip(a, scores, strict=True) if x == name)
            won += sum(1 - s for y, s in zip(b, scores, strict=True) if y == name)
            played = sum(1 / (worth[x] + worth[y]) for x, y in zip(a, b, strict=True) if name in (x, y))
            worth[name] = won / played
    expected = {name: math.log(value / worth["base"]) for name, value in worth.items()}
    assert strengths(bradley_terry(*rows, base="base")) == pytest.approx(expected, abs=1e-6)


def test_against_one_base_a_strength_is_the_log_odds_of_the_win_rate() -> None:
    rng = np.random.default_rng(3)
    scores = {name: list(rng.choice([1, 0.5, 0], 60, p=[p, 0.1, 0.9 - p])) for name, p in {"x": 0.3, "y": 0.7}.items()}
    scores["ties"] = [0.5] * 60
    result = bradley_terry(*star(scores), base="base")
    for model in result.models:
        if model.name != "base":
            rate = win_rate(scores[model.name])
            assert model.win_rate == pytest.approx(rate.estimate)
            inside = rate.estimate * (1 - rate.estimate)
            assert model.se == pytest.approx(math.sqrt(inside / rate.n_eff) / inside, rel=1e-6)


def test_a_querys_rows_are_one_comparison() -> None:
    """A win in one order and a loss in the other are a tie, and 20 rows of one query weigh no more than one."""
    rows = league(30, 4, ties=0)
    doubled = tuple([*column, *column] for column in rows)
    once, twice = (bradley_terry(*r, base="base") for r in (rows, doubled))
    assert strengths(once) == pytest.approx(strengths(twice))
    assert [m.se for m in once.models] == pytest.approx([m.se for m in twice.models])
    a, b, scores, queries = rows
    both_orders = (
        [*a, *b],
        [*b, *a],
        [*scores, *scores],
        [*queries, *queries],
    )  # b against a with a's score: the opposite
    assert strengths(bradley_terry(*both_orders, base="base")) == pytest.approx(dict.fromkeys(TRUTH, 0), abs=1e-9)


@given(st.integers(0, 200), st.data())
def test_sides_and_the_order_of_rows_do_not_matter(seed: int, data: st.DataObject) -> None:
    a, b, scores, queries = rows = league(12, seed)
    n = len(a)
    order = data.draw(st.permutations(range(n)))
    flipped = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    other = [
        (b[k], a[k], 1 - scores[k], queries[k]) if flipped[k] else (a[k], b[k], scores[k], queries[k]) for k in order
    ]
    one, two = bradley_terry(*rows, base="base"), bradley_terry(*zip(*other, strict=True), base="base")
    assert strengths(one) == pytest.approx(strengths(two), abs=1e-8)


def test_the_anchor_moves_all_strengths_alike() -> None:
    rows = league(40, 5)
    one, two = strengths(bradley_terry(*rows, base="base")), strengths(bradley_terry(*rows, base="good"))
    assert two["good"] == 0
    assert {name: value - one["good"] for name, value in one.items()} == pytest.approx(two, abs=1e-8)


def test_the_elo_scale() -> None:
    """The base has 1000; 400 points are odds of 10 to 1."""
    result = bradley_terry(*star({"x": [1] * 10 + [0], "y": [1, 0] * 5 + [1]}), base="base")
    assert result.models[0].win_rate == pytest.approx(10 / 11)
    assert result.models[0].elo[0] == pytest.approx(1400)
    assert next(m for m in result.models if m.name == "base").elo == (1000, 1000, 1000)


def test_strengths_and_ranks_cover() -> None:
    """400 simulated leagues of 50 queries with correlated rows. The truth is the large-sample fit."""
    truth = strengths(bradley_terry(*league(20_000, 6, spread=1.0), base="base"))
    true_rank = {name: 1 + sum(other > value for other in truth.values()) for name, value in truth.items()}
    results = [bradley_terry(*league(50, 100 + seed, spread=1.0), base="base") for seed in range(400)]
    for name in ("fair", "good", "poor"):
        lines = [next(m for m in r.models if m.name == name) for r in results]
        assert np.mean([m.low <= truth[name] <= m.high for m in lines]) >= 0.935 - 2 * math.sqrt(0.05 * 0.95 / 400)
        assert np.mean([m.rank_low <= true_rank[name] <= m.rank_high for m in lines]) >= 0.95


def test_models_of_equal_strength_share_a_rank_and_all_ranks_are_possible() -> None:
    result = bradley_terry(*star({name: [1, 0] * 15 for name in "xyz"}), base="base")
    assert [(m.rank, m.rank_low, m.rank_high) for m in result.models] == [(1, 1, 4)] * 4


def test_bootstrap_replicates_are_refits_to_resampled_queries() -> None:
    """The same draws, each refitted by statsmodels."""
    rows = league(30, 7)
    queries = rows[3]
    result = bradley_terry(*rows, base="base", resamples=21, seed=5)
    names = sorted(set(queries))
    order = [model.name for model in result.models]
    for ours, picks in zip(result.resampled, np.random.default_rng(5).integers(0, 30, (21, 30)), strict=True):
        kept = [k for pick in picks for k, query in enumerate(queries) if query == names[pick]]
        others, expected, _ = fitted_by_statsmodels(tuple([column[k] for k in kept] for column in rows))  # type: ignore[arg-type]
        assert [ours[order.index(name)] for name in others] == pytest.approx(expected, abs=1e-6)
        assert ours[order.index("base")] == 0


def test_resamples_spread_as_the_covariance_says() -> None:
    result = bradley_terry(*league(300, 8, spread=1.0), base="base", resamples=2000)
    assert np.cov(result.resampled.T) == pytest.approx(result.covariance, abs=0.003)


def test_ranks_by_bootstrap_cover_and_are_no_wider() -> None:
    """Four models of equal strength and one better: each of the four may have any rank from 2 to 5."""
    truth = {"base": 0.0, "x": 0.0, "y": 0.0, "z": 0.0, "best": 0.9}
    covered = narrower = 0
    for seed in range(200):
        rows = league(50, 500 + seed, truth, spread=0.5)
        wide, narrow = bradley_terry(*rows, base="base"), bradley_terry(*rows, base="base", resamples=300)
        for one, two in zip(wide.models, narrow.models, strict=True):
            assert one.rank_low <= two.rank_low <= two.rank <= two.rank_high <= one.rank_high
            narrower += (one.rank_low, one.rank_high) != (two.rank_low, two.rank_high)
            if two.name == "x":
                covered += two.rank_low <= 2 and two.rank_high >= 5
    assert covered / 200 >= 0.935 - 2 * math.sqrt(0.05 * 0.95 / 200)
    assert narrower > 0


# --- Without a finite estimate ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("resamples", [0, 200])
@pytest.mark.parametrize(("score", "rank"), [(1, 1), (0, 3)])
def test_a_model_that_won_or_lost_all_is_named_and_finite(score: int, rank: int, resamples: int) -> None:
    rows = star({"all": [score] * 50, "some": [1, 0] * 25})
    result = bradley_terry(*rows, base="base", resamples=resamples)
    model = next(m for m in result.models if m.name == "all")
    assert (result.unbounded, result.pseudo_ties) == (("all",), 0.5)
    assert (model.rank, model.rank_low, model.rank_high) == (rank, rank, rank)
    assert abs(model.strength) == pytest.approx(math.log(50.25 / 0.25))
    assert model.high - model.low > 5  # 95% to 99.98% would be 5.3 wide
    true = 0.95 if score else 0.05  # half of all samples of 50 with one in twenty show nothing else
    assert model.low < math.log(true / (1 - true)) < model.high


def test_a_group_that_lost_nothing_to_the_rest_is_named() -> None:
    rows = league(20, 9, {"base": 0.0, "next": 0.2})
    better = league(20, 10, {"top": 0.0, "second": 0.3})
    links: Rows = (["top"] * 20, ["base"] * 20, [1.0] * 20, [f"q{k}" for k in range(20)])
    joined = tuple(x + y + z for x, y, z in zip(rows, better, links, strict=True))
    result = bradley_terry(*joined, base="base")
    assert result.unbounded == ("second", "top")
    assert all(math.isfinite(m.low + m.high + m.se) for m in result.models)
    assert {m.name for m in result.models[:2]} == {"top", "second"}


@pytest.mark.parametrize("resamples", [0, 200])
def test_ties_alone_are_equal_strengths_with_intervals(resamples: int) -> None:
    result = bradley_terry(*star({"x": [0.5] * 40, "y": [0.5] * 40}), base="base", resamples=resamples)
    assert result.unbounded == ()
    assert result.resampled.shape == (resamples, 3)
    for model in result.models:
        assert model.strength == pytest.approx(0)
        assert (model.rank, model.rank_low, model.rank_high) == (1, 1, 3)
        limits = [1 / (1 + math.exp(-limit)) for limit in (model.low, model.high)]
        rate = win_rate([0.5] * 40)
        assert limits == pytest.approx([0.5, 0.5] if model.name == "base" else [rate.low, rate.high], abs=1e-4)


def test_rare_losses_leave_some_resamples_without_a_fit_and_they_are_counted() -> None:
    result = bradley_terry(*star({"x": [1] * 49 + [0]}), base="base", resamples=500)
    assert (result.unbounded, result.pseudo_ties) == ((), 0)
    assert 0.25 < result.resampled_unbounded / 500 < 0.5  # (49 / 50)^50 = 0.36
    assert math.isfinite(result.models[0].high)


def test_models_that_nothing_links_are_refused_by_name() -> None:
    rows = league(20, 9, {"base": 0.0, "next": 0.2})
    apart = league(20, 10, {"islander": 0.0, "castaway": 0.3})
    with pytest.raises(UnusableScores, match="nothing links it to castaway, islander"):
        bradley_terry(*(x + y for x, y in zip(rows, apart, strict=True)), base="base")


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (star({"x": [1, 0] * 4}), "at least 10 queries for its intervals, and got 8"),
        ((["x"], ["x"], [1.0], ["q"]), "row 0 has 'x' twice"),
        ((["x"], ["y"], [1.0], ["q"]), "'base' is none of x, y"),
        (([], [], [], []), "at least one"),
        ((["x"], ["base"], [math.nan], ["q"]), "finite"),
        ((["x"], ["base"], [1.5], ["q"]), "from 0 to 1"),
        ((["x"], ["base", "base"], [1.0], ["q"]), "same length"),
    ],
)
def test_unusable_rows_are_refused(rows: Rows, sentence: str) -> None:
    with pytest.raises(UnusableScores, match=sentence):
        bradley_terry(*rows, base="base")


@given(st.lists(st.tuples(*[st.sampled_from("xyz")] * 2, st.sampled_from([0.0, 0.5, 1.0])), min_size=10, max_size=40))
def test_a_leaderboard_is_finite_or_refused(rows: list[tuple[str, str, float]]) -> None:
    a, b, scores = zip(*rows, strict=True)
    try:
        result = bradley_terry(a, b, scores, range(len(rows)), base="x", resamples=20)
    except UnusableScores:
        return
    size = len(result.models)
    assert np.isfinite(result.covariance).all()
    for model in result.models:
        assert all(map(math.isfinite, (model.strength, model.se, *model.elo, model.win_rate)))
        assert model.low <= model.strength <= model.high
        assert 1 <= model.rank_low <= model.rank <= model.rank_high <= size


# --- The matrix -------------------------------------------------------------------------------------------------------


def test_the_matrix_holds_each_pairs_win_rate() -> None:
    a, b, scores, queries = rows = league(25, 11)
    matrix = win_rate_matrix(*rows)
    for i, j in np.ndindex(4, 4):
        own = [k for k in range(len(a)) if (a[k], b[k]) == (matrix.names[i], matrix.names[j])]
        if own:
            expected = win_rate(cluster_means([scores[k] for k in own], [queries[k] for k in own]).means)
            assert (matrix.rates[i][j], matrix.lows[i][j], matrix.highs[i][j]) == pytest.approx(
                (expected.estimate, expected.low, expected.high)
            )
            assert (matrix.rates[j][i], matrix.lows[j][i], matrix.highs[j][i]) == pytest.approx(
                (1 - expected.estimate, 1 - expected.high, 1 - expected.low)
            )
            assert matrix.n[i][j] == matrix.n[j][i] == 25


def test_pairs_that_never_met_are_none() -> None:
    matrix = win_rate_matrix(*star({"x": [1, 0], "y": [1, 1]}))
    x, y = matrix.names.index("x"), matrix.names.index("y")
    assert (matrix.rates[x][y], matrix.lows[x][y], matrix.highs[x][x], matrix.n[x][y]) == (None, None, None, 0)
