"""What is shown of a run: few lines where the output is no terminal, bars where it is, nothing where it is quiet."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

import harness.progress
from harness.progress import Display


def screen(*, terminal: bool = False) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=100), out


def go_through(display: Display) -> None:
    with display:
        display.plan({"train sami": 1, "base on dialogue": 100})
        display.stage("train sami", 0, 1)
        for step in range(1, 5):
            display.part("train sami", "iteration 1 steps", step, 4, "loss 0.69")
        display.finish("train sami")
        display.stage("base on dialogue", 20, 100)
        display.note_loading("base")
        for done in range(21, 101):
            display.advance("base on dialogue", done)
        display.note("3 responses failed")
        display.finish("base on dialogue")


def test_lines_are_few_where_the_output_is_no_terminal() -> None:
    console, out = screen()
    go_through(Display(console))
    lines = out.getvalue().splitlines()
    assert lines[0] == "2 stages"
    assert "train sami: iteration 1 steps 4/4 loss 0.69" in lines
    assert "base on dialogue: 20/100" in lines
    assert "loading base" in lines
    assert "3 responses failed" in lines
    assert re.fullmatch(r"base on dialogue: done in \d+ s", lines[-1])
    assert len(lines) == 8, "eighty rows within a moment are no eighty lines"
    assert "\x1b" not in out.getvalue()


def test_a_long_stage_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(harness.progress.time, "monotonic", lambda: clock[0])
    console, out = screen()
    with Display(console) as display:
        display.plan({"base": 100})
        display.stage("base", 20, 100)
        for done in range(21, 41):
            clock[0] += 1
            display.advance("base", done)
    lines = out.getvalue().splitlines()
    assert lines[1:] == ["base: 20/100", "base: 30/100  1.0/s, 70 s left", "base: 40/100  1.0/s, 60 s left"], (
        "a line every ten seconds; what was there before the start counts for no speed"
    )


def test_nothing_is_said_of_a_stage_that_is_done() -> None:
    console, out = screen()
    with Display(console) as display:
        display.plan({"base": 4})
        display.stage("base", 4, 4)
        display.finish("base")
    assert out.getvalue() == "1 stage\n"


def test_quiet_is_silent() -> None:
    console, out = screen(terminal=True)
    go_through(Display(console, quiet=True))
    assert out.getvalue() == ""


def test_a_terminal_gets_bars_and_keeps_the_notes() -> None:
    console, out = screen(terminal=True)
    go_through(Display(console))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "100/100" in text
    assert "train sami" in text
    assert "3 responses failed\n" in text
    assert "loading base" not in text
