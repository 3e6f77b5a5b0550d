"""Whoever reads a run's verdicts counts what its results.json counts: real runs on recorded responses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import run
from harness.cli import main
from harness.compare import compare
from harness.counted import counted
from harness.judges.llm import FOLDER
from harness.spec import load_spec
from harness.verdict_files import figures, paired, read_verdicts
from sami_train.errors import UserError

SPEC = """
name: counted
models:
  one: {path: recorded/one, style: chat}
  two: {path: recorded/two, style: chat}
tasks: {asked: {task: hh-rlhf, source: queries.jsonl}}
principles: {sets: [asking.yaml], splits: [learned], polarity: principle}
judges: {program: {kind: verifiable}}
comparisons: [{a: one, b: two}]
measures: {steerability: false, relevance: false}
"""
ASKING = """
name: asking
principles:
  - {id: asks, task: dialogue, split: learned, check: ends_with_question,
     definition: End the text with a question to the reader., antithesis: End the text with a plain statement and ask nothing.}
"""


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Run; model one asks back in answer to the first half of the queries."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "spec.yaml").write_text(SPEC)
    (tmp_path / "asking.yaml").write_text(ASKING)
    write_queries(tmp_path)

    def _go(output: str, **changes: Any) -> Path:
        run(
            load_spec("spec.yaml", {"output": output, **{k.replace("__", "."): v for k, v in changes.items()}}),
            quiet=True,
        )
        return Path(output)

    return _go


def write_queries(folder: Path, word: str = "number", n: int = 8) -> None:
    queries = [{"id": f"q{i}", "query": f"What is {word} {i}?"} for i in range(n)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(q) + "\n" for q in queries))
    for name in ("one", "two"):
        (folder / name).mkdir(exist_ok=True)
        said = [("Who is asking this?" if name == "one" and i < n // 2 else "It is what it is.") for i in range(n)]
        rows = [{"query": q["query"], "text": text} for q, text in zip(queries, said, strict=True)]
        (folder / name / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def counts(folder: Path) -> list[tuple[int, float]]:
    results = json.loads((folder / "results.json").read_text())
    return [(row["n"], row["win_rate"]) for row in results["comparisons"] if row["task"] != "all"]


def test_rows_of_an_older_plan_are_not_counted(go: Callable[..., Path]) -> None:
    whole = go("whole")
    go("cut")
    cut = go("cut", tasks__asked__limit=4)
    ((n, rate),) = counts(cut)
    assert n == 4
    (row,) = compare(cut, whole)["rows"]
    assert (row["n_common"], row["n_only_a"], row["n_only_b"], row["win_rate_a"]) == (4, 0, 4, rate)
    (row,) = compare(whole, cut)["rows"]
    assert (row["n_common"], row["n_only_a"], row["n_only_b"]) == (4, 4, 0)
    (table,) = read_verdicts(cut / "verdicts/program/one-vs-two.jsonl", "harness")
    found = figures(table)
    assert (found["n"], found["n_expected"], found["win_rate"]) == (4, 4, rate)


def test_results_of_another_version_are_held_against_the_rows(
    go: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = go("one-run"), go("two-run")
    monkeypatch.setattr("harness.plan.JUDGING_VERSION", 0)
    (row,) = compare(one, two)["rows"]
    assert (row["n_common"], row["difference"]) == (8, 0.0)
    results = json.loads((one / "results.json").read_text())
    results["comparisons"][0]["n"] = 4
    (one / "results.json").write_text(json.dumps(results))
    with pytest.raises(UserError, match=r"one-run: results\.json was made from another specification.*do not give"):
        compare(one, two)


def test_a_file_that_its_run_does_not_count_is_refused(go: Callable[..., Path], tmp_path: Path) -> None:
    folder = go("run")
    file = folder / "verdicts/program/one-vs-two.jsonl"
    other = folder / "verdicts/gone/one-vs-two.jsonl"
    other.parent.mkdir()
    other.write_text(file.read_text().replace('"judge":"program"', '"judge":"gone"'))
    with pytest.raises(UserError, match="does not name this judge"):
        read_verdicts(other, "harness")
    alone = tmp_path / "alone.jsonl"
    alone.write_text(other.read_text())
    assert figures(read_verdicts(alone, "harness")[0])["n"] == 8


def test_queries_of_one_id_and_other_texts_are_no_pairs(go: Callable[..., Path], tmp_path: Path) -> None:
    one = go("one-run")
    (tmp_path / "new").mkdir()
    write_queries(tmp_path / "new", "figure")
    moved = {f"models__{name}__path": f"recorded/new/{name}" for name in ("one", "two")}
    two = go("two-run", tasks__asked__source="new/queries.jsonl", **moved)
    with pytest.raises(UserError, match="no query in common: 8 have one id and other texts"):
        compare(one, two)
    files = [read_verdicts(folder / "verdicts/program/one-vs-two.jsonl", "harness") for folder in (one, two)]
    with pytest.raises(UserError, match="8 have one id and other texts"):
        paired(*files)


def test_other_principles_of_one_name_are_told(
    go: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = go("one-run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "asking.yaml").write_text(ASKING.replace("to the reader", "to whoever reads"))
    two = go("two-run", principles__sets=["other/asking.yaml"])
    (row,) = compare(one, two)["rows"]
    assert row["differs"] == ["the principle 'asks'"]
    assert main(["compare", str(one), str(two)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "unlike: one against two on asked, learned: the principle 'asks' differs between the runs" in said


def test_another_judge_of_one_name_is_told(go: Callable[..., Path], tmp_path: Path, tiny_model: Path) -> None:
    judged = {
        "models__judge": {"path": str(tiny_model), "style": "chat"},
        "judges": {"judge": {"kind": "llm", "model": "judge"}},
        "tasks__asked__limit": 2,
    }
    one = go("one-run", **judged)
    assert compare(one, go("seed", seed=1, **judged))["rows"][0]["differs"] == []
    shipped = (FOLDER / "dialogue.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(shipped.replace("Only the principles count", "Only the rules count"))
    two = go("two-run", **{**judged, "judges": {"judge": {"kind": "llm", "model": "judge", "template": "mine.yaml"}}})
    assert compare(one, two)["rows"][0]["differs"] == ["the judge's prompt"]
    files = [read_verdicts(folder / "verdicts/judge/one-vs-two.jsonl", "harness") for folder in (one, two)]
    (row,) = paired(*files)
    assert "not like with like: the judge's prompt differs" in row["notes"]
    assert counted(one).keys() == counted(two).keys()


def test_a_run_that_was_begun_again_with_changes_shows_no_earlier_table(
    go: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = go("run")
    before = json.loads((folder / "results.json").read_text())
    other = go("other")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("harness.runner._Runner._judge", stop)
        patched.setattr("harness.plan.JUDGING_VERSION", 0)
        with pytest.raises(KeyboardInterrupt):
            go("run")
        capsys.readouterr()
        assert main(["report", "run", "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["spec_fingerprint"] != before["spec_fingerprint"]
        assert [(row["n"], row["n_expected"]) for row in shown["comparisons"]] == [(0, 8)]
        assert main(["ls", "runs", "--folder", ".", "--json"]) == 0
        assert "begun again with changes, not finished: " in capsys.readouterr().out
        with pytest.raises(UserError, match=r"go on with: harness run"):
            compare(folder, other)
    assert go("run") == folder, "by the first specification it is finished, and says so"
    assert main(["report", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == before
    assert compare(folder, other)["rows"][0]["n_common"] == 8
