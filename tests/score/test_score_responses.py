"""What responses are, beside every comparison and for every model, against loops over the responses."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import pytest
from score_rows import inputs, naive_means, naive_pairs, only, pair, strictly

from harness.rows import Generation
from harness.score import ExpectedPair, Facts, ResponseKey, ScoreInputs, score
from harness.score.responses import facts_of
from harness.stats import adjusted_win_rate, echo_adjusted, paired_difference, style_adjusted, win_rate
from sami_train.data import Query

SIDES = ("a", "b")


def some_run(n: int = 60, **fields: Any) -> ScoreInputs:
    rng = random.Random(21)
    judged: dict[ExpectedPair, str] = {}
    facts, relevance = {}, {}
    for task, i, constitution in product(("dialogue", "posts"), range(n), ("short+", "list-")):
        p = pair(f"q{i:02}", constitution, task=task)
        judged[p] = " ".join(rng.choices(["a", "b", "tie", "unscored"], [4, 4, 2, 0.5], k=2))
        for side in SIDES:
            words = rng.choice([0, 4, 20, 30])
            facts[p.response(side)] = Facts(
                words,
                copied=rng.choice([0, 0, 0.2, 0.7]),
                ran_on=rng.random() < 0.3,
                shortened=rng.random() < 0.1,
                cut=rng.random() < 0.5,
                repeats_query=rng.choice([0, 0.49, 0.5, 1]),
                digest=rng.choice("xyz"),
                style={"words": words, "list items": rng.randrange(3), "headings": 0, "bold": rng.randrange(2)},
            )
            relevance[p.response(side)] = ("judge", rng.choice([0, 0.25, 0.5, 0.75, 1]))
    return inputs(judged, facts=facts, **{"relevance": relevance, **fields})


def naive_shares(found: list[Facts]) -> dict[str, float]:
    n = len(found)
    return {
        "n": n,
        "copied": sum(f.copied > 0 for f in found) / n,
        "ran_on": sum(f.ran_on for f in found) / n,
        "shortened": sum(f.shortened for f in found) / n,
        "cut": sum(f.cut for f in found) / n,
        "empty": sum(f.words == 0 for f in found) / n,
        "repeats_query": sum(f.repeats_query >= 0.5 for f in found) / n,
    }


# --- Beside a comparison


@pytest.mark.parametrize("task", ["dialogue", "all"])
def test_shares_of_both_sides_stand_beside_a_comparison(task: str) -> None:
    run = some_run()
    row = only(score(run)["comparisons"], task=task)
    pairs = [p for p in run.expected if task in ("all", p.task)]
    for side in SIDES:
        assert row["responses"][side] == pytest.approx(naive_shares([run.facts[p.response(side)] for p in pairs]))
    same = sum(run.facts[p.response("a")].digest == run.facts[p.response("b")].digest for p in pairs)
    assert row["responses"]["identical"] == pytest.approx(same / len(pairs))


@pytest.mark.parametrize(("text", "words"), [("", 0), (" \n", 0), ("...", 0), ("🙂 !", 0), ("No.", 1), ("はい", 1)])
def test_a_text_without_a_letter_is_empty(text: str, words: int) -> None:
    row = Generation(
        id="x", fingerprint="f", model="m", task="t", query_id="q", constitution_id="c", principle_set="s", split="learned",
        epoch=0, prompt_hash="h", prompt="p", text=text, finish_reason="stop", n_prompt_tokens=1, n_tokens=1,
        truncated=False,
    )  # fmt: skip
    assert facts_of(row, [], Query("q", "Is it?", "dialogue")).words == words


def test_one_text_for_several_queries_is_counted() -> None:
    judged = {pair(f"q{i}", c): "a a" for i in range(4) for c in ("short+", "list-")}
    texts = {"q0": "same", "q1": "same", "q2": "empty", "q3": "other"}
    facts = {
        p.response(side): Facts(0 if p.query_id == "q2" else 3, digest=texts[p.query_id] if side == "a" else p.query_id)
        for p in judged
        for side in SIDES
    }
    shares = {row["model"]: row["same_text"] for row in score(inputs(judged, facts=facts))["responses"]}
    assert shares == {"sami": 0.5, "base": 0.0}, "under two constitutions one query may get one text"


def test_without_facts_the_shares_are_null() -> None:
    (row,) = score(inputs({pair(): "a a"}))["comparisons"]
    strictly(row)
    assert row["responses"]["a"] == {
        "n": 0,
        **dict.fromkeys(("copied", "ran_on", "cut", "empty", "repeats_query", "shortened")),
    }
    assert (row["responses"]["identical"], row["relevance"]) == (None, None)
    for name in ("echo_adjusted", "style_adjusted", "relevance_adjusted"):
        assert row[name]["win_rate"] is None
        assert row[name]["note"]


def test_win_rates_are_read_where_both_copy_alike_and_where_both_are_alike_in_style() -> None:
    run = some_run()
    row = only(score(run)["comparisons"], task="all")
    scored = naive_pairs(run, "all", "learned")
    scores = naive_means([(q, value) for q, _, value in scored])

    def means(side: Any, value: Any) -> list[float]:
        return naive_means([(q, value(run.facts[p.response(side)])) for q, p, _ in scored])

    echo = echo_adjusted(scores, *(means(side, lambda f: f.copied) for side in SIDES))
    names = ("words", "list items", "headings", "bold")
    styles = []
    for side in SIDES:
        counts = [means(side, lambda f, name=name: f.style[name]) for name in names]
        styles.append([dict(zip(names, own, strict=True)) for own in zip(*counts, strict=True)])
    style = style_adjusted(scores, *styles)
    for key, found in (("echo_adjusted", echo), ("style_adjusted", style)):
        assert row[key] == pytest.approx(
            {"n": found.n, "win_rate": found.estimate, "ci_low": found.low, "ci_high": found.high}, abs=1e-9
        )


def test_nothing_to_adjust_for_is_said() -> None:
    judged = {pair(f"q{i}"): "a a" if i % 2 else "b b" for i in range(30)}
    facts = {p.response(side): Facts(5, style={"words": 5}) for p in judged for side in SIDES}
    (row,) = score(inputs(judged, facts=facts))["comparisons"]
    assert "nothing to adjust for" in row["echo_adjusted"]["note"]
    assert "nothing to adjust for" in row["style_adjusted"]["note"]


# --- Relevance


def test_relevance_has_the_interval_of_a_rate_and_a_paired_difference() -> None:
    run = some_run()
    row = only(score(run)["comparisons"], task="all")["relevance"]
    means = {}
    for side in SIDES:
        means[side] = naive_means(
            [(f"{p.task}\0{p.query_id}", run.relevance[p.response(side)][1]) for p in run.expected]
        )
        expected = win_rate(means[side])
        assert row[side] == pytest.approx(
            {
                "relevance": expected.estimate,
                "ci_low": expected.low,
                "ci_high": expected.high,
                "n": 120,
                "scorer": "judge",
            }
        )
    apart = paired_difference(means["a"], means["b"])
    assert (row["difference"], row["difference_low"], row["difference_high"], row["n_paired"]) == pytest.approx(
        (apart.estimate, apart.low, apart.high, 120)
    )


def test_a_win_rate_is_read_where_both_are_as_relevant() -> None:
    run = some_run()
    row = only(score(run)["comparisons"], task="all")["relevance_adjusted"]
    scored = naive_pairs(run, "all", "learned")
    apart = [(q, run.relevance[p.response("a")][1] - run.relevance[p.response("b")][1]) for q, p, _ in scored]
    scores = naive_means([(q, value) for q, _, value in scored])
    found = adjusted_win_rate(scores, {"relevance": naive_means(apart)})
    assert row == pytest.approx(
        {"n": found.n, "win_rate": found.estimate, "ci_low": found.low, "ci_high": found.high}, abs=1e-9
    )


def test_relevances_by_two_scorers_are_not_compared() -> None:
    run = some_run(4)
    mixed = {key: ("judge" if key.model == "sami" else "other", value) for key, (_, value) in run.relevance.items()}
    row = only(score(some_run(4, relevance=mixed))["comparisons"], task="dialogue")["relevance"]
    assert (row["difference"], row["a"]["scorer"], row["b"]["scorer"]) == (None, "judge", "other")
    assert "different models" in row["note"]
    adjusted = only(score(some_run(4, relevance=mixed))["comparisons"], task="dialogue")["relevance_adjusted"]
    assert adjusted["win_rate"] is None
    assert adjusted["note"]


def test_a_relevance_of_one_side_alone_is_said() -> None:
    run = some_run(4)
    one = {key: value for key, value in run.relevance.items() if key.model == "sami"}
    row = only(score(some_run(4, relevance=one))["comparisons"], task="dialogue")["relevance"]
    assert (row["b"], row["difference"]) == (None, None)
    assert "of one of the two is not measured" in row["note"]


def test_relevances_of_other_queries_are_not_paired() -> None:
    run = some_run(4)
    apart = {
        key: value for key, value in run.relevance.items() if (key.model == "sami") == (key.query_id in ("q00", "q01"))
    }
    row = only(score(some_run(4, relevance=apart))["comparisons"], task="dialogue")["relevance"]
    assert (row["a"]["n"], row["b"]["n"], row["difference"]) == (2, 2, None)
    assert "No query has a relevance of both" in row["note"]


# --- By model


def test_every_model_has_a_row_for_each_task_and_for_all() -> None:
    run = some_run()
    rows = score(run)["responses"]
    assert [(row["model"], row["task"]) for row in rows] == list(
        product(("base", "sami"), ("dialogue", "posts", "all"))
    )
    for row in rows:
        keys = [key for key in run.facts if key.model == row["model"] and row["task"] in ("all", key.task)]
        facts = [run.facts[key] for key in keys]
        assert {name: row[name] for name in naive_shares(facts)} == pytest.approx(naive_shares(facts))
        assert row["words"] == pytest.approx(sum(f.words for f in facts) / len(facts))
        expected = win_rate(naive_means([(f"{key.task}\0{key.query_id}", run.relevance[key][1]) for key in keys]))
        assert row["relevance"]["relevance"] == pytest.approx(expected.estimate)
        assert (row["relevance"]["ci_low"], row["relevance"]["ci_high"]) == pytest.approx((expected.low, expected.high))


def test_a_model_without_relevance_has_none() -> None:
    rows = score(some_run(2, relevance={}))["responses"]
    assert {row["relevance"] for row in rows} == {None}


# --- Of one response


SENTENCES = ("Write the word because in every sentence.", "Never give a reason.")
QUERY = Query("q", "what should I plant on a small balcony", "dialogue")


def generation(text: str, **fields: Any) -> Generation:
    given = {
        "id": "i", "fingerprint": "f", "model": "m", "task": "dialogue", "query_id": "q", "constitution_id": "c+",
        "principle_set": "s", "split": "learned", "prompt_hash": "h", "prompt": "p", "finish_reason": "stop",
        "n_prompt_tokens": 1, "n_tokens": 1, "truncated": False,
    }  # fmt: skip
    return Generation.model_validate({**given, "text": text, **fields})


def test_copies_are_of_the_own_constitution_on_either_side() -> None:
    text = "I WRITE THE WORD, because in haste. Never give a reason!"
    assert facts_of(generation(text), SENTENCES, QUERY).copied == pytest.approx(9 / 11)
    assert facts_of(generation(text), ("Something else is asked of you.",), QUERY).copied == 0


def test_how_a_response_ended() -> None:
    assert not any(facts_of(generation("Yes."), SENTENCES, QUERY)[2:4])
    assert facts_of(generation("Yes.", tail="2. and on"), SENTENCES, QUERY).ran_on
    assert facts_of(generation("Yes", finish_reason="length"), SENTENCES, QUERY).cut
    assert facts_of(generation("Yes.", truncated=True), SENTENCES, QUERY).shortened
    assert not facts_of(generation("Yes."), SENTENCES, QUERY).shortened
    nothing = facts_of(generation(" \n "), SENTENCES, QUERY)
    assert (nothing.words, nothing.copied, nothing.repeats_query) == (0, 0, 0)


def test_an_echo_of_the_query_counts_in_dialogue_alone() -> None:
    echo = generation("What should I plant on a small balcony? Herbs.")
    assert facts_of(echo, SENTENCES, QUERY).repeats_query == pytest.approx(8 / 9)
    assert facts_of(echo, SENTENCES, Query("q", QUERY.text, "summarization")).repeats_query == 0


def test_texts_that_differ_in_blanks_are_the_same() -> None:
    one, two, other = (facts_of(generation(t), SENTENCES, QUERY).digest for t in ("a  b", " a\nb ", "ab"))
    assert one == two != other


def test_the_place_of_a_response_is_its_rows() -> None:
    from harness.score.responses import response_key

    assert response_key(generation("x", epoch=2)) == ResponseKey("m", "dialogue", "s", "learned", "q", "c+", 2)
