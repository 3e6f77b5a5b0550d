"""Would another judge say the same? Verdicts and ranks of two judges over the queries that both have scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.stats import ScoreCounts, UnusableScores, bradley_terry, cohens_kappa, win_rate

Scores = Mapping[str, float]
"""Score of `a` by query."""
Pair = tuple[str, str]
"""The two models, `a` and `b`."""

FEWEST_MODELS = 3
"""Two models have two orders only, and their correlation says no more than which of them is ahead."""


def rank_stability(one: Mapping[Pair, Scores], two: Mapping[Pair, Scores], level: float) -> dict[str, Any] | None:
    """How far two judges agree about the same models, from the scores each of them gave by pair and query.

    Only queries that both have scored count. For each pair: both win rates, the share of queries with the same outcome
    (win, tie or loss) with its interval, Cohen's kappa, and whether the `order` of the two models is the same: "same" or
    "flips" where both judges' intervals exclude one half, else "unclear". Over all models:
    Kendall's tau-b (Kendall 1945) of their ranks by the two judges, where a model's standing is its Bradley-Terry strength.

    Returns None where no pair has a common query.
    """
    rows = []
    common: list[tuple[Pair, list[str]]] = []
    for pair in (p for p in one if p in two):
        queries = sorted(one[pair].keys() & two[pair].keys())
        if queries:
            common.append((pair, queries))
            rows.append(_pair(pair, [one[pair][q] for q in queries], [two[pair][q] for q in queries], level))
    if not rows:
        return None
    models = list(dict.fromkeys(name for pair, _ in common for name in pair))
    tau = None
    note: str | None = f"A rank correlation needs {FEWEST_MODELS} models or more; here are {len(models)}."
    if len(models) >= FEWEST_MODELS:
        try:
            tau = kendall_tau(_standings(one, common, models), _standings(two, common, models))
            note = None if tau is not None else "One of the judges ranks all models alike."
        except UnusableScores as error:
            note = str(error)
    return {
        "n_models": len(models),
        "kendall_tau": tau,
        "flips": [{"a": row["a"], "b": row["b"]} for row in rows if row["order"] == "flips"],
        "pairs": rows,
        **({"note": note} if note else {}),
    }


def _pair(pair: Pair, one: list[float], two: list[float], level: float) -> dict[str, Any]:
    same = [float(_outcome(x) == _outcome(y)) for x, y in zip(one, two, strict=True)]
    rates = [win_rate(side, level) for side in (one, two)]
    sides = [int(rate.low > 0.5) - int(rate.high < 0.5) for rate in rates]
    agreement = win_rate(same, level)
    kappa = cohens_kappa(one, two, level)
    return {
        "a": pair[0],
        "b": pair[1],
        "n": len(same),
        **{f"win_rate_{i}": rate.estimate for i, rate in enumerate(rates, 1)},
        **{f"win_rate_{i}_ci": [rate.low, rate.high] for i, rate in enumerate(rates, 1)},
        "order": {1: "same", -1: "flips", 0: "unclear"}[sides[0] * sides[1]],
        "agreement": agreement.estimate,
        "ci_low": agreement.low,
        "ci_high": agreement.high,
        "kappa": kappa and {"kappa": kappa.estimate, "ci_low": kappa.low, "ci_high": kappa.high},
    }


def _outcome(score: float) -> str:
    counts = ScoreCounts.of([score])
    return "win" if counts.wins else "tie" if counts.ties else "loss"


def _standings(
    side: Mapping[Pair, Scores], common: Sequence[tuple[Pair, list[str]]], models: Sequence[str]
) -> list[float]:
    """A judge's Bradley-Terry strength of each model. Raises UnusableScores where the scores cannot give it."""
    rows = [(a, b, side[a, b][query], query) for (a, b), queries in common for query in queries]
    a, b, scores, queries = zip(*rows, strict=True)
    found = bradley_terry(a, b, scores, queries, base=models[0])
    strength = {model.name: model.strength for model in found.models}
    return [strength[name] for name in models]


def kendall_tau(one: Sequence[float], two: Sequence[float]) -> float | None:
    """tau-b of two rankings of the same things, in [-1, 1] (Kendall 1945); None where one of them has nothing but ties."""
    from scipy.stats import kendalltau

    rounded = [[round(x, 9) for x in side] for side in (one, two)]
    if min(len(set(side)) for side in rounded) < 2:
        return None
    return float(kendalltau(*rounded).statistic)
