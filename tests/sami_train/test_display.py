"""What is shown of a training: a line per part and a bar in a terminal, few lines elsewhere, and no text taken as markup."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

import sami_train.display
from sami_train.display import Display, duration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(sami_train.display.time, "monotonic", lambda: now[0])
    return now


def screen(*, terminal: bool = False, width: int = 120) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=width), out


def lines(out: io.StringIO) -> list[str]:
    """Without the codes that move the cursor and colour, and without the bar's own redrawn lines."""
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).splitlines()]


def test_elsewhere_a_part_has_a_line_at_its_start_every_ten_seconds_and_at_its_end(clock: list[float]) -> None:
    console, out = screen()
    with Display(console) as display:
        for done in range(31):
            display.progress("iteration 1 steps", done, 30, f"loss 0.{done:02d}")
            clock[0] += 1
    assert out.getvalue().splitlines() == [
        "iteration 1 steps: 0/30  loss 0.00",
        "iteration 1 steps: 10/30  loss 0.10  20 s left",
        "iteration 1 steps: 20/30  loss 0.20  10 s left",
        "iteration 1 steps: 30/30  loss 0.30  in 30 s",
    ]
    assert "\x1b" not in out.getvalue()


def test_time_left_counts_only_what_this_call_made(clock: list[float]) -> None:
    console, out = screen()
    with Display(console) as display:
        display.progress("responses", 80, 100, "")
        clock[0] += 10
        display.progress("responses", 85, 100, "")
    assert lines(out)[-1] == "responses: 85/100  30 s left"


def test_a_part_is_taken_up_again_after_another_one(clock: list[float]) -> None:
    console, out = screen()
    with Display(console) as display:
        display.progress("steps", 0, 4, "")
        clock[0] += 2
        display.progress("steps", 2, 4, "loss 0.7")
        clock[0] += 3
        display.progress("evaluation", 8, 8, "accuracy 0.9")
        clock[0] += 4
        display.progress("steps", 4, 4, "loss 0.6")
        display.progress("steps", 4, 4, "loss 0.6")
        clock[0] += 5
        display.progress("evaluation", 1, 8, "")
    assert lines(out) == [
        "steps: 0/4",
        "evaluation: 8/8  accuracy 0.9  in 3.0 s",
        "steps: 4/4  loss 0.6  in 9.0 s",
        "evaluation: 1/8",
    ]


def test_a_terminal_gets_a_bar_and_keeps_a_line_per_part_and_the_notes(clock: list[float]) -> None:
    console, out = screen(terminal=True)
    with Display(console) as display:
        for done in range(5):
            display.progress("iteration 1 steps", done, 4, f"loss 0.{done} · 812 tok/s")
            clock[0] += 1
            display._bars.refresh()  # type: ignore[union-attr]
        display.note("Responses grow longer.")
        display.progress("iteration 2 responses", 1, 64)
    shown = "\n".join(lines(out))
    for bar in ("2/4", "2.0 s left", "loss 0.2 · 812 tok/s"):
        assert bar in shown
    kept = [line for line in lines(out) if "━" not in line and line]
    assert kept == ["iteration 1 steps: 4/4  loss 0.4 · 812 tok/s  in 4.0 s", "Responses grow longer."]


@pytest.mark.parametrize("terminal", [True, False])
def test_texts_of_models_are_shown_as_they_are(terminal: bool) -> None:
    hostile = "[bold red]x[/] [link=file:///etc/passwd]y[/link] :boom: \x1b]0;title\x07\x1b[2J{z}"
    console, out = screen(terminal=terminal, width=400)
    with Display(console) as display:
        display.progress(hostile, 1, 2, hostile)
        if display._bars is not None:
            display._bars.refresh()
        display.progress(hostile, 2, 2, hostile)
        display.note(hostile)
    shown = out.getvalue()
    assert shown.count("[bold red]x[/] [link=file:///etc/passwd]y[/link] :boom:  ]0;title  [2J{z}") >= 5
    for code in ("\x1b]0;", "\x1b[2J", "\x07"):
        assert code not in shown


@pytest.mark.parametrize("terminal", [True, False])
def test_a_long_figure_takes_one_line_and_newlines_none(terminal: bool) -> None:
    console, out = screen(terminal=terminal, width=60)
    with Display(console) as display:
        display.progress("steps", 1, 2, "a\nb" + 300 * "x")
        if display._bars is not None:
            display._bars.refresh()
    assert len([line for line in lines(out) if "a b" in line]) == len([line for line in lines(out) if "x" in line]) > 0


def test_an_output_that_knows_ascii_alone_is_enough() -> None:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii", write_through=True), width=80)
    with Display(console) as display:
        display.progress("steps", 2, 2, "loss 0.6 · 812 tok/s")
        display.note("Fränken")
    assert b"loss 0.6 ? 812 tok/s" in raw.getvalue()
    assert b"Fr?nken" in raw.getvalue()


def test_quiet_is_silent() -> None:
    console, out = screen(terminal=True)
    with Display(console, quiet=True) as display:
        display.progress("steps", 1, 2, "loss")
        display.progress("steps", 2, 2, "loss")
        display.note("a warning")
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.7, "1 min 00 s"), (245, "4 min 05 s"), (7620, "2 h 07 min")],
)
def test_durations_are_read_at_a_glance(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_long_figure_takes_nothing_from_bar_count_and_clock(clock: list[float]) -> None:
    """At 80 columns a long figure cut the part's name off, and bar and count went."""
    console, _ = screen(terminal=True, width=80)
    with Display(console) as display:
        display.progress("iteration 1 steps", 0, 1200, "")
        clock[0] += 25
        display.progress("iteration 1 steps", 25, 1200, "loss 1.182 · margin 0.12 · 3,200 tok/s · 12.4 GB")
        assert display._bars is not None
        with console.capture() as captured:
            console.print(display._bars.get_renderable())
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", captured.get()).rstrip("\n")
    assert re.match(r"iteration 1 steps \S{20} +25/1200 19 min 35 s left loss .*…$", shown.strip().splitlines()[0]), (
        shown
    )
