"""`harness score`: win rates, intervals and tests of verdicts that are there already."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cli._arguments import add_json, add_verb
from harness.cli._protocols import EXPLAINED, add_protocol, score_run
from sami_train.errors import UserError

if TYPE_CHECKING:
    from harness.cli._arguments import Subparsers
    from harness.verdict_files import VerdictTable


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "score",
        execute,
        usage="RUN [options] | --verdicts FILE ... [options]",
        help="score a run's verdicts again, under any protocol, or those in files",
        description="Score verdicts that are there. Of a run, finished or not: all its figures from its rows, under any "
        "protocol; no model is loaded, nothing is judged again, nothing is written. Of files: counts, the win rate under "
        "three rules for ties with its interval, what "
        "length has to do with it, and with --against the paired difference between two files on the same queries. "
        "The format 'sami' is a JSON list of rows [win, length of the baseline's answer, length of the test model's "
        "answer], a row for each query; null is no verdict. The format 'harness' is a run's verdicts/**/*.jsonl.",
        epilog=f"""\
{EXPLAINED}
examples:
  harness score runs/quickstart
  harness score quickstart --protocol all
  harness score --verdicts win_rates/*.json --lengths
  harness score --verdicts new.json --against old.json --paired --json
  harness score --verdicts runs/mine/verdicts/gpt/sami-vs-base.jsonl \\
      --format harness""",
    )
    parser.add_argument("run", nargs="?", metavar="RUN", help="a run's folder, or its name below runs/")
    add_protocol(parser)
    parser.add_argument(
        "--verdicts", nargs="+", type=Path, default=[], metavar="FILE", help="files of verdicts, each scored by itself"
    )
    parser.add_argument(
        "--format", choices=("sami", "harness"), default="sami", metavar="FORMAT", help="sami (default) or harness"
    )
    parser.add_argument(
        "--lengths", action="store_true", help="add the length-stratified and the length-controlled (GLM) win rate"
    )
    parser.add_argument(
        "--against",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="one file, or as many as --verdicts: subtract its win rate, query by query",
    )
    parser.add_argument("--paired", action="store_true", help="the same queries in both: what --against always means")
    parser.add_argument(
        "--level", type=_level, default=0.95, metavar="L", help="confidence level of the intervals (default: 0.95)"
    )
    add_json(parser)


def execute(options: argparse.Namespace) -> int:
    """Score and print."""
    from harness.cli._screen import print_json
    from harness.verdict_files import figures, paired, read_verdicts

    if options.run:
        if options.verdicts:
            raise UserError("score a run or files: leave out the run, or leave out --verdicts")
        if options.lengths or options.against or options.paired or options.format != "sami" or options.level != 0.95:
            raise UserError(
                "--lengths, --against, --paired, --format and --level are for files (--verdicts); a run's specification says its "
                "level, and 'harness compare' puts two runs side by side"
            )
        return score_run(options.run, options.protocol, as_json=options.json)
    if not options.verdicts:
        raise UserError("name what to score: harness score RUN, or harness score --verdicts FILE ...")
    if options.protocol != "corrected":
        raise UserError("--protocol is for runs; files are scored under the three rules for ties")
    if options.paired and not options.against:
        raise UserError("--paired compares two files; name the other one with --against FILE")
    if options.against and options.lengths:
        raise UserError("--lengths belongs to files scored by themselves; leave it out, or leave out --against")
    tables = _read(options.verdicts, options.format, read_verdicts)
    found: dict[str, Any] = {"format": options.format, "level": options.level}
    if options.against:
        found["paired"] = paired(tables, _read(options.against, options.format, read_verdicts), level=options.level)
    else:
        found["tie_rule"] = "half"
        found["files"] = [figures(table, level=options.level, lengths=options.lengths) for table in tables]
    if options.json:
        print_json(found)
    elif options.against:
        _show_paired(found["paired"], options.level)
    else:
        _show_figures(found["files"], options.level)
    return 0


def _read(paths: list[Path], format: str, read: Any) -> list[VerdictTable]:
    tables = [table for path in paths for table in read(path.expanduser(), format)]
    if not tables:
        raise UserError(f"{paths[0]}: there are no verdicts on two models in it; name another file")
    return tables


def _level(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(
            f"'{text}' is no confidence level; write a number between 0 and 1, such as 0.95"
        )
    return value


# --- The screen


def _show_figures(files: list[dict[str, Any]], level: float) -> None:
    from harness.cli._screen import console, table

    screen = console()
    rows = [
        (
            interval(row["win_rate"], row["ci_low"], row["ci_high"]),
            f"{row['n']}/{row['n_expected']}",
            f"{row['wins']}/{row['ties']}/{row['losses']}",
            *(percent((row["tie_rules"][rule] or {}).get("rate")) for rule in ("drop", "loss")),
            _called(row),
        )
        for row in files
    ]
    columns = ("win rate", "n", "W/T/L", "ties out", "ties lost", "file")
    screen.print(table(columns, rows, right=columns[:-1]))
    with_lengths = [row for row in files if row["lengths"]]
    controlled = any("length_glm" in row["lengths"] for row in with_lengths)
    if with_lengths:
        columns = ("tokens", "Spearman", *(("stratified", "at equal lengths") if controlled else ()), "file")
        shown = []
        for row in with_lengths:
            found = row["lengths"]
            rates = [found.get(name) or {} for name in ("length_stratified", "length_glm")] if controlled else []
            shown.append(
                (
                    f"{found['mean_test']:.0f} vs {found['mean_baseline']:.0f}",
                    "–" if found["spearman"] is None else f"{found['spearman']:+.2f}",
                    *(interval(r.get("rate"), r.get("ci_low"), r.get("ci_high")) for r in rates),
                    _called(row),
                )
            )
        screen.print()
        screen.print(table(columns, shown, right=columns[:-1]))
    _show_notes(screen, [(_called(row), note) for row in files for note in row["notes"]])
    screen.print()
    screen.print(
        f"Win rates in percent with {level:.0%} intervals, a tie is half a win; n: scored of all. W/T/L: won, tied, lost. "
        "tokens: mean length of the test model's answers against the baseline's; Spearman: of the score with the "
        "difference."
        + (
            " stratified: mean of the win rates where its answer is longer and where it is not; at equal lengths: logistic fit."
            if controlled
            else ""
        ),
        markup=False,
    )


def _show_paired(rows: list[dict[str, Any]], level: float) -> None:
    from harness.cli._screen import console, table

    screen = console()
    shown = [
        (
            interval(row["difference"], row["ci_low"], row["ci_high"], sign=True),
            str(row["n"]),
            f"{percent(row['win_rate'])} vs {percent(row['win_rate_against'])}",
            *(_p(row[name]) for name in ("p_value", "p_holm", "mcnemar_p")),
            interval(None, row["newcombe_low"], row["newcombe_high"], sign=True),
            _called(row),
        )
        for row in rows
    ]
    columns = ("difference", "n", "win rates", "p", "Holm", "McNemar", "Newcombe", "file")
    screen.print(table(columns, shown, right=columns[:-1]))
    _show_notes(screen, [(_called(row), note) for row in rows for note in row["notes"]])
    screen.print()
    others = dict.fromkeys(row.get("against_about") or Path(row["against"]).name for row in rows)
    screen.print(
        f"Points by which the win rate of a file is above that of {', '.join(others)}, query by query, with {level:.0%} "
        f"intervals ({rows[0]['ci_method']}); p: sign flips, Holm: adjusted for {len(rows)} in this table.",
        markup=False,
    )


def _show_notes(screen: Any, notes: list[tuple[str, str]]) -> None:
    if notes:
        screen.print()
    for place, note in notes:
        screen.print(f"{place}: {note}", markup=False)


def _called(row: dict[str, Any]) -> str:
    name = Path(row["file"]).name
    return f"{name}: {row['about']}" if row.get("about") else name


def _p(value: float | None) -> str:
    return "–" if value is None else "<0.0001" if value < 0.0001 else f"{value:.4f}"


def percent(value: float | None) -> str:
    """A rate in percent; a dash for none."""
    return "–" if value is None else f"{100 * value:.1f}"


def interval(value: float | None, low: float | None, high: float | None, *, sign: bool = False) -> str:
    """`60.4 [55.1, 65.5]`; a dash where there is nothing."""
    if low is None or high is None:
        return percent(value)
    mark = "+.1f" if sign else ".1f"
    shown = f"[{100 * low:{mark}}, {100 * high:{mark}}]"
    return shown if value is None else f"{100 * value:{mark}} {shown}"
