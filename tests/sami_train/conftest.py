"""Tiny random models of the shapes that users train, and a tokenizer made on the spot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 2,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "attn_implementation": "sdpa",
}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": 9}),
    "mixtral": ("Mixtral", {"sliding_window": None, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("Qwen2", {}),
    "gemma3": (
        "Gemma3",
        {"head_dim": 8, "sliding_window": 6, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
    ),
    "gemma3-softcap": (
        "Gemma3",
        {"head_dim": 8, "sliding_window": 6, "layer_types": ["sliding_attention"] * 3, "final_logit_softcapping": 5.0},
    ),
}


def tiny_model(shape: str, seed: int = 0) -> Any:
    """A random model in float32 with the layout of a real one."""
    family, extra = SHAPES[shape]
    config_name = f"{family}{'TextConfig' if family == 'Gemma3' else 'Config'}"
    config = getattr(transformers, config_name)(**{**SMALL, **extra})
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    return model.eval()


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest) -> Any:
    return tiny_model(request.param)
