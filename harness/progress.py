"""What a person sees of a run: in a terminal a line per finished stage and, in three lines below them, the stage that runs and
what is left of the whole; elsewhere a few plain lines.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from sami_train.text import counted

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

LINE_EVERY_S = 10.0
"""Seconds between two lines about the same stage when the output is not a terminal."""
BAR = 20
"""Columns of the bar."""


class Display:
    """Progress of all stages. Use as a context manager; every call is cheap."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        from sami_train.console import PlainConsole

        self.console = console or PlainConsole(stderr=True)
        self.quiet = quiet
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal and not quiet
        self._live: Live | None = None
        self._began = time.monotonic()
        self._left: dict[str, float | None] = {}
        """Seconds left of each stage, in order, as far as earlier runs tell."""
        self._name = ""
        self._started = self._measured_from = 0.0
        self._before = self._done = self._total = 0
        self._what = ""
        """What the stage does right now, where its own count does not say it: a part of a training, the loading of a model."""
        self._part: tuple[int, int, str] | None = None
        self._last_line = 0.0
        self._last_part = ""

    def __enter__(self) -> Display:
        self._began = time.monotonic()
        if self.live:
            from rich.live import Live

            self._live = Live(console=self.console, get_renderable=self._shown, transient=True, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def plan(self, stages: Mapping[str, float | None]) -> None:
        """Announce the stages, in order, with the seconds that each is known to take still; None: that is not known."""
        self._left = dict(stages)
        self._line(counted(len(stages), "stage"))

    def stage(self, name: str, done: int, total: int) -> None:
        """A stage begins with `done` of `total` already there."""
        self._name, self._what, self._part = name, "", None
        self._before, self._done, self._total = done, done, total
        self._started = self._measured_from = time.monotonic()
        if done < total:
            self._line(f"{name}: {done}/{total}")

    def advance(self, name: str, done: int) -> None:
        """`done` of the stage's total are there now."""
        self._done = done
        if time.monotonic() - self._last_line >= LINE_EVERY_S:
            speed = self._speed()
            self._line(f"{name}: {done}/{self._total}{f', {speed}' if speed else ''}; {self._whole(name)}")

    def part(self, name: str, what: str, done: int, total: int, figure: str) -> None:
        """Progress inside a stage that is one unit (training)."""
        self._what, self._part = what, (done, total, figure)
        if f"{what} {done}" != self._last_part and (
            done == total or time.monotonic() - self._last_line >= LINE_EVERY_S
        ):
            self._last_part = f"{what} {done}"
            self._line(f"{name}: {what} {done}/{total} {figure}".strip())

    def finish(self, name: str) -> None:
        """The stage is done."""
        from sami_train.display import duration

        self._left[name] = 0.0
        if self._total > self._before:
            self._line(f"{name}: done in {duration(time.monotonic() - self._started)}", always=True)
        self._name = ""

    def note(self, text: str) -> None:
        """Something the user should read even after the run."""
        self._line(text, always=True)

    @contextmanager
    def loading(self, model: str) -> Iterator[None]:
        """A model is being loaded. The time that takes says nothing of the stage's speed."""
        self._what = f"loading {model}"
        self._line(self._what)
        yield
        self._what, self._measured_from = "", time.monotonic()

    # What is shown

    def _shown(self) -> RenderableType:
        """The stage that runs and what is left of the whole, a line each; nothing is wrapped at any width."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        name, what = self._name, self._what  # another thread goes on meanwhile
        if not name:
            return ""
        done, total, figure = self._part or (self._done, self._total, self._speed())
        counts = f"{done}/{total}"
        bar = Table.grid(padding=(0, 2, 0, 0))
        for width in (BAR, len(counts), None):
            bar.add_column(width=width)
        bar.add_row(ProgressBar(total or 1, done, width=BAR), counts, Text(figure, no_wrap=True, overflow="ellipsis"))
        label = f"{name}: {what}" if what else name
        whole = Text(self._whole(name), style="dim", no_wrap=True, overflow="ellipsis")
        return Group(Text(label, no_wrap=True, overflow="ellipsis"), bar, whole)

    def _speed(self) -> str:
        seconds, made = time.monotonic() - self._measured_from, self._done - self._before
        return f"{made / seconds:.1f}/s" if made > 0 and seconds > 0 else ""

    def _whole(self, name: str) -> str:
        """`stage 3 of 26, 41 s so far, about 4 min 05 s left`; `at least` where nothing is known of some stage."""
        from sami_train.display import duration

        now = time.monotonic()
        made, left = self._done - self._before, dict(self._left)
        if made > 0:
            left[name] = (self._total - self._done) * (now - self._measured_from) / made
        elif (known := left.setdefault(name, None)) is not None:
            left[name] = max(0.0, known - (now - self._started))
        known_left = [seconds for seconds in left.values() if seconds is not None]
        is_all = len(known_left) == len(left)
        said = f"stage {list(left).index(name) + 1} of {len(left)}, {duration(now - self._began)} so far"
        if is_all or sum(known_left) > 0:
            said += f", {'about' if is_all else 'at least'} {duration(sum(known_left))} left"
        return said

    def _line(self, text: str, *, always: bool = False) -> None:
        if self.quiet or (self.live and not always):
            return
        self._last_line = time.monotonic()
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
