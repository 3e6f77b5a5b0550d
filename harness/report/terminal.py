"""The report in a terminal; made for 100 columns, and never wider than the console."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from harness.report.content import BAD, GOOD, UNCLEAR, Section, Table, comparison_sections, sections


def print_results(results: dict[str, Any], console: Console) -> None:
    """Print the report of a run."""
    about = [results.get("name") or "run", results.get("description") or ""]
    console.print(_text(" — ".join(part for part in about if part), "bold"))
    for section in sections(results):
        _print_section(section, console)


def print_comparison(comparison: dict[str, Any], console: Console) -> None:
    """Print what `harness.compare.compare` found."""
    for section in comparison_sections(comparison):
        _print_section(section, console)


def _print_section(section: Section, console: Console) -> None:
    console.print()
    console.print(_text(section.title, "bold cyan"))
    for sentence in section.sentences:
        _print_item(sentence, console)
    for table in section.tables:
        if table.heading:
            console.print()
            console.print(_text(f" {table.heading}", "italic"))
        console.print(_rich_table(table))
    for remark in section.remarks:
        _print_item(remark, console, style="dim")


def _print_item(sentence: str, console: Console, style: str = "") -> None:
    item = RichTable.grid(padding=(0, 1))
    item.add_column(width=1)
    item.add_column(overflow="fold")
    item.add_row(_text("·", "dim"), _text(sentence, style))
    console.print(Padding(item, (0, 0, 0, 1)))


def _rich_table(table: Table) -> RichTable:
    found = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="bold", show_edge=False)
    for column in table.columns:
        right = column in table.numbers
        found.add_column(_text(column), justify="right" if right else "left", overflow="fold")
    for row in table.rows:
        found.add_row(*(_text(cell, _style(cell)) for cell in row))
    return found


def _style(cell: str) -> str:
    return "green" if cell in GOOD else "red" if cell in BAD else "dim" if cell == UNCLEAR else ""


def _text(text: str, style: str = "") -> Text:
    """`text` as it is: no markup, no control characters."""
    return Text("".join(c if c.isprintable() else " " for c in text), style=style)
