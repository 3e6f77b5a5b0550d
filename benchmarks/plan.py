"""What `sami-train plan` says of memory against what real steps take: two gradient steps on a CPU, each setting in a fresh process.

    python benchmarks/plan.py [--prompt 200] [--response 60] [--only gemma]

Every step has two micro-steps, so that gradients add up as they do in a run. Measured is the peak of the resident size over that
with libraries and tokenizer loaded; planned is the most of any training phase without the program itself. One thread; freed memory
is given back at once. Nothing of the plan is fitted to these figures.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

from rich.console import Console
from rich.table import Table

from sami_train.config import Recipe
from sami_train.planning.measure import measure
from sami_train.planning.memory import Machine, Memory, plan_memory
from sami_train.planning.rehearsal import Lengths
from sami_train.planning.shape import find_architecture

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("smollm2-135m-instruct", {}),
    ("smollm2-135m-instruct", {"gradient_checkpointing": True, "optim": "rmsprop"}),
    ("smollm2-135m-instruct", {"constitutions_per_query": 4}),
    ("smollm2-135m-instruct", {"constitutions_per_query": 4, "gradient_caching": True}),
    ("smollm2-135m-instruct", {"use_peft": True}),
    ("smollm2-135m-instruct", {"method": "sft"}),
    ("smollm2-135m-instruct", {"method": "dpo", "beta": 0.1}),
    ("smollm2-135m-instruct", {"method": "dpo", "beta": 0.1, "use_peft": True}),
    ("gemma-3-270m", {"method": "sft"}),
    ("gemma-3-270m", {"method": "dpo", "beta": 0.1}),
    ("gemma-3-270m", {"freeze_embeddings": True}),
    ("gemma-3-270m", {"optim": "rmsprop", "gradient_checkpointing": True}),
    ("gemma-3-270m", {}),
]


def planned_bytes(memory: Memory) -> tuple[int, str]:
    """The most of any training phase without the program, and which phase that is."""
    sizes = {
        phase.name: sum(part.size for part in phase.parts if part.name != "program")
        for phase in memory.phases
        if phase.name.startswith("training")
    }
    name = max(sizes, key=lambda key: sizes[key])
    return sizes[name], name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=200, help="tokens")
    parser.add_argument("--response", type=int, default=60, help="tokens")
    parser.add_argument("--only", default="", help="settings whose line has this in it")
    options = parser.parse_args()
    lengths = Lengths(options.prompt, options.response)
    table = Table(title=f"prompt {lengths.prompt}, response {lengths.response} tokens, float32, one thread")
    for column in ("model", "setting", "planned GiB", "measured GiB", "planned / measured", "peak in", "tokens/s"):
        table.add_column(column, justify="left" if column in ("model", "setting", "peak in") else "right")
    worst = 0.0
    for name, changes in SETTINGS:
        setting = ", ".join(f"{key} {value}" for key, value in changes.items()) or "defaults"
        if options.only not in f"{name}: {setting}":
            continue
        recipe = Recipe(name="benchmark", model=f"embedded/{name}", batch_size=2, learning_rate=1e-6, **changes)
        architecture = find_architecture(f"embedded/{name}")
        planned, phase = planned_bytes(plan_memory(architecture, recipe, lengths, Machine("cpu", 1, 1 << 40)))
        found = measure(recipe, lengths, frugal=True)
        ratio = planned / found.peak
        worst = max(worst, abs(ratio - 1))
        table.add_row(
            name, setting, f"{planned / 2**30:.2f}", f"{found.peak / 2**30:.2f}", f"{ratio:.2f}",
            phase.removeprefix("training: "), f"{found.tokens_per_second:.0f}",
        )  # fmt: skip
        print(f"{name}: {setting}: {ratio:.2f}", file=sys.stderr)
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    return 0 if worst <= 0.2 else 1


if __name__ == "__main__":
    raise SystemExit(main())
