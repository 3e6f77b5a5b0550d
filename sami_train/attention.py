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
from contextvars import ContextVar
from dataclasses import dataclass, field
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

    How far a layer sees is what the model itself asks of transformers' mask functions, whatever its configuration says.

    Raises:
        UserError: the model attends in a way that packed rows cannot.
    """
    import torch

    decoder, config = model.get_decoder(), model.config.get_text_config()
    _check(config)
    check_rotation(config, max(segment.end for segments in rows for segment in segments))
    _register()
    device = next(model.parameters()).device
    ids, positions = (torch.tensor(numbers, device=device) for numbers in (input_ids, position_ids))
    given = Given(rows, len(input_ids[0]), goes_by_mask(model))
    token = _GIVEN.set(given)
    try:
        found: Tensor = decoder(
            input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False
        ).last_hidden_state
    except _NeedsMask:
        given.attended = 0
    finally:
        _GIVEN.reset(token)
    if not given.by_mask and given.attended < config.num_hidden_layers:
        _BY_MASK.add(type(decoder))
        return hidden_states(model, rows, input_ids, position_ids)
    if not given.asked:
        raise UserError(f"a {config.model_type} model makes its attention masks in a way of its own, {OTHERS}")
    return found


OTHERS = "which the packed step does not know; use a Llama, Mistral, Mixtral, Gemma or Qwen model"


def check_rotation(config: Any, longest: int) -> None:
    """Raises UserError where sequences of `longest` tokens change the rotation of their own positions (dynamic NTK, LongRoPE).

    In a packed row they would change it for all sequences, shorter ones among them.
    """
    said = getattr(config, "rope_parameters", None) or {}
    for rope in (said, *said.values()):
        kind = str(rope.get("rope_type", "")) if isinstance(rope, dict) else ""
        if "dynamic" in kind or kind == "longrope":
            original = rope.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            limit = (original if kind == "longrope" else None) or config.max_position_embeddings
            if longest > limit:
                raise UserError(
                    f"sequences have {longest} tokens, and the model rotates positions otherwise ({kind}) in those of more than "
                    f"{limit}, which cannot be packed; lower max_prompt_tokens or max_new_tokens"
                )


class _NeedsMask(Exception):
    """A layer cannot be computed by parts."""


_GIVEN: ContextVar[Given | None] = ContextVar("rows on their way through a decoder", default=None)


def goes_by_mask(model: Any) -> bool:
    """Whether a model's rows are computed whole, under a mask, so that their cost grows with the square of their length."""
    return needs_mask(next(model.parameters()).device.type, model.config) or type(model.get_decoder()) in _BY_MASK


def needs_mask(kind: str, config: Any) -> bool:
    """Whether a device of a kind (cpu, cuda), or dropout of a model's attention weights, leaves no other way than the mask."""
    return kind not in BY_PARTS or bool(getattr(config.get_text_config(), "attention_dropout", 0.0))


_BY_MASK: set[type] = set()
"""Decoders that were seen to attend otherwise than by torch's fused attention as transformers calls it."""


@dataclass
class Given:
    """The rows on their way through a decoder, what its layers have asked and done, and what these share.

    `width` and `by_mask` matter to a decoder alone; `asked`: for a mask; `attended`: layers that were computed by parts.
    """

    rows: Rows
    width: int = 0
    by_mask: bool = False
    asked: bool = False
    attended: int = 0
    _masks: dict[int | None, Tensor] = field(default_factory=dict)
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

    def mask(self, function: Any, window: int | None, device: Any) -> Tensor:
        """What a layer gets that would have a mask of a function of transformers: that of the rows, or a sign of them."""
        import torch

        self.asked = True
        window = _window(function, window, max(segment.end for segments in self.rows for segment in segments))
        if window not in self._masks:
            if self.by_mask:
                self._masks[window] = mask(self.rows, self.width, window).to(device)
            else:
                sign = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
                sign.sami_rows = self, window  # type: ignore[attr-defined]
                self._masks[window] = sign
        return self._masks[window]

    def room(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """Memory to write to, in the number format of `like`, the same for every layer: a system gives new memory slowly."""
        room, size = self._rooms.get(name), math.prod(shape)
        if room is None or room.numel() < size or room.dtype != like.dtype:
            room = self._rooms[name] = like.new_empty(size)
        return room[:size].view(shape)


def _check(config: Any) -> None:
    if (found := config._attn_implementation) != "sdpa":
        raise UserError(
            f"the packed step needs attn_implementation='sdpa', and the {config.model_type} model was loaded with '{found}', as "
            "are those that have no other; use a Llama, Mistral, Mixtral, Gemma or Qwen model"
        )
    if unknown := _kinds(config) - {"full_attention", "sliding_attention"}:
        raise UserError(f"a {config.model_type} model has layers of the kind '{min(unknown)}', {OTHERS}")


def _kinds(config: Any) -> set[str]:
    """The kinds of a model's layers; none where it has one and does not name it."""
    return set(getattr(config, "layer_types", None) or ())


def _window(function: Any, window: int | None, longest: int) -> int | None:
    """The window of a mask function of transformers, None where sequences of up to `longest` tokens are not too long for it.

    Raises:
        UserError: it shows or hides something else than a window does.
    """
    import torch
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    window = None if window is None or window >= longest else window
    near = () if window is None else (window - 1, window, window + 1)
    with unset_fake_temporarily():  # a step that is only planned has no numbers
        places = sorted({0, 1, longest // 2, longest - 1, *near} & {*range(longest)})
        queries, keys = (torch.tensor(numbers, device="cpu") for numbers in (places, range(longest)))
        ahead = queries[:, None] - keys
        expected = ahead.ge(0) if window is None else ahead.ge(0) & ahead.lt(window)
        nothing = torch.zeros((), dtype=torch.long, device="cpu")
        try:
            same = torch.equal(function(nothing, nothing, queries[:, None], keys[None]).expand_as(expected), expected)
        except (RuntimeError, IndexError, TypeError):
            same = False
    if not same:
        raise UserError(f"the model has layers whose tokens see others than those before them, {OTHERS}")
    return window


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
    """Let transformers' `sdpa` attention and masks, whoever's they are by now, go by rows where these are on their way."""
    from transformers import AttentionInterface, AttentionMaskInterface

    attention, masks = AttentionInterface()["sdpa"], AttentionMaskInterface()["sdpa"]
    if not getattr(masks, "of_packed_rows", False):

        def make(*arguments: Any, **options: Any) -> Any:
            if (given := _GIVEN.get()) is None:
                return masks(*arguments, **options)
            return given.mask(options["mask_function"], options.get("local_size"), options.get("device", "cpu"))

        make.of_packed_rows = True  # type: ignore[attr-defined]
        AttentionMaskInterface.register("sdpa", make)
    if getattr(attention, "of_packed_rows", False):
        return

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
    ) -> tuple[Tensor, Any]:
        rows: tuple[Given, int | None] | None = getattr(attention_mask, "sami_rows", None)
        if rows is None:
            if (given := _GIVEN.get()) is not None and not given.by_mask:
                raise _NeedsMask
            theirs: tuple[Tensor, Any] = attention(module, query, key, value, attention_mask, **options)
            return theirs
        if query.shape[-1] != value.shape[-1] or query.shape[2] != key.shape[2]:
            raise _NeedsMask
        given, window = rows
        given.attended += 1
        scale = options.get("scaling") or query.shape[-1] ** -0.5
        return by_parts(query, key, value, given, scale, window).transpose(1, 2), None

    attend.of_packed_rows = True  # type: ignore[attr-defined]
    AttentionInterface.register("sdpa", attend)


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
