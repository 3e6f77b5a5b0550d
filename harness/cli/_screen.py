"""What the verbs share on the screen: JSON, a console, plain tables, and how times are written."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

PIPED_WIDTH = 120
"""Columns where the output goes to a file or another program and COLUMNS says nothing."""


def print_json(value: Any) -> None:
    """`value` as JSON on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def console(*, stderr: bool = False) -> Console:
    """A console that guesses no colours for words and numbers."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS", "").isdecimal() else PIPED_WIDTH
    return Console(stderr=stderr, highlight=False, width=width)


def table(columns: Sequence[str], rows: Iterable[Sequence[str | RenderableType]], *, right: Iterable[str] = ()) -> Table:
    """A table without a frame. Long cells are broken, never cut off; the columns named in `right` hold numbers.

    A cell that is a plain string is shown literally: square brackets in it are no markup.
    """
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    numbers = set(right)
    for name in columns:
        made.add_column(name, justify="right" if name in numbers else "left", overflow="fold", no_wrap=name in numbers)
    for row in rows:
        made.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
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
