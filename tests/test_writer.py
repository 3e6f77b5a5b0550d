"""Principles written by a model: reading its answers, refusing them, and `harness principles write` from end to end."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness.cli import main
from harness.writer import (
    Assignment,
    Draft,
    Refused,
    Sides,
    Written,
    build_set,
    check_principle,
    check_sentence,
    load_writer_template,
    parse_answer,
    parse_names,
    slug,
    to_yaml,
    warnings_for,
)
from sami_train.constitutions import (
    Principle,
    PrincipleSet,
    Split,
    findings,
    lint,
    list_principle_sets,
    load_principle_set,
    parse_principle_set,
)
from sami_train.errors import UserError
from sami_train.yamlfile import parse_yaml

SHORT = Sides(
    "The summary should be brief and leave out whatever does not matter.",
    "The summary should ramble on with padding and repetition.",
)
KIND = Sides(
    "The summary should speak warmly of everybody in the post.",
    "The summary should treat people coldly or make fun of them.",
)
WET = Sides(
    "The summary should compare each event with water, rivers or rain.",
    "The summary should name events drily, free of any comparison.",
)


def answer(sides: Sides) -> str:
    return f"Definition: {sides.definition}\nAntithesis: {sides.antithesis}"


def principle(name: str, sides: Sides, split: Split = "learned") -> Principle:
    return Principle(id=name, definition=sides[0], antithesis=sides[1], split=split, task=("summarization",))


# --- reading


@pytest.mark.parametrize(
    "text",
    [
        answer(SHORT),
        answer(SHORT) + "\n\nI hope this helps!",
        "Sure!\n\n" + answer(SHORT).replace("Definition:", "**Definition:**").replace("Antithesis:", "**Antithesis**:"),
        answer(SHORT).replace("\n", "\r\n\r\n").replace("Definition", "1. definition"),
        answer(SHORT).replace("matter.", "matter").replace("repetition.", "repetition"),
        f'- Definition: "{SHORT.definition}"\n- Antithesis: “{SHORT.antithesis}”',
        f"<think>\nDefinition: The summary should be short.\nAntithesis: Hm, what?\n</think>\n{answer(SHORT)}",
        answer(KIND) + "\n\nNo, that was another one.\n\n" + answer(SHORT),
        f"## Definition：{SHORT.definition}\n\n\n> Antithesis:   {SHORT.antithesis}  ",
    ],
)
def test_the_last_labelled_lines_are_read(text: str) -> None:
    assert parse_answer(text) == SHORT


LONG = "The summary should " + "go on and " * 30 + "end."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no_definition"),
        ("I cannot help with that.", "no_definition"),
        (json.dumps({"definition": SHORT.definition, "antithesis": SHORT.antithesis}), "no_definition"),
        (f"The definition is: {SHORT.definition}\nThe antithesis is: {SHORT.antithesis}", "no_definition"),
        (f"Definition:\nAntithesis: {SHORT.antithesis}", "no_definition"),
        (f"Definition: {SHORT.definition}", "no_antithesis"),
        (f"Definition: {SHORT.definition}\nAntithesis:", "no_antithesis"),
        (f"Definition: {SHORT.definition} Antithesis: {SHORT.antithesis}", "no_antithesis"),
        (f"Antithesis: {SHORT.antithesis}\nDefinition: {SHORT.definition}", "out_of_order"),
        (answer(SHORT) + f"\nDefinition: {KIND.definition}", "out_of_order"),
        (answer(SHORT).replace("brief and", "brief and\n"), "cut_off"),
        (answer(SHORT).replace("repetition.", "repetition,"), "cut_off"),
        (answer(SHORT) + "\nAntithesis:", "cut_off"),
        (f"Definition: The summary should be brief\nwhatever\nAntithesis: {SHORT.antithesis}", "cut_off"),
        (answer(SHORT).replace("brief", "brief\x1b[31m"), "unreadable_characters"),
        (answer(SHORT).replace("ramble", "ram\u202eble"), "unreadable_characters"),
        (answer(SHORT).replace("ramble", "ram\u2028ble"), "unreadable_characters"),
        (answer(SHORT).replace("ramble", "ram\N{REPLACEMENT CHARACTER}ble"), "unreadable_characters"),
        (answer(SHORT).replace("ramble", "ramble<|im_end|>"), "markup"),
        (answer(SHORT).replace("ramble", "<one sentence>"), "markup"),
        (answer(SHORT).replace("ramble", "say {query}"), "markup"),
        (answer(SHORT).replace("ramble", "**ramble**"), "markup"),
        (answer(SHORT).replace("ramble", "name https://example.org"), "markup"),
        ("Definition: concise\nAntithesis: verbose", "too_short"),
        ("Definition: The summary should.\nAntithesis: The summary should not.", "too_short"),
        (answer(SHORT) + " It never ends.", "several_sentences"),
        (f"Definition: {SHORT.definition}\nAntithesis: Should the summary ramble on?", "question"),
        (f"Definition: {SHORT.definition}\nAntithesis: {LONG}", "too_long"),
        (f"Definition: {SHORT.definition}\nAntithesis: The {'x' * 3000} ends here.", "too_long"),
        (f"Definition: {SHORT.definition}\nAntithesis: {SHORT.definition}", "copy"),
        (f"Definition: {SHORT.definition}\nAntithesis: {SHORT.definition.replace('be', 'not be')}", "copy"),
        (f"Definition: The summary should stay brief.\nAntithesis: {LONG[:130]}.", "unlike_lengths"),
        (f"Definition: {KIND.definition}\nAntithesis: {SHORT.antithesis}", "near_duplicate"),
        (f"Definition: {KIND.antithesis}\nAntithesis: {SHORT.antithesis}", "near_duplicate"),
        (
            "Definition: The summary should mention a season of the year and what the weather is like.\n"
            f"Antithesis: {SHORT.antithesis}",
            "copies_example",
        ),
    ],
)
def test_malformed_answers_are_refused_with_a_typed_reason(text: str, reason: str) -> None:
    template, opening = load_writer_template(), "The summary should"
    found = parse_answer(text)
    if isinstance(found, Sides):
        refused = next((r for r in (check_sentence(s, opening) for s in found) if r), None)
        examples = template.sides_of_examples(("summarization",))
        refused = refused or check_principle(principle("concise", found), [principle("kind", KIND)], examples)
        assert refused is not None
        found = refused
    assert (found.reason, bool(found.message)) == (reason, True)


def test_a_held_out_principle_must_be_unlike_both_sides_of_a_learned_one() -> None:
    turned = Sides(SHORT.antithesis, "The summary should come to the point at once.")
    learned = [principle("concise", SHORT)]
    found = check_principle(principle("rambling", turned, "held_out"), learned)
    assert found == Refused("held_out_leak", "it says nearly the same as the principle 'concise'")
    assert check_principle(principle("kind", KIND, "held_out"), learned) is None


def test_an_answer_that_ran_out_of_tokens_is_taken_only_where_its_sentence_is_whole() -> None:
    assert parse_answer(answer(SHORT), truncated=True) == SHORT
    found = parse_answer(answer(SHORT).removesuffix("."), truncated=True)
    assert isinstance(found, Refused)
    assert found.reason == "cut_off"


@pytest.mark.parametrize("name", sorted(list_principle_sets()))
def test_every_shipped_principle_would_be_accepted(name: str) -> None:
    accepted: list[Principle] = []
    for one in load_principle_set(name).principles:
        sides = Sides(one.definition, one.antithesis)
        assert parse_answer(answer(sides)) == sides
        assert [check_sentence(s) for s in sides] == [None, None]
        assert check_principle(one, accepted, load_writer_template().sides_of_examples(one.task)) is None
        accepted.append(one)


def test_names_are_slugs_without_headings_sentences_and_repetitions() -> None:
    text = (
        "Here are some names:\n1. **Warm-hearted** - kind to all\n2) Café style: French\n- concise\n* plain\n* Plain\n"
        "../../etc/passwd\nThis one is a whole sentence and no name\n\x1b[31m\n短い\nab\n42\n" + "x" * 50
    )
    assert parse_names(text, ["concise"]) == ["warm-hearted", "cafe-style", "plain", "etc-passwd"]
    assert slug("  Été -- in $HOME ") == "ete-in-home"


# --- lint


def test_lint_finds_a_held_out_definition_that_is_a_learned_antithesis() -> None:
    learned = principle("plain", Sides("Write so that a child follows.", "Use rare words wherever possible."))
    held_out = principle(
        "ornate", Sides("Use rare words wherever possible.", "Say it plainly, in few steps."), split="held_out"
    )
    found = findings(PrincipleSet(name="mine", principles=(learned, held_out)))
    assert [(f.kind, f.ids) for f in found] == [("held_out_leak", ("plain", "ornate"))]


def test_lint_finds_sides_of_unlike_length() -> None:
    sides = Sides("Be brief and clear.", "Go on " * 7 + "for ever.")
    found = PrincipleSet(name="mine", principles=(principle("one", sides),))
    assert [f.kind for f in findings(found)] == ["unlike_lengths"]
    assert lint(found) == ["one: its sides have 4 and 16 words; make them about equally long"]
    even = Sides(sides.definition, "Go on " * 5 + "for ever.")
    assert lint(PrincipleSet(name="mine", principles=(principle("one", even),))) == []


def test_sides_that_may_not_be_contraries_carry_a_warning() -> None:
    opening = "The summary should"
    assert warnings_for(principle("concise", SHORT), opening) == ()
    same = Sides("The summary should be as short as can be.", "The summary should be as short and clear as it gets.")
    assert warnings_for(principle("concise", same), opening) == ("both sides say much the same",)
    named = Sides("Speak of others as a friend would.", "The summary should be polite without meaning it.")
    assert warnings_for(principle("polite", named), opening) == (
        "the definition does not begin with 'The summary should'",
        "the antithesis says 'polite' itself",
    )


# --- what is wanted


@pytest.mark.parametrize(
    ("given", "n", "held_out", "names", "held"),
    [
        (("a", "b"), 4, 1, ["a", "b", "c", "d"], {"d"}),
        (("a", "b"), 4, 3, ["a", "b", "c", "d"], {"b", "c", "d"}),
        (("a", "b"), 2, 1, ["a", "b"], {"b"}),
        (("a", "b"), 4, 2, ["a", "b", "c"], {"c"}),
        (("a", "b"), 4, 2, ["a", "b"], set()),
        (("a", "b"), 4, 0, ["a", "b", "c", "d"], set()),
        ((), 2, 2, ["c", "d"], {"c", "d"}),
    ],
)
def test_the_last_names_of_the_model_are_held_out(
    given: tuple[str, ...], n: int, held_out: int, names: list[str], held: set[str]
) -> None:
    splits = Assignment(("dialogue",), given, n, held_out).splits(names)
    assert list(splits) == names
    assert {name for name, split in splits.items() if split == "held_out"} == held


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": ("sumarization",)}, "did you mean 'summarization'?"),
        ({"given": ("Concise",)}, "'Concise' is no id of a principle; .* for example: concise"),
        ({"given": ("a", "a")}, "'a' stands twice"),
        ({"n": 1}, "--n is 1, with 2 principles named"),
        ({"held_out": 4}, "at most all 3 principles"),
        ({"seed": -1}, "--seed is -1"),
    ],
)
def test_assignments_that_cannot_be_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Assignment(**{"tasks": ("dialogue",), "given": ("a", "b"), "n": 3, **changes})


@pytest.mark.parametrize("name", ["1e5", "null", "on", "plain", "007"])
def test_a_set_is_the_same_after_its_file(name: str) -> None:
    sides = Sides('The summary should ask: "who, # what?" - briefly.', "The summary should say: it's all one, naïvely.")
    assignment = Assignment(("summarization", "dialogue"), (name,), 1)
    draft = Draft([Written(principle(name, sides), 1)], n_answers=1)
    made = build_set(name, draft, assignment, load_writer_template(), model="openai/m: x", date="2026-01-02")
    assert parse_principle_set(parse_yaml(to_yaml(made), Path("x.yaml"))).hash == made.hash
    assert "seed 0, temperature 0.7, 1 answers" in made.source


# --- a server that speaks the OpenAI protocol


@dataclass
class Server:
    """Answers by the name that is asked for: its texts one after another, the last one for ever."""

    url: str = ""
    texts: dict[str, list[str]] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200

    def text_for(self, body: dict[str, Any]) -> str:
        said = str(body["messages"][-1]["content"]).splitlines()[0]
        texts = self.texts[said.removeprefix("Name: ") if said.startswith("Name: ") else "names"]
        return texts.pop(0) if len(texts) > 1 else texts[0]


class Handler(BaseHTTPRequestHandler):
    server_state: Server

    def do_POST(self) -> None:
        state = self.server_state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        state.asked.append(body)
        reply: dict[str, Any] = {"error": {"message": "no such\x1b[31m model"}}
        if state.status == 200:
            choice = {"index": 0, "finish_reason": "stop", "message": {"content": state.text_for(body)}}
            reply = {"id": "1", "choices": [choice], "usage": {}}
        data = json.dumps(reply).encode()
        self.send_response(state.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    pytest.importorskip("openai", reason="the openai package is not installed")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    state = Server(texts={"names": ["watery\nkind"], "concise": [answer(SHORT)], "watery": [answer(WET)]})
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"server_state": state}))
    state.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield state
    http.shutdown()
    http.server_close()


class Said(NamedTuple):
    code: int
    out: str
    err: str


Write = Callable[..., Said]


@pytest.fixture
def write(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Write:
    """Runs `harness principles write` in an empty folder."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> Said:
        capsys.readouterr()
        code = main(["principles", "write", *arguments])
        return Said(code, *capsys.readouterr())

    return command


def to(server: Server, *more: str) -> list[str]:
    return ["--model", "openai/any", "--base-url", server.url, "--task", "summarization", "-o", "mine.yaml", *more]


def test_a_set_is_written_with_its_provenance_and_is_clean(server: Server, write: Write, tmp_path: Path) -> None:
    server.texts["kind"] = ["I would rather not.", answer(SHORT), answer(KIND)]
    said = write(*to(server, "--principles", "concise", "--n", "3", "--held-out", "1", "--yes"))
    assert said.code == 0, said.err
    found = load_principle_set(tmp_path / "mine.yaml")
    assert [(p.id, p.split) for p in found.principles] == [
        ("concise", "learned"),
        ("watery", "learned"),
        ("kind", "held_out"),
    ]
    assert lint(found) == []
    assert found.principles[2].definition == KIND.definition
    for part in ("openai/any at 127.0.0.1", load_writer_template().hash, "seed 0", "temperature 0.7", "6 answers"):
        assert part in found.source
    assert "held out: kind" in said.err
    assert "kind: try 2: refused, held_out_leak" in said.err
    assert not list(tmp_path.glob(".*"))
    retry = [str(body["messages"][-1]["content"]) for body in server.asked[-2:]]
    assert "refused: it has no line with a definition" in retry[0]
    assert "nearly the same as the principle 'concise'" in retry[1]
    assert [body["seed"] for body in server.asked[-3:]] == [0, 1, 2]


def test_without_a_terminal_the_set_is_printed_and_the_answers_are_used_again(
    server: Server, write: Write, tmp_path: Path
) -> None:
    arguments = to(server, "--principles", "concise", "--n", "2")
    said = write(*arguments)
    assert said.code == 0
    assert parse_yaml(said.out, Path("out")).data["principles"][1]["id"] == "watery"
    assert "the same command with --yes writes mine.yaml" in said.err
    assert not (tmp_path / "mine.yaml").exists()
    n_asked = len(server.asked)
    answers = tmp_path / ".mine.yaml.writing.jsonl"
    with answers.open("a") as file:
        file.write('{"key": 3}\n{"torn')
    again = write(*arguments, "--yes", "--json")
    assert (again.code, len(server.asked)) == (0, n_asked)
    result = json.loads(again.out)
    assert (result["written"], result["answers"], result["reused"]) == (True, n_asked, n_asked)
    assert load_principle_set(tmp_path / "mine.yaml").hash
    assert not answers.exists()
    refused = write(*arguments)
    assert refused.code == 2
    assert "mine.yaml is there already; choose another file, or add --overwrite" in refused.err
    assert write(*arguments, "--overwrite", "--yes").code == 0


def test_what_stays_refused_is_left_out_and_a_longer_try_goes_on(server: Server, write: Write, tmp_path: Path) -> None:
    server.texts["watery"] = [*["Definition: wet\nAntithesis: \x1b[2Jdry"] * 3, answer(WET)]
    arguments = to(server, "--principles", "concise", "--n", "2", "--yes")
    said = write(*arguments, "--json")
    assert said.code == 3
    assert json.loads(said.out)["left_out"] == [
        {
            "id": "watery",
            "split": "learned",
            "reason": "too_short",
            "message": "both the definition and the antithesis must be full sentences",
        }
    ]
    assert "1 of 2 principles could not be written; try --max-tries 6" in said.err
    assert [p.id for p in load_principle_set(tmp_path / "mine.yaml").principles] == ["concise"]
    n_asked = len(server.asked)
    shown = write(*arguments, "--overwrite")
    assert "left out: watery, learned: too_short" in shown.err
    assert "\x1b[2J" not in shown.err
    assert write(*arguments, "--overwrite", "--max-tries", "4").code == 0
    assert len(server.asked) == n_asked + 1
    assert len(load_principle_set(tmp_path / "mine.yaml").principles) == 2


def test_another_model_or_prompt_is_asked_again(server: Server, write: Write) -> None:
    arguments = to(server, "--principles", "concise")
    write(*arguments)
    write(*arguments, "--model", "openai/other")
    write(*arguments, "--seed", "7")
    write(*arguments)
    assert [body["model"] for body in server.asked] == ["any", "other", "any"]


def test_a_model_that_cannot_be_asked_ends_it(server: Server, write: Write) -> None:
    write(*to(server, "--principles", "concise"))
    server.status = 404
    said = write(*to(server, "--principles", "concise", "--n", "2"))
    assert said.code == 1
    assert "the model gave no answer (refused_request: HTTP 404: no such" in said.err
    assert "\x1b" not in said.err
    assert len(server.asked) == 2


def test_recorded_answers_cannot_be_asked(write: Write) -> None:
    said = write("--model", "recorded/answers", "--task", "dialogue", "-o", "mine.yaml")
    assert said.code == 2
    assert "--model: 'recorded/answers' has recorded answers to a run's queries and cannot write principles" in said.err


def test_the_question_is_asked_at_a_terminal(server: Server, write: Write, tmp_path: Path) -> None:
    arguments = to(server, "--principles", "concise")
    write(*arguments)

    def at_terminal(reply: bytes) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        os.write(ours, reply)
        command = [sys.executable, "-m", "harness", "principles", "write", *arguments]
        done = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path)
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 4096):
                shown += chunk
        except OSError:  # Linux, when the other end is closed
            pass
        os.close(ours)
        return done.wait(60), shown.decode()

    code, shown = at_terminal(b"\n")
    assert (code, "write mine.yaml? [y/N]" in shown) == (0, True)
    assert not (tmp_path / "mine.yaml").exists()
    code, shown = at_terminal(b"y\n")
    assert (code, "wrote 1 principle" in " ".join(shown.split())) == (0, True)
    assert load_principle_set(tmp_path / "mine.yaml").principles[0].id == "concise"
    assert len(server.asked) == 1


# --- a real model


@pytest.mark.parametrize("style", ["chat", "completion"])
def test_the_gibberish_of_a_random_model_is_refused(tiny_model: Path, write: Write, tmp_path: Path, style: str) -> None:
    said = write(
        "--model", str(tiny_model), "--task", "dialogue", "--principles", "polite", "--n", "2", "--held-out", "1",
        "--style", style, "--max-new-tokens", "24", "--max-tries", "2", "-o", "out/mine.yaml", "--yes", "--json",
    )  # fmt: skip
    assert said.code == 3
    assert "none of the 2 principles could be written" in said.err
    result = json.loads(said.out)
    assert (result["written"], result["principles"]) == (False, [])
    assert [left["split"] for left in result["left_out"]] == ["learned", "held_out"]
    assert all(left["reason"] and left["message"] for left in result["left_out"])
    assert not (tmp_path / "out/mine.yaml").exists()
    kept = (tmp_path / "out/.mine.yaml.writing.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(kept) == result["answers"]


def test_bad_arguments_are_one_sentence(write: Write, tmp_path: Path) -> None:
    base = ["--model", "openai/any", "--task", "dialogue"]
    for arguments, said in (
        (base, "say where the set goes"),
        ([*base, "--name", "My Set"], "'My Set' cannot name a set"),
        ([*base, "-o", "mine.txt"], "end its name in .yaml"),
        ([*base, "-o", "x.yaml", "--temperature", "3"], "'3' is not a number from 0 to 2"),
        ([*base, "-o", "x.yaml", "--task", "chess"], "there is no task 'chess'"),
        (["--model", "embedded/nothing", "--task", "dialogue", "-o", "x.yaml"], "no embedded model 'nothing'"),
        (["--task", "dialogue", "-o", "x.yaml"], "--model"),
    ):
        found = write(*arguments)
        assert found.code == 2
        assert said in found.err
        assert "Traceback" not in found.err
    assert not list(tmp_path.iterdir())
