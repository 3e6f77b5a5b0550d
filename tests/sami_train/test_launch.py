"""A training in processes of its own: two over gloo give what one gives, and what goes wrong is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import sami_train.launch
from sami_train.config import Recipe
from sami_train.constitutions import load_principle_set
from sami_train.data import Query
from sami_train.errors import UserError
from sami_train.launch import LOG, cores, train_on_many
from sami_train.models import Source
from sami_train.prompts import load_template
from sami_train.trainer import TrainingData, train

RECIPE: dict[str, Any] = {
    "name": "tiny", "iterations": 2, "batch_size": 3, "batches_at_start": 1, "batch_increment": 1, "max_new_tokens": 6,
    "max_prompt_tokens": 400, "learning_rate": 1e-3, "adam_epsilon": 1e-3, "sampling_batch_size": 4,
}  # fmt: skip


def data() -> TrainingData:
    queries = [Query(f"q{n}", f"What is {n} and how far is it?", "dialogue") for n in range(20)]
    learned = load_principle_set("verifiable").select("dialogue", "learned")
    return TrainingData(queries, {"dialogue": learned}, {"dialogue": load_template("dialogue")}, {"queries": []})


@pytest.fixture
def source(tiny_model: Path) -> Source:
    return Source("folder", str(tiny_model))


def test_two_processes_train_as_one(source: Source, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    recipe, events, notes = Recipe.model_validate(RECIPE), [], []
    many = train_on_many(
        recipe, source, data(), tmp_path / "many", devices=2, kind="cpu",
        progress=lambda *event: events.append(event), note=notes.append,
    )  # fmt: skip
    one = train(recipe, source, data(), tmp_path / "one")
    assert [row["steps"] for row in many["iterations"]] == [row["steps"] for row in one["iterations"]] == [1, 2]
    for iteration in (1, 2):
        a, b = (load_file(tmp_path / n / f"iteration-{iteration}/model/model.safetensors") for n in ("one", "many"))
        assert max((a[name] - b[name]).abs().max().item() for name in a) <= 1e-5
    assert {what for what, *_ in events} >= {"iteration 1 responses", "iteration 2 steps"}
    assert all(isinstance(done, int) and isinstance(total, int) for _, done, total, _ in events)
    again = train_on_many(recipe, source, data(), tmp_path / "many", devices=2, kind="cpu")
    assert again == many


@pytest.mark.parametrize(("threads", "each"), [(5, "2"), (1, "1"), (None, str(max(1, cores() // 2)))])
def test_the_processes_share_the_threads(
    threads: int | None, each: str, source: Source, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    told: list[str] = []
    real = subprocess.Popen

    def popen(*arguments: Any, **options: Any) -> Any:
        told.append(options["env"]["OMP_NUM_THREADS"])
        return real(*arguments, **options)

    monkeypatch.setattr(sami_train.launch.subprocess, "Popen", popen)
    refused = Recipe.model_validate({**RECIPE, "batch_size": 50})  # before anything is trained
    with pytest.raises(UserError, match="needs 50 queries"):
        train_on_many(refused, source, data(), tmp_path, devices=2, kind="cpu", threads=threads)
    assert told == [each, each]


def test_what_training_refuses_is_told(source: Source, tmp_path: Path) -> None:
    recipe = Recipe.model_validate({**RECIPE, "batch_size": 50})
    with pytest.raises(UserError, match="needs 50 queries"):
        train_on_many(recipe, source, data(), tmp_path, devices=2, kind="cpu")


def test_a_process_that_is_killed_ends_the_training(source: Source, tmp_path: Path, monkeypatch: Any) -> None:
    """The second process dies, as by the system when memory is short; the first would wait for it for long."""
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def popen(*arguments: Any, **options: Any) -> Any:
        started.append(real(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(sami_train.launch.subprocess, "Popen", popen)

    def kill(what: str, *_: Any) -> None:
        if what.endswith("responses"):
            os.kill(started[1].pid, signal.SIGKILL)

    with pytest.raises(UserError, match=rf"{LOG}: a process of the training ended by signal 9; look"):
        train_on_many(Recipe.model_validate(RECIPE), source, data(), tmp_path, devices=2, kind="cpu", progress=kill)
    assert all(process.poll() is not None for process in started)


def test_the_processes_end_with_their_parent(source: Source, tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[3]); import test_launch as t; from pathlib import Path\n"
        "t.train_on_many(t.Recipe.model_validate(t.RECIPE), t.Source('folder', sys.argv[1]), t.data(), Path(sys.argv[2]),"
        " devices=2, kind='cpu', progress=lambda *e: print('begun', flush=True))"
    )
    here = str(Path(__file__).parent)
    parent = subprocess.Popen(
        [sys.executable, "-c", code, source.name, str(tmp_path), here], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "begun\n"
    children = [int(p) for p in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
    assert len(children) == 2
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{child}/exe").exists() for child in children) and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    assert not any(Path(f"/proc/{child}/exe").exists() for child in children)
