"""SAMI: raise the mutual information between constitutions and responses, without preference labels.

`sami_loss` is the objective on a (C, C) matrix; `response_logprobs` makes that matrix fast, `response_logprobs_naive` plainly;
`train` runs a recipe. Everything heavy is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sami_train.logprobs import response_logprobs, response_logprobs_naive
    from sami_train.loss import sami_loss
    from sami_train.trainer import train

_HOME = {
    "response_logprobs": "sami_train.logprobs",
    "response_logprobs_naive": "sami_train.logprobs",
    "sami_loss": "sami_train.loss",
    "train": "sami_train.trainer",
}
__all__ = ["response_logprobs", "response_logprobs_naive", "sami_loss", "train"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'sami_train' has no attribute '{name}'")
