"""YAML as people write it: numbers, keys, aliases, and every mistake in words of theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from sami_train.config import load_recipe, parse_changes
from sami_train.constitutions import load_principle_set
from sami_train.errors import Problems, UserError
from sami_train.yamlfile import Dumper, parse_yaml, problems, read_yaml

FILE = Path("x.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10", 10), ("0", 0), ("-3", -3), ("+3", 3), ("1_000", 1000), ("0x1F", 31), ("1.5", 1.5), (".5", 0.5), ("1.", 1.0),
        ("5e-7", 5e-7), ("2E3", 2000.0), ("1.5e3", 1500.0), ("-.inf", float("-inf")), ("007.5", 7.5),
        ("010", "010"), ("-010", "-010"), ("1:30", "1:30"), ("1:30.5", "1:30.5"), ("0b11", "0b11"), ("0o17", "0o17"),
        ("2024-01-01", "2024-01-01"), ("1.2.3", "1.2.3"), ("12e4567x", "12e4567x"), ("yes", True), ("off", False), ("~", None),
    ],
)  # fmt: skip
def test_a_number_is_what_it_looks_like_or_text(text: str, value: object) -> None:
    found = parse_yaml(f"a: {text}", FILE).data["a"]
    assert (found, type(found)) == (value, type(value))
    assert parse_changes([f"limit={text}"]) == {"limit": value}


@pytest.mark.parametrize(
    "text", ["010", "1:30", "1.5e3", ".5e3", "12e4567", "5.", "0x1F", "10", "yes", "2024-01-01", "-.inf", "~"]
)
def test_text_that_looks_like_a_number_comes_back_from_a_dump(text: str) -> None:
    assert parse_yaml(yaml.dump({"a": text}, Dumper=Dumper), FILE).data == {"a": text}


def test_a_count_in_another_system_is_refused_with_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("name: r\nlearning_rate: 1:30\nwarmup_steps: 0b11\n", encoding="utf-8")
    with pytest.raises(Problems) as error:
        load_recipe(str(tmp_path / "r.yaml"))
    assert error.value.problems == (
        f"{tmp_path}/r.yaml:2: 'learning_rate': must be a number (it is '1:30')",
        f"{tmp_path}/r.yaml:3: 'warmup_steps': must be an integer (it is '0b11')",
    )


@pytest.mark.parametrize("key", ["on", "yes", "7", "1.5", "null", "~"])
def test_a_key_that_is_not_text_is_named_as_written_with_its_line(key: str) -> None:
    with pytest.raises(UserError, match=rf"^x\.yaml:3: the key {key} is not read as text; put it into quotes$"):
        parse_yaml(f"a: 1\nmodels:\n  {key}: {{a: 1}}\n", FILE)
    assert parse_yaml(f'"{key}": 1', FILE).data == {key: 1}


def test_every_double_or_odd_key_is_told() -> None:
    with pytest.raises(Problems) as error:
        parse_yaml("a: 1\na: 2\nb: {on: 1, c: 1, c: 2}\n", FILE)
    assert [problem.partition(": ")[0] for problem in error.value.problems] == ["x.yaml:2", "x.yaml:3", "x.yaml:3"]


def test_a_figure_table_may_have_numbers_as_keys() -> None:
    assert parse_yaml("{1: a}", FILE, text_keys=False).data == {1: "a"}


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 40)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 60))


@pytest.mark.parametrize("text", [LAUGHS, MERGES, "a: &a [*a]\n"])
def test_aliases_do_not_grow_without_end(text: str) -> None:
    with pytest.raises(UserError, match=r"^x\.yaml.*(aliases of this file stand for more than 10,000|nested too deep)"):
        parse_yaml(text, FILE)


def test_a_few_aliases_and_merges_are_fine() -> None:
    assert parse_yaml("a: &a {k: [1, 2]}\nb: *a\nc: {<<: *a, m: 3}\n", FILE).data["c"] == {"k": [1, 2], "m": 3}


def test_halves_of_a_character_are_joined_and_one_alone_is_refused() -> None:
    assert parse_yaml('a: "\\ud83d\\ude00"', FILE).data == {"a": "\N{GRINNING FACE}"}
    with pytest.raises(UserError, match=r"^x\.yaml:2: this text has half of a character"):
        parse_yaml('a: 1\nb: "Smile \\ud83d now"\n', FILE)


def test_a_file_of_another_kind_or_none_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(UserError, match="is compressed with gzip; unpack it"):
        read_yaml(tmp_path / "x.yaml", "recipe")
    with pytest.raises(UserError, match="this recipe is a folder; name a file"):
        read_yaml(tmp_path, "recipe")
    with pytest.raises(UserError, match="File name too long"):
        read_yaml(Path("x" * 300 + ".yaml"), "recipe")


PRINCIPLE = "definition: Be short.\n    antithesis: Be long.\n    split: learned\n    task: dialogue\n"


def test_every_mistake_of_a_principle_set_is_told_in_words_of_yaml(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(
        "name: My Set\nversion: one\nprinciples:\n"
        f"  - id: a\n    {PRINCIPLE.replace('definition', 'defintion')}"
        f"  - id: b c\n    {PRINCIPLE.replace('learned', 'learnt')}"
        "  - just text\n"
        f"  - id: d\n    {PRINCIPLE.replace('dialogue', '[]')}    colour: red\n",
        encoding="utf-8",
    )
    with pytest.raises(Problems) as error:
        load_principle_set(file)
    told = [problem.removeprefix(f"{file}:") for problem in error.value.problems]
    assert told == [
        "1: 'name': must be a name of a-z, 0-9 and single '-' between them (it is 'My Set')",
        "2: 'version': must be an integer (it is 'one')",
        "5: unknown key 'principles.0.defintion'; did you mean 'definition'?",
        "9: 'principles.1.id': must be a name of a-z, 0-9 and single '-' between them (it is 'b c')",
        "12: 'principles.1.split' cannot be 'learnt'; did you mean 'learned'?",
        "14: 'principles.2': must be a mapping of fields (field: value) (it is 'just text')",
        "19: 'principles.3.task': must have at least 1 item",
        "20: unknown key 'principles.3.colour'; did you mean 'source'?",
    ]
    assert not any(word in " ".join(told) for word in ("tuple", "dictionary", "pattern", "string", "True", "None"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: s\nprinciples: word\n", "2: 'principles': must be a list, such as [a, b] (it is 'word')"),
        ("name: s\nprinciples: []\n", "2: 'principles': must have at least 1 item"),
        ("name: true\nprinciples: []\n", "1: 'name': must be text; put it into quotes (it is true)"),
        ("name: null\nprinciples: []\n", "1: 'name': must be text; put it into quotes (it is null)"),
    ],
)
def test_no_word_of_python_leaks(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(Problems) as error:
        load_principle_set(file)
    assert f"{file}:{told}" in error.value.problems


def test_every_id_that_is_listed_twice_is_told(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": name, "definition": "Be so.", "antithesis": "Do not.", "split": "learned", "task": "dialogue"}
        for name in "aabbc"
    ]
    (tmp_path / "s.yaml").write_text(json.dumps({"name": "s", "principles": rows}), encoding="utf-8")
    with pytest.raises(UserError, match="the principle id 'a', 'b' is listed twice"):
        load_principle_set(tmp_path / "s.yaml")


def test_every_mistake_of_a_recipe_and_of_its_changes_is_told(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("name: r\nlearning_rate: 1e-4\nbatchsize: 2\nseed: -1\n", encoding="utf-8")
    with pytest.raises(Problems) as error:
        load_recipe(str(tmp_path / "r.yaml"), {"beta": -1})
    assert {problem.partition(": ")[0].rpartition("/")[2] for problem in error.value.problems} == {
        "r.yaml:3",
        "r.yaml:4",
        "--set beta",
    }
    with pytest.raises(Problems) as error:
        load_recipe(str(tmp_path / "r.yaml"), {"bta": 1, "sed": 2})
    assert len(error.value.problems) == 2


def test_paths_have_homes_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"name: mine\nprinciples:\n  - id: a\n    {PRINCIPLE}"
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SETS", str(tmp_path))
    assert load_principle_set("~/mine.yaml").name == load_principle_set("$SETS/mine.yaml").name == "mine"
    monkeypatch.setenv("HARNESS_PRINCIPLES", "~")
    monkeypatch.chdir("/")
    assert load_principle_set("mine").name == "mine"


@pytest.mark.parametrize("value", ["{}", "{a: 1}", "[]"])
def test_a_field_is_named_as_the_file_has_it(value: str) -> None:
    """A mapping where 'auto' or a number stands was told of as 'temperature.literal['auto']'."""

    class Part(BaseModel):
        temperature: float | Literal["auto"]

    document = parse_yaml(f"temperature: {value}", FILE)
    with pytest.raises(ValidationError) as raised:
        Part.model_validate(document.data)
    (found,) = problems(raised.value, document, Part)
    assert found.location == ("temperature",)
    assert "literal" not in found.sentence
