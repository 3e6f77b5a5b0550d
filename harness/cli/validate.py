"""`harness validate`: every problem of a specification, before anything runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from harness.cli._arguments import add_json, add_verb
from harness.cli._specification import add_spec_options, read_spec
from sami_train.errors import Problems, UserError

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
        description="Check a specification. Prints every problem, one a line, and exits with 2 when there is any. Keys, packages "
        "and models may be on another machine: that they are missing here is said, and is a problem with --here.",
        epilog="""\
examples:
  harness validate my-run.yaml
  harness validate my-run.yaml --set sampling.temperature=0.7
  harness validate quickstart --json""",
    )
    add_spec_options(parser, default=None)
    parser.add_argument(
        "--here", action="store_true", help="the run is to start on this machine: keys, packages and models too"
    )
    add_json(parser)


def execute(options: argparse.Namespace) -> int:
    """0 when the specification can be run, else 2."""
    from harness.cli._screen import print_json, write
    from harness.spec import SpecError
    from harness.validation import missing_for_run, out_of_reach, validate

    name, problems, missing = options.spec, [], []
    try:
        spec = read_spec(options)
    except Problems as error:  # it is not as a specification is, but the rest of it may be looked at
        problems = list(error.problems)
        if isinstance(error, SpecError) and error.rest is not None:
            problems += validate(error.rest, to_run=options.here, replaced=error.replaced)
    except UserError as error:
        problems = [str(error)]
    else:
        name, problems = spec.name, validate(spec, to_run=options.here)
        if options.here:
            problems += out_of_reach(spec)
        else:
            missing = missing_for_run(spec)
    if options.json:
        not_here = {"missing": missing} if missing else {}
        print_json({"name": name, "valid": not problems, "problems": problems, **not_here})
        return 2 if problems else 0
    for problem in problems:
        write(f"{problem}\n")
    if not problems:
        write(f"{name}: no problems found\n")
        for sentence in missing:
            write(f"not on this machine: {sentence}\n")
    return 2 if problems else 0
