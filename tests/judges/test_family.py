"""Judges that judge their own kin."""

from __future__ import annotations

from typing import Any

import pytest

from harness.judges.family import families, same_family


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("mistralai/Mistral-7B-Instruct-v0.2", {"mistral"}),
        ("mistralai/Mixtral-8x7B-v0.1@main", {"mistral"}),
        ("meta-llama/Meta-Llama-3-8B", {"llama"}),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", {"deepseek", "llama"}),
        ("embedded/smollm2-135m-instruct", {"smollm"}),
        ("embedded/gemma-3-270m", {"gemma"}),
        ("openai/gpt-4o-mini", {"gpt"}),
        ("openai/o3-mini", {"gpt"}),
        ("anthropic/claude-sonnet-4-5", {"claude"}),
        ("Qwen/QwQ-32B", {"qwen"}),
        ("microsoft/phi-4", {"phi"}),
        ("./models/my-instruct/", set()),
        ("org/dolphin", set()),
        ("org/graphite-2b", set()),
        ("", set()),
    ],
)
def test_families_by_name(path: str, expected: set[str]) -> None:
    assert families(path) == expected


MODELS: dict[str, dict[str, Any]] = {
    "base": {"path": "mistralai/Mistral-7B-v0.1", "trained_from": None},
    "sami": {"path": None, "trained_from": "base"},
    "again": {"path": None, "trained_from": "sami"},
    "mixtral": {"path": "mistralai/Mixtral-8x7B-v0.1"},
    "copy": {"path": "mistralai/Mistral-7B-v0.1"},
    "gpt": {"path": "openai/gpt-4o"},
    "unknown": {"path": "./a"},
    "other": {"path": "./b"},
    "circle": {"path": None, "trained_from": "circle"},
}


@pytest.mark.parametrize(
    ("judge", "judged", "told"),
    [
        ("base", "base", "it is the judge itself"),
        ("base", "copy", "it is the judge's own model"),
        ("base", "sami", "it has the judge's base model"),
        ("sami", "again", "it has the judge's base model"),
        ("mixtral", "again", "it is of the judge's family (mistral)"),
        ("gpt", "base", None),
        ("unknown", "other", None),
        ("circle", "base", None),
        ("nobody", "base", None),
    ],
)
def test_kin_is_named_with_its_kinship(judge: str, judged: str, told: str | None) -> None:
    assert same_family(judge, [judged], MODELS).get(judged) == told
