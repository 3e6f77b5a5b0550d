"""Bytes on one device, part by part, in every phase of a run; the most of any phase is what the device must have.

What is known exactly is counted (weights, gradients, moments), what a step holds besides is rehearsed. Parts that do not live at
the same time stand in different phases and are never added up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sami_train.baselines import queries_at_once
from sami_train.config import Recipe
from sami_train.errors import UserError
from sami_train.generation import DEFAULT_BATCH

if TYPE_CHECKING:
    from sami_train.planning.rehearsal import Lengths, Sampling, Training
    from sami_train.planning.shape import Architecture, Parameters

HEADROOM = 0.08
"""Share of a device's memory that is left free: fragments, workspaces of matrix products, the libraries' own buffers."""

PROGRAM = {"cpu": 700 << 20, "cuda": 600 << 20}
"""Bytes that the program takes before it has a model: Python, libraries and a tokenizer; or a GPU's context and kernels."""

GATHERED_LAYERS = 3
"""Layers whose whole weights a sharded model has at once: the one that runs, the next one, and the buffer it arrives in."""

EIGHT_BIT_BLOCK, EIGHT_BIT_FROM = 256, 4096
"""torchao's 8-bit moments have one 4-byte scale per block, and tensors below a size keep 4 bytes."""


@dataclass(frozen=True)
class Machine:
    """What a run is planned for: devices of one kind (cpu, cuda) and the memory of each, in bytes."""

    kind: str
    devices: int
    memory: int

    @property
    def sharded(self) -> bool:
        return self.devices > 1

    @property
    def usable(self) -> int:
        """Bytes of a device's memory that a plan may fill."""
        return int(self.memory * (1 - HEADROOM))


@dataclass(frozen=True)
class Part:
    """Something that takes memory, in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class Phase:
    """A part of a run, and what lives in a device's memory then."""

    name: str
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)


@dataclass(frozen=True)
class Memory:
    """The phases of a run on one device. `host` is what the first process's main memory takes besides, in bytes."""

    phases: tuple[Phase, ...]
    host: int

    @property
    def peak(self) -> Phase:
        """The phase that takes most."""
        return max(self.phases, key=lambda phase: phase.size)

    def fits(self, machine: Machine) -> bool:
        return self.peak.size <= machine.usable


@dataclass(frozen=True)
class States:
    """Bytes on one device that outlive a micro-step. `accumulated`: gradients while a step's micro-steps add up."""

    weights: int
    gradients: int
    accumulated: int
    moments: int


def plan_memory(architecture: Architecture, recipe: Recipe, lengths: Lengths, machine: Machine) -> Memory:
    """What a recipe takes on every device of a machine, for examples of these lengths.

    Raises:
        MissingPackage: the recipe trains through TRL, or an adapter through peft, and it is not installed.
        UserError: the recipe trains through TRL, which takes one device, and the machine has several.
    """
    from sami_train.planning.rehearsal import rehearse_training
    from sami_train.planning.shape import count_parameters

    if recipe.method != "sami" and machine.sharded:
        raise UserError(f"the method '{recipe.method}' trains in one process, on one device; plan it for one GPU")
    parameters = count_parameters(architecture, recipe)
    training = rehearse_training(architecture, recipe, lengths, machine.kind, machine.sharded)
    states = count_states(parameters, recipe, machine)
    phases = [
        *_sampling_phases(architecture, recipe, lengths, machine, parameters, states),
        *_training_phases(parameters, recipe, machine, states, training),
        _update_phase(parameters, recipe, machine, states),
    ]
    program = Part("program", PROGRAM[machine.kind])
    whole = parameters.total * _bytes(recipe.master_dtype) if machine.sharded else 0
    return Memory(tuple(Phase(phase.name, (*phase.parts, program)) for phase in phases), whole)


def count_states(parameters: Parameters, recipe: Recipe, machine: Machine) -> States:
    """Weights, gradients and moments of one device, in bytes, sharded evenly over the devices."""
    size, devices = _bytes(recipe.master_dtype), machine.devices
    gradients = math.ceil(parameters.trainable * size / devices)
    accumulated = gradients if micro_steps(recipe, machine) > 1 else 0
    if recipe.method == "sami" and not machine.sharded:  # those of embeddings and head are there from the start
        accumulated = max(accumulated, parameters.root_trainable * size)
    if machine.sharded and accumulated and recipe.gradient_sync == "last":
        accumulated += parameters.trainable * (4 if recipe.bf16 else size)
    return States(
        weights=math.ceil(parameters.total * size / devices),
        gradients=gradients,
        accumulated=accumulated,
        moments=math.ceil(_moments(parameters, recipe) / devices),
    )


def micro_steps(recipe: Recipe, machine: Machine) -> int:
    """Backward passes of a device in a gradient step."""
    queries = math.ceil((recipe.gradient_queries or recipe.batch_size) / machine.devices)
    if recipe.method != "sami":
        return queries // queries_at_once(recipe)
    rows = recipe.prompts_per_query if recipe.caches_gradients else 1
    return math.ceil(queries / recipe.per_device_train_batch_size) * rows


def _moments(parameters: Parameters, recipe: Recipe) -> float:
    size = _bytes(recipe.master_dtype)
    if recipe.optim == "rmsprop":
        return parameters.trainable * size
    if recipe.optim == "adamw_torch":
        return 2 * parameters.trainable * size
    eighth = 1 + 4 / EIGHT_BIT_BLOCK
    return sum(
        2 * count * (eighth if count >= EIGHT_BIT_FROM and count % EIGHT_BIT_BLOCK == 0 else size)
        for count in parameters.trained
    )


def _bytes(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else 4


def _gathered(parameters: Parameters, recipe: Recipe, machine: Machine) -> list[Part]:
    """The whole weights that a sharded model has at once, in the number format of the computation."""
    if not machine.sharded:
        return []
    size = 2 if recipe.bf16 else _bytes(recipe.master_dtype)
    count = parameters.root + GATHERED_LAYERS * parameters.layer
    return [Part("gathered weights", count * size)]


def _training_phases(
    parameters: Parameters, recipe: Recipe, machine: Machine, states: States, training: Training
) -> list[Phase]:
    held = [Part("weights", states.weights), Part("optimizer's moments", states.moments)]
    held += _gathered(parameters, recipe, machine)
    begun = [Part("gradients", states.accumulated)] if states.accumulated else []
    after = [Part("gradients", max(states.accumulated, states.gradients))]
    mask = Part("block mask", training.mask)
    kept = Part("kept for the backward pass", training.kept)

    def phase(name: str, what: str, size: int, gradients: list[Part], reducing: int, *known: Part) -> Phase:
        rest = Part(what, size - sum(part.size for part in known))
        return Phase(f"training: {name}", (*held, *gradients, *known, rest, *_reducing(recipe, machine, reducing)))

    root, layer = parameters.root_trainable, parameters.layer_trainable
    phases = [
        phase("forward pass", "layers' outputs", training.forward, begun, 0, mask),
        phase("head", "logits and their gradients", training.head, begun, 0, kept),
        phase("backward pass", "a layer's gradients", training.layers, begun, layer, kept),
    ]
    if training.embeddings:
        phases.append(phase("embeddings", "embeddings' gradients", training.embeddings, after, root))
    else:
        phases.append(phase("last layer", "a layer's gradients", max(0, training.layers - training.kept), after, 0))
    return phases


def _reducing(recipe: Recipe, machine: Machine, count: int) -> list[Part]:
    """Whole gradients of a group of weights on their way to the shards: as computed, and as they are sent."""
    if not machine.sharded or not count:
        return []
    computed = 2 if recipe.bf16 else _bytes(recipe.master_dtype)
    sent = 4 if recipe.bf16 else computed
    return [Part("gradients being reduced", count * (computed + sent))]


def _update_phase(parameters: Parameters, recipe: Recipe, machine: Machine, states: States) -> Phase:
    """The optimizer's step. On GPUs it runs over all weights at once, on CPUs over one tensor after another."""
    copies = 0 if recipe.optim == "adamw_torch_8bit" else 1
    if recipe.optim == "rmsprop" and recipe.weight_decay:
        copies += 1
    if recipe.optim == "adamw_torch" and machine.kind == "cpu":
        copies += 1
    count = parameters.trainable if machine.kind == "cuda" else max(parameters.trained, default=0)
    return Phase(
        "training: update",
        (
            Part("weights", states.weights),
            Part("optimizer's moments", states.moments),
            Part("gradients", states.gradients),
            Part("optimizer's copies", math.ceil(copies * count * _bytes(recipe.master_dtype) / machine.devices)),
        ),
    )


def sampling_batch(recipe: Recipe, machine: Machine) -> int:
    """Prompts generated together on a device."""
    return recipe.sampling_batch_size or DEFAULT_BATCH[machine.kind]


def _sampling_phases(
    architecture: Architecture,
    recipe: Recipe,
    lengths: Lengths,
    machine: Machine,
    parameters: Parameters,
    states: States,
) -> list[Phase]:
    """Sampling before training, and among the steps where the recipe watches sampled responses."""
    from sami_train.planning.rehearsal import rehearse_sampling

    prompts = recipe.queries_needed(recipe.iterations) * recipe.constitutions_per_query
    computing = "bfloat16" if recipe.bf16 and machine.sharded else recipe.master_dtype
    phases = []
    if not recipe.use_vllm:
        dtype = "bfloat16" if recipe.bf16 else recipe.master_dtype
        weights = (parameters.total - parameters.adapters) * _bytes(recipe.master_dtype if machine.sharded else dtype)
        held = [Part("weights", math.ceil(weights / machine.devices)), *_gathered(parameters, recipe, machine)]
        batch = min(sampling_batch(recipe, machine), math.ceil(prompts / machine.devices))
        found = rehearse_sampling(architecture, recipe, lengths, machine.kind, dtype, batch)
        phases += _sampling("sampling", held, found)
    if watched := recipe.eval_samples * recipe.constitutions_per_query:
        held = [Part("weights", states.weights), Part("optimizer's moments", states.moments)]
        held += _gathered(parameters, recipe, machine)
        batch = min(sampling_batch(recipe, machine), watched)
        found = rehearse_sampling(architecture, recipe, lengths, machine.kind, computing, batch)
        phases += _sampling("evaluation's samples", held, found)
    return phases


def _sampling(name: str, held: list[Part], found: Sampling) -> list[Phase]:
    return [
        Phase(f"{name}: reading prompts", (*held, Part("keys, values and layers", found.prompts))),
        Phase(
            f"{name}: writing",
            (*held, Part("keys and values", found.cache), Part("layers and logits", found.writing - found.cache)),
        ),
    ]


def main_memory() -> int:
    """Bytes of this machine's main memory that this process may take: what there is, or a container's limit."""
    import os

    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            whole = min(whole, int(Path(file).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such file, or "max": no limit
            continue
    return whole
