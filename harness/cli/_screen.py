"""What the verbs share on the screen: JSON, a console, plain tables, and how times are written."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sami_train.text import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

PIPED_WIDTH = 100_000
"""Columns where the output goes to a file or another program and COLUMNS says nothing: no line is wrapped there."""


LONGEST_NAME = 40
"""Cells up to this many columns are kept in one piece."""


def write(text: str) -> None:
    """`text` on stdout, with nothing in it that a terminal acts on: names and messages in it are others'."""
    sys.stdout.write(printable(text))


def print_json(value: Any) -> None:
    """`value` as JSON on stdout. What a terminal would act on is written as an escape."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    if not text.isprintable():
        text = "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
    sys.stdout.write(text + "\n")


def console(*, stderr: bool = False) -> Console:
    """A console that guesses no colours for words and numbers."""
    from sami_train.console import PlainConsole

    class Screen(PlainConsole):
        """rich's own handling of a closed pipe ends the process with 1; `harness.cli.main` knows better."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS", "").isdecimal() else PIPED_WIDTH
    return Screen(stderr=stderr, highlight=False, width=width)


def table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, right: Iterable[str] = ()) -> Table:
    """A table without a frame: names stay in one piece, the last column is wrapped, `right` names those with numbers.

    A cell that is a plain string is shown literally: square brackets in it are no markup.
    """
    from rich.table import Table
    from rich.text import Text

    cells = [[Text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    numbers = set(right)
    for index, name in enumerate(columns):
        short = all(row[index].cell_len <= LONGEST_NAME for row in cells)
        whole = short and index < len(columns) - 1
        made.add_column(name, justify="right" if name in numbers else "left", overflow="fold", no_wrap=whole)
    for row in cells:
        made.add_row(*row)
    return made


def duration(seconds: float | None) -> str:
    """`1 h 05 min`, `2 min 10 s`, `8 s`; a dash where it is not known."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if whole or not seconds else "< 1 s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def gigabytes(n_bytes: float) -> str:
    """`3.2 GiB`."""
    return f"{n_bytes / 2**30:.1f} GiB"
