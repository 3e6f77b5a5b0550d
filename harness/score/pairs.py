"""Expected pairs with the verdicts there are, grouped by what a row of the results is about; scores and win rates of a group."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from harness.judges.llm import Order
from harness.judges.verifiable import TIE_TOLERANCE
from harness.protocols import CORRECTED, Protocol, drawn_order, pair_scores
from harness.rows import Verdict
from harness.score.inputs import ExpectedPair, Kind, ScoreInputs
from harness.stats import (
    ClusterMeans,
    StopRule,
    UnusableScores,
    cluster_means,
    principles_interval,
    sequential_rate,
    win_rate,
)

ALL_TASKS = "all"
"""The `task` of a row that pools every task."""


class Pair(NamedTuple):
    """An expected pair with the verdicts there are, one for each judging and order, its score and that of each judging."""

    expected: ExpectedPair
    rows: tuple[Verdict | None, ...]
    score: float | None
    repeats: tuple[float | None, ...]
    whole: float | None = None
    """Its score with copied text left in, by a judge that takes it out."""

    @property
    def query(self) -> str:
        """The query's id, unlike that of any query of another task."""
        return f"{self.expected.task}\0{self.expected.query_id}"


class Key(NamedTuple):
    """What one row of the results is about."""

    kind: Kind
    a: str
    b: str
    principle_set: str
    judge: str
    task: str
    split: str

    def head(self) -> dict[str, str]:
        return {
            "task": self.task,
            "principle_set": self.principle_set,
            "split": self.split,
            "a": self.a,
            "b": self.b,
            "judge": self.judge,
        }


Groups = dict[Key, list[Pair]]


def judged_pairs(inputs: ScoreInputs) -> list[Pair]:
    """Every expected pair once, in a fixed order, whatever the order of the rows."""
    return pairs_of(inputs.verdicts, inputs.expected, inputs.protocol, inputs.kinds, inputs.seed)


def pairs_of(
    verdicts: Iterable[Verdict],
    expected: Iterable[ExpectedPair],
    protocol: Protocol = CORRECTED,
    kinds: Mapping[str, str] = MappingProxyType({}),
    seed: int = 0,
) -> list[Pair]:
    """The expected pairs with their verdicts, as `judged_pairs`; the fields are those of `ScoreInputs`."""
    found: dict[tuple[Any, ...], Verdict] = {}
    for v in verdicts:
        pair = (v.judge, v.kind, v.a, v.b, v.task, v.principle_set, v.split, v.query_id, v.constitution_id, v.epoch)
        found[*pair, v.order, v.repeat] = v
    pairs = []
    for e in sorted(set(expected)):
        judgings = [{order: found.get((*e.place, order, n)) for order in e.orders} for n in range(e.repeats)]
        drawn: Order = "ab"
        if protocol.orders == "one":  # the same for all judges, and for all that is judged of a query
            drawn = drawn_order(seed, e.kind, e.a, e.b, e.task, e.principle_set, e.split, e.query_id)
        kind = kinds.get(e.task, "dialogue")
        scores = pair_scores(judgings, protocol, kind=kind, drawn=drawn)
        rows = tuple(row for verdicts in judgings for row in verdicts.values())
        whole = _whole(rows, protocol.tie_value(kind)) if scores.score is not None else None
        pairs.append(Pair(e, rows, scores.score, scores.repeats, whole))
    return pairs


def _whole(rows: Sequence[Verdict | None], tie: float) -> float | None:
    outcomes = [row.details["whole"]["outcome"] for row in rows if row and "whole" in row.details]
    values = {"a": 1.0, "b": 0.0, "tie": tie}
    return fmean(values[outcome] for outcome in outcomes) if outcomes else None


def grouped(inputs: ScoreInputs, pairs: list[Pair]) -> Groups:
    """Pairs by what a row of the results is about, with the rows that pool all tasks where there are several."""
    groups: Groups = {}
    for pair in pairs:
        e = pair.expected
        groups.setdefault(Key(e.kind, e.a, e.b, e.principle_set, e.judge, e.task, e.split), []).append(pair)
    groups = with_all_tasks(groups, lambda key: key._replace(task=ALL_TASKS))
    models, judges = places_of(inputs.models), places_of(inputs.judges)

    def order(key: Key) -> tuple[Any, ...]:
        return (
            place_of(models, key.a),
            place_of(models, key.b),
            key.principle_set,
            place_of(judges, key.judge),
            task_place(key.task),
            split_place(key.split),
        )

    return {key: groups[key] for key in sorted(groups, key=order)}


_K = TypeVar("_K")
_R = TypeVar("_R")


def with_all_tasks(groups: dict[_K, list[_R]], pooled: Any) -> dict[_K, list[_R]]:
    """`groups` and, for keys that differ in their task alone, the group of all of them."""
    tasks: dict[_K, list[_R]] = {}
    sizes: dict[_K, int] = {}
    for key, rows in groups.items():
        together = pooled(key)
        tasks.setdefault(together, []).extend(rows)
        sizes[together] = sizes.get(together, 0) + 1
    return groups | {key: rows for key, rows in tasks.items() if sizes[key] > 1}


def places_of(names: Iterable[str]) -> dict[str, int]:
    return {name: place for place, name in enumerate(names)}


def place_of(places: dict[str, int], name: str) -> tuple[int, str]:
    return places.get(name, len(places)), name


def task_place(task: str) -> tuple[bool, str]:
    return task == ALL_TASKS, task


def split_place(split: str) -> tuple[bool, str]:
    return split != "learned", split


def principles_of(constitution_id: str) -> tuple[str, ...]:
    """The ids of a constitution's principles, whichever side of them it takes."""
    return tuple(part[:-1] for part in constitution_id.split("."))


def opposite_id(constitution_id: str) -> str:
    """The id of the constitution that takes the other side of every principle."""
    return ".".join(part[:-1] + ("-" if part.endswith("+") else "+") for part in constitution_id.split("."))


# --- Scores -----------------------------------------------------------------------------------------------------------

Scored = list[tuple[str, float]]
"""(query, score of one of its pairs)"""


def scored_pairs(group: list[Pair]) -> Scored:
    return [(pair.query, pair.score) for pair in group if pair.score is not None]


def query_means(scored: Scored) -> ClusterMeans:
    """The mean score of each query. Raises UnusableScores where nothing is scored."""
    queries, values = zip(*scored, strict=True) if scored else ((), ())
    return cluster_means(values, queries)


def score_by_query(scored: Scored) -> dict[str, float]:
    if not scored:
        return {}
    found = query_means(scored)
    return dict(zip(map(str, found.ids), map(float, found.means), strict=True))


def scored_by_principle(group: list[Pair]) -> dict[str, Scored]:
    """The scored pairs of each principle in the group, principles without any included.

    A pair's score counts for every principle that it was judged by, unless the judge scored the principles one by one.
    """
    found: dict[str, Scored] = {}
    for pair in group:
        for principle in judged_by(pair):
            scored = found.setdefault(principle, [])
            if pair.score is not None:
                scored.append((pair.query, _principle_score(pair, pair.score, principle)))
    return dict(sorted(found.items()))


def _principle_score(pair: Pair, score: float, principle: str) -> float:
    own = [row.details.get("principles", {}).get(principle) for row in pair.rows if row]
    if not own or None in own:
        return score
    return fmean(0.5 if abs(p["a"] - p["b"]) < TIE_TOLERANCE else float(p["a"] > p["b"]) for p in own)


def rate_of(scored: Scored, level: float, rule: StopRule | None = None) -> dict[str, Any]:
    """Win rate over queries with the interval and the p value that hold under `rule`; null, with a note, without a score."""
    try:
        means = query_means(scored).means
    except UnusableScores:
        fields = ("rate", "low", "high", "method", "n_eff", "p_value")
        return {"n": 0, **dict.fromkeys(fields), "means": []}
    rate, holds = win_rate(means, level), sequential_rate(rule, means, level)
    return {
        "n": rate.n,
        "rate": rate.estimate,
        "low": holds.low,
        "high": holds.high,
        "method": holds.method,
        "n_eff": rate.n_eff,
        "p_value": holds.p_value,
        "means": means,
    }


def principles_ci(group: list[Pair], level: float) -> dict[str, Any]:
    """The interval of a win rate for principles like these; null, with a note, where there are too few."""
    scored = [pair for pair in group if pair.score is not None]
    try:
        found = principles_interval(*principle_rows(scored), level)
    except UnusableScores as error:
        n = len({principle for pair in scored for principle in judged_by(pair)})
        return {**dict.fromkeys(("low", "high", "method")), "n_principles": n, "note": str(error)}
    return {"low": found.low, "high": found.high, "method": found.method, "n_principles": found.n_principles}


def principle_rows(scored: Sequence[Pair]) -> tuple[list[float], list[str], list[tuple[str, ...]]]:
    """Scores, queries and principles of scored pairs, as `harness.stats.principles_interval` takes them."""
    scores = [pair.score for pair in scored if pair.score is not None]
    return scores, [pair.query for pair in scored], [judged_by(pair) for pair in scored]


def judged_by(pair: Pair) -> tuple[str, ...]:
    """The ids of the principles that a pair was judged by."""
    return principles_of(pair.expected.judged_by or pair.expected.constitution_id)


NOTHING_SCORED = "No query has a score."


def noted(row: dict[str, Any], note: str | None) -> dict[str, Any]:
    return row | {"note": note} if note else row


def verdict_counts(pairs: list[Pair]) -> dict[str, int]:
    """Verdicts by outcome; one that is missing is unscored."""
    outcomes = [row.outcome if row else "unscored" for pair in pairs for row in pair.rows]
    return {"expected": len(outcomes), **{name: outcomes.count(name) for name in ("a", "b", "tie", "unscored")}}


def strict(value: Any) -> Any:
    """`value` with null for every number that JSON has no word for."""
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
