"""`harness plan`: what a run would do, what is done already, how long it takes, and what it could detect."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from harness.cli._arguments import add_json, add_verb
from harness.cli._specification import add_cost_options, add_spec_options, read_spec

if TYPE_CHECKING:
    from rich.console import Console

    from harness.cli._arguments import Subparsers
    from harness.spec import Spec


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "plan",
        execute,
        usage="[SPEC] [options]",
        help="show what a run would do, without doing it",
        description="Show the stages of a run, what is done already, the time the rest takes, and the smallest effects "
        "it could detect. Nothing is loaded but text.",
        epilog="""\
examples:
  harness plan
  harness plan my-run.yaml --limit 100
  harness plan my-run.yaml --json""",
    )
    add_spec_options(parser)
    add_cost_options(parser).add_argument(
        "--count-tokens",
        action="store_true",
        help="count prompts exactly: with the tokenizers of local models, and by asking Anthropic (which takes no money)",
    )
    add_json(parser)


def execute(options: argparse.Namespace) -> int:
    """Read, check, show."""
    show_plan(
        read_spec(options),
        as_json=options.json,
        prices=options.prices,
        batch=options.batch,
        count_tokens=options.count_tokens,
    )
    return 0


def show_plan(
    spec: Spec, *, as_json: bool, prices: str | None = None, batch: bool = False, count_tokens: bool = False
) -> None:
    """Print the plan of a specification. Raises UserError when it cannot be run."""
    from harness.cli._screen import console, print_json
    from harness.costs import load_prices, planned
    from harness.plan import build_plan, describe
    from harness.runner import known_rates
    from harness.validation import check

    check(spec)
    plan = build_plan(spec)
    described = describe(plan, rates=known_rates())
    described["cost"] = planned(plan, plan.folder, load_prices(prices), batch=batch, exact=count_tokens)
    if as_json:
        print_json(described)
    else:
        _print_plan(described, console())


def _print_plan(described: dict[str, Any], screen: Console) -> None:
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
    left = [stage for stage in described["stages"] if stage["done"] < stage["expected"]]
    if not left:
        screen.print("\nEverything is done; 'harness run' would read the results back.")
    elif described["estimate_s"] is None:
        screen.print("\nTime: known for a stage once one like it has run on this machine.")
    else:
        screen.print(f"\nTime left: about {duration(described['estimate_s'])}, by earlier runs on this machine.")
    _print_cost(described["cost"], screen)
    screen.print("\nWin rates that would be told from 50% (power 80%, no ties):\n")
    effects = [
        [row["task"], row["principle_set"], row["split"].replace("_", "-"), str(row["n"]), _detectable(row["mde"])]
        for row in described["minimum_detectable_effect"]
    ]
    columns = ("task", "principle set", "split", "queries", "from 50%, points")
    screen.print(table(columns, effects, right=("queries", "from 50%, points")))


def _print_cost(cost: dict[str, Any], screen: Console) -> None:
    """The tokens and dollars of API models, and the tokens of others that were counted; nothing where there is neither."""
    from harness.cli._screen import table

    shown = [row for row in cost["stages"] if row["is_api"] or row["counted"] == "exact"]
    if not shown:
        return
    screen.print("\nTokens that are left, between the shortest and the longest answers:\n")
    rows = [
        [
            row["stage"],
            f"{row['requests']:,}",
            ("~ " if row["counted"] == "estimate" else "") + _range(row["prompt_tokens"]),
            _range(row["output_tokens"]),
            _dollars(row["dollars"]) if row["is_api"] else "–",
        ]
        for row in shown
    ]
    columns = ("stage", "requests", "prompt tokens", "answer tokens", "dollars")
    screen.print(table(columns, rows, right=columns[1:]))
    said = []
    if cost["unpriced"]:
        said.append(f"No price is known for {', '.join(cost['unpriced'])}; give one with --prices FILE.")
    elif any(row["is_api"] for row in shown):
        said.append(f"In all {_dollars(cost['dollars'])} dollars.")
    if cost["spent"]:
        said.append(f"Spent so far: {cost['spent']:,.2f}.")
    if any(row["counted"] == "estimate" for row in shown):
        said.append(f"~ estimated at {cost['bytes_per_token']} bytes a token; --count-tokens counts where it can.")
    screen.print("\n" + " ".join(said), markup=False, soft_wrap=True)


def _range(ends: dict[str, int]) -> str:
    low, high = f"{ends['low']:,}", f"{ends['high']:,}"
    return low if low == high else f"{low} to {high}"


def _dollars(ends: dict[str, float | None] | None) -> str:
    if ends is None or ends["low"] is None or ends["high"] is None:
        return "unknown"
    low, high = f"{ends['low']:,.2f}", f"{ends['high']:,.2f}"
    return low if low == high else f"{low} to {high}"


def _detectable(effect: float | None) -> str:
    return "none" if effect is None or effect != effect or effect > 0.5 else f"± {100 * effect:.1f}"
