"""`harness paper`: the paper's tables beside what the data at hand give."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli._arguments import HarnessParser, add_json, add_verb
from sami_train.errors import UserError

if TYPE_CHECKING:
    from harness.cli._arguments import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb and its one."""
    parser = add_verb(
        subparsers,
        "paper",
        None,
        usage="VERB [options]",
        help="hold the paper's figures against the authors' public verdicts (tables)",
    )
    parser.set_defaults(execute=lambda _: _no_verb(parser), parser=parser)
    verbs = parser.add_subparsers(
        title="verbs", prog=parser.prog, metavar="VERB", dest="paper_verb", parser_class=HarnessParser
    )
    tables = add_verb(
        verbs,
        "tables",
        execute_tables,
        usage="[--data FOLDER ...] [options]",
        help="print Tables 2 to 9 and the headline figures beside the values recomputed",
        description="Print the headline figures and Tables 2 to 9 of the paper (arXiv 2404.14313) beside the values that "
        "the verdicts at hand give, with the estimator, our interval and a note where they differ. What no data "
        "covers is shown as missing.",
        epilog="""\
examples:
  harness paper tables --data ~/sami ~/typo    checkouts of the authors'
  harness paper tables --data sami-paper       what 'harness import' wrote
  harness paper tables --data sami-paper --json""",
    )
    tables.add_argument(
        "--data",
        nargs="+",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="checkouts of the authors' repositories, or imports of them (default: none)",
    )
    tables.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", help="write report.md and results.json there too"
    )
    add_json(tables)


def execute_tables(options: argparse.Namespace) -> int:
    """Print the tables."""
    from harness.cli._screen import console, print_json, table
    from harness.paper import tables
    from harness.store.files import write_atomic, write_json

    found = tables.tables([folder.expanduser() for folder in options.data])
    if options.output is not None:
        write_atomic(options.output / "report.md", tables.report(found))
        write_json(options.output / "results.json", found)
    if options.json:
        print_json(found)
        return 0
    screen = console()
    for title, remark, rows in tables.sections(found):
        screen.print(title, style="bold", markup=False)
        screen.print(remark, markup=False)
        screen.print()
        screen.print(table(tables.COLUMNS, rows, right=tables.COLUMNS[1:5]))
        screen.print()
    screen.print(tables.summary(found), markup=False)
    if found["files_without_cell"]:
        screen.print(
            f"{len(found['files_without_cell'])} more files of verdicts or values belong to no cell (--json names them)."
        )
    if not options.data:
        screen.print("No data was named: add --data with checkouts of the authors' repositories (sami, typo).")
    return 0


def _no_verb(parser: argparse.ArgumentParser) -> int:
    parser.print_help(sys.stderr)
    raise UserError("name a verb, for example: harness paper tables")
