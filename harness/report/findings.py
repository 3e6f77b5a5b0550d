"""What a run shows, in sentences: the first part of its report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.report.looks import looks_said
from harness.report.words import (
    ABOVE,
    BELOW,
    HELD_OUT_HIGHER,
    LEARNED_HIGHER,
    NONE,
    UNCLEAR,
    Results,
    Row,
    Section,
    counted,
    grouped,
    interval_of,
    joined,
    number,
    percent,
    points,
    pooled_rows,
    rate,
    reading,
    rows_of,
    split_words,
)

CARE_BELOW = 0.8
"""Position consistency under which the report asks for care; a judge that throws a fair coin has one half."""
FEW = 30
"""Queries under which the report says that there are few."""
_BEATS = {ABOVE: "beats", BELOW: "loses to", UNCLEAR: "is not distinguishable from", NONE: "has no score against"}


def what_it_shows(results: Results) -> Section:
    quality = results.get("quality") or {}
    sentences = looks_said(results)
    if not quality.get("passed", True):
        sentences.append(
            f"This run is incomplete: {percent(quality['unscored_rate'])} of the expected verdicts are unscored, more "
            f"than the {percent(quality['max_unscored'])} allowed; read every figure with that in mind."
        )
    gaps = grouped(rows_of(results, "gaps"), "a", "b", "principle_set", "judge")
    comparisons = grouped(rows_of(results, "comparisons"), "a", "b", "principle_set", "judge")
    several_sets = len({key[2] for key in comparisons}) > 1
    for key, rows in comparisons.items():
        a, b, principle_set, judge = key
        within = f" on the set {principle_set}" if several_sets else ""
        said = [_outcome(row, a if place == 0 else "it", b) for place, row in enumerate(pooled_rows(rows))]
        gap = [_gap_said(row) for row in pooled_rows(gaps.get(key, ()))]
        sentences.append(f"Judged by {_reliability(results, judge, (a, b))}{within}: {'; '.join(said + gap)}.")
        sentences += _tasks_apart(rows)
    sentences += _disagreements(comparisons)
    sentences += _swapped_said(results, comparisons)
    sentences += _steerability_said(results)
    sentences += _training_said(results)
    sentences += _few_said(comparisons)
    return Section("What this run shows", tuple(sentences))


def _on(row: Row) -> str:
    task = "" if row.get("task") == "all" else f" ({row.get('task')})"
    return f"on {split_words(row.get('split', ''))} principles{task}"


def _outcome(row: Row, subject: str, b: str) -> str:
    low, high = interval_of(row)
    word = reading(low, high, 0.5)
    if word == NONE:
        return f"{_on(row)} {subject} {_BEATS[word]} {b} (0 of {counted(row.get('n_expected', 0), 'query')} scored)"
    figure = f"{rate(row['win_rate'], low, high)}, n = {row.get('n')}"
    where = {ABOVE: ", interval above one half", BELOW: ", interval below one half"}.get(word, "")
    return f"{_on(row)} {subject} {_BEATS[word]} {b} ({figure}{where})"


def _gap_said(row: Row) -> str:
    low, high = interval_of(row)
    word = reading(low, high, 0, LEARNED_HIGHER, HELD_OUT_HIGHER)
    task = "" if row.get("task") == "all" else f" on {row.get('task')}"
    if word == NONE:
        return f"the gap{task} between the two cannot be computed"
    meaning = {
        LEARNED_HIGHER: "is above zero",
        HELD_OUT_HIGHER: "is below zero",
        UNCLEAR: "is not distinguishable from zero",
    }[word]
    return f"the gap{task}, learned minus held-out, {meaning} ({points(row['gap'], low, high)} points, n = {row['n']})"


def _disagreements(comparisons: dict[tuple[Any, ...], list[Row]]) -> list[str]:
    """Where one judge's interval lies above one half and another's below."""
    by_pair = grouped(
        (row for rows in comparisons.values() for row in pooled_rows(rows)), "a", "b", "principle_set", "task", "split"
    )
    found = []
    for rows in by_pair.values():
        said = {word: [r["judge"] for r in rows if reading(*interval_of(r), 0.5) == word] for word in (ABOVE, BELOW)}
        if said[ABOVE] and said[BELOW]:
            found.append(
                f"The judges contradict each other {_on(rows[0])}: {rows[0]['a']} beats {rows[0]['b']} by "
                f"{joined(said[ABOVE])}, and loses by {joined(said[BELOW])}."
            )
    return found


def _swapped_said(results: Results, comparisons: dict[tuple[Any, ...], list[Row]]) -> list[str]:
    """Where a model wins, or loses, under constitutions that neither was given as well."""
    found = []
    for (a, b, _, judge), rows in comparisons.items():
        for row in pooled_rows(rows):
            control = row.get("swapped") or {}
            word = reading(*interval_of(control), 0.5)
            if word in (ABOVE, BELOW) and word == reading(*interval_of(row), 0.5):
                figure = f"{rate(control['win_rate'], *interval_of(control))}, n = {control['n']}"
                found.append(
                    f"With care, {_on(row)}, judged by {judge}: {a} {_BEATS[word]} {b} also under constitutions that "
                    f"neither was given ({figure}), so style or length has a part in it."
                )
    return found


def _tasks_apart(rows: list[Row]) -> list[str]:
    """Where the pooled figure hides a task that reads otherwise."""
    pooled = {row["split"]: reading(*interval_of(row), 0.5) for row in rows if row.get("task") == "all"}
    other = [
        f"{row['task']}, {split_words(row['split'])}: {word} ({rate(row['win_rate'], *interval_of(row))}, n = {row['n']})"
        for row in rows
        if row.get("task") != "all"
        and row["split"] in pooled
        and (word := reading(*interval_of(row), 0.5)) not in (pooled[row["split"]], NONE)
    ]
    return [f"Within that, single tasks read otherwise: {'; '.join(other)}."] if other else []


def _few_said(comparisons: dict[tuple[Any, ...], list[Row]]) -> list[str]:
    counts = [row["n"] for rows in comparisons.values() for row in pooled_rows(rows) if row.get("n")]
    if not counts or min(counts) >= FEW:
        return []
    return [f"With few queries (n = {min(counts)} at the least) only large differences can be told from chance."]


def _steerability_said(results: Results) -> list[str]:
    """A sentence for each judge, models beside each other."""
    rows = [row for row in rows_of(results, "steerability") if row.get("principle") is None]
    meaning = {
        ABOVE: "follows it",
        BELOW: "does the opposite",
        UNCLEAR: "shows no distinguishable effect",
        NONE: "has no score",
    }
    found = []
    for (_, judge), group in grouped(rows, "principle_set", "judge").items():
        pooled = [row for models in grouped(group, "model").values() for row in pooled_rows(models)]
        said = [
            f"{_on(of_place[0])} "
            + ", ".join(
                f"{row['model']} {meaning[reading(*interval_of(row), 0.5)]} "
                f"({rate(row.get('steerability'), *interval_of(row))}, n = {row.get('n')})"
                for row in of_place
            )
            for of_place in grouped(pooled, "split", "task").values()
        ]
        words = _reliability(results, judge, [row["model"] for row in pooled])
        found.append(f"Does the constitution steer the model? Judged by {words}: {'; '.join(said)}.")
    return found


def _training_said(results: Results) -> list[str]:
    found = []
    for model, summary in (results.get("training") or {}).items():
        evaluation = (summary or {}).get("evaluation") or {}
        before, after = evaluation.get("before") or {}, evaluation.get("after") or {}
        if None in (before.get("loss"), after.get("loss")):
            continue
        word = "fell" if after["loss"] < before["loss"] else "rose" if after["loss"] > before["loss"] else "stayed"
        apart = _apart(before.get("loss_ci"), after.get("loss_ci"))
        overlap = {True: "; the intervals are apart", False: "; the intervals overlap", None: ""}[apart]
        found.append(
            f"Training of {model}: on {counted(evaluation.get('n', 0), 'query')} not trained on, the contrastive loss "
            f"{word} from {number(before['loss'], before.get('loss_ci'))} "
            f"to {number(after['loss'], after.get('loss_ci'))} nats{overlap}."
        )
    return found


def _apart(one: Sequence[float] | None, two: Sequence[float] | None) -> bool | None:
    if not one or not two or None in (*one, *two):
        return None
    return one[1] < two[0] or two[1] < one[0]


def _reliability(results: Results, judge: str, judged: Sequence[str]) -> str:
    """The judge's name, with a warning where it contradicts itself or is akin to one of the judged models."""
    card = (results.get("judges") or {}).get(judge) or {}
    kept, cares = card.get("position_consistency"), []
    if kept is not None and kept < CARE_BELOW:
        of = f"{percent(kept, 0)} of {counted(card['n_pairs'], 'pair')}"
        cares.append(f"it kept its verdict in both orders for only {of}")
    if akin := [model for model in dict.fromkeys(judged) if model in (card.get("same_family") or {})]:
        cares.append(f"it judges its own kin, {joined(akin)}")
    return f"{judge} (with care: {'; '.join(cares)})" if cares else judge
