"""The optimizers that a recipe can name."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from sami_train.config import Recipe
from sami_train.errors import MissingPackage


def require_optimizer(recipe: Recipe) -> None:
    """Raises MissingPackage, before anything is loaded, when the recipe's optimizer needs a package that is not there."""
    if recipe.optim == "adamw_torch_8bit" and importlib.util.find_spec("torchao") is None:
        raise MissingPackage("torchao", extra="8bit")


def make_optimizer(recipe: Recipe, parameters: Sequence[Any]) -> Any:
    """The recipe's optimizer over the parameters, at its peak learning rate."""
    import torch

    if recipe.optim == "rmsprop":
        return torch.optim.RMSprop(
            parameters,
            lr=recipe.learning_rate,
            alpha=recipe.rmsprop_alpha,
            eps=recipe.rmsprop_epsilon,
            weight_decay=recipe.weight_decay,
        )
    options: dict[str, Any] = {
        "lr": recipe.learning_rate,
        "betas": (recipe.adam_beta1, recipe.adam_beta2),
        "eps": recipe.adam_epsilon,
        "weight_decay": recipe.weight_decay,
    }
    if recipe.optim == "adamw_torch_8bit":
        from torchao.optim import AdamW8bit

        return AdamW8bit(parameters, **options)
    return torch.optim.AdamW(parameters, **options)


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Set the rate of every group; torchao's optimizers keep it in a tensor."""
    for group in optimizer.param_groups:
        if hasattr(group["lr"], "fill_"):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
