"""The verifiable judge: a mean over sides, exact and blind to the order of the two texts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.judges.checks import score
from harness.judges.verifiable import compare, follow_score, require_checks
from sami_train.constitutions import Check, Constitution, Element, Principle, load_principle_set
from sami_train.errors import UserError

SET = load_principle_set(Path(__file__).resolve().parents[2] / "principles" / "verifiable.yaml")
BY_ID = {p.id: p for p in SET.principles}
SWAPPED = {"a": "b", "b": "a", "tie": "tie"}


def constitution(*sides: str) -> Constitution:
    return Constitution(tuple(Element(BY_ID[side[:-1]], side.endswith("+")) for side in sides))


def unchecked() -> Principle:
    return Principle(
        id="kind", definition="Be kind to people.", antithesis="Be rude to people.", split="learned", task=("dialogue",)
    )


constitutions = st.lists(
    st.tuples(st.sampled_from(SET.principles), st.booleans()), min_size=1, max_size=4, unique_by=lambda side: side[0].id
).map(lambda sides: Constitution(tuple(Element(p, follows) for p, follows in sides)))
phrases = [
    "I like it. ",
    "Why?",
    "Thanks! ",
    "\n- a thing",
    "\n1. one",
    "because ",
    "(so) ",
    '"yes" ',
    "For example, 3. ",
    "you ",
]
texts = st.text(max_size=60) | st.lists(st.sampled_from(phrases), max_size=8).map("".join)


def test_the_score_is_the_mean_over_the_sides_taken():
    text = "I like my tea. It is 3 years old."
    assert follow_score(constitution("first-person+", "digits+"), text) == 1
    assert follow_score(constitution("first-person+", "digits-"), text) == 0.5
    assert follow_score(constitution("first-person-", "digits-"), text) == 0


def test_the_better_text_wins_and_the_details_say_why():
    outcome, details = compare(constitution("digits+", "because-"), "It ran for 3 days.", "It ran because of you.")
    assert outcome == "a"
    assert details == {
        "score_a": 1,
        "score_b": 0,
        "principles": {"digits": {"follows": True, "a": 1, "b": 0}, "because": {"follows": False, "a": 1, "b": 0}},
    }


def test_an_empty_response_never_wins_against_one_that_follows():
    for principle in SET.principles:
        for follows in (True, False):
            one = Constitution((Element(principle, follows),))
            assert follow_score(one, "") == 0.5
            assert follow_score(one, " \n") == 0.5
    assert compare(constitution("first-person-"), "", "The dog ran off today.")[0] == "b"
    assert compare(constitution("few-words+"), "", "The dog ran off.")[0] == "b"


@given(constitutions, texts, texts)
def test_swapping_the_texts_swaps_the_outcome(drawn, text_a, text_b):
    outcome, details = compare(drawn, text_a, text_b)
    swapped, mirrored = compare(drawn, text_b, text_a)
    assert swapped == SWAPPED[outcome]
    assert (mirrored["score_a"], mirrored["score_b"]) == (details["score_b"], details["score_a"])


@given(constitutions, texts)
def test_identical_texts_tie(drawn, text):
    assert compare(drawn, text, text)[0] == "tie"


@given(constitutions, texts, texts)
def test_the_opposite_constitution_turns_the_outcome_round(drawn, text_a, text_b):
    assert compare(drawn.opposite(), text_a, text_b)[0] == SWAPPED[compare(drawn, text_a, text_b)[0]]
    assert follow_score(drawn, text_a) + follow_score(drawn.opposite(), text_a) == pytest.approx(1)


@given(constitutions, texts)
def test_the_score_agrees_with_the_plain_formula(drawn, text):
    naive = sum(
        score(e.principle.check, text) if e.follows else 1 - score(e.principle.check, text) for e in drawn.elements
    ) / len(drawn.elements)
    assert follow_score(drawn, text) == pytest.approx(naive)


def test_a_principle_without_a_check_is_named_with_its_set():
    bare = Constitution((Element(unchecked(), True),))
    for call in (
        lambda: follow_score(bare, "Hello there, friend.", principle_set="manners"),
        lambda: compare(bare, "Hello", "Go away", principle_set="manners"),
        lambda: require_checks([unchecked()], principle_set="manners"),
    ):
        with pytest.raises(UserError, match="needs a check on principle 'kind' of the set 'manners'"):
            call()


def test_an_unusable_check_is_named_before_the_run():
    principle = unchecked().model_copy(update={"check": Check(name="digit")})
    with pytest.raises(UserError, match="principle 'kind' of the set 'manners': there is no check named 'digit'"):
        require_checks([principle], principle_set="manners")
    require_checks(SET.principles, principle_set=SET.name)


def test_an_empty_constitution_is_refused():
    with pytest.raises(UserError, match="the constitution is empty"):
        follow_score(Constitution(()), "Hello there, friend.")
