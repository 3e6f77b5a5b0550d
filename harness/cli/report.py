"""`harness report`: a run's results once more, of an unfinished one as far as it is, and its report.md written again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cli._arguments import add_json, add_verb
from sami_train.errors import UserError

if TYPE_CHECKING:
    from harness.cli._arguments import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "report",
        execute,
        usage="RUN [--all] [--json]",
        help="print a run's results and write its report.md again",
        description="Print a run's results and write its report.md again, where that can be written. Of a run that is not "
        "finished: what there is, with intervals that hold at an unplanned look.",
        epilog="""\
examples:
  harness report runs/quickstart
  harness report quickstart            the same: names are looked up below runs/
  harness report quickstart --all      every table, by every judge
  harness report quickstart --json | jq '.comparisons[].win_rate'""",
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, or its name below runs/")
    add_all(parser)
    add_json(parser)


def add_all(parser: argparse.ArgumentParser) -> None:
    """Add `--all`."""
    parser.add_argument("--all", action="store_true", help="print every table, by every judge, after what it shows")


def print_report(results: dict[str, Any], report: Path, *, everything: bool, note: str = "") -> None:
    """Print the first screen, or every table, and where report.md is."""
    from harness.cli._screen import console
    from harness.report import print_first_screen, print_results

    screen = console()
    if not everything:
        print_first_screen(results, screen, report=report, note=note)
        return
    print_results(results, screen)
    for line in (f"\nreport: {report}", note):
        if line:
            screen.print(line, markup=False, soft_wrap=True)


def execute(options: argparse.Namespace) -> int:
    """Read, write, print."""
    from harness.cli._runs import find_started_run, read_results
    from harness.cli._screen import print_json
    from harness.report import render_markdown
    from harness.rescore import is_current, rescore
    from harness.store import write_atomic

    folder = find_started_run(options.run)
    results = read_results(folder) if (folder / "results.json").is_file() else None
    if results is None or not is_current(folder, results):  # a changed run was begun in the folder, and is not finished
        results = rescore(folder)
    note = ""
    try:
        write_atomic(folder / "report.md", render_markdown(results))
    except UserError:  # a folder that is not ours can be read all the same
        note = "(report.md cannot be written here; it is as it was)"
    if options.json:
        print_json(results)
    else:
        print_report(results, folder / "report.md", everything=options.all, note=note)
    return 0
