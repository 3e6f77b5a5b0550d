"""The report's tables of win rates, and of what else is measured of the models."""

from __future__ import annotations

from harness.report.headline import like_these, relevance_of_both
from harness.report.readings import GAP, UNCLEAR, family_size, legend, level_of, reading, side
from harness.report.words import (
    NONE,
    Results,
    Row,
    Section,
    Table,
    grouped,
    interval_of,
    joined,
    judge_words,
    limits,
    notes_of,
    number,
    p_value,
    percent,
    points,
    pooled_rows,
    rate,
    rows_of,
    split_words,
    tasks_last,
    versus,
)

COLUMNS_AT_A_TIME = 3
"""Models or comparisons beside each other in a table by principle: what fits in 100 columns."""
MATRIX_FROM = 4
"""Models from which on the report shows every pair in a matrix; with fewer the table of win rates is as short."""
MATRIX = ("win_rate", "ci_low", "ci_high")


def win_rates_section(results: Results) -> Section:
    columns = ("task", "split", "n", "win rate", "like these", "p Holm", "reading", "relevance", "W/T/L", "p")
    tables = []
    groups = grouped(rows_of(results, "comparisons"), "a", "b", "principle_set", "judge")
    marks, sizes = [], []
    for (_, _, principle_set, judge), group in groups.items():
        rows = [
            (
                row["task"],
                split_words(row["split"]),
                scored(row),
                rate(row.get("win_rate"), *interval_of(row)),
                like_these(row),
                p_value(row.get("p_holm")),
                reading(row, level_of(results)),
                relevance_of_both(row),
                f"{row.get('wins')}/{row.get('ties')}/{row.get('losses')}",
                p_value(row.get("p_value")),
            )
            for row in tasks_last(group)
        ]
        marks += [row[6] for row in rows]
        sizes += [family_size(results, "comparisons", row) for row in group if row.get("p_holm") is not None]
        words = judge_words(results, judge)
        heading = f"{versus(group[0])} · principles: {principle_set} · judge: {words}"
        tables.append(
            Table(columns, rows, heading, frozenset((*columns[2:6], *columns[7:])), beside=True).without_empty()
        )
    remark = (
        "p: sign-flip test of the queries' scores against one half; p Holm: adjusted for the rows of all tasks together, or for "
        "those of single tasks, of a judge on a principle set. n: queries scored, of those planned where some are missing."
    )
    told = "; ".join(legend(marks, sizes))
    remarks = [remark, LIKE_THESE, *([f"{told}."] if told else [])]
    remarks += [RELEVANCE] if any("relevance" in table.columns for table in tables) else []
    few = principle_notes(rows_of(results, "comparisons"))
    return Section(
        "Win rates", (), tuple(tables), (remark, LIKE_THESE, *([f"{told}."] if told else []), RELEVANCE, *few)
    )


LIKE_THESE = (
    "Intervals beside a figure are over queries, under these principles; like these: the interval for other principles like "
    "these."
)
RELEVANCE = (
    "relevance, of a / of b: how often a response is likelier after its own query than after another, by a scorer; one half "
    "is chance. Without that of b where another model scored it."
)


def principle_notes(rows: list[Row]) -> list[str]:
    """Why rows have no interval over principles, each reason once."""
    return list(dict.fromkeys(str(note) for row in rows if (note := (row.get("principles_ci") or {}).get("note"))))


def scored(row: Row) -> str:
    """Queries with a score, of those planned where some are missing."""
    n, planned = row.get("n"), row.get("n_expected")
    return f"{n}" if n == planned or planned is None else f"{n} of {planned}"


def leaderboards_section(results: Results) -> Section:
    """Models by their chance against the base model, splits beside each other; the matrix where many models met."""
    tables = []
    boards = rows_of(results, "leaderboards")
    for (principle_set, judge), group in grouped(boards, "principle_set", "judge").items():
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
            heading = f"principles: {principle_set} · judge: {judge_words(results, judge)}"
            tables.append(Table(tuple(columns), [tuple(row) for row in rows.values()], heading, frozenset(columns[1:])))
        if len(names) >= MATRIX_FROM:
            tables += [_matrix(board) for board in group]
    unbounded = [
        f"{split_words(board['split'])}, {board['judge']}: {joined(board['unbounded'])} won or lost everything, so that half a "
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


def gaps_section(results: Results) -> Section:
    rows = rows_of(results, "gaps")
    columns = (
        "judge",
        "task",
        "these, points",
        "p Holm",
        "reading",
        "like these, points",
        "difference of differences",
        "n",
    )
    tables = []
    for (_, _, principle_set), group in grouped(rows, "a", "b", "principle_set").items():
        cells = [
            (
                row["judge"],
                row["task"],
                points(row.get("gap"), *interval_of(row)),
                p_value(row.get("p_holm")),
                reading(row, level_of(results), GAP, 0),
                _points_of(row.get("principles")),
                _points_of(row.get("steered")),
                str(row.get("n")),
            )
            for row in tasks_last(group)
        ]
        heading = f"{versus(group[0])} · principles: {principle_set}"
        numbers = frozenset((*columns[2:4], *columns[5:]))
        tables.append(Table(columns, cells, heading, numbers).without_empty())
    remark = (
        "Win rate on learned minus win rate on held-out principles, paired by query; p by sign flips, adjusted as those of the win "
        "rates. like these: for other principles like these (Welch's t over principles)."
    )
    steered = [row["steered"] for row in rows if (row.get("steered") or {}).get("gap") is not None]
    if steered:
        remark += (
            " difference of differences: how much training raised steerability on learned principles, minus how much on held-out "
            "ones, for principles like these; how hard the two sets are does not move it."
        )
    marks = legend(
        [cell[4] for table in tables for cell in table.rows if "reading" in table.columns],
        [family_size(results, "gaps", row) for row in rows if row.get("p_holm") is not None],
    )
    told = [f"{'; '.join(marks)}."] if marks else []
    inner = [of["note"] for row in rows for key in ("principles", "steered") if (of := row.get(key) or {}).get("note")]
    notes = notes_of(rows, "a", "b", "judge", "task")
    return Section("Generalisation gap", (), tuple(tables), (remark, *told, *dict.fromkeys(inner), *notes))


def _points_of(figure: Row | None) -> str:
    figure = figure or {}
    return points(figure.get("gap"), *interval_of(figure))


def swapped_section(results: Results) -> Section:
    """The control, over all tasks."""
    columns = ("comparison", "judge", "split", "swapped", "own − swapped, points", "n")
    cells = [
        (
            versus(row),
            row["judge"],
            split_words(row["split"]),
            rate(control.get("win_rate"), *interval_of(control)),
            points(*(control.get(key) for key in ("difference", "difference_low", "difference_high"))),
            str(control.get("n_paired") or 0),
        )
        for rows in grouped(rows_of(results, "comparisons"), "a", "b", "principle_set", "judge").values()
        for row in pooled_rows(rows)
        if (control := row.get("swapped"))
    ]
    remark = (
        "The same pairs judged under constitutions that neither model was given. A swapped win rate away from one half is "
        "style or length, not following; own − swapped, paired by query, is what is left without it."
    )
    tables = (Table(columns, cells, numbers=frozenset(columns[3:])),) if cells else ()
    return Section("Swapped constitutions", (), tables, (remark,))


def steerability_section(results: Results) -> Section:
    columns = ("model", "task", "split", "n", "steerability", "like these", "reading", "relevance")
    tables = []
    rows = [row for row in rows_of(results, "steerability") if row.get("principle") is None]
    relevance = {
        tuple(row.get(key) for key in ("model", "task", "principle_set", "split")): row.get("relevance") or {}
        for row in rows_of(results, "responses")
    }
    for (principle_set, judge), group in grouped(rows, "principle_set", "judge").items():
        cells = [
            (
                row["model"],
                row["task"],
                split_words(row["split"]),
                str(row.get("n")),
                rate(row.get("steerability"), *interval_of(row)),
                like_these(row),
                STEERED[side(*interval_of(row))] if row.get("ci_low") is not None else "no score",
                rate(of.get("relevance"), *interval_of(of), digits=0),
            )
            for of_model in grouped(group, "model").values()
            for row in tasks_last(of_model)
            if (of := relevance.get((row["model"], row["task"], principle_set, row["split"]), {})) is not None
        ]
        words = judge_words(results, judge)
        numbers = frozenset((*columns[3:6], columns[-1]))
        table = Table(columns, cells, f"principles: {principle_set} · judge: {words}", numbers, beside=True)
        tables.append(table.without_empty())
    remark = (
        "How often a response under a constitution follows it more than the same model's response under the opposite "
        "does; ½ means that the constitution changes nothing. The reading is of the interval alone; – it holds ½."
    )
    notes = notes_of(rows, "model", "judge", "task", "split")
    return Section("Steerability", (), tuple(tables), (remark, *principle_notes(rows), *notes))


STEERED = {1: "above ½", 0: UNCLEAR, -1: "below ½"}


def by_principle_section(results: Results) -> Section:
    """Principle by model (steerability) and principle by comparison (win rate), over all tasks."""
    cells: dict[tuple[str, str, str], dict[tuple[str, str], dict[str, str]]] = {}

    def put(what: str, row: Row, column: str, figures: Row, value: float | None) -> None:
        table = cells.setdefault((what, row["principle_set"], row["judge"]), {})
        place = table.setdefault((row["split"], figures["principle"]), {})
        n = figures.get("n")
        place[column] = (
            f"{rate(value, *interval_of(figures), digits=0)}, n {n}" if value is not None else f"{NONE}, n {n}"
        )

    by_judge = ("principle_set", "judge")
    principled = [row for row in rows_of(results, "steerability") if row.get("principle") is not None]
    for group in grouped(principled, *by_judge, "model").values():
        for row in pooled_rows(group):
            put("Steerability", row, row["model"], row, row.get("steerability"))
    for group in grouped(rows_of(results, "comparisons"), *by_judge, "a", "b").values():
        for row in pooled_rows(group):
            for figures in row.get("by_principle") or ():
                put("Win rate", row, versus(row), figures, figures.get("win_rate"))

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


def information_section(results: Results) -> Section:
    columns = (
        "model",
        "task",
        "split",
        "InfoNCE, nats",
        "responses",
        "log C",
        "saturated",
        "n",
        "reading",
    )
    rows = rows_of(results, "infonce")
    cells = [
        (
            row["model"],
            row["task"],
            split_words(row["split"]),
            number(row.get("infonce"), interval_of(row)),
            number(row.get("infonce_responses")),
            number(row.get("log_c")),
            percent(row.get("saturated"), 0),
            str(row.get("n")),
            NONE if row.get("ci_low") is None else {1: "above 0", 0: NONE, -1: "below 0"}[side(*interval_of(row), 0)],
        )
        for row in rows
    ]
    remarks = [
        "A lower bound on the mutual information of response and constitution, at most log C, from sums of "
        "log-probabilities over tokens; 0 means none was found. responses: the same with responses as the contrast. "
        "saturated: queries at the limit log C. own likeliest: responses whose own constitution is the likeliest of "
        "all to have led to them.",
        *notes_of(rows, "model", "task", "split"),
    ]
    likeliest = ("model", "task", "split", "own likeliest", "chance", "n", "reading")
    own = [
        (
            row["model"],
            row["task"],
            split_words(row["split"]),
            rate(row["own_likeliest"], *limits(row, "own_likeliest_ci")),
            percent(row["chance"], 0),
            str(row["n"]),
            {1: "above chance", 0: NONE, -1: "below chance"}[side(*limits(row, "own_likeliest_ci"), row["chance"])],
        )
        for row in rows
        if row.get("own_likeliest") is not None
    ]
    tables = [Table(columns, cells, numbers=frozenset(columns[3:8]))] if cells else []
    if own:
        tables.append(Table(likeliest, own, "Responses by the constitution they are from", frozenset(likeliest[3:6])))
    return Section("Mutual information (InfoNCE)", (), tuple(tables), tuple(remarks))


def lengths_section(results: Results) -> Section:
    columns = ("comparison", "task", "split", "words a", "words b", "a − b", "n")
    cells = []
    groups = grouped(rows_of(results, "comparisons"), "a", "b", "principle_set", "task", "split")
    for group in groups.values():
        row = max(group, key=lambda row: row.get("n") or 0)  # judges may have seen fewer queries
        a, b = row.get("mean_length_a"), row.get("mean_length_b")
        if a is not None and b is not None:
            place = (versus(row), row["task"], split_words(row["split"]))
            cells.append((*place, f"{a:.1f}", f"{b:.1f}", f"{a - b:+.1f}", str(row.get("n"))))
    tables = [Table(columns, cells, numbers=frozenset(columns[3:]))] if cells else []
    remark = "Words per response over the scored queries. A win that goes with longer answers may be a win of length."
    equal, halves = (_without_length(results, *what) for what in (EQUAL_LENGTHS, HALVES))
    if equal:
        remark += (
            " At equal lengths: what a logistic regression expects where both responses are as long, if enough queries lie on "
            "both sides of that; ρ: Spearman's correlation of score and difference in length."
        )
    if halves:
        remark += (
            " Longer and not longer: the unweighted mean of two win rates, which is the paper's for dialogue; it takes out which "
            "of the two is longer how often, not by how much, and is no win rate at equal lengths."
        )
    return Section("Mean lengths", (), (*tables, *equal, *halves), (remark,))


EQUAL_LENGTHS = ("length_glm", "at equal lengths", "Win rates at equal lengths")
HALVES = (
    "length_stratified",
    "mean of the two",
    "Mean of the win rates where the response is longer and where it is not",
)


def _without_length(results: Results, key: str, column: str, heading: str) -> list[Table]:
    """Win rates with length taken out in one way, over all tasks, a table for each judge where the lengths permit it."""
    columns = ("comparison", "split", "win rate", column, "n", "ρ")
    cells: dict[str, list[tuple[str, ...]]] = {}
    for (judge, *_), group in grouped(rows_of(results, "comparisons"), "judge", "a", "b", "principle_set").items():
        for row in pooled_rows(group):
            figure = row.get(key) or {}
            if figure.get("win_rate") is not None:
                cells.setdefault(judge, []).append(
                    (
                        versus(row),
                        split_words(row["split"]),
                        rate(row.get("win_rate"), *interval_of(row)),
                        rate(figure["win_rate"], *interval_of(figure)),
                        str(figure.get("n")),
                        number(row.get("length_spearman"), digits=2),
                    )
                )
    return [
        Table(columns, rows, f"{heading} · judge: {judge_words(results, judge)}", frozenset(columns[2:]))
        for judge, rows in cells.items()
    ]
