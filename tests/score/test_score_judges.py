"""Judges' cards and corrections in the results of a run."""

from __future__ import annotations

import pytest
from score_rows import inputs, only, pair

from harness.score import Facts, ScoreInputs, score


def test_a_judge_has_a_card() -> None:
    result = score(inputs({pair(): "a a", pair("q1"): "a b", pair("q2"): "a unscored", pair("q3"): "tie tie"}))
    card = result["judges"]["judge"]
    assert (card["kind"], card["model"], card["n_pairs"]) == ("llm", "base", 3)
    assert card["position_consistency"] == pytest.approx(2 / 3)
    assert card["unscored_rate"] == pytest.approx(1 / 8)
    assert card["ties"] == pytest.approx(2 / 7)


def test_a_judge_that_saw_one_order_has_no_lean() -> None:
    card = score(inputs({pair(orders=("ab",)): "a"}))["judges"]["judge"]
    assert (card["share_first"], card["position_consistency"]) == (None, None)


JUDGES = {"program": {"kind": "verifiable", "model": None}, "judge": {"kind": "llm", "model": "base"}}


def two_judges(n_labelled: int, n: int, others: tuple[int, int] = (0, 0)) -> ScoreInputs:
    """A program that judged the first queries, and a judge of all, which errs on every fourth.

    `others` are the two numbers for a second task, on which a wins every other query and the judge is right.
    """
    judged = {}
    for task, (labelled, of) in {"dialogue": (n_labelled, n), "posts": others}.items():
        for q in range(of):
            truth = "a" if q % (3 if task == "dialogue" else 2) else "b"
            said = {"a": "b", "b": "a"}[truth] if q % 4 == 3 and task == "dialogue" else truth
            judged[pair(f"q{q:03}", task=task)] = f"{said} {said}"
            if q < labelled:
                judged[pair(f"q{q:03}", task=task, judge="program", orders=("ab",))] = truth
    return inputs(judged, judges=JUDGES)


def test_a_judge_is_held_against_the_program_of_the_run() -> None:
    judges = score(two_judges(24, 40))["judges"]
    assert judges["program"]["agreement"] is None
    found = judges["judge"]["agreement"]
    assert (found["reference"], found["n"], found["accuracy"]) == ("program", 24, 0.75)
    assert found["sensitivity"] == pytest.approx(0.75)
    assert found["accuracy_ci"][0] < 0.75 < found["accuracy_ci"][1]


def test_win_rates_are_corrected_where_the_program_judged_some_of_the_queries() -> None:
    run = two_judges(120, 240)
    (found,) = score(run)["corrections"]
    assert (found["judge"], found["reference"], found["n"], found["n_labelled"]) == ("judge", "program", 120, 120)
    assert found["win_rate"] == pytest.approx(only(score(run)["comparisons"], judge="judge")["win_rate"])
    for name in ("rogan_gladen", "ppi", "post_stratified"):
        assert found[f"{name}_ci"][0] < 2 / 3 < found[f"{name}_ci"][1]
        assert abs(found[name] - 2 / 3) < abs(found["win_rate"] - 2 / 3)


def test_a_pooled_row_corrects_each_task_by_itself() -> None:
    """Of one task half the queries are labelled, of the other a fifth."""
    rows = {row["task"]: row for row in score(two_judges(120, 240, (24, 120)))["corrections"]}
    assert set(rows) == {"dialogue", "posts", "all"}
    for name in ("post_stratified", "ppi", "rogan_gladen"):
        assert rows["all"][name] == pytest.approx((240 * rows["dialogue"][name] + 120 * rows["posts"][name]) / 360)
    assert (rows["all"]["n"], rows["all"]["n_labelled"]) == (216, 144)
    whole = {row["task"]: row for row in score(two_judges(120, 240, (120, 120)))["corrections"]}
    assert set(whole) == {"dialogue", "all"}
    assert whole["all"]["post_stratified"] == pytest.approx((240 * whole["dialogue"]["post_stratified"] + 60) / 360)


def test_nothing_is_corrected_where_the_program_judged_every_query() -> None:
    assert score(two_judges(40, 40))["corrections"] == []


def test_nothing_is_corrected_without_a_program() -> None:
    result = score(inputs({pair(): "a a"}))
    assert (result["corrections"], result["judges"]["judge"]["agreement"]) == ([], None)


def test_a_judge_of_its_own_kin_is_flagged() -> None:
    models = {"base": {"path": "embedded/gemma-3-270m"}, "sami": {"path": None, "trained_from": "base"}}
    card = score(inputs({pair(): "a a"}, models=models))["judges"]["judge"]
    assert card["same_family"] == {"sami": "it has the judge's base model", "base": "it is the judge itself"}


def test_the_card_has_the_lengths_of_win_rates_alone() -> None:
    contrast = pair("q1", kind="steerability", a="sami", b="sami")
    judged = {pair(): "a a", contrast: "a a"}
    lengths = {pair().response("a"): Facts(9), pair().response("b"): Facts(4), contrast.response("a"): Facts(7)}
    card = score(inputs(judged, facts=lengths))["judges"]["judge"]
    assert (card["n_longer"], card["longer_wins"]) == (1, 1.0)
