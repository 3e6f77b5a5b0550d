"""A leaderboard over more than two models: Bradley and Terry's strengths, their ranks, and the win-rate matrix beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.stats._arrays import CONSTANT, Floats, UnusableScores, chunks, finite_vector, same_length, two_sided_z
from harness.stats.winrate import win_rate

Ints = NDArray[np.int64]

FEWEST = 10
"""Queries that the intervals need."""

ELO_BASE = 1000.0
ELO_POINTS = 400 / math.log(10)
"""Elo-like points for one unit of strength."""

PSEUDO_TIES = 0.5
"""Ties added to every pair that met, where the likelihood has no maximum."""

CONVERGED = 1e-10
"""The last step of a fit, in strength."""

TIED = 1e-9
"""Strengths this near are equal."""

BONFERRONI = "Bonferroni"
BOOTSTRAP = "bootstrap of the largest difference"


@dataclass(frozen=True)
class RankedModel:
    """One line of the leaderboard."""

    name: str
    strength: float  # log-odds of beating the base model, which has 0
    low: float
    high: float
    se: float
    rank: int  # 1 is the best; models of equal strength share the better rank
    rank_low: int  # the best rank within the interval
    rank_high: int  # the worst
    n: int  # queries

    @property
    def elo(self) -> tuple[float, float, float]:
        """Strength, low and high in Elo-like points: 1000 + 400 / ln(10) * strength, so the base model has 1000."""
        return (_elo(self.strength), _elo(self.low), _elo(self.high))

    @property
    def win_rate(self) -> float:
        """The chance, in [0, 1], that the model has against the base model."""
        return 1 / (1 + math.exp(-self.strength))


@dataclass(frozen=True, eq=False)
class BradleyTerry:
    """A leaderboard: everything in it is finite."""

    models: tuple[RankedModel, ...]  # the strongest first
    base: str
    n: int  # queries
    covariance: Floats  # of the strengths, shape (K, K) in the order of `models`; 0 for the base
    rank_method: str  # BONFERRONI or BOOTSTRAP: how ranks allow for many comparisons
    unbounded: tuple[str, ...]  # models whose strength has no finite maximum-likelihood estimate
    pseudo_ties: float  # PSEUDO_TIES where some model is unbounded, otherwise 0
    resampled: Floats  # strengths refitted to resampled queries, shape (resamples, K) in the order of `models`
    resampled_unbounded: int  # resamples that needed PSEUDO_TIES


def bradley_terry(
    a: ArrayLike,
    b: ArrayLike,
    scores: ArrayLike,
    query_ids: ArrayLike,
    *,
    base: str,
    level: float = 0.95,
    resamples: int = 0,
    seed: int = 0,
) -> BradleyTerry:
    """Strengths of all models, from rows that say how model `a` scored against model `b` on a query; shapes (rows,).

    P(a beats b) = 1 / (1 + exp(strength_b - strength_a)) (Bradley and Terry 1952), a tie half a win, fitted by maximum
    likelihood with the base model at 0. Rows of the same query and the same two models (orders, repeats, constitutions)
    are averaged first and count as one comparison: where every model met the base only, 1 / (1 + exp(-strength)) is its
    win rate.

    Intervals are Student's t over queries with the sandwich covariance clustered by query (Liang and Zeger 1986). Its middle has
    for each pair the floor of `variance_of_mean`, one more query at p~ (1 - p~): where every model met the base only, a
    strength's variance is that of the win rate p over (p (1 - p))^2.
    A rank's interval counts the models that are clearly better, and those that are clearly worse: it holds the model's true
    rank with at least the probability `level`, whatever the number of models and also among equals. Differences
    are tested at (1 - level) / (K - 1) (Bonferroni) or, with `resamples` (2,000 is usual), against the largest studentised
    difference from the model among strengths refitted to resampled queries (Mogstad, Romano, Shaikh and Wilhelm 2024),
    which is no wider: differences from one model are correlated.

    A model, or a group, that lost nothing to the others (or won nothing) has no finite estimate (Ford 1957). It is named in
    `unbounded`, and half a tie is added to every pair that met, which keeps every strength finite. Resamples likewise.

    Raises UnusableScores when a model was not compared with the base, directly or through others, for an unknown base, a
    model against itself, fewer than 10 queries, and for empty, unequal-length, NaN or out-of-range input.
    """
    what = "A leaderboard"
    met = _meetings(a, b, scores, query_ids, what)
    names, (queries, _) = met.names, met.means.shape
    if base not in names:
        raise UnusableScores(f"{what} needs scores of its base model, and {base!r} is none of {', '.join(names)}.")
    if queries < FEWEST:
        raise UnusableScores(f"{what} needs at least {FEWEST} queries for its intervals, and got {queries}.")
    two_sided_z(level)  # refuses a bad level
    anchor = names.index(base)
    _refuse_islands(met, anchor, what)

    won, games = np.where(met.present, met.means, 0.0).sum(axis=0), met.present.sum(axis=0).astype(float)
    unbounded = _unbounded(won[None], games[None], met, anchor)[0]
    pseudo = PSEUDO_TIES if unbounded.any() else 0.0
    strength = _fit((won + pseudo / 2)[None], (games + pseudo)[None], met, anchor)[0]
    covariance = _sandwich(strength, pseudo, met, anchor)
    drawn, drawn_unbounded = _resampled(strength, met, anchor, resamples, seed)
    half = _student(queries, level) * np.sqrt(np.diag(covariance))
    rank_low, rank_high = _rank_limits(strength, covariance, drawn, unbounded, queries, level)
    rank = 1 + (strength[None, :] > strength[:, None] + TIED).sum(axis=1)  # equal strengths share the better rank
    order = np.lexsort((np.arange(len(names)), -strength))
    asked = _queries_of(met)
    models = tuple(
        RankedModel(
            name=names[k],
            strength=float(strength[k]),
            low=float(strength[k] - half[k]),
            high=float(strength[k] + half[k]),
            se=math.sqrt(covariance[k, k]),
            rank=int(rank[k]),
            rank_low=int(rank_low[k]),
            rank_high=int(rank_high[k]),
            n=int(asked[k]),
        )
        for k in order
    )
    return BradleyTerry(
        models=models,
        base=base,
        n=queries,
        covariance=covariance[np.ix_(order, order)],
        rank_method=BOOTSTRAP if resamples else BONFERRONI,
        unbounded=tuple(name for name, is_so in zip(names, unbounded, strict=True) if is_so),
        pseudo_ties=pseudo,
        resampled=drawn[:, order],
        resampled_unbounded=drawn_unbounded,
    )


@dataclass(frozen=True)
class WinRateMatrix:
    """Row against column, for K models: None on the diagonal and where two models never met."""

    names: tuple[str, ...]  # in ascending order
    rates: tuple[tuple[float | None, ...], ...]  # mean score of the row's model, in [0, 1]
    lows: tuple[tuple[float | None, ...], ...]
    highs: tuple[tuple[float | None, ...], ...]
    n: tuple[tuple[int, ...], ...]  # queries on which the two met


def win_rate_matrix(
    a: ArrayLike, b: ArrayLike, scores: ArrayLike, query_ids: ArrayLike, level: float = 0.95
) -> WinRateMatrix:
    """Every pair's win rate with its interval, from rows as `bradley_terry` takes them.

    A query's rows are averaged first, then `win_rate` gives rate and interval.

    Raises UnusableScores as `bradley_terry` does for its rows.
    """
    met = _meetings(a, b, scores, query_ids, "A win-rate matrix")
    size = len(met.names)
    rates, lows, highs = (np.full((size, size), None) for _ in range(3))
    counts = np.zeros((size, size), dtype=np.int64)
    for pair, (i, j) in enumerate(met.pairs):
        found = win_rate(met.means[met.present[:, pair], pair], level)
        rates[i, j], lows[i, j], highs[i, j] = found.estimate, found.low, found.high
        rates[j, i], lows[j, i], highs[j, i] = 1 - found.estimate, 1 - found.high, 1 - found.low
        counts[i, j] = counts[j, i] = found.n
    return WinRateMatrix(met.names, *(tuple(map(tuple, table.tolist())) for table in (rates, lows, highs, counts)))


# --- Rows to meetings -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Meetings:
    """Q queries, K models, P pairs of models that met."""

    names: tuple[str, ...]  # (K,), ascending
    pairs: Ints  # (P, 2), indices into names, first below second
    means: Floats  # (Q, P), score of the pair's first model on the query; 0 where they did not meet
    present: NDArray[np.bool_]  # (Q, P)

    @property
    def contrast(self) -> Floats:
        """Shape (P, K): 1 at the pair's first model, -1 at its second."""
        design = np.zeros((len(self.pairs), len(self.names)))
        every = np.arange(len(self.pairs))
        design[every, self.pairs[:, 0]], design[every, self.pairs[:, 1]] = 1, -1
        return design


def _meetings(a: ArrayLike, b: ArrayLike, scores: ArrayLike, query_ids: ArrayLike, what: str) -> _Meetings:
    s = finite_vector(scores, what, 0, 1)
    one, two, ids = (np.asarray(c).tolist() if not isinstance(c, list) else c for c in (a, b, query_ids))
    for column in (one, two, ids):
        same_length(what, s, column)
    names, index = _numbered(one + two)
    first, second = index[: s.size], index[s.size :]
    if (first == second).any():
        at = int((first == second).argmax())
        raise UnusableScores(
            f"{what} needs two different models in each row: row {at} has {str(names[first[at]])!r} twice."
        )
    low, high = np.minimum(first, second), np.maximum(first, second)
    codes, pair = np.unique(low * len(names) + high, return_inverse=True)
    queries, query = _numbered(ids)
    shape = (len(queries), codes.size)
    cell = query * codes.size + pair
    counts = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
    sums = np.bincount(cell, weights=np.where(first == low, s, 1 - s), minlength=shape[0] * shape[1]).reshape(shape)
    pairs = np.column_stack([codes // len(names), codes % len(names)])
    return _Meetings(tuple(map(str, names)), pairs, sums / np.maximum(counts, 1), counts > 0)


def _numbered(values: list[Any]) -> tuple[list[Any], Ints]:
    """The distinct values, in order, and the place of each value among them: np.unique, without sorting all the rows."""
    names = sorted(set(values), key=str)
    places = {name: place for place, name in enumerate(names)}
    return names, np.fromiter(map(places.__getitem__, values), dtype=np.int64, count=len(values))


def _queries_of(met: _Meetings) -> Ints:
    return np.array([met.present[:, (met.pairs == k).any(axis=1)].any(axis=1).sum() for k in range(len(met.names))])


# --- The fit ----------------------------------------------------------------------------------------------------------


def _fit(won: Floats, games: Floats, met: _Meetings, anchor: int) -> Floats:
    """Strengths, shape (R, K), that maximise R likelihoods at once; `won` and `games` have shape (R, P).

    Newton's method, each step shortened so that no pair's difference moves by more than 1: the log-likelihood then rises
    in every step (Bach 2010, proposition 1), from any start.
    """
    design = np.delete(met.contrast, anchor, axis=1)  # (P, K - 1)
    free = np.zeros((len(won), design.shape[1]))
    for _ in range(200):
        p = _expit(free @ design.T)
        hessian = np.matmul(design.T * (games * p * (1 - p))[:, None, :], design)
        step = np.linalg.solve(hessian, ((won - games * p) @ design)[:, :, None])[:, :, 0]
        reach = np.abs(step @ design.T).max(axis=1, keepdims=True)
        free += step / np.maximum(1, reach)
        if reach.max() < CONVERGED:
            break
    return np.insert(free, anchor, 0.0, axis=1)


def _refit(won: Floats, games: Floats, start: Floats, start_games: Floats, met: _Meetings, anchor: int) -> Floats:
    """As `_fit`, for data like those that gave the strengths `start`, shape (K,): a solve for each is saved.

    The steps use the Hessian at the start, which is a little off; those that it does not bring home go to `_fit`.
    """
    design = np.delete(met.contrast, anchor, axis=1)
    near = np.delete(start, anchor)
    p = _expit(design @ near)
    inverse = np.linalg.inv(design.T @ (design * (start_games * p * (1 - p))[:, None]))
    free, away = np.tile(near, (len(won), 1)), np.arange(len(won))
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(40):
            step = (won[away] - games[away] * _expit(free[away] @ design.T)) @ design @ inverse
            free[away] += step
            away = away[~(np.abs(step).max(axis=1) < CONVERGED)]
            if not away.size:
                break
    found = np.insert(free, anchor, 0.0, axis=1)
    if away.size:
        found[away] = _fit(won[away], games[away], met, anchor)
    return found


def _sandwich(strength: Floats, pseudo: float, met: _Meetings, anchor: int) -> Floats:
    """Covariance of the strengths, shape (K, K), clustered by query, with the floor of `variance_of_mean` for each pair."""
    design = np.delete(met.contrast, anchor, axis=1)
    p = _expit(design @ np.delete(strength, anchor))
    games = met.present.sum(axis=0)
    bread = np.linalg.inv(design.T @ (design * ((games + pseudo) * p * (1 - p))[:, None]))
    residuals = np.where(met.present, met.means - p, 0.0) @ design  # (Q, K - 1)
    smoothed = ((met.means * met.present).sum(axis=0) + 1) / (games + 2)
    added = smoothed * (1 - smoothed) + pseudo * (0.5 - p) ** 2
    meat = residuals.T @ residuals + design.T @ (design * added[:, None])
    covariance = bread @ meat @ bread
    return np.insert(np.insert(covariance, anchor, 0.0, axis=0), anchor, 0.0, axis=1)


def _rank_limits(
    strength: Floats, covariance: Floats, drawn: Floats, unbounded: NDArray[np.bool_], queries: int, level: float
) -> tuple[Ints, Ints]:
    """The best and the worst rank of each model, shapes (K,)."""
    size, own = strength.size, np.diag(covariance)
    se = np.sqrt(np.maximum(own[:, None] + own[None, :] - 2 * covariance, 0))
    difference = strength[:, None] - strength[None, :]
    careful = _student(queries, 1 - (1 - level) / (size - 1))
    critical = np.full(size, careful)
    if len(drawn):
        for k in np.flatnonzero(~unbounded):  # resampling cannot show what was not seen once
            moved = np.abs(drawn[:, [k]] - drawn - difference[k])
            largest = (moved / np.where(se[k] > TIED, se[k], np.inf)).max(axis=1)
            critical[k] = np.clip(np.quantile(largest, level, method="higher"), _student(queries, level), careful)
    clear = np.abs(difference) > np.maximum(critical[:, None] * se, TIED)
    return 1 + (clear & (difference < 0)).sum(axis=1), size - (clear & (difference > 0)).sum(axis=1)


def _student(queries: int, level: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(queries - 1, (1 + level) / 2))


def _resampled(strength: Floats, met: _Meetings, anchor: int, resamples: int, seed: int) -> tuple[Floats, int]:
    """Strengths for resampled queries, shape (resamples, K), and how many of them needed PSEUDO_TIES."""
    rng = np.random.default_rng(seed)
    queries, pairs = met.means.shape
    each = np.concatenate([met.means * met.present, met.present], axis=1)  # (Q, 2 P)
    drawn, unbounded = [np.empty((0, len(met.names)))], 0
    for rows in chunks(resamples, queries):
        picks = rng.integers(0, queries, size=(rows, queries)) + queries * np.arange(rows)[:, None]
        weights = np.bincount(picks.ravel(), minlength=rows * queries).reshape(rows, queries)
        won, games = np.hsplit(weights.astype(float) @ each, [pairs])
        open_ended = np.asarray(_unbounded(won, games, met, anchor).any(axis=1))
        pseudo = np.where(open_ended, PSEUDO_TIES, 0.0)[:, None]
        drawn.append(_refit(won + pseudo / 2, games + pseudo, strength, met.present.sum(axis=0), met, anchor))
        unbounded += int(open_ended.sum())
    return np.concatenate(drawn), unbounded


# --- Where there is no fit --------------------------------------------------------------------------------------------


def _unbounded(won: Floats, games: Floats, met: _Meetings, anchor: int) -> NDArray[np.bool_]:
    """Models without a finite estimate, shape (R, K): no chain of points leads from them to the base, or back."""
    lost = games - won
    one_sided = ((won <= CONSTANT * games) | (lost <= CONSTANT * games)).any(axis=1)  # otherwise points went both ways
    found = np.zeros((len(won), len(met.names)), dtype=np.bool_)
    if one_sided.any():
        won, lost, least = won[one_sided], lost[one_sided], CONSTANT * games[one_sided]
        taken = np.zeros((len(won), len(met.names), len(met.names)), dtype=np.float32)  # 1: row took from column
        first, second = met.pairs.T
        taken[:, first, second], taken[:, second, first] = won > least, lost > least
        closed = _reach(taken)
        found[one_sided] = ~np.logical_and(closed[:, anchor, :], closed[:, :, anchor])
    return found


def _reach(edges: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Transitive closure of R graphs over K nodes, shape (R, K, K), every node reaching itself."""
    size = edges.shape[1]
    paths = np.minimum(edges + np.eye(size, dtype=np.float32), 1)
    for _ in range(max(1, math.ceil(math.log2(size)))):
        paths = np.minimum(paths @ paths, 1)
    return paths > 0


def _refuse_islands(met: _Meetings, anchor: int, what: str) -> None:
    edges = np.zeros((1, len(met.names), len(met.names)), dtype=np.float32)
    first, second = met.pairs.T
    edges[0, first, second] = edges[0, second, first] = 1
    reached = _reach(edges)[0, anchor, :]
    if not reached.all():
        lost = ", ".join(_named(met.names, ~reached))
        raise UnusableScores(
            f"{what} needs every model compared with {met.names[anchor]}, directly or through others, and nothing links it "
            f"to {lost}; judge one more comparison, or rank the groups apart."
        )


def _named(names: Sequence[str], which: NDArray[np.bool_]) -> list[str]:
    return [name for name, is_so in zip(names, which, strict=True) if is_so]


def _expit(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


def _elo(strength: float) -> float:
    return ELO_BASE + ELO_POINTS * strength
