"""What a run shows, in plain sentences made from its numbers: good, bad and mixed results in the same words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from harness.report.blocks import against, listed, number, p_value, percent, points_interval, split_name

ALL = "all"
FEW = 30
"""Below this many queries only large differences can show, and the reader is told so."""
CONSISTENT = 0.7
"""Below this share of agreement between the two orders a judge's numbers come with a warning; coin tosses give 0.5."""

Row = Mapping[str, Any]


def findings(results: Row) -> list[str]:
    """The sentences of "What this run shows", the most important first."""
    points = [
        *_quality(results["quality"]),
        *_comparisons(results),
        *_disagreements(results["comparisons"]),
        *_steerability(results["steerability"]),
        *_training(results["training"]),
        *_judges(results["judges"]),
        *_few(results["comparisons"]),
    ]
    return points or ["Nothing was measured: the specification asks for no comparison, or no verdict is there yet."]


def main_rows(rows: Iterable[Row]) -> list[Row]:
    """The pooled row of every split where there is one, else the rows of its tasks."""
    rows = list(rows)
    pooled = {row.get("split") for row in rows if row["task"] == ALL}
    return [row for row in rows if row["task"] == ALL or row.get("split") not in pooled]


def several(rows: Iterable[Row], field: str) -> bool:
    """Whether the rows differ in a field, tasks pooled aside."""
    return len({row[field] for row in rows} - ({ALL} if field == "task" else set())) > 1


def grouped(rows: Iterable[Row], *fields: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by the values of some fields, in the order of the rows."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[field] for field in fields), []).append(row)
    return found


def _comparisons(results: Row) -> Iterable[str]:
    rows = results["comparisons"]
    gaps = grouped(results["gaps"], "a", "b", "judge", "principle_set")
    for (a, b, judge, principle_set), of in grouped(rows, "a", "b", "judge", "principle_set").items():
        shown = main_rows(of)
        where = f", principles {principle_set}" if several(rows, "principle_set") else ""
        outcomes = [_outcome(row, name_task=several(shown, "task")) for row in shown]
        text = f"{a} against {b} (judge {judge}{where}): {'; '.join(outcomes)}."
        for row in main_rows(gaps.get((a, b, judge, principle_set), [])):
            text += f" {_gap(row)}"
        if differing := _by_task(of):
            text += f" {differing}"
        yield text


def _outcome(row: Row, *, name_task: bool) -> str:
    """For example: on learned principles sami beats base (58.3%, interval 52.1 to 64.3; n = 250)."""
    a, b = row["a"], row["b"]
    place = f"on {_principles(row, name_task)}"
    if row["win_rate"] is None:
        return f"{place} there is no figure ({row.get('note', 'nothing was scored')})"
    said = {
        "above": f"{a} beats {b}",
        "below": f"{a} loses to {b}",
        "unsure": f"{a} is not distinguishable from {b}",
    }[_tone(row)]
    return f"{place} {said} ({_figures(row, 'win_rate')})"


def _principles(row: Row, name_task: bool) -> str:
    return f"{split_name(row['split'])} principles" + (f" of {row['task']}" if name_task else "")


def _figures(row: Row, name: str) -> str:
    low, high = 100 * row["ci_low"], 100 * row["ci_high"]
    place = {"above": "above one half", "below": "below one half", "unsure": "around one half"}[_tone(row)]
    return f"{percent(row[name])}, interval {low:.1f} to {high:.1f} {place}, n = {row['n']}"


def _tone(row: Row) -> str:
    return against(row["ci_low"], row["ci_high"], 0.5, "½").tone


def _gap(row: Row) -> str:
    if row["gap"] is None:
        return f"There is no gap between learned and held-out principles to report: {row['note']}"
    figures = f"{points_interval(row['gap'], row['ci_low'], row['ci_high'])} points, p = {p_value(row['p_value'])}"
    figures = figures.replace("p = <", "p <")
    told = {
        "above": f"{row['a']} does better on learned than on held-out principles",
        "below": f"{row['a']} does better on held-out than on learned principles",
        "unsure": "no difference between learned and held-out principles can be shown",
    }[against(row["ci_low"], row["ci_high"], 0.0, "0").tone]
    return f"The gap is {figures}: {told}."


def _by_task(rows: Iterable[Row]) -> str:
    """The tasks whose outcome is another than the pooled one."""
    rows = [row for row in rows if row["win_rate"] is not None]
    pooled = {row["split"]: _tone(row) for row in rows if row["task"] == ALL}
    other = [r for r in rows if r["task"] != ALL and r["split"] in pooled and _tone(r) != pooled[r["split"]]]
    if not other:
        return ""
    parts = [f"{r['task']} {split_name(r['split'])} {_figures(r, 'win_rate')}" for r in other]
    return f"Tasks that differ from the whole: {'; '.join(parts)}."


def _disagreements(rows: Iterable[Row]) -> Iterable[str]:
    for (a, b, _, task, split), of in grouped(rows, "a", "b", "principle_set", "task", "split").items():
        sides = {tone: [r["judge"] for r in of if r["win_rate"] is not None and _tone(r) == tone] for tone in _SIDES}
        if all(sides.values()):
            place = "" if task == ALL else f" of {task}"
            yield (
                f"The judges contradict each other on {a} against {b}, {split_name(split)} principles{place}: "
                f"above one half by {listed(sides['above'])}, below by {listed(sides['below'])}."
            )


_SIDES = ("above", "below")


def _steerability(rows: Iterable[Row]) -> Iterable[str]:
    rows = [row for row in rows if row["principle"] is None]
    for (model, judge, principle_set), of in grouped(rows, "model", "judge", "principle_set").items():
        shown = main_rows(of)
        parts = []
        for row in shown:
            place = _principles(row, several(shown, "task"))
            if row["steerability"] is None:
                parts.append(f"no figure on {place} ({row.get('note', 'nothing was scored')})")
                continue
            said = {
                "above": f"follows {place}",
                "below": f"does the contrary of {place}",
                "unsure": f"is not shown to react to {place}",
            }[_tone(row)]
            parts.append(f"{said} ({_figures(row, 'steerability')})")
        where = f", principles {principle_set}" if several(rows, "principle_set") else ""
        yield f"Steerability of {model} (judge {judge}{where}): {'; '.join(parts)}."


def _training(training: Row) -> Iterable[str]:
    for model, summary in training.items():
        evaluation = (summary or {}).get("evaluation") or {}
        before, after = evaluation.get("before") or {}, evaluation.get("after") or {}
        one, other = before.get("loss"), after.get("loss")
        if one is None or other is None:
            continue
        changed = "lowered" if other < one else "raised" if other > one else "did not change"
        text = (
            f"Training {model} {changed} the contrastive loss on unseen queries from {number(one)} to {number(other)}"
        )
        if before.get("accuracy") is not None and after.get("accuracy") is not None:
            text += f", and accuracy went from {percent(before['accuracy'])} to {percent(after['accuracy'])}"
        limits, others = limits_of(before.get("loss_ci")), limits_of(after.get("loss_ci"))
        if limits and others and limits[0] <= others[1] and others[0] <= limits[1]:
            text += "; the intervals of the two losses overlap"
        yield f"{text} (n = {evaluation.get('n', 'unknown')})."


def limits_of(pair: Any) -> tuple[float, float] | None:
    """The two limits of an interval in a trainer's summary; None where there are none."""
    if isinstance(pair, list | tuple) and len(pair) == 2 and None not in pair:
        return pair[0], pair[1]
    return None


def _judges(judges: Row) -> Iterable[str]:
    for name, card in judges.items():
        agreement = card["position_consistency"]
        if agreement is None:
            continue
        text = f"{name} gives the same verdict in both orders for {percent(agreement)} of {card['n_pairs']} pairs"
        if agreement < CONSISTENT:
            text += "; a coin would reach about 50%, so read its numbers with caution"
        yield f"{text}."


def _few(rows: Iterable[Row]) -> Iterable[str]:
    smallest = min((row["n"] for row in main_rows(rows) if row["win_rate"] is not None), default=FEW)
    if smallest < FEW:
        yield f"Some figures rest on few queries (the smallest n is {smallest}): only large differences can show there."


def _quality(quality: Row) -> Iterable[str]:
    if not quality["passed"]:
        yield (
            f"{percent(quality['unscored_rate'])} of the expected verdicts have no score, more than the limit of "
            f"{percent(quality['max_unscored'])}: the figures below may be biased by what is missing."
        )
