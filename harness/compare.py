"""Two runs beside each other: the same comparisons, paired query by query.

The unit is the query, as in `harness.score`: a query's score is the mean over its constitutions and epochs, of each the
mean over its judgings and the orders the judge saw, and only queries that both runs have scored are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from harness.judges.llm import Outcome, combine_orders
from harness.rows import Verdict
from harness.stats import cluster_means, holm, paired_difference, sign_flip_p
from harness.store import RowFile
from sami_train.errors import UserError

LEVEL = 0.95


class Key(NamedTuple):
    """What one row of the table is about."""

    a: str
    b: str
    principle_set: str
    judge: str
    task: str
    split: str


_Scores = dict[str, float]
"""Score by query"""


def compare(run_a: Path, run_b: Path) -> dict[str, Any]:
    """The change in every win rate that both runs have: run A minus run B, paired by query.

    Returns:
        ``{"run_a", "run_b", "level", "rows", "only_a", "only_b"}``. A row has the mean scores of both runs over the
        common queries, their difference with its interval, the sign-flip p and the same after Holm's adjustment over
        all rows; its figures are null where no query is common. ``only_a`` and ``only_b`` name the comparisons that
        one run alone has.

    Raises:
        UserError: a folder is not a run, or the two have nothing in common.
    """
    one, two = _scores_of(run_a), _scores_of(run_b)
    common = sorted(one.keys() & two.keys(), key=_place)
    if not common:
        raise UserError(
            f"{run_a} and {run_b} have no comparison in common (judge, models, task, principle set and split must "
            f"agree): the first has {_named(one)}; the second has {_named(two)}; compare runs of one specification"
        )
    rows = [_row(key, one[key], two[key]) for key in common]
    tested = [row for row in rows if row["n_common"]]
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
        "only_a": [key._asdict() for key in sorted(one.keys() - two.keys(), key=_place)],
        "only_b": [key._asdict() for key in sorted(two.keys() - one.keys(), key=_place)],
    }


def _row(key: Key, one: _Scores, two: _Scores) -> dict[str, Any]:
    shared = sorted(one.keys() & two.keys())
    row: dict[str, Any] = {
        **key._asdict(),
        "n_common": len(shared),
        "n_only_a": len(one.keys() - two.keys()),
        "n_only_b": len(two.keys() - one.keys()),
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


def _scores_of(run: Path) -> dict[Key, _Scores]:
    """Score by query for every comparison of a run."""
    folder = run / "verdicts"
    if not folder.is_dir():
        problem = "holds no verdicts" if run.is_dir() else "does not exist"
        raise UserError(f"the run folder {run} {problem}; name the output folder of a run that has judged something")
    scores: dict[Key, _Scores] = {}
    for path in sorted(folder.glob("*/*-vs-*.jsonl")):
        rows = [row for row in RowFile(path, Verdict).read().values() if row.kind == "win_rate"]
        scores |= _scores_in(rows)
    if not scores:
        raise UserError(
            f"{folder} holds no verdict on two models; name the output folder of a run that compares models"
        )
    return scores


def _scores_in(rows: list[Verdict]) -> dict[Key, _Scores]:
    """Score by query in one file of verdicts; one that was judged by a part of its constitution pairs with its like alone."""
    parts: dict[tuple[Key, str], set[str]] = {}
    for row in rows:
        if row.judged_by is not None:
            parts.setdefault((_key(row), row.query_id), set()).add(row.judged_by)
    found = {}
    for key, pairs in pair_scores(rows).items():
        scored = [
            (" by ".join([q, *sorted(parts.get((key, q), ()))]), score) for q, score in pairs if score is not None
        ]
        found[key] = _means(scored)
    return found


def _key(row: Verdict) -> Key:
    return Key(row.a, row.b, row.principle_set, row.judge, row.task, row.split)


def pair_scores(rows: Sequence[Verdict]) -> dict[Key, list[tuple[str, float | None]]]:
    """(query, score) of every pair of answers in one file of verdicts, None where it is unscored.

    Of a judge that was shown both orders, both must be scored; judgings of one pair are averaged.
    """
    orders = {row.order for row in rows}
    pairs: dict[tuple[Key, str, str, int, int], dict[str, Outcome]] = {}
    for row in rows:
        pairs.setdefault((_key(row), row.query_id, row.constitution_id, row.epoch, row.repeat), {})[row.order] = (
            row.outcome
        )
    judged: dict[tuple[Key, str, str, int], list[float | None]] = {}
    for (key, query, constitution, epoch, _), outcomes in pairs.items():
        one = next(iter(outcomes.values())) if len(orders) == 1 else None  # a single order stands for both
        score = combine_orders(outcomes.get("ab", one), outcomes.get("ba", one))
        judged.setdefault((key, query, constitution, epoch), []).append(score)
    found: dict[Key, list[tuple[str, float | None]]] = {}
    for (key, query, *_), scores in judged.items():
        scored = [score for score in scores if score is not None]
        found.setdefault(key, []).append((query, fmean(scored) if scored else None))
    return found


def _means(scored: list[tuple[str, float]]) -> _Scores:
    if not scored:
        return {}
    queries, values = zip(*scored, strict=True)
    found = cluster_means(values, queries)
    return {str(query): float(mean) for query, mean in zip(found.ids, found.means, strict=True)}


def _place(key: Key) -> tuple[Any, ...]:
    return (*key[:-1], key.split != "learned", key.split)


def _named(scores: dict[Key, _Scores], most: int = 4) -> str:
    """The comparisons of a run, in words."""
    names = sorted({f"{k.a} against {k.b} on {k.task} ({k.principle_set}, {k.split}) by {k.judge}" for k in scores})
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _queries(scores: dict[Key, _Scores], keys: list[Key]) -> str:
    names = sorted({query for key in keys for query in scores[key]})
    return f"queries such as {', '.join(names[:3])}" if names else "none that is scored"
