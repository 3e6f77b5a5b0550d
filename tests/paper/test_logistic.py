"""The cross-validated logistic correction, against a plain computation of the same thing."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy.optimize import minimize

from harness.paper.logistic import FOLDS, STRENGTHS, _folds, logistic_cv
from harness.stats import UnusableScores, length_glm


def drawn(n: int, seed: int) -> tuple[list[float], list[int], list[int]]:
    rng = random.Random(seed)
    baseline, test = ([rng.randint(5, 200) for _ in range(n)] for _ in range(2))
    scores = [
        rng.choice([0.0, 0.5, 1.0]) if rng.random() < 0.3 else float(t > b) for b, t in zip(baseline, test, strict=True)
    ]
    return scores, test, baseline


def folds_by_hand(won: list[float]) -> list[int]:
    """Deal the sorted outcomes out one by one, count each fold's share of an outcome, hand the shares out in order."""
    first_seen = list(dict.fromkeys(won))
    in_order = sorted(first_seen.index(w) for w in won)
    share = [[in_order[k::FOLDS].count(o) for k in range(FOLDS)] for o in range(len(first_seen))]
    waiting = {w: [k for k in range(FOLDS) for _ in range(share[o][k])] for o, w in enumerate(first_seen)}
    return [waiting[w].pop(0) for w in won]


def naive(scores: list[float], test: list[int], baseline: list[int]) -> float:
    won = np.array([float(s == 1) for s in scores])
    delta = np.array(test) - np.array(baseline)
    x = np.tanh(delta / delta.std())

    def fit(rows: np.ndarray, strength: float) -> np.ndarray:
        def loss(p: np.ndarray) -> float:
            z = p[0] + p[1] * x[rows]
            return float(strength * (np.logaddexp(0, z) - won[rows] * z).sum() + p[1] ** 2 / 2)

        return np.asarray(
            minimize(loss, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000}).x
        )

    folds = np.array(folds_by_hand(won.tolist()))
    best, least = 0.0, math.inf
    for strength in STRENGTHS:
        means = []
        for k in range(FOLDS):
            p = fit(folds != k, strength)
            z = p[0] + p[1] * x[folds == k]
            means.append(float(np.mean(np.logaddexp(0, z) - won[folds == k] * z)))
        if np.mean(means) < least:
            best, least = strength, float(np.mean(means))
    return 1 / (1 + math.exp(-fit(np.ones(won.size, dtype=bool), best)[0]))


@pytest.mark.parametrize("seed", [1, 2])
def test_it_is_the_naive_computation(seed: int) -> None:
    data = drawn(60, seed)
    assert logistic_cv(*data) == pytest.approx(naive(*data), abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_the_folds_are_those_dealt_by_hand(seed: int) -> None:
    won = [float(random.Random(f"{seed}-{i}").random() < 0.3) for i in range(53 + seed)]
    assert _folds(np.array(won)).tolist() == folds_by_hand(won)


def test_with_much_data_it_is_the_one_without_a_penalty() -> None:
    scores, test, baseline = drawn(4000, 3)
    strict = [float(s == 1) for s in scores]
    assert logistic_cv(scores, test, baseline) == pytest.approx(length_glm(strict, test, baseline).estimate, abs=0.005)


def test_separated_outcomes_have_a_finite_rate() -> None:
    assert 0 < logistic_cv([1.0] * 20 + [0.0] * 20, list(range(40, 0, -1)), [20] * 40) < 1


@pytest.mark.parametrize(
    ("scores", "words"), [([1.0] * 20 + [0.0] * 4, "one side has 4"), ([1.0, 0.0] * 12, "all are equal")]
)
def test_what_it_cannot_fit_is_refused(scores: list[float], words: str) -> None:
    with pytest.raises(UnusableScores, match=words):
        logistic_cv(scores, [5] * 24, [5] * 24)
