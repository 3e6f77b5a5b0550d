"""What is shown of a run: few lines where the output is no terminal, bars where it is, nothing where it is quiet."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

import harness.progress
from harness.progress import Display


def screen(*, terminal: bool = False) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=80, height=24), out


def now_shown(display: Display) -> list[str]:
    """The lines below the finished stages."""
    with display.console.capture() as captured:
        display.console.print(display._shown())
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", captured.get()).splitlines()]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(harness.progress.time, "monotonic", lambda: now[0])
    return now


def go_through(display: Display) -> None:
    with display:
        display.plan({"train sami": None, "base on dialogue": None})
        display.stage("train sami", 0, 1)
        for step in range(1, 5):
            display.part("train sami", "iteration 1 steps", step, 4, "loss 0.69")
        display.finish("train sami")
        display.stage("base on dialogue", 20, 100)
        with display.loading("base"):
            pass
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
    assert re.fullmatch(r"base on dialogue: done in \d\.\d s", lines[-1])
    assert len(lines) == 8, "eighty rows within a moment are no eighty lines"
    assert "\x1b" not in out.getvalue()


def test_a_long_stage_says_how_far_it_is_and_the_whole_run(clock: list[float]) -> None:
    console, out = screen()
    with Display(console) as display:
        display.plan({"base": 500.0, "sami": 40.0})
        display.stage("base", 20, 100)
        for done in range(21, 41):
            clock[0] += 1
            display.advance("base", done)
    assert out.getvalue().splitlines()[1:] == [
        "base: 20/100",
        "base: 30/100, 1.0/s; stage 1 of 2, 10 s so far, about 1 min 50 s left",
        "base: 40/100, 1.0/s; stage 1 of 2, 20 s so far, about 1 min 40 s left",
    ], "a line every ten seconds; what was there before the start counts for no speed"


def test_the_running_stage_is_never_cut_off(clock: list[float]) -> None:
    """Twenty-five stages on twenty-four rows showed the first ones and "..."."""
    console, _ = screen(terminal=True)
    names = [f"stage number {n} with a name that is longer than half of the screen" for n in range(40)]
    display = Display(console)
    display.plan(dict.fromkeys(names, 10.0))
    for name in names:
        display.stage(name, 0, 4)
        clock[0] += 2
        display.advance(name, 1)
        shown = now_shown(display)
        assert shown[0] == name
        assert shown[1].endswith("  1/4  0.5/s")
        assert len(shown) == 3
        display.finish(name)


def test_a_long_figure_takes_nothing_from_the_bar() -> None:
    """At 80 columns every bar, count and clock went once a long figure was there."""
    console, _ = screen(terminal=True)
    display = Display(console)
    display.plan({"train sami": None})
    display.stage("train sami", 0, 1)
    display.part("train sami", "iteration 1 steps", 14, 20, "loss 0.69 · " * 10)
    label, bar, _ = now_shown(display)
    assert label == "train sami: iteration 1 steps"
    assert re.match(r"\S{20}  14/20  loss 0.69 .*…$", bar)


@pytest.mark.parametrize(
    ("known", "said"), [(60.0, "about 1 min 20 s left"), (None, "at least 20 s left")], ids=["known", "unknown"]
)
def test_one_time_is_left_and_it_is_the_whole_runs(known: Any, said: str, clock: list[float]) -> None:
    console, _ = screen(terminal=True)
    display = Display(console)
    display.plan({"base": None, "sami": known})
    display.stage("base", 0, 3)
    clock[0] += 10
    display.advance("base", 1)
    text = " ".join(now_shown(display))
    assert said in text
    assert text.count("left") == 1


def test_a_model_that_loads_is_shown_and_slows_no_stage(clock: list[float]) -> None:
    console, _ = screen(terminal=True)
    display = Display(console)
    display.plan({"base": None})
    display.stage("base", 0, 10)
    with display.loading("llama"):
        clock[0] += 100
        assert now_shown(display)[0] == "base: loading llama"
    clock[0] += 1
    display.advance("base", 1)
    assert now_shown(display)[0] == "base"
    assert "1.0/s" in now_shown(display)[1]


def test_nothing_is_said_of_a_stage_that_is_done() -> None:
    console, out = screen()
    with Display(console) as display:
        display.plan({"base": 0.0})
        display.stage("base", 4, 4)
        display.finish("base")
    assert out.getvalue() == "1 stage\n"


def test_quiet_is_silent() -> None:
    console, out = screen(terminal=True)
    go_through(Display(console, quiet=True))
    assert out.getvalue() == ""


def test_a_terminal_keeps_the_notes_and_the_finished_stages() -> None:
    console, out = screen(terminal=True)
    go_through(Display(console))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "train sami: done in 0.0 s\n" in text
    assert "3 responses failed\n" in text
    assert "0/100" not in text.splitlines()[-1]
