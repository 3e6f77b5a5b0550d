"""Checkpoints inside an iteration: weights and optimizer state as safetensors, exact to the bit, never pickled.

Every process writes the shards that it holds (torch.distributed.checkpoint), so nothing is gathered; a run may go on with
another number of processes. A checkpoint appears under its name by a rename, whole or not at all.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sami_train.distributed import World
from sami_train.errors import UserError
from sami_train.files import read_json, write_json

PROGRESS = "progress.json"


def save_checkpoint(
    folder: Path, parameters: Mapping[str, Any], optimizer: Any, step: int, world: World | None = None
) -> None:
    """Write weights, the optimizer's state and the number of steps taken; replaces an older checkpoint by a rename."""
    import torch.distributed.checkpoint as dcp

    world = world or World()
    work = folder.with_name(f".{folder.name}-being-written")
    error = None
    try:
        if world.main:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
    except OSError as reason:
        error = UserError(
            f"{folder}: the checkpoint cannot be written ({reason.strerror}); free some space and run again"
        )
    world.together(error)
    try:
        with _quiet():
            dcp.save(
                _tensors(parameters, optimizer, world),
                storage_writer=dcp.HuggingFaceStorageWriter(str(work), save_distributed=True),
                no_dist=world.size == 1,
            )
        if world.main:
            write_json(work / PROGRESS, {"step": step})
            old = _put_aside(folder)
            shutil.rmtree(old, ignore_errors=True)
            if folder.is_dir():
                folder.rename(old)
            work.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
    except (OSError, UserError, dcp.api.CheckpointException) as reason:
        shutil.rmtree(work, ignore_errors=True)
        cause = next(iter(getattr(reason, "failures", {}).values()), (reason,))[0]
        why = getattr(cause, "strerror", None) or _first_line(cause)
        error = UserError(f"{folder}: the checkpoint cannot be written ({why}); free some space and run again")
    world.together(error)


def load_checkpoint(folder: Path, parameters: Mapping[str, Any], optimizer: Any, world: World | None = None) -> int:
    """Put a checkpoint back into parameters and optimizer; returns the steps taken, 0 where there is none.

    Raises:
        UserError: the checkpoint is damaged or belongs to another model.
    """
    import torch.distributed.checkpoint as dcp

    world = world or World()
    if world.main and not folder.is_dir() and _put_aside(folder).is_dir():
        _put_aside(folder).rename(folder)  # a kill between two renames
    world.barrier()
    if not folder.is_dir():
        return 0
    error, step = None, 0
    try:
        step = int((read_json(folder / PROGRESS) or {})["step"])
        _make_state(parameters, optimizer)
        with _quiet():
            dcp.load(
                _tensors(parameters, optimizer, world),
                storage_reader=dcp.HuggingFaceStorageReader(str(folder)),
                no_dist=world.size == 1,
            )
        for state in optimizer.state.values():
            if "step" in state:
                state["step"].fill_(step)
    except (Exception, dcp.api.CheckpointException) as reason:  # torch's own is no Exception
        if isinstance(reason, MemoryError):
            raise
        error = UserError(
            f"{folder}: this checkpoint is damaged or of another model; delete the folder and run again, the rest is kept"
        )
    world.together(error)
    return step


def _put_aside(folder: Path) -> Path:
    """Where the older checkpoint is while a newer one takes its name."""
    return folder.with_name(f".{folder.name}-older")


def _tensors(parameters: Mapping[str, Any], optimizer: Any, world: World) -> dict[str, Any]:
    """Everything to keep, by name. The state of 8-bit optimizers is taken apart, and is then this process's own."""
    found: dict[str, Any] = {}
    for name, parameter in parameters.items():
        found[f"weight/{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            if key == "step":
                continue
            local = value.to_local() if hasattr(value, "to_local") else value
            if hasattr(local, "__tensor_flatten__"):
                for part in local.__tensor_flatten__()[0]:
                    found[f"{key}.{part}/{world.rank}-of-{world.size}/{name}"] = getattr(local, part)
            else:
                found[f"{key}/{name}"] = value
    return found


def _make_state(parameters: Mapping[str, Any], optimizer: Any) -> None:
    """Let the optimizer make its state, by a step at rate 0 with gradients of 0; its values are overwritten afterwards."""
    import torch

    from sami_train.optimizers import set_learning_rate

    rates = [float(group["lr"]) for group in optimizer.param_groups]
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    set_learning_rate(optimizer, 0.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    set_learning_rate(optimizer, rates[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.distributed.checkpoint warns of what is meant here (one process without a process group), and prints the traceback
    of a damaged file, of which the trainer tells in a sentence."""
    logger = logging.getLogger("torch.distributed.checkpoint")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
