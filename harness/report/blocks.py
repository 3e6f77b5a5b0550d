"""What a report is made of, whatever it is printed on: sections of sentences, tables and notes; and how numbers look.

All text here is plain. Whoever prints it escapes it for the screen or for Markdown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Tone = Literal["plain", "above", "below", "unsure"]
Align = Literal["left", "right"]

NONE = "–"
"""Stands where there is no number."""


@dataclass(frozen=True)
class Cell:
    """One entry of a table; the tone colours it where there is colour."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Column:
    """A column's heading and the side its entries stand on."""

    name: str
    align: Align = "left"


@dataclass(frozen=True)
class Group:
    """Rows under one heading; the heading is empty where the table needs none."""

    heading: str
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Table:
    """Columns, and rows in groups. `group_name` is what the headings are, for a medium without headings in tables."""

    columns: tuple[Column, ...]
    groups: tuple[Group, ...]
    group_name: str = ""


@dataclass(frozen=True)
class Section:
    """A title, then sentences (one point each), tables and small print; all but the title may be empty."""

    title: str
    points: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()


def row(*cells: str | Cell) -> tuple[Cell, ...]:
    """A table row from texts and cells."""
    return tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in cells)


def percent(value: float | None, digits: int = 1) -> str:
    """0.583 -> "58.3%"."""
    return NONE if value is None else f"{100 * value:.{digits}f}%"


def percent_interval(value: float | None, low: float | None, high: float | None, digits: int = 1) -> str:
    """0.583, 0.521, 0.643 -> "58.3% [52.1, 64.3]"."""
    if value is None:
        return NONE
    return percent(value, digits) + interval(low, high, scale=100, digits=digits)


def points_interval(value: float | None, low: float | None, high: float | None) -> str:
    """A difference of two shares in percentage points, signed: 0.073, 0.01, 0.13 -> "+7.3 [+1.0, +13.0]"."""
    if value is None:
        return NONE
    return signed(100 * value) + interval(low, high, scale=100, sign=True)


def number_interval(value: float | None, low: float | None, high: float | None, digits: int = 3) -> str:
    """0.4213, 0.3, 0.5 -> "0.421 [0.300, 0.500]"."""
    return NONE if value is None else f"{value:.{digits}f}" + interval(low, high, digits=digits)


def interval(low: float | None, high: float | None, *, scale: float = 1, digits: int = 1, sign: bool = False) -> str:
    """The bracketed limits with a leading blank; nothing where there are none."""
    if low is None or high is None:
        return ""
    one, other = (signed(scale * x, digits) if sign else f"{scale * x:.{digits}f}" for x in (low, high))
    return f" [{one}, {other}]"


def signed(value: float, digits: int = 1) -> str:
    """With its sign; what rounds to zero has none."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def number(value: float | None, digits: int = 3) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def count(value: float | None) -> str:
    return NONE if value is None else f"{value:g}"


def p_value(value: float | None) -> str:
    """Three decimals; never "0.000"."""
    if value is None:
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def against(low: float | None, high: float | None, point: float, name: str) -> Cell:
    """Where an interval lies: above `point`, below it, or around it."""
    if low is None or high is None:
        return Cell("no figure", "unsure")
    if low > point:
        return Cell(f"above {name}", "above")
    if high < point:
        return Cell(f"below {name}", "below")
    return Cell("not distinguishable", "unsure")


def split_name(split: str) -> str:
    return split.replace("_", "-")


def listed(parts: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""
