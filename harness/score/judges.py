"""What the results say of the judges: cards, corrections by a program, verdicts that are not counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from harness.judges.card import JudgedPair, against_reference, corrected, full_card
from harness.judges.family import same_family
from harness.score.inputs import NotCounted, ScoreInputs, WhyNotCounted
from harness.score.pairs import Groups, Pair, score_by_query, scored_pairs


def judge_cards(inputs: ScoreInputs, pairs: list[Pair]) -> dict[str, Any]:
    """The card of every judge, over all of its verdicts. The share of "first" is null where one order was shown."""
    cards = {}
    reference = _reference(inputs)
    known: dict[tuple[object, ...], float] = {
        pair.expected[1:10]: pair.score for pair in pairs if pair.expected.judge == reference and pair.score is not None
    }
    for name, judge in inputs.judges.items():
        own = [pair for pair in pairs if pair.expected.judge == name]
        judged_pairs = [_judged(pair, inputs) for pair in own]
        card = full_card(judged_pairs, inputs.level)
        if not any(len(pair.expected.orders) > 1 for pair in own):
            card["share_first"] = card["intervals"]["share_first"] = None
        judged = dict.fromkeys(model for pair in own for model in (pair.expected.a, pair.expected.b))
        akin = same_family(judge["model"], judged, inputs.models) if judge.get("model") else {}
        cards[name] = {
            "kind": judge["kind"],
            "model": judge.get("model"),
            "draws": judge.get("draws"),
            **card,
            "same_family": akin,
            "agreement": None,
        }
        if reference not in (None, name):
            agreement = against_reference(judged_pairs, known, inputs.level)
            cards[name]["agreement"] = {"reference": reference, **agreement}
    return cards


def quality(inputs: ScoreInputs, pairs: Iterable[Pair]) -> dict[str, Any]:
    """Whether enough verdicts are scored. The worst judge decides: the verdicts of others say nothing of what it can read.

    Counted is each kind of a judge's verdicts by itself, missing ones too, without ties of equal texts, which no judge reads.
    """
    counts: dict[tuple[str, str], list[int]] = {}
    for pair in pairs:
        of = counts.setdefault((pair.expected.judge, pair.expected.kind), [0, 0])
        for row in pair.rows:
            if row is None or not row.details.get("identical"):
                of[0] += 1
                of[1] += row is None or row.outcome == "unscored"
    by_judge: list[dict[str, Any]] = [
        {"judge": judge, "kind": kind, "n": n, "unscored": unscored, "unscored_rate": unscored / n if n else 0.0}
        for (judge, kind), (n, unscored) in sorted(counts.items())
    ]
    worst = max(by_judge, key=lambda row: row["unscored_rate"], default=None)
    rate = worst["unscored_rate"] if worst else 0.0
    return {
        "unscored_rate": rate,
        "judge": worst["judge"] if worst and rate else None,
        "max_unscored": inputs.max_unscored,
        "passed": rate <= inputs.max_unscored,
        "by_judge": by_judge,
    }


def _reference(inputs: ScoreInputs) -> str | None:
    """The judge that the others are held against: a program, where the run has one."""
    return next((name for name, judge in inputs.judges.items() if judge["kind"] == "verifiable"), None)


def corrections(inputs: ScoreInputs, groups: Groups) -> list[dict[str, Any]]:
    """Win rates of LLM judges corrected by the program's, for comparisons of which it judged some queries and not all.

    Each task is a stratum of the row that pools them.
    """
    rows = []
    reference = _reference(inputs)
    for key, group in groups.items():
        labels = groups.get(key._replace(judge=reference)) if reference else None
        if key.kind != "win_rate" or key.judge == reference or not labels:
            continue
        strata = {}
        for task in dict.fromkeys(pair.expected.task for pair in group):
            scores, known = (
                score_by_query(scored_pairs([pair for pair in side if pair.expected.task == task]))
                for side in (group, labels)
            )
            if scores:
                strata[task] = (scores, known)
        if not any(known for _, known in strata.values()):
            continue
        if all(scores.keys() <= known.keys() for scores, known in strata.values()):
            continue  # the program's own win rate is there, and needs no correction
        rows.append({**key.head(), "reference": reference, **corrected(strata, inputs.level)})
    return rows


def _judged(pair: Pair, inputs: ScoreInputs) -> JudgedPair:
    e = pair.expected
    a, b = (facts and facts.words for facts in (inputs.facts.get(e.response("a")), inputs.facts.get(e.response("b"))))
    rows = tuple(row for row in pair.rows if row)
    known = (a, b) if e.kind == "win_rate" else (None, None)  # the other answer of a contrast has another constitution
    return JudgedPair(tuple(e[1:10]), pair.query, rows, pair.score, *known, e.kind)


def not_counted(found: Sequence[NotCounted]) -> list[dict[str, Any]]:
    """A row for each reason why verdicts are not counted, with the sentence that tells of them as its `note`."""
    rows = []
    for why in dict.fromkeys(one.why for one in found):
        group = [one for one in found if one.why == why]
        rows.append(
            {
                "why": why,
                "n": sum(one.n for one in group),
                "of": [{"judge": one.judge, "kind": one.kind, "a": one.a, "b": one.b, "n": one.n} for one in group],
                "note": _not_counted_said(why, group),
            }
        )
    return rows


def _not_counted_said(why: WhyNotCounted, group: Sequence[NotCounted]) -> str:
    n = sum(one.n for one in group)
    verdicts, were, them = ("verdict", "was", "it") if n == 1 else ("verdicts", "were", "them")
    counted = "is not counted" if n == 1 else "are not counted"
    judges = dict.fromkeys(one.judge for one in group)
    places = "; ".join(
        f"{judge}: {', '.join(f'{one.n:,} on {_pair_words(one)}' for one in group if one.judge == judge)}"
        for judge in judges
    )
    if why == "responses":
        return (
            f"{n:,} {verdicts} in this run ({places}) {were} made on other responses, or by other rules, than are planned now, "
            f"and {counted}: 'harness run' with the run's spec.yaml makes and judges what is missing."
        )
    again = " ".join(f"--judge {judge}" for judge in judges)
    return (
        f"{n:,} {verdicts} in this run ({places}) {were} made by other rules than this version, or this specification, judges by, "
        f"and {counted}: judge again with 'harness rejudge RUN {again}', or score the run with the version that made {them}."
    )


def _pair_words(one: NotCounted) -> str:
    words = {"steerability": f"the steerability of {one.a}", "swapped": f"{one.a} against {one.b}, swapped"}
    return words.get(one.kind, f"{one.a} against {one.b}")
