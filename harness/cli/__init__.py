"""The command `harness`: one file per verb here, and what they share: errors, exit codes, the help.

Nothing heavy is imported before a verb executes, so that the help is there at once.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from harness.cli import (
    compare,
    convert_models,
    doctor,
    import_,
    judge,
    ls,
    paper,
    plan,
    principles,
    rejudge,
    report,
    run,
    score,
    validate,
)
from harness.cli._arguments import HarnessParser, VersionAction, parse
from harness.cli._errors import EXIT_CODES, QualityError, RunError
from sami_train.errors import UserError
from sami_train.output import OutputError, checked_output
from sami_train.text import printable

VERBS = (
    run,
    plan,
    validate,
    ls,
    doctor,
    principles,
    judge,
    report,
    score,
    rejudge,
    compare,
    import_,
    paper,
    convert_models,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code; bad input is one line on stderr, without traceback (but with `--debug`)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or bool(os.environ.get("HARNESS_DEBUG"))
    try:
        _prepare_streams()
        with checked_output():
            return _execute(arguments)
    except KeyboardInterrupt:
        _say("stopped; run the same command again to go on")
        return 130
    except BrokenPipeError:
        return _reader_is_gone()
    except UserError as error:
        if debug:
            raise
        _say(str(error))
        return 3 if isinstance(error, QualityError) else 1 if isinstance(error, RunError | OutputError) else 2
    except Exception as error:
        if debug:
            raise
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            _say(f"{error.filename}: this name is too long for the disk; use a shorter one")
            return 2
        lines = str(error).strip().splitlines()
        what = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        _say(f"unexpected error ({what}); run with --debug for the traceback")
        return 1


def _execute(arguments: list[str]) -> int:
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    try:
        options = parse(build_parser(), arguments)
    except SystemExit:  # argparse, after --help
        return 0
    _set_up_logging(options.log_level)
    code: int = options.execute(options)
    return code


def build_parser() -> HarnessParser:
    """The whole command line."""
    parser = HarnessParser(
        prog="harness",
        usage="harness VERB [options]",
        description="Measure whether language models follow principles, and whether training helped.",
        epilog=f"""\
examples:
  harness run                      the quickstart, on a laptop
  harness plan my-run.yaml         what a run would do, before doing it
  harness ls principles            the principle sets at hand
  harness report runs/quickstart   its tables once more

exit codes:
{EXIT_CODES}

'harness help VERB' explains a verb. Options may be written with '_' for '-': --output_path.""",
    )
    parser.add_argument("-V", "--version", action=VersionAction, help="print the version and stop")
    parser.set_defaults(execute=lambda _: _no_verb(parser), parser=parser, log_level=None)
    subparsers = parser.add_subparsers(
        title="verbs", prog="harness", metavar="VERB", dest="verb", parser_class=HarnessParser
    )
    for verb in VERBS:
        verb.add_parser(subparsers)
    return parser


def _no_verb(parser: argparse.ArgumentParser) -> NoReturn:
    parser.print_help(sys.stderr)
    raise UserError("name a verb, for example: harness run")


def _say(sentence: str) -> None:
    # The traceback of a stderr that is closed too would help nobody.
    try:
        sys.stdout.flush()
        sys.stderr.writelines(f"harness: {line}\n" for line in printable(sentence).splitlines() or [""])
    except OSError:
        pass


def _prepare_streams() -> None:
    """Where a stream is closed, write to nowhere; where it cannot show a character, show a question mark in its place."""
    sys.stdout = sys.stdout or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _set_up_logging(level: str | None) -> None:
    import logging

    name = (level or os.environ.get("HARNESS_LOG_LEVEL") or "warning").upper()
    if name not in logging.getLevelNamesMapping():
        raise UserError(f"HARNESS_LOG_LEVEL='{name.lower()}' is no log level; use debug, info, warning or error")
    logging.basicConfig(format="harness: %(levelname)s: %(message)s", level=logging.WARNING)
    for package in ("harness", "sami_train"):
        logging.getLogger(package).setLevel(name)
    logging.getLogger("huggingface_hub").propagate = False  # it prints its warnings itself


def _reader_is_gone() -> int:
    """Whatever was reading our output has stopped (`harness ls presets | head -1`): end quietly, as others do."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
