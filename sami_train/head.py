"""Log-probabilities of given tokens from hidden states, without ever holding float32 logits of the whole vocabulary.

The vocabulary is walked in blocks small enough for a processor's cache: a block's logits are formed, added to the running
log-sum-exp, and let go; the backward pass forms them again, unless all of them fit KEPT_BYTES in the number format of the
computation. (torch's own `linear_cross_entropy` chunks only reductions to one number; here every token has a weight of its own,
known later.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
"""Bytes of logits (in float32) formed at once, by kind of device, unless the caller says otherwise."""
KEPT_BYTES = 1536 << 20
"""Logits of all positions are kept for the backward pass where they take no more than this."""


def block_size(positions: int, device: str) -> int:
    """Entries of the vocabulary whose logits are formed at once, at least 256."""
    return max(256, BLOCK_BYTES.get(device, BLOCK_BYTES["cuda"]) // (4 * max(1, positions)))


def keeps_logits(positions: int, vocabulary: int, item_size: int) -> bool:
    """Whether the logits of all positions, in numbers of `item_size` bytes, are kept for the backward pass."""
    return positions * vocabulary * item_size <= KEPT_BYTES


_IN_PLACE: ContextVar[bool] = ContextVar("gradients are added in place", default=False)


@contextmanager
def gradients_in_place(model: Any) -> Iterator[None]:
    """Add the gradients of embeddings and head straight to their weights' `grad`, for ``backward()`` alone.

    Both are as large as the vocabulary, and a micro-step touches few rows of the one and all of the other: else each would be
    made whole, full of zeros, and then added. Does nothing to weights that are not trained. Embeddings in fewer bits than float32
    keep a whole gradient of their own, since rows that are added one by one would be rounded as often.
    """
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    for weight in (embeddings.weight, head.weight):
        if weight.requires_grad and weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    sparse = adds_sparsely(embeddings.weight)
    token = _IN_PLACE.set(True)
    if sparse:
        embeddings.sparse = True
    try:
        yield
    finally:
        if sparse:
            embeddings.sparse = False
        _IN_PLACE.reset(token)


def adds_sparsely(weight: Tensor) -> bool:
    """Whether `gradients_in_place` adds to the gradient of embeddings only the rows that were looked up."""
    return bool(weight.requires_grad and weight.dtype == torch.float32)


def target_logprobs(model: Any, hidden: Tensor, targets: Tensor, *, block: int | None = None) -> Tensor:
    """log p(target | hidden state) by the model's own head: (N, H), (N,) -> (N,) in float32, in nats. Differentiable."""
    head = model.get_output_embeddings()
    kind = hidden.device.type
    if (factor := logit_factor(model.config.get_text_config())) != 1.0:
        hidden = hidden * factor
    values: Tensor = _TargetLogprobs.apply(
        hidden.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else hidden,
        head.weight,
        getattr(head, "bias", None),
        targets,
        block or block_size(len(targets), kind),
        getattr(model.config.get_text_config(), "final_logit_softcapping", None),
        head.weight.grad if _IN_PLACE.get() else None,
    )
    return values


def logit_factor(config: Any) -> float:
    """What a model multiplies its logits by: Cohere's `logit_scale`, and `logits_scaling`, by which all but one divide."""
    if scaling := getattr(config, "logits_scaling", None):
        return float(scaling) if config.model_type.startswith("hyperclovax") else 1.0 / float(scaling)
    return float(getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0)


class _TargetLogprobs(torch.autograd.Function):  # type: ignore[misc]
    """Where s = softmax(logits): d log p(target) / d logits = onehot(target) - s."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        block: int,
        cap: float | None,
        total: Tensor | None,
    ) -> Tensor:
        """With a `total` the weight's gradient is added to it, and none is returned."""
        ctx.block, ctx.cap, ctx.total = block, cap, total
        keep = keeps_logits(len(hidden), len(weight), hidden.element_size())
        kept: list[Tensor] = []
        normaliser = hidden.new_full((len(hidden),), -torch.inf, dtype=torch.float32)
        chosen = torch.zeros_like(normaliser)
        room = _room(weight, block, hidden.dtype)
        for part in _blocks(len(weight), block):
            raw = _product(hidden, _cast(weight, part, room), bias, part)
            logits = _capped(raw, cap)
            normaliser = torch.logaddexp(normaliser, logits.logsumexp(-1))
            place, inside = _place(targets, part)
            chosen += torch.where(inside, logits.gather(1, place[:, None]).squeeze(1), 0)
            if keep:
                kept.append(raw)
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser, *kept)
        return chosen - normaliser

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normaliser, *kept = ctx.saved_tensors
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        total = ctx.total if ctx.needs_input_grad[1] else None
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] and total is None else None
        grad_bias = torch.empty_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        room = _room(weight, ctx.block, hidden.dtype)
        for number, part in enumerate(_blocks(len(weight), ctx.block)):
            cast = _cast(weight, part, room)
            logits = _capped(kept[number] if kept else _product(hidden, cast, bias, part), ctx.cap)
            grad = torch.sub(logits, normaliser[:, None]).exp_().neg_()
            place, inside = _place(targets, part)
            grad.scatter_add_(1, place[:, None], inside[:, None].to(grad.dtype))
            grad.mul_(upstream[:, None])
            if ctx.cap is not None:
                grad.mul_(1 - (logits / ctx.cap).square_())
            if grad_bias is not None:
                grad_bias[part] = grad.sum(0)
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden += grad @ cast
            if total is not None and total.dtype == grad.dtype:
                total[part].addmm_(grad.t(), hidden)
            elif total is not None:
                total[part].add_(grad.t() @ hidden)
            elif grad_weight is not None and grad_weight.dtype == grad.dtype:
                torch.mm(grad.t(), hidden, out=grad_weight[part])
            elif grad_weight is not None:
                grad_weight[part] = grad.t() @ hidden
        grad_hidden = None if grad_hidden is None else grad_hidden.to(hidden.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _blocks(vocabulary: int, size: int) -> Iterator[slice]:
    for start in range(0, vocabulary, size):
        yield slice(start, min(start + size, vocabulary))


def _room(weight: Tensor, block: int, dtype: torch.dtype) -> Tensor | None:
    """Room for a block of the weight in another number format; the blocks take turns in it."""
    return None if weight.dtype == dtype else weight.new_empty((min(block, len(weight)), weight.shape[1]), dtype=dtype)


def _cast(weight: Tensor, part: slice, room: Tensor | None) -> Tensor:
    """The block of the weight, in the room's number format."""
    return weight[part] if room is None else room[: part.stop - part.start].copy_(weight[part])


def _product(hidden: Tensor, cast: Tensor, bias: Tensor | None, part: slice) -> Tensor:
    """The block's logits in the number format of the hidden states."""
    with torch.autocast(hidden.device.type, enabled=False):
        return torch.nn.functional.linear(hidden, cast, None if bias is None else bias[part].to(hidden.dtype))


def _capped(logits: Tensor, cap: float | None) -> Tensor:
    logits = logits.float()
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _place(targets: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Where in the block each target stands (its first place for those that are elsewhere), and which ones are in it."""
    inside = (targets >= part.start) & (targets < part.stop)
    return torch.where(inside, targets - part.start, 0), inside
