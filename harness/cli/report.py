"""`harness report`: a run's tables once more, of an unfinished one as far as it is, and its report.md written again."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from harness.cli._arguments import add_json, add_verb

if TYPE_CHECKING:
    from harness.cli._arguments import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "report",
        execute,
        usage="RUN [--json]",
        help="print a run's results and write its report.md again",
        description="Print a run's results and write its report.md again. Of a run that is not finished: what there is, with "
        "intervals that hold at an unplanned look.",
        epilog="""\
examples:
  harness report runs/quickstart
  harness report quickstart            the same: names are looked up below runs/
  harness report quickstart --json | jq '.comparisons[].win_rate'""",
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, or its name below runs/")
    add_json(parser)


def execute(options: argparse.Namespace) -> int:
    """Read, write, print."""
    from harness.cli._runs import find_started_run, read_results
    from harness.cli._screen import console, print_json
    from harness.report.markdown import render_markdown
    from harness.report.terminal import print_results
    from harness.rescore import rescore
    from harness.store import write_atomic

    folder = find_started_run(options.run)
    results = read_results(folder) if (folder / "results.json").is_file() else rescore(folder)
    write_atomic(folder / "report.md", render_markdown(results))
    if options.json:
        print_json(results)
    else:
        screen = console()
        print_results(results, screen)
        screen.print(f"\nreport: {folder / 'report.md'}", markup=False, soft_wrap=True)
    return 0
