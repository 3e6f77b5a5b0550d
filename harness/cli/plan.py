"""`harness plan`: what a run would do, what is done already, how long it takes, and how precise it will be."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from harness.cli._arguments import add_json, add_verb, count
from harness.cli._specification import add_cost_options, add_spec_options, read_spec

if TYPE_CHECKING:
    from rich.console import Console

    from harness.cli._arguments import Subparsers
    from harness.cli._forecast import Question
    from harness.spec import Spec


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "plan",
        execute,
        usage="[SPEC] [options]",
        help="show what a run would do, without doing it",
        description="Show the stages of a run, what is done already, what the rest takes (memory, tokens, time), and the "
        "precision of its win rates. Nothing is loaded but text, and neither models nor keys need be here.",
        epilog="""\
examples:
  harness plan
  harness plan my-run.yaml --limit 100
  harness plan paper/exp1-dialogue --gpus 8 --gpu-memory 80GB
  harness plan my-run.yaml --tokens-per-second 900 --new-tokens-per-second 200
  harness plan my-run.yaml --json""",
    )
    add_spec_options(parser)
    takes = parser.add_argument_group("what it takes")
    takes.add_argument("--gpus", type=count, metavar="N", help="GPUs to train on (default: this machine's one device)")
    takes.add_argument("--gpu-memory", metavar="SIZE", help="memory of a GPU, as in 80GB or 24GiB (default: 80GB)")
    for option, what in (
        ("--tokens-per-second", "packed tokens that all devices train on in a second"),
        ("--new-tokens-per-second", "tokens generated in a second, for training too"),
    ):
        takes.add_argument(
            option, action="append", default=[], metavar="[MODEL=]X", help=f"{what}; of one model or of all, repeatable"
        )
    takes.add_argument(
        "--no-memory", action="store_true", help="do not plan memory, which takes seconds for each model"
    )
    add_cost_options(parser)
    parser.add_argument(
        "--count-tokens",
        action="store_true",
        help="count prompts exactly: with the tokenizers of local models, and by asking Anthropic (which takes no money)",
    )
    add_json(parser)


def execute(options: argparse.Namespace) -> int:
    """Read, check, show."""
    from harness.cli._forecast import Question

    show_plan(
        read_spec(options),
        as_json=options.json,
        question=Question.of(options),
        prices=options.prices,
        batch=options.batch,
        count_tokens=options.count_tokens,
    )
    return 0


def show_plan(
    spec: Spec,
    *,
    as_json: bool,
    question: Question | None = None,
    prices: str | None = None,
    batch: bool = False,
    count_tokens: bool = False,
) -> None:
    """Print the plan of a specification. Raises UserError when it cannot be planned."""
    from harness.cli._cost import print_cost
    from harness.cli._forecast import Question, print_forecast
    from harness.cli._screen import console, print_json
    from harness.costs import load_prices, planned
    from harness.forecast import forecast, given_rates, plan_ahead
    from harness.looks import as_it_stopped
    from harness.plan import describe
    from harness.runner import known_rates
    from harness.validation import check, missing_for_run

    question = question or Question()
    check(spec, to_run=False)
    plan, assumed = plan_ahead(spec)
    plan = as_it_stopped(plan)
    rates = {**known_rates(), **given_rates(plan, question.training, question.generation)}
    described = describe(plan, rates=rates)
    described["assumed"] = assumed
    described["missing"] = missing_for_run(spec)
    described["forecast"] = forecast(plan, question.machine(), memory=question.memory)
    described["cost"] = planned(plan, plan.folder, load_prices(prices), batch=batch, exact=count_tokens)
    if as_json:
        print_json(described)
    else:
        _print_stages(described, console())
        print_forecast(described, console())
        print_cost(described["cost"], console(), hint="'harness plan --count-tokens' counts where it can")
        if described["precision"]:
            _print_precision(described, console())
        _print_stop(described["stop"], console())


def _print_stages(described: dict[str, Any], screen: Console) -> None:
    from harness.cli._screen import duration, table

    screen.print(f"{described['name']} → {described['output']}\n", markup=False, soft_wrap=True)
    rows = [
        [
            stage["stage"],
            stage["kind"],
            f"{stage['expected']:,}",
            f"{stage['done']:,}",
            "done" if stage["done"] >= stage["expected"] else duration(stage["estimate_s"]),
        ]
        for stage in described["stages"]
    ]
    screen.print(table(("stage", "kind", "rows", "there", "time left"), rows, right=("rows", "there", "time left")))
    screen.print(f"\n{_time_left(described)}")


def _print_precision(described: dict[str, Any], screen: Console) -> None:
    from harness.cli._screen import table

    rows = described["precision"]
    several = len({row["principle_set"] for row in rows}) > 1
    shown = []
    for row in rows:
        name = f"{row['task']} {row['split'].replace('_', '-')}" + (f" ({row['principle_set']})" if several else "")
        like = row["principles"] or {}
        widths = [like.get(key) for key in ("half_width", "floor", "twice_the_queries", "twice_the_principles")]
        figures = [_points(value) for value in (row["mde"], row["half_width"], *widths)]
        shown.append([name, str(row["n"]), *figures[:2], str(row["n_principles"]), *figures[2:]])
    columns = ("win rate", "n", "shows", "these", "G", "like them", "floor", "2n", "2G")
    screen.print("\nHow precise the win rates will be, in points either side of 50%:\n")
    screen.print(table(columns, shown, right=columns[1:]))
    assumed = described["precision_assumes"]
    screen.print(
        "\nn queries, G principles. shows: the least distance from 50% that is found with 80% power. these: the interval for new "
        "queries under these principles; like them: for new principles too (none below 5), its floor however many queries there "
        f"are, and what twice the queries or principles bring. Assumed: {assumed['tie_rate']:.0%} ties (with none, 'shows' and "
        "'these' are up to 1.3 times as wide), and principles whose win rates differ by a standard deviation of "
        f"{100 * assumed['principles_sd']:.0f} points.",
        markup=False,
    )


def _points(fraction: float | None) -> str:
    """A fraction in points; a dash where there is none, or none that a win rate could have."""
    return "–" if fraction is None or not fraction <= 0.5 else f"{100 * fraction:.1f}"


def _print_stop(stop: dict[str, Any] | None, screen: Console) -> None:
    """After how many queries the run may end; how many it will take depends on what it finds."""
    from harness.report.looks import rule_words

    if stop is None:
        return
    decisions = stop["decisions"]
    critical = f", |z| above {', '.join(f'{z:.3f}' for z in stop['critical'])}" if stop["critical"] else ""
    screen.print(
        f"\nMay stop early: {rule_words(stop['rule'])}{critical}. It decides after {decisions[0]} queries at the earliest, "
        f"{len(decisions)} times at most, and takes {stop['most']} of {stop['of']} at most; rows, time and cost above are of all.",
        markup=False,
        soft_wrap=True,
    )


def _time_left(described: dict[str, Any]) -> str:
    """What is known of the time, in a sentence."""
    from harness.cli._screen import duration

    left = [stage for stage in described["stages"] if stage["done"] < stage["expected"]]
    known = [stage["estimate_s"] for stage in left if stage["estimate_s"] is not None]
    by = "by earlier runs on this machine or the speeds given"
    if not left:
        return "Everything is done; 'harness run' would read the results back."
    if len(known) == len(left):
        return f"Time left: about {duration(sum(known))}, {by}."
    how = "a stage like it must have run on this machine"
    if any(stage["kind"] in ("train", "generate") and stage["estimate_s"] is None for stage in left):
        how += ", or give --tokens-per-second (training) and --new-tokens-per-second (generation)"
    if not known:
        return f"Time left: not known; {how}."
    return f"Time left: about {duration(sum(known))} for {len(known)} of {len(left)} stages, {by}; of the rest not known: {how}."
