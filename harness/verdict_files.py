"""Verdicts that lie in files of their own: what `harness score --verdicts` reads, and the figures it prints.

Two formats. `sami`, that of the SAMI authors' public data: a JSON list with a row `[win, length of the baseline's answer,
length of the test model's answer]` for each query, in the order of the queries; win is 1, 0.5 or 0. `harness`: the verdict
rows of a run, as JSON lines. What has no score is unscored: it is counted, and never taken for a tie.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from harness.counted import Content, counted_in
from harness.score.pairs import Pair, score_by_query, scored_pairs
from harness.stats import (
    ScoreCounts,
    UnusableScores,
    holm,
    length_glm,
    length_stratified,
    length_summary,
    mcnemar_p,
    newcombe_interval,
    paired_difference,
    paired_table,
    sign_flip_p,
    win_rate,
)
from harness.store.files import reading
from sami_train.errors import UserError
from sami_train.text import counted

Format = Literal["sami", "harness"]
FORMATS: tuple[str, ...] = get_args(Format)


class Judged(NamedTuple):
    """What there is on one query; None where the file says nothing."""

    query: str
    """The query's id; of a format without ids the number of the row, from 0."""
    score: float | None
    """1 the test model won, 0.5 a tie, 0 it lost; None: unscored."""
    length_test: float | None
    length_baseline: float | None


@dataclass(frozen=True)
class VerdictTable:
    """The verdicts on one comparison, a row for each query."""

    file: str
    """The file's name as it was given."""
    about: str
    """Which comparison of the file this is; empty for a file that holds one and does not say."""
    rows: tuple[Judged, ...]
    place: tuple[str, ...] = ()
    """Task, principle set and split, where the file says so."""
    content: Content = field(default_factory=Content)

    @property
    def scores(self) -> list[float]:
        """Those of the scored queries."""
        return [row.score for row in self.rows if row.score is not None]

    @property
    def measured(self) -> list[tuple[float, float, float]]:
        """(score, length of the test model's answer, of the baseline's) of the scored queries that have both lengths."""
        return [
            (row.score, row.length_test, row.length_baseline)
            for row in self.rows
            if row.score is not None and row.length_test is not None and row.length_baseline is not None
        ]


# --- Reading


def read_verdicts(path: Path, format: Format = "sami") -> list[VerdictTable]:
    """The comparisons in a file: one in the format `sami`, as many as there are in the format `harness`.

    Raises UserError when the file cannot be read, or a row means nothing (file and row are named).
    """
    return _harness_tables(path) if format == "harness" else [_sami_table(path)]


def _sami_table(path: Path) -> VerdictTable:
    with reading(path):
        data = path.read_bytes()
    try:
        rows = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: a file in the format 'sami' is one JSON list, and this is not JSON ({' '.join(str(error).split())}); "
            "fix it, or add --format harness for verdict rows of a run"
        ) from None
    if not isinstance(rows, list):
        raise UserError(
            f"{path}: a file in the format 'sami' is a JSON list of rows [win, length of the baseline's answer, length of "
            f"the test model's answer], and this is {_kind(rows)}; name another file or --format"
        )
    return VerdictTable(str(path), "", tuple(_sami_row(row, number, path) for number, row in enumerate(rows)))


def _sami_row(row: Any, number: int, path: Path) -> Judged:
    """One row. A bare number is a win without lengths, null no verdict; a single length says nothing about a difference."""
    where = f"{path}: item {number + 1}"
    cells = row if isinstance(row, list) else [row]
    if len(cells) not in (1, 2, 3):
        raise UserError(
            f"{where} has {len(cells)} values; a row is [win, length of the baseline's answer, length of the test "
            "model's answer]; fix or delete it"
        )
    win = _number(cells[0], where, "win")
    if win is not None and not 0 <= win <= 1:
        raise UserError(
            f"{where}: the win is {win:g}; it lies from 0 (lost) to 1 (won), 0.5 is a tie and null no verdict; fix it"
        )
    baseline, test = (_number(cell, where, "length") for cell in cells[1:]) if len(cells) == 3 else (None, None)
    for length in (baseline, test):
        if length is not None and length < 0:
            raise UserError(f"{where}: the length is {length:g}, and no text has fewer than 0 tokens; fix it")
    return Judged(str(number), win, test, baseline)


def _number(value: Any, where: str, what: str) -> float | None:
    """A cell as a number; None for null and for what is not finite, which JSON has no word for."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where}: the {what} is {_kind(value)}, not a number; fix it, or write null for none")
    try:
        number = float(value)
    except OverflowError:
        raise UserError(f"{where}: the {what} is too large a number; fix it") from None
    return number if math.isfinite(number) else None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _harness_tables(path: Path) -> list[VerdictTable]:
    """A table for each judge, pair, task, principle set and split; queries averaged over constitutions and epochs."""
    tables = []
    for key, of in sorted(counted_in(path).items()):
        by_query: dict[str, list[Pair]] = {}
        for pair in of.pairs:
            by_query.setdefault(pair.expected.query_id, []).append(pair)
        judged = []
        for query, pairs in by_query.items():
            score = next(iter(score_by_query(scored_pairs(pairs)).values()), None)
            lengths = [
                (_length(row.details.get("length_a")), _length(row.details.get("length_b")))
                for pair in pairs
                for row in pair.rows
                if row
            ]
            measured = [(a, b) for a, b in lengths if a is not None and b is not None]
            a, b = (sum(side) / len(measured) for side in zip(*measured, strict=True)) if measured else (None, None)
            judged.append(Judged(query, score, a, b))
        about = (
            f"{key.a} against {key.b}, {key.task}, {key.principle_set} ({key.split.replace('_', '-')}), by {key.judge}"
        )
        place = (key.task, key.principle_set, key.split)
        tables.append(VerdictTable(str(path), about, tuple(judged), place, of.content))
    return tables


def _length(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 else None


# --- Figures of one file


def figures(table: VerdictTable, *, level: float = 0.95, lengths: bool = False) -> dict[str, Any]:
    """The figures of one comparison, ready for strict JSON; what cannot be computed is null, and `notes` says why.

    `win_rate` counts a tie as half a win; `tie_rules` has it under all three rules, each with its interval, and looks only at
    the side of one half on which a score lies. `lengths` adds the two length-controlled win rates.
    """
    scores = table.scores
    counts = ScoreCounts.of(scores, unscored=len(table.rows) - len(scores))
    notes: list[str] = []
    if not scores:
        notes.append("there is no scored verdict in it" if table.rows else "it holds no verdicts")
    outcomes = [0.5 + (score > 0.5) / 2 - (score < 0.5) / 2 for score in scores]
    rules = {
        "half": _rate(scores, level),
        "drop": _rate([o for o in outcomes if o != 0.5], level),
        "loss": _rate([float(o == 1) for o in outcomes], level),
    }
    half = rules["half"] or dict.fromkeys(("rate", "ci_low", "ci_high", "ci_method", "n_eff"))
    return {
        "file": table.file,
        **({"about": table.about} if table.about else {}),
        "n": len(scores),
        "n_expected": len(table.rows),
        "wins": counts.wins,
        "ties": counts.ties,
        "losses": counts.losses,
        "unscored": counts.unscored,
        "win_rate": half["rate"],
        "ci_low": half["ci_low"],
        "ci_high": half["ci_high"],
        "ci_level": level,
        "ci_method": half["ci_method"],
        "n_eff": half["n_eff"],
        "tie_rules": rules,
        "lengths": _lengths(table, level, notes, controlled=lengths),
        "notes": notes,
    }


def _rate(scores: Sequence[float], level: float) -> dict[str, Any] | None:
    if not scores:
        return None
    found = win_rate(scores, level)
    return {
        "rate": found.estimate,
        "ci_low": found.low,
        "ci_high": found.high,
        "ci_method": found.method,
        "n": found.n,
        "n_eff": found.n_eff,
    }


def _lengths(table: VerdictTable, level: float, notes: list[str], *, controlled: bool) -> dict[str, Any] | None:
    """Mean lengths and their correlation with the score, over the scored queries that have both lengths."""
    rows = table.measured
    if not rows:
        if controlled and table.scores:
            notes.append("it has no lengths of both answers, so that no length control is possible")
        return None
    if len(rows) < len(table.scores):
        notes.append(f"the lengths of both answers are there for {len(rows)} of {len(table.scores)} scored queries")
    s, test, baseline = zip(*rows, strict=True)
    summary = length_summary(test, baseline, s)
    found: dict[str, Any] = {
        "n": summary.n,
        "mean_test": summary.mean_a,
        "mean_baseline": summary.mean_b,
        "spearman": summary.spearman,
    }
    if controlled:
        for name, estimator in (("length_stratified", length_stratified), ("length_glm", length_glm)):
            try:
                made = asdict(estimator(s, test, baseline, level))
            except UnusableScores as error:
                found[name] = None
                notes.append(f"{name.replace('_', '-')}: {error}")
            else:
                names = {"estimate": "rate", "low": "ci_low", "high": "ci_high"}
                found[name] = {names.get(key, key): value for key, value in made.items()}
    return found


# --- Two files, query by query


def paired(
    tests: Sequence[VerdictTable], against: Sequence[VerdictTable], *, level: float = 0.95
) -> list[dict[str, Any]]:
    """The change in win rate from each of `against` to each of `tests`, paired by query, with Holm's adjustment over all.

    `against` has one table, or as many as `tests` has, in the same order. Raises UserError when two tables have no
    query in common or, in a format without query ids, do not have the same number of rows.
    """
    if len(against) not in (1, len(tests)):
        raise UserError(
            f"--against has {len(against)} comparisons and --verdicts {len(tests)}; give --against one, or as many"
        )
    others = list(against) * len(tests) if len(against) == 1 else list(against)
    for one, other in zip(tests, others, strict=True):
        if one.place and other.place and one.place != other.place:
            raise UserError(
                f"{one.file} ({one.about}) and {other.file} ({other.about}) are of other tasks, principle sets or "
                "splits: no query of one is a pair of the other; name files with the same comparisons"
            )
    rows = [_paired_row(one, other, level) for one, other in zip(tests, others, strict=True)]
    for row, adjusted in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        row["p_holm"] = float(adjusted)
    return rows


def _paired_row(one: VerdictTable, other: VerdictTable, level: float) -> dict[str, Any]:
    if not one.about and len(one.rows) != len(other.rows):
        raise UserError(
            f"{one.file} has {counted(len(one.rows), 'row')} and {other.file} has {len(other.rows)}: without query ids, row by "
            "row is the only way to pair them; name two files on the same queries"
        )
    left, right = ({row.query: row for row in table.rows} for table in (one, other))
    changed = one.content.other_queries(other.content)
    common = [query for query in left if query in right and query not in changed]
    both = [q for q in common if left[q].score is not None and right[q].score is not None]
    if not both:
        why = f" ({len(changed)} have one id and other texts)" if changed else ""
        raise UserError(f"{one.file} and {other.file} have no query that both have scored{why}; nothing can be paired")
    a, b = ([side[q].score or 0.0 for q in both] for side in (left, right))
    found = paired_difference(a, b, level)
    row: dict[str, Any] = {
        "file": one.file,
        "against": other.file,
        **({"about": one.about, "against_about": other.about} if one.about else {}),
        "n": len(both),
        "n_unpaired": len(left.keys() | right.keys()) - len(both),
        "win_rate": float(sum(a) / len(a)),
        "win_rate_against": float(sum(b) / len(b)),
        "difference": found.estimate,
        "ci_low": found.low,
        "ci_high": found.high,
        "ci_level": level,
        "ci_method": found.method,
        "p_value": sign_flip_p(a, b),
        "p_method": "sign flips",
        "table": None,
        "mcnemar_p": None,
        "newcombe_low": None,
        "newcombe_high": None,
        "notes": [],
    }
    if changed:
        row["notes"].append(
            f"{counted(len(changed), 'query', 'queries')} with one id and other texts in the two files: left out"
        )
    if differs := one.content.differences(other.content):
        row["notes"].append(f"not like with like: {', '.join(differs)} differ{'s' * (len(differs) == 1)}")
    unlike = sum(left[q].length_baseline != right[q].length_baseline for q in both)
    if unlike and len(one.measured) == len(one.scores) and len(other.measured) == len(other.scores):
        row["notes"].append(
            f"the baseline's lengths differ on {unlike} of {len(both)} queries: another opponent, or other queries"
        )
    try:
        table = paired_table(a, b)
    except UnusableScores:
        row["notes"].append("there are ties, so that McNemar's test and Newcombe's interval do not apply")
    else:
        row["table"] = table._asdict()
        row["mcnemar_p"] = mcnemar_p(table)
        row["newcombe_low"], row["newcombe_high"] = newcombe_interval(table, level)
    return row
