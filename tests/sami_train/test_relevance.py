"""Relevance: log-probabilities against one sequence at a time, and what counts as depending on a query."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sami_train.data import Query
from sami_train.generation import encode_prompt
from sami_train.models import load_model, load_tokenizer, parse_source
from sami_train.prompts import Style
from sami_train.relevance import CHANCE, mean_logprobs, other_queries, query_prompt, relevance, responding_text

QUERIES = [
    "How do I boil an egg?",
    "Why is the sky blue? " * 9,
    "数 <s> </s> \x00body\x00 of it",
    "{query} {principles}",
]
RESPONSES = ["Eight minutes will do.", " ", "空は青い。", "", "a", "It is blue, for it is.\n\nOr so."]


@pytest.fixture(scope="module")
def opened(tiny_model: Path) -> tuple[Any, Any]:
    source = parse_source(str(tiny_model))
    return load_model(source), load_tokenizer(source)


# --- Log-probabilities


def naive(model: Any, tokenizer: Any, query: str, response: str, style: Style, limit: int) -> float | None:
    """One prompt and one response through the model, token by token."""
    ids = list(encode_prompt(tokenizer, query_prompt(query, style), limit).ids)
    total, count = 0.0, 0
    for token in tokenizer(response, add_special_tokens=False).input_ids if response.strip() else []:
        with torch.inference_mode():
            total += model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)[token].item()
        count += 1
        ids.append(token)
    return total / count if count else None


@pytest.mark.parametrize("limit", [400, 90])
@pytest.mark.parametrize("style", ["completion", "chat"])
def test_log_probabilities_are_those_of_one_sequence_at_a_time(
    opened: tuple[Any, Any], style: Style, limit: int
) -> None:
    found = mean_logprobs(*opened, QUERIES, RESPONSES, style, limit)
    assert len(found) == len(RESPONSES)
    for response, row in zip(RESPONSES, found, strict=True):
        expected = [naive(*opened, query, response, style, limit) for query in QUERIES]
        assert (row is None) == (not response.strip())
        assert expected == [None] * len(QUERIES) if row is None else row == pytest.approx(expected, abs=1e-4)


def test_responses_without_tokens_alone(opened: tuple[Any, Any]) -> None:
    assert mean_logprobs(*opened, QUERIES, ["", "\n"], "chat", 400) == [None, None]
    assert mean_logprobs(*opened, QUERIES, [], "chat", 400) == []


def test_the_scorer_reads_the_query_and_nothing_else() -> None:
    assert query_prompt("Why?", "chat").chat == [{"role": "user", "content": "Why?"}]
    assert query_prompt("Why?", "completion").text == "Why?\n\n"
    assert query_prompt("a\x00body\x00b", "completion").text == "abodyb\n\n", "a query cannot place itself"


# --- The share


def test_relevance_is_the_share_of_queries_that_make_it_less_likely() -> None:
    assert relevance([-1.0, -2.0, -3.0, -0.5, -4.0]) == 0.75
    assert relevance([-1.0, -2.0]) == 1
    assert relevance([-3.0, -2.0]) == 0


def test_ties_count_half() -> None:
    assert relevance([-1.0, -1.0, -2.0]) == 0.75
    assert relevance([-1.0] * 5) == CHANCE


def test_what_cannot_depend_on_its_query_is_at_chance() -> None:
    assert relevance(None) == CHANCE
    assert relevance([-1.0]) == CHANCE
    assert relevance([]) == CHANCE


@given(st.lists(st.floats(-50, 0), min_size=2, max_size=9))
def test_one_response_to_every_query_is_at_chance_over_all_of_them(after: list[float]) -> None:
    """`after`: how likely it is after each. Held against all others, half of all pairs go each way, whatever the numbers."""
    shares = [relevance([own, *after[:n], *after[n + 1 :]]) for n, own in enumerate(after)]
    assert sum(shares) / len(shares) == pytest.approx(CHANCE)


# --- What is scored


def test_an_echo_of_the_query_does_not_count_in_dialogue_and_does_in_a_summary() -> None:
    text = "what should I plant on a small balcony?"
    dialogue, post = Query("q", text, "dialogue"), Query("q", text, "summarization")
    assert responding_text(text, dialogue).strip() == ""
    assert responding_text(f"You ask: {text.upper()} Geraniums.", dialogue) == "You ask:   Geraniums."
    assert responding_text(text, post) == text
    assert responding_text("Plant on a balcony.", dialogue) == "Plant on a balcony.", (
        "a few words in common are no echo"
    )


# --- The other queries


def test_other_queries_are_seeded_and_never_the_own() -> None:
    ids = [f"q{n}" for n in range(12)]
    drawn = {i: other_queries(ids, i, 4, 7) for i in ids}
    assert all(i not in others and len(set(others)) == 4 and set(others) <= set(ids) for i, others in drawn.items())
    assert drawn == {i: other_queries(ids[::-1], i, 4, 7) for i in ids}, "whatever the order of the queries"
    assert drawn != {i: other_queries(ids, i, 4, 8) for i in ids}
    assert len({tuple(others) for others in drawn.values()}) > 6, "each query has a draw of its own"


def test_where_there_are_fewer_queries_all_are_taken() -> None:
    assert sorted(other_queries(["a", "b", "c"], "b", 4, 0)) == ["a", "c"]
    assert other_queries(["b"], "b", 4, 0) == []


def test_other_queries_are_drawn_about_equally_often() -> None:
    ids = [f"q{n}" for n in range(5)]
    drawn = Counter(i for seed in range(400) for i in other_queries(ids, "q0", 2, seed))
    assert drawn.keys() == set(ids[1:])
    assert min(drawn.values()) > 150, "200 are expected, with a standard deviation of 10"
