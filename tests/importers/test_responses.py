"""Responses in the formats that others write, become recorded answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.importers.responses import Choice, Responses, read_responses, slug
from harness.models.recorded import RecordedAnswer, read_answers
from harness.tasks import TaskSpec, load_task
from sami_train.errors import UserError

Put = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Write a list as JSON lines (.jsonl) or JSON, text as it is, and give the path."""

    def _put(content: Any, name: str) -> Path:
        path = tmp_path / name
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        else:
            path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return _put


def only(found: Responses) -> list[RecordedAnswer]:
    (answers,) = found.answers.values()
    return answers


def texts(found: Responses) -> list[tuple[str, str]]:
    return [(answer.query, answer.text) for answer in only(found)]


SAMI = {
    "constitution": {"0": "1. Be brief.\n2. Be complete.", "1": "1. Be complete. \n2. Be brief."},
    "question": {"0": "POST: My dog ate it.", "1": "POST: My cat did."},
    "response": {"0": "A dog ate it.", "1": ""},
}


def test_rows_with_query_and_response(put: Put) -> None:
    rows = [
        {"id": "q1", "query": " How? ", "response": "So."},
        {"query": "Why?", "response": "", "constitution": "1. Be kind.\n2. Be brief."},
        {"query": "Who?", "response": None},
        {"query": "What?", "response": "This.", "principles": ["Be kind."]},
    ]
    found = read_responses(put(rows, "mine.jsonl"))
    assert (found.format, found.kind, dict(found.left_out)) == ("jsonl", "dialogue", {"without a response": 1})
    assert texts(found) == [("How?", "So."), ("Why?", ""), ("What?", "This.")]
    assert [a.query_id for a in only(found)] == ["q1", None, None]
    assert [a.constitution for a in only(found)] == [None, ("Be kind.", "Be brief."), ("Be kind.",)]
    assert only(found)[0].source == "mine.jsonl:1"


def test_one_json_list_is_as_good_as_lines(put: Put) -> None:
    found = read_responses(put([{"post": "A story.", "summary": "Short."}], "mine.json"))
    assert (texts(found), found.kind) == ([("A story.", "Short.")], "summarization")


def test_alpaca_evals_outputs(put: Put) -> None:
    rows = [{"instruction": f"Do {n}.", "output": f"Done {n}.", "generator": "gpt4", "dataset": "x"} for n in (1, 2)]
    found = read_responses(put(rows, "outputs.json"))
    assert (found.format, found.model, texts(found)) == (
        "alpaca-eval",
        "gpt4",
        [("Do 1.", "Done 1."), ("Do 2.", "Done 2.")],
    )


def test_of_several_generators_one_must_be_named(put: Put) -> None:
    rows = [{"instruction": "Do it.", "output": f"As {name}.", "generator": name} for name in ("gpt4", "claude")]
    path = put(rows, "outputs.json")
    with pytest.raises(UserError, match=r"the outputs of 2 models .* --model"):
        read_responses(path)
    found = read_responses(path, Choice(model="claude"))
    assert (texts(found), dict(found.left_out)) == ([("Do it.", "As claude.")], {"another model's": 1})


@pytest.mark.parametrize(
    "arguments",
    [[["Q: How?\nA:", {"until": []}]], {"gen_args_0": {"arg_0": "Q: How?\nA:", "arg_1": {"until": []}}}],
    ids=["lists", "objects"],
)
def test_samples_of_lm_evaluation_harness(put: Put, arguments: Any) -> None:
    row = {
        "doc_id": 0,
        "doc": {"question": "How?", "gold": 7},
        "arguments": arguments,
        "resps": [["So. "]],
        "filtered_resps": ["So."],
    }
    strict = {**row, "filter": "strict", "filtered_resps": ["7"]}
    path = put([{**row, "filter": "none"}, strict], "samples_x.jsonl")
    found = read_responses(path)
    assert (found.format, texts(found), dict(found.left_out)) == ("lm-eval", [("How?", "So.")], {"another filter's": 1})
    without = {**row, "doc": {"gold": 7}}
    assert texts(read_responses(put([without], "samples_y.jsonl"))) == [("Q: How?\nA:", "So.")]


def test_repeats_of_a_sample_are_epochs(put: Put) -> None:
    row = {"doc": {"question": "How?"}, "arguments": [], "resps": [["So.", "Thus."]], "filtered_resps": []}
    assert texts(read_responses(put([row], "samples_x.jsonl"))) == [("How?", "So."), ("How?", "Thus.")]


def test_samples_that_are_no_texts_are_refused(put: Put) -> None:
    row = {"doc": {"question": "How?"}, "arguments": [], "resps": [[[-1.5, True]]], "filtered_resps": [[-1.5, True]]}
    with pytest.raises(UserError, match="no texts"):
        read_responses(put([row], "samples_x.jsonl"))


def test_the_authors_responses(put: Put) -> None:
    found = read_responses(put(SAMI, "base.json"))
    assert (found.format, found.kind) == ("sami", "summarization")
    assert texts(found) == [("My dog ate it.", "A dog ate it."), ("My cat did.", "")]
    assert only(found)[1].constitution == ("Be complete.", "Be brief.")


def test_a_file_with_two_sets_of_queries_has_two_parts(put: Put) -> None:
    columns = {
        "constitution": {"0": "1. Be kind."},
        "question_helpful": {"0": "How?"},
        "question_harmless": {"0": "May I?"},
        "response_helpful": {"0": "So."},
        "response_harmless": {"0": "No."},
    }
    found = read_responses(put(columns, "base.json"))
    assert {part: [(a.query, a.text) for a in answers] for part, answers in found.answers.items()} == {
        "helpful": [("How?", "So.")],
        "harmless": [("May I?", "No.")],
    }


def test_fields_can_be_named(put: Put) -> None:
    path = put([{"frage": "Wie?", "antwort": "So.", "query": "x"}], "mine.jsonl")
    assert texts(read_responses(path, Choice(query_field="frage", response_field="antwort"))) == [("Wie?", "So.")]


@pytest.mark.parametrize(
    ("content", "choice", "words"),
    [
        ("", Choice(), "no responses"),
        ("nonsense", Choice(), "is not JSON"),
        ("7", Choice(), "single value"),
        ([{"a": 1}], Choice(), "no format known"),
        ([{"query": "How?"}], Choice(), "no response in this row"),
        ([{"response": "So."}], Choice(), "no query in this row"),
        ([{"query": ["How?"], "response": "So."}], Choice(), "no query in this row"),
        ([{"query": "How?", "response": 7}], Choice(), "is not a text"),
        ([{"query": "How?", "response": None}], Choice(), "1 without a response"),
        ([{"query": "How?", "response": "So.", "constitution": 7}], Choice(), "a constitution is"),
        ([{"query": "How?", "response": "So."}, 7], Choice(), "not a JSON object"),
        ([{"query": "How?", "response": "So."}], Choice(query_field="querry"), "did you mean 'query'"),
        ([{"query": "How?", "response": "So."}], Choice(format="sami"), "object of columns"),
        (json.dumps({"response": {"0": "So."}}), Choice(), "no 'question'"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(put: Put, content: Any, choice: Choice, words: str) -> None:
    path = put(content, "mine.jsonl")
    with pytest.raises(UserError) as error:
        read_responses(path, choice)
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "safe"), [("../../etc/x", "etc-x"), ("org/model v1", "org-model-v1"), ("..", "responses")]
)
def test_a_models_name_never_chooses_a_path(name: str, safe: str) -> None:
    assert slug(name) == safe


def test_the_verb_writes_a_folder_that_a_task_and_a_model_can_name(
    put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    put(SAMI, "base run.json")
    assert main(["import", "responses", "base run.json"]) == 0
    said = capsys.readouterr().out
    folder = tmp_path / "responses" / "base-run"
    assert "base-run: {path: recorded/responses/base-run, style: chat}" in said
    assert "summarization: {task: tldr, source: responses/base-run/queries.jsonl}" in said
    assert [answer.text for answer in read_answers(folder / "responses.jsonl")] == ["A dog ate it.", ""]
    task = load_task("t", TaskSpec(task="tldr", source=str(folder / "queries.jsonl")))
    assert [query.text for query in task.evaluation] == ["My dog ate it.", "My cat did."]
    about = json.loads((folder / "import.json").read_text())
    assert (about["responses"], about["queries"], about["file"]) == (2, {"queries.jsonl": 2}, "base run.json")


def test_an_import_is_not_overwritten_by_accident(put: Put, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["import", "responses", str(put(SAMI, "base.json")), "-o", str(tmp_path / "out"), "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == str(tmp_path / "out")
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


def test_overwriting_leaves_nothing_of_the_import_before(
    put: Put, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = {f"{column}_{part}": {"0": "Yes."} for column in ("question", "response") for part in ("helpful", "harmless")}
    out = tmp_path / "out"
    assert main(["import", "responses", str(put(two, "two.json")), "-o", str(out)]) == 0
    assert (out / "queries-helpful.jsonl").is_file()
    (out / "notes.txt").write_text("mine")
    capsys.readouterr()
    assert main(["import", "responses", str(put(SAMI, "one.json")), "-o", str(out), "--overwrite"]) == 0
    assert "removed, of the import before: queries-harmless.jsonl, queries-helpful.jsonl\n" in capsys.readouterr().out
    assert {f.name for f in out.iterdir()} == {"import.json", "notes.txt", "queries.jsonl", "responses.jsonl"}


def test_queries_of_the_users_own_are_in_the_way(put: Put, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/queries.jsonl").write_text("mine")
    assert main(["import", "responses", str(put(SAMI, "one.json")), "-o", str(tmp_path / "out"), "--overwrite"]) == 2
    said = capsys.readouterr().err
    assert "'queries.jsonl' is there" in said
    assert str(tmp_path / "out") in said
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"queries.jsonl"}
