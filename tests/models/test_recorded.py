"""Recorded answers are looked up by query and constitution; what is not there is an error of that query alone."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness import run
from harness.cli.run import shortfall
from harness.models.base import Asked, Completion, Request, Sampling
from harness.models.recorded import RecordedBackend, answers_fingerprint
from harness.spec import load_spec
from harness.validation import validate
from sami_train.errors import UserError
from sami_train.prompts import Prompt

SAMPLING = Sampling(max_new_tokens=5, max_prompt_tokens=64)
PROMPT = Prompt("chat", (("user", "as this run would ask"),))


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def ask(folder: Path, query: str, *principles: str, epoch: int = 0, query_id: str = "q") -> Completion:
    backend = RecordedBackend("theirs", f"recorded/{folder}")
    request = Request("r", PROMPT, Asked(query_id, query, principles, epoch))
    ((made,),) = backend.generate([request], SAMPLING)
    return made


def test_an_answer_is_found_by_its_query_whatever_its_white_space(tmp_path: Path) -> None:
    write(tmp_path, [{"query": "How  is\nit?", "text": "Fine, and quite long.", "finish_reason": "length"}])
    made = ask(tmp_path, " How is it? ", "Be kind.")
    assert (made.text, made.finish_reason, made.error) == ("Fine, and quite long.", "length", None)
    assert (made.prompt, made.n_tokens) == ("", 4)


def test_the_constitution_chooses_among_answers_in_any_order_of_its_sentences(tmp_path: Path) -> None:
    rows = [
        {"query": "How?", "text": "short", "constitution": ["Be brief.", "Be  kind."]},
        {"query": "How?", "text": "long", "constitution": ["1. Ramble."]},
        {"query": "How?", "text": "any"},
    ]
    write(tmp_path, rows)
    assert ask(tmp_path, "How?", "Be kind.", "Be brief.").text == "short"
    assert ask(tmp_path, "How?", "Ramble.").text == "long"
    assert ask(tmp_path, "How?", "Be brief.").text == "any"


def test_repeats_are_epochs(tmp_path: Path) -> None:
    write(tmp_path, [{"query": "How?", "text": text} for text in ("one", "two")])
    assert [ask(tmp_path, "How?", "Be kind.", epoch=n).text for n in (0, 1)] == ["one", "two"]
    assert (
        ask(tmp_path, "How?", "Be kind.", epoch=2).error
        == "missing_response: 2 answers are recorded, and this is epoch 3"
    )


def test_what_is_missing_is_typed_and_never_another_answer(tmp_path: Path) -> None:
    write(tmp_path, [{"query": "How?", "text": "So.", "constitution": ["Be kind."], "query_id": "q1"}])
    assert ask(tmp_path, "Why?").error == "missing_response: no answer to this query is recorded"
    assert (
        ask(tmp_path, "Why?", query_id="q1").error
        == "missing_response: the answer with this query's id is to another text"
    )
    assert "none under this constitution" in (ask(tmp_path, "How?", "Be brief.").error or "")


def test_an_empty_answer_is_an_answer(tmp_path: Path) -> None:
    write(tmp_path, [{"query": "How?", "text": ""}])
    made = ask(tmp_path, "How?", "Be kind.")
    assert (made.text, made.finish_reason, made.error) == ("", "stop", None)


def test_it_answers_nothing_but_a_runs_queries(tmp_path: Path) -> None:
    write(tmp_path, [{"query": "How?", "text": "So."}])
    with pytest.raises(UserError, match="name another model"):
        list(RecordedBackend("theirs", f"recorded/{tmp_path}").generate([Request("r", PROMPT)], SAMPLING))


@pytest.mark.parametrize(
    ("line", "words"),
    [("nonsense", ":1: this line is not JSON"), ('{"query": "How?"}', ":1: .*'text'"), ('{"q": 1}', "'query'")],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "responses.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=words):
        RecordedBackend("theirs", f"recorded/{tmp_path}")


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    one, two = (write(tmp_path / name, [{"query": "How?", "text": "So."}]) for name in ("a", "b"))
    before = answers_fingerprint(f"recorded/{one}")
    assert before == answers_fingerprint(f"recorded/{two}")
    write(two, [{"query": "How?", "text": "Thus."}])
    assert before != answers_fingerprint(f"recorded/{two}")


# --- A whole run

SPEC = """
name: recorded
models:
  theirs: {path: recorded/theirs, style: chat}
  ours: {path: recorded/ours, style: completion}
tasks:
  asked: {task: hh-rlhf, source: queries.jsonl}
principles: {sets: [asking.yaml], splits: [learned], polarity: principle}
judges:
  program: {kind: verifiable}
comparisons: [{a: theirs, b: ours}]
measures: {steerability: false, relevance: false}
output: OUTPUT
"""
ASKING = """
name: asking
principles:
  - id: asks
    task: dialogue
    split: learned
    definition: End the text with a question to the reader.
    antithesis: End the text with a plain statement and ask nothing.
    check: ends_with_question
"""


def put_run(folder: Path, theirs: int) -> Path:
    """Twelve queries; their model answers the first `theirs` of them and asks back, ours answers all and does not."""
    queries = [f"What is number {n}?" for n in range(12)]
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps({"id": str(n), "query": q}) + "\n" for n, q in enumerate(queries))
    )
    (folder / "asking.yaml").write_text(ASKING)
    write(folder / "theirs", [{"query": q, "text": "Which one do you mean?"} for q in queries[:theirs]])
    write(folder / "ours", [{"query": q, "text": "It is a number."} for q in queries])
    (folder / "run.yaml").write_text(SPEC.replace("OUTPUT", str(folder / "run")))
    return folder / "run.yaml"


def test_recorded_models_are_judged_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    outcome = run(load_spec(put_run(tmp_path, theirs=12)), quiet=True)
    (row,) = outcome.results["comparisons"]
    assert (row["win_rate"], row["n"], row["wins"], outcome.passed) == (1.0, 12, 12, True)
    assert row["mean_length_a"] == 5


def test_missing_answers_are_unscored_and_come_with_a_later_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    outcome = run(load_spec(put_run(tmp_path, theirs=9)), quiet=True)
    (row,) = outcome.results["comparisons"]
    assert (row["n"], row["unscored"], row["win_rate"], outcome.passed) == (9, 3, 1.0, False)
    again = run(load_spec(put_run(tmp_path, theirs=12)), quiet=True)
    assert (again.results["comparisons"][0]["n"], again.passed) == (12, True)


def test_what_is_missing_is_told_with_its_reason_and_no_run_again_is_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    screen = Console(file=io.StringIO(), width=400)
    outcome = run(load_spec(put_run(tmp_path, theirs=9)), console=screen)
    said = screen.file.getvalue()  # type: ignore[attr-defined]
    reason = "missing_response: no answer to this query is recorded"
    assert f"theirs on asked: 3 of 12 responses failed, 3 of them: {reason}\n" in said
    assert f"3 of 12 verdicts are unscored, 3 of them: no response of theirs: {reason}\n" in said
    assert "run again" not in said
    card = outcome.results["judges"]["program"]
    assert card["unscored_said"] == [{"said": f"no response of theirs: {reason}", "n": 3}]
    assert reason in (tmp_path / "run" / "report.md").read_text().replace("\\", "")
    assert "run again" not in shortfall(outcome)
    assert f"most often 'no response of theirs: {reason}' (3)" in shortfall(outcome)


def test_thinking_in_a_recorded_answer_is_no_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    spec = load_spec(put_run(tmp_path, theirs=12))
    thought = "<think>\nShould I ask?\n</think>\n\nIt is a number."
    write(tmp_path / "theirs", [{"query": f"What is number {n}?", "text": thought} for n in range(12)])
    (row,) = run(spec, quiet=True).results["comparisons"]
    assert (row["win_rate"], row["mean_length_a"]) == (0.5, 4)
    rows = (tmp_path / "run" / "generations" / "theirs" / "asked.jsonl").read_text().splitlines()
    assert {json.loads(line)["reasoning"] for line in rows} == {"Should I ask?"}


def test_what_a_recorded_model_cannot_be_is_found_before_the_run(tmp_path: Path) -> None:
    put_run(tmp_path, theirs=12)
    text = (tmp_path / "run.yaml").read_text()
    text = text.replace("style: completion}", "style: completion, revision: main}").replace(
        "recorded/theirs", "recorded/nobody"
    )
    text = text.replace("kind: verifiable", "kind: llm, model: ours")
    text = text.replace(
        "tasks:\n", "  made: {style: completion, train: {recipe: embedded/gemma-3-270m, from: ours}}\ntasks:\n", 1
    )
    (tmp_path / "run.yaml").write_text(text)
    problems = "\n".join(validate(load_spec(tmp_path / "run.yaml")))
    for words in ("no recorded answers at", "no 'revision'", "no weights", "cannot judge"):
        assert words in problems
