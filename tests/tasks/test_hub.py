"""The hub's data sets: local copies in its layouts, the hub out of reach, and the shared real data."""

from __future__ import annotations

import os
import time
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest
from task_rows import Write, chosen

from harness.tasks import TaskSpec, load_task
from harness.tasks.hh_rlhf import first_human_turn
from sami_train.errors import UserError


def problem(spec: TaskSpec) -> str:
    with pytest.raises(UserError) as caught:
        load_task("mine", spec)
    message = str(caught.value)
    assert "\n" not in message
    return message


# hh-rlhf


@pytest.mark.parametrize(
    ("dialogue", "turn"),
    [
        ("\n\nHuman: Hi?\n\nAssistant: Hello.\n\nHuman: Bye.", "Hi?"),
        ("\n\nHuman: Two\n\nparagraphs?\n\nAssistant: Yes.", "Two\n\nparagraphs?"),
        ("\n\nHuman: No answer", "No answer"),
        ("\n\nHuman: Hi?\n\nAssistant:\n\nHuman: Hello?\n\nAssistant: Hi.", "Hi?"),
        ("\n\nHuman: Twice?\n\nHuman: Yes, twice.\n\nAssistant: Fine.", "Twice?"),
        ("\n\nHuman: What does 'Assistant: x' mean?\n\nAssistant: A turn.", "What does 'Assistant: x' mean?"),
        ("\n\nHuman: \n\nAssistant: What?", None),
        ("\n\nAssistant: I start.\n\nHuman: Do you?", None),
        ("Just a text.", None),
        ("", None),
        ("\r\n\r\nHuman: E1?\r\n\r\nAssistant: hello there\r\n\r\nHuman: more", "E1?"),
        ("\r\rHuman: Two\r\rparts?\r\rAssistant: hello", "Two\n\nparts?"),
        ([{"role": "user", "content": " Hi? "}, {"role": "assistant", "content": "Hello."}], "Hi?"),
        ([{"role": "system", "content": "Be kind."}, {"role": "human", "content": "Hi?"}], "Hi?"),
        ([{"role": "user", "content": [{"type": "text", "text": "Hi?"}]}], "Hi?"),
        ([{"role": "assistant", "content": "I start."}, {"role": "user", "content": "Do you?"}], None),
        ([{"role": "user", "content": 7}], None),
        ([], None),
        (None, None),
    ],
)
def test_the_first_human_turn(dialogue: object, turn: str | None) -> None:
    assert first_human_turn(dialogue) == turn


def test_both_subsets_alternate_and_the_rest_follows(hh_folder: Path) -> None:
    data = load_task("hh", TaskSpec(task="hh-rlhf", source=str(hh_folder)))
    assert [query.id for query in data.evaluation] == [
        "helpful-test-0",
        "harmless-test-0",
        "helpful-test-1",
        "harmless-test-1",
        "helpful-test-2",
        "helpful-test-3",
    ]
    assert data.evaluation[1].text == "harmless test 0?"
    assert [query.intent for query in data.evaluation] == [query.id.split("-")[0] for query in data.evaluation]
    assert len(data.train) == 8
    assert data.source == f"{hh_folder} (helpful-base, harmless-base)"


def test_one_subset_of_a_local_copy(hh_folder: Path) -> None:
    data = load_task("hh", TaskSpec(task="hh-rlhf", source=str(hh_folder), subset="harmless-base"))
    assert [query.text for query in data.evaluation] == ["harmless test 0?", "harmless test 1?"]


def test_a_local_copy_without_train_has_no_training_queries(hh_folder: Path) -> None:
    (hh_folder / "helpful-base/train.jsonl.gz").unlink()
    spec = TaskSpec(task="hh-rlhf", source=str(hh_folder), subset="helpful-base")
    assert load_task("hh", spec).train == ()
    message = problem(TaskSpec(task="hh-rlhf", train_source=str(hh_folder), subset="helpful-base"))
    assert "(train split): there is no such split, only test" in message


def test_the_training_part_from_another_folder(hh_folder: Path, write: Write, tmp_path: Path) -> None:
    write("other/helpful-base/train.jsonl.gz", [chosen("Something else?"), chosen("helpful test 0?")])
    spec = TaskSpec(task="hh-rlhf", source=str(hh_folder), train_source=str(tmp_path / "other"), subset="helpful-base")
    data = load_task("hh", spec)
    assert [query.text for query in data.train] == ["Something else?"]
    assert data.dropped == {"train: text is evaluated": 1}


def test_rows_without_a_first_human_turn_are_counted_and_ids_stay(write: Write, tmp_path: Path) -> None:
    write("hh/helpful-base/test.jsonl.gz", [{"chosen": "\n\nAssistant: Hm.", "rejected": ""}, chosen("Fine?")])
    data = load_task("hh", TaskSpec(task="hh-rlhf", source=str(tmp_path / "hh"), subset="helpful-base"))
    assert [query.id for query in data.evaluation] == ["helpful-test-1"]
    assert data.dropped == {"evaluation: no first human turn": 1}


def test_a_folder_with_no_usable_row_says_why(write: Write, tmp_path: Path) -> None:
    write("hh/helpful-base/test.jsonl.gz", [{"chosen": "Hm.", "rejected": ""}])
    message = problem(TaskSpec(task="hh-rlhf", source=str(tmp_path / "hh"), subset="helpful-base"))
    assert "no evaluation queries (left out: 1 no first human turn)" in message


def test_a_copy_of_another_data_set_is_refused(
    write: Write, tmp_path: Path, tldr_folder: Path, hh_folder: Path
) -> None:
    write("odd/helpful-base/test.jsonl.gz", [{"choosen": "x"}])
    spec = TaskSpec(task="hh-rlhf", source=str(tmp_path / "odd"), subset="helpful-base")
    assert "the rows have no 'chosen'; did you mean 'choosen'?" in problem(spec)
    assert "no folder 'helpful-base'" in problem(TaskSpec(task="hh-rlhf", source=str(tldr_folder)))
    assert "no folder 'comparisons'" in problem(TaskSpec(task="tldr", source=str(hh_folder)))


def test_a_missing_subset_of_a_local_copy_names_the_one_there_is(write: Write, tmp_path: Path) -> None:
    write("hh/harmless-base/test.jsonl.gz", [chosen("A?")])
    assert "set subset: harmless-base" in problem(TaskSpec(task="hh-rlhf", source=str(tmp_path / "hh")))


def test_a_broken_local_copy_is_one_sentence(write: Write, tmp_path: Path) -> None:
    write("hh/helpful-base/test.jsonl.gz", ["{broken"])
    spec = TaskSpec(task="hh-rlhf", source=str(tmp_path / "hh"), subset="helpful-base")
    assert f"{tmp_path / 'hh' / 'helpful-base'}: this local copy" in problem(spec)
    (tmp_path / "hh/helpful-base/test.jsonl.gz").write_bytes(b"not gzip")
    assert "cannot be read" in problem(spec)
    (tmp_path / "hh/helpful-base/test.jsonl.gz").unlink()
    assert "cannot be read" in problem(spec)


# tldr


def test_posts_of_a_local_copy(tldr_folder: Path) -> None:
    data = load_task("tldr", TaskSpec(task="tldr", source=str(tldr_folder)))
    assert [query.text for query in data.evaluation] == ["Seen post.", "Other post."]
    assert [query.text for query in data.train] == ["First post.", "Second  post."]
    assert all(query.id.startswith("tldr-") for query in data.evaluation)
    assert data.dropped == {
        "evaluation: duplicate text": 1,
        "evaluation: no post": 1,
        "train: duplicate text": 1,
        "train: text is evaluated": 1,
    }


def test_a_local_copy_of_posts_with_one_split(tldr_folder: Path) -> None:
    (tldr_folder / "comparisons/train/0000.parquet").unlink()
    assert load_task("tldr", TaskSpec(task="tldr", source=str(tldr_folder))).train == ()
    message = problem(TaskSpec(task="tldr", train_source=str(tldr_folder)))
    assert "there is no train split, only validation" in message


# the hub out of reach


@pytest.mark.parametrize("task", ["hh-rlhf", "tldr"])
def test_the_hub_offline_is_one_quick_sentence(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    start = time.monotonic()
    message = problem(TaskSpec(task=task, source="hub"))
    assert time.monotonic() - start < 5
    assert "cannot be had from the Hugging Face hub" in message
    assert "use source: bundled, or the path of a local copy" in message


def test_a_local_copy_is_read_offline_and_all_is_put_back(hh_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    seen: list[tuple[object, ...]] = []
    real = datasets.load_dataset

    def state() -> tuple[object, ...]:
        offline = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
        return (os.environ.get("HF_HUB_OFFLINE"), *offline, datasets.are_progress_bars_disabled())

    def watched(*args: object, **kwargs: object) -> object:
        seen.append(state())
        return real(*args, **kwargs)

    before = state()
    monkeypatch.setattr(datasets, "load_dataset", watched)
    load_task("hh", TaskSpec(task="hh-rlhf", source=str(hh_folder)))
    assert set(seen) == {("1", True, True, True)}
    assert state() == before
    (hh_folder / "helpful-base/test.jsonl.gz").write_bytes(b"broken")
    problem(TaskSpec(task="hh-rlhf", source=str(hh_folder)))
    assert state() == before


@pytest.mark.parametrize(
    ("task", "revision", "asked"),
    [
        ("hh-rlhf", None, {("Anthropic/hh-rlhf", "helpful-base", None), ("Anthropic/hh-rlhf", "harmless-base", None)}),
        ("tldr", None, {("openai/summarize_from_feedback", "comparisons", "refs/convert/parquet")}),
        ("tldr", "abc", {("openai/summarize_from_feedback", "comparisons", "abc")}),
    ],
)
def test_what_is_asked_of_the_hub(
    task: str,
    revision: str | None,
    asked: set[object],
    hh_folder: Path,
    tldr_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The hub's answer is played by local folders of the same layout."""
    seen = set()
    real = datasets.load_dataset

    def from_the_copy(repo: str, *, data_dir: str, revision: str | None) -> object:
        seen.add((repo, data_dir, revision))
        return real(str(hh_folder if task == "hh-rlhf" else tldr_folder), data_dir=data_dir)

    monkeypatch.setattr(datasets, "load_dataset", from_the_copy)
    data = load_task("x", TaskSpec(task=task, source="hub", revision=revision))
    assert seen == asked
    assert data.source.startswith(f"{next(iter(seen))[0]} on the hub")
    assert data.train
    assert data.evaluation


# the shared real data


def test_the_real_local_copy_gives_the_queries_that_the_paper_used(shared_data: Path) -> None:
    copy = TaskSpec(task="hh-rlhf", source=str(shared_data / "hh-rlhf"), subset="harmless-base")
    data = load_task("hh", copy)
    assert (len(data.evaluation), data.train, data.dropped) == (2178, (), {"evaluation: duplicate text": 134})
    extracted = load_task(
        "hh", TaskSpec(task="hh-rlhf", source=str(shared_data / "hh-rlhf-first-turns/harmless-test.jsonl"))
    )
    texts = {query.id: query.text for query in data.evaluation}
    differing = [query for query in extracted.evaluation if texts.get(query.id) != query.text]
    assert len(extracted.evaluation) == 248
    assert all(query.text.removesuffix("\n\nAssistant:") == texts[query.id] for query in differing)
    assert len(differing) == 5


@pytest.mark.parametrize(
    ("subset", "evaluation", "train", "overlap"), [("helpful", 250, 1010, 9), ("harmless", 248, 1692, 22)]
)
def test_the_real_first_turns(shared_data: Path, subset: str, evaluation: int, train: int, overlap: int) -> None:
    folder = shared_data / "hh-rlhf-first-turns"
    source, train_source = str(folder / f"{subset}-test.jsonl"), str(folder / f"{subset}-train.jsonl")
    data = load_task("hh", TaskSpec(task="hh-rlhf", source=source, train_source=train_source))
    assert (len(data.evaluation), len(data.train)) == (evaluation, train)
    assert data.dropped["train: text is evaluated"] == overlap


def test_the_real_posts(shared_data: Path) -> None:
    source, train_source = shared_data / "tldr/validation-posts.jsonl", shared_data / "tldr/train-posts.jsonl"
    data = load_task("tldr", TaskSpec(task="tldr", source=str(source), train_source=str(train_source), limit=250))
    assert (len(data.evaluation), len(data.train), data.dropped) == (250, 32, {})
