"""The cache of prompts that begin alike: the same logits as without it, step by step, and nothing copied."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from sami_train.cache import RoomyLayer, prefix_cache

SHAPE = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
}  # fmt: skip
WINDOWS = {"sliding_window": 32, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
SHARED, LENGTH, NEW = list(range(5, 25)), 4, 5


def models() -> list[torch.nn.Module]:
    torch.manual_seed(0)
    return [
        LlamaForCausalLM(LlamaConfig(**SHAPE)).eval(),
        Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, **WINDOWS)).eval(),
    ]


@pytest.mark.parametrize("model", models(), ids=lambda model: model.config.model_type)
def test_a_prefix_with_room_gives_the_logits_of_whole_rows(model):
    rest = torch.randint(0, 60, (3, LENGTH + NEW), generator=torch.Generator().manual_seed(1))
    ids = torch.cat([torch.tensor([SHARED] * 3), rest], dim=1)
    mask = torch.ones_like(ids)
    mask[0, len(SHARED) : len(SHARED) + 2] = 0  # padding between the shared tokens and the row's own
    start = len(SHARED) + LENGTH
    with torch.inference_mode():
        cache = prefix_cache(model, SHARED, 3, start + NEW)
        positions = mask.cumsum(1) - 1
        for end in range(start, start + NEW + 1):
            begin = len(SHARED) if end == start else end - 1
            out = model(
                ids[:, begin:end],
                attention_mask=mask[:, :end],
                position_ids=positions[:, begin:end],
                past_key_values=cache,
            )
            plain = model(ids[:, :end], attention_mask=mask[:, :end], position_ids=positions[:, :end], use_cache=False)
            torch.testing.assert_close(out.logits[:, -1], plain.logits[:, -1], rtol=1e-4, atol=1e-4)


def test_a_step_writes_into_its_room():
    layer = RoomyLayer(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 5), rows=2, tokens=6)
    keys, values = layer.update(torch.full((2, 2, 1, 4), 2.0), torch.full((2, 2, 1, 5), 3.0))
    place = keys.data_ptr()
    more, _ = layer.update(torch.full((2, 2, 2, 4), 4.0), torch.full((2, 2, 2, 5), 5.0))
    assert more.data_ptr() == place, "nothing moved"
    assert (keys.shape, values.shape, layer.get_seq_length()) == ((2, 2, 4, 4), (2, 2, 4, 5), 6)
    assert more[0, 0, :, 0].tolist() == [1, 1, 1, 2, 4, 4]
