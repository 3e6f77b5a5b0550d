"""LoRA through peft: adapters put into the model in place, and merged into its weights when it is exported."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sami_train.config import Recipe
from sami_train.errors import MissingPackage, UserError


def require_adapters(recipe: Recipe) -> None:
    """Raises MissingPackage, before anything is loaded, when the recipe wants LoRA and peft is not there."""
    if recipe.use_peft and importlib.util.find_spec("peft") is None:
        raise MissingPackage("peft", extra="peft")


def add_adapter(model: Any, recipe: Recipe) -> None:
    """Put a LoRA adapter into the model, in place; only the adapter is left to train. Its start is drawn from the seed.

    Raises:
        UserError: the model has no layer of the names given, or one of them shares its weights with another.
    """
    import torch
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    torch.manual_seed(recipe.seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft's advice on experts and on tied weights
            inject_adapter_in_model(_config(recipe), model)
    except ValueError as error:
        what = str(error).splitlines()[0]
        if "lora_dropout" in what:
            raise UserError(f"lora_dropout: the adapter cannot be added ({what}); set it to 0") from None
        raise UserError(
            f"lora_target_modules: the adapter cannot be added ({what}); name layers of the model"
        ) from None
    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        raise UserError("lora_target_modules: the model's head cannot have an adapter here; leave it out")
    if model.config.get_text_config().tie_word_embeddings and isinstance(model.get_input_embeddings(), BaseTunerLayer):
        raise UserError(
            "lora_target_modules: this model's embeddings and head share their weights, so an adapter of one cannot be merged; "
            "leave them out"
        )


def merged_state(empty: Any, state: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """A state dict with adapters as one without, under the names of the base model; its weights are changed in place.

    `empty` is the base model on the meta device, without adapters. Which weights an adapter belongs to and how it is merged
    (a mixture of experts keeps its experts in one tensor) is left to peft.

    Raises:
        UserError: something would be left out of the merged model.
    """
    from peft import get_peft_model

    names = set(empty.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's advice on experts
        adapted = get_peft_model(empty, _config(recipe))
        known = adapted.load_state_dict(
            {f"base_model.model.{k}": v for k, v in state.items()}, assign=True, strict=False
        )
        merged: dict[str, Any] = adapted.merge_and_unload().state_dict()
    lost = [*known.unexpected_keys, *known.missing_keys, *(names ^ merged.keys())]
    if lost or any(value.is_meta for value in merged.values()):
        raise UserError(
            f"the adapter cannot be merged into this model ({lost[0] if lost else 'a weight'} would be lost); set "
            "lora_target_modules to the names of linear layers"
        )
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
