"""The command ``sami-train``: train without the harness, and look at recipes.

Nothing heavy is imported before a verb needs it, so that the help and the lists are there at once.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sami_train.errors import UserError
from sami_train.output import OutputError, checked_output
from sami_train.text import printable

if TYPE_CHECKING:
    from sami_train.config import Recipe


class RunError(UserError):
    """The recipe is fine, its run failed: exit code 1 instead of 2."""


@dataclass(frozen=True)
class Verb:
    """A verb: its line in the help, what its command line looks like, and what it does."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    execute: Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0 done, 1 the run failed, 2 bad usage or an invalid recipe, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        with checked_output():
            return _execute(list(sys.argv[1:] if arguments is None else arguments))
    except UserError as error:
        _say(str(error))
        return 1 if isinstance(error, RunError | OutputError) else 2
    except KeyboardInterrupt:
        _say("stopped; run the same command again to go on")
        return 130
    except BrokenPipeError:  # `sami-train list | head -1`: end quietly
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        _say(f"{error.filename}: this name is too long for the disk; use a shorter one")
        return 2


def _say(sentences: str) -> None:
    for line in printable(sentences).splitlines():
        print(f"sami-train: {line}", file=sys.stderr)  # noqa: T201


def _execute(arguments: list[str]) -> int:
    if arguments[:1] in (["-V"], ["--version"]):
        from importlib.metadata import version

        print(f"sami-train {version('sami-harness')}")  # noqa: T201
        return 0
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    name, rest = _verb(arguments)
    if name is None:
        print(_help())  # noqa: T201
        return 0
    parser = _Parser(prog=f"sami-train {name}", description=VERBS[name].help, allow_abbrev=False)
    VERBS[name].add_arguments(parser)
    try:
        options = parser.parse_args(rest)
    except SystemExit:  # argparse, after --help
        return 0
    return VERBS[name].execute(options)


def _verb(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The verb and its arguments. None: the help is wanted. A command line without a verb is one of `run`."""
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help"):
        return None, []
    if first in VERBS:
        return first, arguments[1:]
    close = difflib.get_close_matches(first, VERBS, n=1, cutoff=0.7)
    if close and not first.startswith("-") and not Path(first).suffix:
        raise UserError(f"there is no verb '{first}'; did you mean '{close[0]}'?")
    return "run", arguments


def _help() -> str:
    verbs = "\n".join(f"  {name:<5} {verb.help}" for name, verb in VERBS.items())
    return f"""usage: sami-train [VERB] ... [options]

Train a model with SAMI from a recipe, without the harness.

verbs:
{verbs}

examples:
  sami-train embedded/gemma-3-270m                    the same as 'sami-train run ...'
  sami-train embedded/gemma-3-270m --set learning_rate=1e-5 -o runs/sami/mine
  sami-train show mistral-7b/hh-rlhf/as-run           every field, with its meaning

'sami-train help VERB' explains a verb; --version prints the version."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see '{self.prog} --help'")


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe file, or a name out of 'sami-train list'")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field of the recipe"
    )


# --- run


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="of the run (default: runs/sami/RECIPE)")
    parser.add_argument("--threads", type=_threads, metavar="N", help="CPU threads (default: torch's)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a model")


def _threads(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 4096:
        raise argparse.ArgumentTypeError(f"a number from 1 to 4096 is needed, not '{text}'")
    return int(text)


LAST_WORD = 5.0
"""Seconds that a process beside the first one waits before it says what went wrong: where the first one has said so, torchrun
ends the others meanwhile, and the sentence appears once."""


def _run(options: argparse.Namespace) -> int:
    from sami_train.config import load_recipe, parse_changes
    from sami_train.inputs import folders_of, inputs, located
    from sami_train.run_folder import begun_in_bf16

    folders, changes = folders_of(options.recipe), parse_changes(options.set)
    folder = options.output or Path("runs/sami") / load_recipe(options.recipe, changes).name.replace("/", "-")
    recipe = located(load_recipe(options.recipe, changes, bf16=begun_in_bf16(folder)), folders)
    source, data = inputs(recipe, folders)

    import torch

    from sami_train.display import Display
    from sami_train.distributed import start
    from sami_train.run_folder import final_model
    from sami_train.trainer import train

    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        world = start()
        try:
            with Display(quiet=not world.main) as display:
                train(
                    recipe,
                    source,
                    data,
                    folder,
                    world=world,
                    trust_remote_code=options.trust_remote_code,
                    progress=display.progress,
                    note=display.note,
                )
        finally:
            world.close()
    except (UserError, OSError) as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(LAST_WORD)
        if isinstance(error, UserError):
            raise RunError(str(error)) from error
        raise RunError(
            f"{error.filename or folder}: the disk refuses ({error.strerror or error}); fix that and run again, what is "
            "finished is kept"
        ) from error
    if world.main:
        print(f"trained model: {final_model(folder, recipe)}")  # noqa: T201
    return 0


# --- list


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else")


def _list(options: argparse.Namespace) -> int:
    from sami_train.config import list_recipes, load_recipe

    recipes = {name: load_recipe(name) for name in list_recipes()}
    if options.json:
        _print_json([{"name": n, "model": r.model, "description": r.description} for n, r in recipes.items()])
    else:
        _print_table(["recipe", "what it does"], [[name, recipe.description] for name, recipe in recipes.items()])
    return 0


# --- show


def _add_show(parser: argparse.ArgumentParser) -> None:
    _add_recipe(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the recipe as JSON, and nothing else")
    form.add_argument(
        "--fields", action="store_true", help="print a table of the fields: value, what it differs from, meaning"
    )


def _show(options: argparse.Namespace) -> int:
    from sami_train.config import find_recipe, load_recipe, parse_changes
    from sami_train.inputs import folders_of, located

    changes = parse_changes(options.set)
    recipe = located(load_recipe(options.recipe, changes), folders_of(options.recipe))
    if options.json:
        _print_json(recipe.model_dump(mode="json"))
        return 0
    fields = _fields(recipe, _parent(find_recipe(options.recipe)), changes)
    if options.fields:
        cells = [[f.name, _short(f.value), f.mark, f.description] for f in fields]
        _print_table(["field", "value", "differs from", "meaning"], cells)
    else:
        print(_annotated(find_recipe(options.recipe), fields), end="")  # noqa: T201
    return 0


@dataclass(frozen=True)
class _Field:
    """A field of a resolved recipe. `mark` says what the value differs from: default, parent; or that --set gave it."""

    name: str
    value: Any
    mark: str
    description: str


NAMING = ("name", "description")
"""Fields in which every recipe differs from every other."""


def _parent(file: Path) -> Recipe | None:
    """The recipe that a recipe extends; None where there is none, or where it does not stand alone."""
    from sami_train.config import load_recipe
    from sami_train.inputs import parent_of

    parent = parent_of(file)
    try:
        return load_recipe(str(parent)) if parent is not None else None
    except UserError:
        return None


def _fields(recipe: Recipe, parent: Recipe | None, changes: dict[str, Any]) -> list[_Field]:
    defaults = {
        name: None if info.is_required() else info.get_default(call_default_factory=True)
        for name, info in type(recipe).model_fields.items()
    }
    from sami_train.optimizers import dose

    plain = recipe.model_dump(mode="json")
    more = {"learning_rate": f". {dose(recipe)}"}
    found = []
    for name, info in type(recipe).model_fields.items():
        value = getattr(recipe, name)
        marks = []
        if not info.is_required() and value != defaults[name] and name not in NAMING:
            marks.append(f"default {_short(_plain(defaults[name]))}")
        if parent is not None and value != getattr(parent, name) and name not in NAMING:
            marks.append(f"parent {_short(_plain(getattr(parent, name)))}")
        if name in changes:
            marks.append("--set")
        found.append(_Field(name, plain[name], ", ".join(marks), f"{info.description}{more.get(name, '')}"))
    return found


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _short(value: Any) -> str:
    """A value on one line, as JSON has it, cut after 60 characters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _annotated(file: Path, fields: Iterable[_Field]) -> str:
    """The recipe as YAML that can be run again: above each field its meaning, behind it what it differs from."""
    import textwrap

    import yaml

    from sami_train.inputs import parent_of

    parent = parent_of(file)
    lines = [f"# {_recipe_name(file)}" + (f", which extends {_recipe_name(parent)} (its parent)" if parent else "")]
    lines.append("# Behind a value stands what it differs from: the field's default, the parent's value.")
    for field in fields:
        text = yaml.safe_dump(
            {field.name: field.value},
            allow_unicode=True,
            default_flow_style=None if isinstance(field.value, list | dict) else False,
            width=sys.maxsize,
        )
        meaning = textwrap.wrap(field.description, 110, break_on_hyphens=False)
        mark = f"  # {field.mark}" if field.mark else ""
        lines += ["", *(f"# {line}" for line in meaning), text.rstrip("\n") + mark]
    return "\n".join(lines) + "\n"


def _recipe_name(file: Path) -> str:
    """The name of a shipped recipe, the path of another one."""
    from sami_train.config import FOLDER

    return str(file.relative_to(FOLDER).with_suffix("")) if file.is_relative_to(FOLDER) else str(file)


# --- plan: its module is imported when the verb is used


def _add_plan(parser: argparse.ArgumentParser) -> None:
    from sami_train import planning

    planning.add_arguments(parser)


def _plan(options: argparse.Namespace) -> int:
    from sami_train import planning

    return planning.execute(options)


VERBS = {
    "run": Verb("train by a recipe, or go on with a run that was stopped", _add_run, _run),
    "list": Verb("list the shipped recipes", _add_list, _list),
    "show": Verb("print a recipe with every field, its meaning, and what it differs from", _add_show, _show),
    "plan": Verb("say what a run will take, before it is started", _add_plan, _plan),
}


# --- printing


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))  # noqa: T201


_WIDTHS = {"value": 24, "differs from": 20}
"""Most characters of a column's lines."""


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table for a person; where the output goes to a file or a program, rows with tabs between the cells."""
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(" ".join(cell.split()) for cell in row))  # noqa: T201
        return
    from rich.table import Table
    from rich.text import Text

    from sami_train.console import PlainConsole

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("recipe", "field"), max_width=_WIDTHS.get(column))
    for row in rows:
        table.add_row(*map(Text, row))
    PlainConsole(highlight=False).print(table)
