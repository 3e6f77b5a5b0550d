"""`harness score`: a run's figures anew from its rows, under any protocol, without loading a model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from harness.cli._arguments import add_json, add_verb
from harness.cli._protocols import EXPLAINED, add_protocol, score_run

if TYPE_CHECKING:
    from harness.cli._arguments import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "score",
        execute,
        usage="RUN [--protocol NAME] [--json]",
        help="score a run's verdicts anew, under any protocol",
        description="Score the verdicts that lie in a run's folder, whether the run is finished or not. No model is "
        "loaded, nothing is judged again and nothing is written.",
        epilog=f"""\
{EXPLAINED}
examples:
  harness score runs/quickstart
  harness score quickstart --protocol all
  harness score quickstart --protocol paper --json""",
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, or its name below runs/")
    add_protocol(parser)
    add_json(parser)


def execute(options: argparse.Namespace) -> int:
    """Score and print."""
    return score_run(options.run, options.protocol, as_json=options.json)
