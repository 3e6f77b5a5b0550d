"""Which judges a headline is made of."""

from __future__ import annotations

from harness.report.readings import side
from harness.report.words import Results, Row, limits, number, rate, rows_of


def trusted(results: Results, judge: str) -> bool:
    return why_not(results, judge) is None


def why_not(results: Results, judge: str) -> str | None:
    """Why a judge is not shown to do better than a coin; None for programs and for judges that are.

    A model's verdicts must agree in both orders in more than one half of pairs, and with the run's reference more than by
    chance (kappa above 0), each by its interval.
    """
    card = (results.get("judges") or {}).get(judge) or {}
    if card.get("kind") != "llm":
        return None
    kept = limits(card.get("intervals") or {}, "position_consistency")
    if side(*kept) < 1:
        if card.get("position_consistency") is None:
            return "no pair judged in both orders"
        return f"orders agree {rate(card['position_consistency'], *kept, digits=0)}"
    agreement = card.get("agreement") or {}
    found = (agreement.get("by_kind") or {}).get("win_rate") or agreement
    if found and side(*limits(found, "kappa_ci"), 0) < 1:
        return f"kappa with {agreement['reference']} {number(found.get('kappa'), found.get('kappa_ci'), digits=2)}"
    return None


def judges_of(results: Results) -> list[str]:
    """The judges that have a row, in the order of the results."""
    rows = rows_of(results, "comparisons") + rows_of(results, "steerability")
    return list(dict.fromkeys(str(row.get("judge")) for row in rows))


def by_judges(results: Results, judges: list[str]) -> Results:
    """The results with these judges' rows alone."""

    def kept(rows: list[Row]) -> list[Row]:
        return [row for row in rows if row.get("judge") in judges]

    tables = ("comparisons", "gaps", "steerability", "leaderboards", "corrections")
    return {**results, **{name: kept(rows_of(results, name)) for name in tables}}


def at_chance(results: Results) -> list[str]:
    """``judge smollm2 at chance (orders agree 0% [0, 60])``, for each that is not trusted."""
    return [
        f"judge {judge} {'not tested' if why.startswith('no pair') else 'at chance'} ({why})"
        for judge in judges_of(results)
        if (why := why_not(results, judge))
    ]
