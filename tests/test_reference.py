"""Labelled pairs: from a file, written by a model and labelled by programs, from a run."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from harness.judges.verifiable import compare
from harness.models.base import Completion
from harness.reference import Writer, Writing, pairs_of_run, read_reference
from harness.rows import Generation
from harness.spec import ModelSpec
from harness.store import RowFile
from sami_train.constitutions import Constitution, Element, load_principle_set
from sami_train.errors import UserError

ROW = {
    "query": "What is a fox?",
    "principles": ["Be short.", "Be kind."],
    "response_a": "An animal.",
    "response_b": "A fox is an animal with a tail.",
    "label": "a",
}


def write(folder: Path, *rows: Any) -> Path:
    file = folder / "reference.jsonl"
    file.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return file


def test_a_reference_is_read(tmp_path: Path) -> None:
    more = {"task": "summarization", "id": "mine", "label": "tie", "model_a": "openai/gpt-4o"}
    one, two = read_reference(write(tmp_path, ROW, "", ROW | more))
    assert (one.id, one.task, one.label, one.models) == ("1", "dialogue", "a", ())
    assert one.principles == ("Be short.", "Be kind.")
    assert (two.id, two.task, two.label, two.models) == ("mine", "summarization", "tie", ("openai/gpt-4o",))
    assert one.query_id == two.query_id


@pytest.mark.parametrize(
    "text",
    ["1. Be short.\n2. Be kind.", "Be short.\nBe kind.\n", "1) Be short. \n\n2) Be kind.", "- Be short.\n- Be kind."],
)
def test_a_constitution_is_a_principle_a_line(text: str, tmp_path: Path) -> None:
    row = {key: value for key, value in ROW.items() if key != "principles"} | {"constitution": text}
    (pair,) = read_reference(write(tmp_path, row))
    assert pair.principles == ("Be short.", "Be kind.")


def test_a_reference_may_be_one_json_list_and_its_ids_numbers(tmp_path: Path) -> None:
    for name in ("reference.json", "reference.jsonl"):
        (tmp_path / name).write_text(json.dumps([ROW | {"id": 7}, ROW | {"id": "8"}], indent=1))
        assert [pair.id for pair in read_reference(tmp_path / name)] == ["7", "8"]


def test_a_limit_takes_the_first_pairs(tmp_path: Path) -> None:
    assert len(read_reference(write(tmp_path, ROW, ROW, ROW, "not even JSON"), limit=2)) == 2


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in ROW.items() if k != key}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{", "this line is not JSON"),
        ("[" * 100_000, "this line is nested too deep"),
        ("[]", "this row is not a JSON object"),
        (without("query"), "'query' is missing"),
        (without("principles"), "'principles' is missing"),
        (without("label"), "'label' is missing; every row needs query, principles, response_a"),
        (ROW | {"label": "A"}, "'label': must be 'a', 'b' or 'tie'"),
        (ROW | {"query": " "}, "'query': it is empty"),
        (ROW | {"principles": []}, "'principles'"),
        (ROW | {"principles": "1. \n"}, "'principles"),
        (ROW | {"principles": ["", "Be kind."]}, "'principles.0': it is empty"),
        (ROW | {"constitution": "Be short."}, "keep one of them"),
        (ROW | {"response": "x"}, "there is no field 'response'; did you mean 'response_"),
        (ROW | {"task": "chess"}, "'task': must be 'dialogue' or 'summarization'"),
        (ROW | {"response_a": 3}, "'response_a': must be text"),
        (ROW | {"id": "1"}, "the id '1' stands above already"),
        (ROW | {"id": 1}, "the id '1' stands above already"),
        (ROW | {"id": True}, "'id' must be a text or a whole number"),
    ],
)
def test_a_bad_row_is_told_with_its_line(row: Any, told: str, tmp_path: Path) -> None:
    file = write(tmp_path, ROW, row)
    with pytest.raises(UserError) as error:
        read_reference(file)
    assert str(error.value).startswith(f"{file}:2: ")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_reference_without_pairs_or_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pairs in it"):
        read_reference(write(tmp_path, ""))
    with pytest.raises(UserError, match="there is no such reference"):
        read_reference(tmp_path / "gone.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        read_reference(tmp_path / "binary.jsonl")


# --- Written for the purpose ------------------------------------------------------------------------------------------


MODEL = ModelSpec(path="w", style="completion")


class Obedient:
    """A writer that ends with a question when it is told to, and counts what it is asked."""

    name = "obedient"

    def __init__(self, fails_at: int | None = None) -> None:
        self.asked: list[str] = []
        self.fails_at = fails_at

    def generate(self, requests: Any, sampling: Any, *, done: Any = frozenset()) -> Any:
        for request in requests:
            if request.id in done:
                continue
            self.asked.append(request.id)
            broken = len(self.asked) == self.fails_at
            text = "" if broken else self.text(request.prompt.text)
            yield [
                Completion(
                    request.id, text, "error" if broken else "stop", request.prompt.text, 9, 5,
                    error="server_error: gone" if broken else None,
                )
            ]  # fmt: skip

    def text(self, prompt: str) -> str:
        return f"Number {len(self.asked)} is a fox. Is it?" if "question" in prompt else "No."

    def close(self) -> None:
        return


def written(folder: Path, writer: Obedient, limit: int = 12, **options: Any) -> Any:
    with RowFile(folder / "generations.jsonl", Generation) as file:
        return Writing.draw(Writer(MODEL, "f", lambda _: writer), limit=limit, **options).pairs(file)


def test_pairs_are_written_under_a_principle_and_under_its_antithesis(tmp_path: Path) -> None:
    writer = Obedient()
    pairs = written(tmp_path, writer)
    assert len(pairs) == 12
    assert len(writer.asked) == 24
    assert Counter(pair.task for pair in pairs) == {"dialogue": 6, "summarization": 6}
    principles = {p.definition: (p, True) for p in load_principle_set("verifiable").principles}
    principles |= {p.antithesis: (p, False) for p, _ in list(principles.values())}
    for pair in pairs:
        (line,) = pair.principles
        constitution = Constitution((Element(*principles[line]),))
        assert pair.label == compare(constitution, pair.a, pair.b)[0]
        assert pair.models == ("w",)


class Sided(Obedient):
    """A writer whose text says whether it was given a definition."""

    def text(self, prompt: str) -> str:
        return "yes" if any(p.definition in prompt for p in load_principle_set("verifiable").principles) else "no"


def test_neither_the_place_nor_the_side_is_known_beforehand(tmp_path: Path) -> None:
    definitions = {p.definition for p in load_principle_set("verifiable").principles}
    found = Counter((pair.a, pair.principles[0] in definitions) for pair in written(tmp_path, Sided(), limit=80))
    assert len(found) == 4
    assert all(8 < n < 32 for n in found.values())


def test_responses_that_are_there_are_not_written_again(tmp_path: Path) -> None:
    first = written(tmp_path, Obedient(), limit=4)
    writer = Obedient()
    assert written(tmp_path, writer, limit=4) == first
    assert writer.asked == []
    assert written(tmp_path, writer, limit=6)[:4] == first
    assert len(writer.asked) == 4


def test_a_failed_response_stops_and_what_was_answered_is_kept(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'w' gave no response to 1 of 8 prompts \(server_error: gone\)"):
        written(tmp_path, Obedient(fails_at=5), limit=4)
    writer = Obedient()
    assert len(written(tmp_path, writer, limit=4)) == 4
    assert len(writer.asked) == 1


def test_responses_that_are_yet_to_be_written_are_foreseen(tmp_path: Path) -> None:
    pairs = written(tmp_path, Obedient(), limit=2)
    with RowFile(tmp_path / "generations.jsonl", Generation) as file:
        writing = Writing.draw(Writer(MODEL, "f", lambda _: pytest.fail("it was opened")), limit=3)
        assert len(writing.prompts_left(file)) == 2
        foreseen = writing.foreseen(file, 7)
    assert foreseen[:2] == pairs
    assert {foreseen[2].a, foreseen[2].b} == {"a" * 7, "b" * 7}


def test_one_task_alone_and_no_more_than_there_are(tmp_path: Path) -> None:
    assert {pair.task for pair in written(tmp_path, Obedient(), limit=5, tasks=["summarization"])} == {"summarization"}
    with pytest.raises(UserError, match="--limit asks for 9999 pairs"):
        written(tmp_path, Obedient(), limit=9999)


# --- Of a run ---------------------------------------------------------------------------------------------------------


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no spec\.yaml"):
        pairs_of_run(tmp_path)
