"""Files of rows: one reader for lines and for one list, and one sentence for what it cannot read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sami_train.data import read_objects, read_queries
from sami_train.errors import UserError

BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("q.jsonl", '{"query": "A?"}\n\n{"query": "B?"}\n'),
        ("q.jsonl", f'{BOM}{{"query": "A?"}}\r\n{{"query": "B?"}}'),
        ("q.jsonl", '{"query": "A?"}\r{"query": "B?"}\r'),
        ("q.json", '[{"query": "A?"}, {"query": "B?"}]'),
        ("q.json", f'{BOM}[{{"query": "A?"}},\n {{"query": "B?"}}]'),
        ("q.jsonl", '\n[{"query": "A?"},\n {"query": "B?"}]'),
        (
            "q.jsonl",
            '{"query": "A?", "part": null}\n{"query": "B?", "part": "train"}\n{"query": "C?", "part": "evaluation"}\n',
        ),
    ],
)
def test_lines_and_one_list_are_read_alike(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert [query.text for query in read_queries(tmp_path / name, part="train")] == ["A?", "B?"]


HALF = '{"query": "Smile \\ud83d now"}'
MANY = f'{{"id": {"9" * 5000}, "query": "A?"}}'
DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("q.json", f"[{HALF}]", ": item 1: this row has half of a character"),
        ("q.jsonl", f'{{"query": "A?"}}\n{HALF}', ":2: this row has half of a character"),
        ("q.json", f"[{MANY}]", ": this file has a number of too many digits"),
        ("q.jsonl", MANY, ":1: this line has a number of too many digits"),
        ("q.json", DEEP, ": this file is nested too deep"),
        ("q.jsonl", f'{{"query": "A?"}}\n{DEEP}', ":2: this line is nested too deep"),
        (
            "q.json",
            '[{"query": "A?"},\n {"query": "B?"\n',
            ":3: this file is not JSON (Expecting ',' delimiter, column",
        ),
        ("q.json", '{"query": "A?"}', ": a .json data file holds one list of rows"),
        ("q.json", '["A?"]', ": item 1: this row is not a JSON object"),
        ("q.jsonl", '{"query": "A?"}\n"B?"', ":2: this row is not a JSON object"),
        ("q.jsonl", '{"id": true, "query": "A?"}', ":1: 'id' must be a text or a whole number"),
        ("q.jsonl", '{"id": 1, "query": "A?"}\n\n{"id": 1, "query": "B?"}', ":3: the id '1' names two different texts"),
        (
            "q.json",
            '[{"id": 1, "query": "A?"}, {"id": "1", "query": "B?"}]',
            ": item 2: the id '1' names two different texts",
        ),
    ],
)
def test_what_cannot_be_read_is_named_by_row_and_reason(tmp_path: Path, name: str, text: str, told: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_queries(path)
    assert str(error.value).startswith(f"{path}{told}"), error.value
    assert "\n" not in str(error.value)


def test_a_pair_of_escapes_is_one_character_and_zero_an_id(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"id": 0, "query": "\\ud83d\\ude00"}\n', encoding="utf-8")
    (query,) = read_queries(tmp_path / "q.jsonl")
    assert (query.id, query.text) == ("0", "\N{GRINNING FACE}")


def test_pipes_and_devices_are_not_read(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "q.jsonl")
    for path in (tmp_path / "q.jsonl", Path("/dev/zero"), tmp_path):
        with pytest.raises(UserError, match="name a file"):
            list(read_objects(path))


def test_where_a_row_stands_is_part_of_no_comparison(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(json.dumps({"query": "A?"}), encoding="utf-8")
    assert read_queries(tmp_path / "a.jsonl") == read_queries(tmp_path / "b.jsonl")
