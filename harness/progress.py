"""What a person sees of a run: the whole plan in the terminal; a line per step where the output is not a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from sami_train.text import counted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

LINE_EVERY_S = 10.0
"""Seconds between two lines about the same stage when the output is not a terminal."""


class Display:
    """Progress of all stages. Use as a context manager; every call is cheap."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        from sami_train.console import PlainConsole

        self.console = console or PlainConsole(stderr=True)
        self.quiet = quiet
        self.live = self.console.is_terminal and not quiet
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._totals: dict[str, int] = {}
        self._started: dict[str, tuple[float, int]] = {}
        self._last_line = 0.0
        self._last_part = ""

    def __enter__(self) -> Display:
        if self.live:
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("[dim]{task.fields[info]}"),
                console=self.console,
                transient=True,
                refresh_per_second=4,
            )
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def plan(self, stages: Mapping[str, int]) -> None:
        """Announce the stages, in order, with what each one comes to."""
        for name, total in stages.items():
            if self._progress is not None:
                self._tasks[name] = self._progress.add_task(name, total=total, start=False, info="")
        self._line(counted(len(stages), "stage"))

    def stage(self, name: str, done: int, total: int) -> None:
        """A stage begins with `done` of `total` already there."""
        self._totals[name] = total
        self._started[name] = (time.monotonic(), done)
        if self._progress is not None:
            self._progress.start_task(self._tasks[name])
            self._progress.update(self._tasks[name], completed=done, total=total)
        elif done < total:
            self._line(f"{name}: {done}/{total}")

    def advance(self, name: str, done: int) -> None:
        """`done` of the stage's total are there now."""
        if self._progress is not None:
            self._progress.update(self._tasks[name], completed=done, info=self._rate(name, done))
        elif time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._line(f"{name}: {done}/{self._totals[name]}  {self._rate(name, done)}")

    def part(self, name: str, what: str, done: int, total: int, figure: str) -> None:
        """Progress inside a stage that is one unit (training)."""
        shown = f"{what} {done}/{total} {figure}".strip()
        if self._progress is not None:
            self._progress.update(self._tasks[name], info=shown)
        elif f"{what} {done}" != self._last_part and (
            done == total or time.monotonic() - self._last_line >= LINE_EVERY_S
        ):
            self._last_part = f"{what} {done}"
            self._line(f"{name}: {shown}")

    def finish(self, name: str) -> None:
        """The stage is done."""
        if self._progress is not None:
            self._progress.update(self._tasks[name], completed=self._totals[name], info="")
        else:
            began, before = self._started[name]
            made = self._totals[name] - before
            if made:
                self._line(f"{name}: done in {time.monotonic() - began:.0f} s")

    def note(self, text: str) -> None:
        """Something the user should read even after the run."""
        self._line(text, always=True)

    def note_loading(self, name: str) -> None:
        """A model is being loaded."""
        self._line(f"loading {name}")

    def _rate(self, name: str, done: int) -> str:
        began, before = self._started[name]
        seconds = time.monotonic() - began
        made = done - before
        if made <= 0 or seconds <= 0:
            return ""
        left = (self._totals[name] - done) * seconds / made
        return f"{made / seconds:.1f}/s, {left:.0f} s left"

    def _line(self, text: str, *, always: bool = False) -> None:
        if self.quiet or (self.live and not always):
            return
        self._last_line = time.monotonic()
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
