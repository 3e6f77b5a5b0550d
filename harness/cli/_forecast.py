"""What a run takes, as `harness plan` asks for it and shows it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sami_train.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from sami_train.planning.memory import Machine


UNKNOWN = "–"


@dataclass(frozen=True)
class Question:
    """For which machine and at which speeds (tokens per second, by model; None: all) a run is planned."""

    gpus: int | None = None
    gpu_memory: str | None = None
    training: dict[str | None, float] = field(default_factory=dict)
    generation: dict[str | None, float] = field(default_factory=dict)
    memory: bool = True

    @classmethod
    def of(cls, options: argparse.Namespace) -> Question:
        """What the options say. Raises UserError for a speed that is none."""
        return cls(
            options.gpus,
            options.gpu_memory,
            _speeds("--tokens-per-second", options.tokens_per_second),
            _speeds("--new-tokens-per-second", options.new_tokens_per_second),
            not options.no_memory,
        )

    def machine(self) -> Machine | None:
        """The machine that the options name; None for this one. Raises UserError for a senseless size."""
        if self.gpus is None and self.gpu_memory is None:
            return None
        from sami_train.planning.command import find_machine

        return find_machine(self.gpus, None, self.gpu_memory)


def _speeds(option: str, texts: list[str]) -> dict[str | None, float]:
    speeds: dict[str | None, float] = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        try:
            speed = float(number)
        except ValueError:
            speed = math.nan
        if not 0 < speed < math.inf or (equals and not name.strip()):
            raise UserError(f"{option} {text}: this is no speed; write a number above 0, or MODEL=NUMBER")
        speeds[name.strip() or None] = speed
    return speeds


def print_forecast(described: dict[str, Any], screen: Console) -> None:
    """Memory and tokens of training, answers, local judges and scorers of relevance; what was assumed and what is missing."""
    found = described["forecast"]
    if found["training"]:
        _print_training(found["training"], screen)
    if found["models"]:
        _print_models(found["models"], screen)
    if found["machine"] is not None:
        screen.print(f"\n{_machine(found['machine'])}")
    for title, sentences in (
        ("Assumed", described["assumed"]),
        ("Not known", found["notes"]),
        ("Missing before it can run", described["missing"]),
    ):
        for sentence in sentences:
            screen.print(f"{title}: {sentence}", markup=False)


def _print_training(found: list[dict[str, Any]], screen: Console) -> None:
    numbers = ("steps", "tokens trained", "tokens sampled", "GB each")
    rows = [
        [
            row["model"],
            f"{row['steps']:,}",
            f"{row['tokens']:,}",
            f"{row['sampled_tokens']:,}",
            _gb(row["peak"]),
            _fits(row["fits"]),
            row["recipe"],
        ]
        for row in found
    ]
    screen.print("\nTraining, every prompt and response of the longest length:\n")
    screen.print(_known(("training", *numbers, "fits", "recipe"), rows, numbers))


def _print_models(found: list[dict[str, Any]], screen: Console) -> None:
    numbers = ("rows", "prompt tokens", "new tokens", "weights, GB", "batch", "devices", "GB each")
    rows = [
        [
            row["model"],
            {"generate": "answers", "judge": "judges", "relevance": "scores relevance"}[row["does"]],
            f"{row['rows']:,}",
            f"{row['prompt_tokens']:,}",
            f"{row['new_tokens']:,}",
            _gb(row["weights"]),
            UNKNOWN if row["batch"] is None else str(row["batch"]),
            UNKNOWN if row["devices"] is None else str(row["devices"]),
            _gb(row["peak"]),
            _fits(row["fits"], row["largest_batch"]),
        ]
        for row in found
    ]
    screen.print("\nModels that run here (prompt tokens: about, 4 characters each; new tokens: at most):\n")
    screen.print(_known(("model", "does", *numbers, "fits"), rows, numbers))


def _known(columns: Sequence[str], rows: list[list[str]], right: Sequence[str]) -> Any:
    """The table without the columns in which nothing is known (memory, where it was not planned)."""
    from harness.cli._screen import table

    kept = [place for place in range(len(columns)) if any(row[place] != UNKNOWN for row in rows)]
    shown = [columns[place] for place in kept]
    return table(
        shown, [[row[place] for place in kept] for row in rows], right=[name for name in right if name in shown]
    )


def _machine(machine: dict[str, Any]) -> str:
    from sami_train.planning.memory import HEADROOM

    what = "GPU" if machine["kind"] == "cuda" else "CPU"
    many, each = ("s", " each") if machine["devices"] > 1 else ("", "")
    return (
        f"Memory: planned for {machine['devices']} {what}{many} with {_gb(machine['memory'])} GB{each}, {HEADROOM:.0%} of it "
        "left free (--gpus, --gpu-memory); 'sami-train plan RECIPE' says what would make a training fit."
    )


def _gb(size: float | None) -> str:
    return UNKNOWN if size is None else f"{size / 1e9:,.1f}"


def _fits(fits: bool | None, largest: int | None = None) -> str:
    if fits is None:
        return UNKNOWN
    if fits:
        return "yes"
    return "no" if largest is None else f"no ({largest} does)"
