"""The specification: what is read, which layer wins, and one clear sentence for everything that can be wrong in it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.plan import build_plan, describe
from harness.spec import ENVIRONMENT, ModelSpec, RelevanceSpec, Spec, SpecError, list_presets, load_spec, model_backend
from harness.stats import StopRule
from harness.validation import check, missing_for_run, validate
from sami_train.data import Query

GOOD = """\
name: try
models:
  base: {path: embedded/gemma-3-270m, style: completion}
  instruct: {path: embedded/smollm2-135m-instruct, style: chat}
  sami:
    style: completion
    train:
      recipe: embedded/gemma-3-270m
      from: base
      tasks: [dialogue]
      set: {learning_rate: 2e-5}
tasks:
  dialogue: {task: hh-rlhf, limit: 4}
  summarization: {task: tldr, limit: 4}
principles:
  sets: [verifiable]
  splits: [learned, held_out]
  size: 1
judges:
  verifiable: {kind: verifiable}
  smollm2: {kind: llm, model: instruct, limit: 2}
comparisons:
  - {a: sami, b: base}
  - {a: sami, b: instruct}
sampling: {max_new_tokens: 8, temperature: 0}
measures: {steerability: true, infonce: 2}
statistics: {level: 0.95}
engine: {device: cpu}
"""

SET = """\
name: {name}
principles:
  - id: short
    task: [dialogue, summarization]
    split: {split}
    definition: {definition}
    antithesis: The response should ramble on for very many lines.
    check: {check}
  - id: other-{name}
    task: [dialogue, summarization]
    split: {other}
    definition: {rest}
    antithesis: No colours occur anywhere.
    check: digits
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_BASE_URL", "HARNESS_PRINCIPLES")
    for variable in (*ENVIRONMENT, *keys):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)


def write(folder: Path, *changes: tuple[str, str], name: str = "try.yaml") -> Path:
    text = GOOD
    for old, new in changes:
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times"
        text = text.replace(old, new)
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def write_set(folder: Path, name: str, **fields: str) -> None:
    defaults = {
        "split": "learned",
        "other": "held_out",
        "definition": "The response should stay within a single short line.",
        "rest": {"one": "Every answer names a colour of the rainbow."}.get(
            name, "The text closes with a friendly farewell."
        ),
        "check": "{name: word_count, at_most: 25, zero_at: 60}",
    }
    (folder / f"{name}.yaml").write_text(SET.format(**{**defaults, **fields, "name": name}), encoding="utf-8")


def problems(file: Path) -> list[str]:
    """What a user is told of a file, whichever step finds it."""
    try:
        return validate(load_spec(file))
    except SpecError as error:
        return list(error.problems)


def test_the_specification_that_the_table_below_breaks_is_sound(tmp_path: Path) -> None:
    assert problems(write(tmp_path)) == []


BROKEN: list[tuple[str, str, int, list[str]]] = [
    # what is replaced, by what, the line named, words of the message
    # unknown keys, at every level
    ("statistics:", "statistic:", 27, ["unknown key 'statistic'", "'statistics'"]),
    ("style: chat", "style: chat, dtyp: auto", 4, ["unknown key 'models.instruct.dtyp'", "'dtype'"]),
    ("      from: base", "      form: base", 9, ["unknown key 'models.sami.train.form'", "'from'"]),
    ("hh-rlhf, limit", "hh-rlhf, limits", 13, ["unknown key 'tasks.dialogue.limits'", "'limit'"]),
    ("  size: 1", "  sizes: 1", 18, ["unknown key 'principles.sizes'", "'size'"]),
    ("instruct, limit", "instruct, limt", 21, ["unknown key 'judges.smollm2.limt'", "'limit'"]),
    ("{a: sami, b: base}", "{a: sami, b: base, c: 1}", 23, ["unknown key 'comparisons.0.c'"]),
    ("max_new_tokens", "max_new_token", 24 + 1, ["unknown key 'sampling.max_new_token'", "'max_new_tokens'"]),
    ("infonce", "infonse", 26, ["unknown key 'measures.infonse'", "'infonce'"]),
    ("device: cpu", "devic: cpu", 28, ["unknown key 'engine.devic'", "'device'"]),
    ("style: chat", "style: chat, api_key: sk-secret", 4, ["api_key", "OPENAI_API_KEY"]),
    # missing fields, wrong types, ranges
    (", style: chat", "", 4, ["'models.instruct.style' is missing", "style: chat"]),
    ("{kind: verifiable}", "{}", 20, ["'judges.verifiable.kind' is missing", "kind: llm"]),
    ("name: try\n", "seed: 1\n", 1, ["'name' is missing"]),
    ("style: chat", "style: chatty", 4, ["cannot be 'chatty'", "'chat'"]),
    ("max_new_tokens: 8", "max_new_tokens: many", 25, ["sampling.max_new_tokens", "integer", "'many'"]),
    ("max_new_tokens: 8", "max_new_tokens: yes", 25, ["sampling.max_new_tokens", "integer"]),
    ("max_new_tokens: 8", "max_new_tokens: 0", 25, ["sampling.max_new_tokens", "greater than or equal to 1"]),
    ("temperature: 0", "temperature: -1", 25, ["sampling.temperature", "greater than or equal to 0"]),
    ("temperature: 0", "temperature: .nan", 25, ["sampling.temperature", "finite"]),
    ("temperature: 0", "top_p: 1.5", 25, ["sampling.top_p", "less than or equal to 1"]),
    ("level: 0.95", "level: 95", 27, ["statistics.level", "less than 1"]),
    ("device: cpu", "device: gpu", 28, ["engine.device", "'gpu'", "cuda"]),
    ("device: cpu", "batch_size: 0", 28, ["engine.batch_size", "'auto'"]),
    ("limit: 2}", "limit: 0}", 21, ["judges.smollm2.limit", "greater than or equal to 1"]),
    ("infonce: 2", "infonce: -1", 26, ["measures.infonce", "greater than or equal to 0"]),
    ("infonce: 2", "swapped: 0", 26, ["measures.swapped", "neither true, false nor a whole number"]),
    ("infonce: 2", "swapped: often", 26, ["measures.swapped", "'often'"]),
    ("limit: 2}", "epochs: 0}", 21, ["judges.smollm2.epochs", "greater than or equal to 1"]),
    ("[learned, held_out]", "[learned, heldout]", 17, ["'heldout'", "'held_out'"]),
    ("  base: {path", "  7: {path", 3, ["key 7", "quotes"]),
    ("name: try\n", "name: try\nname: try\n", 2, ["'name' stands twice"]),
    ("name: try\n", "name: [try\n", 2, ["not valid YAML"]),
    # models
    ("{path: embedded/gemma-3-270m, ", "{", 3, ["'models.base'", "none of them"]),
    (
        "    style: completion\n",
        "    style: completion\n    path: embedded/gemma-3-270m\n",
        5,
        ["models.sami", "has 'path' and 'train'"],
    ),
    ("path: embedded/gemma-3-270m", "path: embedded/gemma-270m", 3, ["models.base.path", "'gemma-3-270m'"]),
    ("path: embedded/gemma-3-270m", "path: ./nowhere", 3, ["'./nowhere' does not exist"]),
    ("path: embedded/gemma-3-270m", "path: opnai/gpt", 3, ["no back end 'opnai'", "'openai'"]),
    ("path: embedded/gemma-3-270m", "path: vllm/org/name", 3, ["no back end 'vllm'", "transformers"]),
    ("path: embedded/gemma-3-270m", "path: openai/", 3, ["openai/NAME"]),
    ("gemma-3-270m, style: completion", "gemma-3-270m, style: chat", 3, ["models.base.style", "no chat template"]),
    ("gemma-3-270m, style", "gemma-3-270m, timeout_s: 9, style", 3, ["models.base.timeout_s", "leave it out"]),
    ("gemma-3-270m, style", "gemma-3-270m, revision: v1, style", 3, ["models.base.revision", "hub id"]),
    ("embedded/smollm2-135m-instruct", "openai/gpt-5", 4, ["models.instruct.path", "OPENAI_API_KEY"]),
    ("embedded/smollm2-135m-instruct", "anthropic/claude", 4, ["models.instruct.path", "ANTHROPIC_API_KEY"]),
    ("smollm2-135m-instruct, style", "smollm2-135m-instruct, base_url: x, style", 4, ["models.instruct.base_url"]),
    ("embedded/smollm2-135m-instruct", "openai/gpt, base_url: here", 4, ["models.instruct.base_url", "http://"]),
    ("embedded/smollm2-135m-instruct", "openai/gpt, dtype: float32", 4, ["models.instruct.dtype", "API model"]),
    # training
    ("from: base", "from: bass", 9, ["models.sami.train.from", "no model 'bass'", "'base'"]),
    ("from: base", "from: sami", 9, ["models.sami.train.from", "from itself"]),
    ("recipe: embedded/gemma-3-270m", "recipe: embedded/gemma", 8, ["no recipe named", "'embedded/gemma-3-270m'"]),
    ("recipe: embedded/gemma-3-270m", "recipe: mine.yaml", 8, ["mine.yaml", "no such recipe"]),
    ("tasks: [dialogue]", "tasks: [dialog]", 10, ["no task 'dialog'", "'dialogue'"]),
    ("tasks: [dialogue]", "tasks: [dialogue, dialogue]", 10, ["stands twice"]),
    ("learning_rate: 2e-5", "learning_rat: 2e-5", 11, ["no field 'learning_rat'", "'learning_rate'"]),
    ("learning_rate: 2e-5", "learning_rate: fast", 11, ["set.learning_rate", "number"]),
    ("learning_rate: 2e-5", "model: other", 11, ["sets 'model' of a recipe itself"]),
    ("learning_rate: 2e-5", "batch_size: 5000", 7, ["models.sami.train", "needs 45000 queries"]),
    # tasks
    ("task: hh-rlhf", "task: hh-rlfh", 13, ["tasks.dialogue.task", "no task 'hh-rlfh'", "'hh-rlhf'"]),
    ("task: tldr,", "task: tldr, source: gone.jsonl,", 14, ["tasks.summarization.source", "no data at 'gone.jsonl'"]),
    ("task: tldr,", "task: tldr, source: bundle,", 14, ["tasks.summarization.source", "'bundled'"]),
    ("task: tldr, limit: 4", "task: tldr, limit: 4000", 14, ["tasks.summarization.limit", "4000"]),
    ("task: tldr,", "task: tldr, subset: both,", 14, ["tasks.summarization", "'subset'"]),
    ("task: tldr,", "task: tldr, template: dialogue,", 14, ["template", "is for dialogue"]),
    ("task: tldr,", "task: tldr, template: sumarization,", 14, ["template", "'summarization'"]),
    # principles
    ("sets: [verifiable]", "sets: [verifable]", 16, ["no principle set named 'verifable'", "'verifiable'"]),
    ("sets: [verifiable]", "sets: [verifiable, verifiable]", 16, ["stands twice"]),
    ("sets: [verifiable]", "sets: [verifiable, ./gone.yaml]", 16, ["gone.yaml", "no such principle set"]),
    ("sets: [verifiable]", "sets: [verifiable]\n  folders: [gone]", 17, ["principles.folders.0", "no folder 'gone'"]),
    ("[learned, held_out]", "[learned, learned]", 17, ["principles.splits", "stands twice"]),
    ("size: 1", "size: 40", 18, ["principles.size", "fewer than 40"]),
    # judges and comparisons
    ("model: instruct", "model: instrukt", 21, ["judges.smollm2.model", "'instruct'"]),
    ("model: instruct, ", "", 21, ["judges.smollm2", "needs 'model'"]),
    ("{kind: verifiable}", "{kind: verifiable, model: base}", 20, ["verifiable judge has no 'model'"]),
    ("{kind: verifiable}", "{kind: verifiable, epochs: 2}", 20, ["verifiable judge says the same each time"]),
    ("{kind: verifiable}", "{kind: verifible}", 20, ["cannot be 'verifible'", "'verifiable'"]),
    ("{kind: verifiable}", "{kind: verifiable, form: text}", 20, ["verifiable judge has no 'form'"]),
    ("{kind: verifiable}", "{kind: verifiable, structured: on}", 20, ["verifiable judge has no 'structured'"]),
    ("limit: 2}", "limit: 2, form: letters}", 21, ["judges.smollm2.form", "'letters'"]),
    ("limit: 2}", "limit: 2, structured: maybe}", 21, ["judges.smollm2.structured", "'maybe'"]),
    ("limit: 2}", "limit: 2, form: choice, structured: on}", 21, ["nothing is written"]),
    ("limit: 2}", "limit: 2, structured: on}", 21, ["judges.smollm2.structured", "held to no schema"]),
    ("limit: 2}", "limit: 2, template: gone.yaml}", 21, ["judges.smollm2.template", "gone.yaml"]),
    ("b: base}", "b: bas}", 23, ["comparisons.0.b", "no model 'bas'", "'base'"]),
    ("b: base}", "b: sami}", 23, ["comparisons.0", "with itself"]),
    ("{a: sami, b: base}", "{a: instruct, b: sami}", 24, ["comparisons.1", "already"]),
    # names that become files
    ("name: try", "name: ../try", 1, ["'../try' becomes a file name"]),
    ("  smollm2:", "  ..:", 21, ["judges...", "becomes a file name"]),
    ("  smollm2:", "  a/b:", 21, ["judges.a/b", "becomes a file name"]),
    ("  smollm2:", "  Verifiable:", 21, ["same file name"]),
    ("  summarization: ", "  all: ", 14, ["tasks.all", "another name"]),
    ("name: try", "name: try\noutput: try.yaml", 2, ["'output'", "is a file"]),
]


@pytest.mark.parametrize(
    ("old", "new", "line", "words"), BROKEN, ids=[f"{new.strip()[:40]}" for _, new, _, _ in BROKEN]
)
def test_a_mistake_is_one_sentence_with_its_place(
    tmp_path: Path, old: str, new: str, line: int, words: list[str]
) -> None:
    file = write(tmp_path, (old, new))
    found = [p for p in problems(Path(file.name)) if all(word in p for word in words)]
    assert len(found) == 1, problems(file)
    assert found[0].startswith(f"{file.name}:{line}: ")
    assert "\n" not in found[0]
    assert "Traceback" not in found[0]
    assert "pydantic" not in found[0]
    assert "sk-secret" not in found[0]


def test_a_mistake_is_reported_alone(tmp_path: Path) -> None:
    """What follows from a mistake is not told as a second one."""
    alone = {"model: instrukt", "task: hh-rlfh", "from: sami", "sets: [verifable]", "recipe: mine.yaml", "b: bas}"}
    for old, new, _, _ in BROKEN:
        if new in alone:
            assert len(problems(write(tmp_path, (old, new)))) == 1, new


MISTAKES = [
    ("statistics:", "statistic:", "27: unknown key 'statistic'; did you mean 'statistics'?"),
    ("style: chat", "style: chatty", "4: 'models.instruct.style' cannot be 'chatty'"),
    ("      from: base", "      form: base", "9: unknown key 'models.sami.train.form'; did you mean 'from'?"),
    ("task: hh-rlhf", "task: hh-rlfh", "13: 'tasks.dialogue.task': there is no task 'hh-rlfh'"),
    (
        "task: tldr,",
        "task: tldr, source: gone.jsonl,",
        "14: 'tasks.summarization.source': there is no data at 'gone.jsonl'",
    ),
    ("[learned, held_out]", "word", "17: 'principles.splits': must be a list, such as [a, b] (it is 'word')"),
    ("{kind: verifiable}", "{kind: verifible}", "20: 'judges.verifiable.kind' cannot be 'verifible'"),
    ("model: instruct", "model: instrukt", "21: 'judges.smollm2.model': there is no model 'instrukt' here"),
    ("b: base}", "b: bas}", "23: 'comparisons.0.b': there is no model 'bas' here"),
    ("max_new_tokens: 8", "max_new_tokens: 010", "25: 'sampling.max_new_tokens': must be an integer (it is '010')"),
]


def everything(file: Path) -> list[str]:
    """What `harness validate --here` prints."""
    try:
        return validate(load_spec(file))
    except SpecError as error:
        if error.rest is None:
            return list(error.problems)
        return [*error.problems, *validate(error.rest, replaced=error.replaced)]


def test_every_mistake_is_told_at_once_and_nothing_else(tmp_path: Path) -> None:
    file = write(tmp_path, *((old, new) for old, new, _ in MISTAKES))
    found = everything(file)
    for _, _, told in MISTAKES:
        assert [problem for problem in found if problem.startswith(f"{file}:{told}")], (told, found)
    assert len(found) == len(MISTAKES)


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_what_stands_in_for_a_mistake_makes_no_problem(tmp_path: Path, number: int) -> None:
    old, new, told = MISTAKES[number]
    (found,) = everything(write(tmp_path, (old, new)))
    assert told in found


@pytest.mark.parametrize(
    "change",
    [
        ("name: try\n", ""),
        ("comparisons:\n  - {a: sami, b: base}\n  - {a: sami, b: instruct}\n", "comparisons: none\n"),
        ("judges:\n  verifiable: {kind: verifiable}\n  smollm2: {kind: llm, model: instruct, limit: 2}\n", ""),
        ("  sets: [verifiable]\n", ""),
        ("{path: embedded/gemma-3-270m, ", "{"),
        ("engine: {device: cpu}", "engine: {device: 'cuda:0', devices: 2}"),
        ("engine: {device: cpu}", "engine: fast"),
    ],
)
def test_what_is_missing_hides_nothing_else(tmp_path: Path, change: tuple[str, str]) -> None:
    found = everything(write(tmp_path, change, ("task: tldr,", "task: tdlr,")))
    assert len(found) == 2, found
    assert "there is no task 'tdlr'" in found[1]


WITHOUT_COMPARISONS = ("comparisons:\n  - {a: sami, b: base}\n  - {a: sami, b: instruct}\n", "")


def test_without_comparisons_every_model_that_does_not_judge_is_measured(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, WITHOUT_COMPARISONS))
    assert validate(spec) == []
    assert spec.answering() == {"base", "sami"}
    plan = build_plan(spec)
    assert {stage.measure for stage in plan.stages if stage.kind == "judge"} == {"steerability"}
    assert describe(plan)["precision"] == []


def test_a_single_model_that_judges_itself_is_measured() -> None:
    models = {"only": {"path": "openai/x", "style": "chat"}}
    spec = load_spec("smoke").model_copy(update={"comparisons": ()})
    spec = Spec.model_validate(
        {**spec.model_dump(by_alias=True), "models": models, "judges": {"own": {"kind": "llm", "model": "only"}}}
    )
    assert spec.answering() == {"only"}


def test_a_rule_for_stopping_needs_comparisons(tmp_path: Path) -> None:
    stop = ("statistics: {level: 0.95}", "statistics: {stop: {half_width: 0.1}}")
    (found,) = everything(write(tmp_path, WITHOUT_COMPARISONS, stop))
    assert "'statistics.stop': nothing is compared" in found


@pytest.mark.parametrize("splits", ["[held-out]", "[held_out]"])
def test_a_split_is_read_as_it_is_printed(tmp_path: Path, splits: str) -> None:
    spec = load_spec(write(tmp_path, ("splits: [learned, held_out]", f"splits: {splits}")))
    assert spec.principles.splits == ("held_out",)


def test_a_model_may_be_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.validation.importlib.util.find_spec", lambda name: None)
    more = "models:\n  api: {path: openai/gpt, style: chat}\n  told: {path: recorded/gone, style: chat}\n"
    for path in ("./nowhere", "/cluster/model", "~/model", "$SCRATCH/model", "model", "embedded/gemma-3-270m"):
        spec = load_spec(
            write(
                tmp_path, ("path: embedded/gemma-3-270m", f"path: {path}"), ("models:\n", more), ("b: base}", "b: api}")
            )
        )
        assert validate(spec, to_run=False) == []
        assert {sentence.split("'")[1] for sentence in missing_for_run(spec)} == {
            "models.api.path", "models.base.path", "models.instruct.path", "models.told.path",
        }  # fmt: skip
        assert len(validate(spec)) >= 4
    for path in ("embedded/gema-3-270m", "opnai/gpt", "x" * 5000):
        spec = load_spec(write(tmp_path, ("path: embedded/gemma-3-270m", f"path: {path}")))
        assert [problem for problem in validate(spec, to_run=False) if "models.base.path" in problem], path


def test_a_model_folder_that_is_here_is_looked_into(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    spec = load_spec(write(tmp_path, ("path: embedded/gemma-3-270m", "path: weights")))
    assert "no config.json" in validate(spec, to_run=False)[0]


def test_homes_and_variables_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/q.jsonl").write_text('{"post": "A."}\n', encoding="utf-8")
    write_set(tmp_path / "data", "one")
    file = write(
        tmp_path,
        ("task: tldr, limit: 4", "task: tldr, source: $DATA/q.jsonl"),
        ("sets: [verifiable]", "sets: [~/data/one.yaml]\n  folders: ['${DATA}']"),
        ("path: embedded/smollm2-135m-instruct", "path: $NOWHERE/model"),
        ("engine: {device: cpu}", "output: ~/runs/x"),
    )
    spec = load_spec(file, {"models.base.path": "~/gone"})
    assert spec.tasks["summarization"].source == str(tmp_path / "data/q.jsonl")
    assert spec.principles.sets == (str(tmp_path / "data/one.yaml"),)
    assert spec.principles.folders == (str(tmp_path / "data"),)
    assert spec.output == str(tmp_path / "runs/x")
    assert (spec.models["base"].path, spec.models["instruct"].path) == (str(tmp_path / "gone"), "$NOWHERE/model")


def test_a_folder_whose_name_no_disk_takes_is_a_problem(tmp_path: Path) -> None:
    (found,) = problems(write(tmp_path, ("engine: {device: cpu}", f"output: runs/{'x' * 260}")))
    assert "try.yaml:28: 'output': no file's name may be longer than 255 bytes; use a shorter one" in found


def test_all_problems_are_told_together(tmp_path: Path) -> None:
    spec = load_spec(
        write(tmp_path, ("b: base}", "b: bas}"), ("model: instruct", "model: instrukt"), ("size: 1", "size: 40"))
    )
    with pytest.raises(SpecError) as caught:
        check(spec)
    assert len(str(caught.value).splitlines()) == len(caught.value.problems) >= 3


# --- principles across sets


def test_a_principle_held_out_in_one_set_must_not_be_learned_in_another(tmp_path: Path) -> None:
    write_set(tmp_path, "one")
    write_set(tmp_path, "two", split="held_out", other="learned")
    file = write(tmp_path, ("sets: [verifiable]", "sets: [./one.yaml, ./two.yaml]"))
    (found,) = problems(file)
    assert re.search(r"try.yaml:16: .*'short' of 'one' \(learned\).*'short' of 'two' \(held out\).*not held out", found)
    learned_only = write(
        tmp_path, ("sets: [verifiable]", "sets: [./one.yaml, ./two.yaml]"), ("[learned, held_out]", "[learned]")
    )
    assert problems(learned_only) == []


def test_a_held_out_principle_must_not_be_learned_in_other_words(tmp_path: Path) -> None:
    write_set(tmp_path, "one")
    text = (tmp_path / "one.yaml").read_text(encoding="utf-8")
    twin = text.replace("name: one", "name: two").replace("id: short", "id: brief").replace("id: other-one", "id: rest")
    twin = (
        twin.replace("split: learned", "split: x")
        .replace("split: held_out", "split: learned")
        .replace("split: x", "split: held_out")
    )
    (tmp_path / "two.yaml").write_text(twin.replace("a single short line", "a single, short line"), encoding="utf-8")
    found = problems(write(tmp_path, ("sets: [verifiable]", "sets: [./one.yaml, ./two.yaml]")))
    assert any("'short' of 'one' (learned) and 'brief' of 'two' (held out) say nearly the same" in p for p in found)


def test_an_id_in_two_sets_means_one_principle(tmp_path: Path) -> None:
    write_set(tmp_path, "one")
    write_set(tmp_path, "two")
    change = ("sets: [verifiable]", "sets: [./one.yaml, ./two.yaml]")
    assert problems(write(tmp_path, change)) == []
    write_set(tmp_path, "two", definition="The reply fits on half a postcard.")
    (found,) = problems(write(tmp_path, change))
    assert "one id and different texts" in found


def test_a_check_that_does_not_exist_is_named_with_its_line_in_the_set(tmp_path: Path) -> None:
    write_set(tmp_path, "one", check="{name: word_cout, at_most: 25}")
    (found,) = problems(write(tmp_path, ("sets: [verifiable]", "sets: [./one.yaml]")))
    assert re.search(r"try.yaml:16: .*one.yaml:8: principle 'short': there is no check .*'word_count'", found)


def test_the_verifiable_judge_needs_checks(tmp_path: Path) -> None:
    change = (
        ("sets: [verifiable]", "sets: [diverse]"),
        ("tasks: [dialogue]", "tasks: [summarization]"),
        ("learning_rate: 2e-5", "batch_size: 2, eval_queries: 0"),
    )
    tasks = ("  dialogue: {task: hh-rlhf, limit: 4}\n", "")
    (found,) = problems(write(tmp_path, *change, tasks))
    assert re.search(r"try.yaml:19: 'judges.verifiable': .*'diverse' none of its principles has one", found)
    assert problems(write(tmp_path, *change, tasks, ("  verifiable: {kind: verifiable}\n", ""))) == []


def test_a_set_that_is_for_none_of_the_tasks_is_a_problem(tmp_path: Path) -> None:
    tasks = ("  summarization: {task: tldr, limit: 4}\n", "")
    found = problems(write(tmp_path, ("sets: [verifiable]", "sets: [verifiable, diverse]"), tasks))
    assert any("principles.sets.1" in p and "'diverse' is for summarization" in p for p in found)


def test_a_split_without_principles_is_a_problem(tmp_path: Path) -> None:
    tasks = ("  summarization: {task: tldr, limit: 4}\n", "")
    found = problems(write(tmp_path, ("sets: [verifiable]", "sets: [dialogue]"), tasks))
    assert any(
        "principles.splits" in p and "no set has held-out principles for the task 'dialogue'" in p for p in found
    )


# --- models


def test_a_circle_of_trainings_is_a_problem(tmp_path: Path) -> None:
    loop = "  loop:\n    style: completion\n    train: {recipe: embedded/gemma-3-270m, from: sami}\ntasks:\n  dialogue:"
    found = problems(write(tmp_path, ("from: base", "from: loop"), ("tasks:\n  dialogue:", loop)))
    assert any(p.startswith(f"{tmp_path}/try.yaml:9: ") and "sami from loop from sami is a circle" in p for p in found)


def test_a_model_trained_from_a_trained_one_comes_after_it(tmp_path: Path) -> None:
    more = "  more:\n    style: completion\n    train: {recipe: embedded/gemma-3-270m, from: %s}\n"
    assert problems(write(tmp_path, ("tasks:\n  dialogue:", f"{more % 'sami'}tasks:\n  dialogue:"))) == []
    (found,) = problems(
        write(tmp_path, ("from: base", "from: more"), ("tasks:\n  dialogue:", f"{more % 'base'}tasks:\n  dialogue:"))
    )
    assert "put it above 'sami'" in found


def test_training_needs_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    (found,) = problems(write(tmp_path, ("path: embedded/gemma-3-270m", "path: openai/davinci")))
    assert found.startswith(f"{tmp_path}/try.yaml:9: ")
    assert "'base' is an API model" in found


def test_an_api_model_needs_its_key_only_where_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = ("embedded/smollm2-135m-instruct", "openai/gpt")
    assert "OPENAI_API_KEY" in problems(write(tmp_path, api))[0]
    unused = ("  smollm2: {kind: llm, model: instruct, limit: 2}\n", ""), ("  - {a: sami, b: instruct}\n", "")
    assert problems(write(tmp_path, api, *unused)) == []
    local = ("embedded/smollm2-135m-instruct", 'openai/gpt, base_url: "http://127.0.0.1:8000/v1"')
    assert problems(write(tmp_path, local)) == []
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert problems(write(tmp_path, api)) == []


def test_anthropic_has_chats_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    change = ("embedded/smollm2-135m-instruct, style: chat", "anthropic/claude, style: completion")
    (found,) = problems(write(tmp_path, change))
    assert "'models.instruct.style': Anthropic" in found


def test_a_damaged_model_folder_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    change = ("path: embedded/gemma-3-270m", "path: weights")
    assert "no config.json" in problems(write(tmp_path, change))[0]
    (tmp_path / "weights" / "config.json").write_text("{}", encoding="utf-8")
    assert "no *.safetensors" in problems(write(tmp_path, change))[0]
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(4)
    (tmp_path / "weights" / "model.safetensors").write_bytes(data[:-1])
    assert "cut off" in problems(write(tmp_path, change))[0]
    (tmp_path / "weights" / "model.safetensors").write_bytes(data)
    assert problems(write(tmp_path, change)) == []


def test_an_embedded_model_without_its_package_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sami_train.models.importlib.util.find_spec", lambda name: None)
    assert any("models.base.path" in p and "pip install" in p for p in problems(write(tmp_path)))


@pytest.mark.parametrize(
    ("path", "backend"),
    [
        ("embedded/gemma-3-270m", "embedded"),
        ("openai/gpt-5", "openai"),
        ("anthropic/claude", "anthropic"),
        ("transformers/openai/gpt-oss-20b", "transformers"),
        ("Qwen/Qwen3-0.6B@main", "transformers"),
        ("./openai", "transformers"),
        ("openai", "transformers"),
    ],
)
def test_the_back_end_of_a_path(path: str, backend: str) -> None:
    assert model_backend(path) == backend


def test_a_hub_id_is_left_to_the_run(tmp_path: Path) -> None:
    for path in ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B@refs/pr/1", "transformers/openai/gpt-oss-20b"):
        change = ("path: embedded/smollm2-135m-instruct", f"path: {path}")
        assert problems(write(tmp_path, change)) == []


# --- reading


def test_what_is_given_more_closely_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, ("name: try", "name: try\nseed: 1"))
    assert load_spec(file).seed == 1
    assert load_spec(file).sampling.top_p == 1.0
    monkeypatch.setenv("HARNESS_SEED", "2")
    assert load_spec(file).seed == 2
    assert load_spec(file, {"seed": 3}).seed == 3


def test_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "SEED": "5",
        "OUTPUT": "there",
        "LIMIT": "3",
        "DEVICE": "cuda:1",
        "DTYPE": "float32",
        "BATCH_SIZE": "4",
        "THREADS": "2",
    }
    assert {f"HARNESS_{name}" for name in given} == set(ENVIRONMENT)
    for name, value in given.items():
        monkeypatch.setenv(f"HARNESS_{name}", value)
    spec = load_spec(write(tmp_path))
    assert (spec.seed, spec.output) == (5, "there")
    assert [task.limit for task in spec.tasks.values()] == [3, 3]
    assert (spec.engine.device, spec.engine.dtype, spec.engine.batch_size, spec.engine.threads) == (
        "cuda:1",
        "float32",
        4,
        2,
    )


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"sampling.max_tokens": 3}, ["option sampling.max_tokens: ", "unknown key"]),
        ({"sampling.max_new_tokens": "x"}, ["option sampling.max_new_tokens: ", "integer"]),
        ({"models.bse.dtype": "auto"}, ["option models.bse.dtype: ", "no 'models.bse'", "'base'"]),
        ({"name.x.y": 1}, ["option name.x.y: ", "'name' has no fields"]),
        ({"name.x": 1}, ["option name.x: ", "'name' has no fields"]),
        ({"tasks.*.limit": 0}, ["option tasks.*.limit: ", "tasks.dialogue.limit"]),
    ],
)
def test_a_mistake_in_an_override_names_the_option(tmp_path: Path, overrides: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(write(tmp_path), overrides)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_a_mistake_in_the_environment_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_SEED", "one")
    with pytest.raises(SpecError, match=r"^HARNESS_SEED: 'seed': "):
        load_spec(write(tmp_path))


def test_overrides_reach_blocks_that_the_file_leaves_out_and_names_with_dots(tmp_path: Path) -> None:
    file = write(tmp_path, ("engine: {device: cpu}\n", ""), ("  smollm2:", "  smollm2.1:"))
    spec = load_spec(file, {"engine.threads": 3, "judges.smollm2.1.limit": 7, "models.sami.train.set.warmup_steps": 2})
    assert spec.engine.threads == 3
    assert spec.judges["smollm2.1"].limit == 7
    assert spec.models["sami"].train is not None
    assert spec.models["sami"].train.set == {"learning_rate": 2e-5, "warmup_steps": 2}


def test_a_specification_written_out_says_the_same(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path), {"sampling.top_p": 0.5})
    (tmp_path / "again.yaml").write_text(spec.dump(), encoding="utf-8")
    again = load_spec(tmp_path / "again.yaml")
    assert again.model_dump() == spec.model_dump()
    assert validate(again) == []


def test_what_is_left_out_of_requests_stays_left_out_when_written_out(tmp_path: Path) -> None:
    asked = {"temperature": None, "max_new_tokens": 2000, "reasoning": "low", "extra": {"seed": None, "top_k": 5}}
    file = write(tmp_path, ("path: embedded/smollm2-135m-instruct", "path: openai/gpt"))
    spec = load_spec(
        file, {"models.instruct.sampling": asked, "judges.smollm2.top_p": None, "judges.smollm2.form": "text"}
    )
    (tmp_path / "again.yaml").write_text(spec.dump(), encoding="utf-8")
    again = load_spec(tmp_path / "again.yaml")
    assert again.model_dump() == spec.model_dump()
    assert again.models["instruct"].sampling.given() == asked
    assert again.judges["smollm2"].given() == {"top_p": None}


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"path": "org/name", "sampling": {"temperature": None}}, "'sampling.temperature' is for API models"),
        ({"path": "org/name", "sampling": {"reasoning": "low"}}, "'sampling.reasoning' is for API models"),
        ({"path": "openai/gpt-5", "sampling": {"reasoning": 500}}, "takes no number of tokens"),
        (
            {"path": "anthropic/claude-haiku-4-5", "sampling": {"reasoning": 2000, "max_new_tokens": 300}},
            "reasoning alone",
        ),
        ({"path": "anthropic/claude-haiku-4-5", "sampling": {"reasoning": 20}}, "at least 1024"),
        ({"path": "openai/x", "sampling": {"extra": {"n": 3}}}, "'n' is set by the harness"),
        ({"path": "openai/x", "sampling": {"extra": {"max_tokens": 9}}}, "set max_new_tokens"),
        ({"path": "openai/x", "base_url": "https://me:secret@host/v1"}, "put the key into OPENAI_API_KEY"),
        ({"path": "anthropic/x", "base_url": "https://host/v1?key=secret"}, "put the key into ANTHROPIC_API_KEY"),
    ],
)
def test_what_a_model_cannot_be_asked_is_told(model: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)) as error:
        ModelSpec(style="chat", **model)
    assert "secret" not in str(error.value).partition("[type=")[0]


def test_text_that_looks_like_a_number_is_still_text_when_written_out(tmp_path: Path) -> None:
    file = write(tmp_path, ("path: embedded/gemma-3-270m,", "path: org/name, revision: '12e4567',"))
    (tmp_path / "again.yaml").write_text(load_spec(file).dump(), encoding="utf-8")
    assert load_spec(tmp_path / "again.yaml").models["base"].revision == "12e4567"


@pytest.mark.parametrize("name", ["x" * 5000, "a\\0b"], ids=["too long", "null byte"])
@pytest.mark.parametrize(
    "change",
    [
        ("path: embedded/gemma-3-270m,", 'path: "./{}",'),
        ("task: hh-rlhf,", 'task: hh-rlhf, source: "{}.jsonl",'),
        ("sets: [verifiable]", 'sets: ["{}.yaml"]'),
        ("recipe: embedded/gemma-3-270m", 'recipe: "{}.yaml"'),
    ],
    ids=["model", "source", "set", "recipe"],
)
def test_a_path_that_no_disk_takes_is_a_problem_like_any_other(
    tmp_path: Path, change: tuple[str, str], name: str
) -> None:
    found = problems(write(tmp_path, (change[0], change[1].format(name))))
    assert found
    assert all("\n" not in sentence and "try.yaml:" in sentence for sentence in found)


def test_a_model_trained_from_one_without_a_chat_template_cannot_chat(tmp_path: Path) -> None:
    (found,) = problems(write(tmp_path, ("sami:\n    style: completion", "sami:\n    style: chat")))
    assert found.startswith(f"{tmp_path}/try.yaml:6: 'models.sami.style': ")
    assert "no chat template" in found


def test_a_query_must_not_get_the_same_principle_twice(tmp_path: Path) -> None:
    (found,) = problems(write(tmp_path, ("size: 1", "size: 2\n  per_query: 5")))
    assert found.startswith(f"{tmp_path}/try.yaml:19: 'principles.per_query': ")
    assert "has 9 held-out principles" in found
    assert "lower 'per_query' to 4" in found


def test_what_judges_go_by_is_in_every_constitution(tmp_path: Path) -> None:
    spec = load_spec("paper/exp1-dialogue", {"tasks.helpful.judged_by": ["helpfull"]}, preset_models="embedded")
    (found,) = validate(spec)
    assert "tasks.helpful.judged_by" in found
    assert "did you mean 'helpful'?" in found
    spec = load_spec("paper/exp1-dialogue", {"principles.size": 1}, preset_models="embedded")
    found, other = validate(spec)
    assert "tasks.helpful.judged_by" in found
    assert "'harmless' is none of them" in found
    assert "tasks.harmless.judged_by" in other


def test_swapping_needs_twice_as_many_principles_as_a_constitution_has(tmp_path: Path) -> None:
    write_set(tmp_path, "one")
    file = write(tmp_path, ("sets: [verifiable]", "sets: [./one.yaml]"), ("infonce: 2", "swapped: true"))
    (found,) = problems(file)
    assert "try.yaml:26: 'measures.swapped': the set 'one' has 1 " in found
    assert "swapping needs 2" in found


SCORERS = [
    # what follows 'infonce: 2', words of the one problem (none: it is sound)
    ("relevance: false", []),
    ("relevance: true", []),
    ("relevance: {scorer: instruct}", []),
    ("relevance: {scorer: sami, queries: 3, others: 2}", []),
    ("relevance: {scorer: embedded/gemma-3-270m}", []),
    ("relevance: {scorer: instrcut}", ["measures.relevance.scorer", "no model 'instrcut'", "did you mean 'instruct'"]),
    ("relevance: {scorer: far}", ["measures.relevance.scorer", "'far' does not run here", "base"]),
    ("relevance: {scorer: told}", ["measures.relevance.scorer", "'told' does not run here", "base"]),
    ("relevance: {scorer: embedded/gema-3-270m}", ["measures.relevance.scorer", "did you mean 'gemma-3-270m'"]),
    ("relevance: {scorer: org/name}", ["measures.relevance.scorer", "there is no model 'org/name'"]),
    ("relevance: {scorr: base}", ["unknown key 'measures.relevance.scorr'", "'scorer'"]),
    ("relevance: {queries: 0}", ["measures.relevance", "greater than or equal to 1"]),
    ("relevance: 3", ["measures.relevance"]),
]


@pytest.mark.parametrize(("relevance", "words"), SCORERS)
def test_relevance_is_scored_by_a_model_that_runs_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relevance: str, words: list[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    (tmp_path / "told.jsonl").write_text('{"query": "a", "text": "b"}\n', encoding="utf-8")
    more = "models:\n  far: {path: openai/gpt, style: chat}\n  told: {path: recorded/told.jsonl, style: chat}\n"
    file = write(tmp_path, ("infonce: 2", f"infonce: 2, {relevance}"), ("models:\n", more))
    found = [problem for problem in problems(file) if "measures.relevance" in problem]
    assert len(found) == (1 if words else 0)
    for problem in found:
        assert problem.startswith(f"{file}:28: ")
        assert all(word in problem for word in words), problem


def test_a_scorer_whose_package_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "smollm2" in name else real(name))
    for change in ("scorer: embedded/smollm2-135m-instruct", "embedded: true"):
        spec = load_spec(write(tmp_path, ("infonce: 2", f"infonce: 2, relevance: {{{change}}}")))
        (found,) = (problem for problem in validate(spec) if "measures.relevance" in problem)
        assert f"'measures.relevance.{change.partition(':')[0]}'" in found
        assert "needs the package" in found
    spec = load_spec(write(tmp_path, ("infonce: 2", "infonce: 2, relevance: {embedded: false}")))
    assert not [problem for problem in validate(spec) if "measures.relevance" in problem]


@pytest.mark.parametrize("relevance", ["false", "true", "{scorer: base, queries: 7}", "{others: 2, embedded: false}"])
def test_relevance_comes_back_from_a_dump(tmp_path: Path, relevance: str) -> None:
    spec = load_spec(write(tmp_path, ("infonce: 2", f"infonce: 2, relevance: {relevance}")))
    assert (spec.measures.relevance is None) == (relevance == "false")
    again = tmp_path / "again.yaml"
    again.write_text(spec.dump(), encoding="utf-8")
    assert load_spec(again).measures.relevance == spec.measures.relevance
    assert load_spec(again, {"measures.relevance": False}).measures.relevance is None
    assert load_spec(again, {"measures.relevance": True}).measures.relevance == RelevanceSpec()
    if spec.measures.relevance is not None:
        changed = load_spec(again, {"measures.relevance.queries": 5}).measures.relevance
        assert changed == spec.measures.relevance.model_copy(update={"queries": 5})


@pytest.mark.parametrize("swapped", [True, False, 3])
def test_the_control_is_a_switch_or_a_number_of_queries(tmp_path: Path, swapped: bool | int) -> None:
    spec = load_spec(write(tmp_path, ("infonce: 2", f"swapped: {str(swapped).lower()}")))
    assert spec.measures.swapped is swapped
    again = tmp_path / "again.yaml"
    again.write_text(spec.dump(), encoding="utf-8")
    assert load_spec(again).measures.swapped is swapped


STOP = "statistics: {level: 0.95}", "statistics: {stop: RULE}"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("{half_width: 0.05}", StopRule(half_width=0.05)),
        ("{half_width: 0.05, at_least: 12}", StopRule(half_width=0.05, at_least=12)),
        ("{looks: [2, 5, 8]}", StopRule(looks=(2, 5, 8))),
        ("{anytime: true}", StopRule(anytime=True)),
    ],
)
def test_a_rule_for_stopping_is_read_and_written_out(tmp_path: Path, text: str, rule: StopRule) -> None:
    file = write(tmp_path, (STOP[0], STOP[1].replace("RULE", text)))
    (tmp_path / "again.yaml").write_text(load_spec(file).dump(), encoding="utf-8")
    for spec in (load_spec(file), load_spec(tmp_path / "again.yaml")):
        assert spec.statistics.stop is not None
        assert spec.statistics.stop.rule() == rule
        assert validate(spec) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{}", "has one of 'half_width', 'looks' and 'anytime: true'; this one has none of them"),
        ("{anytime: false}", "this one has none of them"),
        ("{looks: [4], anytime: true}", "this one has 'looks' and 'anytime'"),
        ("{looks: [8, 4]}", "'looks' are ascending numbers of queries"),
        ("{looks: [4, 4]}", "'looks' are ascending numbers of queries"),
        ("{looks: [4, 8], at_least: 3}", "'at_least' goes with 'half_width'"),
        ("{half_width: 0.5}", "less than 0.5"),
        ("{looks: [4, 9]}", "'statistics.stop.looks': the last look is at 9 queries, and the tasks have 8"),
    ],
)
def test_a_rule_for_stopping_that_is_none(tmp_path: Path, text: str, told: str) -> None:
    (found,) = problems(write(tmp_path, (STOP[0], STOP[1].replace("RULE", text))))
    assert "try.yaml:27: 'statistics.stop" in found
    assert told in found


def test_the_first_judge_decides_on_every_query(tmp_path: Path) -> None:
    stop = STOP[0], STOP[1].replace("RULE", "{anytime: true}")
    assert problems(write(tmp_path, stop)) == []
    (found,) = problems(
        write(tmp_path, stop, ("verifiable: {kind: verifiable}", "verifiable: {kind: verifiable, limit: 2}"))
    )
    assert "'judges.verifiable.limit': 'verifiable' decides when statistics.stop is met" in found


def test_a_judge_prompt_is_for_the_kind_of_every_task(tmp_path: Path) -> None:
    (found,) = problems(write(tmp_path, ("model: instruct, limit: 2", "model: instruct, template: dialogue")))
    assert found.startswith(f"{tmp_path}/try.yaml:21: 'judges.smollm2.template': ")
    assert "'summarization' is summarization" in found


@pytest.fixture
def api_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """The problems of a specification whose judge is an API model with these fields."""
    monkeypatch.setenv("OPENAI_API_KEY", "test")

    def with_fields(fields: str, style: str = "chat") -> list[str]:
        model = ("  sami:", f"  gpt: {{path: openai/gpt-4o, style: {style}}}\n  sami:")
        return problems(write(tmp_path, model, ("model: instruct, limit: 2", f"model: gpt, limit: 2{fields}")))

    return with_fields


@pytest.mark.parametrize("fields", ["", ", form: text", ", structured: on", ", structured: off", ", structured: auto"])
def test_how_an_api_model_judges(api_judge: Callable[[str], list[str]], fields: str) -> None:
    assert api_judge(fields) == []


def test_an_api_models_probabilities_are_not_read(api_judge: Callable[[str], list[str]]) -> None:
    (found,) = api_judge(", form: choice")
    assert "try.yaml:22: 'judges.smollm2.form': an API model's probabilities are not read" in found


def test_a_completion_is_held_to_no_schema(api_judge: Callable[..., list[str]]) -> None:
    (found,) = api_judge(", structured: on", style="completion")
    assert "'judges.smollm2.structured': the model in style completion 'gpt' is held to no schema" in found


@pytest.mark.parametrize(("fields", "n"), [("structured: on, ", 1), ("", 0)])
def test_ones_own_judge_prompt_needs_the_structured_form_only_where_it_is_asked_for(
    fields: str, n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    text = "'{principles} {query} {first} {second} Verdict: A Verdict: B Verdict: tie'"
    (tmp_path / "own.yaml").write_text(f"name: own\ntask: dialogue\ntext: {text}\nchoice: {text}\n")
    file = write(
        tmp_path,
        ("  sami:", "  gpt: {path: openai/gpt-4o, style: chat}\n  sami:"),
        ("  summarization: {task: tldr, limit: 4}\n", ""),
        ("model: instruct, limit: 2", f"model: gpt, {fields}template: {tmp_path / 'own.yaml'}"),
    )
    found = problems(file)
    assert len(found) == n
    assert all("has no form 'structured', for which this judge asks" in problem for problem in found)


def test_a_name_must_fit_into_a_file_name(tmp_path: Path) -> None:
    (found,) = problems(write(tmp_path, ("smollm2: {kind", f"{'x' * 300}: {{kind")))
    assert "300 characters" in found


def test_relative_paths_are_those_of_the_file_or_else_of_the_current_folder(tmp_path: Path) -> None:
    folder, here = tmp_path / "specs", tmp_path / "here"
    for place in (folder / "principles", here, here / "weights"):
        place.mkdir(parents=True)
    write_set(folder / "principles", "mine")
    rows = "".join(
        json.dumps({"query": f"What is {n}?", "part": "train" if n > 9 else "evaluation"}) + "\n" for n in range(200)
    )
    (folder / "queries.jsonl").write_text(rows, encoding="utf-8")
    file = write(
        folder,
        ("task: hh-rlhf,", "task: hh-rlhf, source: queries.jsonl,"),
        ("sets: [verifiable]", "sets: [mine]\n  folders: [principles]"),
        ("path: embedded/gemma-3-270m", "path: transformers/weights"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        spec = load_spec(file)
        elsewhere = load_spec(file, {"tasks.dialogue.source": "queries.jsonl"})
    assert spec.tasks["dialogue"].source == str(folder / "queries.jsonl")
    assert spec.principles.folders == (str(folder / "principles"),)
    assert spec.models["base"].path == f"transformers/{here / 'weights'}"
    assert spec.output == "runs/try"
    assert elsewhere.tasks["dialogue"].source == "queries.jsonl"
    assert [p for p in validate(spec) if "models.base" not in p] == []


def test_the_presets_are_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"quickstart", "smoke"} <= set(list_presets())
    for name in ("quickstart", "smoke"):
        assert validate(load_spec(name)) == []


def test_every_preset_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list_presets():
        assert isinstance(load_spec(name), Spec)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("quikstart", ["no preset 'quikstart'", "'quickstart'"]),
        ("../quickstart", ["no preset"]),
        ("gone.yaml", ["gone.yaml", "no such specification"]),
    ],
)
def test_what_cannot_be_found(name: str, words: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(name)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("text", ["", "- a\n", "just text\n", "a: &a [*a]\n", 'name: "a\\nb"\n'])
def test_what_is_no_specification(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load_spec(tmp_path / "x.yaml")
    assert all(problem.startswith(f"{tmp_path}/x.yaml") for problem in caught.value.problems)
    assert str(caught.value).splitlines() == list(caught.value.problems)


def test_a_task_hands_on_what_the_loader_takes(tmp_path: Path) -> None:
    from harness.tasks import load_task

    spec = load_spec(write(tmp_path, ("task: tldr,", "task: tldr, template: summarization,")))
    data = load_task("summarization", spec.tasks["summarization"].task_spec())
    assert isinstance(data.evaluation[0], Query)


def test_validation_loads_nothing_heavy() -> None:
    code = (
        "import sys; from harness.spec import load_spec; from harness.validation import validate;"
        "assert validate(load_spec('quickstart')) == [];"
        "print([m for m in ('torch', 'transformers', 'datasets', 'openai', 'anthropic', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_fields_of_a_recipe_that_go_together_are_checked_together(tmp_path: Path) -> None:
    together = ("{learning_rate: 2e-5}", "{filters: [substring], filter_substrings: [sorry]}")
    assert problems(write(tmp_path, together)) == []
    (found,) = problems(write(tmp_path, ("{learning_rate: 2e-5}", "{filters: [substring]}")))
    assert "'filter_substrings' go together" in found


def test_a_contrast_by_intent_needs_queries_that_have_one(tmp_path: Path) -> None:
    changes = [
        ("sets: [verifiable]", "sets: [dialogue, summarization]"),
        ("splits: [learned, held_out]", "splits: [learned]"),
        ("  verifiable: {kind: verifiable}\n", ""),
        ("{learning_rate: 2e-5}", "{contrast: positive_vs_intent, principles_per_constitution: 2}"),
    ]
    assert problems(write(tmp_path, *changes)) == []
    (found,) = problems(write(tmp_path, *changes[:-1], (changes[-1][0], "{contrast: positive_vs_intent}")))
    assert "needs all 2 principles" in found
    rows = [{"query": f"What is {n}?", "part": "train" if n else "evaluation"} for n in range(400)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    own = ("{task: hh-rlhf, limit: 4}", "{task: hh-rlhf, source: own.jsonl}")
    (found,) = problems(write(tmp_path, *changes, own))
    assert "has no 'intent'" in found
    assert "helpful or harmless" in found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("{templates: [hh-rlhf]}", ""),
        ("{templates: [hh-rlfh]}", "did you mean 'hh-rlhf'"),
        ("{templates: [hh-rlhf, dialogue]}", "names two templates for dialogue"),
        ("{reasoning: true}", "'dialogue' has no form 'reasoning'"),
    ],
)
def test_a_recipes_templates_are_looked_at_before_anything_runs(tmp_path: Path, change: str, words: str) -> None:
    found = problems(write(tmp_path, ("{learning_rate: 2e-5}", change)))
    assert len(found) == bool(words)
    assert all(words in problem for problem in found)
