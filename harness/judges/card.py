"""The judge card: how a judge behaved, and how far it agrees with a reference.

Everything is counted on verdicts alone. Shares are fractions (None where there is nothing to count) and stand beside their
n; intervals are clustered by query, the unit of every win rate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from harness.rows import Verdict

_Counted = list[tuple[str, float]]
"""(query, what is averaged)"""


class JudgedPair(NamedTuple):
    """A pair of answers with what a judge said of it."""

    key: tuple[object, ...]
    """What makes the pair this pair, whoever judges it."""
    query: str
    rows: tuple[Verdict, ...]
    """Its verdicts: one for each order and repeat."""
    score: float | None
    """The score of a, in [0, 1], over all of them; None where it has none."""
    length_a: int | None = None
    """Words."""
    length_b: int | None = None

    @property
    def identical(self) -> bool:
        """Whether the two answers are the same text, so that no judge was asked."""
        return any(row.details.get("identical") for row in self.rows)


def judge_card(verdicts: Iterable[Verdict]) -> dict[str, Any]:
    """How the judge behaved, each share with its n.

    Pairs of equal texts, which the judge never saw, are counted (`n_identical`) and left out of everything else.
    `repeat_agreement` is the share of two judgings of one pair in one order that say the same, over the `n_repeated`
    pairs and orders that were judged more than once.
    """
    rows = list(verdicts)
    asked = [v for v in rows if not v.details.get("identical")]
    scored = [v for v in asked if v.outcome != "unscored"]
    decided = [v for v in scored if v.outcome != "tie"]
    reasons = Counter(v.reason or "unknown" for v in asked if v.outcome == "unscored")
    both = _both_orders(scored)
    repeated = _repeated(scored)
    return {
        "n": len(asked),
        "n_identical": len(rows) - len(asked),
        "unscored_rate": _share(len(asked) - len(scored), len(asked)),
        "unscored_reasons": dict(reasons.most_common()),
        "n_scored": len(scored),
        "ties": _share(len(scored) - len(decided), len(scored)),
        "n_decided": len(decided),
        "share_first": _share(sum(_is_first(v) for v in decided), len(decided)),
        "n_pairs": len(both),
        "position_consistency": _share(sum(agree for _, agree in both), len(both)),
        "n_repeated": len(repeated),
        "repeat_agreement": sum(agree for _, agree in repeated) / len(repeated) if repeated else None,
    }


def full_card(pairs: Sequence[JudgedPair], level: float) -> dict[str, Any]:
    """`judge_card` with the length preference, and with an interval at `level` for every share, in `intervals`.

    `longer_wins` is the share of the `n_longer` decided pairs of unlike lengths in which the longer answer wins (a pair
    counts once, its orders and repeats averaged), `length_spearman` the rank correlation of a's score with a's extra
    length.
    """
    card = judge_card(row for pair in pairs for row in pair.rows)
    asked = [row for pair in pairs for row in pair.rows if not row.details.get("identical")]
    scored = [v for v in asked if v.outcome != "unscored"]
    known = _with_lengths(pairs)
    longer = [(query, float((score > 0.5) == (a > b))) for query, score, a, b in known if score != 0.5 and a != b]
    card["n_longer"] = len(longer)
    card["longer_wins"] = _mean(longer)
    card["length_spearman"] = _spearman(known)
    counted = {
        "position_consistency": _both_orders(scored),
        "share_first": [(_query(v), float(_is_first(v))) for v in scored if v.outcome != "tie"],
        "repeat_agreement": _repeated(scored),
        "ties": [(_query(v), float(v.outcome == "tie")) for v in scored],
        "unscored_rate": [(_query(v), float(v.outcome == "unscored")) for v in asked],
        "longer_wins": longer,
    }
    card["intervals"] = {name: _interval(values, level) for name, values in counted.items()}
    return card


def against_reference(
    pairs: Sequence[JudgedPair], reference: Mapping[tuple[object, ...], float], level: float
) -> dict[str, Any]:
    """How far the judge agrees with `reference`, the scores of a by pair (1, 1/2 or 0): see `harness.stats.judge_agreement`.

    Over the `n` pairs that both have scored; pairs of equal texts are left out. `table` counts pairs, rows the reference's
    label and columns the judge's, each in the order a, tie, b. Every figure has its interval at `level` beside it
    (`accuracy_ci`, ...): over queries, but for kappa's, which takes pairs for independent.

    `by_probability` is there for judges whose probabilities are read: how often the answer that is likelier over both
    orders, so that a lean to a place falls out, is the reference's, on the pairs that it decides.
    """
    from harness.stats import judge_agreement

    both = [
        (p, p.score, reference[p.key]) for p in pairs if p.score is not None and p.key in reference and not p.identical
    ]
    names = ("accuracy", "kappa", "sensitivity", "specificity")
    if not both:
        nothing: dict[str, Any] = {name: None for one in names for name in (one, f"{one}_ci")}
        nothing |= {"n_by_probability": 0, "by_probability": None, "by_probability_ci": None, "table": None}
        return {"n": 0, "n_a": 0, "n_b": 0, **nothing, "note": "No pair is scored by both."}
    found = judge_agreement([score for _, score, _ in both], [label for *_, label in both], level)
    counted: dict[str, _Counted] = {
        "accuracy": [(p.query, float(_sign(score) == _sign(label))) for p, score, label in both],
        "sensitivity": [(p.query, score) for p, score, label in both if label > 0.5],
        "specificity": [(p.query, 1 - score) for p, score, label in both if label < 0.5],
    }
    card: dict[str, Any] = {"n": found.n, "n_a": len(counted["sensitivity"]), "n_b": len(counted["specificity"])}
    for name in names:
        if name == "kappa":
            card["kappa"] = found.kappa and found.kappa.estimate
            card["kappa_ci"] = found.kappa and [found.kappa.low, found.kappa.high]
        else:
            card[name] = _mean(counted[name])
            card[f"{name}_ci"] = _interval(counted[name], level)
    likelier = [
        (p.query, float((gain > 0) == (label > 0.5)))
        for p, _, label in both
        if label != 0.5 and (gain := _probability_gain(p))
    ]
    card |= {"n_by_probability": len(likelier), "by_probability": _mean(likelier)}
    card["by_probability_ci"] = _interval(likelier, level)
    card["table"] = found.table.tolist()
    if found.kappa is None:
        card["note"] = "Judge and reference say one and the same of every pair: kappa has no chance agreement to beat."
    return card


def corrected(scores: Mapping[str, float], reference: Mapping[str, float], level: float) -> dict[str, Any]:
    """The judge's win rate, and what it would be by the reference, which knows only some of the queries.

    Both mappings give a query its score of a, in [0, 1]. The queries of both are the labelled sample; see
    `harness.stats.rogan_gladen` and `harness.stats.ppi_mean`. A correction that cannot be made is None, with a note.
    """
    from harness.stats import UnusableScores, ppi_mean, rogan_gladen, win_rate

    both = sorted(scores.keys() & reference.keys())
    alone = [score for query, score in sorted(scores.items()) if query not in reference]
    raw = win_rate(list(scores.values()), level)
    row: dict[str, Any] = {"n": len(alone), "n_labelled": len(both)}
    row |= {"win_rate": raw.estimate, "win_rate_ci": [raw.low, raw.high]}
    labelled, labels = [scores[query] for query in both], [reference[query] for query in both]
    notes = []
    for name, correct in (("rogan_gladen", rogan_gladen), ("ppi", ppi_mean)):
        try:
            found = correct(alone, labelled, labels, level)
        except UnusableScores as error:
            row |= {name: None, f"{name}_ci": None}
            notes.append(str(error))
        else:
            row |= {name: found.estimate, f"{name}_ci": [found.low, found.high]}
    return row | ({"note": " ".join(notes)} if notes else {})


def _probability_gain(pair: JudgedPair) -> float:
    """How much likelier a is than b over both orders; 0 where there are no probabilities of both."""
    first: dict[str, list[float]] = {"ab": [], "ba": []}
    for row in pair.rows:
        if isinstance(p := row.details.get("p_first"), float):
            first[row.order].append(p)
    if not first["ab"] or not first["ba"]:
        return 0.0
    return sum(first["ab"]) / len(first["ab"]) - sum(first["ba"]) / len(first["ba"])


def _sign(score: float) -> int:
    return (score > 0.5) - (score < 0.5)


def _query(v: Verdict) -> str:
    return f"{v.task}\0{v.query_id}"


def _is_first(v: Verdict) -> bool:
    return (v.outcome == "a") == (v.order == "ab")


def _place(v: Verdict) -> tuple[object, ...]:
    return v.judge, v.kind, v.a, v.b, v.task, v.query_id, v.constitution_id, v.principle_set, v.split, v.epoch


def _both_orders(scored: Iterable[Verdict]) -> _Counted:
    """For every pair that both orders scored, whether they say the same."""
    found: dict[tuple[object, ...], dict[str, Verdict]] = {}
    for v in scored:
        found.setdefault((*_place(v), v.repeat), {})[v.order] = v
    return [
        (_query(orders["ab"]), float(orders["ab"].outcome == orders["ba"].outcome))
        for orders in found.values()
        if len(orders) == 2
    ]


def _repeated(scored: Iterable[Verdict]) -> _Counted:
    """For every pair and order that was scored more than once, the share of two judgings that say the same."""
    found: dict[tuple[object, ...], list[Verdict]] = {}
    for v in scored:
        found.setdefault((*_place(v), v.order), []).append(v)
    return [
        (_query(again[0]), sum(alike) / len(alike))
        for again in found.values()
        if (alike := [one.outcome == other.outcome for one, other in combinations(again, 2)])
    ]


def _with_lengths(pairs: Iterable[JudgedPair]) -> list[tuple[str, float, int, int]]:
    """Query, score and both lengths of the pairs that the judge saw and scored."""
    return [
        (p.query, p.score, p.length_a, p.length_b)
        for p in pairs
        if p.score is not None and not p.identical and p.length_a is not None and p.length_b is not None
    ]


def _spearman(known: list[tuple[str, float, int, int]]) -> float | None:
    from harness.stats import length_summary

    if not known:
        return None
    _, scores, a, b = zip(*known, strict=True)
    return length_summary(a, b, scores).spearman


def _interval(counted: _Counted, level: float) -> list[float] | None:
    """Low and high of a mean, over queries; the mean itself, in which a query with more rows weighs more, lies within."""
    from harness.stats import cluster_means, win_rate

    mean = _mean(counted)
    if mean is None:
        return None
    queries, values = zip(*counted, strict=True)
    found = win_rate(cluster_means(values, queries).means, level)
    return [min(found.low, mean), max(found.high, mean)]


def _mean(counted: _Counted) -> float | None:
    return sum(value for _, value in counted) / len(counted) if counted else None


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
