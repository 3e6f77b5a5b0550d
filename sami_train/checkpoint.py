"""Checkpoints inside an iteration: weights and optimizer state as safetensors, exact to the bit, never pickled."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sami_train.errors import UserError

STATES = ("exp_avg", "exp_avg_sq", "step")


def save_checkpoint(folder: Path, parameters: Mapping[str, Any], optimizer: Any, step: int) -> None:
    """Write weights, AdamW's state and the number of steps taken; replaces an older checkpoint by a rename."""
    from safetensors.torch import save_file

    tensors = {f"weight/{name}": p.detach().contiguous().cpu() for name, p in parameters.items()}
    for name, parameter in parameters.items():
        for key in STATES:
            tensors[f"{key}/{name}"] = optimizer.state[parameter][key].detach().contiguous().cpu()
    work = folder.with_name(f".{folder.name}-being-written")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        save_file(tensors, work / "state.safetensors", metadata={"step": str(step)})
        shutil.rmtree(folder, ignore_errors=True)
        work.rename(folder)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise UserError(
            f"{folder}: the checkpoint cannot be written ({error.strerror}); free some space and run again"
        ) from error


def load_checkpoint(folder: Path, parameters: Mapping[str, Any], optimizer: Any) -> int:
    """Put a checkpoint back into parameters and optimizer; returns the steps taken, 0 where there is none.

    Raises:
        UserError: the checkpoint is damaged or belongs to another model.
    """
    file = folder / "state.safetensors"
    if not file.is_file():
        return 0
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as state, torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state.get_tensor(f"weight/{name}"))
                optimizer.state[parameter] = {key: state.get_tensor(f"{key}/{name}") for key in STATES}
                for key in STATES[:2]:
                    optimizer.state[parameter][key] = optimizer.state[parameter][key].to(parameter.device)
            return int(state.metadata()["step"])
    except (SafetensorError, KeyError, RuntimeError, OSError):
        raise UserError(
            f"{folder}: this checkpoint is damaged or of another model; delete the folder and run again"
        ) from None
