"""`harness ls`: what there is to choose from."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cli._arguments import add_json, add_verb
from sami_train.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from harness.cli._arguments import Subparsers

Rows = list[dict[str, Any]]


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "ls",
        execute,
        usage="WHAT [options]",
        help=f"list what there is: {', '.join(LISTS)}",
        epilog="""\
examples:
  harness ls presets
  harness ls models --json
  harness ls runs --folder /data/runs""",
    )
    parser.add_argument("list", choices=tuple(LISTS), metavar="WHAT", help=", ".join(LISTS))
    parser.add_argument("--folder", type=Path, metavar="FOLDER", help="where to look for runs (default: runs)")
    add_json(parser)


def execute(options: argparse.Namespace) -> int:
    """List one kind of thing."""
    from harness.cli._screen import console, print_json

    if options.folder is not None and options.list != "runs":
        raise UserError(f"--folder goes with 'harness ls runs'; leave it out of 'harness ls {options.list}'")
    listing = LISTS[options.list]
    found = listing.collect(options)
    if options.json:
        print_json(found)
    else:
        listing.show(found, console())
    return 0


# --- collecting: plain data, as --json prints it


def _presets(_: argparse.Namespace) -> Rows:
    from harness.spec import list_presets, load_spec

    rows = []
    for name in list_presets():
        try:
            description = load_spec(name, {}).description
        except UserError as error:
            description = f"cannot be read: {error}"
        rows.append({"name": name, "description": description})
    return rows


def _models(_: argparse.Namespace) -> dict[str, Rows]:
    from harness.cli._installed import CONVERT, ENGINES, is_converted, is_installed
    from sami_train.models import EMBEDDED

    embedded = []
    for model in EMBEDDED.values():
        installed, converted = is_installed(model), is_converted(model)
        embedded.append(
            {
                "path": f"embedded/{model.name}",
                "style": "chat" if model.chat_template else "completion",
                "licence": model.licence,
                "description": model.description,
                "installed": installed,
                "converted": converted,
                "install": None if converted else CONVERT if installed else model.install,
            }
        )
    engines = [
        {
            "engine": engine.name,
            "path": engine.path,
            "description": engine.what,
            "package": engine.package,
            "version": engine.version,
            "install": None if engine.version else engine.install,
        }
        for engine in ENGINES
    ]
    return {"embedded": embedded, "engines": engines}


def _tasks(_: argparse.Namespace) -> Rows:
    from importlib import metadata

    from harness.tasks import ENTRY_POINTS, TaskSpec, list_tasks, load_task

    foreign = {point.name: point for point in metadata.entry_points(group=ENTRY_POINTS)}
    rows: Rows = []
    for name in list_tasks():
        row: dict[str, Any] = {"name": name, "kind": None, "bundled_train": None, "bundled_evaluation": None}
        if name in foreign:
            point = foreign[name]
            row["from"] = point.dist.name if point.dist is not None else point.value
        else:
            data = load_task(name, TaskSpec(task=name))
            row |= {"kind": data.kind, "bundled_train": len(data.train), "bundled_evaluation": len(data.evaluation)}
            row["from"] = "bundled, hub, or a local copy"
        rows.append(row)
    return rows


def _principles(_: argparse.Namespace) -> Rows:
    from sami_train.constitutions import list_principle_sets, load_principle_set

    rows: Rows = []
    for name, file in list_principle_sets().items():
        try:
            found = load_principle_set(file)
        except UserError as error:
            rows.append({"name": name, "file": str(file), "problem": str(error)})
            continue
        rows.append(
            {
                "name": name,
                "version": found.version,
                "learned": sum(p.split == "learned" for p in found.principles),
                "held_out": sum(p.split == "held_out" for p in found.principles),
                "tasks": sorted({task for p in found.principles for task in p.task}),
                "checkable": sum(p.check is not None for p in found.principles),
                "description": found.description,
                "file": str(file),
            }
        )
    return rows


def _judges(_: argparse.Namespace) -> dict[str, Rows]:
    from harness.judges.checks import check, list_checks
    from harness.judges.llm import FOLDER

    templates = sorted(file.stem for file in FOLDER.glob("*.yaml"))
    kinds = [
        {"kind": "verifiable", "description": "a program counts surface features; for principles that name a check"},
        {
            "kind": "llm",
            "description": "a model of the specification compares two answers, in both orders; "
            f"its prompts: {', '.join(templates)}",
        },
    ]
    checks: Rows = []
    for name in list_checks():
        try:
            checker = check(name)
        except UserError as error:
            checks.append({"check": name, "options": [], "description": f"cannot be loaded: {error}"})
            continue
        first = " ".join((inspect.getdoc(checker) or "").split("\n\n")[0].split())
        checks.append({"check": name, "options": _option_names(checker), "description": first.replace("`", "")})
    return {"kinds": kinds, "checks": checks}


def _runs(options: argparse.Namespace) -> Rows:
    from harness.cli._runs import FOLDER, headline, how_far, read_results, run_folders
    from harness.rescore import is_current

    place = options.folder or FOLDER
    if options.folder is not None and not place.is_dir():
        raise UserError(f"{place}: there is no such folder; check the name")
    rows: Rows = []
    for folder in run_folders(place):
        try:
            results = read_results(folder) if (folder / "results.json").is_file() else {}
            if not results:
                said = how_far(folder)
            else:
                said = (
                    headline(results) if is_current(folder, results) else f"begun again with changes, {how_far(folder)}"
                )
            row = {"name": results.get("name"), "created": results.get("created"), "headline": said}
        except (UserError, KeyError, TypeError, ValueError) as error:
            row = {"name": None, "created": None, "headline": f"cannot be read: {error}"}
        rows.append({"folder": str(folder), **row})
    return sorted(rows, key=lambda row: str(row["created"] or ""), reverse=True)


def _recipes(_: argparse.Namespace) -> Rows:
    from sami_train.config import list_recipes, load_recipe

    rows: Rows = []
    for name in list_recipes():
        try:
            recipe = load_recipe(name)
        except UserError as error:
            rows.append({"name": name, "model": None, "iterations": None, "description": f"cannot be read: {error}"})
        else:
            rows.append({"name": name, **recipe.model_dump(include={"model", "iterations", "description"})})
    return rows


def _option_names(checker: Callable[..., float]) -> list[str]:
    return [
        name if parameter.default is parameter.empty else f"{name}={parameter.default}"
        for name, parameter in list(inspect.signature(checker).parameters.items())[1:]
    ]


# --- showing: the same data for a person


def _show(screen: Console, rows: Iterable[dict[str, Any]], columns: dict[str, str], right: Iterable[str] = ()) -> None:
    from harness.cli._screen import table

    cells = [[_cell(row.get(key)) for key in columns.values()] for row in rows]
    screen.print(table(list(columns), cells, right=right))


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "–" if value is None else str(value)


def _show_presets(rows: Rows, screen: Console) -> None:
    _show(screen, rows, {"preset": "name", "what it does": "description"})


def _show_models(found: dict[str, Rows], screen: Console) -> None:
    embedded = [{**row, "state": _state(row["installed"], row["converted"])} for row in found["embedded"]]
    _show(screen, embedded, {"embedded model": "path", "style": "style", "licence": "licence", "state": "state"})
    for row in embedded:
        screen.print(f"  {row['path'].removeprefix('embedded/')}: {row['description']}", markup=False, style="dim")
    screen.print()
    engines = [{**row, "state": row["version"] or "not installed"} for row in found["engines"]]
    _show(screen, engines, {"engine": "engine", "model path": "path", "package": "state", "what": "description"})
    commands = dict.fromkeys(row["install"] for row in (*found["embedded"], *found["engines"]) if row["install"])
    if commands:
        screen.print("\nto add what is missing:")
        for command in commands:
            screen.print(f"  {command}", markup=False, soft_wrap=True)


def _state(installed: bool, converted: bool) -> str:
    return "ready" if converted else "not converted yet" if installed else "not installed"


def _show_tasks(rows: Rows, screen: Console) -> None:
    shown = {"task": "name", "kind": "kind", "train": "bundled_train", "evaluation": "bundled_evaluation"}
    _show(screen, rows, {**shown, "from": "from"}, right=("train", "evaluation"))
    screen.print("\ntrain, evaluation: the queries that come with the harness")


def _show_principles(rows: Rows, screen: Console) -> None:
    shown = [{**row, "description": row.get("description", row.get("problem"))} for row in rows]
    numbers = {"learned": "learned", "held-out": "held_out", "checkable": "checkable"}
    _show(screen, shown, {"set": "name", **numbers, "what": "description"}, right=numbers)
    screen.print("\nsee one in a prompt: harness principles sample SET")


def _show_judges(found: dict[str, Rows], screen: Console) -> None:
    _show(screen, found["kinds"], {"kind": "kind", "what it does": "description"})
    screen.print()
    _show(screen, found["checks"], {"check": "check", "options": "options", "what it scores with 1": "description"})


def _show_runs(rows: Rows, screen: Console) -> None:
    if not rows:
        screen.print("no runs here; start one with: harness run")
        return
    shown = [{**row, "created": str(row["created"] or "–")[:16].replace("T", " ")} for row in rows]
    _show(screen, shown, {"run": "folder", "created (UTC)": "created", "headline": "headline"})


def _show_recipes(rows: Rows, screen: Console) -> None:
    columns = {"recipe": "name", "iterations": "iterations", "what it does": "description"}
    _show(screen, rows, columns, right=("iterations",))


@dataclass(frozen=True)
class _Listing:
    """One kind of thing: how to collect it, and how to show it."""

    collect: Callable[[argparse.Namespace], Any]
    show: Callable[[Any, Console], None]


LISTS = {
    "presets": _Listing(_presets, _show_presets),
    "models": _Listing(_models, _show_models),
    "tasks": _Listing(_tasks, _show_tasks),
    "principles": _Listing(_principles, _show_principles),
    "judges": _Listing(_judges, _show_judges),
    "runs": _Listing(_runs, _show_runs),
    "recipes": _Listing(_recipes, _show_recipes),
}
