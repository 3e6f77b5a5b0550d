"""The first screen after a run: at most `LINES` lines, whatever the width. Everything else is behind `--all`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from harness.report.findings import findings
from harness.report.flags import flags, looks
from harness.report.headline import headline, headline_legend, marks, models_shown, not_trusted
from harness.report.terminal import plain, style_of, wrapped
from harness.report.words import KEPT, NONE, Results, counted, rows_of, split_words

LINES = 23
"""One less than the rows of the smallest usual terminal: the prompt needs one."""
MOST_ROWS = 6
MOST_FLAG_LINES = 6
MOST_MODELS = 4
COLUMNS = ("comparison", "principles", "win rate", "like these", "p Holm", "reading")
_NARROWEST = 8
_GAP = "  "


def print_first_screen(results: Results, console: Console, *, report: Path, note: str = "") -> None:
    """Print the headline, the red flags, three responses side by side and where to look next.

    Raises nothing for older results: parts about which they say nothing are left out.
    """
    width = console.width
    about = " — ".join(str(part) for part in (results.get("name") or "run", results.get("description")) if part)
    top = [
        Text(clipped(about, width, console), "bold"),
        *_flagged(looks(results), console, 2),
        *_win_rates(results, console),
    ]
    last = [Text(plain(f"all tables: --all; report: {report}", console))]
    last += [Text(plain(note, console), "dim")] if note else []
    examples = _examples(results, console)
    least = len(examples[0]) if examples else 0
    room = min(MOST_FLAG_LINES, LINES - len(top) - len(last) - least)
    top += _flagged(flags(results, ": hidden, --all shows it"), console, room)
    for example in examples:
        if len(top) + len(example) + len(last) <= LINES:
            top += example
    for line in top:
        console.print(line, no_wrap=True, overflow="crop", crop=True)
    for line in last:
        console.print(line, soft_wrap=True)


def clipped(text: object, width: int, console: Console) -> str:
    """`text` on one line of at most `width` cells, without control characters; "…" where it is cut."""
    line = plain(" ".join(str(text).split()), console)
    if cell_len(line) <= width:
        return line
    dots = plain("…", console)
    while line and cell_len(line + dots) > width:
        line = line[: -max(1, (cell_len(line + dots) - width) // 2)]
    return line.rstrip() + dots


def _win_rates(results: Results, console: Console) -> list[Text]:
    tables = headline(results)
    if not tables:
        said = not_trusted(results).sentences or findings(results)
        return [Text(line) for _, line in _packed(said, console.width, MOST_ROWS, " ", console)]
    lines: list[str | tuple[str, ...]] = []
    for table in tables:
        lines += [table.heading] if len(tables) > 1 else []
        lines += [row[: len(COLUMNS)] for row in table.rows]
    shown = lines[: MOST_ROWS if len(lines) > MOST_ROWS else None]
    if isinstance(shown[-1], str):
        shown.pop()
    left = sum(isinstance(line, tuple) for line in lines[len(shown) :])
    legend = [f"and {counted(left, 'more row')}: --all"] if left else []
    legend += headline_legend(results, tables)
    head = tables[0].heading.split(", ")[0] if len(tables) == 1 else COLUMNS[0]
    found = _aligned([(head, *COLUMNS[1:]), *shown], tables[0].numbers, console)
    return found + [Text(line, "dim") for _, line in _packed(legend, console.width, 2, "; ", console)]


def _aligned(lines: Sequence[str | tuple[str, ...]], numbers: Collection[str], console: Console) -> list[Text]:
    """Rows under the names of their columns, headings between them; the first column gives way to the others."""
    names, *rows = [line for line in lines if isinstance(line, tuple)]
    kept = [i for i, name in enumerate(COLUMNS) if i == 0 or name in KEPT or any(row[i] != NONE for row in rows)]
    widths = [max(cell_len(plain(row[i], console)) for row in (names, *rows)) for i in kept]
    widths[0] = max(_NARROWEST, min(widths[0], console.width - sum(widths[1:]) - len(_GAP) * (len(widths) - 1)))
    found = []
    for line in lines:
        if isinstance(line, str):
            found.append(Text(clipped(line, console.width, console), "italic"))
            continue
        text = Text(style="bold" if line is names else "")
        for i, width in zip(kept, widths, strict=True):
            cell = clipped(line[i], width, console)
            blank = " " * (width - cell_len(cell))
            text.append(_GAP if i else "")
            text.append(blank + cell if COLUMNS[i] in numbers else cell + blank, style_of(line[i]))
        text.rstrip()
        found.append(text)
    return found


def _flagged(clauses: Sequence[str], console: Console, room: int) -> list[Text]:
    lines = _packed(clauses, console.width - 2, room, " · ", console)
    return [Text.assemble(("! " if first else "  ", "bold red"), line) for first, line in lines]


def _packed(clauses: Sequence[str], width: int, most: int, between: str, console: Console) -> list[tuple[bool, str]]:
    """Clauses on at most `most` lines, with whether a clause begins there; what does not fit is counted.

    Short clauses share a line. A long one goes on in the next line, and is cut there.
    """
    between = plain(between, console)
    blocks: list[tuple[int, list[str]]] = []
    for clause in (plain(" ".join(clause.split()), console) for clause in clauses):
        first, *rest = wrapped(clause, width)
        lines = [clipped(line, width, console) for line in (first, " ".join(rest)) if line]
        count, before = blocks[-1] if blocks else (0, [])
        if len(before) == len(lines) == 1 and cell_len(before[0] + between + lines[0]) <= width:
            blocks[-1] = (count + 1, [before[0] + between + lines[0]])
        else:
            blocks.append((1, lines))
    found: list[tuple[bool, str]] = []
    left = len(clauses)
    for count, lines in blocks:
        if len(found) + len(lines) + (left > count) > most:
            break
        found += [(place == 0, line) for place, line in enumerate(lines)]
        left -= count
    return [*found, (True, f"and {left} more: --all")] if left and most > 0 else found


def _examples(results: Results, console: Console) -> list[list[Text]]:
    """Each: the principle with its query, then a line for every model."""
    found = []
    names = models_shown(results)
    for example in rows_of(results, "examples"):
        responses = example.get("responses") or {}
        there = [name for name in [*names, *responses] if name in responses]
        there = list(dict.fromkeys(there))[:MOST_MODELS]
        margin = min(16, max((cell_len(clipped(name, 16, console)) for name in there), default=0))
        constitution = " ".join(map(str, example.get("constitution") or ()))
        lead = f"{split_words(str(example.get('split')))} principle: {constitution}"
        lead = clipped(lead, console.width * 6 // 10, console) + " "
        query = clipped(f"query: {example.get('query')}", max(0, console.width - cell_len(lead)), console)
        lines = [Text.assemble((lead, "bold"), (query, "dim"))]
        for name in there:
            response = responses[name]
            short = clipped(name, margin, console)
            start = "  " + short + " " * (margin - cell_len(short)) + "  "
            wrong = plain(f"[{said}] ", console) if (said := marks(response)) else ""
            room = console.width - cell_len(start + wrong)
            text = clipped(response.get("text") or "(empty)", max(0, room), console)
            lines.append(Text.assemble(start, (wrong, "yellow"), text))
        found.append(lines)
    return found
