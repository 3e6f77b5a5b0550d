"""What `harness plan` says that a run takes: against the trainer's own plan, given speeds, and data out of reach."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.forecast import Assumptions, _tokens, forecast, given_rates, plan_ahead, training_work
from harness.models.local import CHOICE_BATCH
from harness.plan import EMBEDDED_SCORER, JUDGE_SAMPLING, Plan, build_plan, describe, rate_key
from harness.spec import JudgeSpec, load_spec
from harness.tasks import TaskSpec, load_task
from sami_train.config import list_recipes, load_recipe
from sami_train.errors import UserError
from sami_train.planning.memory import PROGRAM, Machine, plan_memory
from sami_train.planning.rehearsal import Lengths, rehearse_sampling
from sami_train.planning.shape import count_parameters, find_architecture
from sami_train.planning.work import plan_work

SPEC = """
name: ahead
models:
  base: {path: MODEL, style: completion}
  sami: {style: completion, train: {recipe: embedded/gemma-3-270m, from: base, set: {freeze_embeddings: false, eval_queries: 0}}}
  judge: {path: MODEL, style: chat}
  gpt: {path: openai/some-model, style: chat}
tasks:
  dialogue: {task: hh-rlhf, limit: 5}
principles: {sets: [verifiable], splits: [learned]}
judges:
  own: {kind: llm, model: judge, limit: 2}
  far: {kind: llm, model: gpt}
comparisons: [{a: sami, b: base}]
sampling: {max_new_tokens: 16, max_prompt_tokens: 512}
measures: {steerability: false, relevance: false}
engine: {batch_size: 4}
output: run
"""
GPU = Machine("cuda", 8, 80 * 10**9)


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (tmp_path / "spec.yaml").write_text(SPEC.replace("MODEL", str(tiny_model)), encoding="utf-8")
    return tmp_path


def plan_of(folder: Path, **overrides: Any) -> Plan:
    return build_plan(load_spec(folder / "spec.yaml", {k.replace("__", "."): v for k, v in overrides.items()}))


# --- Training


@pytest.mark.parametrize("name", list_recipes())
def test_steps_and_tokens_are_those_of_the_trainers_plan(name: str, tiny_model: Path, folder: Path) -> None:
    """Whatever the model: the trainer's plan counts them with an architecture, this one without."""
    plan = plan_of(folder, models__sami__train__recipe=name, models__sami__train__set={})
    recipe = plan.recipe("sami")
    architecture = find_architecture(str(tiny_model))
    lengths = Lengths(recipe.max_prompt_tokens, recipe.max_new_tokens)
    work = plan_work(architecture, count_parameters(architecture, recipe), recipe, lengths)
    assert training_work(plan, "sami") == {
        "steps": sum(row.steps for row in work),
        "tokens": sum(row.tokens for row in work),
        "responses": sum(row.responses for row in work),
        "sampled_tokens": sum(row.sampled_tokens for row in work),
    }


def test_a_baseline_is_planned_for_one_device(folder: Path, tiny_model: Path) -> None:
    pytest.importorskip("trl", reason="trl is not installed (pip install 'sami-harness[trl]')")
    plan = plan_of(folder, models__sami__train__set__method="sft")
    recipe, lengths = (
        plan.recipe("sami"),
        Lengths(plan.recipe("sami").max_prompt_tokens, plan.recipe("sami").max_new_tokens),
    )
    alone = plan_memory(find_architecture(str(tiny_model)), recipe, lengths, replace(GPU, devices=1))
    found = forecast(plan, replace(GPU, devices=8))
    assert found["notes"] == []
    assert (found["training"][0]["peak"], found["training"][0]["fits"]) == (alone.peak.size, True)


def test_memory_of_a_training_is_the_trainers(folder: Path, tiny_model: Path) -> None:
    plan = plan_of(folder)
    (row,) = forecast(plan, GPU)["training"]
    recipe = plan.recipe("sami")
    lengths = Lengths(recipe.max_prompt_tokens, recipe.max_new_tokens)
    memory = plan_memory(find_architecture(str(tiny_model)), recipe, lengths, GPU)
    assert (row["peak"], row["peak_in"], row["fits"]) == (memory.peak.size, memory.peak.name, True)
    assert row["main_memory"] == memory.host
    assert row["from"] == str(tiny_model)


def test_the_papers_models_are_planned_without_their_files(tmp_path: Path, root: Path) -> None:
    text = (root / "principles/diverse.yaml").read_text(encoding="utf-8")
    (tmp_path / "sami-diverse.yaml").write_text(
        text.replace("name: diverse\n", "name: sami-diverse\n"), encoding="utf-8"
    )
    changes = {"principles.folders": [str(tmp_path)], "output": str(tmp_path / "run"), "measures.relevance": False}
    spec = load_spec("paper/exp3-diverse", changes)
    plan, assumed = plan_ahead(spec)
    found = forecast(plan, GPU)
    (row,) = found["training"]
    assert (row["steps"], row["parameters"], row["fits"]) == (24, 70_553_706_496, False)
    names = [m["model"] for m in found["models"]]
    assert names == ["base", "sami-3", "sami-1", "sami-2"]
    assert {(m["weights"], m["devices"], m["fits"]) for m in found["models"]} == {(2 * 70_553_706_496, 8, True)}
    alone = forecast(plan, Machine("cuda", 1, 80 * 10**9))["models"]
    assert {(m["devices"], m["fits"], m["largest_batch"]) for m in alone} == {(1, False, None)}
    assert found["notes"] == []
    assert len(assumed) == 1


# --- Models that answer and judge


def test_rows_and_tokens_of_local_models(folder: Path, tiny_model: Path) -> None:
    plan = plan_of(folder)
    found = {(row["model"], row["does"]): row for row in forecast(plan, memory=False)["models"]}
    assert found.keys() == {("base", "generate"), ("sami", "generate"), ("judge", "judge")}
    answers = found["sami", "generate"]
    units = [u for s in plan.stages if s.kind == "generate" and s.model == "sami" for u in s.units]
    assert (answers["rows"], answers["new_tokens"]) == (len(units), 16 * len(units))
    assert answers["prompt_tokens"] == sum(min(512, math.ceil(len(u.prompt.text) / 4)) for u in units)
    assert answers["peak"] is None
    judging = found["judge", "judge"]
    assert (judging["rows"], judging["new_tokens"]) == (2 * 2 * 2, 0)  # queries, sides, orders
    assert judging["prompt_tokens"] > judging["rows"] * 2 * 16


def test_a_judge_that_writes_may_write_all_it_is_given(folder: Path, tiny_model: Path) -> None:
    spec = load_spec(folder / "spec.yaml", {"judges.own.form": "text"})
    spec = spec.model_copy(update={"judges": {**spec.judges, "quick": JudgeSpec(kind="llm", model="judge", limit=1)}})
    plan = build_plan(spec)
    writing, choosing = (row for row in forecast(plan, GPU)["models"] if row["does"] == "judge")
    longest = JUDGE_SAMPLING.max_new_tokens
    assert (writing["rows"], writing["new_tokens"], writing["batch"]) == (8, 8 * longest, 4)
    assert (choosing["rows"], choosing["new_tokens"], choosing["batch"]) == (4, 0, CHOICE_BATCH)
    prompt = max(_tokens(plan, stage).longest for stage in plan.stages if stage.judge == "own")
    recipe, architecture = load_recipe("embedded/gemma-3-270m"), find_architecture(str(tiny_model))
    held = rehearse_sampling(architecture, recipe, Lengths(prompt, longest), "cuda", "bfloat16", 4)
    assert writing["peak"] == writing["weights"] + max(held.prompts, held.writing) + PROGRAM["cuda"]


def test_a_scorer_of_relevance_reads_every_querys_responses_after_five_queries(folder: Path, tiny_model: Path) -> None:
    plan = plan_of(
        folder, measures__relevance={"scorer": "judge", "queries": 3}, models__judge__path=str(twin(tiny_model, folder))
    )
    rows = [row for row in forecast(plan, GPU)["models"] if row["does"] == "relevance"]
    assert [row["model"] for row in rows] == ["judge"]
    units = [u for s in plan.stages if s.kind == "relevance" for u in s.units]
    (row,) = rows
    assert (row["rows"], row["new_tokens"], row["batch"]) == (
        2 * 3 * 2,
        0,
        5,
    )  # writers, queries, sides; the own query and 4
    longest = read = 0
    for unit in units:
        for query in (unit.response.query, *unit.others):
            length = min(512, math.ceil(len(query.text) / 4)) + 2 * 16  # the two sides' responses, at their longest
            longest, read = max(longest, length), read + length
    assert row["prompt_tokens"] == read / 2, "the two sides are read together"
    recipe, architecture = load_recipe("embedded/gemma-3-270m"), find_architecture(str(tiny_model))
    held = rehearse_sampling(architecture, recipe, Lengths(longest, 1), "cuda", "bfloat16", 5)
    assert row["peak"] == row["weights"] + max(held.prompts, held.writing) + PROGRAM["cuda"]


def test_the_embedded_scorer_is_listed_and_its_memory_is_not_planned(folder: Path) -> None:
    plan = plan_of(folder, measures__relevance={"embedded": True})
    row = next(r for r in forecast(plan, GPU)["models"] if r["does"] == "relevance")
    assert (row["model"], row["path"], row["peak"]) == (EMBEDDED_SCORER, EMBEDDED_SCORER, None)
    assert row["rows"] == 2 * 5 * 2


def twin(model: Path, folder: Path) -> Path:
    """The same model at another place."""
    return Path(shutil.copytree(model, folder / "twin"))


def test_what_is_done_is_left_out(folder: Path) -> None:
    plan = plan_of(folder)
    stage = next(s for s in plan.stages if s.kind == "generate" and s.model == "base")
    before = forecast(plan, memory=False)["models"]
    write_rows(plan, stage)
    after = forecast(plan, memory=False)["models"]
    assert [row for row in before if row["model"] != "base"] == after


def write_rows(plan: Plan, stage: Any) -> None:
    """Finished rows of a stage."""
    from harness.rows import Generation
    from harness.store import RowFile

    rows = [
        Generation(
            id=u.id, fingerprint=u.fingerprint, model=stage.model, task=u.task, query_id=u.query.id,
            constitution_id=u.constitution.id, principle_set=u.principle_set, split=u.split, prompt_hash=u.prompt.hash,
            prompt=u.prompt.text, text="x", finish_reason="stop", n_prompt_tokens=1, n_tokens=1, truncated=False,
        )
        for u in stage.units
    ]  # fmt: skip
    with RowFile(plan.folder / stage.path, Generation) as file:
        file.append(rows)


def test_memory_of_answers_is_weights_and_a_batch(folder: Path, tiny_model: Path) -> None:
    plan = plan_of(folder)
    row = next(r for r in forecast(plan, GPU)["models"] if r["model"] == "base")
    architecture = find_architecture(str(tiny_model))
    recipe = load_recipe("embedded/gemma-3-270m")
    held = rehearse_sampling(architecture, recipe, Lengths(512, 16), "cuda", "bfloat16", 4)
    total = count_parameters(architecture, recipe).total
    assert (row["parameters"], row["weights"], row["batch"], row["devices"]) == (total, 2 * total, 4, 1)
    assert row["dtype"] == "bfloat16"
    assert row["peak"] == 2 * total + max(held.prompts, held.writing) + PROGRAM["cuda"]
    assert (row["fits"], row["largest_batch"]) == (True, 4)


def test_the_largest_batch_that_fits_is_named(folder: Path) -> None:
    plan = plan_of(folder, engine__batch_size=64)
    peaks = {n: next(_answers(plan_of(folder, engine__batch_size=n), GPU))["peak"] for n in (64, 32, 16)}
    between = Machine("cuda", 1, int((peaks[16] + peaks[32]) / 2 / 0.92))
    row = next(_answers(plan, between))
    assert (row["batch"], row["peak"], row["fits"], row["largest_batch"]) == (64, peaks[64], False, 16)
    nothing = next(_answers(plan, Machine("cuda", 1, 10**6)))
    assert (nothing["fits"], nothing["largest_batch"]) == (False, None)


def _answers(plan: Plan, machine: Machine) -> Any:
    return (row for row in forecast(plan, machine)["models"] if row["does"] == "generate")


def test_a_model_of_unknown_shape_is_a_note(folder: Path) -> None:
    found = forecast(plan_of(folder, models__base__path="some/unknown-model"), GPU)
    assert len(found["notes"]) == 1
    assert "memory of 'sami'" in found["notes"][0]
    assert "some/unknown-model" in found["notes"][0]
    assert {row["peak"] for row in found["training"]} == {None}


# --- Time


def test_no_speed_no_time(folder: Path) -> None:
    plan = plan_of(folder)
    assert given_rates(plan, {}, {}) == {}
    assert describe(plan, rates=given_rates(plan, {None: 100.0}, {}))["estimate_s"] is None


def test_given_speeds_make_time(folder: Path) -> None:
    plan = plan_of(folder)
    rates = given_rates(plan, {None: 100.0}, {None: 8.0, "sami": 4.0})
    work = training_work(plan, "sami")
    stages = {(s.kind, s.model): rates.get(rate_key(plan, s)) for s in plan.stages}
    assert stages["train", "sami"] == pytest.approx(work["tokens"] / 100 + work["sampled_tokens"] / 4)
    assert stages["generate", "base"] == pytest.approx(16 / 8)
    assert stages["generate", "sami"] == pytest.approx(16 / 4)
    assert stages["judge", "gpt"] is None


def test_a_trained_model_is_as_fast_as_what_it_is_trained_from(folder: Path) -> None:
    plan = plan_of(folder)
    rates = given_rates(plan, {"base": 100.0}, {"base": 8.0})
    stages = {(s.kind, s.model): rates.get(rate_key(plan, s)) for s in plan.stages}
    assert stages["generate", "sami"] == stages["generate", "base"] == 2
    assert stages["train", "sami"] is not None


@pytest.mark.parametrize("name", ["gpt", "bse"])
def test_a_speed_of_no_local_model_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"a speed is given for '{name}', which is no model that runs here"):
        given_rates(plan_of(folder), {}, {name: 8.0})


# --- Data out of reach


def test_stand_ins_are_as_many_and_as_long_as_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assumed = Assumptions()
    spec = TaskSpec(task="hh-rlhf", source="hub", subset="helpful-base", limit=250, train_limit=300)
    data = assumed.load("helpful", spec)
    samples = load_task("x", TaskSpec(task="hh-rlhf", subset="helpful-base")).evaluation
    assert (len(data.evaluation), len(data.train), data.kind) == (250, 300, "dialogue")
    assert len({query.id for query in (*data.evaluation, *data.train)}) == 550
    assert len({query.text for query in (*data.evaluation, *data.train)}) == 550
    mean = sum(len(query.text) for query in data.evaluation) / 250
    assert mean == pytest.approx(
        sum(len(query.text) for query in samples) / len(samples) + len(" (helpful-evaluation 99)"), rel=0.1
    )
    assert assumed.sentences == [
        "the queries of the task 'helpful' are out of reach: planned with 250 (and 300 for training) as long as the bundled samples"
    ]


def test_the_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import harness.forecast

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked: list[str] = []
    real = harness.forecast.load_task

    def counted(name: str, spec: TaskSpec) -> Any:
        if spec.source == "hub":
            asked.append(name)
        return real(name, spec)

    monkeypatch.setattr(harness.forecast, "load_task", counted)
    assumed = Assumptions()
    for name in ("one", "two"):
        assumed.load(name, TaskSpec(task="tldr", source="hub", limit=3, train_limit=3))
    assert asked == ["one"]
    assert len(assumed.sentences) == 2


def test_without_a_limit_nothing_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"task 'tldr': its data are out of reach .* set 'limit'"):
        Assumptions().load("tldr", TaskSpec(task="tldr", source="hub"))


def test_another_mistake_stays_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'limit' asks for 999"):
        Assumptions().load("x", TaskSpec(task="tldr", limit=999))


# --- The command


def test_the_command_says_it_all(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    speeds = ["--tokens-per-second", "100", "--new-tokens-per-second", "8", "--new-tokens-per-second", "sami=4"]
    assert main(["plan", "spec.yaml", "--gpus", "2", "--gpu-memory", "24GB", *speeds]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Training, every prompt and response of the longest length" in said
    assert "embedded/gemma-3-270m" in said
    assert "Memory: planned for 2 GPUs with 24.0 GB each, 8% of it left free" in said
    assert "for 3 of 5 stages, by earlier runs on this machine or the speeds given; of the rest not known" in said
    assert "Missing before it can run: " in said
    assert "OPENAI_API_KEY" in said


def test_the_commands_json_has_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "spec.yaml", "--json", "--gpus", "2", "--no-memory"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["forecast"]["machine"] is None
    assert described["forecast"]["training"][0]["tokens"] > 0
    assert len(described["missing"]) == 1
    assert described["assumed"] == []


def test_without_a_speed_the_plan_says_what_to_give(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "spec.yaml", "--no-memory"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Time left: not known; a stage like it must have run on this machine, or give --tokens-per-second" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tokens-per-second", "fast"], "--tokens-per-second fast: this is no speed"),
        (["--tokens-per-second", "0"], "this is no speed"),
        (["--new-tokens-per-second", "=3"], "this is no speed"),
        (["--new-tokens-per-second", "base=nan"], "this is no speed"),
        (["--new-tokens-per-second", "bas=3"], "did you mean 'base'?"),
        (["--gpu-memory", "big"], "--gpu-memory: 'big' is no size"),
        (["--gpus", "0"], "'0' is not a whole number of at least 1"),
    ],
)
def test_a_senseless_question_is_one_sentence(
    folder: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "spec.yaml", *options]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.strip().splitlines()) == 1
