"""A whole training run on a tiny real model: artefacts, exact resume, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sami_train.config import Recipe
from sami_train.constitutions import load_principle_set
from sami_train.data import Query
from sami_train.errors import UserError
from sami_train.models import load_model, parse_source
from sami_train.pairs import split_queries
from sami_train.prompts import load_template
from sami_train.trainer import TrainingData, final_model, train

QUERIES = [Query(f"q{n}", f"What is number {n}? {'Say more. ' * (n % 4)}", "dialogue") for n in range(24)]


def recipe(**changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "name": "tiny", "batch_size": 3, "batches_at_start": 2, "batch_increment": 1, "iterations": 2, "oversample": 1.0,
        "max_new_tokens": 12, "max_prompt_tokens": 300, "learning_rate": 1e-3, "warmup_steps": 1, "filters": ["empty", "identical"],
        "sampling_batch_size": 5, "eval_queries": 3,
    }  # fmt: skip
    return Recipe.model_validate({**fields, **changes})


def data() -> TrainingData:
    principles = load_principle_set("verifiable").select("dialogue", "learned")
    return TrainingData(QUERIES, {"dialogue": principles}, {"dialogue": load_template("dialogue")})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {n: p.clone() for n, p in load_model(parse_source(str(folder))).named_parameters()}


@pytest.fixture(scope="module")
def undisturbed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("undisturbed")
    train(recipe(save_steps=1), parse_source(str(tiny_model)), data(), folder)
    return folder


def test_artefacts_are_kept(undisturbed: Path) -> None:
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert [row["steps"] for row in summary["iterations"]] == [2, 3]
    assert summary["evaluation"]["n"] == 3
    metrics = [json.loads(line) for line in (undisturbed / "iteration-2" / "metrics.jsonl").read_text().splitlines()]
    wanted = {"loss", "loss/row", "loss/col", "mi_lower_bound", "accuracy/row", "accuracy/col", "logps/diagonal",
              "logps/off_diagonal", "grad_norm", "completions/mean_length", "filtered/identical", "tokens_per_second"}  # fmt: skip
    assert all(wanted <= row.keys() for row in metrics)
    assert not (undisturbed / "iteration-2" / "checkpoint").exists(), (
        "the checkpoint of a finished iteration is of no use"
    )


def test_iterations_use_disjoint_halves(undisturbed: Path) -> None:
    ids = [
        {json.loads(line)["query_id"] for line in (undisturbed / f"iteration-{n}" / "pairs.jsonl").open()}
        for n in (1, 2)
    ]
    unseen = {json.loads(line)["query_id"] for line in (undisturbed / "unseen.jsonl").open()}
    assert ids[0]
    assert ids[1]
    assert not ids[0] & ids[1]
    assert not unseen & (ids[0] | ids[1])


def test_training_moves_the_weights_from_the_base(undisturbed: Path, tiny_model: Path) -> None:
    trained, base = weights(final_model(undisturbed, recipe())), weights(tiny_model)
    assert max((trained[name] - base[name]).abs().max().item() for name in base) > 1e-4


def test_loss_falls_on_the_batch_it_learns_from(tiny_model: Path, tmp_path: Path) -> None:
    many = recipe(iterations=1, batches_at_start=1, batch_size=6, learning_rate=2e-3, warmup_steps=0)
    once = train(many, parse_source(str(tiny_model)), data(), tmp_path / "one")
    from sami_train.logprobs import response_logprobs
    from sami_train.loss import sami_loss

    rows = [json.loads(line) for line in (tmp_path / "one" / "iteration-1" / "pairs.jsonl").open()]
    by_query: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_query.setdefault(row["query_id"], []).append(row)
    model = load_model(parse_source(str(final_model(tmp_path / "one", many))))
    losses = [
        sami_loss(response_logprobs(model, [r["prompt_ids"] for r in pair], [r["response_ids"] for r in pair])).item()
        for pair in by_query.values()
    ]
    assert sum(losses) / len(losses) < once["iterations"][0]["loss_first"]


def test_frozen_embeddings_stay(tiny_model: Path, tmp_path: Path) -> None:
    train(recipe(freeze_embeddings=True, iterations=1), parse_source(str(tiny_model)), data(), tmp_path)
    trained, base = weights(final_model(tmp_path, recipe(iterations=1))), weights(tiny_model)
    assert torch.equal(trained["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    assert not torch.equal(trained["model.layers.0.mlp.up_proj.weight"], base["model.layers.0.mlp.up_proj.weight"])


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from pathlib import Path
import test_trainer
from sami_train.models import parse_source
from sami_train.trainer import train
train(test_trainer.recipe(save_steps=1), parse_source({model!r}), test_trainer.data(), Path({folder!r}),
      progress=lambda what, done, total, figure: print(what, done, flush=True))
"""


@pytest.mark.parametrize(
    "after", ["iteration 1 responses 5", "iteration 1 steps 1", "iteration 2 responses 10", "iteration 2 steps 2"]
)
def test_a_killed_run_ends_with_the_same_weights(
    undisturbed: Path, tiny_model: Path, tmp_path: Path, after: str
) -> None:
    code = textwrap.dedent(SCRIPT).format(tests=str(Path(__file__).parent), model=str(tiny_model), folder=str(tmp_path))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(after):
            process.send_signal(signal.SIGKILL)
            break
    else:
        pytest.fail(f"'{after}' was never printed")
    process.wait()
    assert not (tmp_path / "summary.json").exists()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, env=env)
    expected, found = weights(final_model(undisturbed, recipe())), weights(final_model(tmp_path, recipe()))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    plain = {"tokens_per_second"}
    for iteration in (1, 2):
        rows = [
            [
                {k: v for k, v in json.loads(line).items() if k not in plain}
                for line in (f / f"iteration-{iteration}" / "metrics.jsonl").open()
            ]
            for f in (undisturbed, tmp_path)
        ]
        assert rows[0] == rows[1]


def test_a_finished_run_is_not_run_again(undisturbed: Path, tiny_model: Path) -> None:
    began = time.monotonic()
    train(recipe(save_steps=1), parse_source(str(tiny_model)), data(), undisturbed)
    assert time.monotonic() - began < 1


def test_too_few_queries_is_said_before_anything_runs(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"iteration 2 of the recipe 'tiny' needs 30 queries .* has 1[01]; give more queries"
    ):
        train(
            recipe(batch_size=10, batches_at_start=1, batch_increment=2),
            parse_source(str(tiny_model)),
            data(),
            tmp_path,
        )
    assert list(tmp_path.iterdir()) == []


def test_nothing_left_after_filtering(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="every pair was filtered out"):
        train(recipe(filters=["cut_off"]), parse_source(str(tiny_model)), data(), tmp_path)


def test_a_diverging_run_stops_with_the_query(tiny_model: Path, tmp_path: Path) -> None:
    wild = recipe(learning_rate=1e30, warmup_steps=0, iterations=1, batches_at_start=3)
    with pytest.raises(UserError, match=r"not finite.*lower learning_rate"):
        train(wild, parse_source(str(tiny_model)), data(), tmp_path)
    assert (tmp_path / "iteration-1" / "pairs.jsonl").is_file()


def test_a_half_written_checkpoint_is_named(tiny_model: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "iteration-1" / "checkpoint"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(UserError, match="checkpoint is damaged"):
        train(recipe(), parse_source(str(tiny_model)), data(), tmp_path)


def test_split_is_seeded_and_disjoint() -> None:
    one, two, unseen = split_queries(QUERIES, recipe())
    assert split_queries(QUERIES, recipe()) == (one, two, unseen)
    assert split_queries(QUERIES, recipe(seed=1))[0] != one
    assert len(one) + len(two) + len(unseen) == len(QUERIES)
    assert {q.id for q in one} | {q.id for q in two} | {q.id for q in unseen} == {q.id for q in QUERIES}
