"""The baselines: rows, and TRL's losses and updates against a float64 computation from the definitions."""

from __future__ import annotations

import copy
import importlib.util
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sami_train.baselines import demonstration_rows, preference_rows, require_trl, train_baseline
from sami_train.config import Recipe
from sami_train.errors import MissingPackage, UserError
from sami_train.pairs import Example

needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
llama = pytest.mark.parametrize("model", ["llama"], indirect=True)


def recipe(method: str, **changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "name": "tiny", "method": method, "beta": 0.3, "batch_size": 4, "learning_rate": 2e-3, "warmup_steps": 1,
        "lr_scheduler_type": "cosine", "lr_scheduler_steps": 5, "weight_decay": 0.1, "max_grad_norm": 0.5,
        "adam_epsilon": 1e-3, "per_device_train_batch_size": 3,
    }  # fmt: skip
    return Recipe.model_validate({**fields, **changes})


def made_up(count: int, size: int, seed: int = 0) -> list[Example]:
    """Examples of uneven lengths; the padding token (2) stands inside prompts and at the end of responses too."""
    rng = random.Random(seed)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(2, 97) for _ in range(length))

    return [
        Example(
            f"q{n}",
            "dialogue",
            tuple(f"c{j}" for j in range(size)),
            tuple((1, 2, *ids(rng.randrange(3, 12))) for _ in range(size)),
            tuple((*ids(rng.randrange(1, 15)), 2) for _ in range(size)),
            ("text",) * size,
            None,
        )
        for n in range(count)
    ]


def run(recipe: Recipe, model: Any, examples: Sequence[Example], folder: Path) -> list[dict[str, float]]:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({f"w{n}": n for n in range(97)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="w1", eos_token="w2", pad_token="w2")
    figures: list[dict[str, float]] = []
    steps = math.ceil(len(examples) / recipe.batch_size)
    train_baseline(recipe, model, tokenizer, examples, steps=steps, folder=folder, on_step=figures.append)
    return figures


def logprob(model: Any, prompt: Sequence[int], response: Sequence[int]) -> torch.Tensor:
    """log p(response | prompt), summed over the response's tokens; one unpadded sequence."""
    logprobs = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
    return sum((logprobs[len(prompt) - 1 + place, token] for place, token in enumerate(response)), torch.zeros(()))


def sft_loss(model: Any, base: Any, recipe: Recipe, batch: Sequence[Example]) -> torch.Tensor:
    """Mean over the batch's response tokens."""
    pairs = [pair for e in batch for pair in zip(e.prompt_ids, e.response_ids, strict=True)]
    return -torch.stack([logprob(model, *pair) for pair in pairs]).sum() / sum(len(r) for _, r in pairs)


def dpo_loss(model: Any, base: Any, recipe: Recipe, batch: Sequence[Example]) -> torch.Tensor:
    """Mean over the batch's pairs (three constitutions: 0 and 1 are opposites, 2 has none)."""
    losses = []
    pairs = [(0, 1), (1, 0), (2, 0)] if recipe.contrast == "opposites" else [(0, 1), (1, 0), (0, 2), (2, 0)]
    for e in batch:
        for chosen, rejected in pairs:
            prompt = e.prompt_ids[chosen]
            margins = [logprob(m, prompt, e.response_ids[chosen]) - logprob(m, prompt, e.response_ids[rejected])
                       for m in (model, base)]  # fmt: skip
            losses.append(-torch.nn.functional.logsigmoid(recipe.beta * (margins[0] - margins[1].detach())))
    return torch.stack(losses).mean()


def by_hand(recipe: Recipe, model: Any, examples: Sequence[Example]) -> tuple[Any, list[dict[str, float]]]:
    """The training written out in float64: loss, clipping, AdamW on every parameter alike, the recipe's learning rates."""
    base, model = copy.deepcopy(model).double(), copy.deepcopy(model).double()
    if model.config.model_type == "mixtral":
        model.set_experts_implementation("eager")  # the default has no float64
    parameters = list(model.parameters())
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    figures = []
    steps = math.ceil(len(examples) / recipe.batch_size)
    for step in range(steps):
        batch = examples[step * recipe.batch_size : (step + 1) * recipe.batch_size][-(recipe.gradient_queries or 99) :]
        loss = (sft_loss if recipe.method == "sft" else dpo_loss)(model, base, recipe, batch)
        gradients = torch.autograd.grad(loss * recipe.loss_scale, parameters)
        norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt().item()
        rate = recipe.learning_rate_at(step, steps)
        figures.append({"loss": loss.item(), "grad_norm": norm, "learning_rate": rate})
        beta1, beta2 = recipe.adam_beta1, recipe.adam_beta2
        with torch.no_grad():
            for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                g = g * min(1.0, (recipe.max_grad_norm or math.inf) / norm)
                m.mul_(beta1).add_(g, alpha=1 - beta1)
                v.mul_(beta2).add_(g * g, alpha=1 - beta2)
                p.mul_(1 - rate * recipe.weight_decay)
                p -= (
                    rate
                    * (m / (1 - beta1 ** (step + 1)))
                    / ((v / (1 - beta2 ** (step + 1))).sqrt() + recipe.adam_epsilon)
                )
    return model, figures


# Rows


def test_opposites_are_each_others_rejected() -> None:
    rows = preference_rows(made_up(2, 4))
    example = made_up(2, 4)[1]
    assert len(rows) == 8
    for chosen, rejected in enumerate((1, 0, 3, 2)):
        row = rows[4 + chosen]
        assert row["prompt_ids"] == list(example.prompt_ids[chosen])
        assert row["chosen_ids"] == list(example.response_ids[chosen])
        assert row["rejected_ids"] == list(example.response_ids[rejected])


def test_last_of_an_odd_number_rejects_the_first() -> None:
    example = made_up(1, 3)[0]
    assert preference_rows([example])[2] == {
        "prompt_ids": list(example.prompt_ids[2]),
        "chosen_ids": list(example.response_ids[2]),
        "rejected_ids": list(example.response_ids[0]),
    }


def test_positive_stands_against_every_other() -> None:
    example = made_up(1, 3)[0]
    p, r = ([list(ids) for ids in lists] for lists in (example.prompt_ids, example.response_ids))
    rows = preference_rows([example], "positive_vs_rest")
    assert rows == preference_rows([example], "positive_vs_intent")
    wanted = [(p[0], r[0], r[1]), (p[1], r[1], r[0]), (p[0], r[0], r[2]), (p[2], r[2], r[0])]
    assert [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in rows] == wanted


def test_demonstrations_teach_the_response_alone() -> None:
    example = made_up(1, 2)[0]
    for row, prompt, response in zip(
        demonstration_rows([example]), example.prompt_ids, example.response_ids, strict=True
    ):
        assert row["input_ids"] == [*prompt, *response]
        assert row["labels"] == [-100] * len(prompt) + list(response)


# The package


def test_missing_trl_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(MissingPackage, match=r"pip install 'sami-harness\[trl\]'"):
        require_trl()


def test_other_version_of_trl_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "trl-0.9.1.dist-info").mkdir()
    (tmp_path / "trl-0.9.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: trl\nVersion: 0.9.1\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UserError, match=r"0\.9\.1 is installed"):
        require_trl()


# Training


@needs_trl
@pytest.mark.parametrize(
    ("model", "count", "changes"),
    [
        ("llama", 7, {"method": "sft"}),
        ("llama", 7, {"method": "sft", "max_grad_norm": 0}),
        ("llama", 7, {"method": "dpo"}),
        ("llama", 6, {"method": "dpo", "contrast": "positive_vs_rest", "principles_per_constitution": 2, "gradient_queries": 3}),
        ("llama", 6, {"method": "sft", "loss_scale": 0.5, "gradient_checkpointing": True, "per_device_train_batch_size": 1}),
        ("mixtral", 6, {"method": "sft"}),
    ],
    indirect=["model"],
    ids=["sft", "sft-unclipped", "dpo", "dpo-positive-vs-rest", "sft-scaled", "sft-experts"],
)  # fmt: skip
def test_equals_the_definition(model: Any, count: int, changes: dict[str, Any], tmp_path: Path) -> None:
    examples, chosen = made_up(count, 3), recipe(**changes)
    base = {name: p.clone() for name, p in model.named_parameters()}
    expected, figures = by_hand(chosen, model, examples)
    reported = run(chosen, model, examples, tmp_path)
    assert [row["step"] for row in reported] == [1, 2]
    for row, wanted in zip(reported, figures, strict=True):
        for name, value in wanted.items():
            assert row[name] == pytest.approx(value, rel=1e-4), name
    moved = 0.0
    for name, parameter in expected.named_parameters():
        actual = model.get_parameter(name)
        torch.testing.assert_close(actual.double(), parameter, rtol=0, atol=1e-5, msg=name)
        moved = max(moved, (actual - base[name]).abs().max().item())
    assert moved > 1e-3


@needs_trl
@llama
def test_dpo_reports_rewards(model: Any, tmp_path: Path) -> None:
    """From the base the margin is 0; after a step on the same pairs it is above."""
    twice = made_up(2, 2) * 2
    base = copy.deepcopy(model)
    rows = run(recipe("dpo", batch_size=2, warmup_steps=0), model, twice, tmp_path)
    assert rows[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert rows[1]["rewards/margins"] > 0.01
    assert rows[1]["rewards/accuracies"] > 0.7
    chosen = [logprob(base, e.prompt_ids[i], e.response_ids[i]).item() for e in twice[:2] for i in (0, 1)]
    assert rows[0]["logps/chosen"] == pytest.approx(sum(chosen) / 4, rel=1e-4)


@needs_trl
@pytest.mark.parametrize("model", ["llama", "mixtral"], indirect=True)
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_only_the_weights_change(model: Any, method: str, tmp_path: Path) -> None:
    config, generation = model.config.to_dict(), model.generation_config.to_dict()
    run(recipe(method, gradient_checkpointing=True), model, made_up(4, 2), tmp_path / "trl")
    assert (model.config.to_dict(), model.generation_config.to_dict()) == (config, generation)
    assert "forward" not in vars(model), "TRL's own forward is left on the model"
    assert not model.training
    assert not model.is_gradient_checkpointing
    assert list(tmp_path.iterdir()) == []


@needs_trl
@pytest.mark.parametrize("method", ["sft", "dpo"])
@llama
def test_frozen_embeddings_stay(model: Any, method: str, tmp_path: Path) -> None:
    model.get_input_embeddings().weight.requires_grad_(False)
    before, head = model.model.embed_tokens.weight.clone(), model.lm_head.weight.clone()
    run(recipe(method), model, made_up(4, 2), tmp_path)
    assert torch.equal(model.model.embed_tokens.weight, before)
    assert not torch.equal(model.lm_head.weight, head)


@needs_trl
@pytest.mark.parametrize("method", ["sft", "dpo"])
@llama
def test_adapter_alone_is_trained(model: Any, method: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    before = {name: p.clone() for name, p in model.named_parameters()}
    torch.manual_seed(0)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    examples = made_up(2, 2) * 2
    rows = run(recipe(method, batch_size=2, warmup_steps=0, gradient_checkpointing=True), model, examples, tmp_path)
    assert rows[1]["loss"] < rows[0]["loss"]
    assert set(model.peft_config) == {"default"}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    for name, parameter in model.named_parameters():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        assert "lora_" in name or torch.equal(parameter, before[plain]), name
    merged = model.merge_and_unload()
    assert not torch.equal(merged.model.layers[0].mlp.up_proj.weight, before["model.layers.0.mlp.up_proj.weight"])


@needs_trl
@pytest.mark.parametrize("method", ["sft", "dpo"])
@llama
def test_the_trainers_own_adapter_is_trained(model: Any, method: str, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    from sami_train.adapters import add_adapter

    settings = recipe(method, batch_size=2, warmup_steps=0, gradient_checkpointing=True, use_peft=True, lora_r=4)
    add_adapter(model, settings)
    before = {name: p.clone() for name, p in model.named_parameters()}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    rows = run(settings, model, made_up(2, 2) * 2, tmp_path)
    assert rows[1]["loss"] < rows[0]["loss"]
    if method == "dpo":  # the reference is the model as it came
        assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == trained
    assert all("lora_" in name for name in trained)


@needs_trl
@llama
def test_speed_counts_the_tokens_of_prompts_and_responses(
    model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("sami_train.baselines.time.monotonic", lambda: 2.0 * next(clock))
    examples = made_up(4, 2)
    rows = run(recipe("dpo", batch_size=2), model, examples, tmp_path)
    for row, batch in zip(rows, (examples[:2], examples[2:]), strict=True):
        tokens = sum(
            2 * len(prompt) + sum(map(len, example.response_ids)) for example in batch for prompt in example.prompt_ids
        )
        assert row["tokens_per_second"] == tokens / 2


@needs_trl
@pytest.mark.parametrize("method", ["sft", "dpo"])
@llama
def test_loss_that_is_not_finite_stops(model: Any, method: str, tmp_path: Path) -> None:
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    with pytest.raises(UserError, match="the loss of step 1 is not finite"):
        run(recipe(method), model, made_up(4, 2), tmp_path)


@needs_trl
@llama
def test_many_processes_are_refused(model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="in one process"):
        run(recipe("sft"), model, made_up(4, 2), tmp_path)


@needs_trl
@llama
def test_too_few_examples_are_an_error(model: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not make 2 batches"):
        train_baseline(recipe("sft"), model, None, made_up(4, 2), steps=2, folder=tmp_path, on_step=print)
