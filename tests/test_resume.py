"""What a run keeps, takes over and makes again. In this process; kills and interrupts are in test_runner.py."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import harness.models
from harness import run
from harness.cli import main
from harness.models.base import Completion
from harness.models.local import TransformersBackend
from harness.plan import build_plan
from harness.rescore import rescore
from harness.spec import load_spec
from sami_train.errors import UserError

SPEC = """
name: small
models:
  base: {path: MODEL, style: completion}
  instruct: {path: MODEL, style: chat}
tasks:
  dialogue: {task: hh-rlhf, source: dialogue.jsonl}
principles: {sets: [verifiable]}
judges:
  verifiable: {kind: verifiable}
  own: {kind: llm, model: instruct}
comparisons: [{a: base, b: instruct}]
sampling: {max_new_tokens: 8, max_prompt_tokens: 1400}
measures: {infonce: 2, relevance: false}
statistics: {max_unscored: 1.0}
engine: {threads: 1, batch_size: 5, dtype: float32}
"""

TRAINED = SPEC.replace("tasks:\n", """  sami:
    style: completion
    train:
      recipe: embedded/gemma-3-270m
      from: base
      set: {batch_size: 2, batches_at_start: 1, batch_increment: 0, eval_queries: 0, max_new_tokens: 6, iterations: 1,
            max_prompt_tokens: 1400, freeze_embeddings: false, learning_rate: 1.0e-3, sampling_batch_size: 4, oversample: 1}
tasks:
""").replace("{a: base, b: instruct}", "{a: sami, b: base}").replace("  own: {kind: llm, model: instruct}\n", "").replace("infonce: 2", "infonce: 0")  # fmt: skip  # noqa: E501


@pytest.fixture
def place(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with the specification's queries, and a cache of its own."""
    torch.set_num_threads(1)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_queries(tmp_path, "q")
    for name, text in (("small", SPEC), ("trained", TRAINED)):
        (tmp_path / f"{name}.yaml").write_text(text.replace("MODEL", str(tiny_model)))
    return tmp_path


def write_queries(folder: Path, prefix: str) -> None:
    rows = [
        {"id": f"{prefix}{n}", "query": f"What is number {n}? {'Say more. ' * (n % 3)}", "part": "evaluation"}
        for n in range(4)
    ]
    rows += [{"id": f"{prefix}-train-{n}", "query": f"Who was number {n}?", "part": "train"} for n in range(6)]
    (folder / "dialogue.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def go(name: str = "small", output: str = "run", *, cache: bool = True, **overrides: Any) -> dict[str, Any]:
    changes = {key.replace("__", "."): value for key, value in overrides.items()}
    results = run(load_spec(f"{name}.yaml", {"output": output, **changes}), quiet=True, cache=cache).results
    return {key: value for key, value in results.items() if key != "created"}


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.open()]


def content(file: Path) -> list[dict[str, Any]]:
    """The rows without what is no content, sorted."""
    return sorted(({k: v for k, v in row.items() if k != "latency_s"} for row in rows(file)), key=lambda row: row["id"])


def keep_lines(file: Path, wanted: Callable[[int], bool]) -> None:
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for n, line in enumerate(lines) if wanted(n)))


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and from there on no model can be opened or trained."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was opened")

    def from_here() -> None:
        monkeypatch.setattr(harness.models, "open_model", refuse)
        monkeypatch.setattr("sami_train.trainer.train", refuse)

    return from_here


# --- Resuming


def test_rows_that_are_missing_are_made_as_they_were(place: Path) -> None:
    """To the bit, verdict probabilities included: batches are made of the whole plan, not of what is missing."""
    before = go(cache=False)
    files = sorted((place / "run").rglob("*.jsonl"))
    assert {f.relative_to(place / "run").parts[0] for f in files} == {"generations", "verdicts", "likelihoods"}
    kept = {file: content(file) for file in files}
    for number, file in enumerate(files):
        keep_lines(file, lambda n, number=number: (n + number) % 3 != 1)  # type: ignore[misc]
    torn = files[0].read_bytes()
    files[0].write_bytes(torn + b'{"id": "half a li')
    assert go(cache=False) == before
    assert {file: content(file) for file in files} == kept
    assert all(len({row["id"] for row in rows(file)}) == len(rows(file)) for file in files)


def test_a_finished_run_opens_no_model(place: Path, no_model: Callable[[], None]) -> None:
    before = go()
    files = {f: f.read_bytes() for f in (place / "run").rglob("*") if f.is_file() and f.name != ".lock"}
    no_model()
    assert go() == before
    assert {f: f.read_bytes() for f in (place / "run").rglob("*") if f.is_file() and f.name != ".lock"} == files


def test_results_are_strict_json_with_a_manifest_for_each_stage(place: Path) -> None:
    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    go()
    json.loads((place / "run" / "results.json").read_text(), parse_constant=refuse)
    plan = build_plan(load_spec("small.yaml", {"output": "run"}))
    manifests = [json.loads(f.read_text()) for f in (place / "run" / "manifests").iterdir()]
    assert sorted(m["stage"] for m in manifests) == sorted(s.name for s in plan.stages)
    assert {m["failed"] for m in manifests} == {0}
    assert {m["device"] for m in manifests if m["stage"].startswith("verifiable")} == {None}
    assert {m["engine"] for m in manifests if m["stage"].startswith("own")} == {"float32"}


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """`fail`: whether a request of a number fails. `asked`: how many were not done before."""
    state: dict[str, Any] = {"fail": lambda n: False, "asked": 0}
    original = TransformersBackend.generate

    def generate(self: Any, requests: Any, sampling: Any, *, done: Any = frozenset()) -> Iterator[list[Completion]]:
        state["asked"] += sum(r.id not in done for r in requests)
        places = {request.id: n for n, request in enumerate(requests)}
        for batch in original(self, requests, sampling, done=done):
            yield [
                replace(c, text="", finish_reason="error", error="timeout: no answer")
                if state["fail"](places[c.id])
                else c
                for c in batch
            ]

    monkeypatch.setattr(TransformersBackend, "generate", generate)
    return state


def test_failed_responses_are_tried_again(place: Path, flaky: dict[str, Any]) -> None:
    expected = go(output="undisturbed", cache=False, measures__infonce=0)
    flaky.update(fail=lambda n: n % 4 == 0, asked=0)
    first = go(measures__infonce=0)
    row = next(r for r in first["comparisons"] if r["judge"] == "verifiable")
    assert row["verdicts"]["unscored"] > 0
    assert row["wins"] + row["ties"] + row["losses"] == row["n"]
    assert first["quality"]["unscored_rate"] > 0
    assert flaky["asked"] == 32
    flaky.update(fail=lambda n: n == 0, asked=0)
    second = go(measures__infonce=0)
    assert flaky["asked"] == 8, "two models, four each"
    assert 0 < second["quality"]["unscored_rate"] < first["quality"]["unscored_rate"]
    flaky.update(fail=lambda n: False, asked=0)
    assert go(measures__infonce=0) == expected
    assert flaky["asked"] == 2
    cached = [row for file in (place / "cache" / "sealed-rows").glob("*-generate.jsonl") for row in rows(file)]
    assert cached
    assert not any(json.loads(row["content"])["error"] for row in cached)


def test_a_run_that_breaks_off_keeps_what_it_has(
    place: Path, flaky: dict[str, Any], no_model: Callable[[], None]
) -> None:
    """Also for other runs: what came before the break is in the cache once the stage is done."""

    answers = iter(range(100))

    def break_off(n: int) -> bool:
        if next(answers) == 7:  # in the second batch
            raise UserError("the power is out; pay the bill")
        return False

    expected = go(output="undisturbed", cache=False)
    flaky.update(fail=break_off)
    with pytest.raises(UserError, match="pay the bill"):
        go()
    file = place / "run" / "generations" / "base" / "dialogue.jsonl"
    there = len(rows(file))
    assert there == 5, "one batch"
    flaky.update(fail=lambda n: False, asked=0)
    assert go() == expected
    assert flaky["asked"] == 32 - there
    no_model()
    verifiable = go(output="another", judges={"verifiable": {"kind": "verifiable"}})["comparisons"]
    assert verifiable == [row for row in expected["comparisons"] if row["judge"] == "verifiable"]


def test_a_corrupt_line_is_named_and_can_be_deleted(place: Path) -> None:
    before = go(cache=False)
    file = next((place / "run" / "verdicts" / "own").glob("*.jsonl"))
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[:4], lines[4][: len(lines[4]) // 2] + "\n", *lines[5:]]))
    damaged = file.read_bytes()
    with pytest.raises(UserError, match=rf"{file.name}:5 is not a valid Verdict row .* restore it or delete that line"):
        go(cache=False)
    assert file.read_bytes() == damaged
    keep_lines(file, lambda n: n != 4)
    assert go(cache=False) == before


def test_a_model_that_cannot_be_read_is_one_sentence_and_can_be_mended(
    place: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found only when it is opened: exit code 1, not 2, for the specification is right."""
    model = place / "model"
    shutil.copytree(tiny_model, model)
    (place / "small.yaml").write_text(SPEC.replace("MODEL", str(model)))
    tokenizer = (model / "tokenizer.json").read_text()
    (model / "tokenizer.json").write_text(tokenizer[:1000])
    command = ["run", "small.yaml", "-o", "run", "--quiet"]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"the model '{model}' cannot be loaded" in said
    assert "restore the model folder" in said
    (model / "tokenizer.json").write_text(tokenizer)
    assert main(command) == 0
    assert (place / "run" / "results.json").is_file()


def test_a_judge_prompt_that_does_not_fit_is_unscored(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        TransformersBackend, "choice_probabilities", lambda self, prompts, choices: [(0.0, 0.0)] * len(prompts)
    )
    judged = next(r for r in go(measures__infonce=0)["comparisons"] if r["judge"] == "own")
    file = next((place / "run" / "verdicts" / "own").glob("*.jsonl"))
    asked = [row for row in rows(file) if not row["details"].get("identical")]
    assert asked
    assert {(row["outcome"], row["reason"]) for row in asked} == {("unscored", "prompt_too_long")}
    assert judged["verdicts"]["unscored"] > 0
    monkeypatch.setattr(harness.models, "open_model", None)
    assert go(measures__infonce=0), "it would not fit another time either"


# --- Directions


@pytest.mark.parametrize("judge", ["verifiable", "own"])
def test_the_other_direction_mirrors_the_win_rate(place: Path, judge: str) -> None:
    one = go(measures__infonce=0)
    two = go(output="other", measures__infonce=0, comparisons=[{"a": "instruct", "b": "base"}])
    pairs = list(zip(one["comparisons"], two["comparisons"], strict=True))
    assert len(pairs) == 4
    for ab, ba in (pair for pair in pairs if pair[0]["judge"] == judge):
        assert (ab["a"], ab["b"], ab["split"]) == (ba["b"], ba["a"], ba["split"])
        assert ab["win_rate"] == pytest.approx(1 - ba["win_rate"])
        assert (ab["wins"], ab["ties"], ab["losses"]) == (ba["losses"], ba["ties"], ba["wins"])
        assert ab["ci_low"] == pytest.approx(1 - ba["ci_high"])
        assert (ab["mean_length_a"], ab["mean_length_b"]) == (ba["mean_length_b"], ba["mean_length_a"])
        assert ab["position_consistency"] == ba["position_consistency"]
    assert any(ab["wins"] != ab["losses"] for ab, _ in pairs), "or there is nothing to mirror"


# --- The cache


def test_rows_of_another_run_get_the_names_of_this_one(place: Path, no_model: Callable[[], None]) -> None:
    """The same texts under other ids are the same prompts, so that only their names differ."""
    first = go(judges={"verifiable": {"kind": "verifiable"}})
    write_queries(place, "other")
    no_model()
    second = go(output="second", judges={"verifiable": {"kind": "verifiable"}})
    assert second["comparisons"] == first["comparisons"]
    assert second["infonce"] == first["infonce"]
    assert all(row["mean_length_a"] is not None for row in second["comparisons"])
    for kind in ("generations", "likelihoods"):
        for model in ("base", "instruct"):
            one, two = (content(place / f / kind / model / "dialogue.jsonl") for f in ("run", "second"))
            assert {row["query_id"] for row in two} <= {f"other{n}" for n in range(4)}
            assert len(one) == len(two)
            texts = [{(r["query_id"].removeprefix("other").removeprefix("q"), json.dumps(r.get("text", r.get("logprob_sums"))))
                      for r in side} for side in (one, two)]  # fmt: skip
            assert texts[0] == texts[1]
    manifest = json.loads((place / "second" / "manifests" / "generations--base--dialogue.json").read_text())
    assert (manifest["done"], manifest["expected"]) == (16, 16)


def test_equal_prompts_of_two_sets_are_both_taken(place: Path, root: Path, no_model: Callable[[], None]) -> None:
    text = (root / "principles" / "verifiable.yaml").read_text()
    (place / "twin.yaml").write_text(text.replace("name: verifiable", "name: twin"))
    options = {
        "principles__sets": ["verifiable", "twin.yaml"],
        "judges": {"verifiable": {"kind": "verifiable"}},
        "measures__infonce": 0,
    }
    first = go(**options)
    no_model()
    assert go(output="second", **options) == first


def test_without_cache_nothing_is_shared(place: Path) -> None:
    go("trained", cache=False)
    assert not (place / "cache").exists()


def test_a_trained_model_is_taken_from_the_cache_without_torch(place: Path) -> None:
    before = go("trained")
    code = (
        "import sys, harness; from harness.spec import load_spec; "
        "harness.run(load_spec('trained.yaml', {'output': 'second'}), quiet=True); "
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    after = json.loads((place / "second" / "results.json").read_text())
    assert {k: v for k, v in after.items() if k != "created"} == before
    one, two = (next((place / f / "training").rglob("model.safetensors")).read_bytes() for f in ("run", "second"))
    assert one == two


@pytest.mark.parametrize("cache", [True, False])
def test_another_recipe_in_the_same_folder_trains_again(place: Path, cache: bool) -> None:
    """Without the cache too, where the older model lies in the very place of the new one."""

    def weights() -> bytes:
        return next((place / "run" / "training").rglob("model.safetensors")).read_bytes()

    go("trained", cache=cache)
    first = weights()
    go("trained", cache=cache, models__sami__train__set__learning_rate=5e-3)
    second = weights()
    assert second != first
    go("trained", output="fresh", cache=False, models__sami__train__set__learning_rate=5e-3)
    assert next((place / "fresh" / "training").rglob("model.safetensors")).read_bytes() == second


def test_training_without_a_usable_cache_is_done_in_the_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = go("trained", output="other", cache=False)
    (place / "file").write_text("")
    monkeypatch.setenv("HARNESS_CACHE", str(place / "file"))
    assert go("trained") == expected
    assert (place / "run" / "training" / "sami" / "summary.json").is_file()


def test_what_another_run_trains_from_is_a_copy_that_was_not_changed(place: Path, no_model: Callable[[], None]) -> None:
    before = go("trained")
    mine = next((place / "run" / "training").rglob("model.safetensors"))
    with mine.open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"abcd")
    no_model()
    assert go("trained", output="second") == before
    next((place / "cache" / "trained").rglob("model.safetensors")).write_bytes(mine.read_bytes())
    with pytest.raises(AssertionError, match="a model was opened"):  # trained again: what is in the cache was changed
        go("trained", output="third")


def test_a_trained_model_that_was_deleted_comes_back(place: Path) -> None:
    before = go("trained")
    model = next((place / "run" / "training").rglob("model.safetensors")).parent
    shutil.rmtree(model)
    (place / "run" / "results.json").unlink()
    assert go("trained") == before
    assert (model / "model.safetensors").is_file()


# --- Where it runs


def test_what_is_auto_is_chosen_once_and_what_is_said_wins(place: Path) -> None:
    go(measures__infonce=0, engine__threads="auto")
    file = place / "run" / "engine.json"
    chosen = json.loads(file.read_text())
    assert chosen["device"] in ("cpu", "cuda")
    file.write_text(json.dumps({**chosen, "threads": 2}))
    try:
        go(measures__infonce=0, engine__threads="auto", tasks__dialogue__limit=3, sampling__max_new_tokens=4)
        assert torch.get_num_threads() == 2
        go(measures__infonce=0, engine__threads=1, tasks__dialogue__limit=3, sampling__max_new_tokens=5)
        assert torch.get_num_threads() == 1
        assert json.loads(file.read_text())["threads"] == 1
    finally:
        torch.set_num_threads(1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which computes in bfloat16")
def test_a_resume_on_another_machine_computes_as_the_run_began(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"measures__infonce": 0, "engine__dtype": "auto"}
    monkeypatch.setattr("harness.models.local.best_dtype", lambda _: "bfloat16")
    go(**settings)
    assert json.loads((place / "run" / "engine.json").read_text())["bfloat16"] is True
    file = next((place / "run" / "generations").rglob("*.jsonl"))
    kept = file.read_text().splitlines(keepends=True)
    file.write_text("".join(kept[:-3]))
    monkeypatch.setattr("harness.models.local.best_dtype", lambda _: "float32")
    notes: list[str] = []
    monkeypatch.setattr("harness.progress.Display.note", lambda _, text: notes.append(text))
    go(cache=False, **settings)
    begun = sorted(map(json.loads, kept), key=lambda row: row["id"])
    assert [(row["id"], row["text"]) for row in content(file)] == [(row["id"], row["text"]) for row in begun]
    assert [note for note in notes if "was begun in bfloat16" in note and "engine.json" in note]
    manifests = [json.loads(one.read_text()) for one in (place / "run" / "manifests").glob("*.json")]
    assert {one["engine"] for one in manifests if one["engine"]} == {"bfloat16"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_one_sentence(place: Path) -> None:
    with pytest.raises(
        UserError, match=r"engine\.device: 'cuda', but torch finds no GPU here; set engine\.device to cpu"
    ):
        go(engine__device="cuda")
    (place / "run" / "engine.json").write_text('{"device": "cuda", "threads": 1}')
    with pytest.raises(UserError, match=r"engine\.json: the run was begun on 'cuda', but torch finds no GPU here"):
        go()
    assert go(engine__device="cpu")


# --- Responses that were made again


def test_a_response_that_is_made_again_is_judged_again(place: Path) -> None:
    """The way out that the message names: delete the line. The text is another one then, and so are all rows on it."""
    options: dict[str, Any] = {"cache": False, "measures__relevance": {"queries": 4, "others": 1, "embedded": False}}
    before = go(**options)
    file = place / "run" / "generations" / "base" / "dialogue.jsonl"
    (row, *others) = rows(file)
    assert row["text"]
    file.write_text(
        "".join(json.dumps(one) + "\n" for one in [{**row, "text": "Another text, word for word."}, *others])
    )
    found = rescore(place / "run")
    assert sum(kind["n"] for kind in found["not_counted"]) > 0, "verdicts on a text that is gone do not count"
    assert {kind["why"] for kind in found["not_counted"]} == {"responses"}
    after = go(**options)
    assert after["not_counted"] == []
    fresh = place / "fresh"
    shutil.copytree(place / "run" / "generations", fresh / "generations")
    assert go(output="fresh", **options)["comparisons"] == after["comparisons"] != before["comparisons"]
    for kind in ("verdicts", "likelihoods", "relevance"):
        for one in (place / "run" / kind).rglob("*.jsonl"):
            last = {r["id"]: r for r in rows(one)}
            made = {r["id"]: r for r in rows(fresh / one.relative_to(place / "run"))}
            assert {i: r["texts"] for i, r in last.items()} == {i: r["texts"] for i, r in made.items()}
    file.write_text("".join(json.dumps(one) + "\n" for one in others))
    assert go(**options) == before
