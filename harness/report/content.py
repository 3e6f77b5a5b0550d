"""What a report says, as plain text in tables and sentences. How it looks is for `terminal` and `markdown`.

Everything is made from the results alone, and keys that are missing from them are left out of the report.
"""

from __future__ import annotations

from harness.report.findings import NOTHING_COMPARED, what_it_shows
from harness.report.judges import corrections_section, judges_section, rank_stability_section
from harness.report.readings import RUNS, UNLIKE, legend, reading
from harness.report.responses import adjusted_section, responses_section
from harness.report.win_rates import (
    by_principle_section,
    gaps_section,
    information_section,
    leaderboards_section,
    lengths_section,
    steerability_section,
    swapped_section,
    win_rates_section,
)
from harness.report.words import (
    NONE,
    Results,
    Row,
    Section,
    Table,
    counted,
    grouped,
    interval_of,
    joined,
    moved,
    number,
    p_value,
    percent,
    points,
    rate,
    rows_of,
    split_words,
    versus,
)


def sections(results: Results) -> list[Section]:
    """The report of a run, in reading order; parts about which the results say nothing are left out."""
    parts = [
        what_it_shows(results),
        not_counted_section(results),
        win_rates_section(results),
        responses_section(results),
        adjusted_section(results),
        leaderboards_section(results),
        gaps_section(results),
        swapped_section(results),
        steerability_section(results),
        by_principle_section(results),
        information_section(results),
        training_section(results),
        lengths_section(results),
        judges_section(results),
        corrections_section(results),
        rank_stability_section(results),
        models_section(results),
        cost_section(results),
        footnotes_section(results),
    ]
    return [part for part in parts if part.sentences or part.tables]


def comparison_sections(comparison: Results) -> list[Section]:
    """The report of `harness.compare.compare`."""
    groups: dict[str, list[tuple[str, ...]]] = {}
    for row in comparison["rows"]:
        low, high = row["ci_low"], row["ci_high"]
        groups.setdefault(versus(row) + f" · principles: {row['principle_set']} · judge: {row['judge']}", []).append(
            (
                row["task"],
                split_words(row["split"]),
                percent(row["win_rate_a"]),
                percent(row["win_rate_b"]),
                points(row["difference"], low, high),
                str(row["n_common"]),
                p_value(row["p_holm"]),
                UNLIKE if row["differs"] else reading(row, comparison["level"], RUNS, 0),
            )
        )
    columns = ("task", "split", "A", "B", "A − B, points", "n", "p Holm", "reading")
    numbers = frozenset(columns[2:7])
    tables = tuple(Table(columns, rows, heading, numbers) for heading, rows in groups.items())
    alone = [
        f"Only run {run} has {versus(key)} on {key['task']}, {split_words(key['split'])} "
        f"({key['principle_set']}, judge {key['judge']})."
        for run, keys in (("A", comparison["only_a"]), ("B", comparison["only_b"]))
        for key in keys
    ]
    unpaired = sum(row["n_only_a"] + row["n_only_b"] for row in comparison["rows"])
    methods = ", ".join(sorted({row["ci_method"] for row in comparison["rows"] if row["ci_method"]}))
    tested = sum(row["p_holm"] is not None for row in comparison["rows"])
    told = legend([row[-1] for table in tables for row in table.rows], [tested])
    remarks = [
        f"A and B are the win rates of the pair's first model over the n queries that both runs have scored; "
        f"{unpaired} scores of queries in one run alone are left out.",
        f"A − B is in percentage points with a {percent(comparison['level'], 0)} interval ({methods}).",
        "p Holm: sign-flip test, paired by query, adjusted for all rows of this comparison. The reading needs both that p and "
        f"the interval{'; ' if told else ''}{'; '.join(told)}.",
    ]
    runs = (f"A: {comparison['run_a']}", f"B: {comparison['run_b']}")
    unlike = [
        f"{UNLIKE}: {versus(row)} on {row['task']}, {split_words(row['split'])}: {', '.join(row['differs'])} "
        f"differ{'s' * (len(row['differs']) == 1)} between the runs, so that the difference is not of the models alone."
        for row in comparison["rows"]
        if row["differs"]
    ]
    if changed := sum(row["n_other_text"] for row in comparison["rows"]):
        unlike.append(f"{changed} scores of queries whose id has another text in the other run are left out.")
    return [Section("Two runs, paired by query", runs, tables, (*remarks, *unlike, *alone))]


def not_counted_section(results: Results) -> Section:
    return Section("Not counted", tuple(row["note"] for row in rows_of(results, "not_counted")))


def training_section(results: Results) -> Section:
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
                (
                    "relevance of sampled responses",
                    *(percent(x.get("completions/relevance"), 0) for x in (before, after)),
                ),
                ("KL to the base, nats/token", NONE, number(after.get("kl"))),
                (
                    "change of the loss, nats",
                    NONE,
                    number(evaluation.get("loss_change"), evaluation.get("loss_change_ci")),
                ),
            ]
            measures = [row for row in measures if set(row[1:]) != {NONE}]
            unseen = f"{model} on {counted(evaluation.get('n', 0), 'query')} not trained on"
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


def models_section(results: Results) -> Section:
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
    for (a, b, principle_set, judge), group in grouped(ladder["rows"], "a", "b", "principle_set", "judge").items():
        cells = []
        for row in group:
            by_name = [row["protocols"][name] for name in names]
            counts = [str(figures["n"]) for figures in by_name]
            steps = [
                part
                for figures in by_name
                for part in (rate(figures["win_rate"], *interval_of(figures)), moved(figures["moved"]))
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
    notes = not_counted_section(ladder)
    parts = [Section("Protocols", rules, tuple(tables), remarks), rank_stability_section(ladder)]
    found = [*([notes] if notes.sentences else []), *(part for part in parts if part.tables)]
    return found or [Section("Protocols", (NOTHING_COMPARED,))]


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
        f"Tokens as the providers count them; prices as of {joined(dates)}."
        if dates
        else "Tokens as the providers count them."
    )
    untold = [
        f"Of {name}, {counted(model['estimated'], 'request')} came back without a count, and count for the most that they can be."
        for name, model in cost["models"].items()
        if model.get("estimated")
    ]
    return Section("Cost", (said,), (Table(columns, rows, numbers=frozenset(columns[2:])),), (remark, *untold))


def footnotes_section(results: Results) -> Section:
    rows = rows_of(results, "comparisons") + rows_of(results, "steerability")
    if not rows:
        return Section("How to read this")
    methods = sorted({row["ci_method"] for row in rows if row.get("ci_method")})
    gap_methods = sorted({row["ci_method"] for row in rows_of(results, "gaps") if row.get("ci_method")})
    intervals = f"Intervals are {percent(results.get('level', 0.95), 0)}: {'; '.join(methods) or 'none in this run'}."
    if gap_methods:
        intervals += f" Gaps: {'; '.join(gap_methods)}."
    notes = [
        "Unit: the query. The verdicts on a query (both answer orders, its constitutions, repeats) are averaged before "
        "anything else; n counts queries. W/T/L: queries whose mean is above, at or below one half.",
        *_protocol_words(results),
        intervals,
        "beats, loses to: p Holm is at most one minus the level, and the interval over queries excludes one half (for gaps, "
        "zero). ahead*, behind*: the interval alone. –: neither, which is not a proof of equality.",
    ]
    return Section("How to read this", tuple(notes))
