"""Attention of packed rows: a row is a tree of segments, and a token sees its segment's beginning and the segments above it.

By parts, every segment is computed alone, with the keys of those that it sees, so that tokens that are hidden cost nothing, and
nothing but queries, keys and values is kept for the backward pass. Elsewhere the whole row goes through torch's fused attention
under a mask, which `mask` makes from the same segments. `sami_train.decoder` chooses.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


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


@dataclass
class Given:
    """Rows, and what the layers that attend by them share."""

    rows: Rows
    _parts: dict[int | None, list[list[Part]]] = field(default_factory=dict)
    _groups: dict[int | None, list[list[Group]]] = field(default_factory=dict)
    _rooms: dict[str, Tensor] = field(default_factory=dict)

    def parts(self, window: int | None) -> list[list[Part]]:
        """What is attended together forward, row by row."""
        if window not in self._parts:
            self._parts[window] = [list(_parts(segments, window)) for segments in self.rows]
        return self._parts[window]

    def groups(self, window: int | None) -> list[list[Group]]:
        """What is attended together backward, row by row."""
        if window not in self._groups:
            self._groups[window] = [list(_groups(parts)) for parts in self.parts(window)]
        return self._groups[window]

    def room(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """Memory to write to, in the number format of `like`, the same for every layer: a system gives new memory slowly."""
        room, size = self._rooms.get(name), math.prod(shape)
        if room is None or room.numel() < size or room.dtype != like.dtype:
            room = self._rooms[name] = like.new_empty(size)
        return room[:size].view(shape)


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


def by_parts(
    query: Tensor, key: Tensor, value: Tensor, rows: Rows | Given, scale: float, window: int | None = None
) -> Tensor:
    """Attention of packed rows, segment by segment; differentiable. Padding gives zeros.

    A segment's keys are those of all that it sees, put together. Forward they go through torch's fused kernel, and nothing but the
    three arguments is kept. Backward, with S = scale Q K^T, P = softmax(S) and the slope G of P V, some queries at a time, those of
    segments that see the same together:

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
    given = rows if isinstance(rows, Given) else Given(rows)
    result: Tensor = _function().apply(query, key, value, given, scale, window)
    return result


QUERIES = 192
"""Queries that the backward pass takes together, at most; their products with all keys that they see stand in memory at once."""

KEYS = 16
"""Keys are padded to a multiple of this, so that the rows of those products begin where a processor likes them to."""


@functools.cache
def _function() -> Any:
    import torch
    from torch.autograd.function import once_differentiable

    class ByParts(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(
            ctx: Any, query: Tensor, key: Tensor, value: Tensor, given: Given, scale: float, window: int | None
        ) -> Tensor:
            ctx.formats = [tensor.dtype for tensor in (query, key, value)]
            kind = query.device.type
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
            query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
            # Heads last but one, as the layer reads the result, so that turning it copies nothing.
            result = torch.empty_like(query.transpose(1, 2)).transpose(1, 2)
            for row, parts in enumerate(given.parts(window)):
                for part in parts:
                    result[row, :, part.queries] = _attend(query[row], key[row], value[row], part, scale)
                result[row, :, parts[-1].at.stop :] = 0
            ctx.save_for_backward(query, key, value)
            ctx.given, ctx.scale, ctx.window = given, scale, window
            return result

        @staticmethod
        @once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
            inputs = ctx.saved_tensors
            found = [torch.empty_like(tensor, dtype=dtype) for tensor, dtype in zip(inputs, ctx.formats, strict=True)]
            with _products(inputs[0]):
                for row, groups in enumerate(ctx.given.groups(ctx.window)):
                    query, key, value, upstream = (tensor[row] for tensor in (*inputs, slope))
                    slopes = [tensor[row] for tensor in found]
                    _attend_backward((query, key, value, upstream), slopes, ctx.given, groups, ctx.scale)
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
        attn_mask=None if causal else part.bias.to(query.dtype),
        scale=scale,
    )
    return found[0][0]


def _attend_backward(
    tensors: tuple[Tensor, ...], slopes: Sequence[Tensor], given: Given, groups: Sequence[Group], scale: float
) -> None:
    """Write the slopes of a row's queries, keys and values, (heads, width, size). `tensors` are these and the result's slope."""
    import torch

    query, key, value, upstream = tensors
    (shared, width, size), share = key.shape, len(query) // len(key)

    def room(name: str, *shape: int) -> Tensor:
        return given.room(name, like, *shape)

    def by_token(name: str, tensor: Tensor) -> Tensor:
        """Of (heads, width, size): (heads that share it, width, heads of each, size), so that some tokens stand together."""
        turned = tensor.view(shared, share, width, size).transpose(1, 2)
        return room(name, *turned.shape).copy_(turned)

    like = upstream.new_empty((), dtype=torch.promote_types(upstream.dtype, torch.float32))
    query, upstream = by_token("query", query).mul_(scale), by_token("upstream", upstream)
    key, value = room("key", *key.shape).copy_(key), room("value", *value.shape).copy_(value)
    query_slope = room("query's slope", *query.shape)
    key_slope, value_slope = room("key's slope", *key.shape).zero_(), room("value's slope", *value.shape).zero_()
    query_slope[:, groups[-1].queries.stop :] = 0
    for group in groups:
        keys, values = group.keys(key), group.keys(value)
        keys_slope, values_slope = torch.zeros_like(keys), torch.zeros_like(values)
        for block in group.blocks:
            shape = shared, block.length * share, block.last
            asked, theirs = (
                tensor[:, block.queries].contiguous().view(*shape[:2], size) for tensor in (query, upstream)
            )
            weights, inner = room("weights", *shape), room("inner", *shape)
            torch.bmm(asked, keys[:, : block.last].mT, out=weights)
            by_head = weights.view(shared, block.length, share, block.last)
            by_head[..., block.first :].add_(block.bias[:, None])
            torch.ops.aten._softmax.out(weights, -1, False, out=weights)
            values_slope[:, : block.last].baddbmm_(weights.mT, theirs)
            torch.bmm(theirs, values[:, : block.last].mT, out=inner)
            torch.ops.aten._softmax_backward_data.out(inner, weights, -1, inner.dtype, grad_input=inner)
            query_slope[:, block.queries].view(*shape[:2], size).copy_(torch.bmm(inner, keys[:, : block.last]))
            keys_slope[:, : block.last].baddbmm_(inner.mT, asked)
        group.add(key_slope, keys_slope)
        group.add(value_slope, values_slope)
    torch.mul(query_slope.transpose(1, 2), scale, out=slopes[0].view(shared, share, width, size))
    slopes[1].copy_(key_slope)
    slopes[2].copy_(value_slope)


@dataclass(frozen=True, eq=False)
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

    def places(self) -> Tensor:
        """The keys' places in the row."""
        import torch

        return torch.cat([torch.arange(segment.start, segment.stop) for segment in self.seen])

    def hidden(self) -> Tensor:
        """What queries do not see of keys, (queries, keys) booleans."""
        import torch

        positions = torch.cat([torch.arange(segment.position, segment.end) for segment in self.seen])
        ahead = torch.arange(self.at.position, self.at.end)[:, None] - positions
        return ahead.lt(0) if self.window is None else ahead.lt(0) | ahead.ge(self.window)

    @functools.cached_property
    def bias(self) -> Tensor:
        """What is added to the products of queries and keys, (queries, keys)."""
        return _bias(self.hidden())


def _bias(hidden: Tensor) -> Tensor:
    """-inf where a key is hidden, and 0 elsewhere, in float32."""
    import torch

    return torch.zeros(hidden.shape).masked_fill_(hidden, -math.inf)


def _parts(segments: Sequence[Segment], window: int | None) -> Iterator[Part]:
    for at in segments:
        above = (s for s in at.above if window is None or at.position - (s.end - 1) < window)
        yield Part(at, (*above, at), window)


@dataclass(frozen=True, eq=False)
class Block:
    """Some queries of a group: their places in the row, the number of keys that they see, and what is added to the products.

    `bias` is (queries, `last` - `first`): nothing is added with the keys before `first`, which all queries see.
    """

    queries: slice
    first: int
    last: int
    bias: Tensor

    @property
    def length(self) -> int:
        """Number of queries."""
        length: int = self.queries.stop - self.queries.start
        return length


@dataclass(frozen=True, eq=False)
class Group:
    """Segments that stand together and see the same ones above them, themselves last, with the keys padded by some hidden ones."""

    queries: slice
    seen: tuple[slice, ...]
    padding: int
    blocks: tuple[Block, ...]

    def keys(self, tensor: Tensor) -> Tensor:
        """Of a row's (heads, width, size) what stands at the keys' places, (heads, keys, size)."""
        import torch

        padding = tensor.new_zeros(len(tensor), self.padding, tensor.shape[-1])
        return torch.cat([*(tensor[:, places] for places in self.seen), padding], dim=1)

    def add(self, tensor: Tensor, found: Tensor) -> None:
        """Add (heads, keys, size) to a row's numbers at the keys' places."""
        lengths = [places.stop - places.start for places in self.seen]
        *parts, _ = found.split([*lengths, self.padding], dim=1)
        for places, part in zip(self.seen, parts, strict=True):
            tensor[:, places] += part


def _groups(parts: Sequence[Part]) -> Iterator[Group]:
    """Neighbours that see the same together, as long as they are `QUERIES` or less."""
    together: list[Part] = []
    for part in parts:
        if together:
            first, last = together[0], together[-1]
            alike = part.seen[:-1] == first.seen[:-1] and part.at.start == last.at.stop
            if not alike or part.at.stop - first.at.start > QUERIES:
                yield _group(together)
                together = []
        together.append(part)
    if together:
        yield _group(together)


def _group(parts: Sequence[Part]) -> Group:
    import torch

    start, stop, above = parts[0].at.start, parts[-1].at.stop, parts[0].above
    length, padding = stop - start, -(above + stop - start) % KEYS
    hidden = torch.ones(length, above + length + padding, dtype=torch.bool)
    for part in parts:
        begin, end, found = part.at.start - start, part.at.stop - start, part.hidden()
        hidden[begin:end, :above] = found[:, :above]
        hidden[begin:end, above + begin : above + end] = found[:, above:]
    size = math.ceil(length / math.ceil(length / QUERIES))
    blocks = []
    for begin in range(0, length, size):
        end = min(begin + size, length)
        last = above + end + -(above + end) % KEYS
        first = 0 if any(part.bites for part in parts) else above + (begin if len(parts) == 1 else 0)
        blocks.append(Block(slice(start + begin, start + end), first, last, _bias(hidden[begin:end, first:last])))
    seen = (*(slice(segment.start, segment.stop) for segment in parts[0].seen[:-1]), slice(start, stop))
    return Group(slice(start, stop), seen, padding, tuple(blocks))


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
