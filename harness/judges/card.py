"""The judge card: how a judge behaved, and how far it agrees with a reference.

Everything is counted on verdicts alone. Shares are fractions (None where there is nothing to count) and stand beside their
n; the query is the unit of every interval, as of every win rate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.rows import Verdict

if TYPE_CHECKING:
    from harness.stats import Labels

OF_VERDICTS = 1000
"""For how many verdicts a card says what they are worth in labels."""

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
    kind: str = "win_rate"
    """The kind of comparison: agreement is told for each by itself."""

    @property
    def identical(self) -> bool:
        """Whether the two answers are the same text, so that no judge was asked."""
        return any(row.details.get("identical") for row in self.rows)


def judge_card(verdicts: Iterable[Verdict]) -> dict[str, Any]:
    """How the judge behaved, each share with its n.

    Pairs of equal texts, which the judge never saw, are counted (`n_identical`) and left out of everything else.
    `repeat_agreement` is the share of two judgings of one pair in one order that say the same, over the `n_repeated`
    pairs and orders that were judged more than once. `unscored_said` has the commonest reasons as they were told, `n_retried`
    how many of the unscored verdicts another run asks for again, `left_out` the fields that requests left out.
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
        "unscored_said": [{"said": said, "n": n} for said, n in troubles(asked).most_common(SENTENCES)],
        "n_retried": sum("error" in v.details for v in asked if v.outcome == "unscored"),
        "left_out": sorted({name for v in asked for name in left_out_of(v)}),
        "n_scored": len(scored),
        "ties": _share(len(scored) - len(decided), len(scored)),
        "n_decided": len(decided),
        "share_first": _share(sum(_is_first(v) for v in decided), len(decided)),
        "n_pairs": len(both),
        "position_consistency": _share(sum(agree for _, agree in both), len(both)),
        "n_repeated": len(repeated),
        "repeat_agreement": sum(agree for _, agree in repeated) / len(repeated) if repeated else None,
    }


SENTENCES = 3
"""Of the commonest reasons for no verdict that a card has in full."""


def troubles(rows: Iterable[Any]) -> Counter[str]:
    """Why rows (responses, verdicts) have no content, in the provider's own words where there are any; with counts."""
    found: Counter[str] = Counter()
    for row in rows:
        if isinstance(row, Verdict) and row.outcome == "unscored":
            found[str(row.details.get("error") or row.details.get("note") or row.reason)] += 1
        elif getattr(row, "error", None):
            found[row.error] += 1
    return found


def left_out_of(row: Any) -> list[str]:
    """The fields that the request for a row left out, because the model refuses them or they are set so."""
    found = row.usage.get("left_out")
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


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

    Over the `n` pairs that both have scored; pairs of equal texts are left out. Kinds of comparison are not mixed: `by_kind`
    has the figures of each, and those of `kind` (win rates, where there are any) are repeated at the top. `table` counts
    pairs, rows the reference's label and columns the judge's, each in the order a, tie, b. Every figure has its interval at
    `level` beside it (`accuracy_ci`, ...), over queries.

    `by_probability` is there for judges whose probabilities are read: how often the answer that is likelier over both
    orders, so that a lean to a place falls out, is the reference's, on the pairs that it decides. `worth` is how many labels
    1,000 more verdicts of the judge would be worth beside those there are: see `harness.stats.worth_in_labels`.
    """
    kinds = sorted({pair.kind for pair in pairs}, key=lambda kind: (kind != "win_rate", kind)) or ["win_rate"]
    by_kind = {kind: _agreement([pair for pair in pairs if pair.kind == kind], reference, level) for kind in kinds}
    return {"kind": kinds[0], **by_kind[kinds[0]], "by_kind": by_kind}


def _agreement(
    pairs: Sequence[JudgedPair], reference: Mapping[tuple[object, ...], float], level: float
) -> dict[str, Any]:
    from harness.stats import judge_agreement

    both = [
        (p, p.score, reference[p.key]) for p in pairs if p.score is not None and p.key in reference and not p.identical
    ]
    names = ("accuracy", "kappa", "sensitivity", "specificity")
    if not both:
        nothing: dict[str, Any] = {name: None for one in names for name in (one, f"{one}_ci")}
        nothing |= {"n_by_probability": 0, "by_probability": None, "by_probability_ci": None, "table": None}
        return {"n": 0, "n_a": 0, "n_b": 0, **nothing, "worth": None, "note": "No pair is scored by both."}
    queries, scores, labels = [p.query for p, *_ in both], [s for _, s, _ in both], [label for *_, label in both]
    found = judge_agreement(scores, labels, level, queries)
    card: dict[str, Any] = {
        "n": found.n, "n_a": sum(label > 0.5 for label in labels), "n_b": sum(label < 0.5 for label in labels)
    }  # fmt: skip
    for name in names:
        figure = getattr(found, name)
        card |= {name: figure and figure.estimate, f"{name}_ci": figure and [figure.low, figure.high]}
    likelier = [
        (p.query, float((gain > 0) == (label > 0.5)))
        for p, _, label in both
        if label != 0.5 and (gain := _probability_gain(p))
    ]
    card |= {"n_by_probability": len(likelier), "by_probability": _mean(likelier)}
    card["by_probability_ci"] = _interval(likelier, level)
    card["table"] = found.table.tolist()
    card["worth"] = _worth_of_more([p for p, *_ in both], scores, labels, level)
    if found.kappa is None:
        card["note"] = "Judge and reference say one and the same of every pair: kappa has no chance agreement to beat."
    return card


def _worth_of_more(pairs: list[JudgedPair], scores: list[float], labels: list[float], level: float) -> dict[str, Any]:
    """As in a win rate, a label is the mean over the pairs of one query in one comparison."""
    from harness.stats import Labels, cluster_means

    unit = [f"{p.query}\0{p.rows[0].a}\0{p.rows[0].b}\0{p.rows[0].split}" for p in pairs]
    said, known = (cluster_means(values, unit).means for values in (scores, labels))
    return _worth([Labels(said, known, OF_VERDICTS)], level)


def _worth(strata: Sequence[Labels], level: float) -> dict[str, Any]:
    from harness.stats import UnusableScores, worth_in_labels

    try:
        found = worth_in_labels(strata, level)
    except UnusableScores as error:
        return {**dict.fromkeys(("labels", "labels_ci", "n_verdicts", "n_labelled")), "note": str(error)}
    return {
        "labels": found.labels,
        "labels_ci": [found.low, found.high],
        "n_verdicts": found.n_verdicts,
        "n_labelled": found.n_labelled,
    }


def corrected(strata: Mapping[str, tuple[Mapping[str, float], Mapping[str, float]]], level: float) -> dict[str, Any]:
    """The judge's win rate, and what it would be by the reference, which knows only some of the queries.

    A stratum (a task, say) has the judge's scores of a, in [0, 1], by query, and the reference's. The queries of both are its
    labelled sample. Strata are corrected one by one, since the shares that are labelled differ, and joined by their numbers of
    queries: see `harness.stats.pooled`, and for the corrections `post_stratified`, `ppi_mean` and `rogan_gladen`. A stratum
    whose queries are all labelled is the labels' own win rate. A correction that cannot be made is None, with a note.
    """
    from harness.stats import Labels, UnusableScores, post_stratified, ppi_mean, rogan_gladen, win_rate

    samples: dict[str, _Sample] = {}
    for name, (scores, reference) in strata.items():
        both = sorted(scores.keys() & reference.keys())
        alone = [scores[query] for query in sorted(scores.keys() - reference.keys())]
        samples[name] = _Sample(alone, [scores[query] for query in both], [reference[query] for query in both])
    raw = win_rate([score for sample in samples.values() for score in (*sample.alone, *sample.labelled)], level)
    row: dict[str, Any] = {
        "n": sum(len(sample.alone) for sample in samples.values()),
        "n_labelled": sum(len(sample.labels) for sample in samples.values()),
        "win_rate": raw.estimate,
        "win_rate_ci": [raw.low, raw.high],
    }
    notes = []
    for name, correct in (("post_stratified", post_stratified), ("ppi", ppi_mean), ("rogan_gladen", rogan_gladen)):
        try:
            estimate, low, high = _over_strata(correct, samples, level)
        except UnusableScores as error:
            row |= {name: None, f"{name}_ci": None}
            notes.append(str(error))
        else:
            row |= {name: estimate, f"{name}_ci": [low, high]}
    row["worth"] = _worth([Labels(s.labelled, s.labels, len(s.alone)) for s in samples.values()], level)
    return row | ({"note": " ".join(notes)} if notes else {})


class _Sample(NamedTuple):
    """The scores of one stratum."""

    alone: list[float]
    """The judge's, of queries without a label."""
    labelled: list[float]
    """The judge's, of queries with one."""
    labels: list[float]


def _over_strata(correct: Any, samples: Mapping[str, _Sample], level: float) -> tuple[float, float, float]:
    from harness.stats import Part, UnusableScores, pooled, win_rate

    parts = []
    for name, (alone, labelled, labels) in samples.items():
        try:
            found = correct(alone, labelled, labels, level) if alone else win_rate(labels, level)
        except UnusableScores as error:
            raise UnusableScores(f"{name}: {error}" if len(samples) > 1 else str(error)) from None
        parts.append(Part(len(alone) + len(labels), found.estimate, found.low, found.high))
    return pooled(parts)


def _probability_gain(pair: JudgedPair) -> float:
    """How much likelier a is than b over both orders; 0 where there are no probabilities of both."""
    first: dict[str, list[float]] = {"ab": [], "ba": []}
    for row in pair.rows:
        if isinstance(p := row.details.get("p_first"), float):
            first[row.order].append(p)
    if not first["ab"] or not first["ba"]:
        return 0.0
    return sum(first["ab"]) / len(first["ab"]) - sum(first["ba"]) / len(first["ba"])


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
    """Low and high of the mean, over queries."""
    from harness.stats import mean_over_pairs

    if not counted:
        return None
    queries, values = zip(*counted, strict=True)
    found = mean_over_pairs(values, queries, level)
    return [found.low, found.high]


def _mean(counted: _Counted) -> float | None:
    return sum(value for _, value in counted) / len(counted) if counted else None


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
