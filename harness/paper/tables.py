"""The paper's tables beside what its authors' public verdicts give: every cell, those that no data covers included."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from harness import __version__
from harness.paper import layout
from harness.paper.layout import Found, Place
from harness.paper.logistic import logistic_cv
from harness.stats import UnusableScores, length_glm, length_stratified, win_rate
from harness.store.files import reading
from harness.verdict_files import VerdictTable, read_verdicts
from sami_train.errors import UserError
from sami_train.yamlfile import read_yaml

FIGURES = Path(__file__).resolve().parent / "figures.yaml"
LEVEL = 0.95
SOLVER = 0.011
"""Points by which a figure of Tables 2 and 3 may lie beside ours: their fit stopped short of the last digit."""

LOGISTIC_INTERVAL = "length-glm, a tie is a loss"

_PLACE = tuple(field.name for field in fields(Place))

ESTIMATORS = {
    "strict": "win rate, a tie is a loss",
    "half": "win rate, a tie is half a win",
    "length-stratified": "length-stratified win rate, a tie is half a win",
    "logistic-cv": "logistic length correction with a cross-validated penalty, a tie is a loss",
}


def tables(data: Sequence[Path]) -> dict[str, Any]:
    """Every cell of the paper with the value that the verdicts below `data` give, ready for strict JSON.

    Percent (mutual information: nats). A cell has `paper`, `recomputed` (null where no data covers it), the estimator, an
    interval (`ci_estimator` says of what), the file, `status` (agrees, differs, missing) and `notes`.

    A cell whose file cannot be read is missing, with the reason. Raises UserError when a folder is not there.
    """
    known = read_yaml(FIGURES, text_keys=False).data
    by_place, names = _files(data)
    groups = []
    for group in known["groups"]:
        cells = [_cell(cell, group["decimals"], by_place) for cell in _cells(group)]
        groups.append({"title": group["title"], "unit": "percent", "decimals": group["decimals"], "cells": cells})
    about = known["information"]
    information = [_information_cell(cell, about["decimals"], by_place) for cell in about["cells"]]
    groups.append(
        {
            "title": about["title"],
            "unit": "nats",
            "decimals": about["decimals"],
            "cells": information,
            "note": about["note"],
        }
    )
    every = [cell for group in groups for cell in group["cells"]]
    used = {cell["file"] for cell in every}
    return {
        "source": known["source"],
        "judge": known["judge"],
        "harness_version": __version__,
        "level": LEVEL,
        "estimators": ESTIMATORS,
        "groups": groups,
        "summary": {
            "cells": len(every),
            **{status: sum(c["status"] == status for c in every) for status in ("agrees", "differs", "missing")},
        },
        "files_without_cell": [name for name in names if name not in used],
    }


def _files(data: Sequence[Path]) -> tuple[dict[tuple[str, Place], list[Found]], list[str]]:
    """Files of verdicts and values by what they are about, the preferred one first; and the names of all of them."""
    found: dict[tuple[str, Place], list[Found]] = {}
    names: list[str] = []
    for file in layout.find(data):
        if file.kind in ("verdicts", "information"):
            names.append(file.name)
            if (place := layout.place_of(file)) is not None:
                found.setdefault((file.kind, place), []).append(file)
    return {key: sorted(files, key=lambda file: file.rank) for key, files in found.items()}, names


def _cells(group: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The cells of a group: listed one by one, or rows with a figure for each iteration."""
    yield from group.get("cells", ())
    for row in group.get("rows", ()):
        for iteration, figure in row["paper"].items():
            note = row.get("notes", {}).get(iteration)
            rest = {key: value for key, value in row.items() if key not in ("paper", "notes")}
            yield {
                **group["fixed"],
                **rest,
                "iteration": iteration,
                "paper": figure,
                **({"note": note} if note else {}),
            }


def _cell(known: dict[str, Any], decimals: int, by_place: dict[tuple[str, Place], list[Found]]) -> dict[str, Any]:
    row = _row(known)
    row["estimator"] = known["estimator"]
    files = by_place.get(("verdicts", _place(known)), [])
    if not files:
        return row
    row["file"] = files[0].name
    try:
        table = _table(files[0])
        row |= {"n": len(table.scores), "unscored": len(table.rows) - len(table.scores)}
        value, interval = _recomputed(known["estimator"], table)
    except (UserError, UnusableScores) as error:
        row["notes"].append(str(error))
        return row
    row["recomputed"] = 100 * value
    if interval is not None:
        row |= {"ci_low": 100 * interval[0], "ci_high": 100 * interval[1], "ci_estimator": interval[2]}
    _compare(row, known, decimals, slack=SOLVER if known["estimator"] == "logistic-cv" else 1e-6)
    _note_others(row, files)
    return row


def _row(known: dict[str, Any]) -> dict[str, Any]:
    return {
        **{key: known[key] for key in _PLACE if key in known},
        "paper": known["paper"],
        "recomputed": None,
        "ci_low": None,
        "ci_high": None,
        "ci_estimator": None,
        "n": None,
        "unscored": None,
        "file": None,
        "status": "missing",
        "notes": [known["note"]] if known.get("note") else [],
    }


def _place(known: dict[str, Any]) -> Place:
    return Place(**{key: known[key] for key in _PLACE if key in known})


def _table(found: Found) -> VerdictTable:
    read = read_verdicts(found.path, "harness" if found.path.suffix == ".jsonl" else "sami")
    if len(read) != 1:
        raise UserError(f"{found.path}: this file holds {len(read)} comparisons, not one; name another folder")
    return read[0]


def _recomputed(estimator: str, table: VerdictTable) -> tuple[float, tuple[float, float, str] | None]:
    """The value in [0, 1], and (low, high, of what)."""
    scores = table.scores
    if not scores:
        raise UnusableScores("the file has no scored verdict")
    strict = [float(score == 1) for score in scores]
    if estimator in ("strict", "half"):
        found = win_rate(strict if estimator == "strict" else scores, LEVEL)
        return found.estimate, (found.low, found.high, estimator)
    if len(table.measured) < len(scores):
        raise UnusableScores("the file has no lengths for some queries, and this figure needs them")
    _, test, baseline = zip(*table.measured, strict=True)
    if estimator == "length-stratified":
        stratified = length_stratified(scores, test, baseline, LEVEL)
        return stratified.estimate, (stratified.low, stratified.high, estimator)
    value = logistic_cv(strict, test, baseline)
    try:
        glm = length_glm(strict, test, baseline, LEVEL)
    except UnusableScores:
        return value, None
    return value, (glm.low, glm.high, LOGISTIC_INTERVAL)


def _compare(row: dict[str, Any], known: dict[str, Any], decimals: int, slack: float) -> None:
    value, paper, unit = row["recomputed"], known["paper"], 10.0**-decimals
    if known.get("rounding") == "down":
        agrees = abs(math.floor(value / unit + 1e-9) * unit - paper) < 1e-9
        row["notes"].insert(0, "the paper cuts the decimals off")
    else:
        agrees = abs(value - paper) <= unit / 2 + slack
    row["status"] = "agrees" if agrees else "differs"
    if not agrees and not known.get("note"):
        row["notes"].append("not explained")


def _note_others(row: dict[str, Any], files: Sequence[Found]) -> None:
    if len(files) > 1:
        row["notes"].append(f"{len(files) - 1} more files fit this cell, such as {files[1].name}")


# --- Mutual information


def read_values(path: Path) -> list[float]:
    """The numbers of a mutual-information file, a value for each query in nats; null and what is not finite are left out.

    Raises UserError when it is no JSON list of numbers.
    """
    with reading(path):
        data = path.read_bytes()
    try:
        values = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: this is not JSON ({' '.join(str(error).split())}); fix or delete it") from None
    is_list = isinstance(values, list) and all(
        isinstance(v, int | float | None) and not isinstance(v, bool) for v in values
    )
    if not is_list:
        raise UserError(f"{path}: mutual information is a JSON list of numbers, one for each query; this is not one")
    return [float(v) for v in values if v is not None and math.isfinite(v)]


def _information_cell(
    known: dict[str, Any], decimals: int, by_place: dict[tuple[str, Place], list[Found]]
) -> dict[str, Any]:
    row = _row(known)
    row["estimator"] = "sami-repo"
    files = by_place.get(("information", _place(known)), [])
    if not files:
        return row
    row["file"] = files[0].name
    try:
        values = read_values(files[0].path)
        low, high = mean_interval(values)
    except (UserError, UnusableScores) as error:
        row["notes"].append(str(error))
        return row
    row |= {"n": len(values), "recomputed": float(np.mean(values))}
    row |= {"ci_low": low, "ci_high": high, "ci_estimator": "mean, Student's t"}
    _compare(row, known, decimals, slack=1e-6)
    _note_others(row, files)
    return row


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's t interval of the mean at `LEVEL`; the mean itself for a single value. Raises UnusableScores for none."""
    from scipy.special import stdtrit

    if not values:
        raise UnusableScores("the file has no values")

    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return mean, mean
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return mean - half, mean + half


# --- Words


def describe(cell: dict[str, Any]) -> str:
    """What a cell is about, in the words of the paper."""
    subset = {"held_out": "held-out", "learned": "learned"}.get(cell.get("principles") or "", cell.get("subset"))
    parts = [cell["model"], *([subset] if subset else ())]
    return f"{' '.join(parts)}, iteration {cell['iteration']}" if cell["iteration"] else f"{' '.join(parts)}, base"


def headline(cell: dict[str, Any]) -> str:
    """The same for a cell that stands outside of a table."""
    data = {"hh-rlhf": "dialogue", "tldr": "summaries", "tldr-diverse": "varied principles"}[cell["data"]]
    against = f" against {cell['against']} ({cell['estimator']})" if cell.get("against") else ""
    return f"{data}: {describe(cell)}{against}"


def shown(cell: dict[str, Any], decimals: int, name: Callable[[dict[str, Any]], str]) -> tuple[str, ...]:
    """A cell as a table shows it: about, paper, recomputed, interval, n, reading."""
    places = max(decimals, 2) if cell["recomputed"] is not None else 0
    value = "–" if cell["recomputed"] is None else f"{cell['recomputed']:.{places}f}"
    interval = "–" if cell["ci_low"] is None else f"{cell['ci_low']:.{places}f} to {cell['ci_high']:.{places}f}"
    reading = "; ".join([cell["status"], *cell["notes"]])
    return name(cell), f"{cell['paper']:.{decimals}f}", value, interval, str(cell["n"] or "–"), reading


COLUMNS = ("cell", "paper", "recomputed", "95% interval", "n", "reading")


def sections(found: dict[str, Any]) -> Iterator[tuple[str, str, list[tuple[str, ...]]]]:
    """Heading, remark and rows of every group."""
    for group in found["groups"]:
        cells = group["cells"]
        fixed = {cell["estimator"] for cell in cells}
        is_table = group["title"].startswith("Table")
        names = (f"{name}: {ESTIMATORS[name]}" for name in ESTIMATORS if name in fixed)
        remark = group.get("note") or f"Estimator: {'; '.join(names)}."
        kinds = {cell["ci_estimator"] for cell in cells if cell["ci_estimator"]}
        if LOGISTIC_INTERVAL in kinds:
            remark += " Interval: that of the same correction without a penalty (length-glm)."
        yield (
            group["title"],
            remark,
            [shown(cell, group["decimals"], describe if is_table else headline) for cell in cells],
        )


def summary(found: dict[str, Any]) -> str:
    """What came of it, in a sentence."""
    counts = found["summary"]
    covered = counts["agrees"] + counts["differs"]
    return (
        f"The data cover {covered} of {counts['cells']} cells; {counts['agrees']} of them agree with the paper, "
        f"{counts['differs']} do not."
    )


def report(found: dict[str, Any]) -> str:
    """The tables as Markdown, for publication."""
    from harness.report.markdown import escape

    lines = ["# The paper's figures, recomputed", "", escape(f"{found['source']}. Judge: {found['judge']}."), ""]
    lines += [escape(summary(found)), ""]
    lines += [
        "Recomputed from the authors' public verdicts by `harness paper tables`; the verdicts themselves are not part of this "
        "repository. A win rate carries the harness's own interval, which is wider than the paper's where length is taken out.",
        "",
    ]
    for title, remark, rows in sections(found):
        lines += [f"## {escape(title)}", "", escape(remark), ""]
        lines += ["| " + " | ".join(COLUMNS) + " |", "|---|---:|---:|---:|---:|---|"]
        lines += ["| " + " | ".join(escape(cell) for cell in row) + " |" for row in rows]
        lines.append("")
    return "\n".join(lines)
