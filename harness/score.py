"""From the rows of a run to its results: `results.json` as docs/design/interfaces.md describes it.

Pure: the same rows give the same results, to the byte. The query is the unit. The orders in which a judge saw a pair
are combined first, and all of them must be scored; then a query's pairs (its constitutions and epochs) are averaged.
What cannot be computed is null, with a `note` beside it that says why.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, NamedTuple, TypeVar

from harness import __version__
from harness.judges.card import JudgedPair, against_reference, corrected, full_card, judge_card
from harness.judges.family import same_family
from harness.judges.llm import combine_orders
from harness.judges.verifiable import TIE_TOLERANCE
from harness.rows import Likelihood, Verdict
from harness.stats import (
    ClusterMeans,
    ScoreCounts,
    UnusableScores,
    cluster_means,
    gap,
    infonce,
    infonce_responses,
    length_summary,
    sign_flip_p,
    tie_rules,
    win_rate,
)

SCHEMA_VERSION = 1

ALL_TASKS = "all"
"""The `task` of a row that pools every task."""

Kind = Literal["win_rate", "steerability"]
LengthKey = tuple[str, str, str, str, int]
"""(model, task, query_id, constitution_id, epoch)"""


class ExpectedPair(NamedTuple):
    """A pair of answers that the plan has judged, in each of `orders`; verdicts are looked for by these fields."""

    judge: str
    kind: Kind
    a: str
    b: str
    """For steerability the same model as `a`."""
    task: str
    principle_set: str
    split: str
    query_id: str
    constitution_id: str
    epoch: int
    orders: tuple[str, ...]
    """"ab" and "ba", or "ab" alone for a judge to whom the order makes no difference."""


@dataclass(frozen=True)
class ScoreInputs:
    """All that the results are made of. Verdicts of pairs that are not `expected` are left out."""

    name: str
    description: str
    spec_fingerprint: str
    level: float
    """Confidence level of every interval, for example 0.95."""
    max_unscored: float
    """Share of the expected verdicts, in [0, 1], above which the run fails its own standard."""
    models: dict[str, Any]
    """Model by name; models are listed in this order."""
    judges: dict[str, dict[str, Any]]
    """{"kind", "model"} by name; judges are listed in this order."""
    verdicts: Iterable[Verdict]
    lengths: Mapping[LengthKey, int]
    """Length of each response, in words."""
    likelihoods: Iterable[Likelihood]
    training: dict[str, Any]
    """The trainer's summary by model."""
    expected: Sequence[ExpectedPair]


def score(inputs: ScoreInputs) -> dict[str, Any]:
    """The results of a run, ready for strict JSON: no NaN, no times. The caller adds `created`."""
    pairs = _judged_pairs(inputs)
    groups = _groups(inputs, pairs)
    verdicts = _verdict_counts(pairs)
    unscored_rate = verdicts["unscored"] / verdicts["expected"] if verdicts["expected"] else 0.0
    return {
        "schema_version": SCHEMA_VERSION,
        "name": inputs.name,
        "description": inputs.description,
        "harness_version": __version__,
        "spec_fingerprint": inputs.spec_fingerprint,
        "level": inputs.level,
        "tie_rule": "half",
        "models": _strict(inputs.models),
        "comparisons": [_comparison(key, group, inputs) for key, group in groups.items() if key.kind == "win_rate"],
        "gaps": _gaps(groups, inputs.level),
        "steerability": [
            row
            for key, group in groups.items()
            if key.kind == "steerability"
            for row in _steerability(key, group, inputs.level)
        ],
        "infonce": _infonce(inputs),
        "judges": _judges(inputs, pairs),
        "corrections": _corrections(inputs, groups),
        "training": _strict(inputs.training),
        "quality": {
            "unscored_rate": unscored_rate,
            "max_unscored": inputs.max_unscored,
            "passed": unscored_rate <= inputs.max_unscored,
        },
    }


# --- Pairs and their groups -------------------------------------------------------------------------------------------


class _Pair(NamedTuple):
    """An expected pair with the verdicts there are: one for each order, and its score."""

    expected: ExpectedPair
    rows: tuple[Verdict | None, ...]
    score: float | None

    @property
    def query(self) -> str:
        """The query's id, unlike that of any query of another task."""
        return f"{self.expected.task}\0{self.expected.query_id}"


class _Key(NamedTuple):
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


_Groups = dict[_Key, list[_Pair]]


def _judged_pairs(inputs: ScoreInputs) -> list[_Pair]:
    """Every expected pair once, in a fixed order, whatever the order of the rows."""
    found: dict[tuple[Any, ...], Verdict] = {}
    for v in inputs.verdicts:
        pair = (v.judge, v.kind, v.a, v.b, v.task, v.principle_set, v.split, v.query_id, v.constitution_id, v.epoch)
        found[*pair, v.order] = v
    pairs = []
    for expected in sorted(set(inputs.expected)):
        rows = {order: found.get((*expected[:-1], order)) for order in expected.orders}
        outcomes = {order: row.outcome if row else None for order, row in rows.items()}
        one = next(iter(outcomes.values()), None)  # a single order stands for both
        value = combine_orders(outcomes.get("ab", one), outcomes.get("ba", one))
        pairs.append(_Pair(expected, tuple(rows.values()), value))
    return pairs


def _groups(inputs: ScoreInputs, pairs: list[_Pair]) -> _Groups:
    """Pairs by what a row of the results is about, with the rows that pool all tasks where there are several."""
    groups: _Groups = {}
    for pair in pairs:
        e = pair.expected
        groups.setdefault(_Key(e.kind, e.a, e.b, e.principle_set, e.judge, e.task, e.split), []).append(pair)
    groups = _with_all_tasks(groups, lambda key: key._replace(task=ALL_TASKS))
    models, judges = _places(inputs.models), _places(inputs.judges)

    def order(key: _Key) -> tuple[Any, ...]:
        return (
            _place(models, key.a),
            _place(models, key.b),
            key.principle_set,
            _place(judges, key.judge),
            _task_place(key.task),
            _split_place(key.split),
        )

    return {key: groups[key] for key in sorted(groups, key=order)}


_K = TypeVar("_K")
_R = TypeVar("_R")


def _with_all_tasks(groups: dict[_K, list[_R]], pooled: Any) -> dict[_K, list[_R]]:
    """`groups` and, for keys that differ in their task alone, the group of all of them."""
    tasks: dict[_K, list[_R]] = {}
    sizes: dict[_K, int] = {}
    for key, rows in groups.items():
        together = pooled(key)
        tasks.setdefault(together, []).extend(rows)
        sizes[together] = sizes.get(together, 0) + 1
    return groups | {key: rows for key, rows in tasks.items() if sizes[key] > 1}


def _places(names: Iterable[str]) -> dict[str, int]:
    return {name: place for place, name in enumerate(names)}


def _place(places: dict[str, int], name: str) -> tuple[int, str]:
    return places.get(name, len(places)), name


def _task_place(task: str) -> tuple[bool, str]:
    return task == ALL_TASKS, task


def _split_place(split: str) -> tuple[bool, str]:
    return split != "learned", split


def principles_of(constitution_id: str) -> tuple[str, ...]:
    """The ids of a constitution's principles, whichever side of them it takes."""
    return tuple(part[:-1] for part in constitution_id.split("."))


# --- Scores -----------------------------------------------------------------------------------------------------------

_Scored = list[tuple[str, float]]
"""(query, score of one of its pairs)"""


def _scored(group: list[_Pair]) -> _Scored:
    return [(pair.query, pair.score) for pair in group if pair.score is not None]


def _by_query(scored: _Scored) -> ClusterMeans:
    """The mean score of each query. Raises UnusableScores where nothing is scored."""
    queries, values = zip(*scored, strict=True) if scored else ((), ())
    return cluster_means(values, queries)


def _by_principle(group: list[_Pair]) -> dict[str, _Scored]:
    """The scored pairs of each principle in the group, principles without any included.

    A pair's score counts for every principle of its constitution, unless the judge scored the principles one by one.
    """
    found: dict[str, _Scored] = {}
    for pair in group:
        for principle in principles_of(pair.expected.constitution_id):
            scored = found.setdefault(principle, [])
            if pair.score is not None:
                scored.append((pair.query, _principle_score(pair, pair.score, principle)))
    return dict(sorted(found.items()))


def _principle_score(pair: _Pair, score: float, principle: str) -> float:
    own = [row.details.get("principles", {}).get(principle) for row in pair.rows if row]
    if not own or None in own:
        return score
    return fmean(0.5 if abs(p["a"] - p["b"]) < TIE_TOLERANCE else float(p["a"] > p["b"]) for p in own)


def _rate(scored: _Scored, level: float) -> dict[str, Any]:
    """Win rate over queries with its interval; null, with a note, where nothing is scored."""
    try:
        means = _by_query(scored).means
    except UnusableScores:
        return {"n": 0, "rate": None, "low": None, "high": None, "method": None, "n_eff": None, "means": []}
    rate = win_rate(means, level)
    return {
        "n": rate.n,
        "rate": rate.estimate,
        "low": rate.low,
        "high": rate.high,
        "method": rate.method,
        "n_eff": rate.n_eff,
        "means": means,
    }


_NOTHING_SCORED = "No query has a score."


def _noted(row: dict[str, Any], note: str | None) -> dict[str, Any]:
    return row | {"note": note} if note else row


def _verdict_counts(pairs: list[_Pair]) -> dict[str, int]:
    """Verdicts by outcome; one that is missing is unscored."""
    outcomes = [row.outcome if row else "unscored" for pair in pairs for row in pair.rows]
    return {"expected": len(outcomes), **{name: outcomes.count(name) for name in ("a", "b", "tie", "unscored")}}


# --- The parts of the results -----------------------------------------------------------------------------------------


def _comparison(key: _Key, group: list[_Pair], inputs: ScoreInputs) -> dict[str, Any]:
    rate = _rate(_scored(group), inputs.level)
    n_expected = len({pair.query for pair in group})
    counts = ScoreCounts.of(rate["means"], n_expected - rate["n"])
    rules = tie_rules(*counts[:3]) if rate["n"] else None
    card = judge_card(row for pair in group for row in pair.rows if row)
    mean_length_a, mean_length_b = _mean_lengths(group, inputs.lengths)
    row = {
        **key.head(),
        "n": rate["n"],
        "n_expected": n_expected,
        **counts._asdict(),
        "win_rate": rate["rate"],
        "ci_low": rate["low"],
        "ci_high": rate["high"],
        "ci_level": inputs.level,
        "ci_method": rate["method"],
        "mean_length_a": mean_length_a,
        "mean_length_b": mean_length_b,
        "n_eff": rate["n_eff"],
        "win_rate_ties_dropped": rules.drop if rules else None,
        "win_rate_ties_lost": rules.loss if rules else None,
        "position_consistency": card["position_consistency"],
        "verdicts": _verdict_counts(group),
        "by_principle": [
            _principle_row(principle, scored, inputs.level) for principle, scored in _by_principle(group).items()
        ],
    }
    return _noted(row, None if rate["n"] else _NOTHING_SCORED)


def _principle_row(principle: str, scored: _Scored, level: float) -> dict[str, Any]:
    rate = _rate(scored, level)
    counts = ScoreCounts.of(rate["means"])
    row = {
        "principle": principle,
        "n": rate["n"],
        "win_rate": rate["rate"],
        "ci_low": rate["low"],
        "ci_high": rate["high"],
        "wins": counts.wins,
        "ties": counts.ties,
        "losses": counts.losses,
    }
    return _noted(row, None if rate["n"] else _NOTHING_SCORED)


def _mean_lengths(group: list[_Pair], lengths: Mapping[LengthKey, int]) -> tuple[float | None, float | None]:
    """Mean words of both sides over the scored queries, each query counting once."""
    queries, a, b, scores = [], [], [], []
    for pair in group:
        e = pair.expected
        one, two = (lengths.get((model, e.task, e.query_id, e.constitution_id, e.epoch)) for model in (e.a, e.b))
        if pair.score is not None and one is not None and two is not None:
            queries.append(pair.query)
            a.append(one)
            b.append(two)
            scores.append(pair.score)
    if not queries:
        return None, None
    summary = length_summary(*(cluster_means(values, queries).means for values in (a, b, scores)))
    return summary.mean_a, summary.mean_b


def _gaps(groups: _Groups, level: float) -> list[dict[str, Any]]:
    """Learned minus held-out, for every comparison that has both."""
    rows = []
    for key, learned in groups.items():
        held_out = groups.get(key._replace(split="held_out"))
        if key.kind == "win_rate" and key.split == "learned" and held_out is not None:
            head = {name: value for name, value in key.head().items() if name != "split"}
            rows.append(head | _gap(_scored(learned), _scored(held_out), level))
    return rows


def _gap(learned: _Scored, held_out: _Scored, level: float) -> dict[str, Any]:
    try:
        one, two = (dict(zip(*map(list, _by_query(side)), strict=True)) for side in (learned, held_out))
        found = gap(one, two, level)
    except UnusableScores:
        figures = dict.fromkeys(("gap", "ci_low", "ci_high"))
        note = "No query has a score under both learned and held-out principles."
        return figures | {"ci_level": level, "ci_method": None, "n": 0, "p_value": None, "note": note}
    shared = sorted(one.keys() & two.keys())
    row = {
        "gap": found.estimate,
        "ci_low": found.low,
        "ci_high": found.high,
        "ci_level": level,
        "ci_method": found.method,
        "n": found.n,
        "p_value": sign_flip_p([one[query] for query in shared], [two[query] for query in shared]),
    }
    left_out = found.n_unpaired
    return _noted(row, f"Queries with one of the two scores, left out: {left_out}." if left_out else None)


def _steerability(key: _Key, group: list[_Pair], level: float) -> list[dict[str, Any]]:
    """One row over all principles (`principle` null), then one for each."""
    everything: list[tuple[str | None, _Scored]] = [(None, _scored(group)), *_by_principle(group).items()]
    unscored = len({pair.query for pair in group}) - len({query for query, _ in everything[0][1]})
    rows = []
    for principle, scored in everything:
        rate = _rate(scored, level)
        row = {
            "model": key.a,
            "task": key.task,
            "principle_set": key.principle_set,
            "split": key.split,
            "judge": key.judge,
            "principle": principle,
            "n": rate["n"],
            "steerability": rate["rate"],
            "ci_low": rate["low"],
            "ci_high": rate["high"],
            "ci_level": level,
            "ci_method": rate["method"],
        }
        left_out = f"Queries without a score, left out: {unscored}." if principle is None and unscored else None
        rows.append(_noted(row, left_out if rate["n"] else _NOTHING_SCORED))
    return rows


def _infonce(inputs: ScoreInputs) -> list[dict[str, Any]]:
    Key = tuple[str, str, str, str]  # model, task, principle_set, split
    groups: dict[Key, list[Likelihood]] = {}
    latest = {(r.model, r.task, r.principle_set, r.split, r.query_id): r for r in inputs.likelihoods}
    for (model, task, principle_set, split, _), row in sorted(latest.items(), key=lambda item: item[0]):
        groups.setdefault((model, task, principle_set, split), []).append(row)
    groups = _with_all_tasks(groups, lambda key: (key[0], ALL_TASKS, *key[2:]))
    models = _places(inputs.models)

    def order(key: Key) -> tuple[Any, ...]:
        return _place(models, key[0]), key[2], _task_place(key[1]), _split_place(key[3])

    found = []
    for key in sorted(groups, key=order):
        head = dict(zip(("model", "task", "principle_set", "split"), key, strict=True))
        found.append({**head, "n": len(groups[key]), **_information(groups[key], inputs.level)})
    return found


def _information(rows: list[Likelihood], level: float) -> dict[str, Any]:
    tables = [row.logprob_sums for row in rows]
    try:
        over_constitutions, over_responses = infonce(tables, level), infonce_responses(tables, level)
    except UnusableScores as error:
        figures = dict.fromkeys(("infonce", "ci_low", "ci_high", "infonce_responses", "log_c", "saturated"))
        return figures | {"ci_level": level, "note": str(error)}
    return {
        "infonce": over_constitutions.estimate,
        "ci_low": over_constitutions.low,
        "ci_high": over_constitutions.high,
        "ci_level": level,
        "infonce_responses": over_responses.estimate,
        "log_c": over_constitutions.log_c,
        "saturated": over_constitutions.saturated,
    }


def _judges(inputs: ScoreInputs, pairs: list[_Pair]) -> dict[str, Any]:
    """The card of every judge, over all of its verdicts. The share of "first" is null where one order was shown."""
    cards = {}
    reference = _reference(inputs)
    known: dict[tuple[object, ...], float] = {
        pair.expected[1:10]: pair.score for pair in pairs if pair.expected.judge == reference and pair.score is not None
    }
    for name, judge in inputs.judges.items():
        own = [pair for pair in pairs if pair.expected.judge == name]
        judged_pairs = [_judged(pair, inputs.lengths) for pair in own]
        card = full_card(judged_pairs, inputs.level)
        if not any(len(pair.expected.orders) > 1 for pair in own):
            card["share_first"] = card["intervals"]["share_first"] = None
        judged = dict.fromkeys(model for pair in own for model in (pair.expected.a, pair.expected.b))
        akin = same_family(judge["model"], judged, inputs.models) if judge.get("model") else {}
        cards[name] = {
            "kind": judge["kind"],
            "model": judge.get("model"),
            **card,
            "same_family": akin,
            "agreement": None,
        }
        if reference not in (None, name):
            agreement = against_reference(judged_pairs, known, inputs.level)
            cards[name]["agreement"] = {"reference": reference, **agreement}
    return cards


def _reference(inputs: ScoreInputs) -> str | None:
    """The judge that the others are held against: a program, where the run has one."""
    return next((name for name, judge in inputs.judges.items() if judge["kind"] == "verifiable"), None)


def _corrections(inputs: ScoreInputs, groups: _Groups) -> list[dict[str, Any]]:
    """Win rates of LLM judges corrected by the program's, for comparisons of which it judged some queries and not all."""
    rows = []
    reference = _reference(inputs)
    for key, group in groups.items():
        labels = groups.get(key._replace(judge=reference)) if reference else None
        if key.kind != "win_rate" or key.judge == reference or not labels:
            continue
        scores, known = _scored(group), _scored(labels)
        if not scores or not known:
            continue
        by_query, by_reference = (dict(zip(*map(list, _by_query(side)), strict=True)) for side in (scores, known))
        if by_query.keys() <= by_reference.keys():
            continue  # the program's own win rate is there, and needs no correction
        rows.append({**key.head(), "reference": reference, **corrected(by_query, by_reference, inputs.level)})
    return rows


def _judged(pair: _Pair, lengths: Mapping[LengthKey, int]) -> JudgedPair:
    e = pair.expected
    a, b = (lengths.get((m, e.task, e.query_id, e.constitution_id, e.epoch)) for m in (e.a, e.b))
    rows = tuple(row for row in pair.rows if row)
    known = (a, b) if e.kind == "win_rate" else (None, None)  # the other answer of a contrast has another constitution
    return JudgedPair(tuple(e[1:10]), pair.query, rows, pair.score, *known)


def _strict(value: Any) -> Any:
    """`value` with null for every number that JSON has no word for."""
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
