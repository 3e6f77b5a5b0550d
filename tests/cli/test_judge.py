"""`harness judge validate` as its users meet it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness.cli import main


class Said(NamedTuple):
    """What a command answered."""

    code: int
    out: str
    err: str


Command = Callable[..., Said]
REFERENCE = ["--reference", "labelled.jsonl"]
WRITTEN = ["--on", "verifiable"]


@pytest.fixture
def validate(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs the command in a folder with a reference file, with no keys in the environment."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    rows = [
        {
            "query": f"What is {number}?",
            "principles": ["Be short."],
            "response_a": f"The number {number}.",
            "response_b": f"It is the number {number}, as you may well know.",
            "label": "ab"[number % 2],
        }
        for number in range(4)
    ]
    (tmp_path / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def command(*arguments: str) -> Said:
        capsys.readouterr()
        code = main(["judge", "validate", *arguments])
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return command


def test_the_card_is_printed_within_the_screen(validate: Command, tiny_model: Path) -> None:
    said = validate("--judge", str(tiny_model), *REFERENCE)
    assert said.code == 0
    for words in ("Judge card", "Agreement with the reference", "How it judges", "Cohen's kappa", "both orders agree"):
        assert words in said.out
    assert "4 pairs on 4 queries, each in both orders: 2 with a the better, 2 with b, 0 ties" in " ".join(
        said.out.split()
    )
    assert max(map(len, said.out.splitlines()[:-1])) <= 100  # the last line is a path


def test_json_is_all_that_is_printed(validate: Command, tiny_model: Path, tmp_path: Path) -> None:
    said = validate("--judge", str(tiny_model), *REFERENCE, "--json", "--limit", "3", "-o", "here")
    card = json.loads(said.out)
    assert (card["n"], card["form"], card["agreement"]["n"]) == (6, "choice", 3)
    assert card == json.loads((tmp_path / "here" / "card.json").read_text())
    again = validate("--judge", str(tiny_model), *REFERENCE, "--json", "--limit", "3", "-o", "here")
    assert json.loads(again.out) == card


def test_too_many_unscored_verdicts_are_exit_code_3(validate: Command, tiny_model: Path) -> None:
    said = validate("--judge", str(tiny_model), *REFERENCE, "--form", "text", "--limit", "1", "-q")
    assert said.code == 3
    assert "100.0% of the verdicts are unscored (--max-unscored allows 2.0%)" in said.err
    assert "Unscored: " in said.out
    allowed = validate(
        "--judge", str(tiny_model), *REFERENCE, "--form", "text", "--limit", "1", "-q", "--max-unscored", "1"
    )
    assert allowed.code == 0


def test_pairs_are_written_and_labelled_where_none_are_given(validate: Command, tiny_model: Path) -> None:
    model = str(tiny_model)
    arguments = ["--judge", model, *WRITTEN, "--writer", model, "--tasks", "dialogue", "--limit", "2", "--json"]
    card = json.loads(validate(*arguments).out)
    assert sum(card["labels"].values()) == 2
    assert card["same_family"] == {model: "it is the judge's own model"}
    assert f"on responses of {model}" in card["reference"]


def test_a_judge_of_a_specification(validate: Command, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(
        f"""
name: tiny
models: {{base: {{path: {tiny_model}, style: completion}}, other: {{path: {tiny_model}, style: chat}}}}
tasks: {{dialogue: {{task: hh-rlhf, source: bundled, limit: 3}}}}
principles: {{sets: [verifiable]}}
judges: {{program: {{kind: verifiable}}, own: {{kind: llm, model: other}}}}
comparisons: [{{a: base, b: other}}]
"""
    )
    said = validate("--judge", "own", "--spec", "spec.yaml", *REFERENCE, "--json")
    card = json.loads(said.out)
    assert (card["judge"], card["model"], card["n"]) == ("own", str(tiny_model), 8)
    wrong = validate("--judge", "program", "--spec", "spec.yaml", *REFERENCE)
    assert (wrong.code, wrong.out) == (2, "")
    assert "'tiny' has no LLM judge 'program'" in wrong.err


def test_what_is_left_to_ask_is_priced_before_it_is_asked(validate: Command, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text("prices: {openai/x: {input: 1000, output: 1000, batch: 0.5}}\n")
    priced = ["--judge", "openai/x", *REFERENCE, "--prices", "prices.yaml", "--dry-run"]
    said = validate(*priced, "--json")
    (stage,) = json.loads(said.out)["cost"]["stages"]
    assert (said.code, stage["requests"]) == (0, 8)
    assert stage["prompt_tokens"]["low"] == stage["prompt_tokens"]["high"]
    assert stage["output_tokens"] == {"low": 8 * 5, "high": 8 * 300}
    most = (stage["prompt_tokens"]["high"] + 8 * 300) / 1000
    assert stage["dollars"]["high"] == pytest.approx(most)
    assert json.loads(validate(*priced, "--json", "--batch").out)["cost"]["dollars"]["high"] == pytest.approx(most / 2)
    assert f" to {most:.2f} dollars. ~ estimated at 4 bytes a token." in validate(*priced).out
    assert "Nothing is left to ask of an API model." in validate("--judge", str(tiny_model), *REFERENCE, "-n").out
    assert not (tmp_path / "runs").exists(), "nothing is written"


def test_responses_that_are_yet_to_be_written_are_priced_too(validate: Command) -> None:
    arguments = ["--judge", "openai/x", *WRITTEN, "--writer", "anthropic/y", "--limit", "3", "-n"]
    responses, verdicts = json.loads(validate(*arguments, "--json").out)["cost"]["stages"]
    assert (responses["model"], responses["requests"]) == ("anthropic/y", 6)
    assert responses["output_tokens"] == {"low": 6, "high": 6 * 48}
    assert verdicts["requests"] == 6
    assert verdicts["prompt_tokens"]["high"] - verdicts["prompt_tokens"]["low"] == 6 * 2 * (48 - 1)
    assert "No price is known for anthropic/y, openai/x" in validate(*arguments).out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "--judge"),
        (["--judge", "M"], "say what the judge is held against"),
        (["--judge", "M", *REFERENCE, *WRITTEN], "say what the judge is held against"),
        (["--judge", "M", *REFERENCE, "--run", "x"], "--run goes with --on verifiable"),
        (["--judge", "M", *WRITTEN, "--run", "x", "--writer", "y"], "--writer is for responses that are yet to be"),
        (["--judge", "M", *WRITTEN, "--tasks", "chess"], "there is no task 'chess'"),
        (["--judge", "M", "--on", "verifable"], "verifiable"),
        (["--judge", "M", *WRITTEN, "--run", "gone"], "gone"),
        (["--judge", "M", "--reference", "gone.jsonl"], "gone.jsonl: there is no such reference"),
        (["--judge", "M", *REFERENCE, "--max-unscored", "2"], "'2' is not a share from 0 to 1"),
        (["--judge", "M", *REFERENCE, "--base-url", "http://x"], "--base-url is for openai/NAME"),
        (["--judge", "M", *REFERENCE, "--max-retries", "2"], "--max-retries is for openai/NAME"),
        (["--judge", "M", *REFERENCE, "--batch"], "--batch: the judge is not behind an API"),
        (["--judge", "M", *WRITTEN, "--writer", "M", "--batch"], "--batch: neither the judge nor the writer is behind"),
        (["--judge", "M", *REFERENCE, "--prices", "gone.yaml"], "gone.yaml"),
        (["--judge", "M", *REFERENCE, "--max-cost", "much"], "'much' is no amount in dollars"),
        (
            ["--judge", "recorded/x", *REFERENCE],
            "--judge: 'recorded/x' has recorded answers to a run's queries and cannot",
        ),
        (["--judge", "recorded/x", *REFERENCE, "--style", "chat"], "and cannot judge; name a model that can be asked"),
        (["--judge", "M", *WRITTEN, "--writer", "recorded/x"], "--writer: 'recorded/x' has recorded answers"),
        (["--judge", "M", *REFERENCE, "--structured", "on"], "--structured on is for API models"),
        (["--judge", "M", *REFERENCE, "--template", "dialog"], "did you mean 'dialogue'"),
        (
            ["--judge", "M", *REFERENCE, "--template", "summarization"],
            "'summarization' is for summarization, but there are",
        ),
        (["--judge", "openai/x", *REFERENCE, "--form", "choice"], "--form choice reads a local model's"),
        (["--judge", "openai/x", *REFERENCE], "OPENAI_API_KEY"),
        (["--judge", "anthropic/x", *REFERENCE, "--style", "completion"], "chat"),
        (["--judge", "x", "--spec", "quickstart", *REFERENCE, "--form", "text"], "--form is set in the specification"),
        (["--judge", "embedded/smolm2", *REFERENCE], "smollm2"),
    ],
)
def test_bad_usage_is_one_sentence_and_exit_code_2(
    validate: Command, tiny_model: Path, arguments: list[str], told: str
) -> None:
    said = validate(*[str(tiny_model) if a == "M" else a for a in arguments])
    assert (said.code, said.out) == (2, "")
    assert told in said.err
    assert "Traceback" not in said.err
    sentences: list[Any] = [line for line in said.err.splitlines() if line.startswith("harness: ")]
    assert len(sentences) == 1
