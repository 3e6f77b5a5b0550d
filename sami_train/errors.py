"""Errors meant for the person at the keyboard: one sentence that says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right. The command line prints the message alone, without a traceback."""


class Problems(UserError):
    """Several things to put right, a line of the message for each of `problems`."""

    def __init__(self, *problems: str) -> None:
        self.problems = tuple(" ".join(problem.splitlines()) for problem in problems)
        super().__init__("\n".join(self.problems))


class MissingPackage(UserError):
    """An optional package is absent. The message names the install command."""

    def __init__(self, package: str, *, extra: str | None = None) -> None:
        command = f"pip install 'sami-harness[{extra}]'" if extra else f"pip install {package}"
        super().__init__(f"this needs the package '{package}', which is not installed; run: {command}")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint to end an error message with: the closest known name, or the list of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(names)}" if names else "none are known"
