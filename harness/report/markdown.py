"""The report as Markdown, for report.md. Text from specifications and models is shown, never interpreted."""

from __future__ import annotations

import re
from typing import Any

from harness.report.content import sections
from harness.report.words import Section, Table

_INTERVAL = r"\[[+-]?[\d.]+, [+-]?[\d.]+\](?![(\[:])"
_SPECIAL = re.compile(rf"(?!{_INTERVAL})\[|[\\`*_{{}}<>&|#~$]")
"""What could mean something; not the bracket of an interval, and no closing one, which means nothing on its own."""
_LIST_START = re.compile(r"^(\d*)([-+=.)])(?=\s|$|\2)")
"""A list's item, a rule or an underline, where a line begins with it; not the sign of a number."""
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


def render_markdown(results: dict[str, Any]) -> str:
    """The report of a run, with the same content as in the terminal."""
    lines = [f"# {escape(str(results.get('name', 'run')))}", ""]
    if results.get("description"):
        lines += [escape(str(results["description"])), ""]
    for section in sections(results):
        lines += _section(section)
    made = [
        f"{what}: {escape(str(results[key]))}"
        for what, key in (
            ("Harness", "harness_version"),
            ("created", "created"),
            ("specification", "spec_fingerprint"),
        )
        if results.get(key)
    ]
    return "\n".join([*lines, *(["; ".join(made) + ".", ""] if made else [])])


def escape(text: str) -> str:
    """`text` as one line that Markdown and HTML show as it is."""
    line = _SPECIAL.sub(lambda m: _ENTITIES.get(m.group(), f"\\{m.group()}"), " ".join(text.split()))
    return _LIST_START.sub(r"\1\\\2", line)


def _section(section: Section) -> list[str]:
    lines = [f"## {section.title}", ""]
    lines += [f"- {escape(sentence)}" for sentence in section.sentences]
    lines += [""] if section.sentences else []
    for table in section.tables:
        lines += _table(table)
    for remark in section.remarks:
        lines += [escape(remark), ""]
    return lines


def _table(table: Table) -> list[str]:
    heading = [f"**{escape(table.heading)}**", ""] if table.heading else []
    rule = ["---:" if column in table.numbers else "---" for column in table.columns]
    rows = [table.columns, *table.rows]
    head, *body = ["| " + " | ".join(escape(cell) for cell in row) + " |" for row in rows]
    return [*heading, head, f"| {' | '.join(rule)} |", *body, ""]
