"""How precise a run will be: counts from its plan, widths by the report's formula on scores that are as assumed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness.cli import main
from harness.plan import Plan
from harness.precision import precision
from harness.spec import load_spec
from harness.stats import win_rate


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan(load_spec("quickstart", {"tasks.dialogue.limit": 20}))


def row(rows: list[dict[str, Any]], **place: str) -> dict[str, Any]:
    (found,) = [r for r in rows if all(r[name] == value for name, value in place.items())]
    return found


def test_queries_and_principles_are_counted_from_the_plan(plan: Plan) -> None:
    rows = precision(plan)
    pooled: dict[str, tuple[int, set[str]]] = {}
    for (task, set_name, split), by_query in plan.constitutions.items():
        used = {part[:-1] for drawn in by_query.values() for c in drawn for part in c.id.split(".")}
        found = row(rows, task=task, principle_set=set_name, split=split)
        assert (found["n"], found["n_principles"]) == (len(by_query), len(used))
        n, known = pooled.get(split, (0, set()))
        pooled[split] = n + len(by_query), known | used
    for split, (n, used) in pooled.items():
        found = row(rows, task="all", split=split)
        assert (found["n"], found["n_principles"]) == (n, len(used))
    assert [r["task"] for r in rows][-2:] == ["all", "all"]
    assert len(rows) == len(plan.constitutions) + 2


def test_a_width_is_that_of_scores_with_the_ties_assumed(plan: Plan) -> None:
    found = row(precision(plan), task="dialogue", split="learned")
    for n, key in ((20, "half_width"), (40, "twice_the_queries")):
        ties, wins = round(0.4 * n), round(0.3 * n)
        rate = win_rate([0.5] * ties + [1.0] * wins + [0.0] * wins)
        assert found[key] == pytest.approx((rate.high - rate.low) / 2, abs=1e-12)
    rate = win_rate([1.0] * 10 + [0.0] * 10)
    assert found["half_width_no_ties"] == pytest.approx((rate.high - rate.low) / 2, abs=1e-12)
    assert found["mde"] == pytest.approx(found["mde_no_ties"] * (0.15 / 0.25) ** 0.5)


def test_more_of_either_is_narrower_and_the_floor_is_for_queries(plan: Plan) -> None:
    for found in precision(plan):
        like = found["principles"]
        assert like["half_width"] > max(like["twice_the_queries"], like["twice_the_principles"])
        assert like["half_width"] > found["half_width"]
        assert like["floor"] > 0


def test_few_principles_have_no_interval_for_others_like_them() -> None:
    few = Plan(load_spec("quickstart", {"tasks.dialogue.limit": 2, "tasks.summarization.limit": 1}))
    found = row(precision(few), task="summarization", split="learned")
    assert found["n_principles"] < 5
    assert found["principles"] is None
    assert found["half_width"] > 0


def test_the_table_is_narrow_and_says_what_it_assumes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["plan", "quickstart", "--no-memory", "--limit", "8"]) == 0
    said = capsys.readouterr().out
    table = said[said.index("How precise") :].splitlines()
    (dialogue,) = [line for line in table if line.startswith("dialogue held-out")]
    assert all(len(line) <= 80 for line in table)
    assert main(["plan", "quickstart", "--no-memory", "--limit", "8", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    found = row(printed["precision"], task="dialogue", split="held_out")
    assert dialogue.split()[2:5] == ["8", f"{100 * found['mde']:.1f}", f"{100 * found['half_width']:.1f}"]
    assert printed["precision_assumes"] == {"win_rate": 0.5, "tie_rate": 0.4, "principles_sd": 0.1, "power": 0.8}
    assert "Assumed: 40% ties" in " ".join("\n".join(table).split())
