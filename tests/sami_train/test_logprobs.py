"""The packed matrix against the plain one: values and gradients, on the shapes of real models."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from sami_train import response_logprobs, response_logprobs_naive, sami_loss
from sami_train.errors import UserError
from sami_train.logprobs import cell_logprobs, check_fast_path, diagonal_tokens, pack, token_logprobs


def uneven(size: int, seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and responses of uneven lengths, some longer than a window; the pad token (= eos, 2) occurs inside them."""
    rng = random.Random(seed)
    prompts = [[1] + [rng.randrange(2, 97) for _ in range(rng.randrange(4, 14))] for _ in range(size)]
    responses = [[rng.randrange(2, 97) for _ in range(rng.randrange(1, 17))] for _ in range(size)]
    prompts[0][2] = responses[-1][-1] = responses[0][0] = 2
    return prompts, responses


def alike(size: int, seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    """The same with prompts that begin with the same 18 tokens; the shortest is no longer than that beginning and one more."""
    prompts, responses = uneven(size, seed)
    rng = random.Random(100 + seed)
    beginning = [1] + [rng.randrange(2, 97) for _ in range(17)]
    prompts[-1] = prompts[-1][:1]
    return [beginning + prompt for prompt in prompts], responses


@pytest.mark.parametrize("size", [2, 3, 4])
def test_prompts_that_begin_alike_share_a_row(model: Any, size: int) -> None:
    prompts, responses = alike(size, seed=size)
    packed = pack([(prompts, responses)])
    bodies = sum(len(r) - 1 for r in responses)
    assert len(packed.input_ids) == 1
    shared = (
        19  # the first tokens after the common beginning are 1 everywhere, but one prompt must keep a token of its own
    )
    assert packed.tokens <= sum(map(len, prompts)) + size * bodies - (size - 1) * (shared - 1)
    gradients = []
    for function in (response_logprobs, response_logprobs_naive):
        model.zero_grad()
        matrix = function(model, prompts, responses)
        sami_loss(matrix).backward()
        gradients.append(
            (matrix.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        )
    torch.testing.assert_close(gradients[0][0], gradients[1][0], rtol=1e-5, atol=1e-5)
    for name, gradient in gradients[0][1].items():
        torch.testing.assert_close(gradient, gradients[1][1][name], rtol=1e-4, atol=1e-6, msg=name)


def test_shared_and_separate_rows_in_one_pass(model: Any) -> None:
    queries = [alike(2, seed=1), uneven(2, seed=2), alike(2, seed=3)]
    packed = pack(queries)
    assert len(packed.input_ids) == 4
    together = cell_logprobs(token_logprobs(model, packed), packed, "mean")
    for matrix, (prompts, responses) in zip(together, queries, strict=True):
        expected = response_logprobs_naive(model, prompts, responses)
        torch.testing.assert_close(matrix, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [2, 3])
def test_prompts_of_two_queries_take_a_row_each(model: Any, size: int) -> None:
    """Own and other query begin apart, or alike by less than what each shares with itself under every constitution."""
    (own, responses), (other, _) = alike(size, seed=1), alike(size, seed=2)
    for start in ([], [5] * 17):
        both = [[*start, *ids] for ids in (*own, *other)]
        packed = pack([(both, responses)])
        assert len(packed.input_ids) == 2
        halves = [pack([(half, responses)]).tokens for half in (both[:size], both[size:])]
        assert packed.tokens == sum(halves)
        plain = response_logprobs_naive(model, both, responses)
        torch.testing.assert_close(response_logprobs(model, both, responses), plain, rtol=1e-5, atol=1e-5)


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


@pytest.mark.parametrize("kept", [0, 1 << 30], ids=["formed again", "kept"])
def test_blocks_of_the_vocabulary_equal_the_whole(model: Any, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, responses = uneven(3, seed=5)
    whole = response_logprobs(model, prompts, responses, head_block=10_000)
    monkeypatch.setattr("sami_train.head.KEPT_BYTES", kept)
    blocks = response_logprobs(model, prompts, responses, head_block=7)
    torch.testing.assert_close(blocks, whole, rtol=1e-5, atol=1e-5)
    model.zero_grad()
    sami_loss(whole).backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    sami_loss(blocks).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_more_responses_than_prompts(model: Any) -> None:
    prompts, responses = uneven(4, seed=7)
    packed = response_logprobs(model, prompts[:2], responses)
    torch.testing.assert_close(packed, response_logprobs_naive(model, prompts[:2], responses), rtol=1e-5, atol=1e-5)


def test_packed_rows_hold_the_prompt_once() -> None:
    packed = pack([([[1, 5, 6]], [[7, 8, 9], [10], [11, 12]])])
    assert packed.input_ids == [[1, 5, 6, 7, 8, 11]]
    assert packed.position_ids == [[0, 1, 2, 3, 4, 3]]
    assert packed.predicting == [2, 3, 4, 2, 2, 5]
    assert packed.targets == [7, 8, 9, 10, 11, 12]
    assert packed.cells == [0, 0, 0, 1, 2, 2]


@pytest.mark.parametrize("size", [2, 3])
def test_queries_packed_together_equal_queries_alone(model: Any, size: int) -> None:
    queries = [uneven(size, seed=20 + n) for n in range(3)]
    packed = pack(queries)
    together = cell_logprobs(token_logprobs(model, packed), packed, "mean")
    for matrix, (prompts, responses) in zip(together, queries, strict=True):
        torch.testing.assert_close(matrix, response_logprobs(model, prompts, responses), rtol=1e-5, atol=1e-5)


def test_diagonal_tokens_are_those_of_each_response_under_its_own_prompt() -> None:
    packed = pack([([[1], [1, 2]], [[7, 8], [9]]), ([[1], [1]], [[3], [4, 5]])])
    assert [packed.targets[n] for n in diagonal_tokens(packed)] == [7, 8, 9, 3, 4, 5]
    assert [packed.cells[n] for n in diagonal_tokens(packed)] == [0, 0, 3, 4, 7, 7]


def test_an_architecture_that_the_fast_path_misreads_is_refused(model: Any) -> None:
    check_fast_path(model, uneven(2))
    hook = model.lm_head.register_forward_hook(lambda _module, _inputs, logits: logits * 3)
    try:
        with pytest.raises(UserError, match="architecture is not supported"):
            check_fast_path(model, uneven(3, seed=3))
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("prompts", "responses", "word"),
    [([[1]], [[2], []], "response 1"), ([[]], [[2]], "prompt 0"), ([[1]], [], "response")],
)
def test_empty_input_is_named(prompts: Any, responses: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        pack([(prompts, responses)])
