"""Under autocast, what several linear layers read is cast once and kept once, as with queries, keys and values; or gate and up."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@contextmanager
def casts_once(model: Any) -> Iterator[None]:
    """Let the model's linear layers share the copy of an input that autocast would make for each of them.

    The gradients that come back to a shared copy are summed in the copy's number format.
    """
    last = _Last()
    found = [module for module in model.modules() if type(module) is torch.nn.Linear and "forward" not in vars(module)]
    for module in found:
        module.forward = functools.partial(_forward, module, last)
    try:
        yield
    finally:
        for module in found:
            del module.forward


class _Last:
    """The input that was cast last, as long as it lives, and its copy."""

    def __init__(self) -> None:
        self.given: Callable[[], Tensor | None] = lambda: None
        self.copy: Tensor | None = None
        self.state: tuple[Any, ...] = ()

    def cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The copy of `x`, the last one's where it is the same, unchanged, and gradients are taken of both or of neither."""
        if x.is_inference():  # which do not say whether they were written to
            return x.to(dtype)
        state = x._version, x.requires_grad, torch.is_grad_enabled(), dtype
        if self.copy is None or self.given() is not x or self.state != state:
            self.given, self.copy, self.state = weakref.ref(x), x.to(dtype), state
        return self.copy


def _forward(module: torch.nn.Linear, last: _Last, x: Tensor) -> Tensor:
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        if x.dtype != dtype and x.is_floating_point():
            x = last.cast(x, dtype)
    return functional.linear(x, module.weight, module.bias)
