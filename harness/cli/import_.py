"""`harness import`: responses made elsewhere, and the paper's public data, in the harness's own forms."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cli._arguments import HarnessParser, add_json, add_verb
from harness.cli._screen import print_json, write
from sami_train.errors import UserError
from sami_train.text import counted

if TYPE_CHECKING:
    from harness.cli._arguments import Subparsers

_FORMATS = ("jsonl", "alpaca-eval", "lm-eval", "sami")


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb and its two."""
    parser = add_verb(
        subparsers,
        "import",
        None,
        usage="VERB [options]",
        help="bring in responses made elsewhere (responses) or the paper's public data (sami-paper)",
    )
    parser.set_defaults(execute=lambda _: _no_verb(parser), parser=parser)
    verbs = parser.add_subparsers(
        title="verbs", prog=parser.prog, metavar="VERB", dest="import_verb", parser_class=HarnessParser
    )
    responses = add_verb(
        verbs,
        "responses",
        execute_responses,
        usage="FILE [options]",
        help="a file of responses as a model whose answers are recorded",
        description="Read responses that another program made, and write a folder that a run uses as a model: "
        "{path: recorded/FOLDER}. Its queries.jsonl is a source for a task. The format is found by itself: jsonl (rows "
        "with a query and a response), alpaca-eval (model_outputs.json), lm-eval (samples_*.jsonl), sami (the SAMI "
        "authors' responses).",
        epilog="""\
examples:
  harness import responses outputs.jsonl -o answers/mine
  harness import responses model_outputs.json --model gpt4
  harness import responses samples_task.jsonl --query-field question""",
    )
    responses.add_argument("file", type=Path, metavar="FILE", help="the file of responses")
    responses.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", help="where to write (default: responses/ and FILE's name)"
    )
    responses.add_argument(
        "--model", metavar="NAME", help="the model's name (default: as the file says, or its own name)"
    )
    responses.add_argument(
        "--task",
        choices=("dialogue", "summarization"),
        metavar="TASK",
        help="dialogue or summarization: what the queries are (default: as they look)",
    )
    responses.add_argument(
        "--format", choices=_FORMATS, metavar="FORMAT", help=f"{', '.join(_FORMATS)} (default: as it looks)"
    )
    responses.add_argument("--query-field", metavar="FIELD", help="which field of a row is the query; A,B joins two")
    responses.add_argument("--response-field", metavar="FIELD", help="which field of a row is the response")
    responses.add_argument("--overwrite", action="store_true", help="replace the import that the folder holds")
    add_json(responses)
    paper = add_verb(
        verbs,
        "sami-paper",
        execute_sami_paper,
        usage="FOLDER ... -o OUT [--json]",
        help="checkouts of the SAMI authors' repositories: principles, prompts, responses, verdicts",
        description="Read checkouts of the authors' repositories (sami, typo) and write their principle sets, prompt "
        "templates, responses, verdicts and mutual-information values in the harness's forms. Their texts stay "
        "outside of the harness: OUT cannot lie in it. An earlier import in OUT is replaced. Python files are parsed for "
        "constants, never run.",
        epilog="""\
examples:
  harness import sami-paper ~/sami ~/typo -o sami-paper
  HARNESS_PRINCIPLES=sami-paper/principles sami-train show \\
      mistral-7b/tldr-weak-writer/paper""",
    )
    paper.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a checkout, or a part of one")
    paper.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="where to write: not in the harness"
    )
    add_json(paper)


def execute_responses(options: argparse.Namespace) -> int:
    """Import one file of responses."""
    from harness.importers.responses import TASK_NAMES, Choice, read_responses, slug, write_answers

    found = read_responses(
        options.file.expanduser(),
        Choice(options.format, options.task, options.model, options.query_field, options.response_field),
    )
    model = slug(options.model or found.model or options.file.stem)
    folder = (options.output or Path("responses") / slug(options.file.stem)).expanduser()
    about = write_answers(found, folder, model=model, file=options.file.name, overwrite=options.overwrite)
    if options.json:
        print_json({**about, "folder": str(folder)})
        return 0
    _show_removed(about["removed"])
    repeats = about["repeats"]
    said = f"{counted(about['responses'], 'response')} to {counted(sum(about['queries'].values()), 'query', 'queries')}"
    said += f", {repeats} {'a repeat' if repeats == 1 else 'repeats'}," if repeats else ""
    notes = [f"read as {about['format']}"]
    notes += [f"left out: {n} {reason}" for reason, n in about["left_out"].items()]
    if about["cut"]:
        notes.append(f"'POST:' cut off from {counted(about['cut'], 'query', 'queries')} (--task dialogue leaves it)")
    write(f"{folder}: {said} of {model}; {'; '.join(notes)}\n\n")
    write(f"models:\n  {_name(model)}: {{path: {_name(f'recorded/{folder}')}, style: chat}}\ntasks:\n")
    for name in about["queries"]:
        task = Path(name).stem.removeprefix("queries").strip("-") or about["task"]
        write(f"  {_name(task)}: {{task: {TASK_NAMES[about['task']]}, source: {_name(str(folder / name))}}}\n")
    return 0


def _name(text: str) -> str:
    """`text` as YAML reads it as text, in quotes where it needs them."""
    return text if re.fullmatch(r"[A-Za-z/.~_][\w/.~-]*", text) and text.lower() not in _WORDS else json.dumps(text)


_WORDS = ("yes", "no", "on", "off", "true", "false", "null", "y", "n", "~")


def execute_sami_paper(options: argparse.Namespace) -> int:
    """Import the authors' public data."""
    from harness.importers.sami_paper import import_sami_paper

    out = options.output.expanduser()
    about = import_sami_paper(options.folders, out)
    if options.json:
        print_json({**about, "folder": str(out)})
        return 0
    lines = [f"  {n:>6} {what}" for what, n in about["written"].items()]
    write(f"{out}: written\n" + "\n".join(lines) + "\n")
    for name, found in about["principle_sets"].items():
        write(f"  principles/{name}.yaml: {counted(found['principles'], 'principle')}\n")
    _show_removed(about["removed"])
    _show_left_out(about["left_out"])
    write(f"\nnext:\n  harness paper tables --data {out}\n")
    write(f"  export HARNESS_PRINCIPLES={out / 'principles'}   # for the recipes that name them\n")
    return 0


def _show_removed(names: list[str], most: int = 3) -> None:
    if names:
        more = f" and {len(names) - most} more, in import.json" if len(names) > most else ""
        write(f"removed, of the import before: {', '.join(names[:most])}{more}\n")


def _show_left_out(rows: list[dict[str, Any]], most: int = 10) -> None:
    if rows:
        write(f"left out ({len(rows)}):\n")
    for row in rows[:most]:
        write(f"  {row['file']}: {row['why']}\n")
    if len(rows) > most:
        write(f"  and {len(rows) - most} more, in import.json\n")


def _no_verb(parser: argparse.ArgumentParser) -> int:
    parser.print_help(sys.stderr)
    raise UserError("name a verb, for example: harness import responses FILE")
