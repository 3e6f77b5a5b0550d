"""A whole training run on a tiny real model: artefacts, exact resume, bad input."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model as model_of

from sami_train.config import Recipe
from sami_train.constitutions import distinct, load_principle_set
from sami_train.data import Query, read_queries
from sami_train.errors import UserError
from sami_train.evaluation import mean_interval
from sami_train.files import append_rows, read_rows, replace_rows
from sami_train.models import load_model, load_tokenizer, parse_source
from sami_train.pairs import split_queries
from sami_train.prompts import Template, load_template
from sami_train.run_folder import final_model
from sami_train.trainer import TrainingData, train


def some_queries(count: int) -> list[Query]:
    return [Query(f"q{n}", f"What is number {n}? {'Say more. ' * (n % 4)}", "dialogue") for n in range(count)]


QUERIES = some_queries(24)


def recipe(**changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "name": "tiny", "batch_size": 3, "batches_at_start": 2, "batch_increment": 1, "iterations": 2, "oversample": 1.0,
        "max_new_tokens": 12, "max_prompt_tokens": 300, "learning_rate": 1e-3, "warmup_steps": 1, "filters": ["empty", "identical"],
        "sampling_batch_size": 5, "eval_queries": 3,
    }  # fmt: skip
    return Recipe.model_validate({**fields, **changes})


def data(count: int = len(QUERIES)) -> TrainingData:
    chosen = load_principle_set("verifiable")
    principles = chosen.select("dialogue", "learned")
    provenance = {
        "queries": [{"file": "numbers.jsonl", "n": len(QUERIES), "sha256": "0" * 64}],
        "principle_sets": [
            {"name": chosen.name, "version": chosen.version, "hash": chosen.hash, "source": chosen.source}
        ],
    }
    templates = {"dialogue": load_template("dialogue")}
    return TrainingData(some_queries(count), {"dialogue": principles}, templates, provenance)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {n: p.clone() for n, p in load_model(parse_source(str(folder))).named_parameters()}


@pytest.fixture(scope="module")
def undisturbed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("undisturbed")
    train(recipe(save_steps=1, eval_steps=1, warn_if={"kl": 1e-4}), parse_source(str(tiny_model)), data(), folder)
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
recipe = test_trainer.recipe(save_steps=1, eval_steps=1, warn_if=dict(kl=1e-4))
train(recipe, parse_source({model!r}), test_trainer.data(), Path({folder!r}),
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
        evaluations = [
            (f / f"iteration-{iteration}" / "evaluations.jsonl").read_text() for f in (undisturbed, tmp_path)
        ]
        assert evaluations[0] == evaluations[1]
    summaries = [json.loads((f / "summary.json").read_text()) for f in (undisturbed, tmp_path)]
    assert summaries[0] == summaries[1]
    assert any(row["warnings"] for row in summaries[0]["iterations"])


def test_a_finished_run_is_not_run_again(undisturbed: Path, tiny_model: Path) -> None:
    began = time.monotonic()
    train(recipe(save_steps=1, eval_steps=1, warn_if={"kl": 1e-4}), parse_source(str(tiny_model)), data(), undisturbed)
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


def checkpointed(tiny_model: Path, folder: Path) -> Path:
    """A run that stopped after its first step, with a whole checkpoint."""
    wild = recipe(iterations=1, eval_steps=1, stop_if={"kl": 1e-9}, save_steps=1)
    with pytest.raises(UserError, match="stop_if"):
        train(wild, parse_source(str(tiny_model)), data(), folder)
    return folder / "iteration-1" / "checkpoint"


@pytest.mark.parametrize("damage", ["cut", "empty", "missing"])
def test_a_damaged_shard_is_named(tiny_model: Path, tmp_path: Path, damage: str) -> None:
    checkpoint = checkpointed(tiny_model, tmp_path)
    (shard, *_) = sorted(checkpoint.glob("*.safetensors"))
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:400] if damage == "cut" else b"")
    with pytest.raises(UserError, match="checkpoint is damaged"):
        train(recipe(iterations=1, eval_steps=1, save_steps=1), parse_source(str(tiny_model)), data(), tmp_path)


def test_a_kill_between_two_renames_loses_no_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    checkpoint = checkpointed(tiny_model, tmp_path)
    checkpoint.rename(checkpoint.with_name(".checkpoint-older"))
    steps: list[tuple[str, int]] = []
    train(
        recipe(iterations=1, eval_steps=1, save_steps=1),
        parse_source(str(tiny_model)),
        data(),
        tmp_path,
        progress=lambda what, done, *_: steps.append((what, done)),
    )
    assert ("iteration 1 steps", 2) in steps
    assert ("iteration 1 steps", 0) not in steps, "the first step was taken again"


def test_a_model_that_is_broken_after_its_last_step_is_not_written(tiny_model: Path, tmp_path: Path) -> None:
    wild = recipe(learning_rate=1e38, optim="rmsprop", warmup_steps=0, iterations=1, batches_at_start=1, eval_queries=0)
    with pytest.raises(UserError, match=r"after the last step .* no finite log-probabilities; .*lower learning_rate"):
        train(wild, parse_source(str(tiny_model)), data(), tmp_path)
    assert not (tmp_path / "iteration-1" / "model").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eval_steps": 2}, r"step 2: .* for the unseen query 'q\d+'"),
        (
            {"eval_queries": 0},
            r"step 2: after it the model gives no finite log-probabilities; the checkpoint before is kept",
        ),
    ],
)
def test_a_broken_model_does_not_replace_the_checkpoint(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(Recipe, "learning_rate_at", lambda _, step, __: 1e30 if step else 1e-3)
    wild = recipe(iterations=1, batches_at_start=3, save_steps=1, **changes)
    with pytest.raises(UserError, match=said):
        train(wild, parse_source(str(tiny_model)), data(), tmp_path)
    assert json.loads((tmp_path / "iteration-1" / "checkpoint" / "progress.json").read_text()) == {"step": 1}


def test_a_full_disk_at_the_export_keeps_the_steps(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError
    from transformers import LlamaForCausalLM

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "save_pretrained", full)
        with pytest.raises(UserError, match=r"model cannot be written .*No space left"):
            train(recipe(iterations=1), parse_source(str(tiny_model)), data(), tmp_path)
    assert json.loads((tmp_path / "iteration-1" / "checkpoint" / "progress.json").read_text()) == {"step": 2}
    train(recipe(iterations=1), parse_source(str(tiny_model)), data(), tmp_path)
    assert not (tmp_path / "iteration-1" / "checkpoint").exists()


def test_empty_responses_are_left_out_even_without_filters(tiny_model: Path, tmp_path: Path) -> None:
    plain = recipe(iterations=1, filters=[], batches_at_start=1, batch_size=12, eval_queries=0)
    summary = train(plain, parse_source(str(tiny_model)), data(), tmp_path)
    assert "empty" in summary["iterations"][0]["filtered"]


def test_what_runs_on_is_cut_kept_and_counted(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random model does not write labels, so here a response runs on from its fourth character where that is a letter."""
    monkeypatch.setattr(
        Template,
        "run_on",
        lambda self, text, *_, **__: 3 if len(text) > 3 and text[3].isalpha() and text[:3].strip() else None,
    )
    plain = recipe(iterations=1, filters=["runs_on"], batches_at_start=1, batch_size=3, oversample=3.0, eval_queries=0)
    summary = train(plain, parse_source(str(tiny_model)), data(), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "iteration-1" / "pairs.jsonl").read_text().splitlines()]
    tokenizer = load_tokenizer(parse_source(str(tiny_model)))
    cut = [row for row in rows if row["tail"]]
    assert cut
    for row in cut:
        assert (len(row["text"]) <= 3, row["finish_reason"]) == (True, "stop")
        assert tokenizer.decode(row["response_ids"], skip_special_tokens=True).strip() == row["text"]
    empty = {row["query_id"] for row in rows if not row["text"]}
    assert summary["iterations"][0]["filtered"].get("runs_on", 0) == len({row["query_id"] for row in cut} - empty)


def test_a_finished_run_of_other_principles_is_refused(undisturbed: Path, tiny_model: Path) -> None:
    known = data()
    fewer = TrainingData(QUERIES, {"dialogue": known.principles["dialogue"][1:]}, known.templates)
    with pytest.raises(UserError, match="a run with other principles was begun here"):
        train(recipe(save_steps=1), parse_source(str(tiny_model)), fewer, undisturbed)


def test_a_folder_that_is_a_file(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="this is a file; name a folder"):
        train(recipe(), parse_source(str(tiny_model)), data(), tmp_path / "file")


def test_prompts_of_a_query_are_shortened_alike(tiny_model: Path, tmp_path: Path) -> None:
    long = [Query(q.id, " ".join(f"word{n}" for n in range(200)), q.task) for q in QUERIES]
    known = data()
    short = recipe(iterations=1, batches_at_start=1, eval_queries=0, max_prompt_tokens=400, filters=[])
    train(short, parse_source(str(tiny_model)), TrainingData(long, known.principles, known.templates), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "iteration-1" / "pairs.jsonl").read_text().splitlines()]
    assert all(row["prompt_truncated"] for row in rows)
    lasts: dict[str, set[str]] = {}
    for row in rows:
        lasts.setdefault(row["query_id"], set()).add(re.findall(r"word\d+", row["prompt"])[-1])
    assert all(len(last) == 1 for last in lasts.values())


def test_split_is_seeded_and_disjoint() -> None:
    one, two, unseen = split_queries(QUERIES, recipe())
    assert split_queries(QUERIES, recipe()) == (one, two, unseen)
    assert split_queries(QUERIES, recipe(seed=1))[0] != one
    whole, again, same = split_queries(QUERIES, recipe(alternate_halves=False))
    assert (whole, again, same) == (whole, whole, unseen)
    assert {q.id for q in whole} == {q.id for q in (*one, *two)}
    assert len(one) + len(two) + len(unseen) == len(QUERIES)
    assert {q.id for q in one} | {q.id for q in two} | {q.id for q in unseen} == {q.id for q in QUERIES}


def test_evaluations_and_samples_are_kept(tiny_model: Path, tmp_path: Path) -> None:
    settings = recipe(iterations=1, batches_at_start=3, eval_steps=1, eval_samples=2, eval_queries=4, beta=0.05)
    train(settings, parse_source(str(tiny_model)), data(), tmp_path)
    place = tmp_path / "iteration-1"
    rows = [json.loads(line) for line in (place / "evaluations.jsonl").open()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    wanted = {"loss", "loss_ci", "accuracy", "mi_lower_bound", "kl", "completions/mean_length", "logps/diagonal"}
    assert all(wanted <= row.keys() for row in rows)
    assert 0 < rows[0]["kl"] < rows[-1]["kl"]
    samples = [json.loads(line) for line in (place / "samples.jsonl").open()]
    assert len(samples) == 3 * 2 * 2
    before = json.loads((tmp_path / "unseen-before.json").read_text())
    assert before["samples"][0].keys() == {"query_id", "constitution", "text"}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["evaluation"]["before"] == {k: v for k, v in before["figures"].items() if k != "losses"}
    changes = [b - a for a, b in zip(before["figures"]["losses"], rows[-1]["losses"], strict=True)]
    assert len(changes) == summary["evaluation"]["n"]
    assert summary["evaluation"]["loss_change"] == pytest.approx(sum(changes) / len(changes))
    assert summary["evaluation"]["loss_change"] == pytest.approx(rows[-1]["loss"] - before["figures"]["loss"])
    assert summary["evaluation"]["loss_change_ci"] == mean_interval(changes)
    assert "losses" not in summary["evaluation"]["after"]
    assert summary["evaluation"]["after"]["loss"] == rows[-1]["loss"]


def test_losses_that_an_older_version_did_not_keep_give_no_change(tiny_model: Path, tmp_path: Path) -> None:
    settings = recipe(iterations=1, batches_at_start=1)
    train(settings, parse_source(str(tiny_model)), data(), tmp_path)
    known = json.loads((tmp_path / "unseen-before.json").read_text())
    del known["figures"]["losses"]
    (tmp_path / "unseen-before.json").write_text(json.dumps(known))
    for file in (tmp_path / "summary.json", tmp_path / "iteration-1" / "summary.json"):
        file.unlink()
    evaluation = train(settings, parse_source(str(tiny_model)), data(), tmp_path)["evaluation"]
    assert (evaluation["loss_change"], evaluation["loss_change_ci"]) == (None, None)
    assert evaluation["before"]["loss"] == known["figures"]["loss"]


def test_stop_if_keeps_the_checkpoint_and_holds_when_run_again(tiny_model: Path, tmp_path: Path) -> None:
    settings = recipe(
        iterations=1,
        batch_size=2,
        batches_at_start=4,
        eval_steps=2,
        learning_rate=0.05,
        stop_if={"kl": 1e-4},
        warn_if={"kl": 1e-5},
    )
    notes: list[str] = []
    for _ in range(2):
        with pytest.raises(UserError, match=r"iteration-1.*KL on response tokens"):
            train(settings, parse_source(str(tiny_model)), data(), tmp_path, note=notes.append)
    assert json.loads((tmp_path / "iteration-1" / "checkpoint" / "progress.json").read_text()) == {"step": 2}
    assert any("KL" in note for note in notes)
    allowed = settings.model_copy(update={"stop_if": recipe().stop_if})
    train(allowed, parse_source(str(tiny_model)), data(), tmp_path)
    steps = [json.loads(line)["step"] for line in (tmp_path / "iteration-1" / "metrics.jsonl").open()]
    assert steps == [1, 2, 3, 4]


def test_a_folder_of_another_run_is_refused(undisturbed: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a run with learning_rate = 0\.001 was begun here, now it is 0\.002"):
        train(recipe(save_steps=1, learning_rate=2e-3), parse_source(str(tiny_model)), data(), undisturbed)
    for name in ("inputs.json", "recipe.yaml", "unseen.jsonl"):
        (tmp_path / name).write_bytes((undisturbed / name).read_bytes())
    other = TrainingData(QUERIES[1:], data().principles, data().templates)
    with pytest.raises(UserError, match="a run with other queries was begun here"):
        train(recipe(), parse_source(str(tiny_model)), other, tmp_path)


def test_too_few_pairs_left_is_said(undisturbed: Path, tiny_model: Path, tmp_path: Path) -> None:
    """One of six pairs has equal responses: it is counted, and the last batch is smaller."""
    rows = [json.loads(line) for line in (undisturbed / "iteration-1" / "pairs.jsonl").open()]
    for row in rows:
        if row["query_id"] == rows[0]["query_id"]:
            row["text"] = "the same"
    (tmp_path / "iteration-1").mkdir()
    (tmp_path / "iteration-1" / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    notes: list[str] = []
    summary = train(recipe(iterations=1), parse_source(str(tiny_model)), data(), tmp_path, note=notes.append)
    assert summary["iterations"][0]["pairs"] == 5
    assert summary["iterations"][0]["filtered"] == {"empty": 0, "identical": 1}
    assert notes == [
        "iteration 1 has 5 pairs left for 6 (identical 1), so it takes fewer or smaller steps; raise 'oversample'"
    ]


def test_a_nan_loss_names_the_query_and_keeps_the_checkpoint(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sami_train import step as steps

    begun: list[int] = []
    real, accumulate = steps.sami_loss, steps.accumulate

    def counted(*arguments: Any, **options: Any) -> Any:
        begun.append(1)
        return accumulate(*arguments, **options)

    monkeypatch.setattr(steps, "accumulate", counted)
    monkeypatch.setattr(steps, "sami_loss", lambda *a: real(*a) * (math.nan if len(begun) == 2 else 1.0))
    settings = recipe(iterations=1, batches_at_start=3, eval_queries=0)
    with pytest.raises(UserError, match=r"step 2: the (loss of query 'q\d+'|gradient) .*is not finite"):
        train(settings, parse_source(str(tiny_model)), data(), tmp_path)
    assert json.loads((tmp_path / "iteration-1" / "checkpoint" / "progress.json").read_text()) == {"step": 1}
    assert len((tmp_path / "iteration-1" / "metrics.jsonl").read_text().splitlines()) == 1


def test_lora_exports_a_merged_model_and_the_adapter(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed (pip install 'sami-harness[peft]')")
    settings = recipe(iterations=1, use_peft=True, lora_r=4, lora_alpha=8)
    train(settings, parse_source(str(tiny_model)), data(), tmp_path)
    folder = final_model(tmp_path, settings)
    trained, base = weights(folder), weights(tiny_model)
    assert trained.keys() == base.keys()
    moved = [name for name in base if not torch.equal(trained[name], base[name])]
    assert moved
    assert all(name.endswith("_proj.weight") for name in moved)
    from peft import PeftModel

    with_adapter = PeftModel.from_pretrained(load_model(parse_source(str(tiny_model))), folder / "adapter")
    ids = torch.tensor([[1, 7, 30, 9, 60]])
    with torch.no_grad():
        one, other = with_adapter(ids).logits, load_model(parse_source(str(folder)))(ids).logits
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", ["llama", "mixtral", "gemma3", "qwen2"])
def test_a_merged_model_says_what_the_adapted_one_did(shape: str) -> None:
    pytest.importorskip("peft", reason="peft is not installed (pip install 'sami-harness[peft]')")
    from transformers import AutoModelForCausalLM

    from sami_train.adapters import add_adapter, merged_state

    model, ids = model_of(shape), torch.tensor([[1, 7, 30, 9, 60]])
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(model.config)
    names = set(model.state_dict())
    settings = recipe(use_peft=True, lora_r=4)
    add_adapter(model, settings)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter.data, std=0.1)
    with torch.no_grad():
        adapted, plain = model(ids).logits, model_of(shape)(ids).logits
    merged = merged_state(empty, model.state_dict(), settings)
    assert merged.keys() == names
    again = model_of(shape, seed=5)
    again.load_state_dict(merged)
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, adapted, rtol=1e-4, atol=1e-4)
    assert (adapted - plain).abs().max() > 0.01


def test_lora_on_tied_embeddings_is_refused() -> None:
    pytest.importorskip("peft", reason="peft is not installed (pip install 'sami-harness[peft]')")
    from sami_train.adapters import add_adapter

    with pytest.raises(UserError, match="embeddings and head share their weights"):
        add_adapter(model_of("gemma3"), recipe(use_peft=True, lora_target_modules=["embed_tokens", "q_proj"]))


def test_lora_on_the_head_is_refused() -> None:
    pytest.importorskip("peft", reason="peft is not installed (pip install 'sami-harness[peft]')")
    from sami_train.adapters import add_adapter

    with pytest.raises(UserError, match="head cannot have an adapter"):
        add_adapter(model_of("llama"), recipe(use_peft=True, lora_target_modules=["lm_head", "q_proj"]))


def test_lora_dropout_that_a_layer_does_not_take_is_named() -> None:
    pytest.importorskip("peft", reason="peft is not installed (pip install 'sami-harness[peft]')")
    from sami_train.adapters import add_adapter

    with pytest.raises(UserError, match=r"^lora_dropout: .* set it to 0"):
        add_adapter(model_of("mixtral"), recipe(use_peft=True, lora_dropout=0.1))


def test_settings_that_transformers_refuses_to_write_cost_no_training(tiny_model: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_model, tmp_path / "base")
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    settings = recipe(iterations=1, eval_queries=0)
    for place, extra in (("refused", {"temperature": 0.9}), ("taken", {"repetition_penalty": 1.1})):
        (base / "generation_config.json").write_text(json.dumps({**tokens, **extra}), encoding="utf-8")
        train(settings, parse_source(str(base)), data(), tmp_path / place)
        written = json.loads((final_model(tmp_path / place, settings) / "generation_config.json").read_text())
        assert tokens.items() <= written.items()
        assert ("repetition_penalty" in written) == (place == "taken")


def test_settings_of_the_base_do_not_part_a_resumed_run_from_a_whole_one(tiny_model: Path, tmp_path: Path) -> None:
    """The model is sampled from after it was written, and again after it was read back."""
    base = shutil.copytree(tiny_model, tmp_path / "base")
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "repetition_penalty": 3.0}
    (base / "generation_config.json").write_text(json.dumps(tokens), encoding="utf-8")
    settings = recipe(eval_queries=0)
    train(settings, parse_source(str(base)), data(), tmp_path / "whole")

    def stop(what: str, *_: Any) -> None:
        if what == "iteration 2 responses":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings, parse_source(str(base)), data(), tmp_path / "stopped", progress=stop)
    train(settings, parse_source(str(base)), data(), tmp_path / "stopped")
    for number in (1, 2):
        one, two = (tmp_path / run / f"iteration-{number}" / "pairs.jsonl" for run in ("whole", "stopped"))
        assert one.read_text() == two.read_text()


def test_gradient_caching_under_dropout_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_model, tmp_path / "base")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.1}), encoding="utf-8")
    settings = recipe(iterations=1, gradient_caching=True)
    with pytest.raises(UserError, match=r"has attention_dropout: 0\.1; set gradient_caching: false"):
        train(settings, parse_source(str(base)), data(), tmp_path / "run")


def test_steps_warn_where_nothing_is_evaluated(tiny_model: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    settings = recipe(
        iterations=1, batches_at_start=3, eval_queries=0, beta=0.1, warn_if={"kl": 1e-6, "logps_drop": 100.0}
    )
    train(settings, parse_source(str(tiny_model)), data(), tmp_path, note=notes.append)
    (said,) = [note for note in notes if "on its own queries" in note]
    assert re.match(r"iteration 1, step [23], on its own queries: The model leaves its base: the KL", said)


def test_a_principle_that_is_there_twice_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    once = data().principles["dialogue"]
    twice = dataclasses.replace(data(), principles={"dialogue": [*once, once[0]]})
    with pytest.raises(UserError, match="a principle of dialogue is there twice"):
        train(recipe(), parse_source(str(tiny_model)), twice, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert distinct([*once, *once]) == list(once)
    with pytest.raises(UserError, match=f"the principle id '{once[0].id}' has different texts in two of the sets"):
        distinct([*once, once[0].model_copy(update={"definition": "Something else."})])


def test_a_second_run_in_the_same_folder_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    refused: list[str] = []

    def meanwhile(what: str, done: int, *_: Any) -> None:
        if not refused:
            with pytest.raises(UserError) as error:
                train(recipe(iterations=1), parse_source(str(tiny_model)), data(), tmp_path)
            refused.append(str(error.value))

    train(recipe(iterations=1), parse_source(str(tiny_model)), data(), tmp_path, progress=meanwhile)
    assert len(refused) == 1
    assert "another run is training here" in refused[0]


def test_a_finished_run_without_its_model_says_so(tiny_model: Path, tmp_path: Path) -> None:
    settings = recipe(iterations=1, batches_at_start=1, eval_queries=0)
    done = train(settings, parse_source(str(tiny_model)), data(), tmp_path)
    assert train(settings, parse_source(str(tiny_model)), data(), tmp_path) == done
    shutil.rmtree(final_model(tmp_path, settings))
    with pytest.raises(UserError, match="the run is finished, and its model is gone"):
        train(settings, parse_source(str(tiny_model)), data(), tmp_path)


def test_a_folder_in_which_nothing_was_made_is_free(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing of the query fits; raise max_prompt_tokens"):
        train(recipe(iterations=1, max_prompt_tokens=16), parse_source(str(tiny_model)), data(), tmp_path)
    train(recipe(iterations=1), parse_source(str(tiny_model)), data(), tmp_path)
    with pytest.raises(UserError, match="a run with max_new_tokens = 12 was begun here"):
        train(recipe(iterations=1, max_new_tokens=9), parse_source(str(tiny_model)), data(), tmp_path)


def test_rows_are_put_back_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "evaluations.jsonl"
    append_rows(file, [{"step": n} for n in range(1, 5)])

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            replace_rows(file, [{"step": 1}])
    assert [row["step"] for row in read_rows(file)] == [1, 2, 3, 4]
    replace_rows(file, [{"step": 1}])
    assert [row["step"] for row in read_rows(file)] == [1]
    replace_rows(file, [])
    assert read_rows(file) == []


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_a_baseline_is_watched_while_it_trains(tiny_model: Path, tmp_path: Path, method: str) -> None:
    pytest.importorskip("trl", reason="trl is not installed (pip install 'sami-harness[trl]')")
    notes: list[str] = []
    settings = {"iterations": 1, "batches_at_start": 3, "method": method, "beta": 0.1}
    for place, changes in (("watched", {"eval_steps": 1, "save_steps": 1}), ("not", {})):
        chosen = recipe(**settings, **changes)
        train(chosen, parse_source(str(tiny_model)), data(), tmp_path / place, note=notes.append)
    rows = [json.loads(line) for line in (tmp_path / "watched" / "iteration-1" / "evaluations.jsonl").open()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    watched, alone = (weights(tmp_path / place / "iteration-1" / "model") for place in ("watched", "not"))
    assert all(torch.equal(watched[name], alone[name]) for name in alone)
    assert any("save_steps does nothing" in note for note in notes)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"query": "bad \\ud800 text"}', "this row has half of a character"),
        ('{"query": "' + "[" * 10 + '", "id": ' + "9" * 5000 + "}", "this line has a number of too many digits"),
        ("[" * 100_000, "this line is nested too deep to be read"),
    ],
)
def test_odd_rows_are_one_sentence(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "queries.jsonl"
    file.write_text('{"query": "fine"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=f"queries.jsonl:2: {said}"):
        read_queries(file)


def test_a_byte_order_mark_is_no_part_of_a_row(tmp_path: Path) -> None:
    file = tmp_path / "queries.jsonl"
    file.write_text('\ufeff{"query": "What is \\ud83c\\udf33?"}\n', encoding="utf-8")
    assert [query.text for query in read_queries(file)] == ["What is 🌳?"]


def test_lora_on_layers_that_are_not_there(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed (pip install 'sami-harness[peft]')")
    settings = recipe(use_peft=True, lora_target_modules=["nowhere"])
    with pytest.raises(UserError, match="lora_target_modules: the adapter cannot be added"):
        train(settings, parse_source(str(tiny_model)), data(), tmp_path)


def test_the_checkpoint_tells_its_story(undisturbed: Path) -> None:
    card = (final_model(undisturbed, recipe()) / "README.md").read_text()
    assert card.startswith("---\n")
    for piece in ("learning_rate: 0.001", "transformers", "numbers.jsonl", load_principle_set("verifiable").hash):
        assert piece in card


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_baselines_learn_from_the_same_pairs(undisturbed: Path, tiny_model: Path, tmp_path: Path, method: str) -> None:
    pytest.importorskip("trl", reason="trl is not installed (pip install 'sami-harness[trl]')")
    settings = recipe(iterations=1, method=method, beta=0.1)
    summary = train(settings, parse_source(str(tiny_model)), data(), tmp_path)
    first = (undisturbed / "iteration-1" / "pairs.jsonl").read_text()
    assert (tmp_path / "iteration-1" / "pairs.jsonl").read_text() == first
    assert summary["method"] == method
    assert summary["evaluation"]["after"]["loss"] != summary["evaluation"]["before"]["loss"]
    trained, base = weights(final_model(tmp_path, settings)), weights(tiny_model)
    assert max((trained[name] - base[name]).abs().max().item() for name in base) > 1e-5
    assert not (tmp_path / "iteration-1" / "trl").exists()


def test_responses_are_sampled_with_reasoning(tiny_model: Path, tmp_path: Path) -> None:
    """A random model never writes the marker: every pair is filtered, and the rule that did it is counted."""
    principles = load_principle_set("diverse").select("summarization", "learned")
    posts = [Query(f"p{n}", f"We moved house {n} times and the cat left.", "summarization") for n in range(24)]
    posts_data = TrainingData(posts, {"summarization": principles}, {"summarization": load_template("summarization")})
    settings = recipe(
        reasoning=True, filters=["no_answer", "empty"], iterations=1, eval_queries=0, max_prompt_tokens=900
    )
    with pytest.raises(UserError, match=r"every pair was filtered out \(no_answer 6\)"):
        train(settings, parse_source(str(tiny_model)), posts_data, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "iteration-1" / "pairs.jsonl").open()]
    assert all(row["reasoning"] and not row["text"] for row in rows)


def test_a_limit_passed_at_the_end_keeps_a_checkpoint_too(tiny_model: Path, tmp_path: Path) -> None:
    settings = recipe(iterations=1, learning_rate=0.05, stop_if={"kl": 1e-4})
    with pytest.raises(UserError, match=r"stopped at step 2 by stop_if\.kl"):
        train(settings, parse_source(str(tiny_model)), data(), tmp_path)
    assert json.loads((tmp_path / "iteration-1" / "checkpoint" / "progress.json").read_text()) == {"step": 2}
    allowed = settings.model_copy(update={"stop_if": recipe().stop_if})
    steps: list[int] = []
    train(
        allowed,
        parse_source(str(tiny_model)),
        data(),
        tmp_path,
        progress=lambda what, done, _total, _figure: steps.append(done) if what.endswith("steps") else None,
    )
    assert steps == [], "no step is taken again"
    evaluations = [json.loads(line) for line in (tmp_path / "iteration-1" / "evaluations.jsonl").open()]
    assert [row["step"] for row in evaluations] == [2]
