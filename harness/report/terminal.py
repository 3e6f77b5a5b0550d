"""The whole report in a terminal, never wider than the console (`first_screen` is what a run ends with)."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from harness.report.content import comparison_sections, ladder_sections, sections
from harness.report.judge_card import judge_card_sections
from harness.report.readings import BAD, GOOD, UNCLEAR
from harness.report.words import Section, Table

_GAP = 2
_NARROWEST = 6
_ONE_LINE = 24
_BRACKET = re.compile(r"[\[\]]")
_ASCII = str.maketrans({"½": "1/2", "–": "-", "—": "-", "−": "-", "→": ">", "…": "...", "·": "|", "Δ": "d", "ρ": "rho"})


def print_results(results: dict[str, Any], console: Console, *, only: Collection[str] = ()) -> None:
    """Print the report of a run, or `only` the sections with these titles."""
    about = [results.get("name") or "run", results.get("description") or ""]
    console.print(_text(" — ".join(part for part in about if part), console, "bold"))
    for section in sections(results):
        if not only or section.title in only:
            _print_section(section, console)


def print_ladder(ladder: dict[str, Any], console: Console) -> None:
    """Print what `harness.rescore.ladder` found."""
    console.print(_text(ladder["name"], console, "bold"))
    for section in ladder_sections(ladder):
        _print_section(section, console)


def print_comparison(comparison: dict[str, Any], console: Console) -> None:
    """Print what `harness.compare.compare` found."""
    for section in comparison_sections(comparison):
        _print_section(section, console)


def print_judge_card(card: dict[str, Any], console: Console) -> None:
    """Print the card of a judge that was held against known labels (`harness.judge_validation.validate_judge`)."""
    for section in judge_card_sections(card):
        _print_section(section, console)


def _print_section(section: Section, console: Console) -> None:
    console.print()
    console.print(_text(section.title, console, "bold cyan"))
    for sentence in section.sentences:
        _print_item(sentence, console)
    for table in section.tables:
        if table.heading:
            console.print()
            console.print(_text(table.heading, console, "italic"))
        for part in fitting(table, console.width):
            console.print(_rich_table(part, console))
    for remark in section.remarks:
        _print_item(remark, console, style="dim")


def _print_item(sentence: str, console: Console, style: str = "") -> None:
    item = RichTable.grid(padding=(0, 1))
    item.add_column(width=1)
    item.add_column(overflow="fold")
    item.add_row(_text("·", console, "dim"), _text(sentence, console, style))
    console.print(Padding(item, (0, 0, 0, 1), expand=False))


def _rich_table(table: Table, console: Console) -> RichTable:
    found = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", show_edge=False)
    widths = _widths(table, console.width)
    for name, width in zip(table.columns, widths, strict=True):
        right = name in table.numbers
        found.add_column(_text(name, console), justify="right" if right else "left", overflow="fold", width=width)
    for row in table.rows:
        cells = zip(row, widths, strict=True)
        lines = [[plain(line, console) for line in wrapped(cell, width)] for cell, width in cells]
        found.add_row(*(Text("\n".join(part), style_of(cell)) for part, cell in zip(lines, row, strict=True)))
    return found


def parts(text: str) -> list[str]:
    """`text` in the pieces that a line may break between: at blanks, and not within an interval. Linear in the text."""
    pieces = text.split(" ")
    found: list[list[str]] = [[]]
    is_inside = False  # whether the next bracket from here on closes an interval
    for piece in reversed(pieces):
        found[-1].append(piece)
        if bracket := _BRACKET.search(piece):
            is_inside = bracket.group() == "]"
        if not is_inside:
            found.append([])
    return [" ".join(reversed(group)) for group in reversed(found) if group]


def wrapped(text: str, width: int) -> list[str]:
    """`text` as lines of at most `width` cells, as far as it can be broken between words and not within an interval."""
    lines: list[str] = []
    for part in parts(text):
        if lines and cell_len(f"{lines[-1]} {part}") <= width:
            lines[-1] += f" {part}"
        else:
            lines.append(part)
    return lines


def fitting(table: Table, width: int) -> list[Table]:
    """The table, or several with fewer columns under each other where `width` cells hold only some.

    Words and intervals stay whole, and cells of up to `_ONE_LINE` on one line. Each table has the columns that say what a row
    is about: those before the first number.
    """
    widths, whole = _needed(table)
    if sum(widths) + _GAP * (len(widths) - 1) <= width:
        return [table]
    bodies = [max(map(cell_len, column)) for column in zip(*table.rows, strict=True)]
    needed = [max(least, min(body, _ONE_LINE)) for least, body in zip(whole, bodies, strict=True)]
    keys = next((i for i, name in enumerate(table.columns) if name in table.numbers), 1) or 1
    groups = [list(range(keys))]
    for i in range(keys, len(table.columns)):
        if len(groups[-1]) > keys and sum(needed[j] + _GAP for j in [*groups[-1], i]) - _GAP > width:
            groups.append(list(range(keys)))
        groups[-1].append(i)
    return [table.without(*(name for i, name in enumerate(table.columns) if i not in kept)) for kept in groups]


def _needed(table: Table) -> tuple[list[int], list[int]]:
    """What each column needs to be on one line, and to keep its words and intervals whole."""
    columns = list(zip(table.columns, *table.rows, strict=True))
    widths = [max(map(cell_len, column)) for column in columns]
    return widths, [max(cell_len(part) for cell in column for part in parts(cell)) for column in columns]


def _widths(table: Table, available: int) -> list[int]:
    """What the widest entry of each column needs. Where the sum is too wide the column with most room to break gives
    way, at blanks and never within an interval; where that does not do, the widest.
    """
    widths, whole = _needed(table)
    available -= _GAP * (len(widths) - 1)
    while sum(widths) > available and max(widths) > _NARROWEST:
        room = [width - least for width, least in zip(widths, whole, strict=True)]
        chosen = room.index(max(room)) if max(room) > 0 else widths.index(max(widths))
        widths[chosen] -= 1
    return widths


def style_of(cell: str) -> str:
    """Of a reading in a table."""
    return "green" if cell in GOOD else "red" if cell in BAD else "dim" if cell == UNCLEAR else ""


def plain(text: str, console: Console) -> str:
    """`text` without control characters; in a console without Unicode, what comes closest."""
    text = "".join(c if c.isprintable() else " " for c in text)
    if not console.encoding.startswith("utf"):
        text = text.translate(_ASCII).encode(console.encoding, "replace").decode(console.encoding)
    return text


def _text(text: str, console: Console, style: str = "") -> Text:
    """`text` as it is, without markup."""
    return Text(plain(text, console), style=style)
