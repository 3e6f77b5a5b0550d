"""One process or many: what the trainer needs of torch.distributed, and FSDP2 sharding.

Started by `torchrun`, on one node or several, every process holds a shard of every weight, gradient and optimizer moment; a
layer's weights are gathered for as long as it runs. Started plainly there is one process and nothing is sharded. The same code
runs on CPUs over gloo (where it is tested) and on GPUs over NCCL, with gloo for objects.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sami_train.config import Recipe
from sami_train.errors import UserError

LONGEST_WAIT = datetime.timedelta(hours=12)
"""How long a process waits for the others; the first one may be sampling with vLLM meanwhile."""


@dataclass
class World:
    """This process among all: its rank, how many there are, and the device that it trains on."""

    rank: int = 0
    size: int = 1
    local_size: int = 1
    device: str = "cpu"
    synchronising: bool = field(default=True, init=False)

    @property
    def main(self) -> bool:
        """Whether this process writes the files that there is one of."""
        return self.rank == 0

    @property
    def device_type(self) -> str:
        return self.device.split(":")[0]

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, by rank, on every process. Values travel between the processes of this one job."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def together(self, error: UserError | None) -> None:
        """Raise on every process the first error that any of them has, so that none waits for one that has stopped."""
        messages = [m for m in self.gather(None if error is None else str(error)) if m is not None]
        if messages:
            raise UserError(messages[0])

    def synchronise_gradients(self, model: Any, wanted: bool) -> None:
        """Whether the next backward pass reduces gradients over the processes, or keeps them to itself until a later one."""
        self.synchronising = wanted
        if self.size > 1:
            model.set_requires_gradient_sync(wanted)

    def close(self) -> None:
        """Leave the other processes.

        Gloo's threads live until the process ends, and one may still hold a tensor of the last exchange for a moment after
        that exchange was waited for. Letting go of it while the interpreter shuts down aborts the process
        (https://github.com/pytorch/pytorch/issues/190489, open), so they get half a second, without Python's lock, to be done.
        """
        if self.size > 1:
            import torch.distributed as dist

            gloo = "gloo" in dist.get_backend_config()
            dist.destroy_process_group()
            if gloo:
                time.sleep(0.5)


def start(device: str | None = None) -> World:
    """This process's place among those that `torchrun` started; a world of one where it did not.

    `device` is the kind wanted, cpu or cuda; None takes GPUs where there are any.
    """
    from sami_train.models import default_device

    kind = device or default_device()
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        return World(device=kind)
    import torch
    import torch.distributed as dist

    if "TORCHELASTIC_RUN_ID" in os.environ:
        _end_with_parent()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if kind == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(
                f"torchrun started {local + 1} or more processes on a machine with {torch.cuda.device_count()} GPUs; "
                "lower --nproc-per-node"
            )
        torch.cuda.set_device(local)
    # Objects and barriers go over gloo: over NCCL a waiting process would keep a GPU busy, on which vLLM may be sampling.
    dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", timeout=LONGEST_WAIT)
    return World(
        dist.get_rank(),
        size,
        int(os.environ.get("LOCAL_WORLD_SIZE", size)),
        f"cuda:{local}" if kind == "cuda" else "cpu",
    )


LOOK = 1.0
"""Seconds between two looks at whether torchrun still lives."""


def _end_with_parent() -> None:
    """Start a thread that ends this process once its parent, torchrun, has gone.

    torchrun ends its processes when it is told to end. One that is killed cannot, and they would go on without it.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK)
        with contextlib.suppress(OSError):
            os.write(2, b"sami-train: torchrun has gone, so this process ends; run the same command again to go on\n")
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def layers_of(model: Any) -> list[Any]:
    """The decoder layers, found from the model itself: the modules of the classes that it says must not be split.

    Raises:
        UserError: the model names no such class (it is not a decoder of transformers).
    """
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise UserError(f"no decoder layers were found in a {type(model).__name__}; it cannot be sharded")
    return layers


def shard(model: Any, recipe: Recipe, world: World) -> Any:
    """Shard a model's parameters over all processes, layer by layer (FSDP2's `fully_shard`); the model itself is returned.

    Compute is in bfloat16 where the recipe says so, gradients are reduced in float32.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    from sami_train.logprobs import install_forward

    mesh = init_device_mesh(world.device_type, (world.size,))
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if recipe.bf16 else None, reduce_dtype=torch.float32 if recipe.bf16 else None
    )
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    install_forward(model)
    return model


def spread_weights(model: Any, state: dict[str, Any], buffers: dict[str, Any], world: World) -> None:
    """Fill a sharded model that lies on the meta device with the first process's weights and buffers.

    Args:
        model: sharded, without storage.
        state: the whole state dict on the CPU on the first process; empty on the others.
        buffers: likewise, the buffers that a state dict leaves out (rotary frequencies).
    """
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    model.to_empty(device=world.device)
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()  # shared weights (a tied head) are one again
    (known, *_) = world.gather(sorted(state))
    if lacking := sorted(model.state_dict().keys() - set(known)):
        raise UserError(
            f"the model's weight {lacking[0]} would not be spread over the processes; its architecture is not supported"
        )
    set_model_state_dict(
        model, state, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
    )
    for name, buffer in model.named_buffers():
        if world.main:
            buffer.copy_(buffers[name])
        dist.broadcast(buffer, src=0)


def whole_state(model: Any, world: World) -> dict[str, Any]:
    """The model's whole state dict on the CPU of the first process, gathered a weight at a time; empty on the others."""
    if world.size == 1:
        return {name: value.detach() for name, value in model.state_dict().items()}
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return state


def total_norm(parameters: Sequence[Any], limit: float) -> float:
    """Clip the gradients to `limit` (0: leave them) and return their norm before that, over all processes."""
    import torch

    norm = torch.nn.utils.clip_grad_norm_(list(parameters), limit or math.inf)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
