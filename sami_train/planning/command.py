"""The verb `sami-train plan`: what a run takes, whether it fits, and what to change where it does not."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sami_train.errors import UserError
from sami_train.text import counted

if TYPE_CHECKING:
    from sami_train.config import Recipe
    from sami_train.planning.advice import Suggestion
    from sami_train.planning.measure import Measured
    from sami_train.planning.memory import Machine, Memory
    from sami_train.planning.rehearsal import Lengths
    from sami_train.planning.shape import Architecture, Parameters
    from sami_train.planning.work import Iteration, Speed

GPU_MEMORY = "80GB"
CARDS: dict[float, float] = {40: 39.39, 80: 79.15, 141: 139.0}
"""GiB that torch reports of a card (A100, H100, H200) by the gigabytes that it is sold with."""
UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of the verb."""
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe file, or a name out of 'sami-train list'")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field of the recipe"
    )
    parser.add_argument(
        "--gpus", type=int, metavar="N", help="GPUs in a machine (default: this machine's one device, GPU or CPU)"
    )
    parser.add_argument("--nodes", type=int, metavar="N", help="machines with --gpus GPUs each (default: 1)")
    parser.add_argument(
        "--gpu-memory",
        metavar="SIZE",
        help=f"memory of a GPU: of a card as it is sold, 80GB, or of any as it reports, 79.15GiB (default: {GPU_MEMORY})",
    )
    parser.add_argument(
        "--prompt-tokens", type=int, metavar="N", help="length of a prompt (default: the recipe's longest)"
    )
    parser.add_argument(
        "--response-tokens", type=int, metavar="N", help="length of a response (default: the recipe's longest)"
    )
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument(
        "--tokens-per-second", type=float, metavar="X", help="packed tokens that all devices train on in a second"
    )
    speed.add_argument("--measure", action="store_true", help="take two gradient steps here, for speed and memory")
    speed.add_argument("-o", "--run", type=Path, metavar="FOLDER", help="take the speed from an earlier run's folder")
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else")


@dataclass(frozen=True)
class Plan:
    """Everything that the verb says."""

    recipe: Recipe
    architecture: Architecture
    parameters: Parameters
    lengths: Lengths
    machine: Machine
    memory: Memory
    work: list[Iteration]
    speed: Speed | None
    measured: Measured | None
    suggestions: list[Suggestion]

    @property
    def fits(self) -> bool:
        return self.memory.fits(self.machine)

    @property
    def tokens(self) -> int:
        """Packed tokens of the whole run's gradient steps."""
        return sum(iteration.tokens for iteration in self.work)

    @property
    def plain_tokens(self) -> int | None:
        """Tokens of the C x C sequences that define SAMI's objective; None with the baselines."""
        if self.recipe.method != "sami":
            return None
        return sum(iteration.plain_tokens or 0 for iteration in self.work)

    @property
    def seconds(self) -> float | None:
        """Time of the gradient steps, without sampling, loading and writing."""
        return None if self.speed is None else self.tokens / self.speed.tokens_per_second


def execute(options: argparse.Namespace) -> int:
    """Print the plan. Returns 0 where the run fits, 1 where it does not.

    Raises:
        UserError: the recipe is invalid or names no model, the model's configuration cannot be read, an option is senseless.
    """
    from sami_train.config import load_recipe, parse_changes

    for name in ("gpus", "nodes", "prompt_tokens", "response_tokens", "tokens_per_second"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} must be above 0, got {value:g}")
    recipe = load_recipe(options.recipe, parse_changes(options.set))
    if recipe.model is None:
        raise UserError(
            f"the recipe '{recipe.name}' names no model; add the field, or use --set model=... (a folder or a hub id)"
        )
    plan = make_plan(recipe, options)
    if options.json:
        print(json.dumps(as_json(plan), indent=2, ensure_ascii=False, allow_nan=False))  # noqa: T201
    else:
        _show(plan)
    return 0 if plan.fits else 1


def make_plan(recipe: Recipe, options: argparse.Namespace) -> Plan:
    """The plan of a recipe for what the command line says."""
    from sami_train.planning.advice import Adviser
    from sami_train.planning.memory import plan_memory
    from sami_train.planning.rehearsal import Lengths
    from sami_train.planning.shape import count_parameters, find_architecture
    from sami_train.planning.work import Speed, plan_work, speed_of_run

    assert recipe.model is not None
    machine = find_machine(options.gpus, options.nodes, options.gpu_memory)
    if recipe.method != "sami" and machine.devices > 1:
        raise UserError(
            f"the method '{recipe.method}' trains in one process, on one device; give --gpus 1, without --nodes"
        )
    if options.measure and machine.devices > 1:
        raise UserError(
            "--measure takes its steps on one device of this machine; leave out --gpus, or give --run FOLDER"
        )
    lengths = Lengths(
        options.prompt_tokens or recipe.max_prompt_tokens, options.response_tokens or recipe.max_new_tokens
    )
    speed = speed_of_run(options.run) if options.run else None
    if options.tokens_per_second:
        speed = Speed(options.tokens_per_second, "--tokens-per-second")
    architecture = find_architecture(recipe.model)
    parameters = count_parameters(architecture, recipe)
    memory = plan_memory(architecture, recipe, lengths, machine)
    measured = None
    if options.measure:
        if not memory.fits(machine):
            raise UserError("--measure: the run does not fit this machine; plan it without --measure to see what helps")
        measured = _measure(recipe, lengths)
        speed = Speed(measured.tokens_per_second, "measured here, one gradient step after another")
    return Plan(
        recipe=recipe,
        architecture=architecture,
        parameters=parameters,
        lengths=lengths,
        machine=machine,
        memory=memory,
        work=plan_work(architecture, parameters, recipe, lengths, machine.kind),
        speed=speed,
        measured=measured,
        suggestions=[] if memory.fits(machine) else Adviser(architecture, recipe, lengths, machine).suggestions(),
    )


def _measure(recipe: Recipe, lengths: Lengths) -> Measured:
    from sami_train.planning.measure import measure

    print("taking two gradient steps here ...", file=sys.stderr)  # noqa: T201
    queries = min(recipe.batch_size, 2 * recipe.per_device_train_batch_size)
    few = recipe.model_copy(update={"batch_size": queries, "gradient_queries": None})
    if recipe.method == "sami":
        few = few.model_copy(update={"beta": 0.0})
    return measure(few, lengths)


def find_machine(gpus: int | None, nodes: int | None, memory: str | None) -> Machine:
    """The machine that is asked about: so many GPUs, or this one's device. Raises UserError for a senseless size."""
    from sami_train.planning.memory import Machine, main_memory

    if nodes and not gpus:
        raise UserError("--nodes needs --gpus: the number of GPUs in each machine")
    if gpus or memory:
        return Machine("cuda", (gpus or 1) * (nodes or 1), parse_size(memory or GPU_MEMORY))
    from sami_train.models import default_device

    if default_device() == "cuda":
        import torch

        return Machine("cuda", 1, int(torch.cuda.get_device_properties(0).total_memory))
    return Machine("cpu", 1, main_memory())


def parse_size(text: str) -> int:
    """``80GB``, ``24 GiB`` or ``80`` (gigabytes) in bytes; the size that a card is sold by is what it reports (`CARDS`).

    Raises:
        UserError: for anything else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B)?\s*", text, re.IGNORECASE)
    unit = (found[2] or "GB").upper() if found else ""
    if found is None or unit not in UNITS or not float(found[1]):
        raise UserError(f"--gpu-memory: '{text}' is no size; write one as 80GB or 24GiB")
    sold = CARDS.get(float(found[1])) if unit == "GB" else None
    return int(sold * 2**30 if sold else float(found[1]) * UNITS[unit])


# --- JSON


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain values; sizes in bytes, time in seconds."""
    from sami_train.planning.memory import HEADROOM
    from sami_train.planning.work import FORMULA

    counts = {key: value for key, value in asdict(plan.parameters).items() if key != "trained"}
    return {
        "recipe": plan.recipe.name,
        "model": plan.architecture.name,
        "shape_from": plan.architecture.found,
        "parameters": {**counts, "trainable": plan.parameters.trainable},
        "lengths": asdict(plan.lengths),
        "machine": {**asdict(plan.machine), "headroom": HEADROOM, "usable": plan.machine.usable},
        "memory": {
            "fits": plan.fits,
            "peak": plan.memory.peak.size,
            "peak_in": plan.memory.peak.name,
            "phases": [
                {"name": phase.name, "size": phase.size, "parts": {part.name: part.size for part in phase.parts}}
                for phase in plan.memory.phases
            ],
            "main_memory_of_first_process": plan.memory.host,
            "measured_peak": plan.measured.peak if plan.measured else None,
        },
        "work": {
            "iterations": [asdict(iteration) for iteration in plan.work],
            "steps": sum(iteration.steps for iteration in plan.work),
            "tokens": plan.tokens,
            "plain_tokens": plan.plain_tokens,
            "flops": sum(iteration.flops for iteration in plan.work),
            "sampling_flops": sum(iteration.sampling_flops for iteration in plan.work),
            "formula": FORMULA,
        },
        "time": None if plan.speed is None else {**asdict(plan.speed), "seconds": plan.seconds},
        "suggestions": [{**asdict(s), "changes": dict(s.changes)} for s in plan.suggestions],
    }


# --- for people


def _show(plan: Plan) -> None:
    for line in _head(plan):
        _say(line)
    _say("")
    _table(
        ["in a device's memory, during", "GB", "of which"],
        [[phase.name, _gb(phase.size), _parts(phase.parts)] for phase in plan.memory.phases],
    )
    _say("")
    _table(
        [
            "iteration",
            "steps",
            "queries",
            "responses sampled",
            "tokens trained on",
            *(["as C x C sequences"] if plan.plain_tokens else []),
            "operations",
            "to sample",
        ],
        [
            [
                str(row.number),
                f"{row.steps:,}",
                f"{row.queries:,}",
                f"{row.responses:,}",
                f"{row.tokens:,}",
                *([f"{row.plain_tokens:,}"] if row.plain_tokens else []),
                _flops(row.flops),
                _flops(row.sampling_flops),
            ]
            for row in plan.work
        ],
    )
    _say("")
    for line in (*_sums(plan), *_verdict(plan)):
        _say(line)


def _head(plan: Plan) -> list[str]:
    counts, machine, lengths, recipe = plan.parameters, plan.machine, plan.lengths, plan.recipe
    trained = (
        "all of them trained" if counts.trainable == counts.total else f"{_count(counts.trainable)} of them trained"
    )
    if counts.adapters:
        trained += f", {_count(counts.adapters)} in adapters"
    what = "GPU" if machine.kind == "cuda" else "CPU"
    longest = lengths.prompt == recipe.max_prompt_tokens and lengths.response == recipe.max_new_tokens
    return [
        f"{recipe.name}: {plan.architecture.name}, {_count(counts.total)} parameters, {trained} "
        f"(counted from {plan.architecture.found})",
        f"on {machine.devices} {what}{'s' if machine.devices > 1 else ''} with {_gb(machine.memory)} GB"
        f" ({machine.memory / 2**30:,.2f} GiB)"
        f"{' each' if machine.devices > 1 else ''}; prompts of {lengths.prompt} tokens, responses of {lengths.response}"
        + (" (the longest that the recipe allows; --prompt-tokens, --response-tokens)" if longest else ""),
    ]


def _sums(plan: Plan) -> list[str]:
    flops = sum(row.flops for row in plan.work)
    share = f" ({plan.tokens / plan.plain_tokens:.2f} of those of C x C sequences)" if plan.plain_tokens else ""
    steps = sum(row.steps for row in plan.work)
    lines = [f"in all {counted(steps, 'step')}, {plan.tokens:,} tokens{share}, {_flops(flops)} operations"]
    if plan.memory.host:
        lines.append(f"the first process reads the whole model into main memory: {_gb(plan.memory.host)} GB")
    if plan.machine.kind == "cuda" and plan.recipe.use_vllm is None:
        lines.append(
            "sampling is planned with transformers; vLLM is used where it is installed, and takes what a GPU has free"
        )
    if plan.recipe.relevance_scorer is not None:
        lines.append(f"{plan.recipe.relevance_scorer}, which scores relevance before the steps, is not counted")
    if plan.measured:
        lines.append(
            f"measured here: a peak of {_gb(plan.measured.peak)} GB in training, the program's own memory left out"
        )
    if plan.speed is None:
        lines.append("time: not known; give --tokens-per-second X, --run FOLDER of an earlier run, or --measure")
    else:
        lines.append(
            f"time: {_duration(plan.seconds or 0)} for the gradient steps at {plan.speed.tokens_per_second:,.0f} tokens/s "
            f"({plan.speed.source}); sampling, loading and writing come on top"
        )
    return lines


def _verdict(plan: Plan) -> list[str]:
    from sami_train.planning.memory import HEADROOM

    peak, machine = plan.memory.peak, plan.machine
    have = f"{_gb(machine.usable)} GB ({_gb(machine.memory)} GB less {HEADROOM:.0%} headroom)"
    if plan.fits:
        return [f"fits: {_gb(peak.size)} of {have}, the most during '{peak.name}'"]
    needed = f"does not fit: {_gb(peak.size)} GB during '{peak.name}', of {have}"
    if not plan.suggestions:
        return [needed, "nothing that was tried makes it fit; take a smaller model, or shorter prompts and responses"]
    return [needed, "fits with (each planned again):", *(_suggestion(s, machine) for s in plan.suggestions)]


def _suggestion(suggestion: Suggestion, machine: Machine) -> str:
    parts = [f"--set {field}={json.dumps(value).strip(chr(34))}" for field, value in suggestion.changes.items()]
    if suggestion.devices != machine.devices:
        parts.insert(0, f"{suggestion.devices} GPUs")
    return f"  {' '.join(parts)}: {_gb(suggestion.peak)} GB; result: {suggestion.result}"


def _parts(parts: Sequence[Any]) -> str:
    return ", ".join(f"{part.name} {_gb(part.size)}" for part in parts if part.size >= 5 * 10**6)


def _gb(size: float) -> str:
    return f"{size / 1e9:,.2f}"


def _flops(number: float) -> str:
    unit, name = next((u for u in ((1e18, "EFLOP"), (1e15, "PFLOP")) if number >= u[0]), (1e12, "TFLOP"))
    return f"{number / unit:,.2f} {name}"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 10**9 else f"{number / 1e6:.1f} million"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _say(line: str) -> None:
    print(line)  # noqa: T201


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table for a person; where the output goes to a file or a program, rows with tabs between the cells."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            _say("\t".join(row))
        return
    from rich.table import Table
    from rich.text import Text

    from sami_train.console import PlainConsole

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", justify="left" if column in (columns[0], "of which") else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    PlainConsole(highlight=False).print(table)
