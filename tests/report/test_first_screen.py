"""What a run ends with: 23 lines at most, at any width."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
from changes import pooled, trust
from rich.cells import cell_len
from rich.console import Console

from harness.report import print_first_screen, print_results, render_markdown
from harness.report.first_screen import LINES, clipped

REPORT = Path("runs/x/report.md")
FIRST_SCHEMA = (
    Path(__file__).parents[2] / "leaderboards/baselines/results.json",
    Path(__file__).parent / "data/quickstart-schema-1.json",
)
"""Published results of schema 1: of the baselines, and what the quick start's were before schema 2."""
PUBLISHED = sorted((Path(__file__).parents[2] / "leaderboards/quickstart").rglob("results.json"))


def shown(results: dict[str, Any], width: int = 80, encoding: str = "utf-8", note: str = "") -> list[str]:
    console = Console(record=True, width=width, file=io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    print_first_screen(results, console, report=REPORT, note=note)
    return console.export_text().splitlines()


@pytest.fixture
def many(results: dict[str, Any], examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Eight models, long texts and every kind of flag."""
    names = [f"model-with-a-long-name-{i}" for i in range(8)]
    rows = [row for row in results["comparisons"] if row["b"] == "base"]
    results["comparisons"] = [copy.deepcopy(row) | {"a": name} for name in names for row in rows]
    results["responses"] = [
        row | {"model": name, "copied": 0.5, "ran_on": 0.9, "cut": 0.3}
        for name in names
        for row in results["responses"]
    ]
    results["description"] = "long " * 60
    results["interim"] = {"n": 8, "of": 36}
    results["examples"] = examples * 2
    for example in results["examples"]:
        example["responses"] = {name: {"text": "word " * 200, "copied": 1.0, "cut": True} for name in names}
    return results


@pytest.mark.parametrize("width", [60, 80, 120])
def test_it_fits_the_smallest_terminal(many: dict[str, Any], width: int) -> None:
    for results in (many, {"name": "x"}, many | {"examples": []}):
        lines = shown(results, width, note="(finished; nothing had to be done again)")
        assert len(lines) <= LINES < 24
        assert max(map(cell_len, lines)) <= width
        assert lines[-2] == "all tables: --all; report: runs/x/report.md"
    lines = shown(many, width)
    assert any(line.startswith("  model-with-a-lo") for line in lines), "a response is always shown"
    assert [line for line in lines if "more rows: --all" in line]
    assert [line for line in lines if line.startswith("! and ") and line.endswith(" more: --all")]


def test_a_look_before_the_end_is_said_before_the_win_rates(results: dict[str, Any]) -> None:
    results["interim"] = {"n": 8, "of": 36}
    assert shown(results)[1] == "! unfinished: 8 of 36 queries, unplanned look (intervals allow for it)"
    assert "- 8 of 36 queries, unplanned look: " in render_markdown(results).split("|")[0]


@pytest.mark.parametrize("width", [80, 120])
def test_a_row_for_every_comparison_and_split(results: dict[str, Any], width: int) -> None:
    lines = shown(results, width)
    assert lines[1].split() == ["judge", "verifiable", "principles", "win", "rate", "p", "Holm", "reading"]
    assert [line.split("  ")[0] for line in lines[2:6]] == ["sami vs base"] * 2 + ["sami vs instruct"] * 2
    assert lines[2].split()[3:] == ["3", "learned", "71.1%", "[64.3,", "77.1]", "<0.001", "beats"]
    assert lines[3].endswith("–")
    assert lines[6] == "win rate of the first; – not distinguishable"


def test_the_interval_for_new_principles_stands_beside_it(results: dict[str, Any]) -> None:
    row = pooled(results, b="base", split="held_out")
    row["principles_ci"] = {"low": 0.393, "high": 0.646, "n_principles": 10}
    row |= {"p_holm": 0.2, "ci_low": 0.51}
    lines = shown(results)
    assert "10 held-out" in lines[3]
    assert "[39.3, 64.6]" in lines[3]
    assert lines[3].endswith("ahead*")
    legend = " ".join(lines[6:8])
    assert "like these: for new principles" in legend
    assert "* not after adjustment for 4 rows" in legend


def test_only_trusted_judges_are_in_the_table(results: dict[str, Any]) -> None:
    text = "\n".join(shown(results))
    assert "! judge smollm2 at chance (orders agree " in text
    assert "hidden, --all shows it" in text.replace("\n  ", " ")
    trust(results)
    lines = shown(results)
    assert lines[1].startswith("comparison ")
    assert lines[2] == "judge verifiable, principles verifiable"
    assert [line.split("  ")[0] for line in lines[3:7]] == ["sami vs base"] * 2 + ["sami vs instruct"] * 2
    assert lines[7].startswith("and 4 more rows: --all; ")
    results["judges"]["verifiable"]["kind"] = "llm"
    results["judges"]["smollm2"]["intervals"]["position_consistency"] = [0.1, 0.2]
    assert shown(results)[1] == "No win rate to show: of 2 judges none is shown to be better than a coin."


def test_three_responses_stand_under_each_other(results: dict[str, Any], examples: list[dict[str, Any]]) -> None:
    lines = shown(results | {"examples": examples})
    at = next(i for i, line in enumerate(lines) if line.startswith("held-out principle: Mention the number 1"))
    assert "… query: What is the best" in lines[at]
    assert lines[at + 1 : at + 4] == [
        "  sami      [copies 25%, ran on] sami says 1.",
        "  base      [copies 25%] base says 1.",
        "  instruct  [copies 25%] instruct says 1.",
    ]
    assert lines[at + 4].startswith("learned principle: ")


def test_texts_of_models_are_only_text(results: dict[str, Any], examples: list[dict[str, Any]]) -> None:
    hostile = "[red]no[/red]\x1b[31m\x07\n# x\u202e\u200b漢字漢字" + "漢" * 80
    examples[0] |= {"query": hostile, "constitution": [hostile]}
    examples[0]["responses"] = {"sami": {"text": hostile}, "base\x1b[2J\n": {"text": ""}}
    results |= {"name": "[b]x[/b]\x1b", "examples": examples}
    for row in results["comparisons"]:
        row["b"] = hostile
    for encoding in ("utf-8", "ascii"):
        lines = shown(results, encoding=encoding)
        text = "\n".join(lines)
        assert not {"\x1b", "\x07", "\u202e", "\u200b"} & set(text)
        assert "[red]no[/red]" in text
        assert "[b]x[/b]" in text
        assert "(empty)" in text
        assert max(map(cell_len, lines)) <= 80
        assert len(lines) <= LINES


def test_clipping_counts_cells() -> None:
    console = Console(width=80, file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert clipped("short", 5, console) == "short"
    assert clipped("longer text", 7, console) == "longer…"
    assert cell_len(clipped("漢" * 10, 8, console)) <= 8
    assert clipped("anything", 1, console) == "…"


@pytest.mark.parametrize("path", FIRST_SCHEMA, ids=lambda path: path.parent.name)
def test_results_of_the_first_schema_are_still_shown(path: Path) -> None:
    results = json.loads(path.read_text(encoding="utf-8"))
    assert results["schema_version"] == 1
    lines = shown(results)
    assert len(lines) <= LINES
    assert any("sami vs base" in line and "ahead*" in line for line in lines)
    console = Console(record=True, width=80, file=io.StringIO())
    print_results(results, console)
    assert "sami is ahead of base, not after adjustment" in " ".join(console.export_text().split())
    text = render_markdown(results)
    assert "| sami vs base | 10 learned | 59.0%" in text
    assert "What the responses are" not in text
    assert ": relevance" not in text
    assert "fell" not in text.replace("log-probability fell", "")


def test_the_published_seeds_are_shown_and_their_reports_are_what_their_results_give() -> None:
    assert [path.parent.name for path in PUBLISHED] == ["quickstart", "seed-1", "seed-2"]
    for path in PUBLISHED:
        results = json.loads(path.read_text(encoding="utf-8"))
        assert len(shown(results)) <= LINES
        assert render_markdown(results) == path.with_name("report.md").read_text(encoding="utf-8")


def test_a_run_without_comparisons_says_so_once_and_what_it_measured(results: dict[str, Any]) -> None:
    results["comparisons"] = results["gaps"] = []
    lines = " ".join(shown(results))
    assert lines.count("Nothing is compared") == 1
    assert "Does the constitution steer the model?" in lines
    console = Console(record=True, width=80, file=io.StringIO())
    print_results(results, console)
    assert console.export_text().count("Nothing is compared") == 1
    assert render_markdown(results).count("Nothing is compared") == 1
