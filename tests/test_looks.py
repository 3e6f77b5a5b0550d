"""Runs that stop early, unfinished runs, and runs whose limit was raised: what is made, and what the results say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

import harness.models
from harness import run
from harness.cli import main
from harness.models.base import Completion
from harness.models.local import TransformersBackend
from harness.plan import build_plan
from harness.report.looks import looks_said
from harness.rescore import rescore
from harness.spec import load_spec
from harness.stats import betting_interval
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
measures: {relevance: false}
statistics: {max_unscored: 1.0}
engine: {threads: 1, batch_size: 5, dtype: float32}
"""
AT_ONCE = {"half_width": 0.49, "at_least": 3}
"""Met at the first decision, whatever the scores; the second would come after all 8 queries."""
NEVER = {"looks": [3, 6]}
"""A tiny random model does not win three of three by enough."""


@pytest.fixture
def place(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.set_num_threads(1)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    queries = [
        {"id": f"q{n}", "query": f"What is {n}? {'Say more. ' * (n % 3)}", "part": "evaluation"} for n in range(8)
    ]
    (tmp_path / "dialogue.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    (tmp_path / "small.yaml").write_text(SPEC.replace("MODEL", str(tiny_model)))
    return tmp_path


def spec(output: str = "run", **overrides: Any) -> Any:
    return load_spec("small.yaml", {"output": output, **{k.replace("__", "."): v for k, v in overrides.items()}})


def go(output: str = "run", **overrides: Any) -> dict[str, Any]:
    return run(spec(output, **overrides), quiet=True).results


def without_created(results: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in results.items() if key != "created"}


def queries_in(folder: Path) -> dict[str, set[str]]:
    files = [f for kind in ("generations", "verdicts") for f in (folder / kind).rglob("*.jsonl")]
    return {str(f.relative_to(folder)): {json.loads(line)["query_id"] for line in f.open()} for f in files}


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and from there on no model can be opened."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was opened")

    return lambda: monkeypatch.setattr(harness.models, "open_model", refuse)


# --- Rules for stopping


def test_a_run_that_may_stop_makes_no_row_that_it_does_not_need(place: Path, no_model: Callable[[], None]) -> None:
    results = go(statistics__stop=AT_ONCE)
    stopped = results["stopped"]
    assert (stopped["n"], stopped["of"], stopped["look"], stopped["decided"]) == (3, 8, 1, True)
    assert stopped["rule"] == AT_ONCE
    first = {query for _, query in build_plan(spec(statistics__stop=AT_ONCE)).order[:3]}
    found = queries_in(place / "run")
    assert len(found) == 6
    assert set(map(frozenset, found.values())) == {frozenset(first)}
    assert {row["n"] for row in results["comparisons"]} == {row["n_expected"] for row in results["comparisons"]} == {3}
    assert results["interim"] is None
    no_model()
    assert go(statistics__stop=AT_ONCE) == results, "it is finished"
    assert without_created(rescore(place / "run")) == without_created(results)
    assert "Stopped after 3 queries of 8" in looks_said(results)[0]
    assert "Stopped after 3 queries of 8" in (place / "run" / "report.md").read_text()


def test_a_rule_that_is_not_met_ends_with_its_last_look(place: Path) -> None:
    results = go(statistics__stop=NEVER)
    stopped = results["stopped"]
    assert (stopped["n"], stopped["of"], stopped["look"], stopped["looks"], stopped["decided"]) == (6, 8, 2, 2, False)
    assert {row["n"] for row in results["comparisons"]} == {6}
    assert all(
        "look 2 of 2" in row["ci_method"] for row in results["comparisons"] + results["steerability"] + results["gaps"]
    )
    assert "not met" in looks_said(results)[0]


def test_every_query_of_a_run_that_is_not_stopped_has_its_rows(place: Path) -> None:
    stop = {"anytime": True}
    results = go(statistics__stop=stop)
    assert (results["stopped"]["n"], results["stopped"]["decided"]) == (8, False)
    plain = go("plain")
    assert plain["stopped"] is None
    assert queries_in(place / "run") == queries_in(place / "plain")
    rows = list(zip(results["comparisons"], plain["comparisons"], strict=True))
    assert [row["win_rate"] for row, _ in rows] == [row["win_rate"] for _, row in rows]
    for row, other in rows:
        assert row["ci_low"] < other["ci_low"]
        assert row["ci_high"] > other["ci_high"]
        assert row["ci_method"] != other["ci_method"]


@pytest.mark.parametrize("break_at", [4, 33, 55, 90])
def test_a_stopped_run_that_breaks_off_goes_on_as_if_it_had_not(
    place: Path, monkeypatch: pytest.MonkeyPatch, break_at: int
) -> None:
    """In the first block and in the second, with texts that depend on how batches are composed and seeded."""
    options = {"statistics__stop": NEVER, "sampling__temperature": 1.0, "judges__own__form": "text"}
    monkeypatch.setenv("HARNESS_CACHE", str(place / "another-cache"))
    expected = go("undisturbed", **options)
    monkeypatch.setenv("HARNESS_CACHE", str(place / "cache"))
    original, made = TransformersBackend.generate, iter(range(10_000))

    def generate(self: Any, requests: Any, sampling: Any, *, done: Any = frozenset()) -> Iterator[list[Completion]]:
        for batch in original(self, requests, sampling, done=done):
            if any(next(made) == break_at for _ in batch):
                raise UserError("the power is out; pay the bill")
            yield [replace(completion) for completion in batch]

    monkeypatch.setattr(TransformersBackend, "generate", generate)
    with pytest.raises(UserError, match="pay the bill"):
        go(**options)
    assert not (place / "run" / "results.json").exists()
    assert without_created(go(**options)) == without_created(expected)
    for kind in ("generations/base/dialogue.jsonl", "generations/instruct/dialogue.jsonl"):
        one, two = (
            {row["id"]: row["text"] for row in map(json.loads, (place / folder / kind).open())}
            for folder in ("run", "undisturbed")
        )
        assert one == two


def test_another_judge_on_a_stopped_run_sees_the_same_queries(place: Path) -> None:
    only = {"judges": {"verifiable": {"kind": "verifiable"}}, "statistics__stop": AT_ONCE}
    before = go(**only)
    assert main(["rejudge", "run", "--judge", "instruct", "--quiet"]) == 0
    after = json.loads((place / "run" / "results.json").read_text())
    assert after["stopped"] == before["stopped"]
    assert {row["n"] for row in after["comparisons"] if row["judge"] == "instruct"} == {3}
    assert after["interim"] is None
    assert without_created(rescore(place / "run")) == without_created(after)


def test_the_last_look_lies_within_the_queries(place: Path) -> None:
    with pytest.raises(UserError, match=r"last look is at 9 queries, and the tasks have 8; lower it"):
        go(statistics__stop={"looks": [4, 9]})


def test_the_first_judge_sees_every_query(place: Path) -> None:
    with pytest.raises(UserError, match=r"'judges\.verifiable\.limit': 'verifiable' decides .* must see every query"):
        go(statistics__stop=NEVER, judges__verifiable__limit=2)


def test_a_plan_says_when_it_may_stop(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "small.yaml", "--set", "statistics.stop={looks: [2, 4, 6, 8]}", "--no-memory"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "looks at 2, 4, 6 and 8 queries (O'Brien-Fleming)" in said
    assert "|z| above 4.049, 2.863, 2.337, 2.024" in said
    assert "takes 8 of 8 at most" in said


ONE_SIDED = """
name: one-sided
models:
  asks: {path: recorded/asks, style: completion}
  states: {path: recorded/states, style: completion}
tasks:
  dialogue: {task: hh-rlhf, source: many.jsonl}
  more: {task: hh-rlhf, source: others.jsonl}
principles: {sets: [question.yaml], splits: [learned], polarity: principle}
judges: {verifiable: {kind: verifiable}}
comparisons: [{a: asks, b: states}]
measures: {steerability: false, relevance: false}
output: run
"""
QUESTION = """
name: question
source: Written for this test.
principles:
  - {id: question, task: [dialogue, summarization], split: learned, definition: End with a question.,
     antithesis: End with a statement., check: ends_with_question}
"""


@pytest.mark.parametrize(
    ("rule", "n", "method"),
    [
        ({"anytime": True}, 25, "betting"),
        ({"looks": [5, 20, 40]}, 20, "repeated, look 2 of 3"),
        ({"half_width": 0.08}, 30, "Wilson"),
    ],
)
def test_a_model_that_always_wins_is_found_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: dict[str, Any], n: int, method: str
) -> None:
    """All 30 + 10 queries are won: five wins are too few for any rule."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    tasks = {"many": [f"What is {n}?" for n in range(30)], "others": [f"Who is {n}?" for n in range(10)]}
    for name, queries in tasks.items():
        rows = [{"id": f"{name}{i}", "query": query, "part": "evaluation"} for i, query in enumerate(queries)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("asks", "Is it so?"), ("states", "It is so.")):
        (tmp_path / name).mkdir()
        answers = [{"query": query, "text": text} for queries in tasks.values() for query in queries]
        (tmp_path / name / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    (tmp_path / "question.yaml").write_text(QUESTION)
    (tmp_path / "one-sided.yaml").write_text(ONE_SIDED)
    results = run(load_spec("one-sided.yaml", {"statistics.stop": rule}), quiet=True).results
    assert (results["stopped"]["n"], results["stopped"]["of"], results["stopped"]["decided"]) == (n, 40, True)
    rows = {row["task"]: row for row in results["comparisons"]}
    assert rows["all"]["n"] == n
    assert abs(rows["dialogue"]["n"] - n * 30 / 40) <= 1, "as many of each task as its share"
    assert rows["all"]["ci_method"].startswith(method)
    assert rows["all"]["ci_low"] > 0.5


# --- Unfinished runs


def unfinished(place: Path, rows: int) -> None:
    """Cut the verdicts of the first judge after so many rows, and take the results away, as a kill would have."""
    file = next((place / "run" / "verdicts" / "verifiable").glob("*-vs-*.jsonl"))
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:rows]))
    for name in ("results.json", "report.md"):
        (place / "run" / name).unlink()


def test_an_unfinished_run_is_scored_with_intervals_that_hold_at_any_look(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = go()
    per_query = next(r for r in whole["comparisons"] if r["judge"] == "verifiable")["verdicts"]["expected"] * 2 // 8
    unfinished(place, 3 * per_query)
    results = rescore(place / "run")
    assert results["interim"] == {"n": 3, "of": 8}
    assert results["quality"]["unscored_rate"] == 0, "what is still to be judged is not unscored"
    cut = [row for row in results["comparisons"] if row["judge"] == "verifiable"]
    assert {(row["n"], row["n_expected"]) for row in cut} == {(3, 8)}
    file = next((place / "run" / "verdicts" / "verifiable").glob("*-vs-*.jsonl"))
    for row in cut:
        verdicts: dict[str, list[float]] = {}
        for verdict in map(json.loads, file.open()):
            if verdict["split"] == row["split"]:
                verdicts.setdefault(verdict["query_id"], []).append({"a": 1, "tie": 0.5, "b": 0}[verdict["outcome"]])
        expected = betting_interval([fmean(scores) for scores in verdicts.values()])
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(expected)
    assert all(row["ci_method"].startswith("betting") for row in results["comparisons"] + results["steerability"])
    assert main(["report", "run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "3 of 8 queries, unplanned look" in said
    report = (place / "run" / "report.md").read_text()
    first = report.split("## What this run shows\n\n- ")[1]
    assert first.startswith("3 of 8 queries, unplanned look")
    assert without_created(go()) == without_created(whole)


def test_verdicts_of_one_judge_alone_are_missing(place: Path) -> None:
    """The first judge has seen all; the run is unfinished all the same."""
    go(judges={"verifiable": {"kind": "verifiable"}})
    (place / "run" / "results.json").unlink()
    text = (place / "run" / "spec.yaml").read_text()
    own = "judges:\n  own: {kind: llm, model: instruct}\n"
    (place / "run" / "spec.yaml").write_text(text.replace("judges:\n", own))
    assert rescore(place / "run")["interim"] == {"n": 0, "of": 8}


def test_verdicts_that_need_no_asking_do_not_come_before_the_others(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ties of equal texts would be too many in what is there first."""
    original = TransformersBackend.generate
    order = [query for _, query in build_plan(spec()).order]

    def generate(self: Any, requests: Any, sampling: Any, *, done: Any = frozenset()) -> Iterator[list[Completion]]:
        alike = {r.id for r in requests if order.index(r.asked.query_id) % 2}
        for batch in original(self, requests, sampling, done=done):
            yield [replace(made, text="The same.") if made.id in alike else made for made in batch]

    monkeypatch.setattr(TransformersBackend, "generate", generate)
    go()
    rows = [json.loads(line) for line in next((place / "run" / "verdicts" / "own").glob("*.jsonl")).open()]
    assert sum(bool(row["details"].get("identical")) for row in rows) == len(rows) / 2
    seen = [order.index(row["query_id"]) for row in rows]
    assert max(seen[: len(seen) // 2]) <= min(seen[len(seen) // 2 :]) + 1


# --- A limit that was raised


def test_a_limit_that_was_raised_after_results_is_told(place: Path) -> None:
    first = go(tasks__dialogue__limit=4)
    assert first["looked"] == []
    second = go(tasks__dialogue__limit=6)
    assert second["looked"] == [{"n": 4, "created": first["created"]}]
    third = go()
    assert third["looked"] == [{"n": 4, "created": first["created"]}, {"n": 6, "created": second["created"]}]
    assert "raised after results were shown, of n = 4 (20" in looks_said(third)[0]
    assert without_created(rescore(place / "run")) == without_created(third)
    again = go(description="Other words.")
    assert again["looked"] == third["looked"], "the same queries are not another look"


def test_other_queries_or_other_models_are_no_earlier_look(place: Path) -> None:
    go(tasks__dialogue__limit=4)
    rows = [json.loads(line) for line in (place / "dialogue.jsonl").open()]
    (place / "dialogue.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]))
    assert go()["looked"] == []
    go("other", tasks__dialogue__limit=4)
    assert go("other", engine__dtype="bfloat16")["looked"] == []
