"""RMS norms in closed form against the models' own."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from conftest import SHAPES, tiny_model
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.mixtral.modeling_mixtral import MixtralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from sami_train.norms import Kind, _RMSNorm, closed_form_norms, norms

CLASSES = [Gemma3RMSNorm, LlamaRMSNorm, MistralRMSNorm, MixtralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm]


def run(norm: Any, x: torch.Tensor, upstream: torch.Tensor, closed: bool) -> list[torch.Tensor]:
    """Value and gradients."""
    norm, x = copy.deepcopy(norm), x.clone().requires_grad_()
    norm.weight.grad = None
    with closed_form_norms(norm) if closed else nullcontext():
        value = norm(x)
    value.backward(upstream.to(value.dtype))
    assert x.grad is not None
    return [value.detach(), x.grad, norm.weight.grad]


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("numbers", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("made", CLASSES)
def test_value_and_gradients_are_the_models_own(made: Any, numbers: torch.dtype, weights: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    norm = made(24, eps=1e-6)
    with torch.no_grad():
        norm.weight.add_(torch.randn(24, generator=generator) * 0.3)
    norm = norm.to(weights)
    x = (torch.randn(3, 5, 24, generator=generator) * torch.logspace(-2, 2, 5)[:, None]).to(numbers)
    upstream = torch.randn(3, 5, 24, generator=generator)
    assert norms(norm), "the class is known"
    own, closed = (run(norm, x, upstream, closed) for closed in (False, True))
    rounding = 1e-5 if numbers == weights == torch.float32 else 2e-2
    for expected, found in zip(own, closed, strict=True):
        assert found.dtype == expected.dtype
        apart = (found.float() - expected.float()).abs().amax(-1)
        assert bool((apart <= rounding * expected.float().abs().amax(-1) + 1e-7).all())


def test_the_gradient_is_that_of_the_value() -> None:
    """Finite differences in float64."""
    generator = torch.Generator().manual_seed(1)
    x, gain = (torch.randn(*size, generator=generator).double().requires_grad_() for size in ((2, 3, 6), (6,)))
    assert torch.autograd.gradcheck(lambda a, b: _RMSNorm.apply(a, b, 1e-3, torch.float64), (x, gain))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_models_norms_are_found_and_left_as_they_were(shape: str) -> None:
    model = tiny_model(shape)
    named = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    assert [module for module, _ in norms(model)] == named
    ids = torch.tensor([[3, 4, 5, 6]])
    before = model(input_ids=ids).logits
    with closed_form_norms(model):
        assert all("forward" in vars(module) for module in named)
        torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-5, atol=1e-5)
    assert not any("forward" in vars(module) for module in named)
    assert torch.equal(model(input_ids=ids).logits, before)


def test_frozen_weights_get_no_gradient() -> None:
    norm = LlamaRMSNorm(8)
    norm.weight.requires_grad_(False)
    x = torch.randn(2, 8, requires_grad=True)
    with closed_form_norms(norm):
        norm(x).sum().backward()
    assert norm.weight.grad is None
    assert x.grad is not None


def test_norms_of_another_kind_stay_as_they_are() -> None:
    class OddRMSNorm(LlamaRMSNorm):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(hidden_states)

    class GatedRMSNorm(torch.nn.Module):
        """Without a weight, and made otherwise."""

    plain = torch.nn.RMSNorm(8, eps=1e-6)
    assert norms(plain) == [(plain, Kind(0.0, promotes=False))]
    bare, without_eps = torch.nn.RMSNorm(8, eps=1e-6, elementwise_affine=False), torch.nn.RMSNorm(8)
    for norm in (
        OddRMSNorm(8),
        GatedRMSNorm(),
        torch.nn.LayerNorm(8),
        bare,
        without_eps,
        Gemma3nRMSNorm(8, with_scale=False),
    ):
        assert norms(norm) == []
        with closed_form_norms(norm):
            assert "forward" not in vars(norm)
