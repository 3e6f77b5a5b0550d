"""Red flags: what a reader must know before the win rates, a short clause each."""

from __future__ import annotations

import re

from harness.report.readings import side
from harness.report.trust import at_chance, by_judges, judges_of, trusted
from harness.report.words import (
    Results,
    Row,
    counted,
    grouped,
    interval_of,
    joined,
    percent,
    points,
    pooled_rows,
    rate,
    rows_of,
    split_words,
)

MANY = 0.2
"""Share of responses, in [0, 1], from which what is wrong with them is a red flag."""
FEW = 30
"""Queries under which the report says that there are few."""
WRONG = {
    "copied": "copy their principle",
    "ran_on": "run on",
    "cut": "cut at the limit",
    "empty": "empty",
    "repeats_query": "repeat the query",
    "same_text": "the text of another query's response",
    "shortened": "answer a shortened query",
}


def flags(results: Results, hidden: str = "") -> list[str]:
    """The red flags, those about the whole run first. `hidden` follows a judge that is not trusted."""
    believed = [judge for judge in judges_of(results) if trusted(results, judge)]
    rows = _headline(by_judges(results, believed) if believed else results)
    return [
        *_incomplete(results),
        *_few(rows),
        *_degenerate(results),
        *_identical(rows),
        *_off_the_query(results, rows),
        *_copied_wins(rows),
        *_swapped(rows),
        *_training(results),
        *_kin(results, believed),
        *(f"{said}{hidden}" for said in at_chance(results)),
    ]


def _headline(results: Results) -> list[Row]:
    groups = grouped(rows_of(results, "comparisons"), "judge", "principle_set", "a", "b").values()
    return [row for group in groups for row in pooled_rows(group)]


def looks(results: Results) -> list[str]:
    """What was looked at too early, in short (`harness.report.looks.looks_said` has the sentences); before all other flags."""
    found = []
    if interim := results.get("interim"):
        found.append(f"unfinished: {interim['n']} of {interim['of']} queries, unplanned look (intervals allow for it)")
    if looked := results.get("looked"):
        before = joined([str(look["n"]) for look in looked])
        found.append(
            f"queries were added after results at n = {before} were shown; the intervals do not allow for that"
        )
    return found


def _incomplete(results: Results) -> list[str]:
    quality, found = results.get("quality") or {}, []
    if not quality.get("passed", True):
        limit = percent(quality.get("max_unscored"))
        whose = f"{quality['judge']}'s verdicts" if quality.get("judge") else "verdicts"
        found.append(f"incomplete: {percent(quality['unscored_rate'])} of {whose} unscored (limit {limit})")
    if n := sum(row.get("n") or 0 for row in rows_of(results, "not_counted")):
        found.append(f"{counted(n, 'verdict')} in the folder {'is' if n == 1 else 'are'} not counted")
    return found


def _few(rows: list[Row]) -> list[str]:
    counts = [row["n"] for row in rows if row.get("n")]
    return [f"few queries: n = {min(counts)}"] if counts and min(counts) < FEW else []


def _degenerate(results: Results) -> list[str]:
    """What is wrong with a model's responses, over all tasks; where splits differ, the range."""
    found = []
    for (model,), rows in grouped(rows_of(results, "responses"), "model").items():
        pooled = [row for of_set in grouped(rows, "principle_set").values() for row in pooled_rows(of_set)]
        shares = {measure: [row.get(measure) or 0.0 for row in pooled] for measure in WRONG}
        said = [
            f"{_range(shares[measure])} {words}" for measure, words in WRONG.items() if max(shares[measure]) >= MANY
        ]
        if said:
            found.append(f"{model}: {', '.join(said)}")
    return found


def _range(shares: list[float]) -> str:
    low, high = (percent(share, 0) for share in (min(shares), max(shares)))
    return high if low == high else f"{low[:-1]}-{high}"


def _identical(rows: list[Row]) -> list[str]:
    found = []
    for (a, b), group in grouped(rows, "a", "b").items():
        share = max((row.get("responses") or {}).get("identical") or 0.0 for row in group)
        if share >= MANY:
            found.append(f"{a} and {b} wrote the same in {percent(share, 0)}")
    return found


def _off_the_query(results: Results, rows: list[Row]) -> list[str]:
    """Relevance that is not above chance, and relevance that is lower than the opponent's by more than its interval.

    Of several splits the worst.
    """
    low = []
    for (model,), group in grouped(rows_of(results, "responses"), "model").items():
        known = [of for row in pooled_rows(group) if (of := row.get("relevance") or {}).get("n")]
        at_chance = [of for of in known if side(*interval_of(of)) < 1]
        if at_chance:
            worst = min(at_chance, key=lambda of: float(of["relevance"]))
            low.append(f"{model} {rate(worst['relevance'], *interval_of(worst), digits=0)}")
    found = [f"relevance to the query not above chance: {', '.join(low)}"] if low else []
    for (a, b), group in grouped(rows, "a", "b").items():
        falls = [of for row in group if side(*_limits(of := row.get("relevance") or {}), 0) < 0]
        if falls:
            worst = min(falls, key=lambda of: float(of["difference"]))
            change = points(worst["difference"], *_limits(worst))
            found.append(f"{a} answers the query less than {b}: relevance {change} points")
    return found


def _limits(relevance: Row) -> tuple[float | None, float | None]:
    return relevance.get("difference_low"), relevance.get("difference_high")


def _copied_wins(rows: list[Row]) -> list[str]:
    """Where a result stands only with text that is copied from the constitution."""
    found = []
    for row in rows:
        whole = row.get("whole") or {}
        with_copies, without = side(*interval_of(whole)), side(*interval_of(row))
        if with_copies and with_copies != without:
            where = "above" if with_copies > 0 else "below"
            with_it, without_it = (rate(x["win_rate"], *interval_of(x), digits=0) for x in (whole, row))
            found.append(
                f"{row['a']} vs {row['b']}, {split_words(row['split'])}: {where} one half only with copied text "
                f"({with_it}, without {without_it})"
            )
    return found


def _swapped(rows: list[Row]) -> list[str]:
    """Where a model wins, or loses, under constitutions that neither was given as well."""
    found = []
    for row in rows:
        control = row.get("swapped") or {}
        if (own := side(*interval_of(row))) and own == side(*interval_of(control)):
            figure = rate(control["win_rate"], *interval_of(control), digits=0)
            found.append(
                f"{row['a']} vs {row['b']}, {split_words(row['split'])}: also {figure} under constitutions neither was given"
            )
    return found


def _training(results: Results) -> list[str]:
    """The newest warning of the first kind about each trained model, to its first full stop; other kinds are counted."""
    found = []
    for model, summary in (results.get("training") or {}).items():
        kinds: dict[str, str] = {}
        for row in (summary or {}).get("iterations") or ():
            for warning in row.get("warnings") or ():
                text = re.sub(r"^step \d+: ", "", str(warning))
                kinds[re.split("[:.]", text)[0]] = re.split(r"[.] (?=[A-Z])", text)[0]
        if kinds:
            more = f" (and {len(kinds) - 1} more)" if len(kinds) > 1 else ""
            found.append(f"training of {model}: {next(iter(kinds.values()))}{more}")
    return found


def _kin(results: Results, judges: list[str]) -> list[str]:
    cards = results.get("judges") or {}
    return [
        f"judge {judge} judges its own kin, {joined(list(akin))}"
        for judge in judges
        if (akin := (cards.get(judge) or {}).get("same_family") or {})
    ]
