"""The report's tables of what the responses are, and of win rates with copying and style taken out."""

from __future__ import annotations

from harness.report.flags import WRONG
from harness.report.win_rates import RELEVANCE
from harness.report.words import (
    NONE,
    Results,
    Row,
    Section,
    Table,
    grouped,
    interval_of,
    number,
    percent,
    points,
    pooled_rows,
    rate,
    rows_of,
    split_words,
    tasks_last,
    versus,
)


def responses_section(results: Results) -> Section:
    """What the responses are, whatever a judge says of them."""
    shares = ("copied", "ran on", "cut", "empty", "repeat query", "same text", "shortened")
    columns = ("model", "task", "split", "n", *shares, "words", "relevance")
    tables = []
    for (principle_set,), group in grouped(rows_of(results, "responses"), "principle_set").items():
        cells = [
            (
                row["model"],
                row["task"],
                split_words(row["split"]),
                str(row.get("n")),
                *(percent(row.get(key), 0) for key in WRONG),
                number(row.get("words"), digits=0),
                rate(of.get("relevance"), *interval_of(of), digits=0),
            )
            for of_model in grouped(group, "model").values()
            for row in tasks_last(of_model)
            if (of := row.get("relevance") or {}) is not None
        ]
        heading = f"principles: {principle_set}"
        tables.append(Table(columns, cells, heading, frozenset(columns[3:])).without_empty())
    same = [
        (versus(row), row["task"], split_words(row["split"]), percent(share, 0), _relevance_apart(row))
        for group in grouped(
            tasks_last(rows_of(results, "comparisons")), "a", "b", "principle_set", "task", "split"
        ).values()
        if (row := max(group, key=lambda one: one.get("n") or 0))
        and (share := (row.get("responses") or {}).get("identical")) is not None
    ]
    names = ("comparison", "task", "split", "identical", "relevance of a - of b, points")
    if same:
        tables.append(Table(names, same, "both models", frozenset(names[3:])).without_empty())
    scorers = sorted({of["scorer"] for row in rows_of(results, "responses") if (of := row.get("relevance"))})
    measured = any("same_text" in row for row in rows_of(results, "responses"))  # not in older results
    again = "same text: another query got it too; " if measured else ""
    remarks = (
        "Shares of responses: copied: four words in a row of the constitution; ran on: went on with the next item of the prompt or "
        "the next turn, and was cut there; cut: at the token limit; repeat query: half the words are the query's; "
        f"{again}shortened: the query did not fit the prompt and was cut; identical: both models wrote the same.",
        *([f"{RELEVANCE} Scorer: {', '.join(scorers)}."] if scorers else []),
    )
    return Section("What the responses are", (), tuple(tables), remarks)


def _relevance_apart(row: Row) -> str:
    of = row.get("relevance") or {}
    return points(*(of.get(key) for key in ("difference", "difference_low", "difference_high")))


ADJUSTED = ("echo_adjusted", "style_adjusted", "relevance_adjusted")


def adjusted_section(results: Results) -> Section:
    """Win rates with copied text left in, and where both responses are alike in it or in style."""
    columns = (
        "comparison",
        "judge",
        "split",
        "win rate",
        "with copied text",
        "as much copied",
        "same style",
        "as relevant",
    )
    rows = [
        row
        for group in grouped(rows_of(results, "comparisons"), "a", "b", "principle_set", "judge").values()
        for row in pooled_rows(group)
    ]
    cells = [
        (
            versus(row),
            row["judge"],
            split_words(row["split"]),
            rate(row.get("win_rate"), *interval_of(row)),
            *(_rate_of(row.get(key)) for key in ("whole", *ADJUSTED)),
        )
        for row in rows
    ]
    cells = [row for row in cells if any(cell != NONE for cell in row[4:])]
    if not cells:
        return Section("Copying and style taken out")
    table = Table(columns, cells, numbers=frozenset(columns[3:])).without_empty()
    remarks = [
        "win rate: without text copied from the constitution, where the judge is a program; with copied text: as the responses "
        "are. as much copied: what a logistic regression expects where both copy as much; same style: where both have as many "
        "words, lists, headings and bold words; as relevant: where both depend "
        "as much on their query. Left out where the responses do not permit it."
    ]
    notes = {str(of["note"]) for row in rows for key in ADJUSTED if (of := row.get(key) or {}).get("note")}
    return Section("Copying and style taken out", (), (table,), (*remarks, *sorted(notes)[:1]))


def _rate_of(figure: Row | None) -> str:
    figure = figure or {}
    return rate(figure.get("win_rate"), *interval_of(figure))
