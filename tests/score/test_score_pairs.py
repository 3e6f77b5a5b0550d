"""Orders, repeats and protocols make one score of a pair; pairs make those of queries and principles."""

from __future__ import annotations

import dataclasses

import pytest
from score_rows import inputs, only, pair, verdict

from harness.protocols import PAPER, PROTOCOLS, drawn_order
from harness.score import score


def test_a_pair_counts_for_the_principles_that_it_was_judged_by() -> None:
    judged = {
        pair("q0", "short+.list-")._replace(judged_by="short+"): "a a",
        pair("q1", "short+.list-")._replace(judged_by="list-"): "b b",
        pair("q2", "short+.list-"): "tie tie",
    }
    (row,) = score(inputs(judged))["comparisons"]
    assert {p["principle"]: (p["n"], p["win_rate"]) for p in row["by_principle"]} == {
        "list": (2, 0.25),
        "short": (2, 0.75),
    }


@pytest.mark.parametrize(
    ("outcomes", "expected"), [("a a", 1.0), ("a b", 0.5), ("a tie", 0.75), ("b b", 0.0), ("tie tie", 0.5)]
)
def test_both_orders_make_one_score(outcomes: str, expected: float) -> None:
    row = score(inputs({pair(): outcomes}))["comparisons"][0]
    assert (row["n"], row["win_rate"]) == (1, expected)


@pytest.mark.parametrize("outcomes", ["a unscored", "unscored a", "a -", "- -"])
def test_a_pair_with_one_order_alone_has_no_score(outcomes: str) -> None:
    result = score(inputs({pair(): outcomes, pair("q1"): "b b"}))
    row = result["comparisons"][0]
    assert (row["n"], row["n_expected"], row["unscored"], row["win_rate"]) == (1, 2, 1, 0.0)
    assert row["verdicts"]["expected"] == 4
    assert row["verdicts"]["unscored"] == sum(o in ("unscored", "-") for o in outcomes.split())


def test_a_single_order_is_enough_where_no_more_is_expected() -> None:
    row = score(inputs({pair(orders=("ab",)): "a"}))["comparisons"][0]
    assert (row["n"], row["win_rate"], row["position_consistency"]) == (1, 1.0, None)


def test_a_query_with_one_scored_constitution_counts() -> None:
    row = score(inputs({pair(): "a a", pair(constitution="list+"): "a unscored"}))["comparisons"][0]
    assert (row["n"], row["n_expected"], row["win_rate"]) == (1, 1, 1.0)
    short = only(row["by_principle"], principle="short")
    unscored = only(row["by_principle"], principle="list")
    assert (short["n"], short["win_rate"]) == (1, 1.0)
    assert (unscored["n"], unscored["win_rate"]) == (0, None)
    assert unscored["note"]


def test_verdicts_that_the_plan_does_not_ask_for_are_left_out() -> None:
    run = inputs({pair(): "a a"})
    stray = verdict(pair("gone"), "ab", "b")
    result = score(dataclasses.replace(run, verdicts=[*run.verdicts, stray]))
    assert result["comparisons"][0]["verdicts"] == {"expected": 2, "a": 2, "b": 0, "tie": 0, "unscored": 0}


def test_the_verifiable_judge_scores_principles_one_by_one() -> None:
    expected = pair(constitution="short+.list-", orders=("ab",))
    details = {
        "principles": {"short": {"follows": True, "a": 0.2, "b": 0.9}, "list": {"follows": False, "a": 1, "b": 0}}
    }
    row = score(inputs({expected: "-"}, verdicts=[verdict(expected, "ab", "a", details)]))["comparisons"][0]
    assert row["win_rate"] == 1.0
    assert only(row["by_principle"], principle="short")["win_rate"] == 0.0
    assert only(row["by_principle"], principle="list")["win_rate"] == 1.0


def test_scores_of_a_principle_that_differ_by_rounding_tie() -> None:
    expected = pair(orders=("ab",))
    details = {"principles": {"short": {"follows": True, "a": 0.1 + 0.2, "b": 0.3}}}
    row = score(inputs({expected: "-"}, verdicts=[verdict(expected, "ab", "tie", details)]))["comparisons"][0]
    assert only(row["by_principle"], principle="short")["ties"] == 1


@pytest.mark.parametrize(("protocol", "expected"), [("corrected", 0.5), ("paper+swap", 0.25), ("paper", 0.25)])
def test_a_tie_is_worth_what_the_protocol_says_for_the_kind_of_the_task(protocol: str, expected: float) -> None:
    judged = {pair("q0", task="posts"): "tie tie", pair("q1", task="chats"): "tie tie"}
    kinds = {"posts": "summarization", "chats": "dialogue"}
    result = score(inputs(judged, kinds=kinds, protocol=PROTOCOLS[protocol]))
    assert only(result["comparisons"], task="all")["win_rate"] == expected
    assert result["protocol"] == protocol
    assert result["tie_rule"] == ("half" if protocol == "corrected" else "half; in summarization: loss")


def test_paper_takes_one_order_of_each_query_and_the_same_for_every_judge() -> None:
    judged = {pair(f"q{i}", judge=judge): "a b" for i in range(60) for judge in ("judge", "other")}
    judges = {name: {"kind": "llm", "model": "base"} for name in ("judge", "other")}
    rows = score(inputs(judged, judges=judges, protocol=PAPER, seed=5))["comparisons"]
    orders = [
        drawn_order(5, "win_rate", "sami", "base", "dialogue", "verifiable", "learned", f"q{i}") for i in range(60)
    ]
    assert [row["win_rate"] for row in rows] == [pytest.approx(orders.count("ab") / 60)] * 2
    assert [row["wins"] + row["losses"] for row in rows] == [60, 60]


def test_repeats_are_averaged_within_a_pair_before_the_pairs_of_a_query() -> None:
    judged = {
        pair("q0", "short+")._replace(repeats=3): "a a b b a a",
        pair("q0", "list+")._replace(repeats=3): "b b unscored a - -",
    }
    row = score(inputs(judged))["comparisons"][0]
    assert row["win_rate"] == pytest.approx((2 / 3 + 0) / 2)
    assert row["n"] == 1
    assert row["verdicts"]["expected"] == 12
