"""argparse, with errors of one line, the nearest name for a mistyped one, and `_` allowed for `-` in options."""

from __future__ import annotations

import argparse
import math
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from sami_train.errors import UserError, nearest

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction["HarnessParser"]

_OPTION = re.compile(r"--[a-z][a-z0-9_-]*(?==|$)")


class HarnessParser(argparse.ArgumentParser):
    """A parser whose errors are `UserError`s, and whose help keeps the line breaks of the epilog."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", _Formatter)
        options.setdefault("allow_abbrev", False)  # an abbreviation would break when an option is added
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        plain = re.sub(r"^argument (?:-\w/)?", "", message)
        raise UserError(f"{plain}; see '{self.prog} --help'")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            what = "verb" if isinstance(action, argparse._SubParsersAction) else _called(action)
            raise UserError(f"there is no {what} '{value}'; {nearest(str(value), map(str, action.choices))}")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Options in one column that leaves room for what they mean; text is wrapped, except for indented lines."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **{**options, "max_help_position": 30})

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = (
            line if line.startswith(" ") or not line else textwrap.fill(line, width, break_on_hyphens=False)
            for line in text.splitlines()
        )
        return "\n".join(f"{indent}{line}" for line in lines)

    def _format_action(self, action: argparse.Action) -> str:
        """Verbs without a line above them that says VERB."""
        if isinstance(action, argparse._SubParsersAction):
            return "".join(super(_Formatter, self)._format_action(verb) for verb in action._get_subactions())
        return super()._format_action(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """`-o, --output-path FOLDER` where argparse would name FOLDER twice."""
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        names = sorted(action.option_strings, key=len)
        return f"{', '.join(names)} {self._format_args(action, self._get_default_metavar_for_optional(action))}"


class VersionAction(argparse.Action):
    """`--version`, which looks the version up only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, *_: Any) -> None:
        import harness

        sys.stdout.write(f"harness {harness.__version__}\n")
        sys.exit(0)


def parse(parser: HarnessParser, arguments: Sequence[str]) -> argparse.Namespace:
    """The options. Raises UserError for anything that cannot be read, with the nearest name for an unknown option."""
    options, extra = parser.parse_known_args(_hyphenated(arguments))
    if extra:
        verb: HarnessParser = options.parser
        name = extra[0].partition("=")[0]
        if name.startswith("-"):
            known = [string for action in verb._actions for string in action.option_strings]
            raise UserError(f"'{verb.prog}' has no option '{name}'; {_closest(name, known, verb.prog)}")
        raise UserError(f"'{verb.prog}' has no use for '{extra[0]}'; see '{verb.prog} --help'")
    return options


def add_verb(
    subparsers: Subparsers,
    name: str,
    execute: Callable[[argparse.Namespace], int] | None,
    *,
    usage: str,
    help: str,
    description: str | None = None,
    epilog: str = "",
) -> HarnessParser:
    """Add a verb with the options that every verb has. Without `execute` it has verbs of its own."""
    parser = subparsers.add_parser(name, help=help, description=description or _sentence(help), epilog=epilog or None)
    parser.usage = f"{parser.prog} {usage}".rstrip()
    if execute is None:
        return parser
    parser.set_defaults(execute=execute, parser=parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        metavar="LEVEL",
        help="debug, info, warning (default) or error",
    )
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else, on standard output")


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def count_or_auto(text: str) -> int | str:
    """A whole number of at least 1, or auto."""
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a whole number of at least 1 nor 'auto'")
    return int(text)


def count_or_none(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 0")
    return int(text)


def seconds(text: str) -> float:
    """A number of seconds above 0."""
    if not 0 < _number(text) < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of seconds above 0")
    return float(text)


def dollars(text: str) -> float:
    """An amount of at least 0, with or without a dollar sign."""
    if not 0 <= _number(text.removeprefix("$")) < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is no amount in dollars; write, for example, 2.50")
    return float(text.removeprefix("$"))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def whole_number(text: str) -> int:
    """Any whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None


def names(text: str) -> list[str]:
    """`a,b` as a list."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError("name at least one, for example: dialogue,summarization")
    return found


def _hyphenated(arguments: Sequence[str]) -> list[str]:
    """`--output_path=x` as `--output-path=x`; values, and what follows a bare `--`, stay as they are."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    changed = [_OPTION.sub(lambda found: found.group().replace("_", "-"), text, count=1) for text in arguments[:end]]
    return [*changed, *arguments[end:]]


def _closest(name: str, known: Sequence[str], prog: str) -> str:
    hint = nearest(name, known)
    return hint if hint.startswith("did you mean") else f"see '{prog} --help'"


def _called(action: argparse.Action) -> str:
    return max(action.option_strings, key=len).lstrip("-") if action.option_strings else action.dest


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
