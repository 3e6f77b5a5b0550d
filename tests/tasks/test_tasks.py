"""What holds for every task: registry, specification, files, duplicates, overlap, limits, hash."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from task_rows import Write

from harness.tasks import LoadedParts, TaskSpec, hash_queries, list_tasks, load_task
from sami_train.data import Query
from sami_train.errors import UserError


def ids(queries: tuple[Query, ...]) -> list[str]:
    return [query.id for query in queries]


def posts(*texts: str, **more: Any) -> list[dict[str, Any]]:
    return [{"id": f"p{i}", "post": text, **more} for i, text in enumerate(texts)]


def problem(spec: TaskSpec) -> str:
    with pytest.raises(UserError) as caught:
        load_task("mine", spec)
    message = str(caught.value)
    assert "\n" not in message
    return message


# registry and specification


def test_the_known_tasks_are_listed() -> None:
    assert {"hh-rlhf", "tldr"} <= set(list_tasks())


def test_an_unknown_task_names_the_nearest() -> None:
    assert "did you mean 'hh-rlhf'?" in problem(TaskSpec(task="hh-rhlf"))


def test_importing_the_tasks_does_not_import_datasets() -> None:
    code = "import sys, harness.tasks, harness.tasks.hh_rlhf, harness.tasks.tldr; sys.exit('datasets' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_the_bundled_samples_do_not_import_datasets() -> None:
    code = (
        "import sys; from harness.tasks import *; load_task('t', TaskSpec(task='hh-rlhf')); "
        "load_task('t', TaskSpec(task='tldr')); sys.exit('datasets' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def fake_loader(spec: TaskSpec) -> LoadedParts:
    same = Query("e1", "Same text", "dialogue")
    return LoadedParts("dialogue", [Query("t1", "Same  text", "dialogue")], [same, same], "nowhere", {"train: odd": 3})


def entry_point(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    points = metadata.EntryPoints([metadata.EntryPoint(name, value, "harness.tasks")])
    monkeypatch.setattr(metadata, "entry_points", lambda group: points.select(group=group))


def test_another_package_adds_a_task_and_gets_the_same_cleaning(monkeypatch: pytest.MonkeyPatch) -> None:
    entry_point(monkeypatch, "riddles", f"{__name__}:fake_loader")
    data = load_task("mine", TaskSpec(task="riddles"))
    assert (data.name, data.kind, ids(data.evaluation), data.train) == ("mine", "dialogue", ["e1"], ())
    assert data.dropped == {"evaluation: duplicate text": 1, "train: odd": 3, "train: text is evaluated": 1}
    assert "riddles" in list_tasks()


def test_a_task_of_another_package_that_does_not_load_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    entry_point(monkeypatch, "riddles", "no_such_package_here:load")
    assert "no_such_package_here" in problem(TaskSpec(task="riddles"))


@pytest.mark.parametrize(
    "fields",
    [
        {"task": "tldr", "subset": "both"},
        {"task": "tldr", "revision": "main"},
        {"task": "tldr", "limit": 0},
        {"task": "tldr", "train_limit": -1},
        {"task": "hh-rlhf", "subset": "helpful"},
        {"task": "hh-rlhf", "colour": "red"},
    ],
)
def test_a_specification_that_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TaskSpec(**fields)


# bundled samples


@pytest.mark.parametrize(
    ("subset", "train", "evaluation"),
    [(None, 320, 120), ("both", 320, 120), ("helpful-base", 220, 80), ("harmless-base", 100, 40)],
)
def test_the_bundled_dialogue_sample(subset: Any, train: int, evaluation: int) -> None:
    data = load_task("hh", TaskSpec(task="hh-rlhf", subset=subset))
    assert (data.kind, len(data.train), len(data.evaluation)) == ("dialogue", train, evaluation)
    assert data.dropped == {}
    assert data.source == "the bundled samples (dialogue.jsonl)"


def test_a_limit_on_the_bundled_dialogue_sample_takes_as_many_of_each_intent() -> None:
    limited = load_task("hh", TaskSpec(task="hh-rlhf", limit=10))
    helpful = load_task("hh", TaskSpec(task="hh-rlhf", subset="helpful-base"))
    assert sum(query in helpful.evaluation for query in limited.evaluation) == 5


def test_queries_know_what_they_are_about(write: Write) -> None:
    bundled = load_task("hh", TaskSpec(task="hh-rlhf"))
    assert {query.intent for query in (*bundled.train, *bundled.evaluation)} == {"helpful", "harmless"}
    harmless = load_task("hh", TaskSpec(task="hh-rlhf", subset="harmless-base"))
    assert {query.intent for query in harmless.train} == {"harmless"}
    rows = [{"query": "A?", "intent": "helpful"}, {"query": "B?"}]
    own = load_task("x", TaskSpec(task="hh-rlhf", source=str(write("a.jsonl", rows))))
    assert [query.intent for query in own.evaluation] == ["helpful", ""]


def test_the_bundled_posts() -> None:
    data = load_task("tldr", TaskSpec(task="tldr"))
    assert (data.kind, len(data.train), len(data.evaluation)) == ("summarization", 40, 60)
    assert data.dropped == {}


# files


def test_a_file_without_parts_is_evaluation_for_source_and_train_for_train_source(write: Write) -> None:
    source, train = write("a.jsonl", posts("One.", "Two.")), write("b.jsonl", [{"id": "t", "post": "Three."}])
    assert load_task("x", TaskSpec(task="tldr", source=str(source))).train == ()
    data = load_task("x", TaskSpec(task="tldr", source=str(source), train_source=str(train)))
    assert (ids(data.evaluation), ids(data.train)) == (["p0", "p1"], ["t"])
    assert data.source == f"{source}; training: {train}"


def test_rows_with_a_part_go_by_it(write: Write) -> None:
    rows = [{"id": "a", "part": "train", "query": "A?"}, {"id": "b", "part": "evaluation", "query": "B?"}]
    path = str(write("q.jsonl", [*rows, {"id": "c", "query": "C?"}]))
    data = load_task("x", TaskSpec(task="hh-rlhf", source=path))
    assert (ids(data.evaluation), ids(data.train)) == (["b", "c"], ["a"])
    other = str(write("e.jsonl", [{"id": "e", "query": "E?"}]))
    assert ids(load_task("x", TaskSpec(task="hh-rlhf", source=other, train_source=path)).train) == ["a", "c"]


def test_the_training_queries_may_come_from_the_bundled_samples(write: Write) -> None:
    source = str(write("e.jsonl", posts("One.")))
    assert len(load_task("x", TaskSpec(task="tldr", source=source, train_source="bundled")).train) == 40


def test_a_json_file_holds_one_list(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_text(json.dumps([{"query": "A?"}, {"query": "B?"}]))
    assert [q.text for q in load_task("x", TaskSpec(task="hh-rlhf", source=str(path))).evaluation] == ["A?", "B?"]
    path.write_text(json.dumps([{"query": "A?"}, "B?"]))
    assert f"{path}: item 2" in problem(TaskSpec(task="hh-rlhf", source=str(path)))
    path.write_text('{"query": "A?"}\n{"query": "B?"}\n')
    assert f"{path}:2" in problem(TaskSpec(task="hh-rlhf", source=str(path)))


def test_rows_without_an_id_get_one_from_their_text(write: Write) -> None:
    first = load_task("x", TaskSpec(task="tldr", source=str(write("a.jsonl", [{"post": "One."}, {"post": "Two."}]))))
    second = load_task("x", TaskSpec(task="tldr", source=str(write("b.jsonl", [{"post": "Two."}, {"post": " One. "}]))))
    assert ids(first.evaluation) == ids(second.evaluation)[::-1]
    assert all(name.startswith("tldr-") for name in ids(first.evaluation))


def test_an_id_of_zero_is_an_id(write: Write) -> None:
    path = str(write("a.jsonl", [{"id": 0, "post": "One."}]))
    assert ids(load_task("x", TaskSpec(task="tldr", source=path)).evaluation) == ["0"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{not json", "not JSON"),
        ("[1]", "not a JSON object"),
        ({"id": "x", "post": "  "}, "'post' must be a text"),
        ({"id": "x", "post": 7}, "'post' must be a text"),
        ({"id": "x", "posts": "Hi."}, "did you mean 'posts'?"),
        ({"id": ["x"], "post": "Hi."}, "'id' must be"),
        ({"id": "x", "post": "Hi.", "part": "trian"}, "did you mean 'train'?"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(write: Write, row: Any, said: str) -> None:
    path = write("bad.jsonl", [{"id": "fine", "post": "Fine."}, "", row])
    message = problem(TaskSpec(task="tldr", source=str(path)))
    assert message.startswith(f"{path}:3: ")
    assert said in message


@pytest.mark.parametrize("wrap", [False, True], ids=["lines", "list"])
@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"post": "Smile \\ud83d now"}', "half of a character"),
        (f'{{"id": {"9" * 5000}, "post": "A."}}', "too many digits"),
        ("[" * 100_000, "nested too deep"),
    ],
    ids=["half", "digits", "deep"],
)
def test_a_list_and_lines_refuse_alike(write: Write, row: str, said: str, wrap: bool) -> None:
    path = write("bad.json" if wrap else "bad.jsonl", [f"[{row}]" if wrap else row])
    assert said in problem(TaskSpec(task="tldr", source=str(path)))


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text('\ufeff[{"query": "A?"}]', encoding="utf-8")
    assert len(load_task("x", TaskSpec(task="hh-rlhf", source=str(tmp_path / "q.json"))).evaluation) == 1


def test_one_id_for_two_texts_is_an_error(write: Write) -> None:
    path = write("bad.jsonl", [{"id": "a", "post": "One."}, {"id": "a", "post": "Two."}])
    message = problem(TaskSpec(task="tldr", source=str(path)))
    assert message.startswith(f"{path}:2: the id 'a' names two different texts (the other is {path}:1)")


def test_a_file_of_the_wrong_kind_is_one_sentence(write: Write) -> None:
    queries, summaries = write("q.jsonl", [{"query": "A?"}]), write("p.jsonl", [{"post": "A."}])
    assert f"{queries}:1: this row has a 'query' (dialogue)" in problem(TaskSpec(task="tldr", source=str(queries)))
    assert f"{summaries}:1: this row has a 'post'" in problem(TaskSpec(task="hh-rlhf", source=str(summaries)))


def test_a_subset_needs_rows_that_name_their_intent(write: Write) -> None:
    rows = [{"id": "a", "intent": "helpful", "query": "A?"}, {"id": "b", "intent": "harmless", "query": "B?"}]
    path = str(write("q.jsonl", rows))
    assert ids(load_task("x", TaskSpec(task="hh-rlhf", source=path, subset="harmless-base")).evaluation) == ["b"]
    bare = str(write("bare.jsonl", [{"query": "A?"}]))
    assert "leave 'subset' out" in problem(TaskSpec(task="hh-rlhf", source=bare, subset="harmless-base"))
    odd = str(write("odd.jsonl", [{"query": "A?", "intent": "helpfull"}]))
    assert "did you mean 'helpful'?" in problem(TaskSpec(task="hh-rlhf", source=odd))


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "did you mean 'bundled'?" in problem(TaskSpec(task="tldr", source="bundle"))
    assert "no-such.jsonl" in problem(TaskSpec(task="tldr", source=str(tmp_path / "no-such.jsonl")))


def test_a_file_of_another_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("query\nA?\n")
    assert ".jsonl and .json" in problem(TaskSpec(task="hh-rlhf", source=str(tmp_path / "q.csv")))


def test_a_train_source_without_training_queries_is_an_error(write: Write) -> None:
    source = str(write("a.jsonl", posts("One.")))
    other = str(write("b.jsonl", posts("Two.", part="evaluation")))
    assert "no training queries" in problem(TaskSpec(task="tldr", source=source, train_source=other))


def test_a_source_without_evaluation_queries_is_an_error(write: Write) -> None:
    source = str(write("a.jsonl", posts("One.", part="train")))
    assert "no evaluation queries" in problem(TaskSpec(task="tldr", source=source))


# duplicates, overlap, limits, hash


def test_duplicates_are_dropped_and_counted_with_white_space_folded(write: Write) -> None:
    path = str(write("a.jsonl", posts("One two.", "One  two.\n", "Three.", "One two.")))
    data = load_task("x", TaskSpec(task="tldr", source=path))
    assert ids(data.evaluation) == ["p0", "p2"]
    assert data.dropped == {"evaluation: duplicate text": 2}


def test_no_training_query_is_also_evaluated(write: Write) -> None:
    source = str(write("a.jsonl", posts("Seen.", "Also  seen.")))
    rows = [
        {"id": "t0", "post": "Also seen."},
        {"id": "p0", "post": "New, but its id is taken."},
        {"id": "t1", "post": "New."},
    ]
    data = load_task("x", TaskSpec(task="tldr", source=source, train_source=str(write("b.jsonl", rows))))
    assert ids(data.train) == ["t1"]
    assert data.dropped == {"train: id is evaluated": 1, "train: text is evaluated": 1}


def test_the_limit_of_the_evaluation_does_not_let_its_other_queries_into_training(write: Write) -> None:
    source = str(write("a.jsonl", posts("One.", "Two.")))
    train = str(write("b.jsonl", [{"id": "t0", "post": "Two."}, {"id": "t1", "post": "New."}]))
    data = load_task("x", TaskSpec(task="tldr", source=source, train_source=train, limit=1))
    assert (ids(data.evaluation), ids(data.train)) == (["p0"], ["t1"])


def test_limits_take_the_first_after_duplicates(write: Write) -> None:
    source = str(write("a.jsonl", posts("One.", "One.", "Two.", "Three.")))
    train = str(
        write("b.jsonl", [{"id": f"t{i}", "post": f"{text}."} for i, text in enumerate(["Two", "A", "A", "B", "C"])])
    )
    data = load_task("x", TaskSpec(task="tldr", source=source, train_source=train, limit=2, train_limit=2))
    assert (ids(data.evaluation), ids(data.train)) == (["p0", "p2"], ["t1", "t3"])


def test_a_limit_above_what_there_is_says_how_many_there_are(write: Write) -> None:
    source = str(write("a.jsonl", posts("One.", "One.", "Two.")))
    message = problem(TaskSpec(task="tldr", source=source, limit=3))
    assert f"'limit' asks for 3 evaluation queries, but {source} has 2 (left out: 1 duplicate text)" in message
    assert "has 0; name a 'train_source'" in problem(TaskSpec(task="tldr", source=source, train_limit=3))


def test_the_hash_follows_ids_and_texts_that_are_used_and_nothing_else(write: Write) -> None:
    def load(name: str, rows: list[dict[str, Any]], **fields: Any) -> Any:
        return load_task(name, TaskSpec(task="tldr", source=str(write(f"{name}.jsonl", rows)), **fields))

    base = load("a", posts("One.", "Two."))
    assert load("b", posts("One.", "Two.", "Three.", topic="pets"), limit=2).hash == base.hash
    assert load("c", posts("One.", "Two!")).hash != base.hash
    assert load("d", [{"id": "q", "post": "One."}, {"id": "p1", "post": "Two."}]).hash != base.hash
    assert load("e", posts("One.", "Two."), limit=1).hash != base.hash
    more = load("f", posts("One.", "Two."), train_source="bundled")
    assert more.hash != base.hash
    assert more.evaluation_hash == base.evaluation_hash == hash_queries(base.evaluation)
    assert more.train_hash != base.train_hash
