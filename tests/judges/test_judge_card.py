"""The judge card: what a judge's verdicts say of the judge."""

from __future__ import annotations

import math
from typing import Any

import pytest

from harness.judges.card import JudgedPair, against_reference, corrected, full_card, judge_card
from harness.judges.llm import Order, Outcome
from harness.rows import Verdict
from harness.stats import Labels, judge_agreement, post_stratified, ppi_mean, rogan_gladen, win_rate, worth_in_labels


def row(query: str, order: Order, outcome: Outcome, **more: Any) -> Verdict:
    reason = more.pop("reason", "no_verdict") if outcome == "unscored" else None
    fields = {"details": {}, **more}
    return Verdict(
        id=f"{query}-{order}-{more.get('repeat', 0)}",
        fingerprint="f",
        judge="j",
        kind="win_rate",
        a="m1",
        b="m2",
        task="dialogue",
        query_id=query,
        constitution_id="c",
        principle_set="s",
        split="learned",
        order=order,
        outcome=outcome,
        reason=reason,
        raw="",
        usage={},
        latency_s=0,
        **fields,
    )


def test_judge_card() -> None:
    card = judge_card(
        [
            *(row("q1", "ab", "a"), row("q1", "ba", "a")),  # consistent
            *(row("q2", "ab", "a"), row("q2", "ba", "b")),  # the first place both times
            *(row("q3", "ab", "tie"), row("q3", "ba", "tie")),  # consistent
            *(row("q4", "ab", "b"), row("q4", "ba", "unscored", reason="rate_limit")),  # one order only
            *(row("q5", "ab", "unscored"), row("q5", "ba", "unscored")),
            *(row("q6", "ab", "tie", details={"identical": True}), row("q6", "ba", "tie", details={"identical": True})),
        ]
    )
    assert card == {
        "n": 10,
        "n_identical": 2,
        "unscored_rate": 0.3,
        "unscored_reasons": {"no_verdict": 2, "rate_limit": 1},
        "unscored_said": [{"n": 2, "said": "no_verdict"}, {"n": 1, "said": "rate_limit"}],
        "n_retried": 0,
        "left_out": [],
        "n_scored": 7,
        "ties": 2 / 7,
        "n_decided": 5,
        "share_first": 3 / 5,
        "n_pairs": 3,
        "position_consistency": 2 / 3,
        "n_repeated": 0,
        "repeat_agreement": None,
    }


def test_judge_card_keeps_samples_of_one_query_apart() -> None:
    card = judge_card([row("q", "ab", "a", epoch=0), row("q", "ba", "b", epoch=1)])
    assert (card["n_pairs"], card["position_consistency"]) == (0, None)


def test_judge_card_of_nothing() -> None:
    card = judge_card([])
    assert card["n"] == 0
    assert card["unscored_rate"] is None
    assert card["position_consistency"] is None


def test_repeats_of_a_pair_in_one_order_are_held_against_each_other() -> None:
    said: list[Outcome] = ["a", "a", "b"]
    rows = [row("q1", "ab", outcome, repeat=number) for number, outcome in enumerate(said)]
    card = judge_card([*rows, row("q1", "ba", "b"), row("q2", "ab", "tie"), row("q2", "ab", "tie", repeat=1)])
    assert (card["n_repeated"], card["repeat_agreement"]) == (2, pytest.approx((1 / 3 + 1) / 2))


def pair(query: str, score: float | None, a: int = 5, b: int = 5, identical: bool = False) -> JudgedPair:
    """A pair whose two verdicts have this score together."""
    outcomes: tuple[Outcome, Outcome] = ("unscored", "unscored")
    if score is not None:
        outcomes = {1.0: ("a", "a"), 0.5: ("a", "b"), 0.0: ("b", "b")}[score]  # type: ignore[assignment]
    details = {"identical": True} if identical else {}
    rows = row(query, "ab", outcomes[0], details=details), row(query, "ba", outcomes[1], details=details)
    return JudgedPair((query,), query, rows, score, a, b)


def test_the_longer_answer_may_be_preferred() -> None:
    pairs = [pair("1", 1.0, 9, 5), pair("2", 0.0, 5, 9), pair("3", 1.0, 2, 7), pair("4", 0.5, 9, 1), pair("5", 1.0)]
    card = full_card([*pairs, pair("6", None, 9, 1), pair("7", 0.5, 9, 9, identical=True)], 0.95)
    assert (card["n_longer"], card["longer_wins"]) == (3, pytest.approx(2 / 3))
    low, high = card["intervals"]["longer_wins"]
    assert low < 2 / 3 < high
    assert card["length_spearman"] == pytest.approx(-1 / 80**0.5)


def test_every_share_of_the_full_card_lies_in_its_interval() -> None:
    pairs = [pair(str(number), (1.0, 0.5, 0.0, None)[number % 4], number, 7) for number in range(40)]
    card = full_card(pairs, 0.95)
    for name, interval in card["intervals"].items():
        if card[name] is None:
            assert (name, interval) == ("repeat_agreement", None)
        else:
            assert interval[0] <= card[name] <= interval[1]


def test_a_card_of_nothing_has_no_intervals() -> None:
    card = full_card([], 0.95)
    assert set(card["intervals"].values()) == {None}
    assert card["length_spearman"] is None


SCORES = [1.0, 1.0, 0.5, 0.0, 1.0, 0.0, 0.5, 1.0, 0.0, 1.0, 0.5, 1.0]
LABELS = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.5, 1.0, 0.5, 1.0, 0.0, 1.0]


def test_agreement_is_that_of_the_statistics_on_the_pairs_of_both() -> None:
    pairs = [pair(str(number), score) for number, score in enumerate(SCORES)]
    reference: dict[tuple[object, ...], float] = {(str(number),): label for number, label in enumerate(LABELS)}
    found = against_reference(
        [*pairs, pair("alone", 1.0), pair("same", 0.5, identical=True)], reference | {("same",): 0.5}, 0.95
    )
    by_hand = judge_agreement(SCORES, LABELS, 0.95)
    assert by_hand.kappa is not None
    assert by_hand.sensitivity is not None
    assert (found["n"], found["n_a"], found["n_b"]) == (12, 6, 4)
    assert found["accuracy"] == pytest.approx(by_hand.accuracy.estimate)
    assert found["accuracy_ci"] == pytest.approx([by_hand.accuracy.low, by_hand.accuracy.high])
    assert found["kappa"] == by_hand.kappa.estimate
    assert found["sensitivity"] == pytest.approx(by_hand.sensitivity.estimate)
    assert found["table"] == by_hand.table.tolist()
    assert found["worth"]["n_verdicts"] == 1000
    assert found["worth"]["labels"] == pytest.approx(worth_in_labels([Labels(SCORES, LABELS, 1000)]).labels)


def test_kinds_of_comparison_are_not_mixed() -> None:
    """A judge that is right on win rates and wrong on steerability."""
    pairs = [pair(f"{number}", float(number % 2)) for number in range(20)]
    steered = [p._replace(key=(p.query, "s"), kind="steerability", score=1 - (p.score or 0)) for p in pairs]
    reference: dict[tuple[object, ...], float] = {p.key: float(int(p.query) % 2) for p in [*steered, *pairs]}
    found = against_reference([*steered, *pairs], reference, 0.95)
    assert (found["kind"], found["n"], found["accuracy"]) == ("win_rate", 20, 1)
    assert {kind: figures["accuracy"] for kind, figures in found["by_kind"].items()} == {
        "win_rate": 1,
        "steerability": 0,
    }
    alone = against_reference(steered, reference, 0.95)
    assert (alone["kind"], alone["accuracy"], alone["kappa"]) == ("steerability", 0, pytest.approx(-1))


def test_pairs_of_one_query_do_not_narrow_the_interval() -> None:
    pairs = [pair(str(number), score) for number, score in enumerate(SCORES)]
    again = [p._replace(key=(p.query, "again")) for p in pairs]
    reference: dict[tuple[object, ...], float] = {p.key: LABELS[int(p.query)] for p in [*pairs, *again]}
    once, twice = against_reference(pairs, reference, 0.95), against_reference([*pairs, *again], reference, 0.95)
    assert twice["n"] == 2 * once["n"]
    assert twice["accuracy_ci"] == pytest.approx(once["accuracy_ci"])
    assert twice["kappa_ci"] == pytest.approx(once["kappa_ci"])


def test_agreement_without_a_common_pair_says_so() -> None:
    found = against_reference([pair("1", 1.0)], {("2",): 1.0}, 0.95)
    assert (found["n"], found["accuracy"], found["kappa_ci"]) == (0, None, None)
    assert "No pair" in found["note"]


def test_a_judge_that_says_one_thing_of_one_thing_has_no_kappa() -> None:
    found = against_reference([pair("1", 1.0), pair("2", 1.0)], {("1",): 1.0, ("2",): 1.0}, 0.95)
    assert (found["accuracy"], found["kappa"], found["specificity"]) == (1.0, None, None)
    assert "kappa" in found["note"]


def test_corrections_rest_on_the_queries_that_both_judged() -> None:
    scores = {str(number): float(number % 3 > 0) for number in range(120)}
    reference = {str(number): float(number % 3 > 0) if number % 10 else float(number % 3 == 0) for number in range(60)}
    found = corrected({"dialogue": (scores, reference)}, 0.95)
    alone = [scores[str(number)] for number in sorted(map(str, range(60, 120)))]
    labelled = [scores[query] for query in sorted(reference)]
    labels = [reference[query] for query in sorted(reference)]
    assert (found["n"], found["n_labelled"]) == (60, 60)
    corrections = {"rogan_gladen": rogan_gladen, "ppi": ppi_mean, "post_stratified": post_stratified}
    for name, correct in corrections.items():
        by_hand = correct(alone, labelled, labels)
        assert found[name] == pytest.approx(by_hand.estimate)
        assert found[f"{name}_ci"] == pytest.approx([by_hand.low, by_hand.high])
    worth = worth_in_labels([Labels(labelled, labels, 60)])
    assert found["worth"]["labels"] == pytest.approx(worth.labels)
    assert found["worth"]["labels_ci"] == pytest.approx([worth.low, worth.high])
    assert found["win_rate"] == pytest.approx(2 / 3)
    assert "note" not in found


def test_a_correction_that_cannot_be_made_says_why() -> None:
    found = corrected({"dialogue": ({"1": 1.0, "2": 0.0, "3": 1.0}, {"1": 1.0})}, 0.95)
    assert (found["rogan_gladen"], found["ppi_ci"], found["post_stratified"]) == (None, None, None)
    assert (found["worth"]["labels"], found["worth"]["labels_ci"]) == (None, None)
    assert "needs" in found["note"]


def test_strata_are_corrected_one_by_one_and_joined_by_their_queries() -> None:
    """One task of which 60 of 120 queries are labelled, one labelled whole, which needs no correction."""
    scores = {str(number): float(number % 3 > 0) for number in range(120)}
    reference = {str(number): float(number % 2) for number in range(60)}
    whole = {f"s{number}": float(number % 4 > 0) for number in range(40)}
    one = corrected({"dialogue": (scores, reference)}, 0.95)
    found = corrected({"dialogue": (scores, reference), "summarization": (dict.fromkeys(whole, 1.0), whole)}, 0.95)
    labels = win_rate(list(whole.values()))
    for name in ("ppi", "post_stratified"):
        assert found[name] == pytest.approx((120 * one[name] + 40 * 0.75) / 160)
        reach = math.hypot(120 / 160 * (one[name] - one[f"{name}_ci"][0]), 40 / 160 * (0.75 - labels.low))
        assert found[f"{name}_ci"][0] == pytest.approx(found[name] - reach)
    assert (found["n"], found["n_labelled"]) == (60, 100)


def test_a_stratum_without_labels_is_named() -> None:
    scores = {str(number): float(number % 3 > 0) for number in range(40)}
    found = corrected({"dialogue": (scores, scores), "posts": ({"p": 1.0}, {})}, 0.95)
    assert found["post_stratified"] is None
    assert "posts: A post-stratified win rate" in found["note"]


def likely(query: str, p_ab: float, p_ba: float) -> JudgedPair:
    """A pair that a judge saw in both orders, with its probability of the first place in each."""
    rows = tuple(
        row(query, order, "a" if order == "ab" else "b", details={"p_first": p, "p_second": 1 - p})
        for order, p in (("ab", p_ab), ("ba", p_ba))
    )
    return JudgedPair((query,), query, rows, 0.5)


def test_a_lean_to_a_place_falls_out_of_the_probabilities() -> None:
    pairs = [
        likely("1", 0.9, 0.8),
        likely("2", 0.7, 0.95),
        likely("3", 0.9, 0.6),
        likely("4", 0.9, 0.9),
        pair("5", 1.0),
    ]
    reference: dict[tuple[object, ...], float] = {("1",): 1.0, ("2",): 0.0, ("3",): 0.0, ("4",): 1.0, ("5",): 1.0}
    found = against_reference(pairs, reference, 0.95)
    assert (found["accuracy"], found["sensitivity"]) == (0.2, pytest.approx(2 / 3))
    assert (found["n_by_probability"], found["by_probability"]) == (3, pytest.approx(2 / 3))
    assert found["by_probability_ci"][0] < 2 / 3 < found["by_probability_ci"][1]
