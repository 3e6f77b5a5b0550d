"""`harness run`: run a specification, or go on with it."""

from __future__ import annotations

import argparse
import datetime
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.cli._arguments import add_json, add_verb
from harness.cli._errors import QualityError, running
from harness.cli._specification import add_cost_options, add_spec_options, read_spec
from harness.cli.report import add_all, print_report

if TYPE_CHECKING:
    from harness.cli._arguments import Subparsers
    from harness.runner import RunOutcome


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "run",
        execute,
        usage="[SPEC] [options]",
        help="run a specification, or go on with it",
        description="Train, generate, judge, score and report, as a specification says. What is on disk already is not "
        "made again, "
        "so the same command goes on after a stop. Without SPEC: the preset quickstart.",
        epilog="""\
examples:
  harness run
  harness run quickstart --limit 8 -o runs/small
  harness run my-run.yaml --model base=/data/llama --dtype bfloat16
  harness run my-run.yaml --set sampling.temperature=0.7 --seed 3
  harness run my-run.yaml --json > results.json
  harness run my-run.yaml --max-connections 64 --max-cost 5

Environment variables stand in for options: \
HARNESS_SEED, HARNESS_OUTPUT, HARNESS_LIMIT, HARNESS_DEVICE, HARNESS_DTYPE, \
HARNESS_BATCH_SIZE, HARNESS_THREADS, HARNESS_LOG_LEVEL. HARNESS_CACHE is the cache folder, \
HARNESS_PRINCIPLES folders of principle sets, HARNESS_PRICES a price file.""",
    )
    add_spec_options(parser)
    add_cost_options(parser, limit=True)
    parser.add_argument("--no-cache", action="store_true", help="share nothing with other runs in the cache folder")
    parser.add_argument("-n", "--dry-run", action="store_true", help="only show the plan, as 'harness plan' does")
    parser.add_argument("-q", "--quiet", action="store_true", help="show neither progress nor tables")
    add_all(parser)
    add_json(parser)


def execute(options: argparse.Namespace) -> int:
    """0 when the run is done; raises RunError when it failed, QualityError when it is below the demanded quality."""
    from harness.cli._screen import console, print_json

    spec = read_spec(options)
    if options.dry_run:
        from harness.cli.plan import show_plan

        show_plan(spec, as_json=options.json, prices=options.prices, batch=options.batch)
        return 0
    from harness.validation import check

    check(spec)
    from harness import runner

    began = datetime.datetime.now(datetime.UTC)
    with running():
        outcome = runner.run(
            spec,
            console=console(stderr=True),
            quiet=options.quiet,
            cache=not options.no_cache,
            batch=options.batch,
            max_cost=options.max_cost,
            prices=options.prices,
        )
    if options.json:
        print_json(outcome.results)
    elif not options.quiet:
        _print_outcome(outcome, began, everything=options.all)
    if not outcome.passed:
        raise QualityError(shortfall(outcome))
    return 0


def _print_outcome(outcome: RunOutcome, began: datetime.datetime, *, everything: bool) -> None:
    created = datetime.datetime.fromisoformat(str(outcome.results["created"]))
    note = f"(finished {created:%Y-%m-%d %H:%M} UTC; nothing had to be done again)"
    again = created < began.replace(microsecond=0)
    print_report(outcome.results, outcome.folder / "report.md", everything=everything, note=note if again else "")


def shortfall(outcome: RunOutcome) -> str:
    """Why a run that is done is not good enough."""
    quality = outcome.results["quality"]
    whose = f"of the judge '{quality['judge']}' " if quality.get("judge") else ""
    return (
        f"finished, but {quality['unscored_rate']:.1%} of the verdicts {whose}are unscored (statistics.max_unscored allows "
        f"{quality['max_unscored']:.1%}){commonest(outcome.results.get('judges') or {})}; see {outcome.folder / 'report.md'}"
        f"{', or run again to retry failed requests' if is_retried(outcome.results.get('judges') or {}) else ''}"
    )


def commonest(cards: Mapping[str, Any]) -> str:
    """``, most often 'refused_request: HTTP 404: ...' (8)``; nothing where there is no reason."""
    said: Counter[str] = Counter()
    for card in cards.values():
        for one in card.get("unscored_said") or ():
            said[one["said"]] += one["n"]
    return "".join(f", most often '{sentence}' ({n})" for sentence, n in said.most_common(1))


def is_retried(cards: Mapping[str, Any]) -> bool:
    """Whether another run would ask for any unscored verdict again."""
    return any(card.get("n_retried") for card in cards.values())
