"""Scoring a run by a protocol, or by all of them beside each other: the options, and what is printed."""

from __future__ import annotations

import argparse

ALL = "all"
PROTOCOLS = ("corrected", "paper", "paper+swap", ALL)
EXPLAINED = """\
protocols:
  corrected    both orders, averaged; unscored left out; a tie is half a win
  paper        the published rules: one order, drawn for each query; unscored
               counts as a tie; a tie is half a win in dialogue, and a loss in
               summarization
  paper+swap   the same, with both orders
  all          the three beside each other, with what each step moves
"""


def add_protocol(parser: argparse.ArgumentParser) -> None:
    """Add `--protocol`."""
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default=PROTOCOLS[0],
        metavar="NAME",
        help="corrected (default), paper, paper+swap, all",
    )


def score_run(name_or_folder: str, protocol: str, *, as_json: bool) -> int:
    """Print a run's figures, from its rows, under a protocol or under all of them."""
    from harness.cli._runs import find_started_run
    from harness.cli._screen import console, print_json
    from harness.protocols import find_protocol
    from harness.report.terminal import print_ladder, print_results
    from harness.rescore import ladder, rescore

    folder, together = find_started_run(name_or_folder), protocol == ALL
    figures = ladder(folder) if together else rescore(folder, find_protocol(protocol))
    if as_json:
        print_json(figures)
    elif together:
        print_ladder(figures, console())
    else:
        print_results(figures, console())
    return 0
