"""What a report says, as plain text in tables and sentences. How it looks is for `terminal` and `markdown`.

Everything is made from the results alone, and keys that are missing from them are left out of the report.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Results = dict[str, Any]
Row = dict[str, Any]

NONE = "–"
ABOVE, BELOW, UNCLEAR = "above ½", "below ½", "not distinguishable"
LEARNED_HIGHER, HELD_OUT_HIGHER = "learned higher", "held-out higher"
A_HIGHER, B_HIGHER = "A higher", "B higher"
GOOD, BAD = (ABOVE, LEARNED_HIGHER, A_HIGHER), (BELOW, HELD_OUT_HIGHER, B_HIGHER)
"""Readings of an interval, by the side of it on which "no difference" lies."""

COLUMNS_AT_A_TIME = 3
"""Models or comparisons beside each other in a table by principle: what fits in 100 columns."""

CARE_BELOW = 0.8
"""Position consistency under which the report asks for care; a judge that throws a fair coin has one half."""

MATRIX_FROM = 4
"""Models from which on the report shows every pair in a matrix; with fewer the table of win rates is as short."""

MATRIX = ("win_rate", "ci_low", "ci_high")

FEW = 30
"""Queries under which the report says that there are few."""


@dataclass(frozen=True)
class Table:
    """Rows of text under `columns`; those in `numbers` are set flush right."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    heading: str = ""
    numbers: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Section:
    """A part of the report: sentences, then tables, then remarks."""

    title: str
    sentences: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    remarks: tuple[str, ...] = ()


def sections(results: Results) -> list[Section]:
    """The report of a run, in reading order; parts about which the results say nothing are left out."""
    parts = [
        _shows(results),
        _not_counted(results),
        _win_rates(results),
        _leaderboards(results),
        _gaps(results),
        _swapped(results),
        _steerability(results),
        _by_principle(results),
        _information(results),
        _training(results),
        _lengths(results),
        _judges(results),
        _corrections(results),
        _rank_stability(results),
        _models(results),
        cost_section(results),
        _footnotes(results),
    ]
    return [part for part in parts if part.sentences or part.tables]


def comparison_sections(comparison: Results) -> list[Section]:
    """The report of `harness.compare.compare`."""
    groups: dict[str, list[tuple[str, ...]]] = {}
    for row in comparison["rows"]:
        low, high = row["ci_low"], row["ci_high"]
        groups.setdefault(_versus(row) + f" · principles: {row['principle_set']} · judge: {row['judge']}", []).append(
            (
                row["task"],
                split_words(row["split"]),
                percent(row["win_rate_a"]),
                percent(row["win_rate_b"]),
                points(row["difference"], low, high),
                str(row["n_common"]),
                p_value(row["p_value"]),
                p_value(row["p_holm"]),
                reading(low, high, 0, A_HIGHER, B_HIGHER),
            )
        )
    columns = ("task", "split", "A", "B", "A − B, points", "n", "p", "p Holm", "reading")
    numbers = frozenset(columns[2:8])
    tables = tuple(Table(columns, rows, heading, numbers) for heading, rows in groups.items())
    alone = [
        f"Only run {run} has {_versus(key)} on {key['task']}, {split_words(key['split'])} "
        f"({key['principle_set']}, judge {key['judge']})."
        for run, keys in (("A", comparison["only_a"]), ("B", comparison["only_b"]))
        for key in keys
    ]
    unpaired = sum(row["n_only_a"] + row["n_only_b"] for row in comparison["rows"])
    methods = ", ".join(sorted({row["ci_method"] for row in comparison["rows"] if row["ci_method"]}))
    remarks = [
        f"A and B are the win rates of the pair's first model over the n queries that both runs have scored; "
        f"{unpaired} scores of queries in one run alone are left out.",
        f"A − B is in percentage points with a {percent(comparison['level'], 0)} interval ({methods}); the reading "
        "says whether that interval lies off zero.",
        "p: sign-flip test, paired by query; p Holm: adjusted for all rows of this comparison.",
    ]
    runs = (f"A: {comparison['run_a']}", f"B: {comparison['run_b']}")
    return [Section("Two runs, paired by query", runs, tables, (*remarks, *alone))]


# --- Words and figures ------------------------------------------------------------------------------------------------


def percent(value: float | None, digits: int = 1) -> str:
    return NONE if value is None else f"{100 * value:.{digits}f}%"


def rate(value: float | None, low: float | None, high: float | None, digits: int = 1) -> str:
    """``58.3% [52.1, 64.3]``"""
    if value is None or low is None or high is None:
        return percent(value, digits)
    return f"{percent(value, digits)} [{100 * low:.{digits}f}, {100 * high:.{digits}f}]"


def points(value: float | None, low: float | None, high: float | None) -> str:
    """A difference of two rates in percentage points: ``+7.3 [-1.0, +15.2]``"""
    if value is None or low is None or high is None:
        return NONE
    return f"{100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def number(value: float | None, interval: Sequence[float | None] | None = None, digits: int = 3) -> str:
    """``0.693 [0.650, 0.731]``"""
    if value is None:
        return NONE
    limits = [x for x in interval or () if x is not None]
    return f"{value:.{digits}f}" + (f" [{', '.join(f'{x:.{digits}f}' for x in limits)}]" if len(limits) == 2 else "")


def p_value(value: float | None) -> str:
    return NONE if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def reading(low: float | None, high: float | None, nothing: float, above: str = ABOVE, below: str = BELOW) -> str:
    """Where an interval lies: above, below or around the value that means "no difference"."""
    if low is None or high is None:
        return NONE
    return above if low > nothing else below if high < nothing else UNCLEAR


def split_words(split: str) -> str:
    return "held-out" if split == "held_out" else split


def _versus(row: Row) -> str:
    return f"{row.get('a')} against {row.get('b')}"


def _rows(results: Results, name: str) -> list[Row]:
    return list(results.get(name) or ())


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what[:-1]}ies" if what.endswith("y") else f"{n} {what}s"


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _pooled(rows: Iterable[Row]) -> list[Row]:
    """For every split (and principle) the row that pools all tasks; where there is none, the rows of the tasks."""
    found = []
    for group in _grouped(rows, "split", "principle").values():
        found += [row for row in group if row.get("task") == "all"] or group
    return found


def _grouped(rows: Iterable[Row], *fields: str) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(field) for field in fields), []).append(row)
    return groups


def _ci(row: Row) -> tuple[float | None, float | None]:
    return row.get("ci_low"), row.get("ci_high")


# --- What this run shows ----------------------------------------------------------------------------------------------

_BEATS = {ABOVE: "beats", BELOW: "loses to", UNCLEAR: "is not distinguishable from", NONE: "has no score against"}


def _shows(results: Results) -> Section:
    quality = results.get("quality") or {}
    sentences = []
    if not quality.get("passed", True):
        sentences.append(
            f"This run is incomplete: {percent(quality['unscored_rate'])} of the expected verdicts are unscored, more "
            f"than the {percent(quality['max_unscored'])} allowed; read every figure with that in mind."
        )
    gaps = _grouped(_rows(results, "gaps"), "a", "b", "principle_set", "judge")
    comparisons = _grouped(_rows(results, "comparisons"), "a", "b", "principle_set", "judge")
    several_sets = len({key[2] for key in comparisons}) > 1
    for key, rows in comparisons.items():
        a, b, principle_set, judge = key
        within = f" on the set {principle_set}" if several_sets else ""
        said = [_outcome(row, a if place == 0 else "it", b) for place, row in enumerate(_pooled(rows))]
        gap = [_gap_said(row) for row in _pooled(gaps.get(key, ()))]
        sentences.append(f"Judged by {_reliability(results, judge, (a, b))}{within}: {'; '.join(said + gap)}.")
        sentences += _tasks_apart(rows)
    sentences += _disagreements(comparisons)
    sentences += _swapped_said(results, comparisons)
    sentences += _steerability_said(results)
    sentences += _training_said(results)
    sentences += _few_said(comparisons)
    return Section("What this run shows", tuple(sentences))


def _not_counted(results: Results) -> Section:
    return Section("Not counted", tuple(row["note"] for row in _rows(results, "not_counted")))


def _on(row: Row) -> str:
    task = "" if row.get("task") == "all" else f" ({row.get('task')})"
    return f"on {split_words(row.get('split', ''))} principles{task}"


def _outcome(row: Row, subject: str, b: str) -> str:
    low, high = _ci(row)
    word = reading(low, high, 0.5)
    if word == NONE:
        return f"{_on(row)} {subject} {_BEATS[word]} {b} (0 of {_count(row.get('n_expected', 0), 'query')} scored)"
    figure = f"{rate(row['win_rate'], low, high)}, n = {row.get('n')}"
    where = {ABOVE: ", interval above one half", BELOW: ", interval below one half"}.get(word, "")
    return f"{_on(row)} {subject} {_BEATS[word]} {b} ({figure}{where})"


def _gap_said(row: Row) -> str:
    low, high = _ci(row)
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
    by_pair = _grouped(
        (row for rows in comparisons.values() for row in _pooled(rows)), "a", "b", "principle_set", "task", "split"
    )
    found = []
    for rows in by_pair.values():
        said = {word: [r["judge"] for r in rows if reading(*_ci(r), 0.5) == word] for word in (ABOVE, BELOW)}
        if said[ABOVE] and said[BELOW]:
            found.append(
                f"The judges contradict each other {_on(rows[0])}: {rows[0]['a']} beats {rows[0]['b']} by "
                f"{_and(said[ABOVE])}, and loses by {_and(said[BELOW])}."
            )
    return found


def _swapped_said(results: Results, comparisons: dict[tuple[Any, ...], list[Row]]) -> list[str]:
    """Where a model wins, or loses, under constitutions that neither was given as well."""
    found = []
    for (a, b, _, judge), rows in comparisons.items():
        for row in _pooled(rows):
            control = row.get("swapped") or {}
            word = reading(*_ci(control), 0.5)
            if word in (ABOVE, BELOW) and word == reading(*_ci(row), 0.5):
                figure = f"{rate(control['win_rate'], *_ci(control))}, n = {control['n']}"
                found.append(
                    f"With care, {_on(row)}, judged by {judge}: {a} {_BEATS[word]} {b} also under constitutions that "
                    f"neither was given ({figure}), so style or length has a part in it."
                )
    return found


def _tasks_apart(rows: list[Row]) -> list[str]:
    """Where the pooled figure hides a task that reads otherwise."""
    pooled = {row["split"]: reading(*_ci(row), 0.5) for row in rows if row.get("task") == "all"}
    other = [
        f"{row['task']}, {split_words(row['split'])}: {word} ({rate(row['win_rate'], *_ci(row))}, n = {row['n']})"
        for row in rows
        if row.get("task") != "all"
        and row["split"] in pooled
        and (word := reading(*_ci(row), 0.5)) not in (pooled[row["split"]], NONE)
    ]
    return [f"Within that, single tasks read otherwise: {'; '.join(other)}."] if other else []


def _few_said(comparisons: dict[tuple[Any, ...], list[Row]]) -> list[str]:
    counts = [row["n"] for rows in comparisons.values() for row in _pooled(rows) if row.get("n")]
    if not counts or min(counts) >= FEW:
        return []
    return [f"With few queries (n = {min(counts)} at the least) only large differences can be told from chance."]


def _steerability_said(results: Results) -> list[str]:
    """A sentence for each judge, models beside each other."""
    rows = [row for row in _rows(results, "steerability") if row.get("principle") is None]
    meaning = {
        ABOVE: "follows it",
        BELOW: "does the opposite",
        UNCLEAR: "shows no distinguishable effect",
        NONE: "has no score",
    }
    found = []
    for (_, judge), group in _grouped(rows, "principle_set", "judge").items():
        pooled = [row for models in _grouped(group, "model").values() for row in _pooled(models)]
        said = [
            f"{_on(of_place[0])} "
            + ", ".join(
                f"{row['model']} {meaning[reading(*_ci(row), 0.5)]} "
                f"({rate(row.get('steerability'), *_ci(row))}, n = {row.get('n')})"
                for row in of_place
            )
            for of_place in _grouped(pooled, "split", "task").values()
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
            f"Training of {model}: on {_count(evaluation.get('n', 0), 'query')} not trained on, the contrastive loss "
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
        of = f"{percent(kept, 0)} of {_count(card['n_pairs'], 'pair')}"
        cares.append(f"it kept its verdict in both orders for only {of}")
    if akin := [model for model in dict.fromkeys(judged) if model in (card.get("same_family") or {})]:
        cares.append(f"it judges its own kin, {_and(akin)}")
    return f"{judge} (with care: {'; '.join(cares)})" if cares else judge


def _notes(rows: Iterable[Row], *fields: str, most: int = 6) -> list[str]:
    """The notes on rows, each with what the row is about."""
    noted = [row for row in rows if row.get("note")]
    found = [f"{', '.join(split_words(str(row[f])) for f in fields)}: {row['note']}" for row in noted[:most]]
    return found + ([f"And {len(noted) - most} more rows with such a note."] if len(noted) > most else [])


# --- Tables -----------------------------------------------------------------------------------------------------------


def _judge_words(results: Results, name: str) -> str:
    """The judge's name and how far to trust it."""
    card = (results.get("judges") or {}).get(name) or {}
    if card.get("kind") == "verifiable":
        return f"{name} (a program)"
    kept = card.get("position_consistency")
    return f"{name} (same verdict in both orders: {'unknown' if kept is None else percent(kept, 0)})"


def _win_rates(results: Results) -> Section:
    columns = ("task", "split", "win rate", "scored", "W/T/L", "p", "p Holm", "reading")
    tables = []
    groups = _grouped(_rows(results, "comparisons"), "a", "b", "principle_set", "judge")
    for (_, _, principle_set, judge), group in groups.items():
        rows = [
            (
                row["task"],
                split_words(row["split"]),
                rate(row.get("win_rate"), *_ci(row)),
                f"{row.get('n')}/{row.get('n_expected')}",
                f"{row.get('wins')}/{row.get('ties')}/{row.get('losses')}",
                p_value(row.get("p_value")),
                p_value(row.get("p_holm")),
                reading(*_ci(row), 0.5),
            )
            for row in group
        ]
        words = _judge_words(results, judge)
        heading = f"{_versus(group[0])} · principles: {principle_set} · judge: {words}"
        tables.append(Table(columns, rows, heading, frozenset(columns[2:7])))
    remark = (
        "p: sign-flip test of the queries' scores against one half; p Holm: adjusted for all rows that a judge has on a "
        "principle set. scored: queries with a score, of those planned."
    )
    return Section("Win rates", (), tuple(tables), (remark,))


def _leaderboards(results: Results) -> Section:
    """Models by their chance against the base model, splits beside each other; the matrix where many models met."""
    tables = []
    boards = _rows(results, "leaderboards")
    for (principle_set, judge), group in _grouped(boards, "principle_set", "judge").items():
        group = [board for board in group if board["models"]]
        names = list(dict.fromkeys(model["model"] for board in group for model in board["models"]))
        columns = ["model"]
        rows = {name: [name] for name in names}
        for board in group:
            columns += [f"{split_words(board['split'])}, against {board['base']}", "rank", "n"]
            there = {model["model"]: model for model in board["models"]}
            for name, row in rows.items():
                row += _standing(there.get(name), board["base"])
        if group:
            heading = f"principles: {principle_set} · judge: {_judge_words(results, judge)}"
            tables.append(Table(tuple(columns), [tuple(row) for row in rows.values()], heading, frozenset(columns[1:])))
        if len(names) >= MATRIX_FROM:
            tables += [_matrix(board) for board in group]
    unbounded = [
        f"{split_words(board['split'])}, {board['judge']}: {_and(board['unbounded'])} won or lost everything, so that half a "
        "tie is added to every pair."
        for board in boards
        if board.get("unbounded")
    ]
    remark = (
        "Bradley-Terry: the chance that a model has against the base model, from all comparisons together; a tie is half a "
        "win, intervals are clustered by query. rank: with its interval."
    )
    return Section("Leaderboard", (), tuple(tables), (remark, *unbounded))


def _standing(model: Row | None, base: str) -> list[str]:
    if model is None:
        return [NONE] * 3
    figure = rate(*(model[key] for key in ("win_rate", "win_rate_low", "win_rate_high")))
    low, high = model["rank_low"], model["rank_high"]
    rank = f"{model['rank']}" + (f" [{low}, {high}]" if low < high else "")
    return ["½ (base)" if model["model"] == base else figure, rank, str(model["n"])]


def _matrix(board: Row) -> Table:
    """Every pair's win rate, row against column."""
    matrix = board["matrix"]
    names = matrix["models"]
    rows = [
        (name, *(rate(value, low, high, 0) for value, low, high in zip(*(matrix[k][i] for k in MATRIX), strict=True)))
        for i, name in enumerate(names)
    ]
    heading = f"row against column, {split_words(board['split'])} · judge: {board['judge']}"
    return Table(("", *names), rows, heading, frozenset(names))


def _gaps(results: Results) -> Section:
    columns = ("judge", "task", "gap, points", "n", "p", "p Holm", "reading")
    tables = []
    for (_, _, principle_set), group in _grouped(_rows(results, "gaps"), "a", "b", "principle_set").items():
        rows = [
            (
                row["judge"],
                row["task"],
                points(row.get("gap"), *_ci(row)),
                str(row.get("n")),
                p_value(row.get("p_value")),
                p_value(row.get("p_holm")),
                reading(*_ci(row), 0, LEARNED_HIGHER, HELD_OUT_HIGHER),
            )
            for row in group
        ]
        heading = f"{_versus(group[0])} · principles: {principle_set}"
        tables.append(Table(columns, rows, heading, frozenset(columns[2:6])))
    remark = (
        "Win rate on learned minus win rate on held-out principles, paired by query; p by sign flips, p Holm adjusted for "
        "all gaps by a judge on a principle set."
    )
    notes = _notes(_rows(results, "gaps"), "a", "b", "judge", "task")
    return Section("Generalisation gap", (), tuple(tables), (remark, *notes))


def _swapped(results: Results) -> Section:
    """The control, over all tasks."""
    columns = ("comparison", "judge", "split", "swapped", "own − swapped, points", "n")
    cells = [
        (
            _versus(row),
            row["judge"],
            split_words(row["split"]),
            rate(control.get("win_rate"), *_ci(control)),
            points(*(control.get(key) for key in ("difference", "difference_low", "difference_high"))),
            str(control.get("n_paired") or 0),
        )
        for rows in _grouped(_rows(results, "comparisons"), "a", "b", "principle_set", "judge").values()
        for row in _pooled(rows)
        if (control := row.get("swapped"))
    ]
    remark = (
        "The same pairs judged under constitutions that neither model was given. A swapped win rate away from one half is "
        "style or length, not following; own − swapped, paired by query, is what is left without it."
    )
    tables = (Table(columns, cells, numbers=frozenset(columns[3:])),) if cells else ()
    return Section("Swapped constitutions", (), tables, (remark,))


def _steerability(results: Results) -> Section:
    columns = ("model", "task", "split", "steerability", "n", "reading")
    tables = []
    rows = [row for row in _rows(results, "steerability") if row.get("principle") is None]
    for (principle_set, judge), group in _grouped(rows, "principle_set", "judge").items():
        cells = [
            (
                row["model"],
                row["task"],
                split_words(row["split"]),
                rate(row.get("steerability"), *_ci(row)),
                str(row.get("n")),
                reading(*_ci(row), 0.5),
            )
            for row in group
        ]
        words = _judge_words(results, judge)
        tables.append(Table(columns, cells, f"principles: {principle_set} · judge: {words}", frozenset(columns[3:5])))
    remark = (
        "How often a response under a constitution follows it more than the same model's response under the opposite "
        "does; ½ means that the constitution changes nothing."
    )
    notes = _notes(rows, "model", "judge", "task", "split")
    return Section("Steerability", (), tuple(tables), (remark, *notes))


def _by_principle(results: Results) -> Section:
    """Principle by model (steerability) and principle by comparison (win rate), over all tasks."""
    cells: dict[tuple[str, str, str], dict[tuple[str, str], dict[str, str]]] = {}

    def put(what: str, row: Row, column: str, figures: Row, value: float | None) -> None:
        table = cells.setdefault((what, row["principle_set"], row["judge"]), {})
        place = table.setdefault((row["split"], figures["principle"]), {})
        n = figures.get("n")
        place[column] = f"{rate(value, *_ci(figures), digits=0)}, n {n}" if value is not None else f"{NONE}, n {n}"

    by_judge = ("principle_set", "judge")
    principled = [row for row in _rows(results, "steerability") if row.get("principle") is not None]
    for group in _grouped(principled, *by_judge, "model").values():
        for row in _pooled(group):
            put("Steerability", row, row["model"], row, row.get("steerability"))
    for group in _grouped(_rows(results, "comparisons"), *by_judge, "a", "b").values():
        for row in _pooled(group):
            for figures in row.get("by_principle") or ():
                put("Win rate", row, _versus(row), figures, figures.get("win_rate"))

    tables = []
    for (what, principle_set, judge), table in cells.items():
        names = list(dict.fromkeys(column for place in table.values() for column in place))
        for start in range(0, len(names), COLUMNS_AT_A_TIME):
            chosen = names[start : start + COLUMNS_AT_A_TIME]
            rows = [
                (principle, split_words(split), *(place.get(name, NONE) for name in chosen))
                for (split, principle), place in sorted(
                    table.items(), key=lambda item: (item[0][0] != "learned", item[0])
                )
            ]
            heading = f"{what} by principle · principles: {principle_set} · judge: {judge}"
            tables.append(Table(("principle", "split", *chosen), rows, heading, frozenset(chosen)))
    remark = "Few queries each: a single principle's interval is wide, and about one in twenty misses by chance."
    return Section("By principle", (), tuple(tables), (remark,))


def _information(results: Results) -> Section:
    columns = ("model", "task", "split", "InfoNCE, nats", "responses", "log C", "saturated", "n", "reading")
    rows = _rows(results, "infonce")
    cells = [
        (
            row["model"],
            row["task"],
            split_words(row["split"]),
            number(row.get("infonce"), _ci(row)),
            number(row.get("infonce_responses")),
            number(row.get("log_c")),
            percent(row.get("saturated"), 0),
            str(row.get("n")),
            reading(*_ci(row), 0, "above 0", "below 0"),
        )
        for row in rows
    ]
    remarks = [
        "A lower bound on the mutual information of response and constitution, at most log C, from sums of "
        "log-probabilities over tokens; 0 means none was found. responses: the same with responses as the contrast. "
        "saturated: queries at the limit log C.",
        *_notes(rows, "model", "task", "split"),
    ]
    tables = (Table(columns, cells, numbers=frozenset(columns[3:8])),) if cells else ()
    return Section("Mutual information (InfoNCE)", (), tables, tuple(remarks))


def _training(results: Results) -> Section:
    tables = []
    for model, summary in (results.get("training") or {}).items():
        if not summary:
            continue
        method = str(summary.get("method") or "sami").upper()
        heading = f"{model}: {method}, recipe {summary.get('recipe', 'unknown')}, from {summary.get('from', 'unknown')}"
        iterations = [
            (
                str(row.get("iteration", NONE)),
                str(row.get("queries", NONE)),
                str(row.get("pairs", NONE)),
                ", ".join(f"{rule} {count}" for rule, count in (row.get("filtered") or {}).items() if count) or "none",
                str(row.get("steps", NONE)),
                f"{number(row.get('loss_first'))} → {number(row.get('loss_last'))}",
                percent(row.get("accuracy_last")),
                number(row.get("mi_lower_bound_last")),
                NONE if row.get("seconds") is None else f"{row['seconds']:.0f}",
            )
            for row in summary.get("iterations") or ()
        ]
        columns = ("iteration", "queries", "pairs", "filtered out", "steps", "loss", "accuracy", "MI bound", "s")
        numbers = frozenset(columns) - {"filtered out"}
        if iterations:
            tables.append(Table(columns, iterations, heading, numbers))
        evaluation = summary.get("evaluation") or {}
        before, after = evaluation.get("before") or {}, evaluation.get("after") or {}
        if before or after:
            measures = [
                ("contrastive loss, nats", *(number(x.get("loss"), x.get("loss_ci")) for x in (before, after))),
                (
                    "accuracy",
                    *(rate(x.get("accuracy"), *(x.get("accuracy_ci") or (None, None))) for x in (before, after)),
                ),
                (
                    "MI bound (log C − loss), nats",
                    *(number(x.get("mi_lower_bound"), x.get("mi_lower_bound_ci")) for x in (before, after)),
                ),
                (
                    "log-probability of the own response, nats/token",
                    *(number(x.get("logps/diagonal")) for x in (before, after)),
                ),
                ("KL to the base, nats/token", NONE, number(after.get("kl"))),
            ]
            unseen = f"{model} on {_count(evaluation.get('n', 0), 'query')} not trained on"
            tables.append(Table(("measure", "before", "after"), measures, unseen, frozenset(("before", "after"))))
    warnings = [
        f"Warning, {model}, iteration {row.get('iteration')}, {sentence}"
        for model, summary in (results.get("training") or {}).items()
        for row in (summary or {}).get("iterations") or ()
        for sentence in row.get("warnings") or ()
    ]
    remark = (
        "Contrastive loss and accuracy tell a response's own constitution from its opposite (means over tokens, so not "
        "on the scale of the InfoNCE above); loss and accuracy per iteration are those of single steps (first → last), "
        "the loss being the method's own. s: seconds."
    )
    return Section("Training", (), tuple(tables), (remark, *warnings))


def _lengths(results: Results) -> Section:
    columns = ("comparison", "task", "split", "words a", "words b", "a − b", "n")
    cells = []
    groups = _grouped(_rows(results, "comparisons"), "a", "b", "principle_set", "task", "split")
    for group in groups.values():
        row = max(group, key=lambda row: row.get("n") or 0)  # judges may have seen fewer queries
        a, b = row.get("mean_length_a"), row.get("mean_length_b")
        if a is not None and b is not None:
            place = (_versus(row), row["task"], split_words(row["split"]))
            cells.append((*place, f"{a:.1f}", f"{b:.1f}", f"{a - b:+.1f}", str(row.get("n"))))
    tables = [Table(columns, cells, numbers=frozenset(columns[3:]))] if cells else []
    remark = "Words per response over the scored queries. A win that goes with longer answers may be a win of length."
    without = _without_length(results)
    if without:
        remark += (
            " Stratified: the mean of the win rates where a is the longer and where it is not (the paper's); GLM: what a "
            "logistic regression expects at equal lengths, where these lie within the data; ρ: Spearman's correlation of "
            "score and difference in length."
        )
    return Section("Mean lengths", (), (*tables, *without), (remark,))


def _without_length(results: Results) -> list[Table]:
    """Win rates with length taken out, over all tasks, a table for each judge where the lengths permit them."""
    columns = ("comparison", "split", "win rate", "stratified", "GLM", "ρ")
    cells: dict[str, list[tuple[str, ...]]] = {}
    for (judge, *_), group in _grouped(_rows(results, "comparisons"), "judge", "a", "b", "principle_set").items():
        for row in _pooled(group):
            figures = [row.get(key) or {} for key in ("length_stratified", "length_glm")]
            figures = [{} if figure.get("extrapolated") else figure for figure in figures]
            if any(figure.get("win_rate") is not None for figure in figures):
                cells.setdefault(judge, []).append(
                    (
                        _versus(row),
                        split_words(row["split"]),
                        rate(row.get("win_rate"), *_ci(row)),
                        *(rate(figure.get("win_rate"), *_ci(figure)) for figure in figures),
                        number(row.get("length_spearman"), digits=2),
                    )
                )
    return [
        Table(
            columns, rows, f"Win rates at equal lengths · judge: {_judge_words(results, judge)}", frozenset(columns[2:])
        )
        for judge, rows in cells.items()
    ]


def _judges(results: Results) -> Section:
    cards = results.get("judges") or {}
    columns = ("judge", "kind", "model", "both orders agree", "prefers the first", "the longer", "ties", "unscored")
    cells = [
        (
            name,
            str(card.get("kind", NONE)),
            str(card.get("model") or NONE),
            _of(card, "position_consistency", "n_pairs"),
            percent(card.get("share_first")),
            percent(card.get("longer_wins")),
            percent(card.get("ties")),
            percent(card.get("unscored_rate")),
        )
        for name, card in cards.items()
    ]
    quality = results.get("quality") or {}
    verdict = "passed" if quality.get("passed") else "FAILED"
    sentences = (
        (
            f"Unscored verdicts, missing ones included: {percent(quality['unscored_rate'])} "
            f"(limit {percent(quality.get('max_unscored'))}): {verdict}.",
        )
        if quality.get("unscored_rate") is not None
        else ()
    )
    tables = (Table(columns, cells, numbers=frozenset(columns[3:])),) if cells else ()
    remarks = ["A judge without a lean prefers the answer shown first, and the longer one, in half of what it decides."]
    for name, card in cards.items():
        if reasons := card.get("unscored_reasons"):
            remarks.append(f"Unscored by {name}: {', '.join(f'{reason} {n}' for reason, n in reasons.items())}.")
        if card.get("n_repeated"):
            remarks.append(
                f"Asked again, {name} says the same {percent(card['repeat_agreement'])} of the time "
                f"({card['n_repeated']} pairs and orders)."
            )
        remarks += [
            f"Same family: {name} judges {model}; {how}." for model, how in (card.get("same_family") or {}).items()
        ]
    noise = _judge_noise(results)
    if noise.rows:
        remarks.append(
            "Same score: how often two judgings of a pair give it the same score; sd: how far apart they are, in points. "
            "Of the variance: the judge's own part in the spread of the queries' scores, as they are and had each pair "
            "been judged once. The interval's unit is the query all the same."
        )
    tables = (*tables, *_agreements(cards), *([noise] if noise.rows else ()))
    return Section("Judges", sentences, tables, tuple(remarks) if cells else ())


def _of(card: Row, share: str, n: str) -> str:
    return NONE if card.get(share) is None else f"{percent(card[share])} of {card.get(n, 0)}"


def limits(row: Row, key: str) -> tuple[float | None, float | None]:
    low, high = row.get(key) or (None, None)
    return low, high


def _agreements(cards: dict[str, Row]) -> list[Table]:
    columns = ("judge", "accuracy", "kappa", "sensitivity", "specificity", "n")
    by_reference: dict[str, list[tuple[str, ...]]] = {}
    for name, card in cards.items():
        if found := card.get("agreement"):
            shares = {
                key: rate(found.get(key), *limits(found, f"{key}_ci"), digits=0)
                for key in ("accuracy", "sensitivity", "specificity")
            }
            kappa = number(found.get("kappa"), found.get("kappa_ci"), digits=2)
            cells = (
                name,
                shares["accuracy"],
                kappa,
                shares["sensitivity"],
                shares["specificity"],
                str(found.get("n", 0)),
            )
            by_reference.setdefault(found["reference"], []).append(cells)
    return [
        Table(columns, rows, f"Agreement with the programs of the judge {reference}, by pair", frozenset(columns[1:]))
        for reference, rows in by_reference.items()
    ]


def _corrections(results: Results) -> Section:
    columns = ("task", "split", "as judged", "Rogan-Gladen", "prediction-powered", "n", "labelled")
    tables = []
    groups = _grouped(_rows(results, "corrections"), "a", "b", "principle_set", "judge", "reference")
    for (_, _, principle_set, judge, reference), group in groups.items():
        rows = [
            (
                row["task"],
                split_words(row["split"]),
                *(rate(row[key], *limits(row, f"{key}_ci")) for key in ("win_rate", "rogan_gladen", "ppi")),
                str(row["n"]),
                str(row["n_labelled"]),
            )
            for row in group
        ]
        heading = f"{_versus(group[0])} · principles: {principle_set} · judge: {judge}, corrected by {reference}"
        tables.append(Table(columns, rows, heading, frozenset(columns[2:])))
    remark = (
        "What the win rate would be by the reference, from the queries that both judged (labelled) and those that the judge "
        "alone did (n). Rogan-Gladen takes the judge's errors to be alike on both; prediction-powered inference asks only "
        "that the labelled queries are like the others."
    )
    notes = _notes(_rows(results, "corrections"), "a", "b", "judge", "task", "split")
    return Section("Win rates corrected for the judge's errors", (), tuple(tables), (remark, *notes))


def _judge_noise(results: Results) -> Table:
    """What judging again tells, over all tasks; without rows where each pair was judged once."""
    columns = ("judge", "comparison", "split", "same score", "sd, points", "of the variance", "judged once", "pairs")
    cells = [
        (
            row["judge"],
            _versus(row),
            split_words(row["split"]),
            percent(noise.get("agreement")),
            NONE if noise.get("sd") is None else f"{100 * noise['sd']:.1f}",
            percent(noise.get("share")),
            percent(noise.get("share_once")),
            str(noise.get("n_pairs") or 0),
        )
        for group in _grouped(_rows(results, "comparisons"), "judge", "a", "b", "principle_set").values()
        for row in _pooled(group)
        if (noise := row.get("judge_noise"))
    ]
    return Table(columns, cells, "Judged more than once", frozenset(columns[3:]))


def _rank_stability(results: Results) -> Section:
    """How far every two judges agree, on the queries that both have scored."""
    columns = ("comparison", "split", "by 1", "by 2", "same outcome", "kappa", "order", "n")
    tables = []
    groups = _grouped(_rows(results, "rank_stability"), "judge_1", "judge_2", "principle_set")
    for (one, two, principle_set), group in groups.items():
        cells = [
            (
                _versus(pair),
                split_words(row["split"]),
                percent(pair.get("win_rate_1")),
                percent(pair.get("win_rate_2")),
                rate(pair.get("agreement"), *_ci(pair), digits=0),
                number((pair.get("kappa") or {}).get("kappa"), _ci(pair.get("kappa") or {}), digits=2),
                "flips" if pair.get("flips") else "same",
                str(pair.get("n")),
            )
            for row in group
            for pair in row["pairs"]
        ]
        ranks = "; ".join(
            f"{split_words(row['split'])} {number(row['kendall_tau'], digits=2)} ({row['n_models']} models)"
            for row in group
            if row.get("kendall_tau") is not None
        )
        heading = f"{one} (1) and {two} (2) · principles: {principle_set}" + (f" · tau-b: {ranks}" if ranks else "")
        tables.append(Table(columns, cells, heading, frozenset((*columns[2:6], "n"))))
    remark = (
        "Over the queries that both judges scored: their win rates, how often a query has the same outcome (win, tie, loss), "
        "Cohen's kappa, and whether the order of the two models flips. tau-b: Kendall's correlation of the models' ranks."
    )
    return Section("Rank stability", (), tuple(tables), (remark,))


def _models(results: Results) -> Section:
    columns = ("model", "path", "style", "trained from")
    cells = [
        (name, *(str(model.get(key) or NONE) for key in ("path", "style", "trained_from")))
        for name, model in (results.get("models") or {}).items()
    ]
    return Section("Models", (), (Table(columns, cells),) if cells else ())


def _protocol_words(results: Results) -> list[str]:
    if (results.get("protocol") or "corrected") == "corrected":
        return ["Ties count as half a win. A pair of which one order is unscored is left out, never counted as a tie."]
    return [f"Scored under the protocol {results['protocol']}; ties count: {results.get('tie_rule')}."]


def ladder_sections(ladder: Results) -> list[Section]:
    """The report of `harness.rescore.ladder`: a row per comparison and split, a column per protocol."""
    names = [protocol["name"] for protocol in ladder["protocols"]]
    columns = ("task", "split", names[0], *(part for name in names[1:] for part in (name, "Δ")), "n")
    tables = []
    for (a, b, principle_set, judge), group in _grouped(ladder["rows"], "a", "b", "principle_set", "judge").items():
        cells = []
        for row in group:
            by_name = [row["protocols"][name] for name in names]
            counts = [str(figures["n"]) for figures in by_name]
            steps = [
                part
                for figures in by_name
                for part in (rate(figures["win_rate"], *_ci(figures)), moved(figures["moved"]))
            ]
            n = counts[0] if len(set(counts)) == 1 else "/".join(counts)
            cells.append((row["task"], split_words(row["split"]), steps[0], *steps[2:], n))
        heading = f"{a} against {b} · principles: {principle_set} · judge: {judge}"
        tables.append(Table(columns, cells, heading, frozenset(columns[2:])))
    rules = tuple(f"{protocol['name']}: {_rule_words(protocol)}." for protocol in ladder["protocols"])
    remarks = (
        f"Win rates with {percent(ladder['level'], 0)} intervals; Δ: the win rate minus that in the column before, in points, "
        "on the same judgements; n: queries with a score, by protocol where that differs. A judge that sees one order only "
        "is not concerned by the order.",
    )
    notes = _not_counted(ladder)
    parts = [Section("Protocols", rules, tuple(tables), remarks), _rank_stability(ladder)]
    return [*([notes] if notes.sentences else []), *(part for part in parts if part.tables)]


def moved(value: float | None) -> str:
    """A step from one protocol to the next, in points: ``+3.1``; nothing where it moves nothing."""
    return NONE if value is None else f"{100 * value:+.1f}" if abs(value) >= 0.0005 else "0"


def _rule_words(protocol: Row) -> str:
    orders = "both orders" if protocol["orders"] == "both" else "one order, drawn for each query"
    unscored = "unscored left out" if protocol["unscored"] == "left_out" else "unscored counts as a tie"
    value = {"half": "half a win", "loss": "a loss"}
    ties = f"a tie is {value[protocol['ties']]}"
    if protocol["ties_in_summarization"] != protocol["ties"]:
        ties += f" in dialogue and {value[protocol['ties_in_summarization']]} in summarization"
    return f"{orders}; {unscored}; {ties}" + ("; the first judging alone" if protocol["repeats"] == "first" else "")


def cost_section(results: Results) -> Section:
    """What API models were asked and what that cost; nothing where there is none."""
    cost = results.get("cost") or {}
    rows = [
        (
            name,
            str(model.get("path")),
            f"{model['requests']:,}",
            f"{model['input_tokens']:,}",
            f"{model['cached_input_tokens']:,}",
            f"{model['output_tokens']:,}",
            NONE if model["dollars"] is None else f"{model['dollars']:,.2f}",
        )
        for name, model in (cost.get("models") or {}).items()
    ]
    if not rows:
        return Section("Cost")
    columns = ("model", "path", "requests", "input tokens", "cached", "output tokens", "dollars")
    total = cost.get("dollars")
    said = f"In all {total:,.2f} dollars." if total is not None else "Of a model without dollars no price is known."
    dates = sorted({m["price"]["date"] for m in cost["models"].values() if (m["price"] or {}).get("date")})
    remark = (
        f"Tokens as the providers count them; prices as of {_and(dates)}."
        if dates
        else "Tokens as the providers count them."
    )
    return Section("Cost", (said,), (Table(columns, rows, numbers=frozenset(columns[2:])),), (remark,))


def _footnotes(results: Results) -> Section:
    rows = _rows(results, "comparisons") + _rows(results, "steerability")
    if not rows:
        return Section("How to read this")
    methods = sorted({row["ci_method"] for row in rows if row.get("ci_method")})
    gap_methods = sorted({row["ci_method"] for row in _rows(results, "gaps") if row.get("ci_method")})
    intervals = f"Intervals are {percent(results.get('level', 0.95), 0)}: {'; '.join(methods) or 'none in this run'}."
    if any("Clopper" in method for method in methods):
        intervals += " Clopper-Pearson's is for fewer than 10 queries, and wide on purpose."
    if gap_methods:
        intervals += f" Gaps: {'; '.join(gap_methods)}."
    notes = [
        "Unit: the query. The verdicts on a query (both answer orders, its constitutions, repeats) are averaged before "
        "anything else; n counts queries. W/T/L: queries whose mean is above, at or below one half.",
        *_protocol_words(results),
        intervals,
        f"{ABOVE}, {BELOW}: the whole interval lies there. {UNCLEAR}: it contains one half (for gaps, zero), which is "
        "not a proof of equality. Readings are not adjusted for the number of rows; p Holm is.",
    ]
    return Section("How to read this", tuple(notes))
