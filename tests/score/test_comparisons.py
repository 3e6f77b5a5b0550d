"""The row of a comparison against a naive loop over the same rows."""

from __future__ import annotations

import random
from typing import Any

import pytest
from score_rows import VALUE, inputs, naive_means, naive_pairs, naive_scores, only, pair, random_run, verdict

from harness.score import Facts, score
from harness.stats import (
    judge_share,
    length_glm,
    length_stratified,
    length_summary,
    paired_difference,
    principles_interval,
    win_rate,
)


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


def test_mean_lengths_weigh_queries_equally_and_leave_the_unscored_out() -> None:
    run = random_run()
    row = only(score(run)["comparisons"], task="posts", split="learned")
    words = [(query, run.facts[p.response("a")].words) for query, p, _ in naive_pairs(run, "posts", "learned")]
    means = naive_means(words)
    assert row["mean_length_a"] == pytest.approx(sum(means) / len(means), abs=1e-12)


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


def test_lengths_are_taken_out_over_queries() -> None:
    run = random_run()
    row = only(score(run)["comparisons"], task="all", split="learned")
    assert row["length_stratified"]["win_rate"] is not None
    pairs = naive_pairs(run, "all", "learned")
    a, b = (naive_means([(q, run.facts[p.response(side)].words) for q, p, _ in pairs]) for side in ("a", "b"))
    values = naive_means([(query, value) for query, _, value in pairs])
    stratified, glm = length_stratified(values, a, b), length_glm(values, a, b)
    for key, found in (("length_stratified", stratified), ("length_glm", glm)):
        assert (row[key]["win_rate"], row[key]["ci_low"], row[key]["ci_high"]) == pytest.approx(
            (found.estimate, found.low, found.high), abs=1e-9
        )
    assert row["length_spearman"] == pytest.approx(length_summary(a, b, values).spearman, abs=1e-12)


def test_lengths_that_do_not_permit_it_say_why() -> None:
    judged = {pair(f"q{i}"): "a b" for i in range(12)}
    lengths = {p.response(side): Facts(10) for p in judged for side in ("a", "b")}
    row = score(inputs(judged, facts=lengths))["comparisons"][0]
    assert row["length_stratified"]["win_rate"] is None
    assert "10 queries in each half" in row["length_stratified"]["note"]
    assert row["length_glm"]["note"]


# --- Principles like these, copied text left in


def many_principles(n_principles: int) -> dict[Any, str]:
    rng = random.Random(5)
    return {
        pair(f"q{i}", f"p{i % n_principles}+.p{(i + 1) % n_principles}-"): rng.choice(
            ["a a", "a b", "b b", "a unscored"]
        )
        for i in range(48)
    }


def test_principles_like_these_have_an_interval_of_their_own() -> None:
    run = inputs(many_principles(8))
    (row,) = score(run)["comparisons"]
    scored = naive_pairs(run, "dialogue", "learned")
    held = [tuple(part[:-1] for part in p.constitution_id.split(".")) for _, p, _ in scored]
    expected = principles_interval([value for *_, value in scored], [query for query, *_ in scored], held)
    found = row["principles_ci"]
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert (found["n_principles"], found["method"]) == (8, expected.method)
    assert found["low"] <= row["win_rate"] <= found["high"]
    assert "note" not in found


def test_few_principles_say_why_they_have_none() -> None:
    (row,) = score(inputs(many_principles(4)))["comparisons"]
    assert {name: row["principles_ci"][name] for name in ("low", "high", "method", "n_principles")} == {
        "low": None, "high": None, "method": None, "n_principles": 4,
    }  # fmt: skip
    assert "at least 5 principles" in row["principles_ci"]["note"]


def test_the_win_rate_with_copied_text_left_in_stands_beside() -> None:
    """The third query has no score, and its whole response does not count either."""
    outcomes = [("a", "b"), ("tie", "b"), ("unscored", "a"), ("b", "a"), ("b", "tie")]
    judged = {pair(f"q{i}", orders=("ab",)): own for i, (own, _) in enumerate(outcomes)}
    rows = [
        verdict(p, "ab", own, {"whole": {"outcome": whole}})
        for (p, own), (_, whole) in zip(judged.items(), outcomes, strict=True)
    ]
    (row,) = score(inputs(judged, verdicts=rows))["comparisons"]
    expected = win_rate([0.0, 0.0, 1.0, 0.5])
    assert row["whole"] == {"n": 4, "win_rate": 0.375, "ci_low": expected.low, "ci_high": expected.high}
    assert row["win_rate"] == 0.375
    assert score(inputs({pair(): "a a"}))["comparisons"][0]["whole"] is None, "a judge that leaves nothing out"


# --- What is unscored, and the lengths of each principle set


def test_losses_that_end_unscored_are_counted_by_model() -> None:
    outcomes = [
        "b unscored",
        "unscored b",
        "b b",
        "a unscored",
        "a a",
        "a tie",
        "unscored unscored",
        "b -",
        "tie unscored",
    ]
    judged = {pair(f"q{i}"): both for i, both in enumerate(outcomes)}
    (row,) = score(inputs(judged))["comparisons"]
    assert row["unscored_losses"] == {"a": {"n": 4, "unscored": 2}, "b": {"n": 4, "unscored": 1}}
    assert score(inputs({pair(orders=("ab",)): "a"}))["comparisons"][0]["unscored_losses"] is None


def test_lengths_are_those_of_the_own_principle_set() -> None:
    """Two sets that share a principle have constitutions of one id, and other responses."""
    judged = {pair(f"q{i}", principle_set=name): "a b" for i in range(4) for name in ("one", "two")}
    words = {"one": 10, "two": 90}
    facts = {p.response(side): Facts(words[p.principle_set]) for p in judged for side in ("a", "b")}
    rows = score(inputs(judged, facts=facts))["comparisons"]
    assert {row["principle_set"]: (row["mean_length_a"], row["mean_length_b"]) for row in rows} == {
        "one": (10, 10), "two": (90, 90),
    }  # fmt: skip
