"""The row of a comparison: its win rate, and what length, the swapped control and the judge's noise say of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.judges.card import judge_card
from harness.score.inputs import ScoreInputs
from harness.score.pairs import (
    NOTHING_SCORED,
    Groups,
    Key,
    Pair,
    Scored,
    noted,
    principles_ci,
    rate_of,
    score_by_query,
    scored_by_principle,
    scored_pairs,
    verdict_counts,
)
from harness.score.responses import beside
from harness.stats import (
    LengthGlm,
    LengthStratified,
    ScoreCounts,
    UnusableScores,
    cluster_means,
    judge_share,
    length_glm,
    length_stratified,
    length_summary,
    paired_difference,
    repeat_agreement,
    tie_rules,
)


def comparison(key: Key, groups: Groups, inputs: ScoreInputs) -> dict[str, Any]:
    """The row of what one judge says of two models, on the queries of `key`."""
    group = groups[key]
    rate = rate_of(scored_pairs(group), inputs.level, inputs.rule)
    n_expected = len({pair.query for pair in group})
    counts = ScoreCounts.of(rate["means"], n_expected - rate["n"])
    rules = tie_rules(*counts[:3]) if rate["n"] else None
    card = judge_card(row for pair in group for row in pair.rows if row)
    length = _length(group, inputs)
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
        "principles_ci": principles_ci(group, inputs.level),
        "whole": _whole(group, inputs),
        **beside(group, inputs),
        "mean_length_a": length["mean_a"],
        "mean_length_b": length["mean_b"],
        "n_eff": rate["n_eff"],
        "win_rate_ties_dropped": rules.drop if rules else None,
        "win_rate_ties_lost": rules.loss if rules else None,
        "p_value": rate["p_value"],
        "length_spearman": length["spearman"],
        "length_stratified": length["stratified"],
        "length_glm": length["glm"],
        "swapped": _swapped(group, groups.get(key._replace(kind="swapped")), inputs),
        "judge_noise": _judge_noise(group, inputs.level),
        "position_consistency": card["position_consistency"],
        "verdicts": verdict_counts(group),
        "unscored_losses": _unscored_losses(group),
        "by_principle": [
            _principle_row(principle, scored, inputs) for principle, scored in scored_by_principle(group).items()
        ],
    }
    return noted(row, None if rate["n"] else NOTHING_SCORED)


def _whole(group: list[Pair], inputs: ScoreInputs) -> dict[str, Any] | None:
    """The win rate with copied text left in, by a judge that takes it out; None for others."""
    scored = [(pair.query, pair.whole) for pair in group if pair.whole is not None]
    if not scored:
        return None
    rate = rate_of(scored, inputs.level, inputs.rule)
    return {"n": rate["n"], "win_rate": rate["rate"], "ci_low": rate["low"], "ci_high": rate["high"]}


def _unscored_losses(group: list[Pair]) -> dict[str, Any] | None:
    """By model: verdicts in whose other order it lost, and how many of them are unscored; None for a judge with one order.

    A response that makes its judge's verdict unreadable loses less often: its losses leave the win rate.
    """
    found = {side: {"n": 0, "unscored": 0} for side in ("a", "b")}
    if not any(len(pair.expected.orders) > 1 for pair in group):
        return None
    for pair in group:
        for number in range(0, len(pair.rows) - 1, 2):
            two = pair.rows[number : number + 2]
            for own, other in (two, two[::-1]):
                if own and other and other.outcome in ("a", "b") and "error" not in own.details:
                    of = found["b" if other.outcome == "a" else "a"]
                    of["n"] += 1
                    of["unscored"] += own.outcome == "unscored"
    return found


def _principle_row(principle: str, scored: Scored, inputs: ScoreInputs) -> dict[str, Any]:
    rate = rate_of(scored, inputs.level, inputs.rule)
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
    return noted(row, None if rate["n"] else NOTHING_SCORED)


def _length(group: list[Pair], inputs: ScoreInputs) -> dict[str, Any]:
    """Mean words of both sides over the scored queries, each query counting once, and what length has to do with winning.

    Win rates that take length out are null, with a note, where the lengths do not permit them.
    """
    queries, a, b, scores = [], [], [], []
    for pair in group:
        one, two = inputs.facts.get(pair.expected.response("a")), inputs.facts.get(pair.expected.response("b"))
        if pair.score is not None and one is not None and two is not None:
            queries.append(pair.query)
            a.append(one.words)
            b.append(two.words)
            scores.append(pair.score)
    if not queries:
        return dict.fromkeys(("mean_a", "mean_b", "spearman", "stratified", "glm"))
    of_a, of_b, of_scores = (cluster_means(values, queries).means for values in (a, b, scores))
    summary = length_summary(of_a, of_b, of_scores)
    return {
        "mean_a": summary.mean_a,
        "mean_b": summary.mean_b,
        "spearman": summary.spearman,
        "stratified": _without_length(lambda: length_stratified(of_scores, of_a, of_b, inputs.level)),
        "glm": _without_length(lambda: length_glm(of_scores, of_a, of_b, inputs.level)),
    }


def _without_length(estimate: Callable[[], LengthStratified | LengthGlm]) -> dict[str, Any]:
    try:
        found = estimate()
    except UnusableScores as error:
        return {**dict.fromkeys(("n", "win_rate", "ci_low", "ci_high")), "note": str(error)}
    return {"n": found.n, "win_rate": found.estimate, "ci_low": found.low, "ci_high": found.high}


def _swapped(group: list[Pair], control: list[Pair] | None, inputs: ScoreInputs) -> dict[str, Any] | None:
    """The control: the win rate of the same pairs under constitutions that neither model was given.

    `difference` is the win rate minus that, paired by query: what is left when style and length are taken out.
    """
    if control is None:
        return None
    rate = rate_of(scored_pairs(control), inputs.level, inputs.rule)
    row = {
        "n": rate["n"],
        "win_rate": rate["rate"],
        "ci_low": rate["low"],
        "ci_high": rate["high"],
        "ci_method": rate["method"],
        **dict.fromkeys(("difference", "difference_low", "difference_high", "n_paired")),
    }
    one, two = (score_by_query(scored_pairs(side)) for side in (group, control))
    shared = sorted(one.keys() & two.keys())
    if not shared:
        return noted(row, "No query has a score under its own and under a swapped constitution.")
    found = paired_difference([one[query] for query in shared], [two[query] for query in shared], inputs.level)
    figures = (found.estimate, found.low, found.high, found.n)
    return row | dict(zip(("difference", "difference_low", "difference_high", "n_paired"), figures, strict=True))


def _judge_noise(group: list[Pair], level: float) -> dict[str, Any] | None:
    """What judging a pair again tells of the judge; None where each pair was judged once."""
    if max((len(pair.repeats) for pair in group), default=1) < 2:
        return None
    rows = [
        (score, number, pair.query) for number, pair in enumerate(group) for score in pair.repeats if score is not None
    ]
    scores, pairs, queries = zip(*rows, strict=True) if rows else ((), (), ())
    try:
        share = judge_share(scores, pairs, queries, level)
        agreement = repeat_agreement(scores, pairs, level)
    except UnusableScores as error:
        nothing = ("n_pairs", "agreement", "ci_low", "ci_high", "sd", "share", "share_low", "share_high", "share_once")
        return {**dict.fromkeys(nothing), "note": str(error)}
    return {
        "n_pairs": share.n_pairs,
        "agreement": agreement.estimate,
        "ci_low": agreement.low,
        "ci_high": agreement.high,
        "sd": share.sd,
        "share": share.share,
        "share_low": share.share_low,
        "share_high": share.share_high,
        "share_once": share.share_once,
    }
