"""LoRA through peft: adapters put into the model in place, and merged into its weights when it is exported."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sami_train.config import Recipe
from sami_train.errors import MissingPackage, UserError

_A, _B, _BASE = ".lora_A.default.weight", ".lora_B.default.weight", ".base_layer."


def require_adapters(recipe: Recipe) -> None:
    """Raises MissingPackage, before anything is loaded, when the recipe wants LoRA and peft is not there."""
    if recipe.use_peft and importlib.util.find_spec("peft") is None:
        raise MissingPackage("peft", extra="peft")


def add_adapter(model: Any, recipe: Recipe) -> None:
    """Put a LoRA adapter into the model, in place; only the adapter is left to train. Its start is drawn from the seed.

    Raises:
        UserError: the model has no layer of the names given.
    """
    import torch
    from peft import inject_adapter_in_model

    torch.manual_seed(recipe.seed)
    try:
        inject_adapter_in_model(_config(recipe), model)
    except ValueError as error:
        raise UserError(
            f"lora_target_modules: the adapter cannot be added ({str(error).splitlines()[0]}); name layers of the model"
        ) from None


def merged_state(state: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """A state dict with adapters as one without: W + B A lora_alpha / r, under the names of the base model."""
    scale = recipe.lora_alpha / recipe.lora_r
    merged: dict[str, Any] = {}
    for name, value in state.items():
        if ".lora_" in name:
            continue
        layer = name.split(_BASE)[0]
        if name.endswith(f"{_BASE}weight") and layer + _A in state:
            delta = state[layer + _B].float() @ state[layer + _A].float() * scale
            value = (value.float() + delta).to(value.dtype)
        merged[name.replace(_BASE, ".")] = value
    return merged


def save_adapter(state: Mapping[str, Any], recipe: Recipe, base: str, folder: Path) -> None:
    """Write the adapter alone, as peft reads it (adapter_model.safetensors, adapter_config.json)."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"base_model.model.{name.replace('.default.', '.')}": value.contiguous()
        for name, value in state.items()
        if ".lora_" in name
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {**_config(recipe).to_dict(), "base_model_name_or_path": base, "inference_mode": True}
    text = json.dumps(config, indent=1, sort_keys=True, default=lambda value: sorted(value))
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")


def _config(recipe: Recipe) -> Any:
    from peft import LoraConfig

    targets = recipe.lora_target_modules
    return LoraConfig(
        r=recipe.lora_r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
