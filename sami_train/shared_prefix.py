"""Generation from prompts that begin alike (with worked examples, say): what they share is run once and kept once.

A row's attention is taken over the shared tokens and over its own ones apart. With z the log-sum-exp of the scores of each, and
o the outputs, attention over both is

    o = sigmoid(z_shared - z_own) o_shared + (1 - sigmoid(z_shared - z_own)) o_own

All rows ask the shared keys in one product, which reads them once; copies of them would be read once for every row.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SHARED_AT_LEAST = 24
"""Tokens that all prompts of a batch must begin with, so that running them once pays."""


class _NotJoined(Exception):
    """A layer's attention cannot be taken in two parts."""


def shared_prefix(model: Any, prompts: Sequence[list[int]], max_new_tokens: int) -> list[int]:
    """What all prompts begin with, empty where sharing does not pay or would meet a sliding window."""
    shortest, longest = min(map(len, prompts)), max(map(len, prompts))
    length = next((i for i in range(shortest - 1) if len({ids[i] for ids in prompts}) > 1), shortest - 1)
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    fits = window is None or longest + max_new_tokens <= window
    return list(prompts[0][:length]) if length >= SHARED_AT_LEAST and len(prompts) > 1 and fits else []


@contextmanager
def prefix_cache(model: Any, shared: list[int], rows: int) -> Iterator[dict[str, Any]]:
    """Arguments of `model.generate` inside the context: the keys and values of the shared tokens, computed once.

    On a CPU they are kept once, if the model's attention can be taken in parts; elsewhere every row has a copy.
    """
    if not shared:
        yield {}
        return
    with _joined():
        if cache := _kept_once(model, shared):
            cache.batch_repeat_interleave(rows)
            yield {"past_key_values": cache}
            return
    cache = _after(model, shared)
    cache.batch_repeat_interleave(rows)
    yield {"past_key_values": cache}


def _after(model: Any, ids: list[int], cache: Any = None) -> Any:
    """The cache of one row after `ids`, which follow what is in `cache`."""
    import torch
    from transformers import DynamicCache

    cache = cache or DynamicCache(config=model.config)
    model(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def _kept_once(model: Any, shared: list[int]) -> Any:
    """A cache of one row whose layers keep the shared tokens apart, None where a layer's attention does not take them so.

    The last shared token is run like a row's own, which shows whether every layer's attention gets the keys as the cache has them.
    """
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    if model.device.type != "cpu":
        return None
    cache = _after(model, shared[:-1])
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        return None
    layers = cache.layers = [_layer()(layer) for layer in cache.layers]
    try:
        _after(model, shared[-1:], cache)
    except (
        _NotJoined,
        RuntimeError,
    ):  # the latter where it does not go through `sdpa` and misses the keys that stand apart
        return None
    return cache if all(layer.joined for layer in layers) else None


@functools.cache
def _layer() -> Any:
    from transformers.cache_utils import DynamicLayer

    class Own(DynamicLayer):  # type: ignore[misc]
        """A layer's cache with the shared tokens apart: `keys` and `values` are those of a row's own tokens."""

        def __init__(self, shared: Any) -> None:
            super().__init__()
            self.shared, self.is_sliding, self.joined = shared, shared.is_sliding, False

        def update(self, keys: Tensor, values: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
            own: tuple[Tensor, Tensor] = super().update(keys, values)
            own[0].sami_shared = self  # type: ignore[attr-defined]
            return own

        def get_seq_length(self) -> int:
            return int(self.shared.keys.shape[-2]) + int(super().get_seq_length())

    return Own


@contextmanager
def _joined() -> Iterator[None]:
    """Let transformers' `sdpa` attention join the two parts while the context lasts."""
    from transformers import AttentionInterface

    attention = AttentionInterface()["sdpa"]

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
    ) -> tuple[Tensor, Any]:
        if (layer := getattr(key, "sami_shared", None)) is None:
            theirs: tuple[Tensor, Any] = attention(module, query, key, value, attention_mask, **options)
            return theirs
        if query.shape[-1] != value.shape[-1] or options.get("position_bias") is not None:
            raise _NotJoined
        layer.joined = True
        scale = options.get("scaling") or query.shape[-1] ** -0.5
        own = None if attention_mask is None else attention_mask[..., -key.shape[2] :]
        return _join(query, key, value, own, layer.shared.keys, layer.shared.values, scale).transpose(1, 2), None

    AttentionInterface.register("sdpa", attend)
    try:
        yield
    finally:
        AttentionInterface.register("sdpa", attention)


def _join(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, keys: Tensor, values: Tensor, scale: float
) -> Tensor:
    """Attention over shared `keys`, (1, heads that share, tokens, size), and every row's own `key`; (rows, heads, length, size).

    `mask` is that of the own ones, (rows, 1, length, own) booleans; None shows all. A query that sees none of them has the output
    of the shared ones.
    """
    import torch

    def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=bias, scale=scale
        )
        return found

    rows, heads, length, size = query.shape
    groups = key.shape[1]
    shape = rows, groups, heads // groups, length
    bias = None
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
        bias = bias[:, :, None].expand(rows, 1, shape[2], length, -1).reshape(rows, 1, shape[2] * length, -1)
    by_group = query.reshape(rows, groups, -1, size)
    own, own_sum = attention(by_group, key, value, bias)
    shared, shared_sum = attention(by_group.transpose(0, 1).reshape(1, groups, -1, size), keys, values)
    shared = shared.view(groups, rows, -1, size).transpose(0, 1)
    weight = torch.sigmoid(shared_sum.view(groups, rows, -1).transpose(0, 1) - own_sum)
    return torch.lerp(own, shared, weight[..., None].to(own.dtype)).reshape(rows, heads, length, size)
