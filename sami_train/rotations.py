"""Rotary position embeddings with their gradient in closed form: a model's own numbers, in fewer passes over memory.

With x = (a, b) in halves, and cosines and sines c = (c1, c2), s = (s1, s2) of the positions:

    y = (a c1 - b s1, b c2 + a s2)        d/da = g1 c1 + g2 s2        d/db = g2 c2 - g1 s1
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

NAME = "apply_rotary_pos_emb"
"""What transformers calls the function, in the file of every model that has it."""


@contextmanager
def closed_form_rotations(model: Any) -> Iterator[None]:
    """Let the files that the model's layers come from rotate by this module's function; other functions stay as they are."""
    files = {type(module).__module__ for module in model.modules()}
    own = {}
    for file in (sys.modules[name] for name in sorted(files) if name in sys.modules):
        function = getattr(file, NAME, None)
        if function is not None and getattr(function, "func", None) is not _rotate_both and rotates(function):
            own[file] = function
            setattr(file, NAME, functools.partial(_rotate_both, function))
    try:
        yield
    finally:
        for file, function in own.items():
            setattr(file, NAME, function)


@functools.cache
def rotates(function: Callable[..., Any]) -> bool:
    """Whether a function does what is done here, values and number formats, found out by trying it on a few numbers, once."""
    made: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    numbers = torch.linspace(-2, 2, 2 * 3 * 4 * 8, **made).view(2, 3, 4, 8)
    cos, sin = (torch.linspace(low, 1, 2 * 4 * 8, **made).view(2, 4, 8) for low in (-1, 0.3))
    try:
        for dtype, rounding in ((torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
            given = numbers.to(dtype), numbers[:, :1].to(dtype) + 1, cos, sin
            for one, other in zip(function(*given), _rotate_both(function, *given), strict=True):
                if one.dtype != other.dtype or not torch.allclose(one, other, atol=rounding):
                    return False
    except (TypeError, AttributeError, RuntimeError, ValueError):
        return False
    return True


def _rotate_both(
    own: Callable[..., Any], q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *more: Any, **options: Any
) -> Any:
    """What `own` gives; by itself where it is asked for what was not tried, as to leave a part of every head unrotated."""
    if more or options or cos.shape[-1] != q.shape[-1]:
        return own(q, k, cos, sin, *more, **options)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return _Rotated.apply(q, cos, sin), _Rotated.apply(k, cos, sin)


class _Rotated(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.format = x.dtype
        half = x.shape[-1] // 2
        y = x * cos
        y[..., :half].addcmul_(x[..., half:].to(y.dtype), sin[..., :half], value=-1)
        y[..., half:].addcmul_(x[..., :half].to(y.dtype), sin[..., half:])
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        half = upstream.shape[-1] // 2
        slope = upstream * cos
        upstream = upstream.to(slope.dtype)
        slope[..., :half].addcmul_(upstream[..., half:], sin[..., half:])
        slope[..., half:].addcmul_(upstream[..., :half], sin[..., :half], value=-1)
        return slope.to(ctx.format), None, None
