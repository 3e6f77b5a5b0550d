"""Results of a part of a run's queries: whether a run may stop, where it did, what is missing, and what was shown before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.plan import Plan
from harness.score import ScoreInputs
from harness.score.pairs import ALL_TASKS, grouped, judged_pairs, query_means, scored_pairs
from harness.stats import ANYTIME, StopRule, UnusableScores, has_decided
from harness.store import fingerprint, read_json


def rule_of(plan: Plan, *, unfinished: bool) -> StopRule | None:
    """By which rule intervals hold: None where n was fixed before, the specification's, or any time where rows are missing."""
    if unfinished:
        return ANYTIME
    if (stop := plan.spec.statistics.stop) is None:
        return None
    return stop.rule().at(_look(plan))


def _look(plan: Plan) -> int:
    return len(plan.decisions) if plan.upto is None else plan.decisions.index(plan.upto) + 1


def decided(inputs: ScoreInputs) -> bool:
    """Whether the rule of `inputs` is met by every comparison, set and split: the pooled rows of the first judge, all of them."""
    assert inputs.rule is not None
    first = next(iter(inputs.judges))
    groups = grouped(inputs, judged_pairs(inputs))
    for key, group in groups.items():
        if (key.kind, key.judge) != ("win_rate", first):
            continue
        if key.task != ALL_TASKS and key._replace(task=ALL_TASKS) in groups:
            continue
        try:
            if not has_decided(inputs.rule, query_means(scored_pairs(group)).means, inputs.level):
                return False
        except UnusableScores:  # nothing is scored
            return False
    return True


def looks(plan: Plan, inputs: ScoreInputs) -> dict[str, Any]:
    """What the results say of their n: `queries`, `stopped`, `interim` and `looked` (docs/results.md)."""
    return {
        "queries": {task: _first(plan, task, len(data.evaluation)) for task, data in plan.tasks.items()},
        "stopped": None if inputs.unfinished else _stopped(plan, inputs),
        "interim": _interim(inputs) if inputs.unfinished else None,
        "looked": _looked(plan),
    }


def _stopped(plan: Plan, inputs: ScoreInputs) -> dict[str, Any] | None:
    if (stop := plan.spec.statistics.stop) is None:
        return None
    look = _look(plan)
    return {
        "rule": stop.model_dump(mode="json", exclude_defaults=True),
        "n": plan.decisions[look - 1],
        "of": len(plan.order),
        "look": look,
        "looks": len(plan.decisions),
        "decided": decided(inputs),
    }


def _interim(inputs: ScoreInputs) -> dict[str, int]:
    """`n` queries, `of` all, that the first judge has seen in every comparison."""
    first = next(iter(inputs.judges))
    pairs = [p for p in judged_pairs(inputs) if (p.expected.kind, p.expected.judge) == ("win_rate", first)]
    every, missing = {p.query for p in pairs}, {p.query for p in pairs if None in p.rows}
    return {"n": len(every - missing), "of": len(every)}


# --- Earlier results in the folder


def as_it_stopped(plan: Plan) -> Plan:
    """The plan of those queries with which the run in its folder stopped; `plan` where it did not, or is another one."""
    stopped = _earlier(plan.folder / "results.json").get("stopped")
    if not stopped or _earlier(plan.folder / "results.json").get("spec_fingerprint") != plan.fingerprint:
        return plan
    return plan.first(stopped["n"])


def _first(plan: Plan, task: str, n: int) -> dict[str, Any]:
    """Of the first `n` queries of a task: their number, and the hash of their ids, by which later results know them."""
    return {"n": n, "hash": fingerprint([query.id for query in plan.tasks[task].evaluation[:n]])}


def _looked(plan: Plan) -> list[dict[str, Any]]:
    """The results that were shown before these, of the same models on fewer of these queries: `n` queries, and when.

    They are read from the results that lie in the plan's folder.
    """
    results = _earlier(plan.folder / "results.json")
    before: Mapping[str, Mapping[str, Any]] = results.get("queries") or {}
    models: Mapping[str, str] = _earlier(plan.folder / "manifest.json").get("models") or {}
    same = before.keys() == plan.tasks.keys() and all(
        _first(plan, task, found["n"]) == found for task, found in before.items()
    )
    if not same or any(plan.model_fingerprints.get(name) != value for name, value in models.items()):
        return []
    n = (results.get("stopped") or {}).get("n") or sum(found["n"] for found in before.values())
    earlier = [look for look in results.get("looked") or () if look["n"] < n]
    fewer = n < (len(plan.order) if plan.upto is None else plan.upto)
    return [*earlier, {"n": n, "created": results["created"]}] if fewer and "created" in results else earlier


def _earlier(file: Path) -> Mapping[str, Any]:
    found = read_json(file) if file.is_file() else {}
    return found if isinstance(found, dict) else {}
