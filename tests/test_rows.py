"""Rows refuse what they could not give back unchanged."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from harness.rows import Generation, Likelihood, Manifest, Relevance, Verdict

GENERATION: dict[str, Any] = {
    "id": "m/dialogue/q1/short+/0",
    "fingerprint": "f" * 32,
    "model": "m",
    "task": "dialogue",
    "query_id": "q1",
    "constitution_id": "short+",
    "principle_set": "verifiable",
    "split": "learned",
    "epoch": 0,
    "prompt_hash": "p" * 32,
    "prompt": "Be short.\n\nWhat is a tree?",
    "text": "A tall plant – 木\u2028🌲",
    "reasoning": "Few words are wanted.",
    "tail": "Asked: what is a bush?",
    "finish_reason": "stop",
    "n_prompt_tokens": 9,
    "n_tokens": 7,
    "truncated": False,
    "error": None,
    "usage": {"total_tokens": 16},
}
VERDICT: dict[str, Any] = {
    "id": "v1",
    "fingerprint": "e" * 32,
    "judge": "length",
    "kind": "win_rate",
    "a": "trained",
    "b": "base",
    "task": "dialogue",
    "query_id": "q1",
    "constitution_id": "short+",
    "principle_set": "verifiable",
    "split": "held_out",
    "epoch": 1,
    "order": "ba",
    "outcome": "tie",
    "reason": None,
    "repeat": 0,
    "judged_by": None,
    "raw": "",
    "details": {"words": [3, 4], "share": 0.1},
    "usage": {},
    "latency_s": 0.25,
    "texts": ["f" * 32, "0" * 32],
}
LIKELIHOOD: dict[str, Any] = {
    "id": "l1",
    "fingerprint": "d" * 32,
    "model": "m",
    "task": "dialogue",
    "query_id": "q1",
    "principle_set": "verifiable",
    "split": "learned",
    "constitution_ids": ["short+", "short-"],
    "logprob_sums": [[-1.0, -2.5], [-0.1 - 0.2, -3.0]],
    "n_tokens": [4, 5],
    "texts": ["f" * 32, "0" * 32],
}
RELEVANCE: dict[str, Any] = {
    "id": "r1",
    "fingerprint": "b" * 32,
    "model": "m",
    "task": "dialogue",
    "query_id": "q1",
    "constitution_id": "short+",
    "principle_set": "verifiable",
    "split": "learned",
    "epoch": 0,
    "scorer": "other",
    "others": ["q3", "q2"],
    "logprobs": [-1.5, -0.1 - 0.2, -3.0],
    "texts": ["f" * 32],
}
MANIFEST: dict[str, Any] = {
    "stage": "generate",
    "fingerprint": "c" * 32,
    "inputs": {"model": {"path": "m"}},
    "versions": {"python": "3.11.7"},
    "git": None,
    "dirty": None,
    "seeds": {"sampling": 1},
    "device": "cpu",
    "engine": "transformers",
    "started": datetime(2026, 5, 1, 12, 0, 0, 5, tzinfo=UTC),
    "finished": None,
    "expected": 10,
    "done": 9,
    "failed": 1,
}
KINDS = [
    (Generation, GENERATION),
    (Verdict, VERDICT),
    (Likelihood, LIKELIHOOD),
    (Relevance, RELEVANCE),
    (Manifest, MANIFEST),
]


@pytest.mark.parametrize(("kind", "fields"), KINDS)
def test_a_row_has_exactly_the_agreed_fields_and_comes_back_from_json(kind: Any, fields: dict[str, Any]) -> None:
    row = kind(**fields)
    assert set(kind.model_fields) == set(fields)
    assert row.model_dump() == fields
    assert kind.model_validate_json(row.model_dump_json()) == row


@pytest.mark.parametrize(("kind", "fields"), KINDS)
def test_an_unknown_field_is_refused(kind: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="colour"):
        kind(**fields, colour="red")


def test_a_row_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Generation(**GENERATION).text = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("\ud800a", "\ufffda"),
        ("a\ud83d", "a\ufffd"),
        ("\ud83c\udf32", "🌲"),
        ("\ufeffé", "\ufeffé"),
        ("\x00é", "\x00é"),
    ],
)
def test_half_characters_from_a_model_are_replaced_so_that_the_row_can_be_stored(written: str, kept: str) -> None:
    row = Generation(**GENERATION | {"text": written})
    assert row.text == kept
    assert Generation.model_validate_json(row.model_dump_json()) == row


def test_details_are_what_a_reader_of_the_file_will_see() -> None:
    row = Verdict(**VERDICT | {"details": {"pair": (1, 2), "quote": "\udc00"}})
    assert row.details == {"pair": [1, 2], "quote": "\ufffd"}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Verdict, VERDICT | {"details": {"share": float("nan")}}),
        (Verdict, VERDICT | {"latency_s": float("inf")}),
        (Likelihood, LIKELIHOOD | {"logprob_sums": [[-1.0, float("nan")], [-1.0, -1.0]]}),
        (Relevance, RELEVANCE | {"logprobs": [-1.0, float("-inf"), -1.0]}),
    ],
)
def test_numbers_that_json_has_no_word_for_are_refused(kind: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind(**fields)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Generation, GENERATION | {"finish_reason": "error"}),
        (Generation, GENERATION | {"error": "out of memory"}),
        (Verdict, VERDICT | {"outcome": "unscored"}),
        (Verdict, VERDICT | {"reason": "no verdict in the text"}),
    ],
)
def test_a_failure_comes_with_its_reason_and_only_a_failure(kind: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="is set exactly when"):
        kind(**fields)


@pytest.mark.parametrize("change", [{"n_tokens": [4]}, {"logprob_sums": [[-1.0, -2.0]]}, {"constitution_ids": ["x"]}])
def test_a_likelihood_is_square(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="constitutions need"):
        Likelihood(**LIKELIHOOD | change)


def test_a_relevance_has_a_number_for_each_query_or_none() -> None:
    assert Relevance(**RELEVANCE | {"logprobs": None}).logprobs is None
    with pytest.raises(ValidationError, match="2 other queries need 3 `logprobs`"):
        Relevance(**RELEVANCE | {"logprobs": [-1.0, -2.0]})


def test_a_manifest_without_a_time_zone_is_refused() -> None:
    with pytest.raises(ValidationError, match="timezone"):
        Manifest(**MANIFEST | {"started": datetime(2026, 5, 1)})
