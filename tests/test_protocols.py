"""From verdicts to scores, under every protocol, against the rules written out by hand."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import pytest

from harness.judges.llm import Order
from harness.protocols import (
    CORRECTED,
    LADDER,
    PAPER,
    PAPER_AND_SWAP,
    PROTOCOLS,
    Protocol,
    drawn_order,
    find_protocol,
    pair_scores,
)
from harness.rows import Verdict
from sami_train.errors import UserError

OUTCOMES = ("a", "b", "tie", "unscored", "failed", "missing")


def verdict(outcome: str, order: str = "ab") -> Verdict | None:
    """ "failed": a request without an answer; "missing": no row at all."""
    if outcome == "missing":
        return None
    is_unscored = outcome in ("unscored", "failed")
    fields: dict[str, Any] = {
        "id": "i", "fingerprint": "f", "judge": "j", "kind": "win_rate", "a": "sami", "b": "base", "task": "t",
        "query_id": "q", "constitution_id": "c+", "principle_set": "s", "split": "learned", "order": order,
        "outcome": "unscored" if is_unscored else outcome, "reason": "no_verdict" if is_unscored else None, "raw": "",
        "details": {"error": "timeout: none"} if outcome == "failed" else {}, "usage": {}, "latency_s": 0,
    }  # fmt: skip
    return Verdict.model_validate(fields)


def judging(ab: str, ba: str) -> dict[Order, Verdict | None]:
    return {"ab": verdict(ab, "ab"), "ba": verdict(ba, "ba")}


def score(protocol: Protocol, ab: str, ba: str, *, kind: str = "dialogue", drawn: Order = "ab") -> float | None:
    return pair_scores([judging(ab, ba)], protocol, kind=kind, drawn=drawn).score


@pytest.mark.parametrize(("ab", "ba"), list(product(OUTCOMES, OUTCOMES)))
def test_corrected_is_the_mean_of_two_scored_orders(ab: str, ba: str) -> None:
    value = {"a": 1.0, "tie": 0.5, "b": 0.0}
    expected = (value[ab] + value[ba]) / 2 if {ab, ba} <= value.keys() else None
    assert score(CORRECTED, ab, ba) == expected
    assert score(CORRECTED, ab, ba, kind="summarization") == expected


@pytest.mark.parametrize("drawn", ["ab", "ba"])
@pytest.mark.parametrize(("kind", "tie"), [("dialogue", 0.5), ("summarization", 0.0)])
@pytest.mark.parametrize(("ab", "ba"), list(product(OUTCOMES, OUTCOMES)))
def test_paper_takes_the_order_that_is_drawn(ab: str, ba: str, kind: str, tie: float, drawn: Order) -> None:
    """A verdict that could not be read is 0.5 in the reference's files, and then what 0.5 is in the tables."""
    value = {"a": 1.0, "b": 0.0, "tie": tie, "unscored": tie, "failed": None, "missing": None}
    assert score(PAPER, ab, ba, kind=kind, drawn=drawn) == value[ab if drawn == "ab" else ba]


@pytest.mark.parametrize(("kind", "tie"), [("dialogue", 0.5), ("summarization", 0.0)])
@pytest.mark.parametrize(("ab", "ba"), list(product(OUTCOMES, OUTCOMES)))
def test_paper_and_swap_has_the_same_rules_in_both_orders(ab: str, ba: str, kind: str, tie: float) -> None:
    value = {"a": 1.0, "b": 0.0, "tie": tie, "unscored": tie, "failed": None, "missing": None}
    one, two = value[ab], value[ba]
    assert score(PAPER_AND_SWAP, ab, ba, kind=kind) == (None if None in (one, two) else (one + two) / 2)  # type: ignore[operator]


def test_a_single_order_stands_for_itself_under_every_protocol() -> None:
    for protocol, drawn in product(LADDER, ("ab", "ba")):
        assert pair_scores([{"ab": verdict("a")}], protocol, drawn=drawn).score == 1.0  # type: ignore[arg-type]


def test_judgings_are_averaged_after_their_orders_and_the_unscored_left_out() -> None:
    judgings = [judging("a", "a"), judging("a", "b"), judging("a", "unscored"), judging("b", "b")]
    found = pair_scores(judgings)
    assert found.repeats == (1.0, 0.5, None, 0.0)
    assert found.score == 0.5


def test_the_published_rules_know_one_judging() -> None:
    judgings = [judging("a", "a"), judging("b", "b")]
    for protocol in (PAPER, PAPER_AND_SWAP):
        found = pair_scores(judgings, protocol)
        assert (found.score, found.repeats) == (1.0, (1.0,))


def test_the_protocols_differ_by_what_they_say() -> None:
    assert [protocol.name for protocol in LADDER] == ["paper", "paper+swap", "corrected"]
    assert set(PROTOCOLS) == {protocol.name for protocol in LADDER}
    assert Protocol("corrected", "both", "left_out", "half", "half", "all") == CORRECTED


def test_the_drawn_order_is_a_fair_coin_that_depends_on_the_seed_and_the_place() -> None:
    places = [("sami", "base", f"q{i}") for i in range(2000)]
    orders = [drawn_order(3, *place) for place in places]
    assert orders == [drawn_order(3, *place) for place in places]
    first = orders.count("ab")
    assert abs(first - 1000) < 4 * (2000 * 0.25) ** 0.5
    other = [drawn_order(4, *place) for place in places]
    assert 800 < sum(x == y for x, y in zip(orders, other, strict=True)) < 1200


def test_one_drawn_order_has_the_mean_of_both() -> None:
    """Over many draws `paper` is `paper+swap`, only noisier."""
    rng = random.Random(0)
    judged = [(rng.choice(OUTCOMES[:4]), rng.choice(OUTCOMES[:4])) for _ in range(40)]
    both = [score(PAPER_AND_SWAP, ab, ba) or 0.0 for ab, ba in judged]
    draws = []
    for seed in range(400):
        of_seed = [score(PAPER, *one, drawn=drawn_order(seed, str(i))) or 0.0 for i, one in enumerate(judged)]
        draws.append(sum(of_seed) / 40)
    assert sum(draws) / 400 == pytest.approx(sum(both) / 40, abs=0.01)


def test_an_unknown_protocol_is_told_the_nearest() -> None:
    with pytest.raises(UserError, match=r"there is no protocol 'papr'; did you mean 'paper'\?"):
        find_protocol("papr")
