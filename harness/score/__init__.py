"""From the rows of a run to its results: `results.json` as docs/results.md describes it.

Pure: the same rows give the same results, to the byte. The query is the unit. The orders in which a judge saw a pair
are combined first, as the protocol says, then the judgings of a pair, then a query's pairs (its constitutions and
epochs). What cannot be computed is null, with a `note` beside it that says why.

    inputs       what the results are made of
    pairs        expected pairs with their verdicts, grouped by what a row is about; scores and win rates of a group
    comparisons  the row of a comparison: win rate, length, the swapped control, the judge's noise
    models       leaderboards, the stability of ranks, gaps between learned and held-out, steerability
    information  InfoNCE
    judges       the judges' cards, corrections by a program, verdicts that are not counted
"""

from __future__ import annotations

from typing import Any

from harness import __version__
from harness.protocols import Protocol
from harness.score.comparisons import comparison
from harness.score.information import infonce_rows
from harness.score.inputs import ExpectedPair, Kind, LengthKey, NotCounted, ScoreInputs, WhyNotCounted
from harness.score.judges import corrections, judge_cards, not_counted
from harness.score.models import gaps, leaderboards, rank_stabilities, steerability
from harness.score.pairs import grouped, judged_pairs, strict, verdict_counts
from harness.stats import holm

__all__ = ["SCHEMA_VERSION", "ExpectedPair", "Kind", "LengthKey", "NotCounted", "ScoreInputs", "WhyNotCounted", "score"]

SCHEMA_VERSION = 1


def score(inputs: ScoreInputs) -> dict[str, Any]:
    """The results of a run, ready for strict JSON: no NaN, no times. The caller adds `created`."""
    pairs = judged_pairs(inputs)
    groups = grouped(inputs, pairs)
    verdicts = verdict_counts([pair for pair in pairs if not (inputs.unfinished and None in pair.rows)])
    unscored_rate = verdicts["unscored"] / verdicts["expected"] if verdicts["expected"] else 0.0
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
        "quality": {
            "unscored_rate": unscored_rate,
            "max_unscored": inputs.max_unscored,
            "passed": unscored_rate <= inputs.max_unscored,
        },
        "not_counted": not_counted(inputs.not_counted),
    }


def _tie_rule(protocol: Protocol) -> str:
    if protocol.ties == protocol.ties_in_summarization:
        return protocol.ties
    return f"{protocol.ties}; in summarization: {protocol.ties_in_summarization}"


def _adjusted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`rows` with Holm's adjustment of `p_value` over all rows of a judge and a principle set."""
    families: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        row["p_holm"] = None
        if row["p_value"] is not None:
            families.setdefault((row["judge"], row["principle_set"]), []).append(row)
    for family in families.values():
        for row, p in zip(family, holm([row["p_value"] for row in family]), strict=True):
            row["p_holm"] = float(p)
    return rows
