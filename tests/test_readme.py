"""Every example in the README and in docs/ is run as it stands there: specifications checked and planned, commands parsed by
the real command line and run where they need no network, no key and no model, snippets executed."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import yaml

import harness
import harness.cli
import sami_train.cli
from harness.cli._arguments import parse
from harness.costs import load_prices
from harness.judges.checks import ENTRY_POINT_GROUP
from harness.spec import load_spec
from harness.validation import validate
from sami_train.config import load_recipe
from sami_train.constitutions import load_principle_set
from sami_train.models import load_model, load_tokenizer, parse_source
from sami_train.prompts import load_template

ROOT = Path(__file__).resolve().parent.parent
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


class Block(NamedTuple):
    """A fenced block: file and line, the language, the text."""

    where: str
    language: str
    text: str


def blocks_of(file: Path) -> list[Block]:
    text = file.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(f"{file.name}:{text[: m.start()].count(chr(10)) + 1}", m[1], m[2]) for m in found]


BLOCKS = [block for file in FILES for block in blocks_of(file)]


def only(language: str, file: str, *words: str) -> str:
    """The one block of a file in this language that has these words."""
    found = [
        b
        for b in BLOCKS
        if b.language == language and b.where.startswith(f"{file}:") and all(w in b.text for w in words)
    ]
    assert len(found) == 1, (language, file, words, [block.where for block in found])
    return found[0].text


def lines_of(block: Block) -> list[str]:
    return [line for line in block.text.splitlines() if shlex.split(line, comments=True)]


COMMANDS = [
    pytest.param(line, id=f"{block.where}-{number}")
    for block in BLOCKS
    if block.language == "bash"
    for number, line in enumerate(lines_of(block), start=1)
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The README's specification and principle set, under the names that the README gives them."""
    (tmp_path / "mine.yaml").write_text(only("yaml", "README.md", "comparisons:"), encoding="utf-8")
    (tmp_path / "my-principles.yaml").write_text(only("yaml", "README.md", "antithesis:"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- commands


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_is_one(line: str) -> None:
    words = shlex.split(line.partition(" > ")[0], comments=True)
    program, arguments = Path(words[0]).name, words[1:]
    if program == "torchrun":
        assert "sami_train" in arguments
        arguments = arguments[arguments.index("sami_train") + 1 :]
        program = "sami-train" if arguments != ["..."] else "true"
    elif program.startswith("python") and arguments[:2] == ["-m", "sami_train"]:
        program, arguments = "sami-train", arguments[2:]
    if program == "harness":
        parse(harness.cli.build_parser(), arguments)
    elif program == "sami-train":
        verb, rest = sami_train.cli._verb(arguments)
        assert verb is not None
        parser = sami_train.cli._Parser()
        sami_train.cli.VERBS[verb].add_arguments(parser)
        parser.parse_args(rest)
    elif program == "make":
        assert re.search(rf"^{re.escape(arguments[0])}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "pip":
        needs = [word for word in arguments if word.endswith(".txt")]
        assert all((ROOT / need).is_file() for need in needs)
    elif program.startswith("python"):
        assert arguments[0] == "-m" or (ROOT / arguments[0]).is_file()
    else:
        assert program in ("true", "run")
        assert program == "true" or (ROOT / words[0]).is_file()


INLINE = sorted(
    {
        code
        for file in FILES
        for code in re.findall(r"(?<!`)`((?:harness|sami-train) [^`]+)`", file.read_text(encoding="utf-8"))
    }
)


@pytest.mark.parametrize("code", INLINE)
def test_a_command_in_a_sentence_has_its_verb_and_options(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Placeholders and arguments may be left out there, so it is not parsed as a whole."""
    program, *words = code.split()
    verbs = []
    for word in words:
        if not re.fullmatch(r"[a-z-]+", word) or word.startswith("-") or len(verbs) == 2:
            break
        verbs.append(word)
    main = harness.cli.main if program == "harness" else sami_train.cli.main
    while True:
        assert main([*verbs, "--help"]) == 0
        shown = capsys.readouterr().out
        if shown.startswith(("usage: " + " ".join([program, *verbs]), "usage: harness VERB")) or len(verbs) == 1:
            break
        verbs.pop()
    for option in re.findall(r"(?<![\w-])--[a-z-]+", code):
        assert option in shown


@pytest.mark.parametrize(
    "line", ["harness validate mine.yaml", "harness plan mine.yaml", "harness score --verdicts v.json --lengths"]
)
def test_the_readmes_commands_run(folder: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert any(line in block.text for block in BLOCKS if block.where.startswith("README.md"))
    (folder / "v.json").write_text(json.dumps([[1, 10, 12], [0, 9, 7], [0.5, 8, 8], [1, 7, 9]]), encoding="utf-8")
    arguments = [*shlex.split(line)[1:], *(["--no-memory"] if " plan " in line else [])]
    assert harness.cli.main(arguments) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["list"], ["show", "mistral-7b/hh-rlhf/as-run"], ["show", "mine.yaml", "--set", "beta=0.1"]]
)
def test_the_trainers_commands_run(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shlex.join(["sami-train", *words]) in only("bash", "training.md", "sami-train list")
    (tmp_path / "mine.yaml").write_text(only("yaml", "training.md", "extends:"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert sami_train.cli.main(words) == 0


# --- specifications and principle sets


def test_the_readmes_principle_set_is_sound(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert harness.cli.main(["principles", "lint", "./my-principles.yaml"]) == 0
    assert "nothing found" in capsys.readouterr().out
    assert harness.cli.main(["principles", "sample", "./my-principles.yaml", "-n", "3"]) == 0


@pytest.mark.parametrize(
    ("file", "words"),
    [("apis.md", "reasoning: low"), ("extending.md", "measures:"), ("judges.md", "kind: verifiable")],
)
def test_a_part_of_a_specification_fits_into_the_readmes(folder: Path, file: str, words: str) -> None:
    whole = yaml.safe_load((folder / "mine.yaml").read_text(encoding="utf-8"))
    models = yaml.safe_load(only("yaml", "apis.md", "reasoning: low"))["models"]
    whole["models"] |= models
    whole["principles"] = {"sets": ["verifiable"]}
    for name, part in yaml.safe_load(only("yaml", file, words)).items():
        whole[name] = {**whole.get(name, {}), **part}
    (folder / "whole.yaml").write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")
    assert validate(load_spec("whole.yaml"), to_run=False) == []


def test_the_block_of_other_models(folder: Path) -> None:
    with (folder / "mine.yaml").open("a", encoding="utf-8") as file:
        file.write(only("yaml", "extending.md", "preset_models:"))
    small = load_spec("mine.yaml", preset_models="small")
    assert (small.name, small.tasks["dialogue"].limit) == ("mine-small", 8)


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(only("yaml", "training.md", "extends:"), encoding="utf-8")
    assert load_recipe(str(tmp_path / "mine.yaml")).model == "/data/my-model"


def test_prices_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text(only("yaml", "apis.md", "prices:"), encoding="utf-8")
    assert load_prices(tmp_path / "prices.yaml")


def test_an_entry_point_of_ones_own() -> None:
    assert list(tomllib.loads(only("toml", "extending.md"))["project"]["entry-points"]) == [ENTRY_POINT_GROUP]


def test_every_block_has_a_test() -> None:
    """A new example in another language, or another YAML block, wants one above."""
    assert {block.language for block in BLOCKS} == {"bash", "python", "text", "toml", "yaml", ""}
    assert sum(block.language == "yaml" for block in BLOCKS) == 8
    assert sum(block.language in ("python", "text", "toml") for block in BLOCKS) == 3


# --- Python, and the README's first example


def test_the_readmes_python_runs(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the run itself, which takes minutes."""
    monkeypatch.setattr(harness, "run", lambda name: SimpleNamespace(results={"name": name}))
    source = parse_source(str(tiny_model))
    tokenizer = load_tokenizer(source)
    names: dict[str, Any] = {
        "model": load_model(source),
        "prompt_ids": [tokenizer(text)["input_ids"] for text in ("one", "two")],
        "response_ids": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", "b")],
    }
    exec(only("python", "README.md"), names)
    assert names["matrix"].shape == (2, 2)
    assert names["loss"].ndim == 0


def test_the_first_example_is_a_real_one() -> None:
    """The prompt is what the template makes; principle, query and responses are in the published results."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    results = json.loads((ROOT / "leaderboards/quickstart/results.json").read_text(encoding="utf-8"))
    prompt = only("text", "README.md")
    example = next(e for e in results["examples"] if e["query"] in prompt)
    rendered = load_template("dialogue").render(example["constitution"], example["query"], "completion")
    assert f"{rendered.text}\n" == prompt
    for response in example["responses"].values():
        assert f"| {'<br>'.join(response['text'].splitlines())} |" in text
    principles = load_principle_set(ROOT / "principles" / "verifiable.yaml").principles
    principle = next(p for p in principles if p.definition == example["constitution"][0])
    assert f'("{principle.antithesis}")' in text
    assert principle.split == example["split"] == "held_out"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_links_lead_somewhere(file: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", file.read_text(encoding="utf-8"))
    assert [link for link in links if not (file.parent / link).exists()] == []
