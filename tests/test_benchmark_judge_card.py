"""The paper's verdicts as labelled pairs: only responses that are those that were judged are taken."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from harness.reference import read_reference

N = 40


@pytest.fixture
def converter(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("judge_card", root / "benchmarks" / "judge_card.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def put(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


@pytest.fixture
def checkouts(tmp_path: Path) -> tuple[Path, Path]:
    """Both repositories in small: responses of iteration 2 are those that were judged, those of iteration 1 are not."""
    rng = random.Random(0)
    words = {name: [rng.randrange(5, 60) for _ in range(N)] for name in ("base", "instruct", "1", "2")}
    files = {
        "base": "base-x",
        "instruct": "instruct-x",
        "1": "iteration-1-epoch-0.12-x",
        "2": "iteration-2-epoch-0.25-x",
    }
    for name, file in files.items():
        response = {str(i): "word " * n for i, n in enumerate(words[name])}
        question = {str(i): f"POST: What is {i}?" for i in range(N)}
        constitution = {str(i): "1. Be short.\n2. Be kind." for i in range(N)}
        content = {"constitution": constitution, "question": question, "response": response}
        put(tmp_path / "sami/experiments/tldr/results/responses" / f"{file}.json", content)

    def verdicts(test: list[int], opponent: list[int]) -> list[list[float]]:
        return [
            [(0, 0.5, 1)[i % 3], b + b // 5 + 1, a + a // 5 + 1]
            for i, (a, b) in enumerate(zip(test, opponent, strict=True))
        ]

    other = [rng.randrange(5, 60) for _ in range(N)]
    folder = tmp_path / "typo/experiments/tldr/results_fixed/win_rates"
    put(folder / "0-vs-instruct-x.json", verdicts(words["base"], words["instruct"]))
    put(folder / "1-vs-base-epoch-0.12-x.json", verdicts(other, words["base"]))
    put(folder / "2-vs-base-epoch-0.25-x.json", verdicts(words["2"], words["base"]))
    put(folder / "3-vs-base-epoch-0.38-x.json", verdicts(other, words["base"]))
    put(folder / "notes.json", [])
    return tmp_path / "sami", tmp_path / "typo"


def test_only_pairs_whose_lengths_agree_are_taken(
    converter: ModuleType, checkouts: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "reference.jsonl"
    assert converter.main([*map(str, checkouts), "-o", str(file)]) == 0
    told = capsys.readouterr().out
    assert "1-vs-base-epoch-0.12-x: left out, these are not the responses that were judged" in told
    assert "3-vs-base-epoch-0.38-x: left out, there is no iteration-3-epoch-0.38-x.json" in told
    assert "notes: left out, its name says no pair" in told
    assert f"{2 * N} pairs of 2 comparisons" in told
    pairs = read_reference(file)
    assert [pair.id for pair in pairs[:3]] == ["0-vs-instruct-0", "2-vs-base-1", "0-vs-instruct-2"]
    assert len({pair.query_id for pair in pairs[:N]}) == N
    assert {pair.id for pair in pairs} == {f"{which}-{i}" for which in ("0-vs-instruct", "2-vs-base") for i in range(N)}
    for pair in pairs:
        number = int(pair.id.rpartition("-")[2])
        assert pair.label == ("b", "tie", "a")[number % 3]
        assert (pair.query, pair.task) == (f"What is {number}?", "summarization")
        assert pair.principles == ("Be short.", "Be kind.")


def test_nothing_is_written_where_nothing_fits(converter: ModuleType, tmp_path: Path) -> None:
    assert converter.main([str(tmp_path), str(tmp_path), "-o", str(tmp_path / "out.jsonl")]) == 1
    assert not (tmp_path / "out.jsonl").exists()
