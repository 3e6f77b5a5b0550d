"""The words and figures of a report: tables and sections of plain text, and how a number is said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

Results = dict[str, Any]
Row = dict[str, Any]
NONE = "–"
KEPT = ("reading",)


@dataclass(frozen=True)
class Table:
    """Rows of text under `columns`; those in `numbers` are set flush right."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    heading: str = ""
    numbers: frozenset[str] = frozenset()
    beside: bool = False
    """Whether splits stand beside each other where there is room (`side_by_side`)."""

    def without_empty(self) -> Table:
        """The table without the columns that say nothing in any row; a reading says something."""
        said = {name for name, *cells in zip(self.columns, *self.rows, strict=True) if {*cells} - {NONE, ""}}
        return self.without(*(set(self.columns) - said - set(KEPT)))

    def without(self, *names: str) -> Table:
        kept = [i for i, name in enumerate(self.columns) if name not in names]
        rows = [tuple(row[i] for i in kept) for row in self.rows]
        return replace(self, columns=tuple(self.columns[i] for i in kept), rows=rows)

    def side_by_side(self) -> Table:
        """The table with the splits beside each other; the columns before "split" are the key of a row.

        n is said once where it is the same for all splits.
        """
        if not self.beside or not self.rows:
            return self
        at = self.columns.index("split")
        cells = {(row[:at], row[at]): row[at + 1 :] for row in self.rows}
        keys, splits = (list(dict.fromkeys(part)) for part in zip(*cells, strict=True))
        names = self.columns[at + 1 :]
        found = {
            f"{split}: {name}": [cells[key, split][i] if (key, split) in cells else NONE for key in keys]
            for split in splits
            for i, name in enumerate(names)
        }
        counts = [found.pop(name) for name in list(found) if name.endswith(": n")]
        if counts and all(count == counts[0] for count in counts):
            found = {"n": counts[0], **found}
        elif counts:
            found = {"n": ["/".join(of_key) for of_key in zip(*counts, strict=True)], **found}
        numbers = {name for name in found if name.split(": ")[-1] in self.numbers}
        columns = (*self.columns[:at], *found)
        rows = [(*key, *(column[i] for column in found.values())) for i, key in enumerate(keys)]
        return Table(columns, rows, self.heading, self.numbers | numbers)


@dataclass(frozen=True)
class Section:
    """A part of the report: sentences, then tables, then remarks. Without sentences and tables it is left out."""

    title: str
    sentences: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    remarks: tuple[str, ...] = ()


def percent(value: float | None, digits: int = 1) -> str:
    return NONE if value is None else f"{100 * value:.{digits}f}%"


def rate(value: float | None, low: float | None, high: float | None, digits: int = 1) -> str:
    """``58.3% [52.1, 64.3]``"""
    if value is None or low is None or high is None:
        return percent(value, digits)
    return f"{percent(value, digits)} [{100 * low:.{digits}f}, {100 * high:.{digits}f}]"


def points(value: float | None, low: float | None, high: float | None) -> str:
    """A difference of two rates in percentage points: ``+7.3 [-1.0, +15.2]``"""
    if value is None or low is None or high is None:
        return NONE
    return f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def number(value: float | None, interval: Sequence[float | None] | None = None, digits: int = 3) -> str:
    """``0.693 [0.650, 0.731]``"""
    if value is None:
        return NONE
    limits = [x for x in interval or () if x is not None]
    return f"{value:.{digits}f}" + (f" [{', '.join(f'{x:.{digits}f}' for x in limits)}]" if len(limits) == 2 else "")


def p_value(value: float | None) -> str:
    return NONE if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def split_words(split: str) -> str:
    return "held-out" if split == "held_out" else split


def versus(row: Row) -> str:
    return f"{row.get('a')} against {row.get('b')}"


def rows_of(results: Results, name: str) -> list[Row]:
    return list(results.get(name) or ())


def counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what[:-1]}ies" if what.endswith("y") else f"{n} {what}s"


def joined(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def pooled_rows(rows: Iterable[Row]) -> list[Row]:
    """For every split (and principle) the row that pools all tasks; where there is none, the rows of the tasks."""
    found = []
    for group in grouped(rows, "split", "principle").values():
        found += [row for row in group if row.get("task") == "all"] or group
    return found


def grouped(rows: Iterable[Row], *fields: str) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(field) for field in fields), []).append(row)
    return groups


def interval_of(row: Row) -> tuple[float | None, float | None]:
    return row.get("ci_low"), row.get("ci_high")


def notes_of(rows: Iterable[Row], *fields: str, most: int = 6) -> list[str]:
    """The notes on rows, each with what the row is about."""
    noted = [row for row in rows if row.get("note")]
    found = [f"{', '.join(split_words(str(row[f])) for f in fields)}: {row['note']}" for row in noted[:most]]
    return found + ([f"And {len(noted) - most} more rows with such a note."] if len(noted) > most else [])


def judge_words(results: Results, name: str) -> str:
    """The judge's name and how far to trust it."""
    card = (results.get("judges") or {}).get(name) or {}
    if card.get("kind") == "verifiable":
        return f"{name} (a program)"
    kept = card.get("position_consistency")
    return f"{name} (same verdict in both orders: {'unknown' if kept is None else percent(kept, 0)})"


def limits(row: Row, key: str) -> tuple[float | None, float | None]:
    low, high = row.get(key) or (None, None)
    return low, high


def moved(value: float | None) -> str:
    """A step from one protocol to the next, in points: ``+3.1``; nothing where it moves nothing."""
    return NONE if value is None else f"{100 * value:+.1f}" if abs(value) >= 0.0005 else "0"


def tasks_last(rows: Iterable[Row]) -> list[Row]:
    """Rows with those of all tasks first, else in their order."""
    return sorted(rows, key=lambda row: row.get("task") != "all")
