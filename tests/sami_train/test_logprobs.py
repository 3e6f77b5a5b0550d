"""The packed matrix against the plain one: values and gradients, on the shapes of real models."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from sami_train import response_logprobs, response_logprobs_naive, sami_loss
from sami_train.logprobs import pack


def uneven(size: int, seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and responses of uneven lengths, some longer than a window; the pad token (= eos, 2) occurs inside them."""
    rng = random.Random(seed)
    prompts = [[1] + [rng.randrange(2, 97) for _ in range(rng.randrange(4, 14))] for _ in range(size)]
    responses = [[rng.randrange(2, 97) for _ in range(rng.randrange(1, 17))] for _ in range(size)]
    prompts[0][2] = responses[-1][-1] = responses[0][0] = 2
    return prompts, responses


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_packed_equals_naive(model: Any, size: int, reduction: Any) -> None:
    prompts, responses = uneven(size, seed=size)
    packed = response_logprobs(model, prompts, responses, reduction=reduction)
    plain = response_logprobs_naive(model, prompts, responses, reduction=reduction)
    assert packed.shape == (size, size)
    torch.testing.assert_close(packed, plain, rtol=1e-5, atol=1e-5)
    assert (plain.max() - plain.min()).item() > 0.05, "the matrix is flat, so that the comparison would show nothing"


@pytest.mark.parametrize("size", [2, 4])
def test_gradients_equal_naive(model: Any, size: int) -> None:
    prompts, responses = uneven(size, seed=10 + size)
    gradients = []
    for function in (response_logprobs, response_logprobs_naive):
        model.zero_grad()
        sami_loss(function(model, prompts, responses)).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert max(g.abs().max().item() for g in gradients[1].values()) > 1e-4
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6, msg=name)


def test_chunked_head_equals_whole(model: Any) -> None:
    prompts, responses = uneven(3, seed=5)
    whole = response_logprobs(model, prompts, responses, head_chunk=10_000)
    chunked = response_logprobs(model, prompts, responses, head_chunk=7)
    torch.testing.assert_close(chunked, whole, rtol=1e-6, atol=1e-6)
    model.zero_grad()
    sami_loss(whole).backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    sami_loss(chunked).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_more_responses_than_prompts(model: Any) -> None:
    prompts, responses = uneven(4, seed=7)
    packed = response_logprobs(model, prompts[:2], responses)
    torch.testing.assert_close(packed, response_logprobs_naive(model, prompts[:2], responses), rtol=1e-5, atol=1e-5)


def test_packed_rows_hold_the_prompt_once() -> None:
    packed = pack([[1, 5, 6]], [[7, 8, 9], [10], [11, 12]])
    assert packed.input_ids == [[1, 5, 6, 7, 8, 11]]
    assert packed.position_ids == [[0, 1, 2, 3, 4, 3]]
    assert packed.predicting == [[2, 3, 4, 2, 2, 5]]
    assert packed.targets == [7, 8, 9, 10, 11, 12]


@pytest.mark.parametrize(
    ("prompts", "responses", "word"),
    [([[1]], [[2], []], "response 1"), ([[]], [[2]], "prompt 0"), ([[1]], [], "response")],
)
def test_empty_input_is_named(prompts: Any, responses: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        pack(prompts, responses)
