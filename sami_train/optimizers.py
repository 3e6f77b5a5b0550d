"""The optimizers that a recipe can name."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from typing import Any

from sami_train.config import Recipe
from sami_train.errors import MissingPackage
from sami_train.text import counted


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


def moves(recipe: Recipe, iteration: int) -> list[float]:
    """How far each step of an iteration (from 1) moves a weight whose gradient keeps its size and sign, in peak learning rates.

    AdamW corrects its moments for their start at 0 and moves by the step's rate. RMSprop does not: its mean square is too small
    at first, so that it moves by 10, 7.1, 5.8, ... times the rate where `rmsprop_alpha` is 0.99. Epsilon and weight decay are
    left out.
    """
    steps = recipe.steps(iteration)
    rates = [recipe.learning_rate_at(step, steps) / recipe.learning_rate for step in range(steps)]
    if recipe.optim != "rmsprop":
        return rates
    return [rate / math.sqrt(1 - recipe.rmsprop_alpha**step) for step, rate in enumerate(rates, start=1)]


def dose(recipe: Recipe) -> str:
    """A sentence: how far the steps of the last iteration move a weight, in all and at most in one of them."""
    found = moves(recipe, recipe.iterations)
    return (
        f"Dose of {recipe.optim}: {counted(len(found), 'step')} of iteration {recipe.iterations} would move a weight whose "
        f"gradient keeps its size and sign by {sum(found):.1f} times this rate ({recipe.learning_rate * sum(found):.2g}), one step "
        f"by {max(found):.1f} times at most."
    )


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Set the rate of every group; torchao's optimizers keep it in a tensor."""
    for group in optimizer.param_groups:
        if hasattr(group["lr"], "fill_"):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
