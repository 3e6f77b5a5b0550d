"""`harness principles`: check principle sets, and see what a model will read of them."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from harness.cli._arguments import HarnessParser, add_json, add_verb, count, whole_number
from sami_train.errors import UserError

if TYPE_CHECKING:
    from harness.cli._arguments import Subparsers
    from sami_train.constitutions import PrincipleSet
    from sami_train.data import Query


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb and its two."""
    parser = add_verb(
        subparsers,
        "principles",
        None,
        usage="VERB [options]",
        help="check principle sets (lint), or see them in prompts (sample)",
    )
    parser.set_defaults(execute=lambda _: _no_verb(parser), parser=parser)
    verbs = parser.add_subparsers(
        title="verbs", prog=parser.prog, metavar="VERB", dest="principles_verb", parser_class=HarnessParser
    )
    lint = add_verb(
        verbs,
        "lint",
        execute_lint,
        usage="[SET ...] [--json]",
        help="look for mistakes in principle sets",
        description="Look for mistakes: near-duplicates, held-out principles among the learned ones, checks that "
        "cannot run. Exits with 0 when all is clean, 2 when a set cannot be read, 3 when something is suspicious.",
        epilog="""\
examples:
  harness principles lint              every set at hand
  harness principles lint diverse my-principles.yaml""",
    )
    lint.add_argument("sets", nargs="*", metavar="SET", help="names or files (default: every set at hand)")
    add_json(lint)
    sample = add_verb(
        verbs,
        "sample",
        execute_sample,
        usage="SET [options]",
        help="draw constitutions and print the prompts that a model reads",
        description="Draw constitutions and print the prompts as a model reads them, each with a bundled query.",
        epilog="""\
examples:
  harness principles sample verifiable
  harness principles sample diverse -n 5 --split held_out --style chat
  harness principles sample my-principles.yaml --task dialogue --json""",
    )
    sample.add_argument("set", metavar="SET", help="a principle set, by name or file")
    sample.add_argument("-n", type=count, default=3, metavar="N", help="how many to draw (default: 3)")
    sample.add_argument(
        "--task",
        choices=("dialogue", "summarization"),
        metavar="TASK",
        help="dialogue or summarization (default: that of the set's first principle)",
    )
    sample.add_argument(
        "--style",
        choices=("completion", "chat"),
        default="completion",
        metavar="STYLE",
        help="completion (default) or chat",
    )
    sample.add_argument(
        "--split", choices=("learned", "held_out"), metavar="SPLIT", help="learned or held_out (default: any)"
    )
    sample.add_argument("--seed", type=whole_number, default=0, metavar="N", help="of the draw (default: 0)")
    add_json(sample)


def execute_lint(options: argparse.Namespace) -> int:
    """0 when every set is clean, 2 when one cannot be read, 3 when something is suspicious."""
    from harness.cli._screen import print_json
    from sami_train.constitutions import list_principle_sets, load_principle_set

    named = options.sets or list(list_principle_sets())
    if not named:
        raise UserError("there are no principle sets at hand; name a file, or set HARNESS_PRINCIPLES to a folder")
    rows: list[dict[str, Any]] = []
    for name in named:
        try:
            found = load_principle_set(name)
        except UserError as error:
            rows.append({"set": name, "principles": 0, "readable": False, "problems": [str(error)]})
        else:
            n = len(found.principles)
            rows.append({"set": found.name, "principles": n, "readable": True, "problems": _problems(found)})
    if options.json:
        print_json(rows)
    else:
        for row in rows:
            if row["problems"]:
                sys.stdout.writelines(f"{row['set']}: {problem}\n" for problem in row["problems"])
            else:
                sys.stdout.write(f"{row['set']}: {row['principles']} principles, nothing found\n")
    return 2 if not all(row["readable"] for row in rows) else 3 if any(row["problems"] for row in rows) else 0


def execute_sample(options: argparse.Namespace) -> int:
    """Print the prompts of `n` constitutions and, below each, its opposite."""
    from harness.cli._screen import print_json
    from sami_train.constitutions import load_principle_set, sample_constitutions
    from sami_train.prompts import load_template

    found = load_principle_set(options.set)
    task = options.task or found.principles[0].task[0]
    principles = found.select(task, options.split)
    if not principles:
        which = f"{options.split.replace('_', '-')} " if options.split else ""
        raise UserError(f"the set '{found.name}' has no {which}principles for {task}; change --task or --split")
    queries = _example_queries(task, options.n)
    numbers = [str(number) for number in range(options.n)]
    drawn = sample_constitutions(principles, numbers, per_query=1, size=1, polarity="both", seed=options.seed)
    template = load_template(task)
    samples = []
    for query, (constitution, opposite) in zip(queries, drawn.values(), strict=True):
        prompt = template.render(constitution.lines(), query.text, options.style)
        samples.append(
            {
                "set": found.name,
                "task": task,
                "split": constitution.elements[0].principle.split,
                "style": options.style,
                "query_id": query.id,
                "constitution": constitution.id,
                "prompt": prompt.text if options.style == "completion" else prompt.chat,
                "opposite": opposite.id,
                "opposite_lines": opposite.lines(),
            }
        )
    if options.json:
        print_json(samples)
    else:
        _print_samples(samples)
    return 0


def _no_verb(parser: argparse.ArgumentParser) -> int:
    parser.print_help(sys.stderr)
    raise UserError("name a verb, for example: harness principles lint")


def _problems(found: PrincipleSet) -> list[str]:
    """What the lint finds, and the checks that cannot run."""
    from harness.judges.checks import validate_check
    from sami_train.constitutions import lint

    problems = lint(found)
    for principle in found.principles:
        if principle.check is not None:
            try:
                validate_check(principle.check)
            except UserError as error:
                problems.append(f"{principle.id}: {error}")
    return problems


def _example_queries(task: str, n: int) -> list[Query]:
    """`n` of the bundled evaluation queries of a kind of task, from the start again when they run out."""
    from harness.tasks import TaskSpec, load_task

    name = {"dialogue": "hh-rlhf", "summarization": "tldr"}[task]
    queries = load_task(name, TaskSpec(task=name)).evaluation
    return [queries[index % len(queries)] for index in range(n)]


def _print_samples(samples: list[dict[str, Any]]) -> None:
    from rich.rule import Rule
    from rich.text import Text

    from harness.cli._screen import console

    screen = console()
    for number, sample in enumerate(samples, start=1):
        split = sample["split"].replace("_", "-")
        title = f" {number}/{len(samples)}  {sample['constitution']}  {split}, query {sample['query_id']} "
        screen.print(Rule(Text(title, style="bold"), align="left", style="dim"))
        if sample["style"] == "completion":
            screen.print(Text(sample["prompt"]))
        else:
            for message in sample["prompt"]:
                screen.print(Text(f"[{message['role']}]", style="dim"))
                screen.print(Text(message["content"]))
        lines = " ".join(sample["opposite_lines"])
        screen.print(Text(f"\nThe opposite, {sample['opposite']}: {lines}\n", style="dim"))
