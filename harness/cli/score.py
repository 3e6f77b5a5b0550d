"""`harness score`: a run's figures anew from its rows, under any protocol, without loading a model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from harness.cli._arguments import add_json, add_verb

if TYPE_CHECKING:
    from pathlib import Path

    from harness.cli._arguments import Subparsers

PROTOCOLS = ("corrected", "paper", "paper+swap", "all")


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
        epilog="""\
protocols:
  corrected    both orders, averaged; unscored left out; a tie is half a win
  paper        the published rules: one order, drawn for each query; unscored
               counts as a tie; a tie is half a win in dialogue, and a loss in
               summarization
  paper+swap   the same, with both orders
  all          the three beside each other, with what each step moves

examples:
  harness score runs/quickstart
  harness score quickstart --protocol all
  harness score quickstart --protocol paper --json""",
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, or its name below runs/")
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="corrected",
        metavar="NAME",
        help="corrected (default), paper, paper+swap, all",
    )
    add_json(parser)


def execute(options: argparse.Namespace) -> int:
    """Score and print."""
    from harness.cli._runs import find_started_run

    return score_run(find_started_run(options.run), options.protocol, as_json=options.json)


def score_run(folder: Path, protocol: str, *, as_json: bool) -> int:
    """Print a run's figures under a protocol, or under all of them."""
    from harness.cli._screen import console, print_json
    from harness.protocols import find_protocol
    from harness.report.terminal import print_ladder, print_results
    from harness.rescore import ladder, rescore

    together = protocol == "all"
    figures = ladder(folder) if together else rescore(folder, find_protocol(protocol))
    if as_json:
        print_json(figures)
    elif together:
        print_ladder(figures, console())
    else:
        print_results(figures, console())
    return 0
