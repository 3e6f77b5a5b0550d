"""The results of a run against a naive loop over the same rows."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from itertools import product
from typing import Any

import pytest

from harness.protocols import PAPER, PROTOCOLS, drawn_order
from harness.rows import Likelihood, Verdict
from harness.score import ExpectedPair, Facts, ResponseKey, ScoreInputs, score
from harness.stats import (
    bradley_terry,
    cohens_kappa,
    gap,
    holm,
    infonce,
    judge_share,
    length_glm,
    length_stratified,
    length_summary,
    own_likeliest,
    paired_difference,
    sign_flip_p,
    win_rate,
)

BOTH = ("ab", "ba")
VALUE = {"a": 1.0, "tie": 0.5, "b": 0.0}


def pair(
    query: str = "q0", constitution: str = "short+", *, orders: tuple[str, ...] = BOTH, **fields: Any
) -> ExpectedPair:
    place = {
        "judge": "judge", "kind": "win_rate", "a": "sami", "b": "base", "task": "dialogue",
        "principle_set": "verifiable", "split": "learned", "epoch": 0, **fields,
    }  # fmt: skip
    return ExpectedPair(query_id=query, constitution_id=constitution, orders=orders, **place)


def verdict(
    expected: ExpectedPair, order: str, outcome: str, details: dict[str, Any] | None = None, repeat: int = 0
) -> Verdict:
    fields = {
        name: value for name, value in expected._asdict().items() if name not in ("orders", "repeats", "judged_by")
    }
    return Verdict.model_validate(
        {
            **fields, "id": f"{expected}{order}{repeat}", "fingerprint": "f", "order": order, "outcome": outcome,
            "repeat": repeat,
            "reason": "no_verdict" if outcome == "unscored" else None, "raw": "", "details": details or {},
            "usage": {}, "latency_s": 0,
        }
    )  # fmt: skip


def inputs(judged: dict[ExpectedPair, str], **fields: Any) -> ScoreInputs:
    """`judged`: outcomes of a pair's orders, one word each, for example "a tie"; "-" for a row that is missing.

    Where a pair was judged several times, those of the first judging come first.
    """
    rows = [
        verdict(expected, order, outcome, repeat=repeat)
        for expected, outcomes in judged.items()
        for (repeat, order), outcome in zip(
            product(range(expected.repeats), expected.orders), outcomes.split(), strict=True
        )
        if outcome != "-"
    ]
    given = {
        "name": "run", "description": "", "spec_fingerprint": "f", "level": 0.95, "max_unscored": 0.02,
        "models": {"base": {}, "sami": {}}, "judges": {"judge": {"kind": "llm", "model": "base"}}, "verdicts": rows,
        "facts": {}, "likelihoods": [], "training": {}, "expected": list(judged),
    }  # fmt: skip
    return ScoreInputs(**{**given, **fields})


def only(rows: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    found = [row for row in rows if all(row[name] == value for name, value in fields.items())]
    assert len(found) == 1
    return found[0]


def strictly(value: Any) -> None:
    json.dumps(value, allow_nan=False)


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


# --- Against the naive loop -------------------------------------------------------------------------------------------


def random_run() -> ScoreInputs:
    rng = random.Random(7)
    judged = {}
    for task, split, q, constitution, epoch in product(
        ("dialogue", "posts"), ("learned", "held_out"), range(30), ("short+.list-", "list+"), (0, 1)
    ):
        outcomes = " ".join(rng.choices(["a", "b", "tie", "unscored", "-"], [4, 3, 2, 1, 0.5], k=2))
        judged[pair(f"q{q}", constitution, task=task, split=split, epoch=epoch)] = outcomes
    lengths = {
        ResponseKey(model, p.task, p.principle_set, p.split, p.query_id, p.constitution_id, p.epoch): Facts(
            rng.randrange(5, 90)
        )
        for p in judged
        for model in ("sami", "base")
    }
    return inputs(judged, facts=lengths)


def naive_scores(run: ScoreInputs, task: str, split: str, principle: str | None = None) -> dict[str, float]:
    rows = {(v.task, v.split, v.query_id, v.constitution_id, v.epoch, v.order): v for v in run.verdicts}
    by_query: dict[str, list[float]] = {}
    for p in run.expected:
        if task not in ("all", p.task) or p.split != split:
            continue
        if principle and principle not in [part[:-1] for part in p.constitution_id.split(".")]:
            continue
        two = [rows.get((p.task, p.split, p.query_id, p.constitution_id, p.epoch, order)) for order in BOTH]
        if all(row is not None and row.outcome != "unscored" for row in two):
            value = sum(VALUE[row.outcome] for row in two if row) / 2
            by_query.setdefault(f"{p.task}\0{p.query_id}", []).append(value)
    return {query: sum(values) / len(values) for query, values in by_query.items()}


@pytest.mark.parametrize("task", ["dialogue", "posts", "all"])
@pytest.mark.parametrize("split", ["learned", "held_out"])
def test_a_win_rate_is_that_of_the_naive_loop(task: str, split: str) -> None:
    run = random_run()
    row = only(score(run)["comparisons"], task=task, split=split)
    scores = list(naive_scores(run, task, split).values())
    expected = win_rate(scores)
    assert row["win_rate"] == pytest.approx(sum(scores) / len(scores), abs=1e-12)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert row["n_eff"] == pytest.approx(expected.n_eff, rel=1e-9)
    assert (row["n"], row["n_expected"]) == (len(scores), 60 if task == "all" else 30)
    assert row["unscored"] == row["n_expected"] - row["n"]
    assert row["wins"] == sum(s > 0.5 for s in scores)
    assert row["ties"] == sum(s == 0.5 for s in scores)
    assert row["losses"] == sum(s < 0.5 for s in scores)
    assert row["win_rate_ties_lost"] == pytest.approx(row["wins"] / row["n"], abs=1e-12)


def test_a_principle_counts_the_constitutions_that_have_it() -> None:
    run = random_run()
    row = only(score(run)["comparisons"], task="all", split="learned")
    assert [p["principle"] for p in row["by_principle"]] == ["list", "short"]
    for found in row["by_principle"]:
        scores = list(naive_scores(run, "all", "learned", found["principle"]).values())
        expected = win_rate(scores)
        assert found["n"] == len(scores)
        assert found["win_rate"] == pytest.approx(expected.estimate, abs=1e-12)
        assert (found["ci_low"], found["ci_high"]) == pytest.approx((expected.low, expected.high), abs=1e-12)


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


def test_mean_lengths_weigh_queries_equally_and_leave_the_unscored_out() -> None:
    run = random_run()
    row = only(score(run)["comparisons"], task="posts", split="learned")
    rows = {(v.task, v.split, v.query_id, v.constitution_id, v.epoch, v.order): v.outcome for v in run.verdicts}
    words: dict[str, list[int]] = {}
    for p in run.expected:
        place = (p.task, p.split, p.query_id, p.constitution_id, p.epoch)
        both = {rows.get((*place, order), "unscored") for order in BOTH}
        if (p.task, p.split) == ("posts", "learned") and "unscored" not in both:
            words.setdefault(p.query_id, []).append(run.lengths["sami", p.task, p.query_id, p.constitution_id, p.epoch])
    means = [sum(w) / len(w) for w in words.values()]
    assert row["mean_length_a"] == pytest.approx(sum(means) / len(means), abs=1e-12)


def test_the_order_of_the_rows_does_not_matter() -> None:
    run = random_run()
    rows, expected = list(run.verdicts), list(run.expected)
    random.Random(1).shuffle(rows)
    random.Random(2).shuffle(expected)
    again = dataclasses.replace(run, verdicts=rows, expected=expected)
    assert json.dumps(score(run)) == json.dumps(score(again))


# --- Orders and scores ------------------------------------------------------------------------------------------------


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


# --- Edges ------------------------------------------------------------------------------------------------------------


def test_an_empty_run_has_empty_results() -> None:
    result = score(inputs({}))
    strictly(result)
    assert (result["comparisons"], result["gaps"], result["steerability"], result["infonce"]) == ([], [], [], [])
    assert result["quality"] == {"unscored_rate": 0.0, "max_unscored": 0.02, "passed": True}
    assert result["judges"]["judge"]["n_pairs"] == 0


def test_nothing_scored_gives_null_figures_with_a_note() -> None:
    judged = {pair(f"q{i}", split=split): "- -" for i in range(3) for split in ("learned", "held_out")}
    judged[pair(kind="steerability", a="base", b="base")] = "unscored a"
    result = score(inputs(judged))
    strictly(result)
    row = result["comparisons"][0]
    assert (row["n"], row["n_expected"], row["win_rate"], row["ci_low"], row["n_eff"]) == (0, 3, None, None, None)
    assert row["win_rate_ties_dropped"] is None
    for noted in (row, result["gaps"][0], result["steerability"][0]):
        assert noted["note"]
    assert result["gaps"][0]["gap"] is None
    assert result["steerability"][0]["steerability"] is None
    assert not result["quality"]["passed"]


def test_all_ties_are_one_half_with_a_finite_interval() -> None:
    result = score(inputs({pair(f"q{i}"): "tie tie" for i in range(12)}))
    row = result["comparisons"][0]
    assert (row["win_rate"], row["ties"], row["win_rate_ties_dropped"], row["win_rate_ties_lost"]) == (0.5, 12, None, 0)
    assert 0 < row["ci_low"] < 0.5 < row["ci_high"] < 1


def test_one_query_has_an_interval() -> None:
    row = score(inputs({pair(): "a a"}))["comparisons"][0]
    assert 0 < row["ci_low"] < 1 == row["win_rate"] == row["ci_high"]
    assert row["ci_method"].startswith("Wilson")


def test_one_task_has_no_row_for_all_tasks() -> None:
    result = score(inputs({pair(split=split): "a a" for split in ("learned", "held_out")}))
    assert {row["task"] for row in result["comparisons"] + result["gaps"]} == {"dialogue"}


def test_queries_of_two_tasks_with_the_same_id_stay_apart() -> None:
    result = score(inputs({pair(task="dialogue"): "a a", pair(task="posts"): "b b"}))
    row = only(result["comparisons"], task="all")
    assert (row["n"], row["wins"], row["losses"]) == (2, 1, 1)


def test_rows_stand_in_the_order_of_models_tasks_and_splits() -> None:
    judged = {
        pair(a=a, task=task, split=split): "a a"
        for a, task, split in product(("zeta", "sami"), ("posts", "dialogue"), ("held_out", "learned"))
    }
    result = score(inputs(judged, models={"zeta": {}, "sami": {}, "base": {}}))
    places = [(row["a"], row["task"], row["split"]) for row in result["comparisons"]]
    assert places == list(product(("zeta", "sami"), ("dialogue", "posts", "all"), ("learned", "held_out")))


# --- The other parts --------------------------------------------------------------------------------------------------


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


def likelihood(query: str, table: list[list[float]], **fields: Any) -> Likelihood:
    given = {
        "id": query, "fingerprint": "f", "model": "base", "task": "dialogue", "query_id": query,
        "principle_set": "verifiable", "split": "learned", "constitution_ids": ["x+", "x-"],
        "logprob_sums": table, "n_tokens": [3, 4],
    }  # fmt: skip
    return Likelihood.model_validate({**given, **fields})


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
    lengths = {
        (m, "dialogue", q, "short+", 0): n for m, q, n in [("sami", "q0", 9), ("base", "q0", 4), ("sami", "q1", 7)]
    }
    card = score(inputs(judged, facts=lengths))["judges"]["judge"]
    assert (card["n_longer"], card["longer_wins"]) == (1, 1.0)


@pytest.mark.parametrize(("limit", "passed"), [(0.25, True), (0.2, False)])
def test_the_run_fails_above_the_limit_of_unscored_verdicts(limit: float, passed: bool) -> None:
    quality = score(inputs({pair(): "a -", pair("q1"): "a b"}, max_unscored=limit))["quality"]
    assert quality == {"unscored_rate": 0.25, "max_unscored": limit, "passed": passed}


def test_numbers_that_json_lacks_become_null_in_the_training_summary() -> None:
    result = score(inputs({}, training={"sami": {"iterations": [{"loss_last": math.nan}], "n": 3}}))
    strictly(result)
    assert result["training"] == {"sami": {"iterations": [{"loss_last": None}], "n": 3}}


def test_the_fields_are_those_of_the_schema() -> None:
    result = score(random_run())
    strictly(result)
    assert list(result) == [
        "schema_version", "name", "description", "harness_version", "spec_fingerprint", "level", "protocol", "tie_rule",
        "models", "comparisons", "gaps", "leaderboards", "rank_stability", "steerability", "infonce", "judges",
        "corrections", "training", "quality", "not_counted",
    ]  # fmt: skip
    assert set(result["comparisons"][0]) == {
        "task", "principle_set", "split", "a", "b", "judge", "n", "n_expected", "wins", "ties", "losses", "unscored",
        "win_rate", "ci_low", "ci_high", "ci_level", "ci_method", "mean_length_a", "mean_length_b", "n_eff",
        "win_rate_ties_dropped", "win_rate_ties_lost", "position_consistency", "verdicts", "by_principle", "p_value",
        "p_holm", "length_spearman", "length_stratified", "length_glm", "swapped", "judge_noise",
    }  # fmt: skip


# --- Protocols, repeats, the control, families ------------------------------------------------------------------------


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


def test_the_noise_of_a_judge_is_that_of_its_repeats() -> None:
    rng = random.Random(2)
    judged = {
        pair(f"q{i}")._replace(repeats=4): " ".join(rng.choices("ab", [0.8, 0.2] if i % 2 else [0.3, 0.7], k=8))
        for i in range(30)
    }
    noise = score(inputs(judged))["comparisons"][0]["judge_noise"]
    rows = [
        (sum(VALUE[o] for o in words.split()[2 * r : 2 * r + 2]) / 2, i, i)
        for i, words in enumerate(judged.values())
        for r in range(4)
    ]
    expected = judge_share(*map(list, zip(*rows, strict=True)))
    assert (noise["sd"], noise["share"], noise["share_once"]) == pytest.approx(
        (expected.sd, expected.share, expected.share_once)
    )
    assert noise["n_pairs"] == 30
    assert noise["ci_low"] <= noise["agreement"] <= noise["ci_high"]
    assert noise["share"] < noise["share_once"]


def test_one_judging_tells_nothing_of_noise() -> None:
    assert score(inputs({pair(): "a a"}))["comparisons"][0]["judge_noise"] is None


def test_the_control_stands_beside_its_comparison_and_in_no_other_figure() -> None:
    judged = {pair(f"q{i}"): "a a" for i in range(12)}
    alone = score(inputs(judged))["comparisons"][0]
    control = {pair(f"q{i}", kind="swapped"): "a b" if i % 3 else "b b" for i in range(12)}
    (row,) = score(inputs(judged | control))["comparisons"]
    expected = win_rate([0.5 if i % 3 else 0.0 for i in range(12)])
    difference = paired_difference([1.0] * 12, [0.5 if i % 3 else 0.0 for i in range(12)])
    assert alone["swapped"] is None
    assert (row["swapped"]["win_rate"], row["swapped"]["n"]) == (pytest.approx(expected.estimate), 12)
    assert (row["swapped"]["ci_low"], row["swapped"]["ci_high"]) == pytest.approx((expected.low, expected.high))
    assert row["swapped"]["difference"] == pytest.approx(difference.estimate)
    assert {k: v for k, v in row.items() if k != "swapped"} == {k: v for k, v in alone.items() if k != "swapped"}


def test_p_is_a_sign_flip_against_one_half_and_adjusted_within_a_judge_and_a_set() -> None:
    rng = random.Random(4)
    judged = {
        pair(f"q{i}", judge=judge, split=split, task=task): rng.choice(["a a", "a b", "b b"])
        for judge, split, task, i in product(("judge", "other"), ("learned", "held_out"), ("posts", "chats"), range(14))
    }
    judges = {name: {"kind": "llm", "model": "base"} for name in ("judge", "other")}
    result = score(inputs(judged, judges=judges))
    for judge in judges:
        rows = [row for row in result["comparisons"] if row["judge"] == judge]
        assert len(rows) == 6
        assert [row["p_holm"] for row in rows] == list(holm([row["p_value"] for row in rows]))
        gaps = [row for row in result["gaps"] if row["judge"] == judge]
        assert [row["p_holm"] for row in gaps] == list(holm([row["p_value"] for row in gaps]))
    row = only(result["comparisons"], judge="other", split="learned", task="posts")
    scores = [VALUE[j.split()[0]] / 2 + VALUE[j.split()[1]] / 2 for p, j in judged.items()
              if (p.judge, p.split, p.task) == ("other", "learned", "posts")]  # fmt: skip
    assert row["p_value"] == pytest.approx(sign_flip_p(scores, [0.5] * 14))


def test_lengths_are_taken_out_over_queries() -> None:
    run = random_run()
    row = only(score(run)["comparisons"], task="all", split="learned")
    assert row["length_stratified"]["win_rate"] is not None
    scores = naive_scores(run, "all", "learned")
    rows = {(v.task, v.split, v.query_id, v.constitution_id, v.epoch, v.order): v.outcome for v in run.verdicts}
    words: dict[str, list[tuple[int, int]]] = {}
    for p in run.expected:
        place = (p.task, p.query_id, p.constitution_id, p.epoch)
        both = {rows.get((p.task, p.split, *place[1:], order), "unscored") for order in BOTH}
        if p.split == "learned" and "unscored" not in both:
            own = (run.lengths["sami", *place], run.lengths["base", *place])
            words.setdefault(f"{p.task}\0{p.query_id}", []).append(own)
    queries = sorted(scores)
    a, b = ([sum(w[side] for w in words[q]) / len(words[q]) for q in queries] for side in (0, 1))
    values = [scores[q] for q in queries]
    stratified, glm = length_stratified(values, a, b), length_glm(values, a, b)
    for key, found in (("length_stratified", stratified), ("length_glm", glm)):
        assert (row[key]["win_rate"], row[key]["ci_low"], row[key]["ci_high"]) == pytest.approx(
            (found.estimate, found.low, found.high), abs=1e-9
        )
    assert row["length_spearman"] == pytest.approx(length_summary(a, b, values).spearman, abs=1e-12)


def test_lengths_that_do_not_permit_it_say_why() -> None:
    judged = {pair(f"q{i}"): "a b" for i in range(12)}
    lengths = {(m, "dialogue", f"q{i}", "short+", 0): 10 for m in ("sami", "base") for i in range(12)}
    row = score(inputs(judged, facts=lengths))["comparisons"][0]
    assert row["length_stratified"]["win_rate"] is None
    assert "10 queries in each half" in row["length_stratified"]["note"]
    assert row["length_glm"]["note"]


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
