"""Generation with a shared beginning: the tokens and scores are those that copies of it, or nothing shared, would give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from conftest import SMALL

from sami_train import shared_prefix as module
from sami_train.shared_prefix import prefix_cache, shared_prefix

SHARED = [5, 9, 12, 7, 30, 31, 32, 8, 5, 6, 44, 21]
RESTS = [[11], [14, 15, 16, 17], [60, 61]]
JOINED: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Mixtral": {"sliding_window": None, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Phi3": {},
    "GPT2": {"n_positions": 64},
    "Gemma3Text": {"head_dim": 8, "sliding_window": 40, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
COPIED: dict[str, dict[str, Any]] = {
    "Falcon": {},  # attends by itself
    "DeepseekV3": {**LATENT, "first_k_dense_replace": 3, "num_key_value_heads": 4},  # values of another size than keys
    "Bloom": {},  # knows no sdpa
}


def made(family: str, settings: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    options = {**SMALL, **settings}
    if family in ("Bloom", "Falcon"):
        options.pop("attn_implementation")
    config = getattr(transformers, f"{family}Config")(**options)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation=options.get("attn_implementation")
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    return model.eval()


def generated(model: Any, shared: list[int], rests: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Five greedy tokens a row and their scores, with `shared` handed over as a cache."""
    longest = max(map(len, rests))
    ids = torch.tensor([SHARED + [2] * (longest - len(rest)) + rest for rest in rests])
    mask = torch.tensor([[1] * len(SHARED) + [0] * (longest - len(rest)) + [1] * len(rest) for rest in rests])
    with torch.inference_mode(), prefix_cache(model, shared, len(rests)) as cache:
        out = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=5,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=2,
            output_scores=True,
            return_dict_in_generate=True,
            **cache,
        )
    return out.sequences, torch.stack(out.scores)


@pytest.mark.parametrize("rests", [RESTS, [[11], [14]]], ids=["padded", "of one length"])
@pytest.mark.parametrize("family", [*JOINED, *COPIED])
def test_equals_nothing_shared(family: str, rests: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(family, {**JOINED, **COPIED}[family])
    joins: list[int] = []
    join = module._join
    monkeypatch.setattr(module, "_join", lambda *given: (joins.append(len(given[0])), join(*given))[1])
    expected, found = generated(model, [], rests), generated(model, SHARED, rests)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-5)
    assert joins.count(len(rests)) == (5 * SMALL["num_hidden_layers"] if family in JOINED else 0)


def test_attention_is_as_it_was_afterwards() -> None:
    from transformers import AttentionInterface

    before = AttentionInterface()["sdpa"]
    model = made("Llama", {})
    generated(model, SHARED, RESTS)
    assert AttentionInterface()["sdpa"] is before
    with pytest.raises(KeyError), prefix_cache(model, SHARED, 2):
        raise KeyError
    assert AttentionInterface()["sdpa"] is before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_two_parts_are_one_attention(dtype: torch.dtype) -> None:
    """Against torch's attention over all keys; a query that sees none of its own has the output of the shared ones."""
    torch.manual_seed(0)
    query = torch.randn(3, 4, 5, 8, dtype=dtype)
    key, value = torch.randn(2, 3, 2, 6, 8, dtype=dtype).unbind()
    keys, values = torch.randn(2, 1, 2, 7, 8, dtype=dtype).unbind()
    mask = torch.rand(3, 1, 5, 6) < 0.5
    mask[1, 0, 2] = False
    whole = [
        torch.cat([a.expand(3, -1, -1, -1), b], 2).repeat_interleave(2, 1) for a, b in ((keys, key), (values, value))
    ]
    seen = torch.cat([torch.ones(3, 1, 5, 7, dtype=torch.bool), mask], -1)
    expected = torch.nn.functional.scaled_dot_product_attention(query, *whole, attn_mask=seen, scale=0.3)
    limit = 0.03 if dtype == torch.bfloat16 else 1e-5
    found = module._join(query, key, value, mask, keys, values, 0.3)
    torch.testing.assert_close(found, expected, rtol=limit, atol=limit)


def test_what_is_shared() -> None:
    model = made("Gemma3Text", JOINED["Gemma3Text"])
    same = list(range(3, 33))
    assert shared_prefix(model, [[*same, 40, 41], [*same, 50]], 5) == same
    assert shared_prefix(model, [same, same], 5) == same[:-1], "a row keeps a token of its own"
    assert shared_prefix(model, [[*same, 40, 41], [*same, 50]], 9) == [], "40 tokens is the window"
    assert shared_prefix(model, [[*same[:20], 40], [*same[:20], 50]], 5) == [], "too short to pay"
    assert shared_prefix(model, [[*same, 40]], 5) == [], "there is nobody to share with"
