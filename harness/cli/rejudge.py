"""`harness rejudge`: other judges on the responses of a run, without generating anything."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from harness.cli._arguments import add_json, add_verb, count
from harness.cli._errors import QualityError, running
from harness.cli._specification import add_api_options, add_cost_options, api_settings
from sami_train.errors import UserError

if TYPE_CHECKING:
    from harness.cli._arguments import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "rejudge",
        execute,
        usage="RUN --judge JUDGE [--judge JUDGE ...] [options]",
        help="judge a run's responses again, with other judges",
        description="Judge the responses of a run by other judges, score the run again, and show how far its judges agree. "
        "Nothing is generated. The judges join the run's spec.yaml, their verdicts its folder; the same command goes on "
        "after a stop.",
        epilog="""\
a judge is one of:
  openai/gpt-4o-mini    a model: openai/..., anthropic/..., embedded/...,
                        a folder or a hub id
  instruct              a model of the run
  verifiable            the programs that check principles
  gpt                   a judge of the run: what failed is tried again
  strict.yaml           a file with a judge's fields: kind, model, template,
                        base_url
  mini=openai/gpt-4o-mini   any of them under a name of your own

examples:
  harness rejudge runs/mine --judge openai/gpt-4o-mini
  harness rejudge mine --judge verifiable --judge instruct
  harness rejudge mine --judge openai/served --base-url http://localhost:8000/v1
  harness rejudge mine --judge strict.yaml --limit 50 --epochs 3 --json""",
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, or its name below runs/")
    parser.add_argument(
        "-J", "--judge", action="append", default=[], metavar="JUDGE", help="who judges (see below); repeatable"
    )
    parser.add_argument(
        "-L", "--limit", type=count, metavar="N", help="queries that a new judge sees per task and split"
    )
    parser.add_argument("--epochs", type=count, metavar="K", help="times that a new judge judges each pair")
    parser.add_argument("--base-url", metavar="URL", help="API models named by a path: another server's address")
    add_api_options(parser)
    add_cost_options(parser, limit=True)
    parser.add_argument("-q", "--quiet", action="store_true", help="show neither progress nor tables")
    add_json(parser)


def execute(options: argparse.Namespace) -> int:
    """0 when all is judged; raises RunError when it failed, QualityError when the run is below the demanded quality."""
    from harness.cli._runs import find_started_run
    from harness.cli._screen import console, print_json
    from harness.cli.run import shortfall
    from harness.rejudge import prepare
    from harness.report.terminal import print_results
    from harness.runner import judge_again

    if not options.judge:
        raise UserError("name a judge, for example: --judge openai/gpt-4o-mini; see 'harness rejudge --help'")
    folder = find_started_run(options.run)
    plan, names = prepare(
        folder,
        options.judge,
        limit=options.limit,
        epochs=options.epochs,
        base_url=options.base_url,
        api=api_settings(options),
    )
    with running():
        outcome = judge_again(
            plan,
            names,
            console=console(stderr=True),
            quiet=options.quiet,
            batch=options.batch,
            max_cost=options.max_cost,
            prices=options.prices,
        )
    if options.json:
        print_json(outcome.results)
    elif not options.quiet:
        screen = console()
        print_results(outcome.results, screen, only=("Not counted", "Win rates", "Rank stability", "Judges"))
        screen.print(f"\nreport: {outcome.folder / 'report.md'}", markup=False, soft_wrap=True)
    if not outcome.passed:
        raise QualityError(shortfall(outcome))
    return 0
