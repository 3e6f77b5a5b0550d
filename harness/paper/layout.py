"""The layout of the authors' public repositories: what a file holds follows from its folder and its name.

    experiments/DATA/RESULTS/win_rates*/ITERATION-vs-OPPONENT[-epoch-E[-from-epoch-E]]-SUBSET.json           (hh-rlhf)
    experiments/DATA/RESULTS/win_rates*/ITERATION-vs-OPPONENT[...]-MODEL-WRITER-constitution-....json        (tldr)
    experiments/tldr/RESULTS/win_rates_llama_70b/ITERATIONvs0fromE[OOD].json             (varied principles, 70B model)
    experiments/DATA/RESULTS/mutual_information*/(base|instruct|iteration-N)-....json
    experiments/DATA/RESULTS/responses*/....json, experiments/DATA/constitutions_WRITER/*.json, experiments/DATA/prompts.py

A name with anything beyond this (a re-run, a sanity check, a later version) belongs to no cell of the paper. Folders above
`experiments`, and folders between, may have any names; an import keeps the tree and the names, with the suffix .jsonl.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sami_train.errors import UserError

Kind = Literal["verdicts", "information", "responses", "constitutions", "prompts"]

WRITERS = {"mistral": "weak", "opus": "strong"}
"""The paper's words for the two models that wrote the principles of the summaries."""

_SKIPPED = {"node_modules", "__pycache__", "outputs", "wandb"}
_EPOCH = r"(?:-epoch-[\d.]+)?(?:-from-epoch-[\d.]+)?"
_HH = re.compile(rf"(?P<iteration>\d+)-vs-(?P<against>base|instruct){_EPOCH}-(?P<subset>helpful|harmless)")
_TLDR = re.compile(
    rf"(?P<iteration>\d+)-vs-(?P<against>base|instruct){_EPOCH}-(?P<model>[a-z]+)-(?P<writer>[a-z]+)-constitution"
    r"(?:-temperature-[\d.]+)?"
)
_DIVERSE = re.compile(
    r"(?P<iteration>\d+)vs0from[\d.]+(?P<ood>OOD)?(?P<no_cot>[-_]no[-_]?cot)?(?P<ood2>[-_]?OOD)?", re.I
)
_WHO = r"(?:(?P<who>base|(?:mistral-)?instruct)|iteration-(?P<iteration>\d+))"
_HH_INFORMATION = re.compile(rf"{_WHO}(?:-mutual-information)+-(?P<subset>helpful|harmless)")
_TLDR_INFORMATION = re.compile(rf"{_WHO}-(?P<model>[a-z]+)-(?P<writer>[a-z]+)-constitution(?:-mutual-information)+")


@dataclass(frozen=True)
class Place:
    """What a file of verdicts or of mutual-information values is about. What its kind of data does not have is None."""

    data: Literal["hh-rlhf", "tldr", "tldr-diverse"]
    model: str
    iteration: int | None
    """0 is the base model; None the instruct model (mutual information only)."""
    against: str | None = None
    subset: str | None = None
    writer: str | None = None
    principles: str | None = None
    reasoning: bool | None = None


@dataclass(frozen=True)
class Found:
    """A file of the authors' layout, or of an import of it."""

    kind: Kind
    folder: Path
    """The folder that was named, resolved."""
    path: Path

    @property
    def name(self) -> str:
        """Where it lies, from the folder that was named on: the same on every machine."""
        return f"{self.folder.name}/{self.path.relative_to(self.folder).as_posix()}"

    @property
    def rank(self) -> tuple[bool, bool, str]:
        """The least goes first where several files are about the same: corrected results, then the rest, by name."""
        parts = self.path.parts
        return "results_fixed" not in parts, not self.path.parent.name.endswith(("_clean", "win_rates")), self.name


def find(folders: Sequence[Path], left_out: Callable[[str, str], None] = lambda name, why: None) -> Iterator[Found]:
    """Every file of the layout below `folders`, in a fixed order. Raises UserError for a folder that is not there.

    Pipes, devices and links that lead outside of the folder are not files of a checkout: `left_out` is told name and reason.
    """
    for named in folders:
        folder = named.expanduser().resolve()
        if not folder.is_dir():
            raise UserError(
                f"{named}: there is no such folder; name a checkout of the authors' repositories, or an import"
            )
        for place, below, files in os.walk(folder):
            below[:] = sorted(name for name in below if not name.startswith(".") and name not in _SKIPPED)
            for file in sorted(files):
                path = Path(place) / file
                if (kind := _kind(path)) is None:
                    continue
                found = Found(kind, folder, path)
                if not path.resolve().is_relative_to(folder):
                    left_out(found.name, "it is a link that leads outside of the folder")
                elif not path.is_file():
                    left_out(found.name, "it is not a regular file")
                else:
                    yield found


def data_of(path: Path) -> str | None:
    """The data set that a file is about: the nearest folder above it with that name."""
    return next((part for part in reversed(path.parts[:-1]) if part in ("hh-rlhf", "tldr")), None)


def _kind(path: Path) -> Kind | None:
    if data_of(path) is None:
        return None
    folder, name = path.parent.name, path.name
    if name == "prompts.py" or re.fullmatch(r"constitutions\w*\.py", name):
        return "prompts"
    if path.suffix not in (".json", ".jsonl"):
        return None
    starts: tuple[tuple[str, Kind], ...] = (
        ("win_rates", "verdicts"), ("mutual_information", "information"), ("responses", "responses"),
        ("constitutions", "constitutions"),
    )  # fmt: skip
    return next((kind for start, kind in starts if folder.startswith(start)), None)


def place_of(found: Found) -> Place | None:
    """What a file of verdicts or of mutual-information values is about; None where its name does not tell."""
    data, folder = data_of(found.path), found.path.parent.name
    stem = found.path.name.removesuffix(found.path.suffix)
    if found.kind == "verdicts":
        if data == "hh-rlhf" and (m := _HH.fullmatch(stem)):
            return Place("hh-rlhf", "mistral", int(m["iteration"]), m["against"], m["subset"])
        if data == "tldr" and (m := _TLDR.fullmatch(stem)):
            writer = WRITERS.get(m["writer"], m["writer"])
            return Place("tldr", m["model"], int(m["iteration"]), m["against"], writer=writer)
        if data == "tldr" and folder.startswith("win_rates_llama") and (m := _DIVERSE.fullmatch(stem)):
            principles = "held_out" if m["ood"] or m["ood2"] else "learned"
            reasoning = not (m["no_cot"] or re.search(r"no[-_]?cot", folder, re.I))
            size = (re.search(r"\d+b", folder, re.I) or ["70b"])[0].lower()
            return Place(
                "tldr-diverse",
                f"llama3-{size}",
                int(m["iteration"]),
                "base",
                principles=principles,
                reasoning=reasoning,
            )
    if found.kind == "information":
        pattern = _HH_INFORMATION if data == "hh-rlhf" else _TLDR_INFORMATION
        if m := pattern.fullmatch(stem):
            iteration = int(m["iteration"]) if m["iteration"] else 0 if m["who"] == "base" else None
            if data == "hh-rlhf":
                return Place("hh-rlhf", "mistral", iteration, subset=m["subset"])
            return Place("tldr", m["model"], iteration, writer=WRITERS.get(m["writer"], m["writer"]))
    return None
