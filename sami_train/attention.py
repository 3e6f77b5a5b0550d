"""Attention of packed rows: a row is a tree of segments, and a token sees its segment's beginning and the segments above it.

On the CPU every segment is computed alone, with the keys of those that it sees, so that tokens that are hidden cost nothing, and
nothing but queries, keys and values is kept for the backward pass.
Elsewhere the whole row goes through torch's fused attention under a mask, which `mask` makes from the same segments.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
        for part in _parts(segments, window):
            seen[row, 0, part.queries, part.places()] = ~part.hidden()
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

    A segment's keys are those of all that it sees, put together. Forward they go through torch's fused kernel, and nothing but the
    three arguments is kept. Backward, with S = scale Q K^T, P = softmax(S) and the slope G of P V, some queries at a time:

        dV = P^T G        dP = G V^T        dS = P (dP - rowsum(P dP))        dQ = scale dS K        dK = scale dS^T Q

    It is computed in autocast's number format where that is on. In half precision sums are formed and softmaxes taken in float32.

    Args:
        query: (rows, heads, width, size).
        key: (rows, heads that share it, width, size); `value` has its shape.
        scale: factor of the products of queries and keys.
        window: positions that a token sees, itself included; None sees all.

    Returns:
        A tensor of the shape of `query`, in the number format of the computation.
    """
    result: Tensor = _function().apply(query, key, value, rows, scale, window)
    return result


QUERIES = 128
"""Queries that the backward pass takes together; their products with all keys that they see stand in memory at once."""


@functools.cache
def _function() -> Any:
    import torch
    from torch.autograd.function import once_differentiable

    class ByParts(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(
            ctx: Any, query: Tensor, key: Tensor, value: Tensor, rows: Rows, scale: float, window: int | None
        ) -> Tensor:
            ctx.formats = [tensor.dtype for tensor in (query, key, value)]
            kind = query.device.type
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
            query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
            # Heads last but one, as the layer reads the result, so that turning it copies nothing.
            result = torch.empty_like(query.transpose(1, 2)).transpose(1, 2)
            for row, segments in enumerate(rows):
                for part in _parts(segments, window):
                    result[row, :, part.queries] = _attend(query[row], key[row], value[row], part, scale)
                result[row, :, segments[-1].stop :] = 0
            ctx.save_for_backward(query, key, value)
            ctx.rows, ctx.scale, ctx.window = rows, scale, window
            return result

        @staticmethod
        @once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
            inputs = ctx.saved_tensors
            found = [torch.empty_like(tensor, dtype=dtype) for tensor, dtype in zip(inputs, ctx.formats, strict=True)]
            wide = {"dtype": torch.promote_types(slope.dtype, torch.float32), "memory_format": torch.contiguous_format}
            with _products(inputs[0]):
                for row, segments in enumerate(ctx.rows):
                    query, key, value, upstream = (tensor[row].to(**wide) for tensor in (*inputs, slope))
                    slopes = [torch.zeros_like(tensor) for tensor in (query, key, value)]
                    for part in _parts(segments, ctx.window):
                        _attend_backward((query, key, value, upstream), slopes, part, ctx.scale)
                    for whole, one in zip(found, slopes, strict=True):
                        whole[row] = one
            return *found, None, None, None

    return ByParts


def _attend(query: Tensor, key: Tensor, value: Tensor, part: Part, scale: float) -> Tensor:
    """A segment's attention, (heads, length, size)."""
    import torch

    causal = not part.above and not part.bites
    found: tuple[Tensor, ...] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query[None, :, part.queries],
        part.keys(key)[None],
        part.keys(value)[None],
        0.0,
        causal,
        attn_mask=None if causal else query.new_zeros(part.shape).masked_fill_(part.hidden(), -torch.inf),
        scale=scale,
    )
    return found[0][0]


def _attend_backward(given: tuple[Tensor, ...], slopes: Sequence[Tensor], part: Part, scale: float) -> None:
    """Add to the slopes of queries, keys and values, (heads, width, size), what comes through one segment's attention.

    `given` are those three and the slope of the result.
    """
    import torch

    query, key, value, upstream = given
    keys, values = part.keys(key), part.keys(value)
    (length, seen), (groups, _, size) = part.shape, keys.shape
    share = len(query) // groups
    at_once = min(length, QUERIES)
    rooms = [keys.new_empty(groups * share * at_once * seen) for _ in range(2)]
    key_slope, value_slope = torch.zeros_like(keys), torch.zeros_like(values)
    for start in range(0, length, at_once):
        stop = min(start + at_once, length)
        queries = slice(part.at.start + start, part.at.start + stop)
        asked, theirs = (t[:, queries].reshape(groups, share * (stop - start), size) for t in (query, upstream))
        last, first = part.above + stop, 0 if part.bites else part.above + start
        shape = groups, share * (stop - start), last
        weights, inner = (room[: math.prod(shape)].view(shape) for room in rooms)
        torch.baddbmm(weights, asked, keys[:, :last].mT, beta=0, alpha=scale, out=weights)
        by_head = weights.view(groups, share, stop - start, last)
        by_head[..., first:].masked_fill_(part.hidden(slice(start, stop), slice(first, last)), -torch.inf)
        torch.ops.aten._softmax.out(weights, -1, False, out=weights)
        value_slope[:, :last].baddbmm_(weights.mT, theirs)
        torch.bmm(theirs, values[:, :last].mT, out=inner)
        torch.ops.aten._softmax_backward_data.out(inner, weights, -1, inner.dtype, grad_input=inner)
        slopes[0][:, queries] = torch.bmm(inner, keys[:, :last]).mul_(scale).view(-1, stop - start, size)
        key_slope[:, :last].baddbmm_(inner.mT, asked, alpha=scale)
    part.add(slopes[1], key_slope)
    part.add(slopes[2], value_slope)


@dataclass(frozen=True)
class Part:
    """A segment and those that its tokens see, itself last; segments that a window hides from all of them are left out."""

    at: Segment
    seen: tuple[Segment, ...]
    window: int | None

    @property
    def queries(self) -> slice:
        """Places of the queries in the row."""
        return slice(self.at.start, self.at.stop)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of queries and of keys."""
        return self.at.stop - self.at.start, sum(segment.stop - segment.start for segment in self.seen)

    @property
    def above(self) -> int:
        """Keys that stand before the segment's own."""
        return self.shape[1] - self.shape[0]

    @property
    def bites(self) -> bool:
        """Whether the window hides anything of the segments."""
        return self.window is not None and self.at.end - 1 - self.seen[0].position >= self.window

    def keys(self, tensor: Tensor) -> Tensor:
        """Of a row's (heads, width, size) what stands at the keys' places, (heads, keys, size)."""
        import torch

        return torch.cat([tensor[:, segment.start : segment.stop] for segment in self.seen], dim=1)

    def add(self, tensor: Tensor, found: Tensor) -> None:
        """Add (heads, keys, size) to a row's numbers at the keys' places."""
        for segment, some in zip(self.seen, found.split([s.stop - s.start for s in self.seen], dim=1), strict=True):
            tensor[:, segment.start : segment.stop] += some

    def places(self) -> Tensor:
        """The keys' places in the row."""
        import torch

        return torch.cat([torch.arange(segment.start, segment.stop) for segment in self.seen])

    def hidden(self, queries: slice = slice(None), keys: slice = slice(None)) -> Tensor:
        """What queries do not see of keys, (queries, keys) booleans; of all, or of some, counted within the segments."""
        import torch

        positions = torch.cat([torch.arange(segment.position, segment.end) for segment in self.seen])
        ahead = torch.arange(self.at.position, self.at.end)[queries, None] - positions[keys]
        return ahead.lt(0) if self.window is None else ahead.lt(0) | ahead.ge(self.window)


def _parts(segments: Sequence[Segment], window: int | None) -> Iterator[Part]:
    for at in segments:
        above = (s for s in at.above if window is None or at.position - (s.end - 1) < window)
        yield Part(at, (*above, at), window)


@contextmanager
def _products(like: Tensor) -> Iterator[None]:
    """Products of float32 matrices that hold numbers of the format of `like`: in bfloat16 where they are such and the CPU can."""
    import torch

    multiply = torch.backends.mkldnn.matmul
    before = multiply.fp32_precision
    with torch.autocast(like.device.type, enabled=False):
        if like.dtype == torch.bfloat16:
            multiply.fp32_precision = "bf16"
        try:
            yield
        finally:
            multiply.fp32_precision = before
