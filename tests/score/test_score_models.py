"""Leaderboards, gaps and steerability against a naive loop over the same rows."""

from __future__ import annotations

import math
import random
from itertools import product

import pytest
from score_rows import VALUE, inputs, naive_scores, only, pair, random_run, strictly

from harness.score import ScoreInputs, score
from harness.stats import bradley_terry, cohens_kappa, gap, paired_difference, sign_flip_p, win_rate


@pytest.mark.parametrize("task", ["dialogue", "all"])
def test_a_gap_is_paired_by_query(task: str) -> None:
    run = random_run()
    row = only(score(run)["gaps"], task=task)
    learned, held_out = naive_scores(run, task, "learned"), naive_scores(run, task, "held_out")
    expected = gap(learned, held_out)
    shared = sorted(learned.keys() & held_out.keys())
    assert row["gap"] == pytest.approx(sum(learned[q] - held_out[q] for q in shared) / len(shared), abs=1e-12)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert row["n"] == len(shared)
    assert row["p_value"] == sign_flip_p([learned[q] for q in shared], [held_out[q] for q in shared])
    assert row["ci_method"] == paired_difference([learned[q] for q in shared], [held_out[q] for q in shared]).method


def test_steerability_has_a_row_for_all_principles_and_one_for_each() -> None:
    steered = {"kind": "steerability", "a": "base", "b": "base", "orders": ("ab",)}
    outcomes = ["a", "a", "b", "tie"] * 4
    judged = {pair(f"q{i}", "short+" if i % 2 else "list+", **steered): o for i, o in enumerate(outcomes)}
    rows = score(inputs(judged))["steerability"]
    assert [row["principle"] for row in rows] == [None, "list", "short"]
    expected = win_rate([VALUE[o] for o in outcomes])
    assert (rows[0]["steerability"], rows[0]["n"]) == (pytest.approx(expected.estimate, abs=1e-12), 16)
    assert (rows[0]["ci_low"], rows[0]["ci_high"]) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert rows[1]["steerability"] == pytest.approx(0.5)
    assert rows[2]["steerability"] == pytest.approx(0.75)


def several_models(flip: bool = False) -> ScoreInputs:
    """Three models by two judges; the second ranks them the other way round where `flip`."""
    rng = random.Random(9)
    judged = {}
    for judge, (a, b), i in product(
        ("judge", "other"), (("sami", "base"), ("sami", "chat"), ("chat", "base")), range(40)
    ):
        wins = {("sami", "base"): 0.9, ("sami", "chat"): 0.75, ("chat", "base"): 0.7}[a, b]
        outcome = "a a" if rng.random() < wins else "b b"
        if flip and judge == "other":
            outcome = "b b" if outcome == "a a" else "a a"
        judged[pair(f"q{i}", judge=judge, a=a, b=b)] = outcome
    judges = {name: {"kind": "llm", "model": "base"} for name in ("judge", "other")}
    models = {"base": {}, "chat": {}, "sami": {"trained_from": "base"}}
    return inputs(judged, judges=judges, models=models)


def test_a_leaderboard_is_bradley_terrys_with_the_base_model_at_zero() -> None:
    run = several_models()
    board = only(score(run)["leaderboards"], judge="judge")
    rows = [(v.a, v.b, VALUE[v.outcome], v.query_id) for v in run.verdicts if v.judge == "judge" and v.order == "ab"]
    expected = bradley_terry(*map(list, zip(*rows, strict=True)), base="base")
    assert board["base"] == "base"
    assert (
        [model["model"] for model in board["models"]] == [m.name for m in expected.models] == ["sami", "chat", "base"]
    )
    assert [model["strength"] for model in board["models"]] == pytest.approx([m.strength for m in expected.models])
    assert board["models"][0]["win_rate_low"] == pytest.approx(1 / (1 + math.exp(-expected.models[0].low)))
    sami, base = (board["matrix"]["models"].index(name) for name in ("sami", "base"))
    rate = only(score(run)["comparisons"], judge="judge", a="sami", b="base")["win_rate"]
    assert board["matrix"]["win_rate"][sami][base] == pytest.approx(rate)
    assert board["matrix"]["win_rate"][base][base] is None


def test_two_models_make_no_leaderboard_and_few_queries_say_so() -> None:
    assert score(inputs({pair(): "a a"}))["leaderboards"] == []
    judged = {pair(f"q{i}", a=a): "a b" for i in range(4) for a in ("sami", "chat")}
    (board,) = score(inputs(judged))["leaderboards"]
    strictly(board)
    assert board["models"] == []
    assert "at least 10 queries" in board["note"]


@pytest.mark.parametrize("flip", [False, True])
def test_judges_that_agree_and_judges_that_do_not(flip: bool) -> None:
    run = several_models(flip)
    (stability,) = score(run)["rank_stability"]
    strictly(stability)
    assert (stability["judge_1"], stability["judge_2"], stability["n_models"]) == ("judge", "other", 3)
    assert stability["kendall_tau"] == (-1 if flip else 1)
    assert len(stability["flips"]) == (3 if flip else 0)
    row = only(stability["pairs"], a="sami", b="base")
    one, two = (
        [VALUE[v.outcome] for v in run.verdicts if (v.judge, v.a, v.b, v.order) == (judge, "sami", "base", "ab")]
        for judge in ("judge", "other")
    )
    assert row["agreement"] == pytest.approx(sum(x == y for x, y in zip(one, two, strict=True)) / 40)
    kappa = cohens_kappa(one, two)
    assert kappa is not None
    assert row["kappa"]["kappa"] == pytest.approx(kappa.estimate)
    assert (row["win_rate_1"], row["win_rate_2"]) == pytest.approx((sum(one) / 40, sum(two) / 40))


def test_judges_are_compared_on_what_both_have_scored() -> None:
    judged = {pair(f"q{i}"): "a a" for i in range(5)}
    judged |= {pair(f"q{i}", judge="other"): "a a" if i != 3 else "a unscored" for i in range(2, 9)}
    judges = {name: {"kind": "llm", "model": "base"} for name in ("judge", "other")}
    (stability,) = score(inputs(judged, judges=judges))["rank_stability"]
    assert [row["n"] for row in stability["pairs"]] == [2]
    assert stability["kendall_tau"] is None
    assert "3 models" in stability["note"]


def test_one_judge_has_nobody_to_agree_with() -> None:
    assert score(random_run())["rank_stability"] == []
