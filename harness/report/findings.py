"""What a run shows, in sentences: the first part of its whole report."""

from __future__ import annotations

from typing import Any

from harness.report.flags import flags
from harness.report.looks import looks_said
from harness.report.readings import (
    BAD,
    GAP,
    GOOD,
    NO_SCORE,
    SENTENCE,
    UNCLEAR,
    WIN_RATE,
    level_of,
    new_principles,
    not_adjusted,
    reading,
    side,
)
from harness.report.trust import trusted
from harness.report.words import (
    Results,
    Row,
    Section,
    counted,
    grouped,
    interval_of,
    joined,
    number,
    p_value,
    points,
    pooled_rows,
    rate,
    rows_of,
    split_words,
)

NOTHING_COMPARED = "Nothing is compared: the specification has no comparisons."
ALONE = (WIN_RATE.above_alone, WIN_RATE.below_alone, GAP.above_alone, GAP.below_alone)


def what_it_shows(results: Results) -> Section:
    """Flags, then what trusted judges say."""
    return Section("What this run shows", (*looks_said(results), *map(_sentence, flags(results)), *findings(results)))


def _sentence(flag: str) -> str:
    return f"Red flag: {flag}."


def findings(results: Results) -> list[str]:
    """A sentence for each comparison by a trusted judge, on steerability, and on training."""
    sentences = [] if rows_of(results, "comparisons") else [NOTHING_COMPARED]
    gaps = grouped(rows_of(results, "gaps"), "a", "b", "principle_set", "judge")
    comparisons = {
        key: rows
        for key, rows in grouped(rows_of(results, "comparisons"), "a", "b", "principle_set", "judge").items()
        if trusted(results, key[3])
    }
    several_sets = len({key[2] for key in comparisons}) > 1
    for key, rows in comparisons.items():
        _, _, principle_set, judge = key
        within = f" on the set {principle_set}" if several_sets else ""
        sentences += [_outcome(results, row, f"judged by {judge}{within}") for row in pooled_rows(rows)]
        sentences += [_gap_said(results, row) for row in pooled_rows(gaps.get(key, ()))]
        sentences += _tasks_apart(results, rows)
    sentences += _disagreements(results, comparisons)
    sentences += _steerability_said(results)
    return sentences + _training_said(results)


def _on(row: Row) -> str:
    n = (row.get("principles_ci") or {}).get("n_principles") or len(row.get("by_principle") or ())
    task = "" if row.get("task") == "all" else f" ({row.get('task')})"
    return f"on {f'these {n} ' if n else ''}{split_words(row.get('split', ''))} principles{task}"


def _outcome(results: Results, row: Row, judged: str) -> str:
    """``On these 10 held-out principles, judged by gpt, sami is not distinguishable from base: 52.1% [47.6, 56.5], n = 36, p Holm
    0.549; for principles like them [39.3, 64.6] (10 principles).``
    """
    mark = reading(row, level_of(results))
    said = f"O{_on(row)[1:]}, {judged}, {row['a']} {SENTENCE[mark]} {row['b']}"
    if mark == NO_SCORE:
        return f"{said} (0 of {counted(row.get('n_expected', 0), 'query')} scored)."
    alone = f", {not_adjusted(results, 'comparisons', row)}" if mark in ALONE else ""
    figures = [rate(row["win_rate"], *interval_of(row)), f"n = {row.get('n')}"]
    figures += [f"p Holm {p_value(row['p_holm'])}"] if row.get("p_holm") is not None else []
    return f"{said}{alone}: {', '.join(figures)}{_of_new_principles(row, mark)}."


def _of_new_principles(row: Row, mark: str) -> str:
    found = row.get("principles_ci") or {}
    low, high = found.get("low"), found.get("high")
    if low is None or high is None:
        return ""
    said = f"; for principles like them [{100 * low:.1f}, {100 * high:.1f}] ({found['n_principles']} principles)"
    if mark not in GOOD | BAD:
        return said
    agrees = new_principles(row) == (1 if mark in GOOD else -1)
    if row.get("split") == "held_out" and agrees and mark in GOOD:
        return f"{said}, so it generalises to principles like them"
    return said if agrees else f"{said}, so nothing is shown of other principles"


def _gap_said(results: Results, row: Row) -> str:
    mark = reading(row, level_of(results), GAP, 0)
    task = "" if row.get("task") == "all" else f" on {row.get('task')}"
    gap = f"The gap of {row['a']} against {row['b']}{task}, learned minus held-out, by {row['judge']},"
    if mark == NO_SCORE:
        return f"{gap} cannot be computed."
    meaning = {
        GAP.above: "is above zero",
        GAP.above_alone: f"is above zero by its interval, {not_adjusted(results, 'gaps', row)}",
        GAP.below_alone: f"is below zero by its interval, {not_adjusted(results, 'gaps', row)}",
        GAP.below: "is below zero",
        UNCLEAR: "is not distinguishable from zero",
    }[mark]
    figure = f"{points(row['gap'], *interval_of(row))} points, n = {row['n']}"
    like = row.get("principles") or {}
    if like.get("gap") is not None:
        figure += f", for principles like these {points(like['gap'], *interval_of(like))}"
    return f"{gap} {meaning} ({figure})."


def _disagreements(results: Results, comparisons: dict[tuple[Any, ...], list[Row]]) -> list[str]:
    """Where one trusted judge says "beats" and another "loses to"."""
    by_pair = grouped(
        (row for rows in comparisons.values() for row in pooled_rows(rows)), "a", "b", "principle_set", "task", "split"
    )
    found = []
    for rows in by_pair.values():
        said = {
            mark: [row["judge"] for row in rows if reading(row, level_of(results)) == mark]
            for mark in (WIN_RATE.above, WIN_RATE.below)
        }
        if all(said.values()):
            found.append(
                f"The judges contradict each other {_on(rows[0])}: {rows[0]['a']} beats {rows[0]['b']} by "
                f"{joined(said[WIN_RATE.above])}, and loses by {joined(said[WIN_RATE.below])}."
            )
    return found


def _tasks_apart(results: Results, rows: list[Row]) -> list[str]:
    """Where a single task reads the other way than the pooled figure."""
    pooled = {row["split"]: side(*interval_of(row)) for row in rows if row.get("task") == "all"}
    other = [
        f"{row['task']}, {split_words(row['split'])}: {SENTENCE[reading(row, level_of(results))]} {row['b']} "
        f"({rate(row['win_rate'], *interval_of(row))}, n = {row['n']})"
        for row in rows
        if row.get("task") != "all" and side(*interval_of(row)) * pooled.get(row["split"], 0) < 0
    ]
    return [f"Within that, single tasks read the other way: {'; '.join(other)}."] if other else []


def _steerability_said(results: Results) -> list[str]:
    """A sentence for each trusted judge, models beside each other: where the interval lies."""
    rows = [row for row in rows_of(results, "steerability") if row.get("principle") is None]
    where = {1: "above one half", 0: "holds one half", -1: "below one half"}
    found = []
    for (_, judge), group in grouped(rows, "principle_set", "judge").items():
        pooled = [row for models in grouped(group, "model").values() for row in pooled_rows(models)]
        said = [
            f"{_on(of_place[0])} "
            + ", ".join(
                f"{row['model']} {rate(row['steerability'], *interval_of(row))} ({where[side(*interval_of(row))]})"
                if row.get("steerability") is not None
                else f"{row['model']} has no score"
                for row in of_place
            )
            for of_place in grouped(pooled, "split", "task").values()
        ]
        if trusted(results, judge):
            found.append(f"Does the constitution steer the model? Judged by {judge}: {'; '.join(said)}.")
    return found


def _training_said(results: Results) -> list[str]:
    """The contrastive loss before and after. "Fell" and "rose" need the paired difference (after minus before)."""
    found = []
    for model, summary in (results.get("training") or {}).items():
        evaluation = (summary or {}).get("evaluation") or {}
        before, after = evaluation.get("before") or {}, evaluation.get("after") or {}
        if None in (before.get("loss"), after.get("loss")):
            continue
        change, interval = evaluation.get("loss_change"), evaluation.get("loss_change_ci") or (None, None)
        figures = [number(x["loss"], x.get("loss_ci")) for x in (before, after)]
        if change is None or None in interval:
            said = f"the contrastive loss is {figures[0]} before and {figures[1]} after, in nats"
        else:
            verb = {1: "rose", -1: "fell", 0: "did not change distinguishably"}[side(interval[0], interval[1], 0)]
            said = f"the contrastive loss {verb}, by {number(change, interval)} nats ({figures[0]} before, {figures[1]} after)"
        on = counted(evaluation.get("n", 0), "query")
        found.append(f"Training of {model}: on {on} not trained on, {said}.")
    return found
