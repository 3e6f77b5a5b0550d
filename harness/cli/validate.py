"""`harness validate`: every problem of a specification, before anything runs."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from harness.cli._arguments import add_json, add_verb
from harness.cli._specification import add_spec_options, read_spec
from sami_train.errors import UserError

if TYPE_CHECKING:
    from harness.cli._arguments import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "validate",
        execute,
        usage="SPEC [options]",
        help="check a specification and print every problem",
        description="Check a specification. Prints every problem, one a line, and exits with 2 when there is any.",
        epilog="""\
examples:
  harness validate my-run.yaml
  harness validate my-run.yaml --set sampling.temperature=0.7
  harness validate quickstart --json""",
    )
    add_spec_options(parser, default=None)
    add_json(parser)


def execute(options: argparse.Namespace) -> int:
    """0 when the specification can be run, else 2."""
    from harness.cli._screen import print_json

    name, problems = options.spec, []
    try:
        spec = read_spec(options)
    except UserError as error:  # it cannot even be read
        problems = [str(error)]
    else:
        from harness.validation import validate

        name, problems = spec.name, validate(spec)
    if options.json:
        print_json({"name": name, "valid": not problems, "problems": problems})
    elif problems:
        sys.stdout.writelines(f"{problem}\n" for problem in problems)
    else:
        sys.stdout.write(f"{name}: no problems found\n")
    return 2 if problems else 0
