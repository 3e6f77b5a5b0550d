"""Inputs that linear layers share are cast once under autocast, and nothing else changes."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from conftest import SHAPES, tiny_model

from sami_train.casts import casts_once

IDS = torch.tensor([[3, 4, 5, 6, 7, 8]])


def run(model: Any, once: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Logits and gradients under autocast, and the bytes in bfloat16 that autograd keeps."""
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.bfloat16:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.zero_grad(set_to_none=True)
    with (
        casts_once(model) if once else nullcontext(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        logits = model(input_ids=IDS, use_cache=False).logits
    logits.float().square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), gradients, sum(kept.values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_the_same_and_gradients_but_for_rounding(shape: str, checkpointing: bool) -> None:
    model = tiny_model(shape).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    own, shared = (run(model, once) for once in (False, True))
    assert torch.equal(own[0], shared[0])
    assert own[1].keys() == shared[1].keys()
    for name, gradient in own[1].items():
        apart = (gradient - shared[1][name]).norm()
        assert apart <= 2e-2 * gradient.norm(), name
    if not checkpointing:
        width = IDS.numel() * model.config.hidden_size * 2
        fewer = (own[2] - shared[2]) / width / model.config.num_hidden_layers
        assert fewer >= (2 if shape == "mixtral" else 3), "q, k and v keep one copy, and gate and up another"


def test_a_model_is_left_as_it_was() -> None:
    model = tiny_model("llama")
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    with casts_once(model):
        assert all("forward" in vars(module) for module in linears)
    assert not any("forward" in vars(module) for module in linears)


def test_without_autocast_nothing_is_cast() -> None:
    model = tiny_model("llama")
    before = model(input_ids=IDS).logits
    with casts_once(model):
        after = model(input_ids=IDS).logits
    assert torch.equal(before, after)


def test_a_copy_made_without_gradients_is_not_used_with_them() -> None:
    layer = torch.nn.Linear(4, 4)
    x = torch.randn(2, 4, requires_grad=True)
    with casts_once(layer), torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            layer(x)
        layer(x).float().sum().backward()
    assert x.grad is not None


def test_a_copy_is_not_used_for_another_format_or_once_gradients_are_asked_for() -> None:
    layer = torch.nn.Linear(4, 4)
    x = torch.randn(2, 4)
    with casts_once(layer):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            layer(x)
            layer(x.requires_grad_()).float().sum().backward()
        assert x.grad is not None
        with torch.autocast("cpu", dtype=torch.float16):
            assert layer(x).dtype == torch.float16


def test_inputs_made_for_inference_are_taken() -> None:
    layer = torch.nn.Linear(4, 4)
    with casts_once(layer), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        x = torch.ones(2, 4)
        before = layer(x)
        x.zero_()  # no version tells of it
        assert not torch.equal(layer(x), before)


def test_a_copy_is_not_used_after_its_input_was_written_to() -> None:
    layer = torch.nn.Linear(4, 4)
    x = torch.randn(2, 4)
    with casts_once(layer), torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        before = layer(x)
        x.add_(1)
        after = layer(x)
    assert not torch.equal(before, after)


def test_layers_of_other_classes_keep_their_forward() -> None:
    class Quantized(torch.nn.Linear):
        """As optional engines have them."""

    layer = Quantized(4, 4)
    with casts_once(layer):
        assert "forward" not in vars(layer)
