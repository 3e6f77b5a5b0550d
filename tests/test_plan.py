"""A plan: what is to be done, and which fingerprints change when something that decides the content changes."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import harness.plan
from harness.judges.llm import VERDICT_SCHEMA, load_judge_template
from harness.plan import (
    GenerationUnit,
    LikelihoodUnit,
    Plan,
    VerdictUnit,
    build_plan,
    describe,
    judge_form,
    judge_sampling,
    rate_key,
)
from harness.rows import Generation
from harness.spec import JudgeSpec, ModelSpec, load_spec
from harness.store import RowFile, fingerprint
from sami_train.constitutions import sample_constitutions
from sami_train.errors import UserError

PRINCIPLES = """
name: mine
description: Two learned and two held-out principles.
source: Written for this test.
principles:
  - {id: question, task: [dialogue, summarization], split: learned, definition: End with a question., antithesis: End with a statement., check: ends_with_question}
  - {id: thrilled, task: [dialogue, summarization], split: learned, definition: Use exclamation marks., antithesis: Use full stops only., check: exclamations}
  - {id: brief, task: [dialogue, summarization], split: held_out, definition: Write few words., antithesis: Write very many words., check: {name: word_count, at_most: 25, zero_at: 60}}
  - {id: listed, task: [dialogue, summarization], split: held_out, definition: Number the lines., antithesis: Write one paragraph., check: {name: numbered_list, full_at: 3}}
"""  # noqa: E501

SPEC = """
name: planned
models:
  base: {path: MODEL, style: completion}
  judge: {path: MODEL, style: chat}
  sami: {style: completion, train: {recipe: embedded/gemma-3-270m, from: base, tasks: [dialogue]}}
tasks:
  dialogue: {task: hh-rlhf, source: bundled, limit: 5, train_limit: 12}
  summarization: {task: tldr, source: bundled, limit: 3, train_limit: 4}
principles: {sets: [mine.yaml]}
judges:
  verifiable: {kind: verifiable}
  llm: {kind: llm, model: judge, limit: 2}
comparisons: [{a: sami, b: base}]
measures: {infonce: 2, relevance: false}
output: run
"""


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(PRINCIPLES)
    (tmp_path / "spec.yaml").write_text(SPEC.replace("MODEL", str(tiny_model)))
    return tmp_path


def plan_of(folder: Path, **overrides: Any) -> Plan:
    return build_plan(load_spec(folder / "spec.yaml", {k.replace("__", "."): v for k, v in overrides.items()}))


def counts(plan: Plan) -> dict[str, int]:
    return {stage.name: len(stage.units) for stage in plan.stages}


def prints(plan: Plan, kind: str, **fields: str) -> dict[str, str]:
    """Fingerprint by unit id, over the stages of a kind."""
    stages = [s for s in plan.stages if s.kind == kind and all(getattr(s, k) == v for k, v in fields.items())]
    assert stages
    return {u.id: u.fingerprint for s in stages for u in s.units}


def changed(one: dict[str, str], two: dict[str, str]) -> set[str]:
    assert one.keys() == two.keys()
    return {i for i in one if one[i] != two[i]}


# --- How much is to be done


def test_counts(folder: Path) -> None:
    plan = plan_of(folder)
    assert counts(plan) == {
        # queries x splits x sides of a principle
        "base on dialogue": 20,
        "base on summarization": 12,
        "train sami": 0,
        "sami on dialogue": 20,
        "sami on summarization": 12,
        # 2 queries x splits, a task and a model each
        "base likelihoods, dialogue": 4,
        "base likelihoods, summarization": 4,
        "sami likelihoods, dialogue": 4,
        "sami likelihoods, summarization": 4,
        "verifiable: sami against base": 32,
        # one contrast a query and split
        "verifiable: base steerability": 16,
        "verifiable: sami steerability": 16,
        # 2 queries a task x splits x sides x orders
        "llm: sami against base": 32,
    }
    assert [s.expected() for s in plan.stages if s.kind == "train"] == [1]


def test_the_model_that_only_judges_answers_nothing(folder: Path) -> None:
    assert not [s for s in plan_of(folder).stages if s.kind != "judge" and s.model == "judge"]


def test_each_model_is_needed_in_one_stretch(folder: Path) -> None:
    models = [s.model for s in plan_of(folder).stages if s.model is not None]
    stretches = [m for m, before in zip(models, [None, *models], strict=False) if m != before]
    assert stretches == ["base", "sami", "judge"]


@pytest.mark.parametrize(
    ("changes", "dialogue"),
    [
        ({}, 20),
        ({"principles__polarity": "principle"}, 20),  # the opposites are wanted for the contrasts all the same
        ({"principles__polarity": "principle", "measures__steerability": False}, 20),
        ({"principles__polarity": "principle", "measures__steerability": False, "measures__infonce": 0}, 10),
        ({"measures__steerability": False, "measures__infonce": 0}, 20),
        ({"principles__per_query": 2}, 40),
        ({"sampling__epochs": 3}, 60),
        ({"principles__splits": ["learned"]}, 10),
    ],
)
def test_opposites_are_generated_once(folder: Path, changes: dict[str, Any], dialogue: int) -> None:
    stage = plan_of(folder, **changes).stage("generate", model="base", task="dialogue")
    assert len(stage.units) == dialogue
    whole = {(u.query.id, u.constitution.id, u.split, u.epoch) for u in stage.units if isinstance(u, GenerationUnit)}
    assert len(whole) == len({u.id for u in stage.units}) == dialogue


@pytest.mark.parametrize("polarity", ["principle", "antithesis", "both", "random"])
def test_steerability_counts_a_contrast_once(folder: Path, polarity: str) -> None:
    plan = plan_of(folder, principles__polarity=polarity)
    stage = plan.stage("judge", measure="steerability", pair=("sami", "sami"))  # type: ignore[arg-type]
    contrasts = Counter()  # type: ignore[var-annotated]
    for unit in stage.units:
        assert isinstance(unit, VerdictUnit)
        assert unit.b.constitution == unit.a.constitution.opposite()
        assert unit.constitution == unit.a.constitution
        contrasts[unit.a.task, unit.a.query.id, unit.a.split] += 1
    assert len(contrasts) == 16
    assert set(contrasts.values()) == {1}


def test_what_the_writers_had_before_them(folder: Path) -> None:
    plan = plan_of(folder, sampling__example=True)
    stage = plan.stage("judge", measure="steerability", pair=("sami", "sami"))  # type: ignore[arg-type]
    for unit in stage.units:
        assert isinstance(unit, VerdictUnit)
        shown = set(unit.shown)
        assert set(unit.a.constitution.sentences()) < shown
        assert {unit.a.prompt.frame, unit.b.prompt.frame} < shown, "each under its own side"
        assert (unit.a.query.text in shown) == (unit.a.query.task == "dialogue")
        assert all("friendly old sailor" in frame or "ladder" in frame for frame in shown if "Instruction:" in frame)


def test_two_sets_with_a_principle_in_common(folder: Path) -> None:
    (folder / "other.yaml").write_text(PRINCIPLES.replace("name: mine", "name: other"))
    plan = plan_of(folder, principles__sets=["mine.yaml", "other.yaml"])
    units = plan.stage("generate", model="base", task="dialogue").units
    assert len({u.id for u in units}) == len(units) == 40
    assert {r.principle_set for u in plan.stage("likelihood", model="base", task="dialogue").units
            if isinstance(u, LikelihoodUnit) for r in u.responses} == {"mine", "other"}  # fmt: skip


def test_expected_pairs_are_the_verdicts_without_their_orders(folder: Path) -> None:
    plan = plan_of(folder)
    pairs = plan.expected_pairs()
    assert len(pairs) == len(set(pairs))
    orders = {(p.judge, p.kind): set() for p in pairs}  # type: ignore[var-annotated]
    for pair in pairs:
        orders[pair.judge, pair.kind].add(pair.orders)
    assert orders == {
        ("verifiable", "win_rate"): {("ab",)},
        ("verifiable", "steerability"): {("ab",)},
        ("llm", "win_rate"): {("ab", "ba")},
    }
    assert sum(len(p.orders) for p in pairs) == sum(len(s.units) for s in plan.stages if s.kind == "judge")
    units = {(s.judge, s.measure, *s.pair, u.a.task, u.a.principle_set, u.a.split, u.a.query.id, u.constitution.id, u.a.epoch)
             for s in plan.stages for u in s.units if isinstance(u, VerdictUnit)}  # fmt: skip
    assert {p.place for p in pairs} == units


# --- The control and repeats


@pytest.mark.parametrize("polarity", ["principle", "both", "random"])
def test_a_swapped_constitution_shares_no_principle_and_takes_the_same_sides(folder: Path, polarity: str) -> None:
    plan = plan_of(folder, principles__polarity=polarity, measures__swapped=True)
    own = plan.stage("judge", judge="verifiable", measure="win_rate")
    control = plan.stage("judge", judge="verifiable", measure="swapped")
    assert control.path == Path("verdicts/verifiable/swapped/sami-vs-base.jsonl")
    assert [(u.a.id, u.b.id) for u in control.units] == [(u.a.id, u.b.id) for u in own.units]  # type: ignore[union-attr]
    for unit in control.units:
        assert isinstance(unit, VerdictUnit)
        given, judged_by = unit.a.constitution, unit.constitution
        assert not {e.principle.id for e in given.elements} & {e.principle.id for e in judged_by.elements}
        assert [e.follows for e in given.elements] == [e.follows for e in judged_by.elements]
        assert {e.principle.split for e in judged_by.elements} == {unit.a.split}
    assert not {u.id for u in own.units} & {u.id for u in control.units}
    assert [u.fingerprint for u in plan_of(folder, principles__polarity=polarity, measures__swapped=True)
            .stage("judge", judge="verifiable", measure="swapped").units] == [u.fingerprint for u in control.units]  # fmt: skip


def test_a_constitution_and_its_opposite_are_swapped_for_opposites(folder: Path) -> None:
    plan = plan_of(folder, measures__swapped=True)
    by_given = {
        (u.a.task, u.a.query.id, u.a.constitution.id): u.constitution
        for u in plan.stage("judge", judge="verifiable", measure="swapped").units
        if isinstance(u, VerdictUnit)
    }
    for unit in plan.stage("judge", judge="verifiable", measure="swapped").units:
        assert isinstance(unit, VerdictUnit)
        other = by_given[unit.a.task, unit.a.query.id, unit.a.constitution.opposite().id]
        assert other == unit.constitution.opposite()


def test_judges_go_by_the_principles_that_the_task_names(folder: Path) -> None:
    """Models are given the whole constitution; judges see a part of it, and the other task is judged as before."""
    options = {"principles__size": 2, "principles__polarity": "random"}
    whole, plan = (
        plan_of(folder, **options),
        plan_of(folder, **options, tasks__dialogue__judged_by=["thrilled", "brief"]),
    )
    assert not changed(prints(whole, "generate"), prints(plan, "generate"))
    units = [u for s in plan.stages if s.kind == "judge" for u in s.units if isinstance(u, VerdictUnit)]
    assert changed(prints(whole, "judge"), prints(plan, "judge")) == {u.id for u in units if u.a.task == "dialogue"}
    for unit in units:
        given = {e.principle.id: e.follows for e in unit.a.constitution.elements}
        went_by = {e.principle.id: e.follows for e in unit.constitution.elements}
        if unit.a.task == "dialogue":
            assert went_by == {i: follows for i, follows in given.items() if i in ("thrilled", "brief")}
            assert len(went_by) == 1
            assert unit.judged_by == unit.constitution.id
        else:
            assert went_by == given
            assert unit.judged_by is None
    judged_by = {p.task: set[str | None]() for p in plan.expected_pairs()}
    for pair in plan.expected_pairs():
        judged_by[pair.task].add(pair.judged_by)
    assert judged_by["dialogue"] <= {"thrilled+", "thrilled-", "brief+", "brief-"}
    assert judged_by["summarization"] == {None}


def test_the_control_of_a_part_takes_the_sides_of_that_part(folder: Path) -> None:
    sets = "\n".join(
        f"  - {{id: p{i}, task: dialogue, split: learned, definition: Do {i}., antithesis: Do not do {i}., check: exclamations}}"
        for i in range(8)
    )
    (folder / "mine.yaml").write_text(f"name: mine\nsource: Written for this test.\nprinciples:\n{sets}\n")
    named = [f"p{i}" for i in range(1, 8)]
    plan = plan_of(
        folder, principles__size=2, principles__polarity="random", principles__splits=["learned"], measures__swapped=True,
        measures__infonce=0, measures__steerability=False, tasks__dialogue__judged_by=named,
        tasks__dialogue__limit=30, seed=3,
    )  # fmt: skip
    units = [u for s in plan.stages if s.measure == "swapped" for u in s.units if isinstance(u, VerdictUnit)]
    kept = [[e.follows for e in u.a.constitution.elements if e.principle.id in named] for u in units]
    assert any(
        len(sides) == 1 and sides != [u.a.constitution.elements[0].follows]
        for sides, u in zip(kept, units, strict=True)
    )
    assert [[e.follows for e in u.constitution.elements] for u in units] == kept


def test_a_constitution_without_what_judges_go_by_is_refused(folder: Path) -> None:
    with pytest.raises(
        UserError, match=r"tasks\.dialogue\.judged_by: none of 'thrilled' is in the constitution 'question\+'"
    ):
        _ = plan_of(folder, principles__polarity="principle", tasks__dialogue__judged_by=["thrilled"]).stages


def test_the_control_is_limited_and_off_by_default(folder: Path) -> None:
    assert not [s for s in plan_of(folder).stages if s.measure == "swapped"]
    stages = {s.judge: s for s in plan_of(folder, measures__swapped=1).stages if s.measure == "swapped"}
    assert {name: len(stage.units) for name, stage in stages.items()} == {
        "verifiable": 8,  # one query a task x splits x sides
        "llm": 16,  # and both orders
    }


def test_the_control_changes_no_other_row(folder: Path) -> None:
    one, two = plan_of(folder), plan_of(folder, measures__swapped=True)
    assert prints(one, "judge", measure="win_rate") == prints(two, "judge", measure="win_rate")
    assert prints(one, "generate") == prints(two, "generate")


def test_repeats_are_rows_of_their_own_and_leave_the_first_judging_as_it_was(folder: Path) -> None:
    once, thrice = plan_of(folder), plan_of(folder, judges__llm__epochs=3)
    one, three = (prints(plan, "judge", judge="llm") for plan in (once, thrice))
    assert len(three) == 3 * len(one)
    assert one.items() <= three.items()
    assert len(set(three.values())) == len(three)
    assert prints(once, "judge", judge="verifiable") == prints(thrice, "judge", judge="verifiable")
    assert {p.repeats for p in thrice.expected_pairs() if p.judge == "llm"} == {3}
    assert len(thrice.expected_pairs()) == len(once.expected_pairs())


# --- The order of the queries


def places(units: Any) -> list[tuple[str, str]]:
    """(task, query) of each unit, every one once, in the order in which it comes first."""
    return list(dict.fromkeys(unit.place for unit in units))


def test_rows_are_made_in_a_seeded_order_that_changes_nothing_else(folder: Path) -> None:
    plan = plan_of(folder)
    in_file = [(task, query.id) for task, data in plan.tasks.items() for query in data.evaluation]
    assert sorted(plan.order) == sorted(in_file)
    assert list(plan.order) != in_file
    assert plan_of(folder).order == plan.order
    assert plan_of(folder, seed=1).order != plan.order
    for stage in plan.stages:
        if stage.kind != "train":
            here = places(stage.units)
            assert here == [place for place in plan.order if place in set(here)], stage.name
    for (task, set_name, split), by_query in plan.constitutions.items():
        drawn = sample_constitutions(
            plan.sets[set_name].select(plan.tasks[task].kind, split), [q.id for q in plan.tasks[task].evaluation],
            per_query=1, size=1, polarity="both", seed=int(fingerprint([0, task, set_name, split])[:12], 16),
        )  # fmt: skip
        assert by_query == drawn, "what a query is given depends on the file alone"


def test_what_is_first_is_spread_over_tasks_and_principles(folder: Path) -> None:
    plan = plan_of(folder, tasks__dialogue__limit=20, tasks__summarization__limit=10)
    for n in range(1, 31):
        dialogue = [query for task, query in plan.order[:n] if task == "dialogue"]
        assert abs(len(dialogue) - n * 20 / 30) <= 1
        learned = Counter(
            plan.constitutions["dialogue", "mine", "learned"][q][0].elements[0].principle.id for q in dialogue
        )
        assert max(learned["question"], learned["thrilled"]) - min(learned["question"], learned["thrilled"]) <= 1


def test_a_limit_of_a_judge_takes_the_first_of_the_order_in_both_splits(folder: Path) -> None:
    plan = plan_of(folder, measures__swapped=1)
    in_order = {task: [query for t, query in plan.order if t == task] for task in plan.tasks}
    for judge, measure, n in (("llm", "win_rate", 2), ("llm", "swapped", 1), ("verifiable", "swapped", 1)):
        stage = plan.stage("judge", judge=judge, measure=measure)
        for task in plan.tasks:
            for split in ("learned", "held_out"):
                units = [u for u in stage.units if isinstance(u, VerdictUnit)]
                seen = {u.a.query.id for u in units if (u.a.task, u.a.split) == (task, split)}
                assert seen == set(in_order[task][:n])
    for task in plan.tasks:
        assert [q for _, q in places(plan.stage("likelihood", model="base", task=task).units)] == in_order[task][:2]


def test_a_part_of_a_plan_has_the_rows_of_its_queries(folder: Path) -> None:
    plan = plan_of(folder)
    part = plan.first(4)
    assert (part.fingerprint, part.upto, plan.upto) == (plan.fingerprint, 4, None)
    wanted = set(plan.order[:4])
    for whole, some in zip(plan.stages, part.stages, strict=True):
        assert (some.name, some.path, some.fingerprint) == (whole.name, whole.path, whole.fingerprint)
        assert some.units == tuple(unit for unit in whole.units if unit.place in wanted)
    assert {(pair.task, pair.query_id) for pair in part.expected_pairs()} == wanted


def test_blocks_are_whole_queries_up_to_a_decision(folder: Path) -> None:
    plan = plan_of(folder, statistics__stop={"looks": [3, 4, 8]})
    assert plan.decisions == (3, 4, 8)
    for stage in plan.stages:
        blocks = plan.blocks(stage.units)  # type: ignore[type-var]
        assert [unit for block in blocks for unit in block] == list(stage.units)
        ends = (0, *plan.decisions)
        expected = [set(plan.order[a:b]) & set(places(stage.units)) for a, b in itertools.pairwise(ends)]
        assert [set(places(block)) for block in blocks] == [queries for queries in expected if queries]
        part = plan.first(4).stage(stage.kind, name=stage.name)
        assert plan.first(4).blocks(part.units) == blocks[: len(plan.blocks(part.units))]  # type: ignore[type-var]


def test_without_a_rule_blocks_have_so_many_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(folder)
    units = plan.stage("generate", model="base", task="dialogue").units
    assert [len(block) for block in plan.blocks(units)] == [20]  # type: ignore[type-var]
    monkeypatch.setattr(harness.plan, "BLOCK_ROWS", 8)
    blocks = plan.blocks(units)  # type: ignore[type-var]
    assert [len(block) for block in blocks] == [8, 8, 4]
    assert [unit for block in blocks for unit in block] == list(units)


def test_a_rule_for_stopping_enters_the_plan_and_no_row(folder: Path) -> None:
    before, after = plan_of(folder), plan_of(folder, statistics__stop={"looks": [4, 8]})
    assert before.fingerprint != after.fingerprint
    assert plan_of(folder, statistics__stop={"looks": [5, 8]}).fingerprint != after.fingerprint
    assert [stage.units for stage in before.stages] == [stage.units for stage in after.stages]
    described = describe(after)["stop"]
    assert (described["decisions"], described["most"], described["of"]) == ([4, 8], 8, 8)
    assert described["critical"] == pytest.approx([2.796511, 1.977432], abs=1e-4)
    assert describe(before)["stop"] is None


# --- Models that are not looked at again


def test_a_model_whose_fingerprint_is_known_is_not_looked_at(folder: Path) -> None:
    plan = plan_of(folder)
    spec = plan.spec
    known = {name: {"model": f"{name}-print", "asked_for": plan.asked_for(name)} for name in spec.models}
    assert Plan(spec, known).model_fingerprints == {name: f"{name}-print" for name in spec.models}
    changed = load_spec(folder / "spec.yaml", {"models.base.dtype": "bfloat16"})
    found = Plan(changed, known).model_fingerprints
    assert found["judge"] == "judge-print"
    assert found["base"] != "base-print"
    assert found["sami"] != "sami-print", "it is trained from what has changed"


# --- What a model learns from


def test_held_out_principles_never_reach_training(folder: Path) -> None:
    plan = plan_of(folder)
    learned = plan.training_principles("sami")
    assert {kind: [p.id for p in ps] for kind, ps in learned.items()} == {"dialogue": ["question", "thrilled"]}


def test_evaluated_queries_never_reach_training(folder: Path) -> None:
    """Also not those that another task of the run evaluates."""
    plan = plan_of(folder)
    train, evaluation = plan.tasks["dialogue"].train, plan.tasks["dialogue"].evaluation
    file = folder / "queries.jsonl"
    rows = [{"id": f"own-{n}", "query": q.text, "part": "evaluation"} for n, q in enumerate(train[:3])]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = (folder / "spec.yaml").read_text()
    (folder / "spec.yaml").write_text(
        text.replace("\nprinciples:", f"\n  own: {{task: hh-rlhf, source: {file}}}\nprinciples:")
    )
    both = plan_of(folder)
    assert [q.id for q in plan.training_queries("sami")] == [q.id for q in train]
    assert [q.id for q in both.training_queries("sami")] == [q.id for q in train[3:]]
    assert not {q.id for q in evaluation} & {q.id for q in train}


def two_tasks(folder: Path, first: str, second: str, template: str = "") -> None:
    for name, query in (("one", first), ("two", second)):
        rows = [
            {"id": "1", "query": query, "part": "train"},
            {"id": "e", "query": f"Asked in {name}?", "part": "evaluation"},
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = (folder / "spec.yaml").read_text().replace("tasks: [dialogue]", "tasks: [one, two]")
    own = "".join(
        f"  {n}: {{task: hh-rlhf, source: {folder}/{n}.jsonl{template if n == 'two' else ''}}}\n"
        for n in ("one", "two")
    )
    (folder / "spec.yaml").write_text(text.replace("\ntasks:\n", f"\ntasks:\n{own}"))


def test_a_query_of_two_tasks_is_learned_once(folder: Path) -> None:
    two_tasks(folder, "What is it?", "What is it?")
    assert [q.text for q in plan_of(folder).training_queries("sami")] == ["What is it?"]


def test_one_id_for_two_training_queries_is_refused(folder: Path) -> None:
    two_tasks(folder, "What is it?", "Who is it?")
    with pytest.raises(
        UserError, match=r"models\.sami\.train: two training queries .* the id '1' .*'two'.*; change one"
    ):
        plan_of(folder)


def test_two_templates_for_one_kind_are_refused(folder: Path, root: Path) -> None:
    text = (root / "sami_train" / "prompts" / "dialogue.yaml").read_text()
    (folder / "other-template.yaml").write_text(text.replace("name: dialogue", "name: other"))
    two_tasks(folder, "What is it?", "What is it?", ", template: other-template.yaml")
    with pytest.raises(
        UserError, match=r"models\.sami\.train: the dialogue tasks .* different templates; give them the same"
    ):
        plan_of(folder)


# --- Fingerprints


PROBE = """
import json, sys
from harness.plan import build_plan
from harness.spec import load_spec
plan = build_plan(load_spec("spec.yaml"))
assert "torch" not in sys.modules and "transformers" not in sys.modules, "a plan loads nothing"
print(json.dumps([plan.fingerprint, [[u.id, u.fingerprint] for s in plan.stages for u in s.units]]))
"""


def test_the_same_in_every_process(folder: Path) -> None:
    found = [
        subprocess.run(
            [sys.executable, "-c", PROBE], cwd=folder, check=True, capture_output=True, text=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(harness.plan.__file__).parent.parent)},
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    plan = plan_of(folder)
    mine = [plan.fingerprint, [[u.id, u.fingerprint] for s in plan.stages for u in s.units]]
    assert found[0] == found[1]
    assert json.loads(found[0]) == mine
    assert len({i for i, _ in mine[1]}) == len(mine[1]), "ids are unique"


def test_one_principle_changed(folder: Path) -> None:
    """Rows whose constitution has it, and the model that learned it, are made again; the rest stays."""
    before = plan_of(folder)
    (folder / "mine.yaml").write_text(PRINCIPLES.replace("End with a question.", "Close with a question."))
    after = plan_of(folder)
    units = {
        u.id: u for u in before.stage("generate", model="base", task="dialogue").units if isinstance(u, GenerationUnit)
    }
    told = {i for i, u in units.items() if u.constitution.id == "question+"}
    assert told
    found = changed(*(prints(p, "generate", model="base", task="dialogue") for p in (before, after)))
    assert found == told, "what is told to follow it; its antithesis and all other principles are as they were"
    likelihoods = {
        u.id
        for u in before.stage("likelihood", model="base", task="dialogue").units
        if isinstance(u, LikelihoodUnit) and any(r.id in told for r in u.responses)
    }
    assert changed(*(prints(p, "likelihood", model="base", task="dialogue") for p in (before, after))) == likelihoods
    assert before.model_fingerprints["base"] == after.model_fingerprints["base"]
    assert before.model_fingerprints["sami"] != after.model_fingerprints["sami"]
    sami = prints(before, "generate", model="sami"), prints(after, "generate", model="sami")
    assert changed(*sami) == sami[0].keys()
    assert before.fingerprint != after.fingerprint


def test_a_held_out_principle_changed_trains_nothing_again(folder: Path) -> None:
    before = plan_of(folder)
    (folder / "mine.yaml").write_text(PRINCIPLES.replace("Write few words.", "Write but few words."))
    after = plan_of(folder)
    assert before.model_fingerprints == after.model_fingerprints
    assert before.stage("train").fingerprint == after.stage("train").fingerprint
    units = {
        u.id: u for u in before.stage("generate", model="sami", task="dialogue").units if isinstance(u, GenerationUnit)
    }
    found = changed(*(prints(p, "generate", model="sami", task="dialogue") for p in (before, after)))
    assert found == {i for i, u in units.items() if u.constitution.id == "brief+"} != set()


def test_a_check_changed_is_checked_anew_and_nothing_else(folder: Path) -> None:
    before = plan_of(folder)
    (folder / "mine.yaml").write_text(PRINCIPLES.replace("at_most: 25", "at_most: 20"))
    after = plan_of(folder)
    for kind in ("generate", "likelihood"):
        assert prints(before, kind) == prints(after, kind)
    assert prints(before, "judge", judge="llm") == prints(after, "judge", judge="llm")
    units = {u.id: u for s in before.stages for u in s.units if isinstance(u, VerdictUnit) and s.judge == "verifiable"}
    found = changed(prints(before, "judge", judge="verifiable"), prints(after, "judge", judge="verifiable"))
    assert found == {i for i, u in units.items() if u.constitution.id in ("brief+", "brief-")} != set()


def test_a_judge_prompt_changed_is_judged_anew_and_nothing_else(folder: Path, root: Path) -> None:
    before = plan_of(folder)
    text = (root / "harness" / "judges" / "prompts" / "dialogue.yaml").read_text()
    (folder / "own-judge.yaml").write_text(text.replace("One letter.", "Say one letter."))
    after = plan_of(folder, judges__llm__template=str(folder / "own-judge.yaml"))
    assert prints(before, "judge", judge="verifiable") == prints(after, "judge", judge="verifiable")
    found = changed(prints(before, "judge", judge="llm"), prints(after, "judge", judge="llm"))
    assert len(found) == 32


def test_a_new_way_of_judging_is_judged_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = plan_of(folder)
    generations, verdicts = prints(before, "generate"), prints(before, "judge")
    monkeypatch.setattr(harness.plan, "JUDGING_VERSION", harness.plan.JUDGING_VERSION + 1)
    after = plan_of(folder)
    assert prints(after, "generate") == generations
    assert changed(verdicts, prints(after, "judge")) == verdicts.keys()


@pytest.mark.parametrize(
    "changes",
    [
        {"engine__batch_size": 3, "engine__threads": 2, "engine__device": "cpu"},
        {"output": "elsewhere"},
        {"statistics__level": 0.9},
        {"name": "other", "description": "Other words."},
        {"models__sami__train__set": {"save_steps": 1}},
    ],
)
def test_what_decides_no_content_changes_no_row(folder: Path, changes: dict[str, Any]) -> None:
    before, after = plan_of(folder), plan_of(folder, **changes)
    assert before.model_fingerprints == after.model_fingerprints
    for one, two in zip(before.stages, after.stages, strict=True):
        assert (one.name, one.fingerprint, one.units) == (two.name, two.fingerprint, two.units)


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling__max_new_tokens": 8},
        {"sampling__temperature": 0.5},
        {"sampling__top_p": 0.9},
        {"sampling__max_prompt_tokens": 64},
    ],
)
def test_sampling_changes_every_row_and_no_model(folder: Path, changes: dict[str, Any]) -> None:
    before, after = plan_of(folder), plan_of(folder, **changes)
    assert before.model_fingerprints == after.model_fingerprints
    for kind in ("generate", "likelihood", "judge"):
        assert len(changed(prints(before, kind), prints(after, kind))) == len(prints(before, kind))


def test_dtype_changes_what_models_say_but_not_the_training(folder: Path) -> None:
    before, after = plan_of(folder, engine__dtype="float32"), plan_of(folder, engine__dtype="bfloat16")
    for model in ("base", "sami"):
        units = prints(before, "generate", model=model), prints(after, "generate", model=model)
        assert changed(*units) == units[0].keys()
    assert before.stage("train").fingerprint == after.stage("train").fingerprint, "training is in float32 either way"


@pytest.mark.parametrize("begun", ["float32", "bfloat16"])
def test_what_is_auto_is_what_the_run_was_begun_in(folder: Path, begun: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights and the recipe's bf16 alike: on a machine that would choose otherwise, and in a new folder, as it chooses."""
    other = {"float32": "bfloat16", "bfloat16": "float32"}[begun]
    monkeypatch.setattr("harness.models.local.best_dtype", lambda _: other)
    assert plan_of(folder).dtype("base") == other
    fresh = plan_of(folder)
    (folder / "run").mkdir()
    (folder / "run" / "engine.json").write_text(json.dumps({"device": "cpu", "bfloat16": begun == "bfloat16"}))
    resumed = plan_of(folder)
    assert resumed.dtype("base") == begun
    assert resumed.recipe("sami").bf16 == (begun == "bfloat16")
    assert prints(resumed, "generate", model="base") == prints(
        plan_of(folder, engine__dtype=begun), "generate", model="base"
    )
    assert fresh.stage("train").fingerprint != resumed.stage("train").fingerprint
    monkeypatch.setattr("harness.models.local.best_dtype", lambda _: begun)
    assert plan_of(folder).model_fingerprints == resumed.model_fingerprints


def test_a_recipe_changed_trains_again(folder: Path) -> None:
    before, after = plan_of(folder), plan_of(folder, models__sami__train__set={"learning_rate": 1e-4})
    assert before.stage("train").fingerprint != after.stage("train").fingerprint
    assert prints(before, "generate", model="base") == prints(after, "generate", model="base")
    assert before.model_fingerprints["sami"] != after.model_fingerprints["sami"]


def test_more_queries_keep_the_rows_there_are(folder: Path) -> None:
    before, after = plan_of(folder), plan_of(folder, tasks__dialogue__limit=8)
    old, new = (prints(p, "generate", model="base", task="dialogue") for p in (before, after))
    assert len(new) == 32
    assert old.items() <= new.items()


@pytest.mark.parametrize(
    ("path", "fields", "expected"),
    [
        ("MODEL", {}, "choice"),
        ("MODEL", {"form": "text"}, "text"),
        ("openai/gpt-4o", {}, "structured"),
        ("openai/gpt-4.1-mini", {}, "structured"),
        ("openai/gpt-5", {"form": "text"}, "structured"),
        ("openai/gpt-4o", {"structured": "off"}, "text"),
        ("openai/gpt-4-0613", {}, "text"),
        ("openai/gpt-4-turbo", {}, "text"),
        ("openai/gpt-3.5-turbo", {}, "text"),
        ("openai/gpt-4o-2024-05-13", {}, "text"),
        ("openai/gpt-4-0613", {"structured": "on"}, "structured"),
        ("anthropic/claude-sonnet-4-5", {}, "structured"),
        ("anthropic/claude-opus-4-1-20250805", {}, "structured"),
        ("anthropic/claude-sonnet-4-20250514", {}, "text"),
        ("anthropic/claude-3-5-haiku-latest", {}, "text"),
    ],
)
def test_how_a_judge_is_asked(path: str, fields: dict[str, Any], expected: str) -> None:
    judge = JudgeSpec(kind="llm", model="judge", **fields)
    assert judge_form(judge, ModelSpec(path=path, style="chat"), load_judge_template("dialogue")) == expected


@pytest.mark.parametrize(
    ("base_url", "variable", "expected"),
    [
        (None, None, "structured"),
        ("https://api.openai.com/v1", None, "structured"),
        ("http://127.0.0.1:8000/v1", None, "text"),
        (None, "http://127.0.0.1:8000/v1", "text"),
    ],
)
def test_another_server_is_held_to_a_schema_only_when_it_is_asked_for(
    base_url: str | None, variable: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    if variable:
        monkeypatch.setenv("OPENAI_BASE_URL", variable)
    model = ModelSpec(path="openai/gpt-4o", style="chat", base_url=base_url)
    judge = JudgeSpec(kind="llm", model="judge")
    assert judge_form(judge, model, load_judge_template("dialogue")) == expected
    on = judge.model_copy(update={"structured": "on"})
    assert judge_form(on, model, load_judge_template("dialogue")) == "structured"


def test_a_judge_prompt_without_the_structured_form_is_asked_for_text() -> None:
    template = load_judge_template("dialogue").model_copy(update={"structured": None})
    judge = JudgeSpec(kind="llm", model="judge")
    assert judge_form(judge, ModelSpec(path="openai/gpt-4o", style="chat"), template) == "text"


def test_only_a_structured_judge_is_given_the_schema() -> None:
    assert judge_sampling("structured", 3).json_schema == VERDICT_SCHEMA
    assert (judge_sampling("text", 3).json_schema, judge_sampling("text", 3).seed) == (None, 3)
    assert list(VERDICT_SCHEMA["properties"]) == ["reasoning", "verdict"]


def test_another_form_of_judging_is_judged_again(folder: Path) -> None:
    before, after = plan_of(folder), plan_of(folder, judges__llm__form="text")
    verdicts = prints(before, "judge", judge="llm")
    assert changed(verdicts, prints(after, "judge", judge="llm")) == verdicts.keys()
    assert prints(before, "judge", judge="verifiable") == prints(after, "judge", judge="verifiable")


def test_a_check_whose_code_changed_is_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = plan_of(folder)
    verdicts, others = (prints(before, "judge", judge=judge) for judge in ("verifiable", "llm"))
    monkeypatch.setattr(harness.plan, "code_of", lambda name: f"code of {name}")
    after = plan_of(folder)
    assert changed(verdicts, prints(after, "judge", judge="verifiable")) == verdicts.keys()
    assert others == prints(after, "judge", judge="llm")


def test_templates_are_read_once_however_many_verdicts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []
    original = harness.plan.load_judge_template
    monkeypatch.setattr(harness.plan, "load_judge_template", lambda name: read.append(name) or original(name))
    assert plan_of(folder).stages
    assert sorted(map(str, read)) == ["dialogue", "summarization"]


# --- What is done, and what it comes to


def test_rows_of_an_older_plan_count_for_nothing(folder: Path) -> None:
    plan = plan_of(folder)
    stage = plan.stage("generate", model="base", task="dialogue")
    fields = {
        "model": "base", "task": "dialogue", "query_id": "q", "constitution_id": "c", "principle_set": "mine",
        "split": "learned", "prompt_hash": "h", "prompt": "p", "n_prompt_tokens": 1, "n_tokens": 1, "truncated": False,
    }  # fmt: skip
    one, two, three = stage.units[:3]
    rows = [
        Generation(id=one.id, fingerprint=one.fingerprint, text="t", finish_reason="stop", **fields),
        Generation(id=two.id, fingerprint="old", text="t", finish_reason="stop", **fields),
        Generation(
            id=three.id, fingerprint=three.fingerprint, text="", finish_reason="error", error="timeout: x", **fields
        ),
    ]
    with RowFile(folder / "run" / stage.path, Generation) as file:
        file.append(rows)
    assert stage.done(folder / "run") == 1
    assert stage.finished_rows(folder / "run").keys() == {one.id}
    assert stage.all_rows(folder / "run").keys() == {one.id, three.id}
    row = next(r for r in describe(plan)["stages"] if r["stage"] == stage.name)
    assert (row["expected"], row["done"]) == (20, 1)


def test_a_description_has_a_row_per_stage(folder: Path) -> None:
    plan = plan_of(folder)
    found = describe(plan)
    assert [row["stage"] for row in found["stages"]] == [stage.name for stage in plan.stages]
    assert {row["kind"] for row in found["stages"]} == {"train", "generate", "likelihood", "judge"}
    assert [row["expected"] for row in found["stages"]] == [stage.expected() for stage in plan.stages]
    assert {row["done"] for row in found["stages"]} == {0}
    assert {row["estimate_s"] for row in found["stages"]} == {found["estimate_s"]} == {None}
    assert found["output"] == "run"
    assert {(row["task"], row["split"], row["n"]) for row in found["precision"]} == {
        (task, split, n)
        for task, n in (("dialogue", 5), ("summarization", 3), ("all", 8))
        for split in ("learned", "held_out")
    }


def test_the_time_is_the_sum_over_stages(folder: Path) -> None:
    plan = plan_of(folder)
    rates = {rate_key(plan, stage): 2.0 for stage in plan.stages}
    found = describe(plan, rates=rates)
    assert found["estimate_s"] == 2.0 * sum(stage.expected() for stage in plan.stages)
    del rates[rate_key(plan, plan.stage("train"))]
    found = describe(plan, rates=rates)
    assert found["estimate_s"] is None, "an unknown part makes the whole unknown"
    assert next(r for r in found["stages"] if r["kind"] == "generate" and r["expected"] == 20)["estimate_s"] == 40.0


def test_a_speed_is_that_of_a_form_and_of_a_batch(folder: Path) -> None:
    def key(kind: str, **fields: Any) -> str:
        plan = plan_of(folder, **fields)
        return rate_key(plan, plan.stage(kind, **({"judge": "llm"} if kind == "judge" else {"model": "base"})))

    far = {"models__judge__path": "openai/gpt-4o", "judges__llm__structured": "off"}
    judges = [
        key("judge"),
        key("judge", judges__llm__form="text"),
        key("judge", judges__llm__form="text", engine__batch_size=4),
        key("judge", **far),
        key("judge", **{**far, "judges__llm__structured": "on"}),
        key("judge", **{**far, "models__judge__max_connections": 256}),
    ]
    assert len(set(judges)) == len(judges)
    assert key("generate") != key("generate", engine__batch_size=4) != key("generate", engine__batch_size=8)
    for alike in ("judge", "likelihood"):  # read without writing, in batches that are always the same
        assert key(alike) == key(alike, engine__batch_size=4)


# --- Prompt templates and what queries are about


def test_a_trained_model_has_its_tasks_template_or_its_recipes(folder: Path) -> None:
    def of(plan: Plan) -> tuple[str, str]:
        return plan.training_templates("sami")["dialogue"].name, plan.model_fingerprints["sami"]

    plain, own = of(plan_of(folder)), of(plan_of(folder, models__sami__train__set={"templates": ["hh-rlhf"]}))
    assert (plain[0], own[0]) == ("dialogue", "hh-rlhf")
    assert plain[1] != own[1]
    both = {"models__sami__train__set": {"templates": ["hh-rlhf"]}, "tasks__dialogue__template": "dialogue"}
    assert of(plan_of(folder, **both)) == plain, "a template named by the task comes first, and alone decides"


def test_a_prefill_is_sampled_from_and_is_no_part_of_the_prompt_that_a_response_follows(folder: Path) -> None:
    plan = plan_of(folder, tasks__summarization__template="tldr", models__sami__train__tasks=["dialogue"])
    units = [u for s in plan.stages if s.kind == "generate" and s.task == "summarization" for u in s.units]
    by_style = {plan.spec.models[s.model].style for s in plan.stages if s.kind == "generate" and s.model}
    assert by_style == {"completion"}
    assert units
    for unit in units:
        assert isinstance(unit, GenerationUnit)
        assert unit.prompt.text.endswith("Summary: The post")
        assert unit.prompt.without_prefill().text.endswith("Summary:")


@pytest.mark.parametrize(("contrast", "same"), [("positive_vs_rest", True), ("positive_vs_intent", False)])
def test_what_queries_are_about_decides_where_a_recipe_goes_by_it(folder: Path, contrast: str, same: bool) -> None:
    from harness.tasks import load_task

    changes = {"contrast": contrast, "principles_per_constitution": 2}
    spec = load_spec(folder / "spec.yaml", {"models.sami.train.set": changes})

    def turned(name: str, task: Any) -> Any:
        data = load_task(name, task)
        return replace(data, train=tuple(replace(query, intent="other") for query in data.train))

    before, after = Plan(spec), Plan(spec, load=turned)
    assert (before.model_fingerprints["sami"] == after.model_fingerprints["sami"]) == same
