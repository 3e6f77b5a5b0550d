"""What to change when a run does not fit: only what has been planned again and fits, the least change to the result first."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sami_train.config import Recipe
from sami_train.errors import MissingPackage
from sami_train.planning.memory import Machine, Memory, micro_steps, plan_memory, sampling_batch

if TYPE_CHECKING:
    from sami_train.planning.rehearsal import Lengths
    from sami_train.planning.shape import Architecture

DEVICES = (*range(2, 9), *range(16, 129, 8), 192, 256, 384, 512)
"""Numbers of devices that are tried: up to 8 in one machine, then machines of 8."""

Changes = Mapping[str, Any]


@dataclass(frozen=True)
class Suggestion:
    """Changes of fields after which the run fits, on how many devices, the peak in bytes, and what becomes of the result."""

    changes: Changes
    devices: int
    peak: int
    result: str


class Adviser:
    """Tries changes to a recipe that does not fit."""

    def __init__(self, architecture: Architecture, recipe: Recipe, lengths: Lengths, machine: Machine) -> None:
        self.architecture, self.recipe, self.lengths, self.machine = architecture, recipe, lengths, machine

    def suggestions(self) -> list[Suggestion]:
        """What helps; changes that alter the result only where the others do not. Empty: nothing that is known here does."""
        same = self._exact({}, self.machine)
        found = [] if same is None else [self._suggestion(same, self.machine, SAME)]
        found += self._more_devices(changed=same is None)
        if same is None:
            for changes, result in self._lossy():
                helped = self._exact(changes, self.machine)
                if helped is not None:
                    found.append(self._suggestion(helped, self.machine, result))
        return found

    def _more_devices(self, changed: bool) -> list[Suggestion]:
        """The fewest GPUs that the recipe fits as it is; `changed`: also the fewest with changes that leave the result alone."""
        found: list[Suggestion] = []
        more = [replace(self.machine, devices=count) for count in DEVICES if count > self.machine.devices]
        if self.machine.kind != "cuda" or self.recipe.method != "sami":
            return found
        if changed:
            tried = ((machine, self._exact({}, machine)) for machine in more)
            found += itertools.islice((self._suggestion(c, m, SAME) for m, c in tried if c is not None), 1)
        plain = next((machine for machine in more if self._fits({}, machine)), None)
        if plain is not None and plain.devices not in [suggestion.devices for suggestion in found]:
            found.append(self._suggestion({}, plain, SAME))
        return found

    def _exact(self, start: Changes, machine: Machine) -> Changes | None:
        """`start` and as few changes as are needed, out of those that leave the result alone; None where all do not help."""
        if (changes := self._tried(start, machine)) is not None:
            return changes
        recipe = self.recipe.model_copy(update=dict(start))
        exact = dict(_exact_changes(recipe, machine))
        changes = self._tried({**start, **exact}, machine)
        if changes is None:
            return None
        for field in list(exact):
            without = {key: value for key, value in changes.items() if key != field}
            changes = self._tried(without, machine) or changes
        return changes

    def _tried(self, changes: Changes, machine: Machine) -> Changes | None:
        """The changes if they make the run fit, with a smaller sampling batch where it is only sampling that does not."""
        memory = self._memory(changes, machine)
        if memory is None or memory.fits(machine):
            return changes if memory is not None else None
        training = [phase for phase in memory.phases if phase.name.startswith("training")]
        if max(phase.size for phase in training) > machine.usable:
            return None
        batch = sampling_batch(self.recipe, machine)
        while batch > 1:
            batch //= 2
            smaller = {**changes, "sampling_batch_size": batch}
            if self._fits(smaller, machine):
                return smaller
        return None

    def _lossy(self) -> Iterator[tuple[Changes, str]]:
        """Changes that alter the result, the least first."""
        recipe = self.recipe
        if recipe.optim == "adamw_torch":
            yield {"optim": "adamw_torch_8bit"}, "close: moments in 8 bits"
        if not recipe.freeze_embeddings and not recipe.use_peft:
            yield {"freeze_embeddings": True}, "another: the embeddings stay as they are"
        if recipe.master_dtype == "float32":
            yield {"bf16": True, "master_dtype": "bfloat16"}, "another: small updates are lost to rounding"
        if not recipe.use_peft:
            yield {"use_peft": True}, "another: a LoRA adapter is trained"

    def _fits(self, changes: Changes, machine: Machine) -> bool:
        memory = self._memory(changes, machine)
        return memory is not None and memory.fits(machine)

    def _memory(self, changes: Changes, machine: Machine) -> Memory | None:
        """The plan with the changes; None where a package is missing that would be needed to make it."""
        recipe = self.recipe.model_copy(update=dict(changes))
        try:
            return plan_memory(self.architecture, recipe, self.lengths, machine)
        except MissingPackage:
            return None

    def _suggestion(self, changes: Changes, machine: Machine, result: str) -> Suggestion:
        memory = self._memory(changes, machine)
        assert memory is not None
        return Suggestion(changes, machine.devices, memory.peak.size, result)


SAME = "the same"


def _exact_changes(recipe: Recipe, machine: Machine) -> Iterator[tuple[str, Any]]:
    """Changes that leave the result alone (but for rounding): those that cost the most time first, to be dropped first."""
    if recipe.method == "sami" and not recipe.caches_gradients and not (recipe.use_peft and recipe.lora_dropout):
        yield "gradient_caching", True
    if not recipe.gradient_checkpointing:
        yield "gradient_checkpointing", True
    if recipe.per_device_train_batch_size > 1:
        yield "per_device_train_batch_size", 1
    if machine.sharded and recipe.gradient_sync == "last" and micro_steps(recipe, machine) > 1:
        yield "gradient_sync", "every"
