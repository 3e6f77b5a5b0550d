"""`harness compare`: two finished runs, figure by figure."""

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
        "compare",
        execute,
        usage="RUN_A RUN_B [--json]",
        help="compare the figures of two finished runs",
        epilog="""\
examples:
  harness compare runs/first runs/second
  harness compare first second --json""",
    )
    parser.add_argument("run_a", metavar="RUN_A", help="a run's folder, or its name below runs/")
    parser.add_argument("run_b", metavar="RUN_B", help="another one")
    add_json(parser)


def execute(options: argparse.Namespace) -> int:
    """Compare and print."""
    from harness.cli._runs import find_run
    from harness.cli._screen import console, print_json
    from harness.compare import compare
    from harness.report import print_comparison

    comparison = compare(find_run(options.run_a), find_run(options.run_b))
    if options.json:
        print_json(comparison)
    else:
        print_comparison(comparison, console())
    return 0
