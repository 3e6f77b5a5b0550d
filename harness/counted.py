"""The verdicts on two models that a run's results count, and what they were judged on.

A run's folder keeps the rows of earlier plans too. Whoever reads verdicts from it (`harness compare`, `harness score
--format harness`) goes through here, so that all count the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from harness.judges.llm import Order
from harness.plan import Plan, VerdictUnit, check_key
from harness.rescore import is_current, plan_of_run
from harness.rows import Verdict
from harness.score import ExpectedPair
from harness.score.pairs import Key, Pair, pairs_of, score_by_query, scored_pairs
from harness.store import RowFile, read_json
from sami_train.errors import UserError


@dataclass(frozen=True)
class Content:
    """What the verdicts of one comparison were judged on, as far as that is known; nothing of a file outside a run."""

    queries: Mapping[str, str] = field(default_factory=dict)
    """Text by query id."""
    principles: Mapping[str, Any] = field(default_factory=dict)
    """Text and check by principle id."""
    judge: Mapping[str, Any] = field(default_factory=dict)
    """What decides the judge's verdicts, by what it is called."""

    def other_queries(self, other: Content) -> set[str]:
        """The ids of the queries that have another text there."""
        return _differing(self.queries, other.queries)

    def differences(self, other: Content) -> list[str]:
        """What makes verdicts there mean something else, in words."""
        judge = [f"the judge's {name}" for name in sorted(_differing(self.judge, other.judge))]
        principles = [f"the principle '{name}'" for name in sorted(_differing(self.principles, other.principles))]
        return [*judge, *principles[:3], *([f"{len(principles) - 3} more principles"] if len(principles) > 3 else [])]


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> set[str]:
    return {name for name in one.keys() & other.keys() if one[name] != other[name]}


@dataclass(frozen=True)
class Compared:
    """One comparison: its pairs, scored as in a run's results, and what they were judged on."""

    pairs: Sequence[Pair]
    content: Content = field(default_factory=Content)


def counted(run: Path) -> dict[Key, Compared]:
    """The comparisons in a run's folder, with exactly the verdicts that its results.json counts; of a run without results
    those that they would count.

    A folder without spec.yaml has no plan, and all its rows count.

    Raises:
        UserError: the folder holds no verdicts, its data or principles cannot be read, or results of another version cannot be
            made from its rows.
    """
    folder = run / "verdicts"
    if not folder.is_dir():
        problem = "holds no verdicts" if run.is_dir() else "does not exist"
        raise UserError(f"the run folder {run} {problem}; name the output folder of a run that has judged something")
    if not (run / "spec.yaml").is_file():
        found = _by_key(expected_pairs(rows := _all_rows(folder)), rows)
    else:
        found = _of_plan(run, plan_of_run(run))
    if not found:
        raise UserError(
            f"{folder} holds no verdict on two models; name the output folder of a run that compares models"
        )
    return found


def counted_in(file: Path) -> dict[Key, Compared]:
    """The comparisons in one file of verdict rows: those that count, where it lies in a run's folder, else all.

    Raises:
        UserError: there is no such file, or the run that it lies in counts none of its rows.
    """
    if not file.is_file():
        raise UserError(f"{file}: there is no such file of verdicts; check the path")
    place = file.resolve()
    run = next((p.parent for p in place.parents if p.name == "verdicts" and (p.parent / "spec.yaml").is_file()), None)
    rows = _win_rates(RowFile(file, Verdict).read().values())
    if run is None:
        return _by_key(expected_pairs(rows), rows)
    names = {(row.judge, row.a, row.b) for row in rows}
    found = {key: of for key, of in counted(run).items() if (key.judge, key.a, key.b) in names}
    if rows and not found:
        raise UserError(
            f"{file}: the specification of the run in {run} does not name this judge or these models, so that its results count "
            "none of these verdicts; add the judge with 'harness rejudge', or copy the file to another folder"
        )
    return found


def _of_plan(run: Path, plan: Plan) -> dict[Key, Compared]:
    results = read_json(run / "results.json") if (run / "results.json").is_file() else None
    if results is None or results.get("spec_fingerprint") == plan.fingerprint:
        rows = [row for stage in plan.stages if stage.kind == "judge" for row in stage.all_rows(run).values()]
        found = _by_key(plan.expected_pairs(), _win_rates(rows))
    else:  # by another version of the harness
        found = _by_key(expected_pairs(rows := _all_rows(run / "verdicts")), rows)
        hashes = {name: data.hash for name, data in plan.tasks.items()}
        if not is_current(run, results) or not _gives(found, results) or _data_hashes(run) != hashes:
            raise UserError(
                f"{run}: results.json was made from another specification, or by another version, than is here now, and the "
                f"rows in the folder do not give its figures; go on with: harness run {run / 'spec.yaml'}"
            )
    return {key: Compared(of.pairs, _content(plan, key)) for key, of in found.items()}


def _gives(found: Mapping[Key, Compared], results: Mapping[str, Any]) -> bool:
    """Whether these pairs give the number of queries and the win rate of every comparison of some results."""
    for row in results["comparisons"]:
        place = (row["a"], row["b"], row["principle_set"], row["judge"], row["task"], row["split"])
        if row["task"] == "all" or not row["n"]:
            continue
        of = found.get(Key("win_rate", *place))
        means = score_by_query(scored_pairs(list(of.pairs))) if of else {}
        if len(means) != row["n"] or not math.isclose(fmean(means.values()), row["win_rate"], abs_tol=1e-9):
            return False
    return True


def _data_hashes(run: Path) -> dict[str, str]:
    manifest = read_json(run / "manifest.json") if (run / "manifest.json").is_file() else {}
    return {name: task["hash"] for name, task in manifest.get("tasks", {}).items()}


def _content(plan: Plan, key: Key) -> Content:
    if key.judge not in plan.spec.judges or key.task not in plan.tasks:
        return Content()
    principles = {
        e.principle.id: [e.principle.definition, e.principle.antithesis, *check_key(e.principle.check)]
        for stage in plan.stages
        if (stage.kind, stage.judge, stage.pair, stage.measure) == ("judge", key.judge, (key.a, key.b), "win_rate")
        for unit in stage.units
        if isinstance(unit, VerdictUnit)
        and (unit.a.task, unit.a.principle_set, unit.a.split) == (key.task, key.principle_set, key.split)
        for e in unit.constitution.elements
    }
    queries = {query.id: query.text for query in plan.tasks[key.task].evaluation}
    return Content(queries, principles, plan.judge_described(key.judge, key.task))


def expected_pairs(rows: Iterable[Verdict]) -> list[ExpectedPair]:
    """The pairs that rows without a plan are on: each judged in every order that its judge saw on these models."""
    orders: dict[tuple[str, ...], set[Order]] = {}
    pairs: dict[tuple[Any, ...], tuple[int, str | None]] = {}
    for row in rows:
        orders.setdefault((row.judge, row.kind, row.a, row.b), set()).add(row.order)
        place = (
            row.judge, row.kind, row.a, row.b, row.task, row.principle_set, row.split, row.query_id, row.constitution_id, row.epoch,
        )  # fmt: skip
        repeats, _ = pairs.get(place, (0, None))
        pairs[place] = (max(repeats, row.repeat + 1), row.judged_by)
    return [
        ExpectedPair._make((*place, tuple(sorted(orders[place[:4]])), n, judged_by))
        for place, (n, judged_by) in pairs.items()
    ]


def _all_rows(folder: Path) -> list[Verdict]:
    return [
        row
        for path in sorted(folder.glob("*/*-vs-*.jsonl"))
        for row in _win_rates(RowFile(path, Verdict).read().values())
    ]


def _win_rates(rows: Iterable[Verdict]) -> list[Verdict]:
    return [row for row in rows if row.kind == "win_rate"]


def _by_key(expected: Iterable[ExpectedPair], rows: Iterable[Verdict]) -> dict[Key, Compared]:
    groups: dict[Key, list[Pair]] = {}
    for pair in pairs_of(rows, [e for e in expected if e.kind == "win_rate"]):
        e = pair.expected
        groups.setdefault(Key(e.kind, e.a, e.b, e.principle_set, e.judge, e.task, e.split), []).append(pair)
    return {key: Compared(pairs) for key, pairs in groups.items()}
