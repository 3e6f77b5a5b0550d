"""A run's figures from the rows in its folder: under any protocol, finished or not, without loading a model."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from harness import costs
from harness.looks import as_it_stopped, looks, rule_of
from harness.plan import GenerationUnit, Plan, Stage, VerdictUnit
from harness.protocols import CORRECTED, LADDER, Protocol
from harness.rows import Generation
from harness.score import Facts, Kind, NotCounted, ResponseKey, ScoreInputs, WhyNotCounted, score
from harness.score.responses import facts_of, relevance_by_response, response_key
from harness.spec import Spec, load_spec
from harness.store import RowFile, read_json
from sami_train.copying import copied_share
from sami_train.errors import UserError
from sami_train.yamlfile import as_written, read_yaml


def plan_of_run(folder: Path, changes: Mapping[str, Any] | None = None) -> Plan:
    """The plan that a run's folder was made by, from the specification it keeps.

    Args:
        folder: the run's folder, finished or not.
        changes: dotted field to value, put over that specification.

    What the models' weights were is taken from the folder where it says so, so that neither they nor what they were
    trained from need be there.

    Raises:
        UserError: the folder is no run, or a task or a principle set cannot be read.
    """
    file = folder / "spec.yaml"
    if not file.is_file():
        raise UserError(f"{folder}: there is no spec.yaml here, so this is no run; name the output folder of a run")
    return as_it_stopped(plan_in(folder, load_spec(file, {"output": str(folder), **(changes or {})})))


def plan_in(folder: Path, spec: Spec, look_at: Iterable[str] = ()) -> Plan:
    """The plan of a specification whose rows lie in a run's folder; the models named in `look_at` are looked at again."""
    seen = models_seen(folder)
    again = set(look_at)
    return Plan(spec, {name: model for name, model in seen.items() if name not in again}, last_seen=seen)


PLAN_FILE = "plan.json"
"""What the rows of a run's folder were planned from; written whenever a run starts."""


def models_seen(folder: Path) -> dict[str, dict[str, str]]:
    """What a run's folder says of its models, by name, as `Plan` takes it; nothing where it says nothing."""
    record = plan_record(folder)
    models, asked_for, addresses = (record.get(key) for key in ("models", "models_asked_for", "models_addresses"))
    if not isinstance(models, dict) or not isinstance(asked_for, dict):
        return {}
    places = addresses if isinstance(addresses, dict) else {}
    return {
        name: {"model": model, "asked_for": asked_for.get(name, ""), "address": places.get(name, "")}
        for name, model in models.items()
    }


def plan_record(folder: Path) -> dict[str, Any]:
    """What a run's folder says of the plan that its run started with last; of a run by an older version, of that which ended."""
    for file in (folder / PLAN_FILE, folder / "manifest.json"):
        if file.is_file():
            found = read_json(file)
            return found if isinstance(found, dict) else {}
    return {}


def replaced(plan: Plan) -> str | None:
    """What a run that is about to start replaces in its folder: the results of another specification; None where there are none."""
    file = plan.folder / "results.json"
    results = read_json(file) if file.is_file() else None
    if not isinstance(results, dict) or results.get("spec_fingerprint") == plan.fingerprint:
        return None
    begun = _kept_spec(plan.folder) if is_current(plan.folder, results) else {}
    before, now = (dict(_fields(spec)) for spec in (begun, yaml.safe_load(plan.settled().dump())))
    changed = [
        f"{name} ({as_written(before.get(name))} → {as_written(now.get(name))})"
        for name in dict.fromkeys([*now, *before])
        if before and before.get(name) != now.get(name) and name != "output"
    ]
    more = f" and {len(changed) - MOST_CHANGES} more" if len(changed) > MOST_CHANGES else ""
    what = f"with another {', '.join(changed[:MOST_CHANGES])}{more}" if changed else "otherwise"
    return (
        f"{plan.folder} has results that were made {what}; they are replaced when this run ends (their rows stay). To keep them, "
        "stop now and name another folder with -o"
    )


MOST_CHANGES = 3
"""Fields that `replaced` names."""


def _kept_spec(folder: Path) -> Any:
    try:
        return read_yaml(folder / "spec.yaml").data
    except UserError:
        return {}


def _fields(node: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a specification that is no mapping, by its dotted field."""
    if not isinstance(node, dict):
        yield place, node
    else:
        for name, value in node.items():
            yield from _fields(value, f"{place}.{name}".lstrip("."))


def is_current(folder: Path, results: Mapping[str, Any]) -> bool:
    """Whether results are of the plan that the run started with last; they are not where it was stopped after a change."""
    return plan_record(folder).get("spec_fingerprint") in (None, results.get("spec_fingerprint"))


def score_inputs(plan: Plan, protocol: Protocol = CORRECTED) -> ScoreInputs:
    """All that the results of a plan are made of, as far as it is in the plan's folder."""
    spec, folder = plan.spec, plan.folder
    rows: dict[str, list[Any]] = {"generate": [], "likelihood": [], "relevance": [], "judge": []}
    training = {}
    older: list[tuple[Stage, dict[str, Any]]] = []
    unfinished = False
    for stage in plan.stages:
        if stage.kind == "train":
            summary = folder / stage.path / "summary.json"
            if stage.model and summary.is_file():
                training[stage.model] = read_json(summary)
        elif stage.kind == "judge":
            found = stage.all_rows(folder)
            rows[stage.kind] += found.values()
            if len(found) < stage.expected():
                older.append((stage, stage.older_rows(folder)))
                unfinished |= len(found) + len(older[-1][1]) < stage.expected()
        else:
            rows[stage.kind] += stage.finished_rows(folder).values()
    return ScoreInputs(
        name=spec.name,
        description=spec.description,
        spec_fingerprint=plan.fingerprint,
        level=spec.statistics.level,
        max_unscored=spec.statistics.max_unscored,
        models={
            name: {
                "path": model.path,
                "style": model.style,
                "trained_from": train.from_ if (train := spec.training(name)) else None,
            }
            for name, model in spec.models.items()
        },
        judges={
            name: {"kind": judge.kind, "model": judge.model, "draws": plan.judge_draws(name)}
            for name, judge in spec.judges.items()
        },
        verdicts=rows["judge"],
        facts=_facts(plan, rows["generate"]),
        relevance=relevance_by_response(rows["relevance"]),
        likelihoods=rows["likelihood"],
        training=training,
        expected=plan.expected_pairs(),
        protocol=protocol,
        kinds={name: data.kind for name, data in plan.tasks.items()},
        seed=spec.seed,
        not_counted=_not_counted(plan, older),
        rule=rule_of(plan, unfinished=unfinished),
        unfinished=unfinished,
    )


def _facts(plan: Plan, rows: Sequence[Generation]) -> dict[ResponseKey, Facts]:
    units = {unit.id: unit for stage in plan.stages for unit in stage.units if isinstance(unit, GenerationUnit)}
    return {
        response_key(row): facts_of(row, units[row.id].constitution.sentences(), units[row.id].query) for row in rows
    }


def results_of(plan: Plan, protocol: Protocol = CORRECTED, prices: costs.Prices | None = None) -> dict[str, Any]:
    """The results of a plan from the rows in its folder, as docs/results.md describes them, without `created`."""
    inputs = score_inputs(plan, protocol)
    cost = costs.spent(plan, plan.folder, prices or costs.load_prices())
    return {**score(inputs), **looks(plan, inputs), "examples": examples(plan), "cost": cost}


EXAMPLES = 3
SHOWN_CHARACTERS = 600
"""Of a query and of a response in `examples`; the rows have the whole."""


def examples(plan: Plan) -> list[dict[str, Any]]:
    """Responses to read: of the first queries of the run's order, held-out principles and learned ones in turn.

    An example has `task`, `split`, the `constitution`'s sentences, the `query` and, by model, its `response` with `copied`
    (share of words), `ran_on` and `cut`. The order is seeded before anything is generated, so nobody picked them.
    """
    rows: dict[str, dict[tuple[Any, ...], tuple[GenerationUnit, Generation]]] = {}
    for stage in plan.stages:
        if stage.kind == "generate" and stage.model:
            there = stage.finished_rows(plan.folder)
            for unit in stage.units:
                if isinstance(unit, GenerationUnit) and unit.epoch == 0 and unit.id in there:
                    place = (unit.place, unit.principle_set, unit.split, unit.constitution.id)
                    rows.setdefault(stage.model, {})[place] = (unit, there[unit.id])
    shared = set.intersection(*(set(found) for found in rows.values())) if rows else set()
    numbered = {place: number for number, place in enumerate(plan.order)}
    places = sorted(shared, key=lambda place: (numbered[place[0]], place[1:]))
    found: list[dict[str, Any]] = []
    for split in itertools.islice(
        itertools.cycle(dict.fromkeys(place[2] for place in places)), EXAMPLES if places else 0
    ):
        taken = {(one["task"], one["query_id"]) for one in found}
        chosen = next((p for p in places if p[2] == split and p[0] not in taken), None)
        if chosen is not None:
            found.append(_example({model: of[chosen] for model, of in rows.items()}))
    return found


def _example(responses: Mapping[str, tuple[GenerationUnit, Generation]]) -> dict[str, Any]:
    unit, _ = next(iter(responses.values()))
    sentences = unit.constitution.sentences()
    return {
        "task": unit.task,
        "query_id": unit.query.id,
        "split": unit.split,
        "constitution": unit.constitution.lines(),
        "query": unit.query.text[:SHOWN_CHARACTERS],
        "responses": {
            model: {
                "text": row.text[:SHOWN_CHARACTERS],
                "copied": copied_share(row.text, sentences),
                "ran_on": bool(row.tail),
                "cut": row.finish_reason == "length",
            }
            for model, (_, row) in responses.items()
        },
    }


def _not_counted(plan: Plan, older: Sequence[tuple[Stage, Mapping[str, Any]]]) -> list[NotCounted]:
    """The verdicts that another version, or another specification, left in the places of missing ones."""
    lasting = _lasting_responses(plan) if any(rows for _, rows in older) else set()
    found: Counter[tuple[WhyNotCounted, str, Kind, str, str]] = Counter()
    for stage, rows in older:
        for unit in stage.units:
            if isinstance(unit, VerdictUnit) and unit.id in rows:
                is_of_plan = rows[unit.id].fingerprint == unit.fingerprint  # and so on a text that is gone
                lasts = {unit.a.id, unit.b.id} <= lasting and not is_of_plan
                why: WhyNotCounted = "rules" if lasts else "responses"
                found[why, stage.judge, stage.measure, *stage.pair] += 1
    return [NotCounted(*place, n) for place, n in found.items()]


def _lasting_responses(plan: Plan) -> set[str]:
    """The ids of the responses that the folder has as they are planned, and never had otherwise."""
    lasting: set[str] = set()
    for stage in plan.stages:
        if stage.kind == "generate":
            made: dict[str, set[str]] = {}
            for row in RowFile(plan.folder / stage.path, Generation).rows():
                made.setdefault(row.id, set()).add(row.fingerprint)
            lasting |= {unit.id for unit in stage.units if made.get(unit.id) == {unit.fingerprint}}
    return lasting


def rescore(folder: Path, protocol: Protocol = CORRECTED) -> dict[str, Any]:
    """The results of a run under a protocol, as docs/results.md describes them, without `created`.

    Raises:
        UserError: the folder is no run, or a row cannot be read.
    """
    return results_of(plan_of_run(folder), protocol)


def ladder(folder: Path) -> dict[str, Any]:
    """A run's win rates under every protocol, each step away from the published rules by itself.

    Returns:
        ``{"name", "level", "protocols", "rows", "rank_stability", "not_counted"}``. A row is a comparison by one judge on
        one task and split. Its `protocols` have, by name, `n`, `n_expected`, `win_rate`, `ci_low`, `ci_high`, and
        `moved`: the win rate minus that of the protocol before (null for the first). `rank_stability` and `not_counted`
        are those of the results.

    Raises:
        UserError: as `rescore`.
    """
    inputs = score_inputs(plan_of_run(folder))
    scored = {p.name: score(dataclasses.replace(inputs, protocol=p)) for p in LADDER}
    place = ("task", "principle_set", "split", "a", "b", "judge")
    figures = ("n", "n_expected", "win_rate", "ci_low", "ci_high")
    rows = []
    for together in zip(*(results["comparisons"] for results in scored.values()), strict=True):
        before = None
        by_protocol = {}
        for name, row in zip(scored, together, strict=True):
            rate = row["win_rate"]
            moved = None if None in (before, rate) else rate - before
            by_protocol[name] = {**{figure: row[figure] for figure in figures}, "moved": moved}
            before = rate
        rows.append({**{field: together[0][field] for field in place}, "protocols": by_protocol})
    last = scored[LADDER[-1].name]
    return {
        "name": last["name"],
        "level": last["level"],
        "protocols": [_rules(protocol) for protocol in LADDER],
        "rows": rows,
        "rank_stability": last["rank_stability"],
        "not_counted": last["not_counted"],
    }


def _rules(protocol: Protocol) -> dict[str, str]:
    return dataclasses.asdict(protocol)
