"""The report as Markdown, for report.md. Text from specifications and models is shown, never interpreted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from harness.report.content import (
    cost_section,
    footnotes_section,
    models_section,
    not_counted_section,
    training_section,
)
from harness.report.findings import findings
from harness.report.flags import flags
from harness.report.headline import headline, headline_marks, marks, models_shown, not_trusted
from harness.report.judges import corrections_section, judges_section, rank_stability_section
from harness.report.looks import looks_said
from harness.report.responses import adjusted_section, responses_section
from harness.report.trust import by_judges, judges_of, trusted
from harness.report.win_rates import (
    LIKE_THESE,
    RELEVANCE,
    by_principle_section,
    gaps_section,
    information_section,
    leaderboards_section,
    lengths_section,
    steerability_section,
    swapped_section,
    win_rates_section,
)
from harness.report.words import Results, Row, Section, Table, grouped, pooled_rows, rows_of, split_words

_INTERVAL = r"\[[+-]?[\d.]+, [+-]?[\d.]+\](?![(\[:])"
_SPECIAL = re.compile(rf"(?!{_INTERVAL})\[|[\\`*_{{}}<>&|#~$]")
"""What could mean something; not the bracket of an interval, and no closing one, which means nothing on its own."""
_ADDRESSES = (
    (re.compile(r"(?i)\b(https?|ftp|mailto|xmpp):"), r"\1\\:"),
    (re.compile(r"(?i)\b(www)\."), r"\1\\."),
    (re.compile(r"(?<=[\w.+-])@(?=[\w\\.-]*\.\w)"), "@<!-- -->"),
)
"""Bare addresses, which GitHub's Markdown makes links of, and how each is taken apart: an escaped @ would still be one."""
_LIST_START = re.compile(r"^(\d*)([-+=.)])(?=\s|$|\2)")
"""A list's item, a rule or an underline, where a line begins with it; not the sign of a number."""
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
_LEFT_OUT = ("W/T/L", "p")
"""Columns of the win rates that would make them too wide with learned and held-out beside each other."""

DETAILS: tuple[Callable[[Results], Section], ...] = (
    by_principle_section,
    leaderboards_section,
    swapped_section,
    lengths_section,
    information_section,
    training_section,
    judges_section,
    corrections_section,
    rank_stability_section,
    models_section,
    cost_section,
    footnotes_section,
)


def render_markdown(results: Results) -> str:
    """The report of a run: what is on the first screen, the tables of trusted judges, and folded all else."""
    lines = [f"# {escape(str(results.get('name', 'run')))}", ""]
    if results.get("description"):
        lines += [escape(str(results["description"])), ""]
    believed = by_judges(results, [judge for judge in judges_of(results) if trusted(results, judge)])
    pooled = _pooled(believed)
    lines += [*_headline(results), *_examples(results)]
    for section in (
        not_counted_section(results),
        win_rates_section(believed),
        responses_section(pooled),
        adjusted_section(believed),
        gaps_section(pooled),
        steerability_section(pooled),
    ):
        lines += _section(section)
    for judge in judges_of(results):
        if not trusted(results, judge):
            lines += _fold(f"Judge {judge}", _of_judge(by_judges(results, [judge])))
    lines += _fold(
        "Single tasks",
        [make(_single_tasks(believed)) for make in (responses_section, gaps_section, steerability_section)],
    )
    for make in DETAILS:
        section = make(results)
        lines += _fold(section.title, [section])
    made = [
        f"{what}: {escape(str(results[key]))}"
        for what, key in (
            ("Harness", "harness_version"),
            ("created", "created"),
            ("specification", "spec_fingerprint"),
        )
        if results.get(key)
    ]
    return "\n".join([*_remarks_once(lines), *(["; ".join(made) + ".", ""] if made else [])])


def _remarks_once(lines: list[str]) -> list[str]:
    """`lines` without remarks, and the blank line after each, that are there already."""
    found: list[str] = []
    seen: set[str] = set()
    skipped = False
    for line in lines:
        if line in seen or (skipped and not line):
            skipped = True
            continue
        skipped = False
        found.append(line)
        if line and line[0] not in "|*<#-":
            seen.add(line)
    return found


def escape(text: str) -> str:
    """`text` as one line that Markdown and HTML show as it is, without control characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    line = _SPECIAL.sub(lambda m: _ENTITIES.get(m.group(), f"\\{m.group()}"), line)
    for address, apart in _ADDRESSES:
        line = address.sub(apart, line)
    return _LIST_START.sub(r"\1\\\2", line)


def _headline(results: Results) -> list[str]:
    tables = headline(results)
    lines: list[str] = ["## What this run shows", ""]
    before = [f"- {escape(said)}" for said in looks_said(results)]
    lines += [*before, ""] if before else []
    for table in tables:
        lines += _table(table.without_empty())
    if tables:
        said = [f"{'; '.join(found)}."] if (found := headline_marks(results, tables)) else []
        said += ["Win rates are of the first model.", LIKE_THESE]
        said += [RELEVANCE] if any("relevance" in table.without_empty().columns for table in tables) else []
        lines += [line for remark in said for line in (escape(remark), "")]
    lines += [line for said in not_trusted(results).sentences for line in (escape(said), "")]
    items = [
        *looks_said(results),
        *(f"**Red flag:** {escape(flag)}" for flag in flags(results, ": its figures are folded")),
        *findings(results),
    ]
    lines += [f"- {item if item.startswith('**Red flag:** ') else escape(item)}" for item in items]
    return [*lines, ""] if len(lines) > 2 or items else []


def _examples(results: Results) -> list[str]:
    """The whole texts of `examples`, a table for each."""
    lines: list[str] = []
    for example in rows_of(results, "examples"):
        constitution = "; ".join(map(str, example.get("constitution") or ()))
        responses = example.get("responses") or {}
        names = dict.fromkeys(name for name in [*models_shown(results), *responses] if name in responses)
        lines += [f"**{split_words(str(example.get('split')))}: {escape(constitution)}**", ""]
        lines += [f"Query ({escape(str(example.get('task')))}): {_breaks(example.get('query'))}", ""]
        lines += ["| model | response | |", "| --- | --- | --- |"]
        lines += [
            f"| {escape(name)} | {_breaks(responses[name].get('text')) or '(empty)'} | {escape(marks(responses[name]))} |"
            for name in names
        ]
        lines += [""]
    note = "Of the first queries in the run's seeded order, so that nobody picked them; texts may be cut at 600 characters."
    return ["## Responses to read", "", note, "", *lines] if lines else []


def _breaks(text: Any) -> str:
    """`text` with its lines, each shown as it is."""
    return "<br>".join(line for part in str(text or "").splitlines() if (line := escape(part)))


_POOLED = {
    "gaps": ("a", "b", "principle_set", "judge"),
    "steerability": ("model", "principle_set", "judge"),
    "responses": ("model", "principle_set"),
}


def _pooled(results: Results) -> Results:
    """The results without rows of single tasks where another row pools them, win rates aside."""
    kept = {
        name: [row for group in grouped(rows_of(results, name), *key).values() for row in pooled_rows(group)]
        for name, key in _POOLED.items()
    }
    return results | kept


def _single_tasks(results: Results) -> Results:
    """The rows that `_pooled` leaves out."""
    pooled = _pooled(results)
    kept: dict[str, list[Row]] = {
        name: [row for row in rows_of(results, name) if row not in pooled[name]] for name in _POOLED
    }
    return {"level": results.get("level"), "judges": results.get("judges"), **kept}


def _of_judge(results: Results) -> list[Section]:
    return [make(results) for make in (win_rates_section, adjusted_section, gaps_section, steerability_section)]


def _fold(title: str, sections: Iterable[Section]) -> list[str]:
    """Sections behind their title; nothing where none of them says anything."""
    there = [section for section in sections if section.sentences or section.tables]
    lines = [line for section in there for line in _section(section, 3 if len(there) > 1 else 0)]
    if not lines:
        return []
    return ["<details>", f"<summary>{escape(title)}</summary>", "", *lines, "</details>", ""]


def _section(section: Section, level: int = 2) -> list[str]:
    """`level`: of the heading; 0 for none."""
    if not (section.sentences or section.tables):
        return []
    lines = [f"{'#' * level} {section.title}", ""] if level else []
    lines += [f"- {escape(sentence)}" for sentence in section.sentences]
    lines += [""] if section.sentences else []
    for table in section.tables:
        lines += _table(table.without(*_LEFT_OUT).side_by_side() if table.beside else table)
    for remark in section.remarks:
        lines += [escape(remark), ""]
    return lines


def _table(table: Table) -> list[str]:
    heading = [f"**{escape(table.heading)}**", ""] if table.heading else []
    rule = ["---:" if column in table.numbers else "---" for column in table.columns]
    rows = [table.columns, *table.rows]
    head, *body = ["| " + " | ".join(escape(cell) for cell in row) + " |" for row in rows]
    return [*heading, head, f"| {' | '.join(rule)} |", *body, ""]
