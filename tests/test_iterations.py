"""A model scored after each iteration of its training: trained once, on a tiny real model; and answers after reasoning."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import sami_train.trainer
from harness import run
from harness.plan import Plan, build_plan
from harness.spec import load_spec
from sami_train.prompts import load_template

SPEC = """
name: iterations
models:
  base: {{path: {model}, style: completion}}
  sami-2:
    style: completion
    train:
      recipe: embedded/gemma-3-270m
      from: base
      set: {{iterations: {iterations}, batch_size: 2, batches_at_start: 1, batch_increment: 1, eval_queries: 0, max_new_tokens: 8,
            max_prompt_tokens: 1400, freeze_embeddings: false, learning_rate: 1.0e-3, sampling_batch_size: 4,
            alternate_halves: true, bf16: false}}
{more}
tasks:
  dialogue: {{task: hh-rlhf, source: bundled, limit: 3, train_limit: 16}}
principles: {{sets: [verifiable], splits: [learned]}}
judges:
  verifiable: {{kind: verifiable}}
comparisons: [{{a: {scored}, b: base}}, {{a: sami-2, b: base}}]
sampling: {{max_new_tokens: 8, max_prompt_tokens: 1400}}
measures: {{steerability: false, relevance: false}}
engine: {{threads: 1, batch_size: 5}}
output: {output}
"""
ITERATION = "  sami-1: {style: completion, iteration_of: sami-2, iteration: 1}"


def write(folder: Path, model: Path, **fields: Any) -> Path:
    values = {"iterations": 2, "more": ITERATION, "scored": "sami-1", "output": folder / "run", **fields}
    (folder / "run.yaml").write_text(SPEC.format(model=model, **values), encoding="utf-8")
    return folder / "run.yaml"


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that scores both iterations; beside it its specification and its cache."""
    folder = tmp_path_factory.mktemp("iterations")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_CACHE", str(folder / "cache"))
        run(write(folder, tiny_model), quiet=True)
    return folder / "run"


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def weights(plan: Plan, model: str) -> Path:
    return Path(plan.source(model).name) / "model.safetensors"


def test_one_training_gives_every_iteration(finished: Path) -> None:
    plan = build_plan(load_spec(finished.parent / "run.yaml"))
    assert [stage.model for stage in plan.stages if stage.kind == "train"] == ["sami-2"]
    assert weights(plan, "sami-1") == finished / "training/sami-2/iteration-1/model/model.safetensors"
    assert weights(plan, "sami-2") == finished / "training/sami-2/iteration-2/model/model.safetensors"
    assert digest(weights(plan, "sami-1")) != digest(weights(plan, "sami-2"))
    assert len(list((finished.parent / "cache" / "trained").iterdir())) == 1
    results = json.loads((finished / "results.json").read_text())
    assert {row["a"] for row in results["comparisons"]} == {"sami-1", "sami-2"}
    assert results["models"]["sami-1"]["trained_from"] == results["models"]["sami-2"]["trained_from"] == "base"
    assert results["training"].keys() == {"sami-2"}


def test_an_iteration_is_what_a_training_of_so_many_gives(finished: Path, tiny_model: Path, tmp_path: Path) -> None:
    """To the bit; so both have one fingerprint, and share their answers."""
    file = write(tmp_path, tiny_model, iterations=1, more="", scored="base").with_name("run.yaml")
    file.write_text(file.read_text().replace("{a: base, b: base}, ", ""))
    shorter, whole = build_plan(load_spec(file)), build_plan(load_spec(finished.parent / "run.yaml"))
    assert shorter.model_fingerprints["sami-2"] == whole.model_fingerprints["sami-1"]
    run(file, quiet=True, cache=False)
    assert digest(weights(shorter, "sami-2")) == digest(weights(whole, "sami-1"))


def test_a_finished_training_is_not_done_again(
    finished: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run with the iterations the other way round, after its first answers: the cache has the rest."""
    monkeypatch.setenv("HARNESS_CACHE", str(finished.parent / "cache"))
    monkeypatch.setattr(sami_train.trainer, "claim", lambda *_: pytest.fail("trained again"))
    outcome = run(write(tmp_path, tiny_model), quiet=True)
    first = json.loads((finished / "results.json").read_text())
    assert outcome.results["comparisons"] == first["comparisons"]


def test_an_interrupted_training_goes_on(finished: Path, tiny_model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Stopped after its first iteration, the run goes on with the second one and ends as it would have."""
    real = sami_train.trainer._Run.iteration

    def stopped(self: Any, number: int, *queries: Any) -> None:
        if number == 2:
            raise KeyboardInterrupt
        real(self, number, *queries)

    file = write(tmp_path, tiny_model)
    with monkeypatch.context() as patch:
        patch.setattr(sami_train.trainer._Run, "iteration", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(file, quiet=True, cache=False)
    assert not (tmp_path / "run/training/sami-2/summary.json").exists()
    pairs = digest(tmp_path / "run/training/sami-2/iteration-1/pairs.jsonl")
    outcome = run(file, quiet=True, cache=False)
    assert digest(tmp_path / "run/training/sami-2/iteration-1/pairs.jsonl") == pairs
    assert outcome.results["comparisons"] == json.loads((finished / "results.json").read_text())["comparisons"]


def test_training_on_two_devices_gives_the_same_model(finished: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Two processes over gloo, started by the run: the same fingerprint, and the same weights but for rounding."""
    from safetensors.torch import load_file

    file = write(tmp_path, tiny_model)
    file.write_text(file.read_text().replace("threads: 1,", "threads: 1, devices: 2, device: cpu,"))
    file.write_text(file.read_text().replace("learning_rate: 1.0e-3", "learning_rate: 1.0e-3, adam_epsilon: 1.0e-3"))
    two = build_plan(load_spec(file))
    one = build_plan(load_spec(file, {"engine.devices": 1, "output": str(tmp_path / "one")}))
    assert one.model_fingerprints == two.model_fingerprints
    run(load_spec(file), quiet=True, cache=False)
    run(one.spec, quiet=True, cache=False)
    assert (tmp_path / "run/training/sami-2/processes.log").exists()
    for model in ("sami-1", "sami-2"):
        a, b = load_file(weights(one, model)), load_file(weights(two, model))
        assert max((a[name] - b[name]).abs().max().item() for name in a) <= 1e-5


def test_one_gpu_is_not_several(tiny_model: Path, tmp_path: Path) -> None:
    from sami_train.errors import UserError

    with pytest.raises(UserError, match=r"'engine': 'device' is one GPU \(cuda:1\) and 'devices' 2"):
        load_spec(write(tmp_path, tiny_model), {"engine.device": "cuda:1", "engine.devices": 2})


def test_another_iteration_changes_its_fingerprints_alone(tiny_model: Path, tmp_path: Path) -> None:
    file = write(tmp_path, tiny_model)
    before = build_plan(load_spec(file))
    after = build_plan(load_spec(file, {"models.sami-1.iteration": 2}))
    assert before.model_fingerprints["sami-1"] != after.model_fingerprints["sami-1"]
    assert after.model_fingerprints["sami-1"] == after.model_fingerprints["sami-2"]
    assert before.model_fingerprints["sami-2"] == after.model_fingerprints["sami-2"]
    assert [s.fingerprint for s in before.stages if s.kind == "train"] == [
        s.fingerprint for s in after.stages if s.kind == "train"
    ]


def test_a_model_can_be_trained_from_an_iteration(tiny_model: Path, tmp_path: Path) -> None:
    from harness.validation import validate

    further = "  sami-3: {style: completion, train: {recipe: embedded/gemma-3-270m, from: sami-1, set: {batches_at_start: 3}}}"
    file = write(tmp_path, tiny_model, more=f"{ITERATION}\n{further}")
    spec = load_spec(file, {"tasks.dialogue.train_limit": 80})
    assert validate(spec) == []
    assert build_plan(spec).source("sami-1").name.endswith("training/sami-2/iteration-1/model")
    above = load_spec(write(tmp_path, tiny_model, more=f"{further}\n{ITERATION}"), {"tasks.dialogue.train_limit": 80})
    assert [p for p in validate(above) if "put it above 'sami-3'" in p]


# --- Reasoning before the answer

REASONED = """
name: reasoned
models:
  base: {{path: {model}, style: completion}}
  chat: {{path: {model}, style: chat}}
tasks: {{tldr: {{task: tldr, source: bundled, limit: 3}}}}
principles: {{sets: [summarization], splits: [learned]}}
judges: {{own: {{kind: llm, model: chat}}}}
comparisons: [{{a: base, b: chat}}]
sampling: {{max_new_tokens: 8, max_prompt_tokens: 1400, reasoning: {reasoning}}}
measures: {{steerability: false, infonce: {infonce}, relevance: false}}
engine: {{threads: 1}}
output: {output}
"""


def reasoned(folder: Path, model: Path, reasoning: bool = True, infonce: int = 0) -> Path:
    values = {"reasoning": str(reasoning).lower(), "infonce": infonce, "output": folder / "run"}
    (folder / "reasoned.yaml").write_text(REASONED.format(model=model, **values), encoding="utf-8")
    return folder / "reasoned.yaml"


def test_what_follows_the_marker_is_the_answer() -> None:
    template = load_template("summarization")
    assert template.split_answer(" It is long.\nSummary: A ladder. ") == ("It is long.", "A ladder.")
    assert template.split_answer("It goes on and on") == ("It goes on and on", "")
    assert template.split_answer("Summary: one. Summary: two.") == ("", "one. Summary: two.")


def test_the_prompts_ask_for_reasoning_and_the_answer_alone_is_kept(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny model writes noise, so some of it is given the marker by the test's own hand."""
    import harness.models.local as local

    real = local.generate

    def marked(*arguments: Any, **options: Any) -> Any:
        from dataclasses import replace

        for batch in real(*arguments, **options):
            yield {
                i: replace(made, text=f"because {i}\nSummary: answer {i}" if i else "on") for i, made in batch.items()
            }

    monkeypatch.setattr(local, "generate", marked)
    file = reasoned(tmp_path, tiny_model)
    plan = build_plan(load_spec(file))
    assert plan.sampling("base", "tldr").stop == load_template("summarization").stop("completion", reasoning=True)
    outcome = run(file, quiet=True, cache=False)
    rows = [json.loads(line) for line in (tmp_path / "run/generations/base/tldr.jsonl").open()]
    assert all("Reasoning:" in row["prompt"] for row in rows)
    found = sorted((row["reasoning"], row["text"]) for row in rows)
    assert found[:2] == [("because 1", "answer 1"), ("because 2", "answer 2")]
    assert all(text == "" for reasoning, text in found if reasoning == "on")
    assert outcome.results["comparisons"]


def test_reasoning_changes_the_answers_fingerprints_and_its_absence_does_not(tiny_model: Path, tmp_path: Path) -> None:
    def prints(reasoning: bool) -> set[str]:
        plan = build_plan(load_spec(reasoned(tmp_path, tiny_model, reasoning)))
        return {unit.fingerprint for stage in plan.stages if stage.kind == "generate" for unit in stage.units}

    with_it, without = prints(True), prints(False)
    assert not with_it & without
    file = reasoned(tmp_path, tiny_model, False)
    file.write_text(file.read_text().replace(", reasoning: false", ""))
    plan = build_plan(load_spec(file))
    assert without == {unit.fingerprint for stage in plan.stages if stage.kind == "generate" for unit in stage.units}


def test_reasoning_that_cannot_be_asked_for_is_one_sentence(tiny_model: Path, tmp_path: Path) -> None:
    from harness.validation import validate

    file = reasoned(tmp_path, tiny_model, infonce=2)
    assert ["measures.infonce" in p and "set it to 0" in p for p in validate(load_spec(file))] == [True]
    file.write_text(file.read_text().replace("task: tldr", "task: hh-rlhf").replace("[summarization]", "[dialogue]"))
    found = validate(load_spec(file, {"measures.infonce": 0}))
    assert len(found) == 1
    assert "'sampling.reasoning': the task 'tldr' has no prompt that asks for reasoning" in found[0]
