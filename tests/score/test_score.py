"""The results of a run as a whole: their fields, their order, what is adjusted together, and edges."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from itertools import product
from typing import Any

import pytest
from score_rows import VALUE, inputs, only, pair, random_run, strictly, verdict

from harness.score import ExpectedPair, score
from harness.stats import holm, sign_flip_p


def test_the_order_of_the_rows_does_not_matter() -> None:
    run = random_run()
    rows, expected = list(run.verdicts), list(run.expected)
    random.Random(1).shuffle(rows)
    random.Random(2).shuffle(expected)
    again = dataclasses.replace(run, verdicts=rows, expected=expected)
    assert json.dumps(score(run)) == json.dumps(score(again))


def test_an_empty_run_has_empty_results() -> None:
    result = score(inputs({}))
    strictly(result)
    assert (result["comparisons"], result["gaps"], result["steerability"], result["infonce"]) == ([], [], [], [])
    nothing = {"unscored_rate": 0.0, "judge": None, "max_unscored": 0.02, "passed": True, "by_judge": []}
    assert result["quality"] == nothing
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


@pytest.mark.parametrize(("limit", "passed"), [(0.25, True), (0.2, False)])
def test_the_run_fails_above_the_limit_of_unscored_verdicts(limit: float, passed: bool) -> None:
    quality = score(inputs({pair(): "a -", pair("q1"): "a b"}, max_unscored=limit))["quality"]
    assert (quality["unscored_rate"], quality["max_unscored"], quality["passed"]) == (0.25, limit, passed)


def test_the_worst_judge_decides() -> None:
    """A judge that read nothing: neither a program's verdicts, nor ties of equal texts, nor its contrasts make up for that."""
    judges = {name: {"kind": "llm", "model": "base"} for name in ("program", "blind")}
    judged = {pair(f"q{i}", judge="program", orders=("ab",)): "a" for i in range(96)}
    judged |= {pair(f"q{i}", judge="blind", kind="steerability", b="sami"): "a a" for i in range(96)}
    blind = {pair(f"q{i}", judge="blind"): "unscored -" for i in range(2)}
    same = {pair(f"q{i}", judge="blind"): "tie tie" for i in range(2, 50)}
    rows = [
        verdict(p, order, outcome, {"identical": True} if p in same else {})
        for p, outcomes in {**judged, **blind, **same}.items()
        for order, outcome in zip(p.orders, outcomes.split(), strict=True)
        if outcome != "-"
    ]
    quality = score(inputs(judged | blind | same, judges=judges, verdicts=rows))["quality"]
    assert (quality["unscored_rate"], quality["judge"], quality["passed"]) == (1.0, "blind", False)
    assert quality["by_judge"] == [
        {"judge": "blind", "kind": "steerability", "n": 192, "unscored": 0, "unscored_rate": 0.0},
        {"judge": "blind", "kind": "win_rate", "n": 4, "unscored": 4, "unscored_rate": 1.0},
        {"judge": "program", "kind": "win_rate", "n": 96, "unscored": 0, "unscored_rate": 0.0},
    ]


def test_numbers_that_json_lacks_become_null_in_the_training_summary() -> None:
    result = score(inputs({}, training={"sami": {"iterations": [{"loss_last": math.nan}], "n": 3}}))
    strictly(result)
    assert result["training"] == {"sami": {"iterations": [{"loss_last": None}], "n": 3}}


def test_the_fields_are_those_of_the_schema() -> None:
    result = score(random_run())
    strictly(result)
    assert list(result) == [
        "schema_version", "name", "description", "harness_version", "spec_fingerprint", "level", "protocol", "tie_rule",
        "models", "comparisons", "responses", "gaps", "leaderboards", "rank_stability", "steerability", "infonce", "judges",
        "corrections", "training", "quality", "not_counted",
    ]  # fmt: skip
    assert set(result["comparisons"][0]) == {
        "task", "principle_set", "split", "a", "b", "judge", "n", "n_expected", "wins", "ties", "losses", "unscored",
        "win_rate", "ci_low", "ci_high", "ci_level", "ci_method", "mean_length_a", "mean_length_b", "n_eff",
        "win_rate_ties_dropped", "win_rate_ties_lost", "position_consistency", "verdicts", "by_principle", "p_value",
        "p_holm", "n_family", "family", "length_spearman", "length_stratified", "length_glm", "swapped", "judge_noise",
        "principles_ci", "whole", "unscored_losses", "responses", "relevance", "echo_adjusted", "style_adjusted",
        "relevance_adjusted",
    }  # fmt: skip
    assert set(result["gaps"][0]) == {
        "task", "principle_set", "a", "b", "judge", "gap", "ci_low", "ci_high", "ci_level", "ci_method", "n", "p_value",
        "p_holm", "n_family", "family", "principles", "steered",
    }  # fmt: skip


def families(tasks: tuple[str, ...]) -> tuple[dict[ExpectedPair, str], dict[str, Any]]:
    rng = random.Random(4)
    judged = {
        pair(f"q{i}", judge=judge, split=split, task=task): rng.choice(["a a", "a b", "b b"])
        for judge, split, task, i in product(("judge", "other"), ("learned", "held_out"), tasks, range(14))
    }
    return judged, score(inputs(judged, judges={name: {"kind": "llm", "model": "base"} for name in ("judge", "other")}))


def test_p_is_a_sign_flip_against_one_half() -> None:
    judged, result = families(("posts", "chats"))
    row = only(result["comparisons"], judge="other", split="learned", task="posts")
    scores = [
        (VALUE[words.split()[0]] + VALUE[words.split()[1]]) / 2
        for p, words in judged.items()
        if (p.judge, p.split, p.task) == ("other", "learned", "posts")
    ]
    assert row["p_value"] == pytest.approx(sign_flip_p(scores, [0.5] * 14))


def test_rows_of_all_tasks_are_the_headline_and_those_of_single_ones_the_detail() -> None:
    """Each family of a judge is adjusted by itself."""
    _, result = families(("posts", "chats"))
    for rows, each in ((result["comparisons"], 2), (result["gaps"], 1)):
        for judge, (family, tasks) in product(
            ("judge", "other"), (("headline", {"all"}), ("detail", {"chats", "posts"}))
        ):
            found = [row for row in rows if (row["judge"], row["family"]) == (judge, family)]
            assert {row["task"] for row in found} == tasks
            assert [row["n_family"] for row in found] == [each * len(tasks)] * (each * len(tasks))
            assert [row["p_holm"] for row in found] == list(holm([row["p_value"] for row in found]))


def test_the_rows_of_a_single_task_are_the_headline() -> None:
    _, result = families(("chats",))
    for row in (*result["comparisons"], *result["gaps"]):
        assert row["family"] == "headline"
    rows = [row for row in result["comparisons"] if row["judge"] == "judge"]
    assert [row["p_holm"] for row in rows] == list(holm([row["p_value"] for row in rows]))


def test_a_row_without_a_score_is_in_no_family() -> None:
    judged = {pair(f"q{i}"): "a a" for i in range(8)} | {pair("q0", split="held_out"): "- -"}
    rows = score(inputs(judged))["comparisons"]
    assert [(row["split"], row["n_family"], row["p_holm"]) for row in rows] == [
        ("learned", 1, rows[0]["p_value"]),
        ("held_out", None, None),
    ]
