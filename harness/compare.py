"""Two runs beside each other: the same comparisons, paired query by query.

The unit is the query, as in `harness.score`: a query's score is the mean over its constitutions and epochs, of each the
mean over its judgings and the orders the judge saw, and only queries that both runs have scored are compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from harness.counted import Compared, Content, counted
from harness.score.pairs import Key, score_by_query, split_place
from harness.stats import holm, paired_difference, sign_flip_p
from sami_train.errors import UserError

LEVEL = 0.95

_Scores = dict[str, float]
"""Score by query"""


def compare(run_a: Path, run_b: Path) -> dict[str, Any]:
    """The change in every win rate that both runs have: run A minus run B, paired by query.

    Counted are the verdicts that the runs' results count. Queries that have one id and other texts are no pairs.

    Returns:
        ``{"run_a", "run_b", "level", "rows", "only_a", "only_b"}``. A row has the mean scores of both runs over the
        common queries, their difference with its interval, the sign-flip p and the same after Holm's adjustment over
        all rows; its figures are null where no query is common. ``n_other_text`` counts the queries that have another text
        in the other run, and ``differs`` names what else makes the verdicts of the two mean something else: the judge's prompt,
        say. ``only_a`` and ``only_b`` name the comparisons that one run alone has.

    Raises:
        UserError: a folder is not a run, its results cannot be made from its rows, or the two have nothing in common.
    """
    of_a, of_b = counted(run_a), counted(run_b)
    one, two = _scores_of(of_a), _scores_of(of_b)
    common = sorted(one.keys() & two.keys(), key=_place)
    if not common:
        raise UserError(
            f"{run_a} and {run_b} have no comparison in common (judge, models, task, principle set and split must "
            f"agree): the first has {_named(one)}; the second has {_named(two)}; compare runs of one specification"
        )
    rows = [_row(key, one[key], two[key], of_a[key].content, of_b[key].content) for key in common]
    tested = [row for row in rows if row["n_common"]]
    if not tested and (others := sum(row["n_other_text"] for row in rows)):
        raise UserError(
            f"{run_a} and {run_b} have no query in common: {others} have one id and other texts; compare runs over the same data"
        )
    if not tested:
        raise UserError(
            f"{run_a} and {run_b} have no scored query in common: the first has {_queries(one, common)}; "
            f"the second has {_queries(two, common)}; compare runs over the same data"
        )
    for row, adjusted in zip(tested, holm([row["p_value"] for row in tested]), strict=True):
        row["p_holm"] = float(adjusted)
    return {
        "run_a": str(run_a),
        "run_b": str(run_b),
        "level": LEVEL,
        "rows": rows,
        "only_a": [key.head() for key in sorted(one.keys() - two.keys(), key=_place)],
        "only_b": [key.head() for key in sorted(two.keys() - one.keys(), key=_place)],
    }


def _row(key: Key, one: _Scores, two: _Scores, of_a: Content, of_b: Content) -> dict[str, Any]:
    other_text = of_a.other_queries(of_b)
    others = {query for query in one.keys() & two.keys() if _id(query) in other_text}
    shared = sorted((one.keys() & two.keys()) - others)
    row: dict[str, Any] = {
        **key.head(),
        "n_common": len(shared),
        "n_only_a": len(one.keys() - two.keys()),
        "n_only_b": len(two.keys() - one.keys()),
        "n_other_text": len(others),
        "differs": of_a.differences(of_b),
    }
    figures = ("win_rate_a", "win_rate_b", "difference", "ci_low", "ci_high", "ci_level", "ci_method", "p_value")
    row |= dict.fromkeys((*figures, "p_holm"))
    if shared:
        a, b = [one[query] for query in shared], [two[query] for query in shared]
        found = paired_difference(a, b, LEVEL)
        p_value = sign_flip_p(a, b)
        values = (fmean(a), fmean(b), found.estimate, found.low, found.high, LEVEL, found.method, p_value)
        row |= dict(zip(figures, values, strict=True))
    return row


def _id(query: str) -> str:
    """The id in a name of `_scores_of`."""
    return query.partition("\0")[0]


def _scores_of(compared: dict[Key, Compared]) -> dict[Key, _Scores]:
    """Score by query; one that was judged by a part of its constitution pairs with its like alone."""
    found = {}
    for key, of in compared.items():
        parts: dict[str, set[str]] = {}
        for pair in of.pairs:
            if (part := pair.expected.judged_by) is not None:
                parts.setdefault(pair.expected.query_id, set()).add(part)
        scored = [(pair.expected.query_id, pair.score) for pair in of.pairs if pair.score is not None]
        found[key] = score_by_query([("\0".join([q, *sorted(parts.get(q, ()))]), score) for q, score in scored])
    return found


def _place(key: Key) -> tuple[Any, ...]:
    return (*key[:-1], *split_place(key.split))


def _named(scores: Iterable[Key], most: int = 4) -> str:
    """The comparisons of a run, in words."""
    names = sorted({f"{k.a} against {k.b} on {k.task} ({k.principle_set}, {k.split}) by {k.judge}" for k in scores})
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _queries(scores: dict[Key, _Scores], keys: list[Key]) -> str:
    names = sorted({_id(query) for key in keys for query in scores[key]})
    return f"queries such as {', '.join(names[:3])}" if names else "none that is scored"
