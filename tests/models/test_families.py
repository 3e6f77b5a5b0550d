"""How models of known families are asked."""

from __future__ import annotations

from typing import Any

import pytest

from harness.models.base import Sampling
from harness.models.families import family_of, for_model

WANTED = Sampling(300, 8192, temperature=0.7, top_p=0.9)


@pytest.mark.parametrize(
    ("path", "omit", "thinks", "takes_schema"),
    [
        ("openai/gpt-5", ("stop", "temperature", "top_p"), True, True),
        ("openai/gpt-5-mini-2025-08-07", ("stop", "temperature", "top_p"), True, True),
        ("openai/gpt-5.2", ("stop", "temperature", "top_p"), True, True),
        ("openai/gpt-5-chat-latest", (), False, True),
        ("openai/o4-mini", ("stop", "temperature", "top_p"), True, True),
        ("openai/o1-mini", ("stop", "temperature", "top_p"), True, False),
        ("openai/gpt-4o", (), False, True),
        ("openai/gpt-4.1", (), False, True),
        ("openai/gpt-4", (), False, False),
        ("openai/openai/gpt-oss-20b", (), True, True),
        ("openai/Qwen/Qwen3-8B", (), True, True),
        ("openai/Qwen/Qwen3-4B-Instruct-2507", (), False, True),
        ("anthropic/claude-opus-4-7", ("temperature", "top_p"), False, True),
        ("anthropic/claude-opus-5", ("temperature", "top_p"), True, True),
        ("anthropic/claude-opus-4-1", ("top_p",), False, True),
        ("anthropic/claude-sonnet-4-6", ("top_p",), False, True),
        ("anthropic/claude-opus-4-20250514", (), False, False),
        ("anthropic/claude-3-5-sonnet-20241022", (), False, False),
        ("org/name", (), False, True),
        (None, (), False, True),
    ],
)
def test_a_family_leaves_out_what_it_refuses(
    path: str | None, omit: tuple[str, ...], thinks: bool, takes_schema: bool
) -> None:
    found = for_model(WANTED, path)
    assert found.omit == omit
    assert (found.max_new_tokens > 300) == thinks
    assert family_of(path).json_schema == takes_schema


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 1.0}, {"omit": ("stop", "top_p"), "temperature": 1.0}),
        ({"max_new_tokens": 500}, {"max_new_tokens": 500}),
        ({"reasoning": "none"}, {"max_new_tokens": 300, "reasoning": "none"}),
        ({"reasoning": "high"}, {"max_new_tokens": 300 + 16384}),
        ({"extra": {"verbosity": "low"}}, {"extra": {"verbosity": "low"}}),
    ],
)
def test_what_the_user_says_wins(options: dict[str, Any], expected: dict[str, Any]) -> None:
    found = for_model(WANTED, "openai/gpt-5", options)
    assert {name: getattr(found, name) for name in expected} == expected


def test_a_model_that_reasons_takes_no_temperature() -> None:
    found = for_model(WANTED, "anthropic/claude-haiku-4-5", {"reasoning": 2000})
    assert (found.omit, found.max_new_tokens) == (("temperature", "top_p"), 2300)


def test_one_of_the_two_that_the_user_sets_is_kept() -> None:
    assert for_model(WANTED, "anthropic/claude-haiku-4-5", {"top_p": 0.5}).omit == ("temperature",)
    assert for_model(WANTED, "anthropic/claude-haiku-4-5", {"top_p": 0.5, "temperature": None}).top_p == 0.5


def test_a_model_of_which_nothing_is_known_keeps_its_fingerprint() -> None:
    assert for_model(WANTED, "openai/unknown").settings == WANTED.settings
    assert for_model(WANTED, "openai/unknown", {"temperature": None}).settings != WANTED.settings
