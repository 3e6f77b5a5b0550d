"""Keys and values of a batch whose rows begin alike, with room for what is still to come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

if TYPE_CHECKING:
    from torch import Tensor


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values in buffers that hold `tokens` tokens: a step writes its own, and nothing is copied.

    transformers' own layers make new tensors at every step, which is a quarter of the time of generating from long prompts.
    """

    def __init__(self, keys: Tensor, values: Tensor, rows: int, tokens: int) -> None:
        """`keys` and `values` of what all rows begin with, (1, heads, tokens so far, width)."""
        super().__init__()
        self.lazy_initialization(keys, values)
        self._buffers = [each.new_empty(rows, each.shape[1], tokens, each.shape[3]) for each in (keys, values)]
        self._end = 0
        self.update(*(each.expand(rows, -1, -1, -1) for each in (keys, values)))

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Add the new tokens' keys and values, (rows, heads, new tokens, width). Returns all there are."""
        start, self._end = self._end, self._end + key_states.shape[2]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start : self._end] = new
        self.keys, self.values = (buffer[:, :, : self._end] for buffer in self._buffers)
        return self.keys, self.values


def prefix_cache(model: Any, shared: list[int], rows: int, tokens: int) -> Cache:
    """The keys and values of the `shared` tokens, computed once, for every one of `rows` that will have up to `tokens` tokens.

    No sliding window may be shorter than `tokens`.
    """
    import torch

    cache = DynamicCache(config=model.config)
    model(
        input_ids=torch.tensor([shared], device=model.device), past_key_values=cache, use_cache=True, logits_to_keep=1
    )
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        cache.batch_repeat_interleave(rows)
        return cache
    return Cache(layers=[RoomyLayer(layer.keys, layer.values, rows, tokens) for layer in cache.layers])
