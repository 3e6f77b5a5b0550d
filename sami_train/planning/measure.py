"""A few real gradient steps on made-up examples, in a process of its own: their speed, and the most memory that they take.

``python -m sami_train.planning.measure`` reads a job as JSON from its input and prints the result as JSON.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sami_train.config import Recipe
from sami_train.errors import UserError
from sami_train.pairs import Example
from sami_train.planning.rehearsal import Lengths

if TYPE_CHECKING:
    from sami_train.distributed import World
    from sami_train.weights import Weights

COMMAND = (sys.executable, "-P", "-m", "sami_train.planning.measure")

RETURN_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Settings by which glibc gives freed memory back at once, so that the resident size says what is in use."""


@dataclass(frozen=True)
class Measured:
    """Packed tokens per second in the steps after the first, and the peak of memory over what the program took before, in bytes.

    The program is Python with its libraries and the tokenizer (main memory), or nothing (a GPU's memory).
    """

    tokens_per_second: float
    peak: int


def measure(recipe: Recipe, lengths: Lengths, *, steps: int = 2, frugal: bool = False) -> Measured:
    """Take `steps` gradient steps of `batch_size` queries with the recipe's model on this machine, in a fresh process.

    `frugal` has the process give freed memory back at once, which makes the peak exact and the steps slower.

    Raises:
        UserError: the model cannot be loaded, or the process ends early (out of memory, say).
    """
    job = json.dumps({"recipe": recipe.model_dump(mode="json"), "lengths": asdict(lengths), "steps": steps})
    folder = Path(__file__).resolve().parent.parent.parent
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, **(RETURN_MEMORY if frugal else {})}
    done = subprocess.run(COMMAND, input=job, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        reason = said[-1][:300] if said else f"it ended with {done.returncode}; out of memory, perhaps"
        raise UserError(f"the steps could not be measured here: {reason}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def example(number: int, recipe: Recipe, lengths: Lengths, vocabulary: int) -> Example:
    """A made-up example of the given lengths: tokens at random."""
    rng = random.Random(number)
    size = recipe.constitutions_per_query

    def ids(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(vocabulary) for _ in range(length))

    return Example(
        query_id=str(number),
        task="summarization",
        constitutions=("",) * size,
        prompt_ids=tuple(ids(lengths.prompt) for _ in range(size)),
        response_ids=tuple(ids(lengths.response) for _ in range(size)),
        responses=("",) * size,
        filtered=None,
        other_prompt_ids=tuple(ids(lengths.prompt) for _ in range(recipe.prompts_per_query - size)),
    )


def take_steps(recipe: Recipe, lengths: Lengths, steps: int) -> Measured:
    """What `measure` does, in this process: load, then take the recipe's gradient step `steps` times."""
    from sami_train.distributed import World
    from sami_train.models import default_device, parse_source
    from sami_train.weights import Weights

    assert recipe.model is not None
    if recipe.method != "sami":
        _load_trl()
    world = World(device=default_device())
    weights = Weights(recipe, parse_source(recipe.model), world)
    before = _restart(world.device_type)
    model = weights.for_training()
    vocabulary = model.config.get_text_config().vocab_size
    examples = [example(n, recipe, lengths, vocabulary) for n in range(steps * recipe.batch_size)]
    _restart(world.device_type)
    taken = _sami_steps if recipe.method == "sami" else _trl_steps
    speeds = list(taken(recipe, weights, model, world, examples, steps))
    timed = speeds[1:] or speeds
    rate = sum(tokens for tokens, _ in timed) / sum(seconds for _, seconds in timed)
    return Measured(rate, _peak(world.device_type) - before)


def _sami_steps(
    recipe: Recipe, weights: Weights, model: Any, world: World, examples: Sequence[Example], steps: int
) -> Iterator[tuple[int, float]]:
    """Tokens and seconds of every step."""
    import torch

    from sami_train.distributed import total_norm
    from sami_train.optimizers import make_optimizer
    from sami_train.step import accumulate

    parameters = list(weights.trainable().values())
    optimizer = make_optimizer(recipe, parameters)
    model.train()
    for step in range(steps):
        batch = examples[step * recipe.batch_size : (step + 1) * recipe.batch_size]
        began = time.monotonic()
        result = accumulate(model, batch, recipe, world)
        total_norm(parameters, recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if world.device_type == "cuda":
            torch.cuda.synchronize()
        yield result.tokens, time.monotonic() - began


def _trl_steps(
    recipe: Recipe, weights: Weights, model: Any, world: World, examples: Sequence[Example], steps: int
) -> Iterator[tuple[float, float]]:
    """The same of the methods dpo and sft, whose tokens are given for a second."""
    from sami_train.baselines import train_baseline

    speeds: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        train_baseline(
            recipe,
            model,
            weights.tokenizer,
            examples,
            steps=steps,
            folder=Path(folder),
            on_step=lambda row: speeds.append((row["tokens_per_second"], 1.0)),
        )
    yield from speeds


def _load_trl() -> None:
    """Load what TRL loads, so that it counts as the program's memory."""
    from sami_train.baselines import require_trl

    require_trl()
    from datasets import Dataset  # noqa: F401
    from trl import DPOTrainer, SFTTrainer  # noqa: F401


def _restart(kind: str) -> int:
    """Forget the peak so far; returns the bytes in use now."""
    import gc

    import torch

    gc.collect()
    if kind == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def _peak(kind: str) -> int:
    import torch

    return int(torch.cuda.max_memory_allocated()) if kind == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


def main() -> int:
    """Read a job, take its steps, print what was measured."""
    job: dict[str, Any] = json.load(sys.stdin)
    try:
        found = take_steps(Recipe.model_validate(job["recipe"]), Lengths(**job["lengths"]), job["steps"])
    except UserError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    print(json.dumps(asdict(found)))  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
