"""Leaderboards, gaps and steerability against a naive loop over the same rows."""

from __future__ import annotations

import dataclasses
import math
import random
from itertools import product
from typing import Any

import pytest
from score_rows import VALUE, inputs, naive_pairs, naive_scores, only, pair, random_run, strictly

from harness.score import Facts, ScoreInputs, score
from harness.stats import (
    bradley_terry,
    cohens_kappa,
    gap,
    paired_difference,
    principles_difference,
    principles_interval,
    sign_flip_p,
    welch_gap,
    win_rate,
)


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


# --- Gaps for principles like these, and beside the base's


PRINCIPLES = {"learned": [f"l{n}" for n in range(6)], "held_out": [f"h{n}" for n in range(5)]}


def trained(**fields: Any) -> ScoreInputs:
    """A model and its base on 6 learned and 5 held-out principles, each query with one principle of each kind."""
    rng = random.Random(12)
    judged = {}
    for split, i in product(PRINCIPLES, range(30)):
        constitution = f"{PRINCIPLES[split][i % len(PRINCIPLES[split])]}+"
        judged[pair(f"q{i:02}", constitution, split=split)] = " ".join(rng.choices(["a", "b", "tie"], [5, 3, 2], k=2))
        for model, wins in (("sami", 7), ("base", 4)):
            contrast = pair(
                f"q{i:02}", constitution, split=split, kind="steerability", a=model, b=model, orders=("ab",)
            )
            judged[contrast] = rng.choices(["a", "b", "unscored"], [wins, 3, 0.5])[0]
    return inputs(judged, **fields)


def test_the_gap_for_principles_like_these_is_welchs() -> None:
    run = trained()
    (row,) = score(run)["gaps"]
    sides = []
    for split in PRINCIPLES:
        pairs = naive_pairs(run, "dialogue", split)
        sides.append(
            principles_interval(
                [v for *_, v in pairs], [q for q, *_ in pairs], [p.constitution_id[:-1] for _, p, _ in pairs]
            )
        )
    expected = welch_gap(*sides)
    found = row["principles"]
    assert (found["gap"], found["ci_low"], found["ci_high"], found["p_value"]) == pytest.approx(
        (expected.estimate, expected.low, expected.high, expected.p_value), abs=1e-12
    )
    assert (found["n_learned"], found["n_held_out"]) == (6, 5)


def test_what_training_raised_is_the_difference_of_differences() -> None:
    """Steerability after training minus that of the base on the same constitutions, learned minus held-out."""
    run = trained()
    found = score(run)["gaps"][0]["steered"]
    outcomes = {
        (v.a, v.split, v.query_id, v.constitution_id): v.outcome for v in run.verdicts if v.kind == "steerability"
    }
    sides = []
    for split in PRINCIPLES:
        rows = [
            (VALUE[after], VALUE[before], query, constitution)
            for (model, where, query, constitution), after in sorted(outcomes.items())
            if (model, where) == ("sami", split) and after != "unscored"
            and (before := outcomes["base", split, query, constitution]) != "unscored"
        ]  # fmt: skip
        sides.append(principles_difference(*map(list, zip(*rows, strict=True))))
    expected = welch_gap(*sides)
    assert (found["learned"], found["held_out"]) == pytest.approx([side.estimate for side in sides], abs=1e-12)
    assert (found["gap"], found["ci_low"], found["ci_high"]) == pytest.approx(
        (expected.estimate, expected.low, expected.high), abs=1e-12
    )


def test_without_the_bases_steerability_nothing_is_said_of_training() -> None:
    run = trained()
    some = [p for p in run.expected if p.kind != "steerability" or p.a != "base"]
    assert score(dataclasses.replace(run, expected=some))["gaps"][0]["steered"] is None


def test_few_principles_have_a_gap_over_queries_alone() -> None:
    run = trained()
    few = [p for p in run.expected if p.constitution_id != "h4+"]
    (row,) = score(dataclasses.replace(run, expected=few))["gaps"]
    strictly(row)
    assert row["gap"] is not None
    assert (row["principles"]["gap"], row["steered"]["gap"]) == (None, None)
    assert "at least 5 principles" in row["principles"]["note"]
    assert "at least 5 principles" in row["steered"]["note"]


@pytest.mark.parametrize(
    ("sami", "has_gap"),
    [
        ({"trained_from": "base"}, True),
        ({"path": "recorded/answers.jsonl", "trained_from": None}, True),
        ({"path": "embedded/smollm2-135m-instruct", "trained_from": None}, False),
        ({}, False),
    ],
)
def test_only_a_model_that_learned_the_principles_has_a_gap(sami: dict[str, Any], has_gap: bool) -> None:
    assert len(score(trained(models={"base": {}, "sami": sami}))["gaps"]) == has_gap
    other = score(trained(models={"sami": {}, "base": sami}))["gaps"]
    assert len(other) == has_gap, "whichever side of the comparison it is on"


# --- Steerability of a model that saw no principle


@pytest.mark.parametrize(("opposite", "known"), [("same", False), ("another", True), (None, True)])
def test_the_same_text_under_both_sides_is_no_steerability(opposite: str | None, known: bool) -> None:
    """`opposite`: the digest of one response under the opposite constitution; None: it is not there."""
    judged = {pair(f"q{i}", "short+", kind="steerability", a="base", b="base", orders=("ab",)): "a" for i in range(6)}
    facts = {}
    for p in judged:
        own = p.response("a")
        other = own._replace(constitution_id="short-")
        facts |= {own: Facts(5, digest="same"), other: Facts(5, digest="same")}
    if opposite is None:
        del facts[other]
    else:
        facts[other] = Facts(5, digest=opposite)
    rows = score(inputs(judged, facts=facts))["steerability"]
    assert [row["steerability"] for row in rows] == ([1.0, 1.0] if known else [None, None])
    assert all(("wrote the same under every principle" in row.get("note", "")) != known for row in rows)
