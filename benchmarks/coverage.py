"""How often do the harness's 95% intervals cover the truth?

    python benchmarks/coverage.py [--only length] [--simulations 4000]

Win rates and paired differences of 0/1 scores are not simulated: every outcome that n queries can give (wins and ties, or wins
of a only and of b only) is weighted by its multinomial probability; outcomes rarer than 1 in 10 million are left out. The rest
is simulated with fixed seeds: a cell's standard error is 0.34 points at 4,000 simulations, 0.49 where half of them are run.
The bar is 93.5% from 50 queries on, on the grid of the win rate: p in {.5, .65, .77, .95}, tie rate in
{0, .1}, n in {50, 250}. Rows marked "-" lie beyond it and show the limits. At the end: what all wins, all ties, one query and
NaN give. Exit code 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import multinomial, t

from harness.stats import (
    PairedTable,
    UnusableScores,
    bradley_terry,
    cohens_kappa,
    gap,
    judge_agreement,
    length_glm,
    length_stratified,
    newcombe_interval,
    paired_difference,
    position_bias,
    ppi_mean,
    repeat_agreement,
    rogan_gladen,
    win_rate,
    win_rate_matrix,
)

BAR = 0.935
RATES = (0.5, 0.65, 0.77, 0.95)
TIES = (0.0, 0.1)
LEAST = 1e-7
Z = NormalDist().inv_cdf(0.975)

Array = NDArray[Any]
Limits = tuple[Any, Any]

missed: list[str] = []
section = ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="sections whose title has this in it")
    parser.add_argument("--simulations", type=int, default=4000, help="for each simulated cell; slow ones take a part")
    options = parser.parse_args()
    for title, run in SECTIONS.items():
        if options.only in title:
            global section
            section = title
            print(f"\n{title}")
            run(options.simulations)
    print(f"\nMissed: {', '.join(missed)}" if missed else "\nEvery bar is met.")
    return 1 if missed else 0


def cell(head: str, covered: float, *, barred: bool = True, tail: str = "") -> None:
    met = "met" if covered >= BAR else "MISSED"
    if barred and covered < BAR:
        missed.append(f"{section} {head.strip()}")
    print(f"  {head} {covered:8.2%}  {met if barred else '-':6} {tail}".rstrip())


# --- The win rate -----------------------------------------------------------------------------------------------------


def win_rates(_: int) -> None:
    print("  n    ties  p      shipped  bar    Wald   t      Wilson n_eff  percentile BCa")
    for n, tie_rate, p in itertools.product((50, 250), TIES, RATES):
        chances = np.round([p - tie_rate / 2, tie_rate, 1 - p - tie_rate / 2], 12)
        table, weights = outcomes(n, chances)
        m, v = table @ [1, 0.5, 0] / n, table @ [1, 0.25, 0] / n - (table @ [1, 0.5, 0] / n) ** 2
        n_eff = np.where(v < 1e-12, n, n * m * (1 - m) / np.where(v < 1e-12, 1, v))
        wald, s = Z * np.sqrt(m * (1 - m) / n), t.ppf(0.975, n - 1) * np.sqrt(np.maximum(v, 0) / (n - 1))
        resampled = np.array([bootstrap(counts, seed) for seed, counts in enumerate(table)])
        shipped = np.array([limits(win_rate(scores(counts))) for counts in table]).T
        others = [
            (m - wald, m + wald), (m - s, m + s), wilson(m, n), wilson(m, n_eff), resampled[:, 0].T, resampled[:, 1].T
        ]  # fmt: skip
        row = "  ".join(f"{covers(lim, p, weights):5.1%}" for lim in others)
        cell(f"{n:<4} {tie_rate:<5} {p:<5}", covers(shipped, p, weights), tail=row)
    for n, tie_rate, p in itertools.product((5, 20, 50, 250), (*TIES, 0.9), (*RATES, 0.55)):
        if (n < 50 and tie_rate < 0.9 and p != 0.55) or (tie_rate == 0.9 and p in (0.5, 0.55)):
            table, weights = outcomes(n, np.round([p - tie_rate / 2, tie_rate, 1 - p - tie_rate / 2], 12))
            shipped = np.array([limits(win_rate(scores(counts))) for counts in table]).T
            cell(f"{n:<4} {tie_rate:<5} {p:<5}", covers(shipped, p, weights), barred=False)


def outcomes(n: int, chances: Array) -> tuple[Array, Array]:
    """Counts of wins, ties and losses that n queries can give, and their probabilities."""
    most = n if chances[1] else 0
    table = np.array([(w, k, n - w - k) for w in range(n + 1) for k in range(min(most, n - w) + 1)])
    weights = multinomial.pmf(table, n, chances)
    likely = weights > LEAST
    return table[likely], weights[likely] / weights[likely].sum()


def bootstrap(counts: Array, seed: int, resamples: int = 1999) -> tuple[Limits, Limits]:
    """Percentile and BCa (Efron 1987) limits of the mean; a point where all scores are equal."""
    n, values = counts.sum(), np.array([1, 0.5, 0])
    means = np.random.default_rng(seed).multinomial(n, counts / n, resamples) @ values / n
    mean = counts @ values / n
    low, high = np.quantile(means, [0.025, 0.975])
    spread = counts @ (values - mean) ** 2
    if spread < 1e-12:
        return (low, high), (low, high)
    normal = NormalDist()
    share = ((means < mean - 1e-12).mean() + (means <= mean + 1e-12).mean()) / 2
    bias = normal.inv_cdf(float(np.clip(share, 1 / resamples, 1 - 1 / resamples)))
    acceleration = float(counts @ (values - mean) ** 3 / (6 * spread**1.5))
    shifted = [bias + (bias + q) / (1 - acceleration * (bias + q)) for q in (-Z, Z)]
    return (low, high), tuple(np.quantile(means, [normal.cdf(q) for q in shifted]))


def wilson(p: Array, n: Any) -> Limits:
    centre, half = p + Z * Z / (2 * n), Z * np.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return (centre - half) / (1 + Z * Z / n), (centre + half) / (1 + Z * Z / n)


# --- Paired differences -----------------------------------------------------------------------------------------------


def paired_exact(_: int) -> None:
    print("  n    a only  b only  coverage  bar    mean width")
    for n in (10, 20, 30, 50, 250):
        for only_a, only_b in [(0.2, 0.2), (0.3, 0.1), (0.1, 0.02), (0.1, 0.0), (0.05, 0.0)]:
            table, weights = outcomes(n, np.round([only_a, 1 - only_a - only_b, only_b], 12))
            results = [
                paired_difference(np.repeat([1.0, 0, 0], c), np.repeat([0, 0, 1.0], c), resamples=1999, seed=seed)
                for seed, c in enumerate(table)  # one seed for all would bias every row the same way
            ]
            low, high = np.array([limits(r) for r in results]).T
            covered = covers((low, high), only_a - only_b, weights)
            head, width = f"{n:<4} {only_a:<7} {only_b:<7}", f"{weights @ (high - low):.3f}"
            cell(head, covered, barred=n in (50, 250), tail=width)


def paired_orders(simulations: int) -> None:
    """Each score the mean of two orders; the two models share the query's ease."""
    print("  n    p a    p b   coverage  bar")
    rng = np.random.default_rng(1)
    for n, (p_a, p_b) in itertools.product((50, 250), [(0.5, 0.5), (0.77, 0.65), (0.95, 0.77)]):
        ease = rng.normal(0, 1, 400_000)
        truth = expit(logit(p_a) + ease).mean() - expit(logit(p_b) + ease).mean()
        covered = []
        for seed in range(simulations):
            shared = rng.normal(0, 1, n)
            a, b = (rng.binomial(2, expit(logit(p) + shared)) / 2 for p in (p_a, p_b))
            covered.append(holds(paired_difference(a, b, resamples=1999, seed=seed), truth))
        cell(f"{n:<4} {p_a:<6} {p_b:<6}", float(np.mean(covered)))


def newcombe(simulations: int) -> None:
    print("  n    both, a only, b only, neither  coverage  bar")
    rng = np.random.default_rng(2)
    for n, chances in itertools.product(
        (50, 250), [(0.4, 0.2, 0.1, 0.3), (0.7, 0.15, 0.05, 0.1), (0.9, 0.05, 0.03, 0.02)]
    ):
        table, counts = np.unique(rng.multinomial(n, chances, 4 * simulations), axis=0, return_counts=True)
        found = np.array([newcombe_interval(PairedTable(*row)) for row in table.tolist()]).T
        cell(f"{n:<4} {chances!s:30}", covers(found, chances[1] - chances[2], counts / counts.sum()))


# --- Length -----------------------------------------------------------------------------------------------------------


def stratified(simulations: int) -> None:
    print("  longer other  ties  p longer p other  coverage  bar    normal")
    rng = np.random.default_rng(3)
    halves = [(25, 25), (10, 40), (125, 125), (25, 225)]
    pairs = [*zip(RATES, RATES, strict=True), (0.95, 0.5), (0.95, 0.77), (0.77, 0.65)]
    for (n1, n2), tie_rate, (p1, p2) in itertools.product(halves, TIES, pairs):
        draws = [
            rng.multinomial(n, np.round([p - tie_rate / 2, tie_rate, 1 - p - tie_rate / 2], 12), 2 * simulations)
            for n, p in ((n1, p1), (n2, p2))
        ]
        table, counts = np.unique(np.hstack(draws), axis=0, return_counts=True)
        lengths = np.repeat([2, 1], [n1, n2])
        results = [length_stratified(np.r_[scores(c[:3]), scores(c[3:])], lengths, 3 - lengths) for c in table]
        truth, weights = (p1 + p2) / 2, counts / counts.sum()
        ours = np.array([limits(r) for r in results]).T
        middle, reach = np.array([(r.estimate, Z * r.se) for r in results]).T
        normal = covers((middle - reach, middle + reach), truth, weights)
        cell(f"{n1:<6} {n2:<6} {tie_rate:<5} {p1:<8} {p2:<7}", covers(ours, truth, weights), tail=f"{normal:5.1%}")


def glm(simulations: int) -> None:
    """Rate p at equal lengths; a's answers longer by half a standard deviation; log-odds rise by 1.5 with tanh(delta / sd)."""
    print("  n    ties  p     coverage  bar    refused")
    rng = np.random.default_rng(4)
    for n, tie_rate, p in itertools.product((50, 250), TIES, RATES):
        covered, refused = [], 0
        for _ in range(simulations // 2):
            delta = np.round(rng.normal(30, 60, n))
            chance = expit(logit(p) + 1.5 * np.tanh(delta / delta.std(ddof=1)))
            tie = np.minimum(tie_rate, 2 * np.minimum(chance, 1 - chance))
            u = rng.random(n)
            s = np.where(u < chance - tie / 2, 1, np.where(u < chance + tie / 2, 0.5, 0))
            try:
                covered.append(holds(length_glm(s, delta + 500, np.full(n, 500)), p))
            except UnusableScores:
                refused += 1
        cell(f"{n:<4} {tie_rate:<5} {p:<5}", float(np.mean(covered)), tail=f"{refused / (simulations // 2):.1%}")


# --- Leaderboards -----------------------------------------------------------------------------------------------------


def leaderboard(simulations: int) -> None:
    """Four models against one base with the win rates of the grid, correlated by the query's ease where ties are 0."""
    print("  n    ties  p     coverage  bar    of its rank: Bonferroni, bootstrap")
    rng = np.random.default_rng(5)
    names = [f"model {p}" for p in RATES]
    for n, tie_rate in itertools.product((50, 250), TIES):
        ease = 0.0 if tie_rate else 0.8
        shared = rng.normal(0, ease, 400_000) if ease else np.zeros(1)
        truth = {name: float(expit(logit(p) + shared).mean()) for name, p in zip(names, RATES, strict=True)}
        true_rank = {name: len(RATES) - k for k, name in enumerate(names)}  # the weakest is the base's equal
        found: dict[str, list[tuple[bool, bool, bool | None]]] = {name: [] for name in names}
        for run in range(simulations):
            s = np.concatenate(
                [drawn(rng, expit(logit(p) + q), tie_rate) for q in [rng.normal(0, ease, n)] for p in RATES]
            )
            rows = np.repeat(names, n), np.full(s.size, "base"), s, np.tile(np.arange(n), len(RATES))
            boards = [bradley_terry(*rows, base="base")]
            if run % 20 == 0:
                boards.append(bradley_terry(*rows, base="base", resamples=500, seed=run))
            for lines in zip(*(sorted(b.models, key=lambda m: m.name) for b in boards), strict=True):
                name = lines[0].name
                if name in truth:
                    ranks = [m.rank_low <= true_rank[name] <= m.rank_high for m in lines]
                    covered = holds(lines[0], float(logit(truth[name])))
                    found[name].append((covered, ranks[0], ranks[1] if len(ranks) > 1 else None))
        for p, name in zip(RATES, names, strict=True):
            covered, one, two = zip(*found[name], strict=True)
            resampled = [hit for hit in two if hit is not None]
            cell(
                f"{n:<4} {tie_rate:<5} {p:<5}",
                float(np.mean(covered)),
                tail=f"{np.mean(one):.1%}, {np.mean(resampled):.1%}",
            )


# --- Judges -----------------------------------------------------------------------------------------------------------


def agreement(simulations: int) -> None:
    print("  n    judge right  kappa    bar    share of the first answer")
    rng = np.random.default_rng(6)
    ability = rng.normal(0, 2, 400_000)
    for n, right in itertools.product((50, 250), (0.6, 0.8, 0.95)):
        bias = float(logit(right))  # here how far the judge leans to the first answer
        share = float(expit(ability + bias).mean())
        kappas, first = [], []
        for _ in range(simulations // 2):
            reference = rng.integers(0, 2, n)
            kappa = cohens_kappa(np.where(rng.random(n) < right, reference, 1 - reference), reference)
            kappas.append(kappa is not None and holds(kappa, 2 * right - 1))
            own = rng.normal(0, 2, n)
            ab, ba = ((own + shift + rng.logistic(size=n) > 0).astype(float) for shift in (bias, -bias))
            position = position_bias(ab, ba)
            first.append((position.share_first_low or 0) <= share <= (position.share_first_high or 0))
        cell(f"{n:<4} {right:<11}", float(np.mean(kappas)))
        cell(f"{n:<4} {right:<11}", float(np.mean(first)), tail="share of first")


def correction(simulations: int) -> None:
    """A judge of sensitivity .9 and specificity .8. Rogan-Gladen's labels are half wins; the others' are a random sample."""
    print("  n    labels ties  p     coverage  bar    estimator, refused, mean width; raw covers")
    rng = np.random.default_rng(7)
    for (n, labels), tie_rate, p in itertools.product([(50, 50), (250, 50), (250, 250)], TIES, RATES):
        found: dict[str, list[tuple[bool, float]]] = {"Rogan-Gladen": [], "PPI": [], "raw": []}
        for _ in range(simulations):
            truth = drawn(rng, np.full(n, p), tie_rate)
            balanced = np.repeat([1.0, 0.0], [labels // 2, labels - labels // 2])
            sample = drawn(rng, np.full(labels, p), tie_rate)
            s = judged(rng, truth)
            for name, reference, estimate in (("Rogan-Gladen", balanced, rogan_gladen), ("PPI", sample, ppi_mean)):
                try:
                    result = estimate(s, judged(rng, reference), reference)  # type: ignore[operator]
                    found[name].append((holds(result, p), result.high - result.low))
                except UnusableScores:
                    continue
            found["raw"].append((holds(win_rate(s), p), 0))
        raw = np.mean([hit for hit, _ in found["raw"]])
        for name in ("Rogan-Gladen", "PPI"):
            covered, widths = np.array(found[name], dtype=float).T
            refused = 1 - len(covered) / simulations
            tail = f"{name:12} {refused:6.1%} {widths.mean():6.3f}; {raw:.1%}"
            cell(f"{n:<4} {labels:<6} {tie_rate:<5} {p:<5}", float(covered.mean()), tail=tail)


def judged(rng: np.random.Generator, truth: Array) -> Array:
    chance = np.where(truth == 1, 0.9, np.where(truth == 0, 0.2, 0.55))
    return np.where(rng.random(truth.size) < 0.1, 0.5, rng.random(truth.size) < chance)


# --- What no interval should choke on ---------------------------------------------------------------------------------


def edges(_: int) -> None:
    """Each must be a finite interval that contains its estimate, or a refusal in words."""
    inputs = {
        "all wins": [1.0] * 60,
        "all losses": [0.0] * 60,
        "all ties": [0.5] * 60,
        "one query": [1.0],
        "NaN": [1.0, math.nan] * 30,
        "nothing": [],
    }
    for (name, interval), (what, given) in itertools.product(INTERVALS.items(), inputs.items()):
        try:
            results = list(interval(given))
        except UnusableScores as error:
            said, fine = f"refused: {str(error)[:74]}", True
        else:
            fine = all(map(math.isfinite, itertools.chain(*results))) and all(low < high for low, high in results)
            said = ", ".join(f"{low:.4f} to {high:.4f}" for low, high in results) or "nothing to estimate"
        if not fine:
            missed.append(f"{name} on {what}")
        print(f"  {name:18} {what:11} {'' if fine else 'MISSED '}{said}")


def _position(s: list[float]) -> Iterator[Limits]:
    found = position_bias(s, s)
    yield limits(found.consistency)
    if found.share_first is not None:
        yield found.share_first_low, found.share_first_high


def _agreement(s: list[float]) -> Iterator[Limits]:
    found = judge_agreement(s, s)
    yield from (limits(r) for r in (found.accuracy, found.kappa, found.sensitivity, found.specificity) if r is not None)


def _board(resamples: int) -> Callable[[list[float]], Iterator[Limits]]:
    def found(s: list[float]) -> Iterator[Limits]:
        board = bradley_terry(["test"] * len(s), ["base"] * len(s), s, range(len(s)), base="base", resamples=resamples)
        yield from (limits(m) for m in board.models if m.name != "base")

    return found


def _matrix(s: list[float]) -> Iterator[Limits]:
    found = win_rate_matrix(["test"] * len(s), ["base"] * len(s), s, range(len(s)))
    yield found.lows[0][1], found.highs[0][1]


def _lengths(s: list[float]) -> tuple[range, list[int]]:
    return range(len(s)), [len(s) // 2] * len(s)


LABELS = [1.0] * 20 + [0.0] * 20
INTERVALS: dict[str, Callable[[list[float]], Any]] = {
    "win_rate": lambda s: [limits(win_rate(s))],
    "paired_difference": lambda s: [limits(paired_difference(s, [0.5] * len(s)))],
    "gap": lambda s: [limits(gap(dict(enumerate(s)), dict.fromkeys(range(len(s)), 0.5)))],  # type: ignore[arg-type]
    "length_stratified": lambda s: [limits(length_stratified(s, *_lengths(s)))],
    "length_glm": lambda s: [limits(length_glm(s, *_lengths(s)))],
    "bradley_terry": _board(0),
    "... resampled": _board(200),
    "win_rate_matrix": _matrix,
    "judge_agreement": _agreement,
    "position_bias": _position,
    "repeat_agreement": lambda s: [limits(repeat_agreement(s, [k // 2 for k in range(len(s))]))],
    "rogan_gladen": lambda s: [limits(rogan_gladen(s, LABELS, LABELS))],
    "ppi_mean": lambda s: [limits(ppi_mean(s, LABELS, LABELS))],
    "... of labels": lambda s: [limits(ppi_mean(LABELS, s, s))],
}


# --- Shared -----------------------------------------------------------------------------------------------------------


def scores(counts: Array) -> Array:
    """`counts` of wins, ties and losses as one score per query."""
    return np.repeat([1.0, 0.5, 0.0], counts)


def drawn(rng: np.random.Generator, p: Array, tie_rate: float) -> Array:
    """One score for each expected score in `p`; fewer ties where wins or losses leave no room for them."""
    tie, u = np.minimum(tie_rate, 2 * np.minimum(p, 1 - p)), rng.random(p.size)
    return np.where(u < p - tie / 2, 1, np.where(u < p + tie / 2, 0.5, 0))


def limits(result: Any) -> Limits:
    return result.low, result.high


def holds(result: Any, truth: float) -> bool:
    return bool(result.low <= truth + 1e-9 and truth - 1e-9 <= result.high)


def covers(found: Any, truth: float, weights: Array) -> float:
    low, high = found
    return float(weights[(low <= truth + 1e-9) & (truth - 1e-9 <= high)].sum())


SECTIONS: dict[str, Callable[[int], None]] = {
    "win_rate, exact": win_rates,
    "paired_difference, 0/1 scores, exact": paired_exact,
    "paired_difference, two orders": paired_orders,
    "newcombe_interval": newcombe,
    "length_stratified": stratified,
    "length_glm": glm,
    "bradley_terry": leaderboard,
    "cohens_kappa and position_bias": agreement,
    "rogan_gladen and ppi_mean": correction,
    "all wins, all ties, one query, NaN": edges,
}


if __name__ == "__main__":
    raise SystemExit(main())
