"""Attention of packed rows: a row is a tree of segments, and a token sees its segment's beginning and the segments above it.

On the CPU every pair of segments is computed alone and the parts are joined by their log-sum-exps, as ring attention does, so that
no pair of tokens that is hidden costs anything and nothing but queries, keys, values and results is kept for the backward pass.
Elsewhere the whole row goes through torch's fused attention under a mask, which `mask` makes from the same segments.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sami_train.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

BY_PARTS = frozenset({"cpu"})
"""Kinds of device on which segments are computed one by one."""


@dataclass(frozen=True)
class Segment:
    """Tokens that stand together in a row, from place `start` up to `stop`, the first at `position` of its own sequence.

    A token sees what comes before it in its segment, and all of the segments `above`, as far as a sliding window lets it.
    """

    start: int
    stop: int
    position: int
    above: tuple[Segment, ...] = ()

    @property
    def end(self) -> int:
        """The position after the last."""
        return self.position + self.stop - self.start


Rows = Sequence[Sequence[Segment]]


def hidden_states(
    model: Any, rows: Rows, input_ids: Sequence[Sequence[int]], position_ids: Sequence[Sequence[int]]
) -> Tensor:
    """The decoder's last hidden states of packed rows, (rows, width, size), attention going as their segments say.

    Raises:
        UserError: the model has layers of a kind that is not known here, or does not attend by torch's fused attention.
    """
    import torch

    decoder, config = model.get_decoder(), model.config.get_text_config()
    _check(config)
    device = next(model.parameters()).device
    ids, positions = (torch.tensor(numbers, device=device) for numbers in (input_ids, position_ids))
    if not goes_by_mask(model):
        _register()
        given = _Given(rows)
        # Nobody reads it, but without a mask of four dimensions the model makes one of its own.
        unread = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
        found: Tensor = decoder(
            input_ids=ids,
            position_ids=positions,
            attention_mask=dict.fromkeys(_kinds(config), unread) or unread,
            use_cache=False,
            sami_rows=given,
        ).last_hidden_state
        if given.layers == config.num_hidden_layers:
            return found
        _BY_MASK.add(type(decoder))
    masks = _masks(config, rows, len(input_ids[0]), device)
    found = decoder(input_ids=ids, position_ids=positions, attention_mask=masks, use_cache=False).last_hidden_state
    return found


def goes_by_mask(model: Any) -> bool:
    """Whether a model's rows are computed whole, under a mask, so that their cost grows with the square of their length."""
    return needs_mask(next(model.parameters()).device.type, model.config) or type(model.get_decoder()) in _BY_MASK


def needs_mask(kind: str, config: Any) -> bool:
    """Whether a device of a kind (cpu, cuda), or dropout of a model's attention weights, leaves no other way than the mask."""
    return kind not in BY_PARTS or bool(getattr(config.get_text_config(), "attention_dropout", 0.0))


_BY_MASK: set[type] = set()
"""Decoders that were seen not to hand on to their layers what they are called with."""


@dataclass
class _Given:
    """The rows on their way through a decoder, and how many of its layers have attended by them."""

    rows: Rows
    layers: int = 0


def _check(config: Any) -> None:
    if (found := config._attn_implementation) != "sdpa":
        raise UserError(
            f"the packed step needs attn_implementation='sdpa', and the model was loaded with '{found}'; load it so"
        )
    if unknown := _kinds(config) - {"full_attention", "sliding_attention"}:
        raise UserError(
            f"the model has layers of the kind '{min(unknown)}', which the packed step does not know; "
            "use a Llama, Mistral, Mixtral, Gemma or Qwen model"
        )


def _kinds(config: Any) -> set[str]:
    """The kinds of a model's layers; none where it has one and does not name it."""
    return set(getattr(config, "layer_types", None) or ())


def _masks(config: Any, rows: Rows, width: int, device: Any) -> Any:
    """A mask for every kind of layer, or the one of a model whose layers are alike."""
    window = getattr(config, "sliding_window", None)
    if not (kinds := _kinds(config)):
        return mask(rows, width, window).to(device)
    windows = {"full_attention": None, "sliding_attention": window}
    return {kind: mask(rows, width, windows[kind]).to(device) for kind in kinds}


def mask(rows: Rows, width: int, window: int | None = None) -> Tensor:
    """What every token sees, (rows, 1, width, width) booleans; padding sees itself alone: a row without any key gives NaN.

    The window is counted in positions (as in an unpacked sequence), not in places of the packed row.
    """
    import torch

    seen = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1, 1)
    for row, segments in enumerate(rows):
        for pair in _pairs(segments):
            seen[row, 0, pair.queries, pair.keys] = pair.visible(window)
    return seen


def _register() -> None:
    """Let transformers' `sdpa` attention, whoever's it is by now, go by parts where a layer is given rows."""
    from transformers import AttentionInterface

    current = AttentionInterface()["sdpa"]
    if getattr(current, "goes_by_parts", False):
        return

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
    ) -> tuple[Tensor, Any]:
        given: _Given | None = options.pop("sami_rows", None)
        if given is None:
            theirs: tuple[Tensor, Any] = current(module, query, key, value, attention_mask, **options)
            return theirs
        given.layers += 1
        scale = options.get("scaling") or query.shape[-1] ** -0.5
        return by_parts(query, key, value, given.rows, scale, options.get("sliding_window")).transpose(1, 2), None

    attend.goes_by_parts = True  # type: ignore[attr-defined]
    AttentionInterface.register("sdpa", attend)


def by_parts(query: Tensor, key: Tensor, value: Tensor, rows: Rows, scale: float, window: int | None = None) -> Tensor:
    """Attention of packed rows, segment by segment; differentiable. Padding gives zeros.

    The parts are computed in float32 (float64 for float64), which this kernel does at least as fast as in half precision, and are
    joined by the identity softmax([a, b]) v = sum_i exp(lse_i - lse) softmax_i v_i with lse = log sum_i exp lse_i.

    Args:
        query: (rows, heads, width, size).
        key: (rows, heads that share it, width, size); `value` has its shape.
        scale: factor of the products of queries and keys.
        window: positions that a token sees, itself included; None sees all.

    Returns:
        A tensor of the shape and type of `query`.
    """
    result: Tensor = _function().apply(query, key, value, rows, scale, window)
    return result


@functools.cache
def _function() -> Any:
    import torch
    from torch.autograd.function import once_differentiable

    class ByParts(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(
            ctx: Any, query: Tensor, key: Tensor, value: Tensor, rows: Rows, scale: float, window: int | None
        ) -> Tensor:
            # Heads last but one, as the layer reads the result, so that turning it copies nothing.
            result = torch.empty_like(query.transpose(1, 2)).transpose(1, 2).zero_()
            sums = query.new_zeros(query.shape[:3], dtype=_precise(query.dtype))
            for row, segments in enumerate(rows):
                inputs = [_row(tensor, row) for tensor in (query, key, value)]
                for segment in segments:
                    here = slice(segment.start, segment.stop)
                    joined, sums[row, :, here] = _attend(inputs, segment, scale, window)
                    result[row, :, here] = joined.to(result.dtype)
            ctx.save_for_backward(query, key, value, result, sums)
            ctx.rows, ctx.scale, ctx.window = rows, scale, window
            return result

        @staticmethod
        @once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
            query, key, value, result, sums = ctx.saved_tensors
            found = [torch.empty_like(tensor) for tensor in (query, key, value)]
            for row, segments in enumerate(ctx.rows):
                inputs = [_row(tensor, row) for tensor in (query, key, value, result, slope)]
                slopes = [torch.zeros_like(tensor) for tensor in inputs[:3]]
                for pair in _pairs(segments):
                    _attend_backward(inputs, sums[row : row + 1], slopes, pair, ctx.scale, ctx.window)
                for whole, part in zip(found, slopes, strict=True):
                    whole[row] = part[0].to(whole.dtype)
            return *found, None, None, None

    return ByParts


def _attend(inputs: Sequence[Tensor], segment: Segment, scale: float, window: int | None) -> tuple[Tensor, Tensor]:
    """A segment's attention to itself and to what stands above it, (1, heads, length, size), and its log-sum-exp."""
    import torch

    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    query, key, value = inputs
    parts = []
    for pair in _pairs([segment]):
        if pair.out_of_sight(window):
            continue
        keys, mask = (slice(None), slice(None), pair.keys), pair.mask(window)
        part, lse = operator(
            query[:, :, pair.queries],
            key[keys],
            value[keys],
            0.0,
            pair.causal and mask is None,
            attn_mask=_added(mask, query),
            scale=scale,
        )
        parts.append((part, lse if mask is None else lse.masked_fill_(~mask.any(1), -float("inf"))))
    (result, total), *others = parts
    for part, lse in others:
        both = torch.logaddexp(total, lse)
        result.mul_((total - both).exp_()[..., None]).add_(part.mul_((lse - both).exp_()[..., None]))
        total = both
    return result, total


def _attend_backward(
    inputs: Sequence[Tensor], sums: Tensor, slopes: Sequence[Tensor], pair: Pair, scale: float, window: int | None
) -> None:
    """Add the gradients of queries, keys and values that come through one pair of segments.

    `inputs` are those three, the joined result and its slope: with them and the joined log-sum-exp the kernel's formula gives
    that pair's part of the whole gradient.
    """
    import torch

    if pair.out_of_sight(window):
        return
    mask = pair.mask(window)
    places = (pair.queries, pair.keys, pair.keys, pair.queries, pair.queries)
    query, key, value, result, slope = (tensor[:, :, place] for tensor, place in zip(inputs, places, strict=True))
    parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        slope,
        query,
        key,
        value,
        result,
        sums[:, :, pair.queries],
        0.0,
        pair.causal and mask is None,
        attn_mask=_added(mask, query),
        scale=scale,
    )
    for whole, place, part in zip(slopes, places, parts, strict=False):
        whole[:, :, place] += part


@dataclass(frozen=True)
class Pair:
    """A segment and one that its tokens see: itself, or one above."""

    at: Segment
    seen: Segment

    @property
    def causal(self) -> bool:
        """Whether a token sees only what comes before it there."""
        return self.at is self.seen

    @property
    def queries(self) -> slice:
        return slice(self.at.start, self.at.stop)

    @property
    def keys(self) -> slice:
        return slice(self.seen.start, self.seen.stop)

    def out_of_sight(self, window: int | None) -> bool:
        """Whether the window hides all of it from every token."""
        return window is not None and self.at.position - (self.seen.end - 1) >= window

    def mask(self, window: int | None) -> Tensor | None:
        """What every query sees, (queries, keys) booleans, where the window hides something; None where it does not."""
        bites = window is not None and self.at.end - 1 - self.seen.position >= window
        return self.visible(window) if bites else None

    def visible(self, window: int | None) -> Tensor:
        """What every query sees, (queries, keys) booleans."""
        import torch

        ahead = torch.arange(self.at.position, self.at.end)[:, None] - torch.arange(self.seen.position, self.seen.end)
        return (ahead >= 0) & (ahead < (window or self.at.end))


def _pairs(segments: Sequence[Segment]) -> Iterator[Pair]:
    """Every segment with each that it sees, itself first."""
    for segment in segments:
        for other in (segment, *segment.above):
            yield Pair(segment, other)


def _row(tensor: Tensor, row: int) -> Tensor:
    """One row, (1, heads, width, size), in the format that parts are computed in."""
    return tensor[row : row + 1].to(_precise(tensor.dtype))


def _precise(dtype: Any) -> Any:
    import torch

    return torch.promote_types(dtype, torch.float32)


def _added(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A mask as numbers to add to the products of queries and keys."""
    import torch

    if mask is None:
        return None
    return torch.zeros(mask.shape, dtype=like.dtype).masked_fill_(~mask, torch.finfo(like.dtype).min)
