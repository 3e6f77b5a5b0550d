"""Rotary position embeddings in closed form against the models' own."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import SHAPES, tiny_model
from transformers import Phi3Config, Phi3ForCausalLM
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral
from transformers.models.mixtral import modeling_mixtral
from transformers.models.olmo2 import modeling_olmo2
from transformers.models.phi3 import modeling_phi3
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

from sami_train.rotations import _Rotated, closed_form_rotations, rotates

FILES = [modeling_gemma3, modeling_llama, modeling_mistral, modeling_mixtral, modeling_qwen2, modeling_qwen3]


@pytest.mark.parametrize("numbers", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("angles", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.__name__.rsplit(".", 1)[-1])
def test_values_and_gradients_are_the_models_own(file: ModuleType, angles: torch.dtype, numbers: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 5, 4, 8, generator=generator).transpose(1, 2).to(numbers)  # (rows, heads, width, size)
    cos, sin = (torch.randn(2, 5, 8, generator=generator).to(angles) for _ in range(2))
    upstream = torch.randn(2, 4, 5, 8, generator=generator)
    results = []
    for closed in (False, True):
        x = q.clone().requires_grad_()
        if closed:
            y = _Rotated.apply(x, cos.unsqueeze(1), sin.unsqueeze(1))
        else:
            y, other = file.apply_rotary_pos_emb(x, x, cos, sin)
            assert torch.equal(y, other)
        y.backward(upstream.to(y.dtype))
        assert x.grad is not None
        results.append((y.detach(), x.grad))
    assert rotates(file.apply_rotary_pos_emb)
    rounding = 1e-5 if numbers == angles == torch.float32 else 4e-2
    for own, found in zip(*results, strict=True):
        assert found.dtype == own.dtype
        torch.testing.assert_close(found, own, rtol=rounding, atol=rounding)


def test_the_gradient_is_that_of_the_value() -> None:
    """Finite differences in float64."""
    generator = torch.Generator().manual_seed(1)
    x, cos, sin = (torch.randn(2, 3, 6, generator=generator).double() for _ in range(3))
    assert torch.autograd.gradcheck(lambda a: _Rotated.apply(a, cos, sin), (x.requires_grad_(),))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_models_file_is_found_and_left_as_it_was(shape: str) -> None:
    model = tiny_model(shape)
    file: Any = sys.modules[type(model).__module__]
    own = file.apply_rotary_pos_emb
    ids = torch.tensor([[3, 4, 5, 6]])
    before = model(input_ids=ids).logits
    with closed_form_rotations(model):
        assert file.apply_rotary_pos_emb is not own
        torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-5, atol=1e-5)
        with closed_form_rotations(model):  # one within another changes nothing
            assert file.apply_rotary_pos_emb is not own
        assert file.apply_rotary_pos_emb is not own
    assert file.apply_rotary_pos_emb is own


def test_what_was_not_tried_is_left_to_the_models_own_function() -> None:
    """Heads of which a part is not rotated (GPT-NeoX, Phi-4-mini), and arguments beyond the usual four."""
    generator = torch.Generator().manual_seed(2)
    q, k = (torch.randn(2, heads, 5, 8, generator=generator) for heads in (4, 2))
    cos, sin = (torch.randn(2, 5, 4, generator=generator) for _ in range(2))
    own = modeling_phi3.apply_rotary_pos_emb
    assert rotates(own)
    expected = own(q, k, cos, sin), own(q.transpose(1, 2), k.transpose(1, 2), cos, sin, unsqueeze_dim=2)
    config = Phi3Config(vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, pad_token_id=2)
    with closed_form_rotations(Phi3ForCausalLM(config)):
        new = modeling_phi3.apply_rotary_pos_emb
        whole = new(q.clone().requires_grad_(), k, *(torch.cat((part, part), -1) for part in (cos, sin)))
        assert type(whole[0].grad_fn).__name__.startswith(_Rotated.__name__), "the closed form is in use"
        found = new(q, k, cos, sin), new(q.transpose(1, 2), k.transpose(1, 2), cos, sin, unsqueeze_dim=2)
    for one, other in zip((*expected[0], *expected[1]), (*found[0], *found[1]), strict=True):
        assert torch.equal(one, other)


def test_a_function_that_gives_its_numbers_back_in_their_own_format_stays() -> None:
    """OLMo's angles are in float32 where its weights are in bfloat16."""
    assert not rotates(modeling_olmo2.apply_rotary_pos_emb)


def test_functions_of_another_kind_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def interleaved(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Pairs of neighbours, as some models rotate."""
        turned = (torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2) for x in (q, k))
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return tuple(x * cos + y * sin for x, y in zip((q, k), turned, strict=True))

    def other(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        return x * angles

    for function in (interleaved, other):
        assert not rotates(function)
        with monkeypatch.context() as patch:
            patch.setattr(modeling_llama, "apply_rotary_pos_emb", function)
            with closed_form_rotations(tiny_model("llama")):
                assert modeling_llama.apply_rotary_pos_emb is function
