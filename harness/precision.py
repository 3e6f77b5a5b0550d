"""How precise a run's win rates will be, before it is run: by the same model of variance as the report's intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.stats import (
    expected_half_width,
    minimum_detectable_effect,
    principles_floor,
    principles_half_width,
    score_sd,
)

if TYPE_CHECKING:
    from harness.plan import Plan

TIE_RATE = 0.4
"""Share of the queries that tie, as checks of a feature give it on the bundled tasks."""
PRINCIPLES_SD = 0.1
"""Standard deviation of the principles' own win rates."""
FEWEST_PRINCIPLES = 5
"""`harness.stats.principles_interval` gives no interval below."""
ASSUMED = {"win_rate": 0.5, "tie_rate": TIE_RATE, "principles_sd": PRINCIPLES_SD, "power": 0.8}


def precision(plan: Plan) -> list[dict[str, Any]]:
    """A row for each task, principle set and split, and for all tasks together (task "all") where there are several.

    None where nothing is compared.

    Fractions, at a win rate of one half. `half_width`: of the interval over `n` queries; `mde`: the smallest distance from one half
    that is found with a power of 80%; both with `TIE_RATE` ties and, as `..._no_ties`, at worst. `principles`: of the interval
    for principles like the `n_principles`, its `half_width`, its `floor`, which no number of queries gets below, and what twice the
    queries or principles bring; null below `FEWEST_PRINCIPLES`.
    """
    if not plan.spec.comparisons:
        return []
    queries: dict[tuple[str, str, str], int] = {}
    principles: dict[tuple[str, str, str], set[str]] = {}
    for (task, set_name, split), by_query in plan.constitutions.items():
        used = {e.principle.id for drawn in by_query.values() for c in drawn for e in c.elements}
        for place in ((task, set_name, split), ("all", set_name, split)):
            queries[place] = queries.get(place, 0) + len(by_query)
            principles.setdefault(place, set()).update(used)
    several = {key[1:] for key in queries if sum(key[1:] == other[1:] for other in queries) > 2}
    return [
        {"task": task, "principle_set": set_name, "split": split, **_widths(n, len(principles[task, set_name, split]), plan)}
        for (task, set_name, split), n in sorted(queries.items(), key=lambda item: item[0][0] == "all")
        if task != "all" or (set_name, split) in several
    ]  # fmt: skip


def _widths(n: int, n_principles: int, plan: Plan) -> dict[str, Any]:
    level = plan.spec.statistics.level
    among = None
    if n_principles >= FEWEST_PRINCIPLES:

        def half_width(n: int, n_principles: int) -> float:
            return principles_half_width(n, n_principles, PRINCIPLES_SD, 0.5, TIE_RATE, level)

        among = {
            "half_width": half_width(n, n_principles),
            "floor": principles_floor(n_principles, PRINCIPLES_SD, level),
            "twice_the_queries": half_width(2 * n, n_principles),
            "twice_the_principles": half_width(n, 2 * n_principles),
        }
    return {
        "n": n,
        "n_principles": n_principles,
        "half_width": expected_half_width(n, 0.5, TIE_RATE, level),
        "half_width_no_ties": expected_half_width(n, 0.5, 0, level),
        "twice_the_queries": expected_half_width(2 * n, 0.5, TIE_RATE, level),
        "mde": minimum_detectable_effect(score_sd(0.5, TIE_RATE), n, level),
        "mde_no_ties": minimum_detectable_effect(score_sd(), n, level),
        "principles": among,
    }
