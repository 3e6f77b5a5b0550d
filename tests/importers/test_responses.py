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
    assert (found.format, texts(found)) == ("lm-eval", [("Q: How?\nA:", "So. ")]), (
        "what the model saw, and what it wrote"
    )
    assert dict(found.left_out) == {"of a response that another filter has too": 1}
    assert texts(read_responses(path, Choice(query_field="question"))) == [("How?", "So. ")]
    filtered = read_responses(path, Choice(response_field="filtered_resps"))
    assert (texts(filtered), dict(filtered.left_out)) == ([("Q: How?\nA:", "So.")], {"another filter's": 1})


def test_what_the_model_wrote_is_imported_not_what_a_filter_made_of_it(put: Put) -> None:
    row = {"doc_id": 0, "doc": {"question": "4 + 5?"}, "arguments": [["Q: 4 + 5?"]], "resps": [["So 9.\n#### 9"]]}
    filters = [
        {**row, "filter": "strict-match", "filtered_resps": ["[invalid]"]},
        {**row, "filter": "flexible-extract", "filtered_resps": ["9"]},
    ]
    assert texts(read_responses(put(filters, "samples_x.jsonl"))) == [("Q: 4 + 5?", "So 9.\n#### 9")]
    alone = [{key: value for key, value in one.items() if key != "resps"} for one in filters]
    found = read_responses(put(alone, "samples_y.jsonl"))
    assert (texts(found), dict(found.left_out)) == ([("Q: 4 + 5?", "[invalid]")], {"another filter's": 1})
    other = {**row, "doc_id": 1, "filter": "other", "arguments": [["Q: 5 + 5?"]]}
    assert len(texts(read_responses(put([filters[0], other], "samples_z.jsonl")))) == 2, "no double of any row"


@pytest.mark.parametrize(
    ("arguments", "query"),
    [
        ([['[{"role": "user", "content": "How?"}]', {}]], "How?"),
        ([[[{"role": "user", "content": "How?"}], {}]], "How?"),
        ([["[{not a chat", {}]], "[{not a chat"),
        ([], "Doc?"),
        (None, "Doc?"),
    ],
)
def test_the_prompt_of_a_sample_may_be_a_chat(put: Put, arguments: Any, query: str) -> None:
    row = {"doc": {"question": "Doc?"}, "arguments": arguments, "resps": [["So."]]}
    assert texts(read_responses(put([row], "samples_x.jsonl"))) == [(query, "So.")]


def test_a_sample_with_examples_in_its_chat_is_refused(put: Put) -> None:
    chat = [
        {"role": "user", "content": "A?"},
        {"role": "assistant", "content": "B."},
        {"role": "user", "content": "C?"},
    ]
    row = {"doc": {"question": "C?"}, "arguments": [[json.dumps(chat), {}]], "resps": [["So."]]}
    path = put([row], "samples_x.jsonl")
    with pytest.raises(UserError, match=r"a chat of 3 messages \(user, assistant, user\).* --query-field"):
        read_responses(path)
    assert texts(read_responses(path, Choice(query_field="question"))) == [("C?", "So.")]


ALPACA = [
    {"instruction": "Translate to French.", "input": "Good morning", "output": "Bonjour", "generator": "m"},
    {"instruction": "Translate to French.", "input": "Good night", "output": "Bonne nuit", "generator": "m"},
    {"instruction": "Name a fruit.", "input": "", "output": "Apple", "generator": "m"},
]


@pytest.mark.parametrize("name", ["alpaca.json", "alpaca.jsonl"])
def test_alpacas_instruction_and_input_are_one_query(put: Put, name: str) -> None:
    found = read_responses(put(ALPACA, name))
    assert texts(found) == [
        ("Translate to French.\n\nGood morning", "Bonjour"),
        ("Translate to French.\n\nGood night", "Bonne nuit"),
        ("Name a fruit.", "Apple"),
    ]
    assert (found.repeats, len(found.queries[""])) == (0, 3)


@pytest.mark.parametrize(
    ("row", "other", "one", "both"),
    [
        ({"question": "Who won?", "context": "Ann beat Bob."}, "context", "Who won?", "Ann beat Bob.\n\nWho won?"),
        ({"prompt": "Hi", "system": "You are a pirate"}, "system", "Hi", "You are a pirate\n\nHi"),
        ({"question": "Q?", "passage": "P."}, "passage", "Q?", "P.\n\nQ?"),
        ({"query": "Q?", "input": "I."}, "input", "Q?", "I.\n\nQ?"),
        ({"question": "Q?", "prompt": "Think. Q?"}, "prompt", "Q?", "Think. Q?\n\nQ?"),
    ],
)
def test_a_part_of_the_prompt_is_never_dropped_without_a_word(
    put: Put, row: dict[str, str], other: str, one: str, both: str
) -> None:
    path = put([{**row, "answer": "Ann"}], "mine.jsonl")
    with pytest.raises(UserError) as error:
        read_responses(path)
    name = next(iter(row))
    assert str(error.value).startswith(f"{path}:1: '{other}' is a part of the prompt too; ")
    assert f"--query-field {other},{name}, or " in str(error.value)
    assert texts(read_responses(path, Choice(query_field=f"{other},{name}"))) == [(both, "Ann")]
    assert texts(read_responses(path, Choice(query_field=name))) == [(one, "Ann")]


def test_fields_that_say_the_same_or_nothing_are_no_parts(put: Put) -> None:
    row = {"question": "Q?", "prompt": " Q? ", "system": "", "context": None, "input": "  ", "answer": "A."}
    assert texts(read_responses(put([row], "mine.jsonl"))) == [("Q?", "A.")]


def test_of_two_fields_that_may_be_the_response_one_must_be_named(put: Put) -> None:
    path = put([{"question": "4 + 5?", "answer": "9", "output": "It is 9."}], "mine.jsonl")
    with pytest.raises(UserError, match=r"'answer' and 'output' may both be the response; .* --response-field"):
        read_responses(path)
    assert texts(read_responses(path, Choice(response_field="output"))) == [("4 + 5?", "It is 9.")]


USER, REPLY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Arr"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "completion": [REPLY]},
        {"prompt": "Hi", "response": [REPLY]},
        {"messages": [USER, REPLY]},
        {"messages": [USER], "response": "Arr"},
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "completion": "Arr"},
    ],
)
def test_a_chat_of_one_message_is_a_query_or_a_response(put: Put, row: dict[str, Any]) -> None:
    assert texts(read_responses(put([row], "mine.jsonl"))) == [("Hi", "Arr")]


@pytest.mark.parametrize("system", [[{"role": "system", "content": "Be a pirate."}], [USER, REPLY]])
def test_a_longer_chat_is_refused_with_its_roles(put: Put, system: list[dict[str, str]]) -> None:
    path = put([{"prompt": [*system, USER], "completion": [REPLY]}], "mine.jsonl")
    with pytest.raises(
        UserError, match=r"mine\.jsonl:1: 'prompt' is a chat of \d messages \((system|user, assistant), user\)"
    ):
        read_responses(path)


def test_post_is_cut_off_only_from_what_is_summarized(put: Put) -> None:
    row = {"query": "POST: or GET, which one should I use for a form?", "response": "POST"}
    others = [{"query": "Why?", "response": "So."}, {"query": "How?", "response": "Thus."}]
    found = read_responses(put([others[0], row, others[1]], "mine.jsonl"))
    assert (found.kind, texts(found)[1], found.cut) == ("dialogue", (row["query"], "POST"), 0)
    alone = put([row], "alone.jsonl")
    assert texts(read_responses(alone, Choice(kind="dialogue"))) == [(row["query"], "POST")]
    found = read_responses(alone, Choice(kind="summarization"))
    assert (texts(found)[0][0], found.cut) == (row["query"].removeprefix("POST: "), 1)
    assert read_responses(put([row, others[0]], "half.jsonl")).kind == "dialogue", "as many are no posts"
    table = {"question": {"0": row["query"], "1": "Why?", "2": "How?"}, "response": {"0": "a", "1": "b", "2": "c"}}
    assert texts(read_responses(put(table, "sami.json")))[0][0] == row["query"]


def test_the_answers_of_two_models_are_never_one_models(put: Put) -> None:
    rows = [{"query": "How?", "response": f"As {name}.", "model": name} for name in ("m1", "m2")]
    path = put([*rows, {"query": "Why?", "response": "So."}], "mine.jsonl")
    with pytest.raises(UserError, match=r"the outputs of 2 models \('model': m1, m2\).* --model"):
        read_responses(path)
    found = read_responses(path, Choice(model="m2"))
    assert (found.model, texts(found)) == ("m2", [("How?", "As m2.")])
    assert dict(found.left_out) == {"another model's": 1, "without a model's name": 1}
    assert read_responses(put(rows[:1], "one.jsonl")).model == "m1"


def test_rows_that_name_no_model_are_called_so(put: Put) -> None:
    rows = [{"instruction": "Do.", "output": "Done."}, {"instruction": "Go.", "output": "Gone.", "generator": "g"}]
    assert dict(read_responses(put(rows, "outputs.json")).left_out) == {"without a model's name": 1}


def test_an_id_of_two_queries_is_refused_with_both_rows(put: Put) -> None:
    rows = [{"id": 1, "query": f"What is a {what}?", "response": "That."} for what in ("cat", "dog")]
    path = put(rows, "mine.jsonl")
    with pytest.raises(UserError) as error:
        read_responses(path)
    assert str(error.value).startswith(f"{path}:2: the id '1' is that of another query too ({path}:1)")
    same = put([rows[0], rows[0]], "same.jsonl")
    assert read_responses(same).repeats == 1


def test_half_a_character_is_replaced_wherever_it_is(put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put(
        '{"id": "\\ud83d", "query": "Smile \\ud83d now", "response": "\\ude00 ok", "principles": ["\\ud83d"]}\n',
        "x.jsonl",
    )
    assert main(["import", "responses", "x.jsonl", "-o", "out"]) == 0
    (answer,) = read_answers(tmp_path / "out/responses.jsonl")
    assert (answer.query_id, answer.query, answer.text) == ("\ufffd", "Smile \ufffd now", "\ufffd ok")
    task = load_task("t", TaskSpec(task="hh-rlhf", source="out/queries.jsonl"))
    assert [(query.id, query.text) for query in task.evaluation] == [("\ufffd", "Smile \ufffd now")]


def test_a_query_without_a_response_stays_a_query(put: Put, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"instruction": f"Do {n}.", "output": None if n else "Done.", "generator": "g"} for n in range(2)]
    assert main(["import", "responses", str(put(rows, "outputs.json")), "-o", str(tmp_path / "out"), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["responses"], about["queries"], about["left_out"]) == (
        1,
        {"queries.jsonl": 2},
        {"without a response": 1},
    )
    task = load_task("t", TaskSpec(task="hh-rlhf", source=str(tmp_path / "out/queries.jsonl")))
    assert [query.text for query in task.evaluation] == ["Do 0.", "Do 1."]


def test_repeats_are_counted_aloud(put: Put, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"query": "How?", "response": "So."},
        {"query": "How? ", "response": "Thus."},
        {"query": "Why?", "response": ""},
    ]
    assert main(["import", "responses", str(put(rows, "mine.jsonl")), "-o", str(tmp_path / "out")]) == 0
    assert f"{tmp_path}/out: 3 responses to 2 queries, 1 a repeat, of mine; read as jsonl\n" in capsys.readouterr().out
    assert main(["import", "responses", str(put(rows[:1], "one.jsonl")), "-o", str(tmp_path / "one")]) == 0
    assert "one: 1 response to 1 query of one; read as jsonl\n" in capsys.readouterr().out


LIST = '[\n {\n  "query": "a",\n  "response": "b"\n },\n {\n  "query": "c"\n  "response": "d"\n }\n]\n'


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.txt"])
def test_a_broken_list_is_reported_where_it_breaks(put: Put, name: str) -> None:
    with pytest.raises(UserError, match=rf"{name}:8: this file is not JSON \(Expecting ',' delimiter, column 3\)"):
        read_responses(put(LIST, name))


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (
            '{"query": "a", "response": "b"}\n{"query": "c"\n{"query": "d", "response": "e"}\n',
            ":2: this line is not JSON",
        ),
        ('{"query": "a"\n{"query": "c", "response": "b"}\n', ":1: this line is not JSON"),
        ('{\n "response": {\n  "0": "a",\n }\n}\n', ":4: this file is not JSON"),
        ('{"query": "a", "response": "b"}\n' + "[" * 100_000 + "\n", ":2: this line is nested too deep"),
        ("[" * 100_000, ": this file is nested too deep"),
        ('{"query": "a", "response": "b", "id": ' + "9" * 5000 + "}", ": this file has a number of too many digits"),
    ],
)
def test_what_is_not_json_is_named_by_line_and_reason(put: Put, content: str, where: str) -> None:
    path = put(content, "mine.jsonl")
    with pytest.raises(UserError) as error:
        read_responses(path)
    assert str(path) in str(error.value)
    assert where in str(error.value)


@pytest.mark.parametrize(
    ("name", "start", "kind"),
    [
        ("rows.parquet", b"PAR1\x15", "a Parquet file; convert it to JSON lines"),
        ("rows.jsonl.gz", b"\x1f\x8b\x08", "compressed with gzip; unpack it"),
        ("rows.xlsx", b"PK\x03\x04", "a ZIP archive or a spreadsheet; unpack it"),
        ("rows.csv", b"query,response\nA?,B.\n", "a CSV table; convert it to JSON lines"),
        ("rows.jsonl", b"\xff\xfe{\x00", "not UTF-8 text; save it as UTF-8"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(tmp_path: Path, name: str, start: bytes, kind: str) -> None:
    (tmp_path / name).write_bytes(start)
    with pytest.raises(UserError) as error:
        read_responses(tmp_path / name)
    assert f"{name}: this file of responses is {kind}" in str(error.value)


def test_an_endless_device_is_not_read() -> None:
    with pytest.raises(UserError, match="is a pipe or a device; name a file"):
        read_responses(Path("/dev/zero"))


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
