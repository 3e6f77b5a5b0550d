"""What a person sees of a training: a line per finished part and a live bar in a terminal, few plain lines elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

LINE_EVERY_S = 10.0
"""Seconds between two lines about the same part when the output is not a terminal."""
BAR = 20
"""Columns of the bar."""


class _Figure(ProgressColumn):
    """The figures of a part, in one line: where the screen is narrow, they alone give way."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["figure"], "dim", no_wrap=True, overflow="ellipsis")


@dataclass
class _Part:
    """A part of the training: when it began, and since when its speed is measured."""

    began: float
    measured_from: float
    done_before: int
    done: int
    total: int
    last_line: float | None = None

    def time_left(self, now: float) -> str:
        made, seconds = self.done - self.done_before, now - self.measured_from
        if made <= 0 or seconds <= 0 or self.done >= self.total:
            return ""
        return f"{duration((self.total - self.done) * seconds / made)} left"


class Display:
    """Progress of a training. Use as a context manager; every call is cheap.

    All texts are shown as they are: markup in them means nothing, and control characters are left out.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True)
        self.quiet = quiet
        self.live = self.console.is_terminal and not quiet
        self._parts: dict[str, _Part] = {}
        self._bars: Progress | None = None
        self._bar: TaskID | None = None
        self._last_call = time.monotonic()

    def __enter__(self) -> Display:
        self._last_call = time.monotonic()
        if self.live:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
                BarColumn(bar_width=BAR, table_column=Column(width=BAR)),
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                TextColumn("{task.fields[left]}", markup=False, table_column=Column(no_wrap=True)),
                _Figure(),
                console=self.console,
                transient=True,
                refresh_per_second=4,
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def progress(self, what: str, done: int, total: int, figure: str = "") -> None:
        """`done` of a part's `total` are there; the part ends with ``done == total``, and may then begin again.

        A part may be left for another one and taken up again, as training is for an evaluation.
        """
        if self.quiet:
            return
        now = time.monotonic()
        part = self._parts.get(what)
        if part is None:
            part = self._parts[what] = _Part(self._last_call, now, done, done, total)
        elif part.done >= part.total:
            if done >= total:
                return
            part = self._parts[what] = _Part(self._last_call, now, done, done, total)
        part.done, part.total, self._last_call = done, total, now
        if done >= total:
            self._finish(what, part, figure, now)
        elif self._bars is not None:
            self._show_bar(self._bars, what, part, figure, now)
        elif part.last_line is None or now - part.last_line >= LINE_EVERY_S:
            part.last_line = now
            self._line(_joined(f"{what}: {done}/{total}", figure, part.time_left(now)))

    def note(self, sentence: str) -> None:
        """Something to be read even after the training: a warning."""
        if not self.quiet:
            self._line(sentence, style="yellow")

    def _finish(self, what: str, part: _Part, figure: str, now: float) -> None:
        if self._bars is not None and self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bars.refresh()
            self._bar = None
        self._line(_joined(f"{what}: {part.done}/{part.total}", figure, f"in {duration(now - part.began)}"))

    def _show_bar(self, bars: Progress, what: str, part: _Part, figure: str, now: float) -> None:
        figure, left = self._plain(figure), part.time_left(now)
        if self._bar is None:
            self._bar = bars.add_task(
                self._plain(what), completed=part.done, total=part.total, figure=figure, left=left
            )
        else:
            bars.update(
                self._bar,
                description=self._plain(what),
                completed=part.done,
                total=part.total,
                figure=figure,
                left=left,
            )

    def _line(self, text: str, style: str | None = None) -> None:
        self.console.print(self._plain(text), style=style, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def _plain(self, text: str) -> str:
        """The text without control characters, in characters that the output can show."""
        printable = "".join(char if char.isprintable() else " " for char in text)
        return printable.encode(self.console.encoding, "replace").decode(self.console.encoding)


def duration(seconds: float) -> str:
    """``3.2 s``, ``41 s``, ``4 min 05 s``, ``2 h 07 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _joined(*parts: str) -> str:
    return "  ".join(part for part in parts if part)
