"""What can be wrong with responses before any judge speaks: copied, run on, cut, empty, the same from both, off the query.

These shares stand beside every win rate and every steerability: a win of degenerate responses is a fact about the judge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any, Literal

from harness.rows import Generation, Relevance
from harness.score.inputs import Facts, ResponseKey, ScoreInputs
from harness.score.pairs import (
    ALL_TASKS,
    Pair,
    noted,
    place_of,
    places_of,
    split_place,
    task_place,
    with_all_tasks,
)
from harness.stats import (
    AdjustedWinRate,
    UnusableScores,
    adjusted_win_rate,
    cluster_means,
    echo_adjusted,
    paired_difference,
    style_adjusted,
    win_rate,
)
from harness.style import style_counts
from sami_train.copying import REPEATS, copied_share
from sami_train.data import Query
from sami_train.relevance import relevance

SIDES: tuple[Literal["a"], Literal["b"]] = ("a", "b")
SHARES = ("copied", "ran_on", "cut", "empty", "repeats_query", "shortened")


def facts_of(row: Generation, sentences: Sequence[str], query: Query) -> Facts:
    """The facts of a response. `sentences`: both sides of its constitution's principles."""
    text = " ".join(row.text.split())
    return Facts(
        words=len(row.text.split()) if any(letter.isalnum() for letter in text) else 0,
        copied=copied_share(row.text, sentences),
        ran_on=bool(row.tail),
        cut=row.finish_reason == "length",
        repeats_query=copied_share(row.text, query.not_to_copy),
        digest=hashlib.sha256(text.encode()).hexdigest()[:16],
        style=style_counts(row.text),
        shortened=row.truncated,
    )


# --- Beside a comparison ----------------------------------------------------------------------------------------------


def beside(group: Sequence[Pair], inputs: ScoreInputs) -> dict[str, Any]:
    """The fields of a comparison's row that tell what its responses are."""
    pairs = [
        (pair, a, b)
        for pair in group
        if (a := inputs.facts.get(pair.expected.response("a"))) and (b := inputs.facts.get(pair.expected.response("b")))
    ]
    sides = {"a": [a for _, a, _ in pairs], "b": [b for _, _, b in pairs]}
    identical = fmean(a.digest == b.digest for _, a, b in pairs) if pairs else None
    return {
        "responses": {side: shares(of) for side, of in sides.items()} | {"identical": identical},
        "relevance": _relevance_of_both(group, inputs),
        "echo_adjusted": _adjusted(pairs, _echo, inputs.level),
        "style_adjusted": _adjusted(pairs, _style, inputs.level),
        "relevance_adjusted": _adjusted(pairs, partial(_equally_relevant, inputs), inputs.level),
    }


def shares(found: Sequence[Facts]) -> dict[str, Any]:
    """Shares of responses, in [0, 1], with their number `n`: `copied` has any copied span, `repeats_query` half its words."""
    if not found:
        return {"n": 0, **dict.fromkeys(SHARES)}
    return {
        "n": len(found),
        "copied": fmean(facts.copied > 0 for facts in found),
        "ran_on": fmean(facts.ran_on for facts in found),
        "cut": fmean(facts.cut for facts in found),
        "empty": fmean(facts.words == 0 for facts in found),
        "repeats_query": fmean(facts.repeats_query >= REPEATS for facts in found),
        "shortened": fmean(facts.shortened for facts in found),
    }


_Both = tuple[Pair, Facts, Facts]


def _adjusted(
    pairs: Sequence[_Both], estimate: Callable[[Sequence[_Both], float], AdjustedWinRate], level: float
) -> dict[str, Any]:
    """A win rate read where both responses are alike; null, with a note, where the data do not permit it."""
    try:
        found = estimate([both for both in pairs if both[0].score is not None], level)
    except UnusableScores as error:
        return {**dict.fromkeys(("n", "win_rate", "ci_low", "ci_high")), "note": str(error)}
    return {"n": found.n, "win_rate": found.estimate, "ci_low": found.low, "ci_high": found.high}


def _means(pairs: Sequence[_Both], value: Callable[[_Both], float]) -> Any:
    return cluster_means([value(both) for both in pairs], [both[0].query for both in pairs]).means


def _scores(pairs: Sequence[_Both]) -> Any:
    return _means(pairs, lambda both: both[0].score or 0.0)


def _echo(pairs: Sequence[_Both], level: float) -> AdjustedWinRate:
    a, b = (_means(pairs, lambda both, side=side: both[side].copied) for side in (1, 2))  # type: ignore[misc]
    return echo_adjusted(_scores(pairs), a, b, level)


def _style(pairs: Sequence[_Both], level: float) -> AdjustedWinRate:
    names = list(pairs[0][1].style) if pairs else []

    def side(place: Literal[1, 2]) -> list[dict[str, float]]:
        counts = [_means(pairs, lambda both, n=name: both[place].style[n]) for name in names]  # type: ignore[misc]
        return [dict(zip(names, row, strict=True)) for row in zip(*counts, strict=True)]

    return style_adjusted(_scores(pairs), side(1), side(2), level)


def _equally_relevant(inputs: ScoreInputs, pairs: Sequence[_Both], level: float) -> AdjustedWinRate:
    """Read where both responses are as relevant, over the pairs whose responses one and the same model scored."""
    differences = {}
    for pair, *_ in pairs:
        a, b = (inputs.relevance.get(pair.expected.response(side)) for side in SIDES)
        if a and b and a[0] == b[0]:
            differences[pair.expected] = a[1] - b[1]
    scored = [both for both in pairs if both[0].expected in differences]
    apart = _means(scored, lambda both: differences[both[0].expected])
    return adjusted_win_rate(_scores(scored), {"relevance": apart}, level)


# --- Relevance --------------------------------------------------------------------------------------------------------


def relevance_by_response(rows: Iterable[Relevance]) -> dict[ResponseKey, tuple[str, float]]:
    """(scorer, relevance in [0, 1]) of each response."""
    return {response_key(row): (row.scorer, relevance(row.logprobs)) for row in rows}


def response_key(row: Generation | Relevance) -> ResponseKey:
    """The place of the response that a row is, or is about."""
    return ResponseKey(row.model, row.task, row.principle_set, row.split, row.query_id, row.constitution_id, row.epoch)


def mean_relevance(found: Sequence[tuple[str, str, float]], level: float) -> dict[str, Any] | None:
    """Mean relevance over queries with its interval, from (query, scorer, relevance) of each response; None without any."""
    if not found:
        return None
    rate = win_rate(cluster_means([value for *_, value in found], [query for query, *_ in found]).means, level)
    scorers = sorted({scorer for _, scorer, _ in found})
    return {
        "relevance": rate.estimate,
        "ci_low": rate.low,
        "ci_high": rate.high,
        "n": rate.n,
        "scorer": ", ".join(scorers),
    }


def _relevance_of_both(group: Sequence[Pair], inputs: ScoreInputs) -> dict[str, Any] | None:
    """Relevance of both sides and, by one scorer on the same queries, how much that of a is above that of b."""
    of: dict[Literal["a", "b"], list[tuple[str, str, float]]] = {"a": [], "b": []}
    for pair in group:
        for side, found in of.items():
            if known := inputs.relevance.get(pair.expected.response(side)):
                found.append((pair.query, *known))
    a, b = (mean_relevance(found, inputs.level) for found in of.values())
    if a is None and b is None:
        return None
    row: dict[str, Any] = {
        "a": a,
        "b": b,
        **dict.fromkeys(("difference", "difference_low", "difference_high", "n_paired")),
    }
    if a is None or b is None:
        return noted(row, "The relevance of one of the two is not measured.")
    if a["scorer"] != b["scorer"]:
        return noted(row, "The two are scored by different models, so that their relevances cannot be compared.")
    one, two = (_by_query(found) for found in of.values())
    shared = sorted(one.keys() & two.keys())
    if not shared:
        return noted(row, "No query has a relevance of both.")
    apart = paired_difference([one[q] for q in shared], [two[q] for q in shared], inputs.level)
    figures = (apart.estimate, apart.low, apart.high, apart.n)
    return row | dict(zip(("difference", "difference_low", "difference_high", "n_paired"), figures, strict=True))


def _by_query(found: Sequence[tuple[str, str, float]]) -> dict[str, float]:
    means = cluster_means([value for *_, value in found], [query for query, *_ in found])
    return dict(zip(map(str, means.ids), map(float, means.means), strict=True))


# --- By model ---------------------------------------------------------------------------------------------------------

_Cell = tuple[str, str, str, str]
"""(model, task, principle set, split)"""


def response_rows(inputs: ScoreInputs) -> list[dict[str, Any]]:
    """A row for every model, task, principle set and split, and for all tasks together where there are several."""
    groups: dict[_Cell, list[ResponseKey]] = {}
    for key in inputs.facts:
        groups.setdefault((key.model, key.task, key.principle_set, key.split), []).append(key)
    groups = with_all_tasks(groups, lambda cell: (cell[0], ALL_TASKS, *cell[2:]))
    models = places_of(inputs.models)

    def order(cell: _Cell) -> tuple[Any, ...]:
        return place_of(models, cell[0]), cell[2], task_place(cell[1]), split_place(cell[3])

    rows = []
    for cell in sorted(groups, key=order):
        found = [
            (f"{key.task}\0{key.query_id}", *inputs.relevance[key]) for key in groups[cell] if key in inputs.relevance
        ]
        facts = [inputs.facts[key] for key in groups[cell]]
        head = dict(zip(("model", "task", "principle_set", "split"), cell, strict=True))
        words = fmean(one.words for one in facts)
        said = {"same_text": _same_text(groups[cell], inputs.facts), "words": words}
        rows.append({**head, **shares(facts), **said, "relevance": mean_relevance(found, inputs.level)})
    return rows


def _same_text(keys: Sequence[ResponseKey], facts: Mapping[ResponseKey, Facts]) -> float:
    """The share, in [0, 1], of responses that have words and are the text that another query got as well."""
    queries: dict[str, set[tuple[str, str]]] = {}
    for key in keys:
        queries.setdefault(facts[key].digest, set()).add((key.task, key.query_id))
    return fmean(facts[key].words > 0 and len(queries[facts[key].digest]) > 1 for key in keys)
