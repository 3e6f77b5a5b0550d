"""What a report opens with: win rates by trusted judges over all tasks, the red flags, responses to read."""

from __future__ import annotations

from harness.report.readings import family_size, legend, level_of, reading
from harness.report.trust import by_judges, judges_of, trusted
from harness.report.words import (
    NONE,
    Results,
    Row,
    Section,
    Table,
    counted,
    grouped,
    interval_of,
    p_value,
    percent,
    pooled_rows,
    rate,
    rows_of,
    split_words,
)


def headline(results: Results) -> list[Table]:
    """A table for each trusted judge and principle set, a row for each comparison and split over all tasks."""
    believed = [judge for judge in judges_of(results) if trusted(results, judge)]
    groups = grouped(rows_of(by_judges(results, believed), "comparisons"), "judge", "principle_set")
    tables = []
    for (judge, principle_set), rows in groups.items():
        pooled = [row for pair in grouped(rows, "a", "b").values() for row in pooled_rows(pair)]
        several = len({row["task"] for row in pooled}) > 1
        columns = ("comparison", "principles", "win rate", "like these", "p Holm", "reading", "relevance", "n")
        cells = [
            (
                f"{row['a']} vs {row['b']}" + (f" ({row['task']})" if several else ""),
                _principles(row),
                rate(row.get("win_rate"), *interval_of(row)),
                like_these(row),
                p_value(row.get("p_holm")),
                reading(row, level_of(results)),
                relevance_of_both(row),
                str(row.get("n")),
            )
            for row in pooled
        ]
        numbers = frozenset((*columns[2:5], *columns[6:]))
        tables.append(Table(columns, cells, f"judge {judge}, principles {principle_set}", numbers))
    return tables


def headline_legend(results: Results, tables: list[Table]) -> list[str]:
    """What the columns and marks of the headline mean, as far as they occur."""
    found = ["win rate of the first"] if tables else []
    if any(row[table.columns.index("like these")] != NONE for table in tables for row in table.rows):
        found.append("like these: for new principles")
    return found + headline_marks(results, tables)


def headline_marks(results: Results, tables: list[Table]) -> list[str]:
    """What the readings of the headline mean, as far as they occur."""
    marks = [row[table.columns.index("reading")] for table in tables for row in table.rows]
    rows = [row for row in rows_of(results, "comparisons") if trusted(results, str(row.get("judge")))]
    groups = grouped(rows, "judge", "principle_set", "a", "b").values()
    tested = [row for group in groups for row in pooled_rows(group) if row.get("p_value") is not None]
    return legend(marks, [family_size(results, "comparisons", row) for row in tested])


def _principles(row: Row) -> str:
    n = (row.get("principles_ci") or {}).get("n_principles") or len(row.get("by_principle") or ())
    return f"{n} {split_words(row['split'])}" if n else split_words(row["split"])


def like_these(row: Row) -> str:
    """The interval for principles like these: ``[39.3, 64.6]``."""
    found = row.get("principles_ci") or {}
    low, high = found.get("low"), found.get("high")
    return NONE if low is None or high is None else f"[{100 * low:.1f}, {100 * high:.1f}]"


def relevance_of_both(row: Row) -> str:
    """``54 / 67%``, of a and of b; ``54% / –`` where another model scored b, so that the two cannot be compared."""
    both = row.get("relevance") or {}
    of_a, of_b = (both.get(side) or {} for side in "ab")
    a, b = of_a.get("relevance"), of_b.get("relevance")
    if a is None and b is None:
        return NONE
    if a is not None and of_a.get("scorer") != of_b.get("scorer"):
        return f"{percent(a, 0)} / {NONE}"
    return f"{percent(a, 0).rstrip('%')} / {percent(b, 0)}"


def models_shown(results: Results) -> list[str]:
    """The models, those that are compared with others first."""
    rows = rows_of(results, "comparisons")
    names = [row[place] for place in "ab" for row in rows]
    return list(dict.fromkeys([*names, *(results.get("models") or {})]))


def marks(response: Row) -> str:
    """What is wrong with one response: ``copies 64%, cut``."""
    copied = response.get("copied") or 0.0
    found = [f"copies {percent(copied, 0)}"] if copied else []
    found += [word for key, word in (("ran_on", "ran on"), ("cut", "cut")) if response.get(key)]
    return ", ".join(found)


def not_trusted(results: Results) -> Section:
    """One line where no judge is trusted."""
    if rows_of(results, "comparisons") and not headline(results):
        names = counted(len(judges_of(results)), "judge")
        return Section("Win rates", (f"No win rate to show: of {names} none is shown to be better than a coin.",))
    return Section("Win rates")
