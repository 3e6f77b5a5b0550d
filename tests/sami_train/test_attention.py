"""Attention of packed rows: by parts and under a mask, against softmax over the keys that each token sees, in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from conftest import SHAPES, SMALL, tiny_model
from transformers import AttentionInterface

from sami_train import attention as attention_module
from sami_train import response_logprobs, response_logprobs_naive, sami_loss
from sami_train.attention import Given, Segment, by_parts, goes_by_mask, mask
from sami_train.errors import UserError
from sami_train.logprobs import pack

WIDTH, HEADS, GROUPS, SIZE = 40, 4, 2, 8


def rows() -> list[list[Segment]]:
    """A row of two prompts with a common beginning, and one that is shorter, of a prompt and two responses."""
    root = Segment(0, 9, 0)
    first, second = Segment(9, 12, 9, (root,)), Segment(22, 27, 9, (root,))
    tree = [root, first, Segment(12, 19, 12, (root, first)), Segment(19, 22, 12, (root, first))]
    tree += [second, Segment(27, 34, 14, (root, second)), Segment(34, 37, 14, (root, second))]
    prompt = Segment(0, 13, 0)
    return [tree, [prompt, Segment(13, 14, 13, (prompt,)), Segment(14, 30, 13, (prompt,))]]


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Queries, keys, values and the slopes of the results, (rows, heads, width, size)."""
    torch.manual_seed(0)
    shapes = [(2, heads, WIDTH, SIZE) for heads in (HEADS, GROUPS, GROUPS, HEADS)]
    return tuple(2 * torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes)


def seen_by(segments: list[Segment], window: int | None) -> Iterator[tuple[int, list[int]]]:
    """For every token the places of those that it sees: token by token, from the segments' definition."""
    for segment in segments:
        for place in range(segment.start, segment.stop):
            position = segment.position + place - segment.start
            keys = []
            for other in (*segment.above, segment):
                for key in range(other.start, other.stop):
                    behind = position - (other.position + key - other.start)
                    if 0 <= behind < (window or math.inf):
                        keys.append(key)
            yield place, keys


def by_tokens(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None) -> torch.Tensor:
    """The definition: one token and one head at a time."""
    result = torch.zeros_like(query)
    for row, segments in enumerate(rows()):
        for place, keys in seen_by(segments, window):
            for head in range(HEADS):
                group = head * GROUPS // HEADS
                weights = (key[row, group, keys] @ query[row, head, place] / math.sqrt(SIZE)).softmax(0)
                result[row, head, place] = weights @ value[row, group, keys]
    return result


@pytest.mark.parametrize("window", [None, 1, 3, 10, 100])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 4e-2)]
)
def test_parts_give_the_values_and_gradients_of_the_definition(
    dtype: torch.dtype, tolerance: float, window: int | None
) -> None:
    *qkv, slope = inputs(dtype)
    found = [tensor.clone().requires_grad_() for tensor in qkv]
    result = by_parts(found[0], found[1], found[2], rows(), SIZE**-0.5, window)
    assert result.dtype == dtype
    assert not result[1, :, 30:].any(), "padding gives zeros"
    result.backward(slope)
    exact = [tensor.double().requires_grad_() for tensor in qkv]
    expected = by_tokens(exact[0], exact[1], exact[2], window)
    expected.backward(slope.double())
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)
    for one, other in zip(found, exact, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        scale = other.grad.abs().max().item() or 1.0  # with one key to see, a query changes nothing
        torch.testing.assert_close(one.grad.double() / scale, other.grad / scale, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("window", [None, 1, 3, 10])
def test_the_mask_shows_what_each_token_sees(window: int | None) -> None:
    expected = torch.eye(WIDTH, dtype=torch.bool).repeat(2, 1, 1)  # padding sees itself: a row without a key gives NaN
    for row, segments in enumerate(rows()):
        for place, keys in seen_by(segments, window):
            expected[row, place, keys] = True
    assert torch.equal(mask(rows(), WIDTH, window)[:, 0], expected)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_masked_way_of_other_devices_equals_the_plain_matrix(
    shape: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU runs, on the CPU, prompts that begin alike among them; with recomputed layers both ways."""
    beginning = list(range(3, 25))
    prompts = [[*beginning, 30, 31, 32], [*beginning, 33], [*beginning, *range(40, 52)]]
    responses = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15]]
    assert len(pack([(prompts, responses)]).input_ids) == 1
    gradients = []
    for way in ("plain", "parts", "mask"):
        model = tiny_model(shape).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        monkeypatch.setattr(attention_module, "BY_PARTS", frozenset({"cpu"} if way == "parts" else ()))
        function: Any = response_logprobs_naive if way == "plain" else response_logprobs
        matrix = function(model, prompts, responses)
        sami_loss(matrix).backward()
        gradients.append((matrix.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    for matrix, slopes in gradients[1:]:
        torch.testing.assert_close(matrix, gradients[0][0], rtol=1e-5, atol=1e-5)
        assert slopes.keys() == gradients[0][1].keys()
        for name, slope in slopes.items():
            torch.testing.assert_close(slope, gradients[0][1][name], rtol=1e-4, atol=2e-6, msg=name)


def test_no_part_is_computed_for_tokens_that_see_nothing_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel runs once for every segment, with the keys of what it sees, whatever the other rows hold."""
    calls = []
    real = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def counted(query: torch.Tensor, key: torch.Tensor, *rest: Any, **options: Any) -> Any:
        calls.append((query.shape[2], key.shape[2]))
        return real(query, key, *rest, **options)

    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", counted)
    query, key, value, _ = inputs(torch.float32)
    by_parts(query, key, value, rows(), 1.0)
    seen = [(s.stop - s.start, sum(o.stop - o.start for o in (s, *s.above))) for row in rows() for s in row]
    assert calls == seen
    calls.clear()
    by_parts(query, key, value, rows(), 1.0, window=2)
    expected = []
    for segments in rows():
        keys_of = dict(seen_by(segments, window=2))
        for segment in segments:
            places = {key for place in range(segment.start, segment.stop) for key in keys_of[place]}
            met = [o for o in segments if places & set(range(o.start, o.stop))]
            expected.append((segment.stop - segment.start, sum(o.stop - o.start for o in met)))
    assert calls == expected, "segments that a window hides from every token are left out"
    assert calls != seen


@pytest.mark.parametrize("window", [None, 3, 10])
@pytest.mark.parametrize("queries", [1, 4, 7])
def test_blocks_of_queries_change_no_gradient(
    queries: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments that are longer than what the backward pass takes at once, whole blocks and a remainder."""
    *qkv, slope = inputs(torch.float64)
    gradients = []
    for at_once in (1000, queries):
        monkeypatch.setattr(attention_module, "QUERIES", at_once)
        found = [tensor.clone().requires_grad_() for tensor in qkv]
        by_parts(found[0], found[1], found[2], rows(), SIZE**-0.5, window).backward(slope)
        gradients.append([tensor.grad for tensor in found])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("queries", "expected"),
    [
        (192, [[(0, 9), (9, 12), (12, 22), (22, 27), (27, 37)], [(0, 13), (13, 30)]]),
        (9, [[(0, 9), (9, 12), (12, 19), (19, 22), (22, 27), (27, 34), (34, 37)], [(0, 13), (13, 14), (14, 30)]]),
    ],
)
def test_neighbours_that_see_the_same_go_backward_together(
    queries: int, expected: list[list[tuple[int, int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The responses of a prompt, as long as they are few tokens; a longer segment is cut into blocks of like size."""
    monkeypatch.setattr(attention_module, "QUERIES", queries)
    found = Given(rows()).groups(None)
    assert [[(g.queries.start, g.queries.stop) for g in groups] for groups in found] == expected
    for groups in found:
        for group in groups:
            lengths = [block.length for block in group.blocks]
            assert sum(lengths) == group.queries.stop - group.queries.start
            assert max(lengths) <= queries
            assert max(lengths) - min(lengths) <= len(lengths)


def test_autocast_gives_its_own_number_format_and_leaves_other_products_alone() -> None:
    """As the fused kernel under autocast does; the gradients come back in the format of what they belong to."""
    *qkv, slope = inputs(torch.float32)
    found = [tensor.clone().requires_grad_() for tensor in qkv]
    precision = torch.backends.mkldnn.matmul.fp32_precision
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = by_parts(found[0], found[1], found[2], rows(), SIZE**-0.5)
    assert result.dtype == torch.bfloat16
    result.backward(slope.bfloat16())
    assert torch.backends.mkldnn.matmul.fp32_precision == precision
    exact = [tensor.double().requires_grad_() for tensor in qkv]
    expected = by_tokens(exact[0], exact[1], exact[2], None)
    expected.backward(slope.double())
    torch.testing.assert_close(result.double(), expected, rtol=4e-2, atol=4e-2)
    for one, other in zip(found, exact, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert one.grad.dtype == torch.float32
        scale = other.grad.abs().max()
        torch.testing.assert_close(one.grad.double() / scale, other.grad / scale, rtol=4e-2, atol=4e-2)


def test_attention_elsewhere_in_the_process_is_untouched() -> None:
    """Registering what packed rows need changes nothing for a model that is called as usual."""
    ids = torch.tensor([[1, 5, 6, 7]])
    before = tiny_model("mistral")(input_ids=ids).logits
    response_logprobs(tiny_model("mistral"), [[1, 5]], [[6, 7]])
    assert torch.equal(tiny_model("mistral")(input_ids=ids).logits, before)


PROMPTS = [[*range(3, 25), 30, 31], [*range(3, 25), 33]]
RESPONSES = [[5, 6, 7, 8, 9], [13, 14, 15]]


@pytest.mark.parametrize("family", ["StableLm", "Falcon"])
def test_a_model_that_does_not_hand_rows_on_goes_by_mask(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its layers never see the rows; without a mask of theirs every token would see every other."""
    monkeypatch.setattr(attention_module, "_BY_MASK", set())
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SMALL)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    assert not goes_by_mask(model)
    found = response_logprobs(model, PROMPTS, RESPONSES)
    assert goes_by_mask(model), "it is known from now on"
    expected = response_logprobs_naive(model, PROMPTS, RESPONSES)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(response_logprobs(model, PROMPTS, RESPONSES), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [9, 64])
def test_a_model_that_keeps_its_window_to_its_mask_goes_by_mask(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Phi MoE layer does not say how far it sees; where rows are no longer than that, nobody need know."""
    monkeypatch.setattr(attention_module, "_BY_MASK", set())
    torch.manual_seed(0)
    config = transformers.PhimoeConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2, sliding_window=window)
    model = transformers.PhimoeForCausalLM(config).eval()
    beginning = list(range(3, 33))
    prompts = [[*beginning, 40, 41, 42], [*beginning, 43]]
    found = response_logprobs(model, prompts, RESPONSES)
    assert goes_by_mask(model) == (window == 9)
    torch.testing.assert_close(found, response_logprobs_naive(model, prompts, RESPONSES), rtol=1e-5, atol=1e-5)


def test_an_attention_that_another_library_registered_stays_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    before = AttentionInterface()["sdpa"]

    def theirs(*arguments: Any, **options: Any) -> Any:
        calls.append(options)
        return before(*arguments, **options)

    model = tiny_model("llama")
    AttentionInterface.register("sdpa", theirs)
    try:
        found = response_logprobs(model, PROMPTS, RESPONSES)
        assert not calls, "packed rows go by parts"
        torch.testing.assert_close(found, response_logprobs_naive(model, PROMPTS, RESPONSES), rtol=1e-5, atol=1e-5)
        assert calls, "other calls go to what was registered"
    finally:
        AttentionInterface.register("sdpa", before)


def test_under_a_mask_a_shared_row_is_not_made_too_long() -> None:
    prompts = [[1] * 20 + [n] for n in range(2, 10)]
    responses = [[5] * 100 for _ in prompts]
    assert len(pack([(prompts, responses)], by_mask=True).input_ids) == 8
    assert len(pack([(prompts, responses)]).input_ids) == 1


def test_one_prompt_is_one_segment() -> None:
    """As the rows of cached gradients are: there is nothing that it could share."""
    (segments,) = pack([([[1] * 40], [[5, 6], [7]])]).segments
    assert [(s.start, s.stop, len(s.above)) for s in segments] == [(0, 40, 0), (40, 41, 1)]


def test_another_attention_is_refused() -> None:
    model = tiny_model("llama")
    model.set_attn_implementation("eager")
    with pytest.raises(UserError, match="attn_implementation='sdpa'"):
        response_logprobs(model, [[1, 5]], [[6, 7]])
