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
from sami_train import decoder, response_logprobs, response_logprobs_naive, sami_loss
from sami_train.attention import Given, Segment, by_parts, mask
from sami_train.decoder import goes_by_mask
from sami_train.errors import UserError
from sami_train.logprobs import check_fast_path, pack, reliable_logprobs

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
        monkeypatch.setattr(decoder, "BY_PARTS", frozenset({"cpu"} if way == "parts" else ()))
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


def made(family: str, **settings: Any) -> Any:
    """A random model of a family of transformers."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **settings})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    return model


def agrees(model: Any, prompts: Any, responses: Any) -> None:
    expected = response_logprobs_naive(model, prompts, responses)
    torch.testing.assert_close(response_logprobs(model, prompts, responses), expected, rtol=1e-5, atol=1e-5)


LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}


@pytest.mark.parametrize(
    ("family", "settings"),
    [("Falcon", {}), ("DeepseekV3", {**LATENT, "first_k_dense_replace": 3, "num_key_value_heads": 4})],
)
def test_a_model_whose_layers_cannot_go_by_parts_goes_by_mask(
    family: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that attend by themselves, and values of another size than queries."""
    monkeypatch.setattr(decoder, "_BY_MASK", set())
    model = made(family, **settings)
    assert not goes_by_mask(model)
    agrees(model, PROMPTS, RESPONSES)
    assert goes_by_mask(model), "it is known from now on"
    agrees(model, PROMPTS, RESPONSES)


STRAY = ["Llama", "Olmo2", "Granite"]
"""Models that have no window, whatever their configuration says."""
LONG = [[*range(3, 33), 40, 41, 42], [*range(3, 33), 43]], RESPONSES


@pytest.mark.parametrize("ways", [{"cpu"}, set()], ids=["parts", "mask"])
@pytest.mark.parametrize("family", [*STRAY, "Mistral", "StableLm", "Phimoe", "Starcoder2", "Qwen2"])
def test_the_window_is_what_the_model_asks_for(family: str, ways: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "_BY_MASK", set())
    monkeypatch.setattr(decoder, "BY_PARTS", frozenset(ways))
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2} if family == "Phimoe" else {}
    model = made(family, **experts)
    model.config.sliding_window = 9
    agrees(model, *LONG)
    assert goes_by_mask(model) == (not ways), "no model of these has layers that cannot go by parts"


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("Granite", {"logits_scaling": 8.0}),
        ("Cohere", {"logit_scale": 0.125}),
        ("HyperCLOVAX", {"logits_scaling": 0.5}),
    ],
)
def test_a_scale_of_the_logits_is_one_factor(family: str, settings: dict[str, Any]) -> None:
    plain, packed = (made(family, **settings) for _ in range(2))
    for model, function in ((plain, response_logprobs_naive), (packed, response_logprobs)):
        sami_loss(function(model, PROMPTS, RESPONSES)).backward()
    check_fast_path(packed, (PROMPTS, RESPONSES), tolerance=1e-5)
    for (name, one), other in zip(plain.named_parameters(), packed.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_rotation_that_depends_on_the_length_is_refused_beyond_its_limit(kind: str) -> None:
    rope: dict[str, Any] = {"rope_type": kind, "factor": 2.0, "rope_theta": 10_000.0}
    if kind == "longrope":
        rope |= {"original_max_position_embeddings": 24, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    model = made("Llama", rope_parameters=rope, max_position_embeddings=24 if kind == "dynamic" else 48)
    agrees(model, [[1, 5, 6], [1, 7]], RESPONSES)
    with pytest.raises(UserError, match=rf"rotates positions otherwise \({kind}\) in those of more than 24"):
        check_fast_path(model, LONG)
    expected = response_logprobs_naive(model, *LONG)
    torch.testing.assert_close(reliable_logprobs(model, *LONG), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("Falcon", {"alibi": True, "new_decoder_architecture": False}),
        ("Gptj", {"n_embd": 32, "n_head": 4, "n_layer": 2, "rotary_dim": 4}),
        ("Bloom", {"n_head": 4, "n_layer": 2}),
        ("Gemma2", {"head_dim": 8}),
    ],
)
def test_an_architecture_that_is_not_supported_is_one_sentence_and_is_scored_plainly(
    family: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "_BY_MASK", set())
    name = {"Gptj": "GPTJ"}.get(family, family)
    without = {} if family in ("Falcon", "Gemma2") else {"attn_implementation": "eager"}
    model = made(name, **settings, **without)
    with pytest.raises(UserError, match=r"use a Llama, Mistral, Mixtral, Gemma( 3)? or Qwen model$") as caught:
        check_fast_path(model, (PROMPTS, RESPONSES))
    assert "\n" not in str(caught.value)
    expected = response_logprobs_naive(model, PROMPTS, RESPONSES)
    torch.testing.assert_close(reliable_logprobs(model, PROMPTS, RESPONSES), expected, rtol=1e-6, atol=1e-6)


def test_what_differs_only_in_long_sequences_is_seen_in_these() -> None:
    """A window that the layers keep to themselves; the check runs at the lengths that it is given."""
    model = tiny_model("llama")

    def near(module: Any, arguments: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        hidden = options["hidden_states"] if "hidden_states" in options else arguments[0]
        beyond = torch.arange(hidden.shape[1])[:, None] >= 115
        return (torch.where(beyond, 3 * torch.sign(hidden.flip(-1)), hidden), *arguments[1:]), options

    model.model.layers[1].register_forward_pre_hook(near, with_kwargs=True)
    short, long = ([[5, *range(3, 3 + n)], [6, *range(3, 3 + n)]] for n in (20, 90))
    check_fast_path(model, (short, RESPONSES))
    with pytest.raises(UserError, match="disagree by"):
        check_fast_path(model, (long, [[5] * 30, [6] * 30]))


def test_log_probabilities_that_are_not_finite_are_refused() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    for function in (check_fast_path, lambda m, both: reliable_logprobs(m, *both)):
        with pytest.raises(UserError, match="gives no finite probabilities"):
            function(model, (PROMPTS, RESPONSES))


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
