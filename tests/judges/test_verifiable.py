"""The verifiable judge: a mean over sides, exact, blind to the order of the two texts and to what they copy."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.judges.checks import score, weight
from harness.judges.verifiable import compare, copy_findings, follow_score, require_checks, satisfied_by_copy
from sami_train.constitutions import (
    Check,
    Constitution,
    Element,
    Principle,
    is_shipped,
    list_principle_sets,
    load_principle_set,
)
from sami_train.copying import without_copied
from sami_train.data import Query
from sami_train.errors import UserError
from sami_train.prompts import load_template

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
sentences = [side for p in SET.principles for side in (p.definition, p.antithesis)]
texts = st.text(max_size=60) | st.lists(st.sampled_from(phrases) | st.sampled_from(sentences), max_size=8).map("".join)


def test_the_score_is_the_mean_over_the_sides_taken():
    text = "I like my tea. It is 3 years old."
    assert follow_score(constitution("first-person+", "digits+"), text) == 1
    assert follow_score(constitution("first-person+", "digits-"), text) == 0.5
    assert follow_score(constitution("first-person-", "digits-"), text) == 0


def test_the_better_text_wins_and_the_details_say_why():
    outcome, details = compare(constitution("digits+", "animals-"), "It ran for 3 days.", "It ran from a dog.")
    assert outcome == "a"
    assert details == {
        "score_a": 1,
        "score_b": 0,
        "principles": {"digits": {"follows": True, "a": 1, "b": 0}, "animals": {"follows": False, "a": 1, "b": 0}},
        "whole": {"outcome": "a", "score_a": 1, "score_b": 0},
    }


def quoting() -> Principle:
    return Principle(
        id="quoting",
        definition='Put what somebody said into quotation marks, as in "so he said to me".',
        antithesis="Report what somebody said and leave out quotation marks.",
        split="held_out",
        task=("dialogue",),
        check=Check(name="quotations"),
    )


def test_a_copy_does_not_count_and_the_whole_keeps_it():
    principle = quoting()
    follows = Constitution((Element(principle, True),))
    copied = f"Well then. {principle.definition} He left the house."
    plain = "Well then. He left the house."
    outcome, details = compare(follows, copied, plain)
    assert (outcome, details["score_a"], details["score_b"]) == ("tie", 0, 0)
    assert details["whole"] == {"outcome": "a", "score_a": 1, "score_b": 0}
    outcome, details = compare(follows, 'He said "no" and left.', copied)
    assert (outcome, details["whole"]["outcome"]) == ("a", "tie")
    outcome, _ = compare(follows.opposite(), copied, 'He said "no" and left.')
    assert outcome == "a", "what is left of it reports indirectly"


def test_a_copy_of_the_other_side_does_not_count_either():
    principle = quoting()
    for side in (principle.definition, principle.antithesis):
        for follows in (True, False):
            one = Constitution((Element(principle, follows),))
            outcome, details = compare(one, side, "He left, and said why.")
            assert details["score_a"] == 0
            assert outcome == ("tie" if follows else "b")


def test_copies_of_what_the_texts_were_given_do_not_count_when_another_is_judged_by():
    judged, given_to_both = constitution("digits+"), Constitution((Element(quoting(), True),))
    copied = f"{quoting().definition} It took 3 days."
    assert compare(judged, copied, "It took 3 days.", shown=given_to_both.sentences())[0] == "tie"
    by_quoting = Constitution((Element(quoting(), True),))
    assert compare(by_quoting, copied, "It took 3 days.", shown=judged.sentences())[1]["score_a"] == 0
    told = constitution("gives-example+")
    example = load_principle_set("verifiable").principles[0].definition
    assert compare(told, f"For example, {example}", "No, it is not.", shown=given_to_both.sentences())[0] == "a"


def test_a_response_gains_nothing_by_repeating_its_query_but_a_summary_may_copy_its_post():
    asks, text = constitution("ends-with-question+"), "How do I get my dog to sleep?"
    dialogue, post = (Query("q", text, task) for task in ("dialogue", "summarization"))
    outcome, details = compare(asks, text, "Walk with it in the evening.", shown=dialogue.not_to_copy)
    assert (outcome, details["score_a"], details["whole"]["outcome"]) == ("tie", 0, "a")
    assert compare(asks, "Is it a young one?", "Walk with it in the evening.", shown=dialogue.not_to_copy)[0] == "a"
    assert compare(asks, text, "Walk with it in the evening.", shown=post.not_to_copy)[0] == "a"


def test_a_worked_example_said_again_does_not_count():
    prompt = load_template("summarization").render(["Say where it is."], "My bike is gone.", "completion", example=True)
    example = "A neighbour in Ireland keeps a borrowed ladder in his garden, and the writer wants it back."
    assert example.rstrip(".") in prompt.frame
    assert "My bike is gone." not in prompt.frame
    one_side = constitution("contrast-")
    assert compare(one_side, example, "It is gone, but not lost.")[0] == "a"
    outcome, details = compare(one_side, example, "It is gone, but not lost.", shown=[prompt.frame])
    assert (outcome, details["score_a"], details["whole"]["score_a"]) == ("tie", 0, 1)


@given(constitutions, texts, texts)
def test_the_scores_are_those_of_the_texts_without_copies(drawn, text_a, text_b):
    outcome, details = compare(drawn, text_a, text_b)
    own = [without_copied(text, drawn.sentences()) for text in (text_a, text_b)]
    assert [details["score_a"], details["score_b"]] == [follow_score(drawn, text) for text in own]
    assert [details["whole"]["score_a"], details["whole"]["score_b"]] == [
        follow_score(drawn, text) for text in (text_a, text_b)
    ]
    if own == [text_a, text_b]:
        assert details["whole"]["outcome"] == outcome


@given(constitutions, texts)
def test_a_copy_of_the_constitution_adds_nothing(drawn, text):
    copy = " ".join(side for side in drawn.sentences() if without_copied(side, drawn.sentences()).strip() == "")
    spaced = f"{text}\n" if text.strip() else ""
    assert (
        compare(drawn, f"{spaced}{copy}", text)[1]["score_a"] <= compare(drawn, text, text)[1]["score_a"] or copy == ""
    )


@given(constitutions, texts)
def test_an_empty_response_never_wins(drawn, text):
    for empty in ("", " \n", "!?"):
        assert follow_score(drawn, empty) == 0
        assert compare(drawn, empty, text)[0] != "a"
        assert compare(drawn, empty, drawn.elements[0].text)[0] != "a", "nor against a copy"


def test_an_empty_response_loses_to_any_that_follows_a_little():
    assert compare(constitution("first-person-"), "", "The dog ran off today.")[0] == "b"
    assert compare(constitution("few-words+"), "", "The dog ran off.")[0] == "b"
    assert compare(constitution("first-person-"), "", "Dogs.")[0] == "b", "a word is more than nothing"


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
    """Of texts that count in full, with three words of their own; an empty one loses under either side."""
    assert follow_score(drawn, text_a) + follow_score(drawn.opposite(), text_a) == pytest.approx(weight(text_a))
    full_a, full_b = f"It is so.\n{text_a}", f"It is so.\n{text_b}"
    assert compare(drawn.opposite(), full_a, full_b)[0] == SWAPPED[compare(drawn, full_a, full_b)[0]]


@given(constitutions, texts)
def test_the_score_agrees_with_the_plain_formula(drawn, text):
    values = [
        score(e.principle.check, text) if e.follows else 1 - score(e.principle.check, text) for e in drawn.elements
    ]
    naive = sum(values) / len(values) - 0.5 * (1 - weight(text))
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


# --- definitions that a copy satisfies


def test_a_definition_that_shows_its_own_feature_is_found():
    assert satisfied_by_copy(quoting())
    (finding,) = copy_findings([*SET.principles, quoting()])
    assert finding.startswith("quoting: a copy of its own definition passes its check")
    assert not satisfied_by_copy(unchecked())
    brief = unchecked().model_copy(update={"check": Check(name="word_count", options={"at_most": 9, "zero_at": 30})})
    assert not satisfied_by_copy(brief), "a definition is short whatever it asks for"


def test_no_definition_of_a_shipped_set_passes_its_own_check(root):
    shipped = [load_principle_set(file) for file in sorted((root / "principles").glob("*.yaml"))]
    assert {s.name for s in shipped} == set(list_principle_sets([root / "principles"]))
    assert all(is_shipped(s) for s in shipped)
    assert [finding for s in shipped for finding in copy_findings(s.principles)] == []


def test_a_copied_definition_never_beats_a_text_that_shows_the_feature_a_little():
    """Whatever the definition: as it counts, its copy scores nothing on its own side."""
    for principle in SET.principles:
        one = Constitution((Element(principle, True),))
        assert compare(one, principle.definition, "no")[1]["score_a"] == 0
