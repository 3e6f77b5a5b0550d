"""What a run's folder says of its responses: their facts, and the examples to read; rows are written, no model is run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.plan import GenerationUnit, Plan, Stage
from harness.rescore import EXAMPLES, SHOWN_CHARACTERS, examples, replaced, score_inputs
from harness.rows import Generation
from harness.runner import _record
from harness.score import ResponseKey
from harness.spec import load_spec
from harness.store import RowFile, write_json
from sami_train.copying import copied_share

Text = Callable[[str, GenerationUnit], dict[str, Any]]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    limits = {"tasks.dialogue.limit": 6, "tasks.summarization.limit": 3, "output": str(tmp_path / "run")}
    return Plan(load_spec("quickstart", limits))


def units(plan: Plan) -> list[tuple[Stage, GenerationUnit]]:
    return [(s, u) for s in plan.stages if s.kind == "generate" for u in s.units if isinstance(u, GenerationUnit)]


def write(plan: Plan, text: Text) -> None:
    """A row for every response of the plan, with what `text` says of it."""
    rows: dict[Path, list[Generation]] = {}
    for stage, unit in units(plan):
        fields = {
            "id": unit.id, "fingerprint": unit.fingerprint, "model": stage.model, "task": unit.task,
            "query_id": unit.query.id, "constitution_id": unit.constitution.id, "principle_set": unit.principle_set,
            "split": unit.split, "epoch": unit.epoch, "prompt_hash": "h", "prompt": "p", "finish_reason": "stop",
            "n_prompt_tokens": 1, "n_tokens": 1, "truncated": False, **text(stage.model or "", unit),
        }  # fmt: skip
        rows.setdefault(plan.folder / stage.path, []).append(Generation.model_validate(fields))
    for path, found in rows.items():
        with RowFile(path, Generation) as file:
            file.append(found)


def key(stage: Stage, unit: GenerationUnit) -> ResponseKey:
    place = (unit.task, unit.principle_set, unit.split, unit.query.id, unit.constitution.id, unit.epoch)
    return ResponseKey(stage.model or "", *place)


# --- Facts


def test_a_copy_counts_under_its_own_constitution_alone(plan: Plan) -> None:
    """Every response is the first principle of the run's first constitution."""
    copy = units(plan)[0][1].constitution.sentences()[0]
    write(plan, lambda *_: {"text": copy})
    facts = score_inputs(plan).facts
    found = {True: 0, False: 0}
    for stage, unit in units(plan):
        own = copied_share(copy, unit.constitution.sentences())
        assert facts[key(stage, unit)].copied == own
        found[own == 1] += 1
    assert min(found.values()) > 0


def test_an_echo_of_the_query_is_one_in_dialogue_alone(plan: Plan) -> None:
    write(plan, lambda _, unit: {"text": unit.query.text})
    facts = score_inputs(plan).facts
    assert len(facts) == len(units(plan))
    for stage, unit in units(plan):
        assert facts[key(stage, unit)].repeats_query == (1.0 if unit.task == "dialogue" else 0.0)


def test_how_each_response_ended_is_known(plan: Plan) -> None:
    ends: dict[str, dict[str, Any]] = {
        "base": {"text": "It ran on.", "tail": "\n2. More"},
        "sami": {"text": "It was cut", "finish_reason": "length"},
        "instruct": {"text": " "},
    }
    write(plan, lambda model, _: ends[model])
    inputs = score_inputs(plan)
    for place, facts in inputs.facts.items():
        model = place.model
        assert (facts.ran_on, facts.cut, facts.words == 0) == (model == "base", model == "sami", model == "instruct")


# --- Examples


def named(model: str, unit: GenerationUnit) -> dict[str, Any]:
    return {"text": f"{model} of {unit.query.id} under {unit.constitution.id}. " + "word " * 200}


def test_examples_are_of_the_first_queries_of_the_order_and_take_splits_in_turn(plan: Plan) -> None:
    write(plan, named)
    found = examples(plan)
    assert len(found) == EXAMPLES
    assert [one["split"] for one in found] == ["held_out", "learned", "held_out"]
    places = [(one["task"], one["query_id"]) for one in found]
    assert len(set(places)) == EXAMPLES
    rest = list(plan.order)
    for one in found:  # the first query left that has a response of this split
        first = next(p for p in rest if any(u.place == p and u.split == one["split"] for _, u in units(plan)))
        assert (one["task"], one["query_id"]) == first
        rest.remove(first)


def test_an_example_has_the_responses_of_every_model_to_the_same_prompt(plan: Plan) -> None:
    write(plan, named)
    for one in examples(plan):
        assert set(one["responses"]) == {"base", "sami", "instruct"}
        (unit, *_) = [
            u
            for _, u in units(plan)
            if (u.task, u.query.id, u.split) == (one["task"], one["query_id"], one["split"])
            and one["responses"]["base"]["text"].startswith(named("base", u)["text"][:SHOWN_CHARACTERS])
        ]
        assert one["constitution"] == unit.constitution.lines()
        assert one["query"] == unit.query.text[:SHOWN_CHARACTERS]
        for model, response in one["responses"].items():
            text = named(model, unit)["text"]
            assert response["text"] == text[:SHOWN_CHARACTERS] != text
            assert (response["ran_on"], response["cut"]) == (False, False)
            assert response["copied"] == copied_share(text, unit.constitution.sentences())


def test_an_example_needs_all_models(plan: Plan) -> None:
    """One model has answered nothing but its last query yet."""
    last = {"dialogue": "", "summarization": ""}
    for _, unit in units(plan):
        last[unit.task] = unit.query.id
    write(plan, named)
    for stage in {stage.path: stage for stage, _ in units(plan) if stage.model == "sami"}.values():
        file = plan.folder / stage.path
        rows = [row for row in RowFile(file, Generation).rows() if row.query_id == last[row.task]]
        file.unlink()
        with RowFile(file, Generation) as kept:
            kept.append(rows)
    assert {(one["task"], one["query_id"]) for one in examples(plan)} == set(last.items())


def test_without_responses_there_is_no_example(plan: Plan) -> None:
    assert examples(plan) == []


# --- What a run replaces


def test_another_specification_in_a_finished_folder_says_what_it_replaces(plan: Plan) -> None:
    """Another seed silently replaced the results of the first one."""
    assert replaced(plan) is None
    _record(plan)
    assert replaced(plan) is None, "it was begun, and there are no results yet"
    write_json(plan.folder / "results.json", {"spec_fingerprint": plan.fingerprint})
    assert replaced(plan) is None, "the same specification goes on"
    other = Plan(plan.spec.model_copy(update={"seed": 7}))
    assert "made with another seed (0 → 7); they are replaced" in str(replaced(other))


def test_results_of_other_models_are_told_without_fields(plan: Plan) -> None:
    _record(plan)
    write_json(plan.folder / "results.json", {"spec_fingerprint": "that of other weights"})
    assert "made otherwise; they are replaced" in str(replaced(plan))
