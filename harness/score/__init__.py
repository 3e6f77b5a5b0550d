"""From the rows of a run to its results: `results.json` as docs/results.md describes it.

Pure: the same rows give the same results, to the byte. The query is the unit. The orders in which a judge saw a pair
are combined first, as the protocol says, then the judgings of a pair, then a query's pairs (its constitutions and
epochs). What cannot be computed is null, with a `note` beside it that says why.

    inputs       what the results are made of
    pairs        expected pairs with their verdicts, grouped by what a row is about; scores and win rates of a group
    comparisons  the row of a comparison: win rate, length, the swapped control, the judge's noise
    models       leaderboards, the stability of ranks, gaps between learned and held-out, steerability
    responses    copied, run-on, cut, empty and identical responses; relevance; win rates read where both are alike
    information  InfoNCE
    judges       the judges' cards, corrections by a program, verdicts that are not counted
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness import __version__
from harness.protocols import Protocol
from harness.score.comparisons import comparison
from harness.score.information import infonce_rows
from harness.score.inputs import ExpectedPair, Facts, Kind, NotCounted, ResponseKey, ScoreInputs, WhyNotCounted
from harness.score.judges import corrections, judge_cards, not_counted, quality
from harness.score.models import gaps, leaderboards, rank_stabilities, steerability
from harness.score.pairs import ALL_TASKS, grouped, judged_pairs, strict
from harness.score.responses import response_rows
from harness.stats import holm

__all__ = [
    "SCHEMA_VERSION",
    "ExpectedPair",
    "Facts",
    "Kind",
    "NotCounted",
    "ResponseKey",
    "ScoreInputs",
    "WhyNotCounted",
    "score",
]

SCHEMA_VERSION = 2


def score(inputs: ScoreInputs) -> dict[str, Any]:
    """The results of a run, ready for strict JSON: no NaN, no times. The caller adds `created`."""
    pairs = judged_pairs(inputs)
    groups = grouped(inputs, pairs)
    return {
        "schema_version": SCHEMA_VERSION,
        "name": inputs.name,
        "description": inputs.description,
        "harness_version": __version__,
        "spec_fingerprint": inputs.spec_fingerprint,
        "level": inputs.level,
        "protocol": inputs.protocol.name,
        "tie_rule": _tie_rule(inputs.protocol),
        "models": strict(inputs.models),
        "comparisons": _adjusted(
            [comparison(key, groups, inputs) for key in groups if key.kind == "win_rate"],
        ),
        "responses": response_rows(inputs),
        "gaps": _adjusted(gaps(groups, inputs)),
        "leaderboards": leaderboards(groups, inputs),
        "rank_stability": rank_stabilities(groups, inputs),
        "steerability": [
            row
            for key, group in groups.items()
            if key.kind == "steerability"
            for row in steerability(key, group, inputs)
        ],
        "infonce": infonce_rows(inputs),
        "judges": judge_cards(inputs, pairs),
        "corrections": corrections(inputs, groups),
        "training": strict(inputs.training),
        "quality": quality(inputs, [pair for pair in pairs if not (inputs.unfinished and None in pair.rows)]),
        "not_counted": not_counted(inputs.not_counted),
    }


def _tie_rule(protocol: Protocol) -> str:
    if protocol.ties == protocol.ties_in_summarization:
        return protocol.ties
    return f"{protocol.ties}; in summarization: {protocol.ties_in_summarization}"


def _adjusted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`rows` with their `family` and Holm's adjustment of `p_value` within it, by judge and principle set.

    The headline family has the rows that pool all tasks; the rows of single tasks are the detail. Where there is one task,
    its rows are the headline.
    """
    pooled = {_place(row) for row in rows if row["task"] == ALL_TASKS}
    families: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        is_detail = row["task"] != ALL_TASKS and _place(row) in pooled
        row |= {"family": "detail" if is_detail else "headline", "p_holm": None, "n_family": None}
        if row["p_value"] is not None:
            families.setdefault((row["judge"], row["principle_set"], row["family"]), []).append(row)
    for family in families.values():
        for row, p in zip(family, holm([row["p_value"] for row in family]), strict=True):
            row |= {"p_holm": float(p), "n_family": len(family)}
    return rows


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(field) for field in ("judge", "principle_set", "a", "b", "split"))
