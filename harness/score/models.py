"""Models side by side: leaderboards, the stability of ranks under two judges, gaps between learned and held-out, steerability."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from harness.score.inputs import ScoreInputs
from harness.score.pairs import (
    ALL_TASKS,
    NOTHING_SCORED,
    Groups,
    Key,
    Pair,
    Scored,
    noted,
    opposite_id,
    principle_rows,
    principles_ci,
    query_means,
    rate_of,
    score_by_query,
    scored_by_principle,
    scored_pairs,
    strict,
)
from harness.stability import rank_stability
from harness.stats import (
    UnusableScores,
    WelchGap,
    bradley_terry,
    gap,
    principles_difference,
    principles_interval,
    sequential_rate,
    welch_gap,
    win_rate_matrix,
)

SANDWICH = "Student's t, sandwich covariance clustered by query"
"""The intervals of a leaderboard's strengths (`harness.stats.bradley_terry`)."""
SAME_UNDER_BOTH = "The model wrote the same under every principle and its opposite, as if it had seen none."


def _scores_of(groups: Groups, judge: str, principle_set: str, split: str) -> dict[tuple[str, str], dict[str, float]]:
    """Pair of models -> query -> score, over all tasks."""
    found: dict[tuple[str, str], Scored] = {}
    for key, group in groups.items():
        here = (key.kind, key.judge, key.principle_set, key.split) == ("win_rate", judge, principle_set, split)
        if here and key.task != ALL_TASKS:
            found.setdefault((key.a, key.b), []).extend(scored_pairs(group))
    return {pair: score_by_query(scored) for pair, scored in found.items()}


def _cells(groups: Groups) -> dict[tuple[str, str], list[str]]:
    """(principle set, split) -> its judges, in the order of the results."""
    cells: dict[tuple[str, str], dict[str, None]] = {}
    for key in groups:
        if key.kind == "win_rate":
            cells.setdefault((key.principle_set, key.split), {})[key.judge] = None
    return {cell: list(judges) for cell, judges in cells.items()}


def leaderboards(groups: Groups, inputs: ScoreInputs) -> list[dict[str, Any]]:
    """Bradley-Terry strengths over all tasks, where more than two models are compared; the base model has 0."""
    rows = []
    for (principle_set, split), judges in _cells(groups).items():
        for judge in judges:
            scores = _scores_of(groups, judge, principle_set, split)
            models = {name for pair in scores for name in pair}
            if len(models) > 2:
                head = {"judge": judge, "principle_set": principle_set, "split": split}
                rows.append({**head, **_leaderboard(scores, _base(inputs.models, list(scores)), inputs.level)})
    return rows


def _base(models: Mapping[str, Any], pairs: Sequence[tuple[str, str]]) -> str:
    """The model that the others are held against: one that another is trained from, or else the most frequent opponent."""
    compared = [name for pair in pairs for name in pair]
    starts = [(models.get(name) or {}).get("trained_from") for name in compared]
    opponents = [b for _, b in pairs]
    return next((name for name in starts if name in compared), max(opponents, key=opponents.count))


def _leaderboard(scores: Mapping[tuple[str, str], Mapping[str, float]], base: str, level: float) -> dict[str, Any]:
    rows = [(a, b, score, query) for (a, b), by_query in scores.items() for query, score in by_query.items()]
    one, two, values, queries = zip(*rows, strict=True) if rows else ((), (), (), ())
    head: dict[str, Any] = {"base": base, "ci_level": level}
    try:
        found = bradley_terry(one, two, values, queries, base=base, level=level)
    except UnusableScores as error:
        return {**head, "n": 0, "ci_method": None, "models": [], "unbounded": [], "matrix": None, "note": str(error)}
    matrix = win_rate_matrix(one, two, values, queries, level)
    return {
        **head,
        "n": found.n,
        "ci_method": SANDWICH,
        "models": [
            {
                "model": model.name,
                "rank": model.rank,
                "rank_low": model.rank_low,
                "rank_high": model.rank_high,
                "strength": model.strength,
                "ci_low": model.low,
                "ci_high": model.high,
                "win_rate": model.win_rate,
                "win_rate_low": _chance(model.low),
                "win_rate_high": _chance(model.high),
                "n": model.n,
            }
            for model in found.models
        ],
        "unbounded": list(found.unbounded),
        "matrix": {
            "models": list(matrix.names),
            "win_rate": strict(matrix.rates),
            "ci_low": strict(matrix.lows),
            "ci_high": strict(matrix.highs),
            "n": strict(matrix.n),
        },
    }


def _chance(strength: float) -> float:
    """Of beating the base model."""
    return 1 / (1 + math.exp(-strength))


def rank_stabilities(groups: Groups, inputs: ScoreInputs) -> list[dict[str, Any]]:
    """How far every two judges agree, on the queries that both have scored, over all tasks."""
    rows = []
    for (principle_set, split), judges in _cells(groups).items():
        for one, two in combinations(judges, 2):
            by_one, by_two = (_scores_of(groups, judge, principle_set, split) for judge in (one, two))
            found = rank_stability(by_one, by_two, inputs.level)
            if found is not None:
                head = {"judge_1": one, "judge_2": two, "principle_set": principle_set, "split": split}
                rows.append({**head, **found})
    return rows


def gaps(groups: Groups, inputs: ScoreInputs) -> list[dict[str, Any]]:
    """Learned minus held-out, for every comparison that has both, of a model that was trained (in this run, or elsewhere)."""
    rows = []
    for key, learned in groups.items():
        held_out = groups.get(key._replace(split="held_out"))
        if key.kind != "win_rate" or key.split != "learned" or held_out is None:
            continue
        if any(_learned_something(inputs.models.get(name) or {}) for name in (key.a, key.b)):
            head = {name: value for name, value in key.head().items() if name != "split"}
            rows.append(
                {
                    **head,
                    **_gap(scored_pairs(learned), scored_pairs(held_out), inputs),
                    "principles": _gap_over_principles(learned, held_out, inputs.level),
                    "steered": _difference_of_differences(key, groups, inputs),
                }
            )
    return rows


def _learned_something(model: Mapping[str, Any]) -> bool:
    return bool(model.get("trained_from")) or str(model.get("path")).startswith("recorded/")


def _gap_over_principles(learned: list[Pair], held_out: list[Pair], level: float) -> dict[str, Any]:
    """The gap between the two win rates for principles like these; null, with a note, where there are too few."""
    try:
        sides = [
            principles_interval(*principle_rows([pair for pair in side if pair.score is not None]), level)
            for side in (learned, held_out)
        ]
    except UnusableScores as error:
        return _no_welch(str(error))
    return _welch(welch_gap(sides[0], sides[1], level))


def _difference_of_differences(key: Key, groups: Groups, inputs: ScoreInputs) -> dict[str, Any] | None:
    """How much more training raised steerability on learned than on held-out principles, for principles like these.

    None where `a` is not trained from a model whose steerability is measured as well.
    """
    base = (inputs.models.get(key.a) or {}).get("trained_from")
    if base is None:
        return None
    sides = []
    for split in ("learned", "held_out"):
        own, start = (
            groups.get(key._replace(kind="steerability", a=name, b=name, split=split)) for name in (key.a, base)
        )
        if not own or not start:
            return None
        before = {pair.expected[4:10]: pair.score for pair in start}
        both = [p for p in own if p.score is not None and before.get(p.expected[4:10]) is not None]
        after, queries, principles = principle_rows(both)
        known = [before[p.expected[4:10]] or 0.0 for p in both]
        try:
            sides.append(principles_difference(after, known, queries, principles, inputs.level))
        except UnusableScores as error:
            return _no_welch(str(error))
    return _welch(welch_gap(sides[0], sides[1], inputs.level)) | {
        "learned": sides[0].estimate,
        "held_out": sides[1].estimate,
    }


def _welch(found: WelchGap) -> dict[str, Any]:
    return {
        "gap": found.estimate,
        "ci_low": found.low,
        "ci_high": found.high,
        "p_value": found.p_value,
        "df": found.df,
        "n_learned": found.n_learned,
        "n_held_out": found.n_held_out,
    }


def _no_welch(note: str) -> dict[str, Any]:
    fields = ("gap", "ci_low", "ci_high", "p_value", "df", "n_learned", "n_held_out")
    return {**dict.fromkeys(fields), "note": note}


def _gap(learned: Scored, held_out: Scored, inputs: ScoreInputs) -> dict[str, Any]:
    try:
        one, two = (dict(zip(*map(list, query_means(side)), strict=True)) for side in (learned, held_out))
        found = gap(one, two, inputs.level)
    except UnusableScores:
        figures = dict.fromkeys(("gap", "ci_low", "ci_high"))
        note = "No query has a score under both learned and held-out principles."
        return figures | {"ci_level": inputs.level, "ci_method": None, "n": 0, "p_value": None, "note": note}
    halved = [(one[query] - two[query] + 1) / 2 for query in sorted(one.keys() & two.keys())]
    holds = sequential_rate(inputs.rule, halved, inputs.level)
    row = {
        "gap": found.estimate,
        "ci_low": 2 * holds.low - 1,
        "ci_high": 2 * holds.high - 1,
        "ci_level": inputs.level,
        "ci_method": f"{holds.method}, on (difference + 1) / 2",
        "n": found.n,
        "p_value": holds.p_value,
    }
    left_out = found.n_unpaired
    return noted(row, f"Queries with one of the two scores, left out: {left_out}." if left_out else None)


def steerability(key: Key, group: list[Pair], inputs: ScoreInputs) -> list[dict[str, Any]]:
    """How often a model follows a principle, not its opposite: a row over all principles (`principle` null), then one for each."""
    nothing = NOTHING_SCORED
    if _same_under_both(group, inputs):
        group, nothing = [pair._replace(score=None) for pair in group], SAME_UNDER_BOTH
    everything: list[tuple[str | None, Scored]] = [(None, scored_pairs(group)), *scored_by_principle(group).items()]
    unscored = len({pair.query for pair in group}) - len({query for query, _ in everything[0][1]})
    rows = []
    for principle, scored in everything:
        rate = rate_of(scored, inputs.level, inputs.rule)
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
            "ci_level": inputs.level,
            "ci_method": rate["method"],
            "principles_ci": principles_ci(group, inputs.level) if principle is None else None,
        }
        left_out = f"Queries without a score, left out: {unscored}." if principle is None and unscored else None
        rows.append(noted(row, left_out if rate["n"] else nothing))
    return rows


def _same_under_both(group: list[Pair], inputs: ScoreInputs) -> bool:
    """Whether every response under a constitution is the response under its opposite, to the letter."""

    def both(pair: Pair) -> list[str]:
        one = pair.expected.response("a")
        other = one._replace(constitution_id=opposite_id(one.constitution_id))
        return [facts.digest for key in (one, other) if (facts := inputs.facts.get(key))]

    return all(len(digests := both(pair)) == 2 and len(set(digests)) == 1 for pair in group)
