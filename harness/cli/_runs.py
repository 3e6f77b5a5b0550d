"""Run folders: where they are, and what their results say in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sami_train.errors import UserError, nearest
from sami_train.text import counted

FOLDER = Path("runs")
_PARTS: dict[str, type[Any]] = {
    "comparisons": list, "responses": list, "gaps": list, "leaderboards": list, "rank_stability": list, "steerability": list,
    "infonce": list, "corrections": list, "not_counted": list, "examples": list, "models": dict, "judges": dict,
    "training": dict, "quality": dict, "cost": dict,
}  # fmt: skip
"""The parts of results.json, as far as they are there: lists of rows, or rows by name."""
DEPTH = 3
"""How far below the folder of runs a run may lie."""


def find_run(name_or_folder: str) -> Path:
    """The folder of a run named by its path or by its path below `runs`. Raises UserError when it has no results."""
    places = [Path(name_or_folder).expanduser(), FOLDER / name_or_folder]
    for place in places:
        if place.name == "results.json" and place.is_file():
            return place.parent
        if (place / "results.json").is_file():
            return place
    for place in places:
        if (place / "spec.yaml").is_file():
            raise UserError(f"{place}: this run is not finished; go on with: harness run {place / 'spec.yaml'}")
    known = [str(folder) for folder in run_folders(FOLDER)]
    hint = nearest(str(places[-1]), known) if known else "there are no runs here yet; start one with: harness run"
    raise UserError(f"there is no run '{name_or_folder}' with a results.json; {hint}")


def find_started_run(name_or_folder: str) -> Path:
    """The folder of a run, finished or not, named as for `find_run`. Raises UserError when there is none."""
    for place in (Path(name_or_folder).expanduser(), FOLDER / name_or_folder):
        if (place / "spec.yaml").is_file():
            return place
    return find_run(name_or_folder)


def read_results(folder: Path) -> dict[str, Any]:
    """A run's results. Raises UserError when they cannot be read."""
    file = folder / "results.json"
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: the results cannot be read ({error.strerror}); run again") from None
    except (ValueError, RecursionError):
        raise UserError(f"{file}: these results are not JSON; delete the file and run again") from None
    if not isinstance(results, dict) or not isinstance(results.get("comparisons"), list):
        raise UserError(f"{file}: these are not the results of a run; name another folder")
    for part, kind in _PARTS.items():
        found = results.get(part) or kind()
        if not isinstance(found, kind) or (kind is list and not all(isinstance(row, dict) for row in found)):
            what = "a list of rows" if kind is list else "an object"
            raise UserError(f"{file}: '{part}' is not {what}; delete the file and run again")
    if not all({"a", "b", "split"} <= row.keys() for row in results["comparisons"]):
        raise UserError(f"{file}: a row of 'comparisons' does not say what it compares; delete the file and run again")
    return results


def run_folders(folder: Path) -> Iterator[Path]:
    """Every run, finished or not, at most `DEPTH` levels down; what lies inside a run's folder is not looked at."""
    for place, below, files in os.walk(folder):
        here = Path(place)
        if "results.json" in files or {"spec.yaml", "plan.json"} <= set(files):
            below.clear()
            yield here
        elif len(here.relative_to(folder).parts) >= DEPTH:
            below.clear()
        below.sort()


def how_far(folder: Path) -> str:
    """How far a run is that is not finished."""
    from harness.rescore import plan_of_run

    stages = [(stage.done(folder), stage.expected()) for stage in plan_of_run(folder).stages]
    done, expected = map(sum, zip(*stages, strict=True))
    finished = sum(there == wanted for there, wanted in stages)
    return f"not finished: {finished} of {counted(len(stages), 'stage')}, {done / max(1, expected):.0%} of the rows"


def headline(results: dict[str, Any]) -> str:
    """The first comparison's win rate with its interval and n; held-out principles and all tasks together go first."""
    rows = results["comparisons"]
    if not rows:
        return "no comparisons"
    first = rows[0]
    same = [r for r in rows if all(r.get(key) == first.get(key) for key in ("a", "b", "judge", "principle_set"))]
    row = max(same, key=lambda r: (r.get("split") == "held_out", r.get("task") == "all"))
    who = f"{row['a']} vs {row['b']}, {str(row['split']).replace('_', '-')}"
    if row.get("win_rate") is None:
        return f"{who}: nothing scored (n = 0 of {row['n_expected']})"
    low, high = row.get("ci_low"), row.get("ci_high")
    interval = "" if low is None or high is None else f" [{low:.0%}, {high:.0%}]"
    return f"{who}: {row['win_rate']:.1%}{interval}, n = {row['n']}"
