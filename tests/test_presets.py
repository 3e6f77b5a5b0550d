"""The paper's presets: every one can be checked, planned and written down, at full size and on the embedded models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.forecast import plan_ahead
from harness.plan import build_plan
from harness.spec import Spec, list_presets, load_spec
from harness.validation import missing_for_run, validate
from sami_train.config import load_recipe
from sami_train.errors import UserError

PAPER = [name for name in list_presets() if name.startswith("paper/")]
SETS = {
    "sami-hh-rlhf": "dialogue",
    "sami-tldr-weak-writer": "summarization",
    "sami-tldr-strong-writer": "summarization",
    "sami-diverse": "diverse",
}
"""Stand-ins for the sets made from the authors' files: shipped ones for as many principles of the same tasks."""


@pytest.fixture
def imported(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a set of every name that the presets want."""
    folder = tmp_path / "sets"
    folder.mkdir()
    for name, like in SETS.items():
        text = (root / "principles" / f"{like}.yaml").read_text(encoding="utf-8")
        (folder / f"{name}.yaml").write_text(text.replace(f"name: {like}\n", f"name: {name}\n"), encoding="utf-8")
    monkeypatch.setenv("HARNESS_PRINCIPLES", str(folder))
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    return folder


def test_the_experiments_are_there() -> None:
    experiments = ("exp1-dialogue", "exp2-strong-writer", "exp2-weak-writer", "exp3-diverse", "exp3-diverse-reasoning")
    assert [f"paper/{name}" for name in experiments] == PAPER


@pytest.mark.parametrize("name", PAPER)
def test_a_preset_is_sound_once_its_principles_are_there(name: str, imported: Path) -> None:
    assert validate(load_spec(name)) == []


@pytest.mark.parametrize("name", PAPER)
def test_without_its_principles_one_sentence_says_how_to_get_them(name: str) -> None:
    spec = load_spec(name)
    found = validate(spec, to_run=False)
    assert len(found) == 1
    assert spec.principles.sets[0] in found[0]
    assert "harness import sami-paper" in found[0]
    assert "harness principles write" in found[0]
    assert "--preset-models embedded" in found[0]


@pytest.mark.parametrize("name", PAPER)
def test_it_is_the_papers_run(name: str) -> None:
    """Models, recipes, judge, sampling and queries, as the paper has them; every iteration against the base."""
    spec = load_spec(name)
    trained = [m for m, model in spec.models.items() if model.train]
    for model in trained:
        train = spec.models[model].train
        assert train is not None
        recipe = load_recipe(train.recipe)
        assert train.recipe.endswith("/paper")
        assert spec.models[train.from_].path == recipe.model
        assert list(recipe.principles) == list(spec.principles.sets)
        reasons = spec.sampling.reasoning
        assert spec.sampling.max_new_tokens == (500 if reasons else 350)
        assert recipe.top_p == spec.sampling.top_p
        assert recipe.reasoning == name.startswith("paper/exp3"), "table 8 asks checkpoints that learned with reasoning"
        assert reasons == (name == "paper/exp3-diverse-reasoning")
        assert {task.template for task in spec.tasks.values()} == set(recipe.templates), "evaluated as it was trained"
        assert recipe.principles_per_constitution == spec.principles.size
        against = {pair.b: {p.a for p in spec.comparisons if p.b == pair.b} for pair in spec.comparisons}
        series = {m for m in spec.models if spec.trained(m) == model}
        assert len(series) == recipe.iterations == 3
        assert series == against[train.from_]
        assert "instruct" not in spec.models or series | {train.from_} <= against["instruct"]
    assert {model.path for m, model in spec.models.items() if spec.judges["gpt-4"].model == m} == {"openai/gpt-4-0613"}
    assert {task.limit for task in spec.tasks.values()} == {250}
    assert {task.source for task in spec.tasks.values()} == {"hub"}
    assert spec.sampling.temperature == 0


@pytest.mark.parametrize("preset_models", [None, "embedded"])
@pytest.mark.parametrize("name", PAPER)
def test_what_is_written_down_says_the_same(name: str, preset_models: str | None, tmp_path: Path) -> None:
    spec = load_spec(name, preset_models=preset_models)
    (tmp_path / "again.yaml").write_text(spec.dump(), encoding="utf-8")
    assert load_spec(tmp_path / "again.yaml").model_dump() == spec.model_dump()


@pytest.mark.parametrize("name", PAPER)
def test_a_plan_needs_neither_models_nor_data_nor_keys(
    name: str, imported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    spec = load_spec(name)
    with pytest.raises(UserError, match="cannot be had from the Hugging Face hub"):
        build_plan(spec)
    plan, assumed = plan_ahead(spec)
    assert len(assumed) == len(spec.tasks)
    assert all("out of reach" in sentence for sentence in assumed)
    assert {len(data.evaluation) for data in plan.tasks.values()} == {250}
    trained = [stage.model for stage in plan.stages if stage.kind == "train"]
    assert trained == [m for m, model in spec.models.items() if model.train]
    queries = 250 * len(spec.tasks) * len(spec.principles.splits)
    assert {len(s.units) for s in plan.stages if s.kind == "generate"} == {queries // len(spec.tasks)}
    assert {len(s.units) for s in plan.stages if s.kind == "judge"} == {2 * queries}
    key, *models = missing_for_run(spec)
    assert "OPENAI_API_KEY" in key
    assert models
    assert all("is not on this machine and cannot be had from the Hugging Face hub" in sentence for sentence in models)


@pytest.mark.parametrize("name", PAPER)
def test_the_embedded_variant_is_the_same_contrast_in_small(name: str) -> None:
    full, small = load_spec(name), load_spec(name, {"tasks.*.limit": 2}, preset_models="embedded")
    assert validate(small) == []
    plan = build_plan(small)
    assert {stage.model for stage in plan.stages if stage.kind == "train"} == {"sami-3"}
    assert {model.path for model in small.models.values() if model.path} == {
        "embedded/gemma-3-270m",
        "embedded/smollm2-135m-instruct",
    }
    assert {task.source for task in small.tasks.values()} == {"bundled"}
    assert small.output != full.output
    ours = plan.recipe("sami-3")
    train = next(model.train for model in full.models.values() if model.train)
    theirs = load_recipe(train.recipe)
    for field in ("contrast", "principles_per_constitution", "iterations", "reasoning", "constitutions_per_query"):
        assert getattr(ours, field) == getattr(theirs, field), field
    assert ours.contrast == "positive_vs_rest" or ours.polarity == theirs.polarity
    principles = ("splits", "per_query", "size", "polarity")
    assert all(getattr(small.principles, f) == getattr(full.principles, f) for f in principles)
    assert small.sampling.reasoning == full.sampling.reasoning
    assert ours.reasoning == theirs.reasoning


def test_the_command_takes_the_embedded_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "paper/exp3-diverse", "--preset-models", "embedded"]) == 0
    assert capsys.readouterr().out == "paper-exp3-diverse-embedded: no problems found\n"
    assert main(["plan", "paper/exp3-diverse", "--preset-models", "embedded", "--json", "-L", "2"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["assumed"] == described["missing"] == []
    assert described["forecast"]["machine"] is None
    assert {row["model"] for row in described["forecast"]["models"]} == {
        "base",
        "instruct",
        "sami-1",
        "sami-2",
        "sami-3",
    }


# --- The block of other models


def write(folder: Path, text: str) -> Path:
    file = folder / "mine.yaml"
    base = """\
name: mine
models: {base: {path: embedded/gemma-3-270m, style: completion}, other: {path: org/name, style: chat}}
tasks: {dialogue: {task: hh-rlhf, limit: 4}, more: {task: hh-rlhf, limit: 4}}
principles: {sets: [verifiable]}
judges: {checks: {kind: verifiable}}
comparisons: [{a: base, b: other}]
"""
    file.write_text(base + text, encoding="utf-8")
    return file


BLOCK = """\
preset_models:
  small:
    name: mine-small
    models.other: {path: embedded/smollm2-135m-instruct, style: chat}
    tasks.*.limit: 2
    sampling: {max_new_tokens: 8}
"""


def test_the_blocks_fields_are_put_over_the_files_and_under_the_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, BLOCK)
    plain = load_spec(file)
    assert (plain.name, plain.models["other"].path) == ("mine", "org/name")
    small = load_spec(file, {"sampling.max_new_tokens": 5}, preset_models="small")
    assert (small.name, small.output) == ("mine-small", "runs/mine-small")
    assert small.models["other"].path == "embedded/smollm2-135m-instruct"
    assert {task.limit for task in small.tasks.values()} == {2}
    assert small.sampling.max_new_tokens == 5
    monkeypatch.setenv("HARNESS_LIMIT", "3")
    assert {task.limit for task in load_spec(file, preset_models="small").tasks.values()} == {3}


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("", "it has no block 'preset_models'"),
        ("preset_models: {smal: {name: x}}", "did you mean 'smal'"),
        ("preset_models: [small]", "mine.yaml:7: 'preset_models' must be a mapping"),
        ("preset_models:\n  small: 3", "mine.yaml:8: 'preset_models.small' must be a mapping"),
        (
            "preset_models:\n  small:\n    sampling: {max_new_token: 8}",
            "mine.yaml:9: unknown key 'sampling.max_new_token'",
        ),
        (
            "preset_models:\n  small:\n    name: y\n    tasks.dialog.limit: 8",
            "mine.yaml:10: there is no 'tasks.dialog'",
        ),
        ("preset_models:\n  small:\n    tasks.dialogue.limit: eight", "mine.yaml:9: 'tasks.dialogue.limit'"),
    ],
)
def test_a_mistake_in_the_block_is_one_sentence_with_its_place(tmp_path: Path, block: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_spec(write(tmp_path, block), preset_models="small")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_in_the_block_are_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    file = write(tmp_path, "preset_models: {small: {models.other.path: weights}}")
    monkeypatch.chdir(elsewhere)
    assert load_spec(file, preset_models="small").models["other"].path == str(tmp_path / "weights")


def specification(**models: Any) -> dict[str, Any]:
    return {"base": {"path": "embedded/gemma-3-270m", "style": "completion"}, **models}


TRAINED = {"style": "completion", "train": {"recipe": "embedded/gemma-3-270m", "from": "base", "tasks": ["dialogue"]}}


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (
            {"one": {"iteration_of": "base", "iteration": 1}},
            "'models.one.iteration_of': 'base' is not trained by this run",
        ),
        (
            {"one": {"iteration_of": "sme", "iteration": 1}, "sami": TRAINED},
            "there is no model 'sme' here; did you mean",
        ),
        ({"one": {"iteration_of": "sami", "iteration": 1}, "sami": TRAINED}, "put 'sami' above 'one'"),
        ({"sami": TRAINED, "one": {"iteration_of": "sami", "iteration": 3}}, "ends with iteration 1; lower it"),
        (
            {"sami": TRAINED, "one": {"iteration_of": "sami", "iteration": 1, "style": "chat"}},
            "with the style completion",
        ),
        ({"sami": TRAINED, "one": {"iteration_of": "sami", "iteration": 1, "revision": "x"}}, "has no 'revision'"),
    ],
)
def test_a_mistaken_iteration_is_one_sentence(tmp_path: Path, models: dict[str, Any], words: str) -> None:
    models = {name: {"style": "completion", **model} for name, model in models.items()}
    spec = Spec.model_validate(
        {
            "name": "x",
            "models": specification(**models),
            "tasks": {"dialogue": {"task": "hh-rlhf", "limit": 2}},
            "principles": {"sets": ["verifiable"]},
            "judges": {"checks": {"kind": "verifiable"}},
            "comparisons": [{"a": "one", "b": "base"}],
            "output": str(tmp_path / "run"),
        }
    )
    found = validate(spec)
    assert len(found) == 1, found
    assert words in found[0]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"iteration_of": "sami"}, "go together"),
        ({"path": "org/name", "iteration": 1}, "go together"),
        ({"path": "org/name", "iteration_of": "sami", "iteration": 1}, "this one has 'path' and 'iteration_of'"),
        ({"iteration_of": "sami", "iteration": 0}, "models.one.iteration"),
    ],
)
def test_a_model_has_one_origin(tmp_path: Path, model: dict[str, Any], words: str) -> None:
    text = json.dumps({"models": specification(one={"style": "completion", **model})})
    (tmp_path / "x.yaml").write_text(f"name: x\n{text[1:-1]}\n".replace('"models"', "models"), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_spec(tmp_path / "x.yaml")
    assert words in str(caught.value)
