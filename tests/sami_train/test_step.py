"""A gradient step against one written out from the formulas in float64, on a real tiny model."""

from __future__ import annotations

import copy
import math
import random
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import tiny_model

from sami_train.adapters import add_adapter
from sami_train.config import Recipe, load_recipe
from sami_train.distributed import World, total_norm
from sami_train.errors import UserError
from sami_train.head import gradients_in_place
from sami_train.logprobs import pack, response_logprobs, token_logprobs
from sami_train.optimizers import make_optimizer, set_learning_rate
from sami_train.pairs import Example
from sami_train.step import accumulate, reference_logprobs

WORLD = World()


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate({"name": "step", "learning_rate": 1e-3, "batch_size": 4, **changes})


def examples(count: int, size: int = 2, seed: int = 0) -> list[Example]:
    rng, others = random.Random(seed), random.Random(1000 + seed)

    def ids(low: int, high: int, rng: random.Random = rng) -> tuple[int, ...]:
        return tuple(rng.randrange(2, 97) for _ in range(rng.randrange(low, high)))

    sides = tuple(f"side{i}" for i in range(size))
    return [
        Example(
            query_id=f"q{n}",
            task="dialogue",
            constitutions=sides,
            prompt_ids=tuple(ids(4, 12) for _ in sides),
            response_ids=tuple(ids(2, 10) for _ in sides),
            responses=sides,
            filtered=None,
            other_prompt_ids=tuple(ids(4, 12, others) for _ in sides),
        )
        for n in range(count)
    ]


def written_out(model: Any, batch: list[Example], settings: Recipe, base: Any = None) -> tuple[float, dict[str, Any]]:
    """The objective in float64, token by token: no packing, no masks, no library loss. Returns loss and gradients."""
    model = copy.deepcopy(model).double()
    base = copy.deepcopy(base).double() if base is not None else None

    def tokens(of: Any, prompt: tuple[int, ...], response: tuple[int, ...]) -> list[torch.Tensor]:
        logits = of(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).logits[0]
        found = []
        for place, token in enumerate(response):
            row = logits[len(prompt) - 1 + place]
            found.append(row[token] - row.exp().sum().log())
        return found

    used = batch[-settings.gradient_queries :] if settings.gradient_queries else batch
    total: Any = 0.0
    for example in used:
        size = len(example.prompt_ids)
        prompts = (*example.prompt_ids, *(example.other_prompt_ids if settings.query_contrast else ()))
        cells = [[tokens(model, p, r) for r in example.response_ids] for p in prompts]
        counted = example.counted or [[True] * len(response) for response in example.response_ids]
        matrix = [
            [
                sum(value for value, counts in zip(cell, of, strict=True) if counts)
                / (sum(of) if settings.logprob_reduction == "mean" else 1)
                for cell, of in zip(row, counted, strict=True)
            ]
            for row in cells
        ]
        loss: Any = 0.0
        for i in range(size):
            row = -matrix[i][i] + sum(matrix[i][j].exp() for j in range(size)).log()
            column = -matrix[i][i] + sum(matrix[j][i].exp() for j in range(size)).log()
            loss = loss + {"both": (row + column) / 2, "rows": row, "columns": column}[settings.loss_sides] / size
            if settings.query_contrast:
                pair = matrix[i][i].exp() + matrix[size + i][i].exp()
                loss = loss + settings.query_contrast * (-matrix[i][i] + pair.log()) / size
        if base is not None:
            for i in range(size):
                with torch.no_grad():
                    known = tokens(base, example.prompt_ids[i], example.response_ids[i])
                steps = [a - b for a, b in zip(cells[i][i], known, strict=True)]
                estimates = [d.exp() - d - 1 if d <= 1 else math.e - 2 + (math.e - 1) * (d - 1) for d in steps]
                loss = loss + settings.beta * sum(estimates) / len(estimates) / size
        total = total + loss / len(used)
    (total * settings.loss_scale).backward()
    return float(total.detach()), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def gradients(model: Any) -> dict[str, Any]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


SETTINGS: dict[str, dict[str, Any]] = {
    "paper": {},
    "as-run": {"gradient_queries": 2, "loss_scale": 0.0625},
    "rows": {"loss_sides": "rows"},
    "columns": {"loss_sides": "columns"},
    "sums": {"logprob_reduction": "sum"},
    "kl": {"beta": 0.3},
    "cached": {"gradient_caching": True},
    "cached kl": {"gradient_caching": True, "beta": 0.3, "per_device_train_batch_size": 3},
    "checkpointed": {"gradient_checkpointing": True},
    "two at a time": {"per_device_train_batch_size": 2},
    "queries": {"query_contrast": 0.7, "per_device_train_batch_size": 3},
    "queries kl": {"query_contrast": 0.7, "beta": 0.3},
    "queries cached": {"query_contrast": 0.7, "gradient_caching": True},
    "words": {"count_copied_words": False, "query_contrast": 0.7, "beta": 0.3, "per_device_train_batch_size": 2},
    "words, sums": {"count_copied_words": False, "logprob_reduction": "sum"},
    "words cached": {"count_copied_words": False, "query_contrast": 0.7, "gradient_caching": True},
    "queries cached kl": {"query_contrast": 0.7, "gradient_caching": True, "beta": 0.3, "loss_sides": "rows"},
}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("shape", ["llama", "gemma3", "qwen2"])
@pytest.mark.parametrize("name", SETTINGS)
def test_gradient_is_the_formulas(name: str, shape: str, size: int) -> None:
    settings = recipe(constitutions_per_query=size, **SETTINGS[name])
    model, base = tiny_model(shape), tiny_model(shape, seed=1)
    batch = examples(4, size)
    if not settings.count_copied_words:
        rng = random.Random(size)
        batch = [
            replace(e, counted=tuple((*(rng.random() < 0.5 for _ in ids[1:]), True) for ids in e.response_ids))
            for e in batch
        ]
    penalised = settings.beta > 0
    kept = reference_logprobs(base, batch, settings, WORLD)
    reference = {e.query_id: values for e, values in zip(batch, kept, strict=True)} if penalised else None

    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    result = accumulate(model, batch, settings, WORLD, reference=reference)
    loss, expected = written_out(model, batch, settings, base if penalised else None)
    assert result.figures["loss"] == pytest.approx(loss, rel=1e-5)
    found = gradients(model)
    assert found.keys() == expected.keys()
    for parameter, gradient in found.items():
        exact = expected[parameter]
        rounding = 2e-7 + 5e-6 * exact.abs().max().item()
        torch.testing.assert_close(gradient.double(), exact, rtol=2e-4, atol=rounding, msg=parameter)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("master", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", ["llama", "gemma3-softcap"])  # a head of its own, and one tied to the embeddings
def test_gradients_added_in_place_are_those_made_again(shape: str, master: torch.dtype, bf16: bool) -> None:
    model = tiny_model(shape).to(master)
    packed = [pack([(e.prompt_ids, e.response_ids)]) for e in examples(3)]

    def backward(in_place: bool) -> dict[str, Any]:
        model.zero_grad()
        for each in packed:
            with gradients_in_place(model) if in_place else nullcontext():
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                    tokens = token_logprobs(model, each)
                (tokens * torch.linspace(-1, 1, len(tokens))).sum().backward()
        return gradients(model)

    expected, found = backward(False), backward(True)
    assert found.keys() == expected.keys()
    rounding = 1e-6 if master == torch.float32 and not bf16 else 0.02
    for name, gradient in found.items():
        assert gradient.layout == torch.strided
        apart = (gradient - expected[name]).abs().max()
        assert apart <= rounding * expected[name].abs().max(), name


@pytest.mark.parametrize("shape", ["llama", "gemma3"])
def test_a_step_makes_no_gradient_as_large_as_the_vocabulary(shape: str) -> None:
    """Autograd hands the weights what is added by itself: few rows of the embeddings, nothing of the head."""
    model = tiny_model(shape)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    handed: dict[str, list[torch.layout | None]] = {"embeddings": [], "head": []}
    layers = {"embeddings": model.get_input_embeddings(), "head": model.get_output_embeddings()}
    for name, layer in layers.items():
        layer.weight.register_hook(lambda gradient, name=name: handed[name].append(getattr(gradient, "layout", None)))
    accumulate(model, examples(2), recipe(batch_size=2), WORLD)
    assert handed == {"embeddings": [torch.sparse_coo] * 2, "head": [torch.sparse_coo if tied else None] * 2}
    assert all(layer.weight.grad.layout == torch.strided for layer in layers.values())
    assert all(layer.weight.grad.abs().sum() > 0 for layer in layers.values())


def test_an_adapter_of_the_embeddings_is_trained() -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    settings = recipe(use_peft=True, lora_target_modules=["embed_tokens", "q_proj"], batch_size=2)
    model = tiny_model("llama")
    add_adapter(model, settings)
    accumulate(model, examples(2), settings, WORLD)
    found = gradients(model)
    assert all("lora_" in name for name in found)
    assert any("embed_tokens" in name and gradient.abs().sum() > 0 for name, gradient in found.items())


def test_what_is_frozen_gets_no_gradient_and_an_error_leaves_no_trace() -> None:
    model = tiny_model("llama")
    embeddings = model.get_input_embeddings()
    embeddings.weight.requires_grad_(False)
    with gradients_in_place(model):
        assert not embeddings.sparse
    embeddings.weight.requires_grad_(True)
    for weight in (embeddings.weight, model.get_output_embeddings().weight):
        weight.grad = None

    def broken() -> None:
        with gradients_in_place(model):
            assert embeddings.sparse
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert not embeddings.sparse
    model.zero_grad()
    response_logprobs(model, [[3, 4, 5]], [[6, 7]]).sum().backward()
    assert embeddings.weight.grad is not None
    assert embeddings.weight.grad.layout == torch.strided
    assert model.get_output_embeddings().weight.grad is not None


def three_steps(settings: Recipe, seed: int = 0) -> dict[str, torch.Tensor]:
    model = tiny_model("llama", seed)
    parameters = list(model.parameters())
    optimizer = make_optimizer(settings, parameters)
    data = examples(3 * settings.batch_size)
    for step in range(3):
        accumulate(model, data[step * settings.batch_size : (step + 1) * settings.batch_size], settings, WORLD)
        total_norm(parameters, settings.max_grad_norm)
        set_learning_rate(optimizer, settings.learning_rate_at(step, 3))
        optimizer.step()
        optimizer.zero_grad()
    return {n: p.detach() for n, p in model.named_parameters()}


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize(
    "name",
    [f"{run}/{kind}" for run in ("mistral-7b/hh-rlhf", "llama3-70b/diverse-reasoning") for kind in ("paper", "as-run")],
)
def test_steps_of_the_papers_recipes_are_the_formulas(name: str, clipped: bool) -> None:
    """Loss, clipping, decay, schedule and optimizer of shipped recipes over three steps, written out in float64."""
    # a smaller batch, exact arithmetic, a rate at which float32 shows a step, an epsilon under which the rounding of a gradient
    # near 0 does not decide a step's sign, and (clipped) a limit that these gradients pass; all else is the recipe's
    changes: dict[str, Any] = {"batch_size": 4, "bf16": False, "master_dtype": "float32", "learning_rate": 1e-3}
    changes |= {"adam_epsilon": 1e-4, "rmsprop_epsilon": 1e-4}
    if clipped:
        changes["max_grad_norm"] = 0.05
    settings = load_recipe(name, changes | {"gradient_queries": 2 if name.endswith("as-run") else None})
    model = tiny_model("llama")
    exact = copy.deepcopy(model).double()
    optimizer = make_optimizer(settings, list(model.parameters()))
    moments: dict[str, list[Any]] = {n: [torch.zeros_like(p), torch.zeros_like(p)] for n, p in exact.named_parameters()}
    for step in range(3):
        batch = examples(4, seed=step)
        _, gradient = written_out(exact, batch, settings)
        norm = math.sqrt(sum(g.square().sum().item() for g in gradient.values()))
        limit = settings.max_grad_norm or math.inf
        assert (norm > limit) == clipped
        clip = min(1.0, limit / (norm + 1e-6))
        factor = (
            [0.0, 1.0, 1 - 1 / 14][step] if name.endswith("as-run") else 1.0
        )  # linear over 15 steps, one of warm-up
        with torch.no_grad():
            for parameter, weight in exact.named_parameters():
                g, (first, second) = gradient[parameter] * clip, moments[parameter]
                if settings.optim == "rmsprop":
                    assert not settings.weight_decay
                    second.mul_(0.99).add_(0.01 * g * g)
                    update = g / (second.sqrt() + 1e-4)
                else:
                    first.mul_(0.9).add_(0.1 * g)
                    second.mul_(0.999).add_(0.001 * g * g)
                    update = first / (1 - 0.9 ** (step + 1)) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-4)
                    weight *= 1 - 1e-3 * factor * settings.weight_decay
                weight -= 1e-3 * factor * update
        accumulate(model, batch, settings, WORLD)
        assert total_norm(list(model.parameters()), settings.max_grad_norm) == pytest.approx(norm, rel=1e-4)
        set_learning_rate(optimizer, settings.learning_rate_at(step, settings.batches(1)))
        optimizer.step()
        optimizer.zero_grad()
    start, after = dict(tiny_model("llama").named_parameters()), dict(model.named_parameters())
    moved = torch.cat([(p - start[n].double()).flatten() for n, p in exact.named_parameters()])
    apart = torch.cat([(after[n].double() - p).flatten() for n, p in exact.named_parameters()])
    assert moved.norm() > 1e-3
    assert apart.norm() < 1e-4 * moved.norm()


@pytest.mark.parametrize("optim", ["adamw_torch", "rmsprop"])
def test_micro_batches_do_not_change_the_update(optim: str) -> None:
    """16 as 1x16, 2x8, 16x1 and as 5, 5, 5, 1: the same weights after three steps.

    epsilon is large because Adam's first steps divide a gradient by itself, which makes rounding of a zero as large as the rate.
    """
    common = {"batch_size": 16, "optim": optim, "adam_epsilon": 1e-4, "rmsprop_epsilon": 1e-4}
    expected = three_steps(recipe(**common, per_device_train_batch_size=1))
    start = dict(tiny_model("llama").named_parameters())
    assert max((expected[n] - start[n]).abs().max().item() for n in expected) > 1e-4
    for size in (2, 5, 16):
        found = three_steps(recipe(**common, per_device_train_batch_size=size))
        assert max((found[n] - expected[n]).abs().max().item() for n in expected) < 1e-6


def test_bfloat16_computes_near_float32_and_leaves_float32_gradients() -> None:
    settings, batch = recipe(bf16=True), examples(4)
    model = tiny_model("llama")
    rough = accumulate(model, batch, settings, WORLD)
    assert {g.dtype for g in gradients(model).values()} == {torch.float32}
    exact = accumulate(tiny_model("llama"), batch, recipe(), WORLD)
    assert rough.figures["loss"] == pytest.approx(exact.figures["loss"], abs=0.02)
    assert rough.figures["loss"] != exact.figures["loss"]


def test_a_loss_that_is_not_finite_names_its_query() -> None:
    model, batch = tiny_model("llama"), examples(3)
    marked = batch[1].prompt_ids[0][0]
    with torch.no_grad():
        model.model.embed_tokens.weight[marked] = float("nan")
    broken = [e for e in batch if any(marked in ids for ids in (*e.prompt_ids, *e.response_ids))]
    with pytest.raises(UserError, match=f"loss of query '{broken[0].query_id}' is not finite"):
        accumulate(model, batch, recipe(), WORLD)


def test_tokens_are_those_that_the_model_ran() -> None:
    example = examples(1)[0]
    expected = sum(len(p) + sum(len(r) - 1 for r in example.response_ids) for p in example.prompt_ids)
    assert accumulate(tiny_model("llama"), [example], recipe(), WORLD).tokens == expected
    cached = accumulate(tiny_model("llama"), [example], recipe(gradient_caching=True), WORLD)
    assert cached.tokens == 2 * expected


@pytest.mark.parametrize("optim", ["adamw_torch", "rmsprop"])
def test_optimizers_are_their_formulas(optim: str) -> None:
    settings = recipe(optim=optim, weight_decay=0.1, adam_beta2=0.9, rmsprop_alpha=0.9)
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    optimizer = make_optimizer(settings, [weight])
    value, first, second = weight.detach().clone(), torch.zeros(3).double(), torch.zeros(3).double()
    for step in range(1, 4):
        gradient = torch.tensor([0.3, -0.1, 2.0], dtype=torch.float64) * step
        weight.grad = gradient.clone()
        set_learning_rate(optimizer, 1e-2 * step)
        optimizer.step()
        rate = 1e-2 * step
        if optim == "rmsprop":
            decayed = gradient + 0.1 * value
            second = 0.9 * second + 0.1 * decayed**2
            value = value - rate * decayed / (second.sqrt() + settings.rmsprop_epsilon)
        else:
            value = value * (1 - rate * 0.1)
            first = 0.9 * first + 0.1 * gradient
            second = 0.9 * second + 0.1 * gradient**2
            corrected = (second / (1 - 0.9**step)).sqrt() + settings.adam_epsilon
            value = value - rate * (first / (1 - 0.9**step)) / corrected
    torch.testing.assert_close(weight.detach(), value, rtol=1e-12, atol=1e-12)


def test_eight_bit_moments() -> None:
    """The 8-bit optimizer stays near AdamW and survives a checkpoint to the bit."""
    pytest.importorskip("torchao", reason="torchao is not installed (pip install 'sami-harness[8bit]')")
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from sami_train.checkpoint import load_checkpoint, save_checkpoint

    weights = {}
    for optim in ("adamw_torch", "adamw_torch_8bit"):
        settings = recipe(optim=optim)
        torch.manual_seed(0)
        layer = torch.nn.Linear(512, 256)
        optimizer = make_optimizer(settings, list(layer.parameters()))
        for step in range(3):
            layer(torch.randn(8, 512, generator=torch.Generator().manual_seed(step))).square().mean().backward()
            set_learning_rate(optimizer, 1e-3)
            optimizer.step()
            optimizer.zero_grad()
        weights[optim] = layer.weight.detach().clone()
    assert (weights["adamw_torch"] - weights["adamw_torch_8bit"]).abs().max().item() < 2e-3
    with TemporaryDirectory() as folder:
        parameters = dict(layer.named_parameters())
        save_checkpoint(Path(folder) / "checkpoint", parameters, optimizer, 3)
        torch.manual_seed(1)
        again = torch.nn.Linear(512, 256)
        fresh = make_optimizer(recipe(optim="adamw_torch_8bit"), list(again.parameters()))
        assert load_checkpoint(Path(folder) / "checkpoint", dict(again.named_parameters()), fresh) == 3
        for one, other in ((layer, optimizer), (again, fresh)):
            one(torch.ones(2, 512)).sum().backward()
            set_learning_rate(other, 1e-3)
            other.step()
        assert torch.equal(layer.weight, again.weight)
