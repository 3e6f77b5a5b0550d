"""Corrections for judge error: exact recovery, the published formulas written out, simulation, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from harness.stats import UnusableScores, ppi_mean, rogan_gladen

FLOOR = 0.935 - 2 * math.sqrt(0.05 * 0.95 / 1000)
"""What 1,000 simulated samples may show of an interval that covers 93.5%."""


def judged(
    truth: np.ndarray, rng: np.random.Generator, sensitivity: float = 0.9, specificity: float = 0.8
) -> np.ndarray:
    """A judge who errs, and answers one in ten with a tie."""
    chance = np.where(
        truth == 1, sensitivity, np.where(truth == 0, 1 - specificity, (sensitivity + 1 - specificity) / 2)
    )
    return np.where(rng.random(truth.size) < 0.1, 0.5, rng.random(truth.size) < chance)


def drawn(n: int, rate: float, rng: np.random.Generator, ties: float = 0.0) -> np.ndarray:
    return rng.choice([1, 0.5, 0], n, p=np.round([rate - ties / 2, ties, 1 - rate - ties / 2], 12))


def test_known_error_rates_are_undone_exactly() -> None:
    """Sensitivity 18/20, specificity 16/20: a true rate of 0.6 looks like 0.6 * 0.9 + 0.4 * 0.2 = 0.62."""
    labelled, reference = [1] * 18 + [0] * 2 + [0] * 16 + [1] * 4, [1] * 20 + [0] * 20
    result = rogan_gladen([1] * 62 + [0] * 38, labelled, reference)
    assert result.estimate == pytest.approx(0.6)
    assert (result.raw, result.sensitivity, result.specificity) == pytest.approx((0.62, 0.9, 0.8))
    assert (result.n, result.n_labelled) == (100, 40)


def test_the_interval_is_lang_and_reiczigels() -> None:
    """Their formula written out, for 0/1 scores."""
    labelled, reference = [1] * 45 + [0] * 5 + [0] * 32 + [1] * 8, [1] * 50 + [0] * 40
    result = rogan_gladen([1] * 130 + [0] * 70, labelled, reference)
    z = 1.959963984540054
    n, n_se, n_sp = 200 + z**2, 50 + 2, 40 + 2
    p, se, sp = (130 + z**2 / 2) / n, (45 + 1) / n_se, (32 + 1) / n_sp
    theta = (p + sp - 1) / (se + sp - 1)
    shift = 2 * z**2 * (theta * se * (1 - se) / n_se - (1 - theta) * sp * (1 - sp) / n_sp)
    half = z * math.sqrt(
        p * (1 - p) / n + theta**2 * se * (1 - se) / n_se + (1 - theta) ** 2 * sp * (1 - sp) / n_sp
    ) / (se + sp - 1)  # fmt: skip
    assert (result.low, result.high) == pytest.approx((theta + shift - half, theta + shift + half))


@pytest.mark.parametrize("rate", [0.5, 0.77, 0.9])
def test_rogan_gladen_covers_where_the_raw_rate_is_off(rate: float) -> None:
    """100 labels with another share of wins than the 250 scored queries, ties on both sides."""
    rng = np.random.default_rng(3)
    covered, raw = 0, []
    for _ in range(1000):
        reference = drawn(100, 0.5, rng, ties=0.1)
        result = rogan_gladen(judged(drawn(250, rate, rng, ties=0.1), rng), judged(reference, rng), reference)
        covered += result.low <= rate <= result.high
        raw.append(result.raw)
    assert covered / 1000 >= FLOOR
    assert np.mean(raw) != pytest.approx(rate, abs=0.01)


@pytest.mark.parametrize(
    ("labelled", "reference", "sentence"),
    [
        ([1, 0] * 20, [1] * 20 + [0] * 20, "better than a coin"),
        ([0] * 20 + [1] * 20, [1] * 20 + [0] * 20, "better than a coin"),
        ([0.5] * 40, [1] * 20 + [0] * 20, "better than a coin"),
        ([1] * 40, [1] * 31 + [0] * 9, "31 and 9"),
        ([1] * 40, [0.5] * 40, "0 and 0"),
    ],
)
def test_rogan_gladen_refuses_a_judge_that_tells_nothing_and_too_few_labels(
    labelled: list[float], reference: list[float], sentence: str
) -> None:
    with pytest.raises(UnusableScores, match=sentence):
        rogan_gladen([1, 0, 1], labelled, reference)


def test_prediction_powered_inference_is_its_definition() -> None:
    rng = np.random.default_rng(4)
    truth = drawn(400, 0.65, rng)
    scores = judged(truth, rng)
    s, f, y = scores[100:], scores[:100], truth[:100]
    result = ppi_mean(s, f, y)
    weight = np.cov(y, f)[0, 1] / ((1 + 100 / 300) * np.var(scores))
    assert result.weight == pytest.approx(weight)
    assert 0.4 < weight < 1
    assert result.estimate == pytest.approx(weight * s.mean() + (y - weight * f).mean())
    variance = weight**2 * s.var(ddof=1) / 300 + (y - weight * f).var(ddof=1) / 100
    k = (
        t.ppf(0.975, 99) ** 2 * variance / (result.estimate * (1 - result.estimate))
    )  # t^2 / n_eff, in Wilson's equation
    p = result.estimate
    assert (result.low, result.high) == pytest.approx(tuple(np.sort(np.roots([1 + k, -(2 * p + k), p * p]))))


@pytest.mark.parametrize(("rate", "labels"), [(0.5, 50), (0.77, 50), (0.95, 50), (0.95, 200)])
def test_prediction_powered_inference_covers_whatever_the_judge(rate: float, labels: int) -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(1000):
        truth = drawn(250 + labels, rate, rng)
        scores = judged(truth, rng, specificity=0.3)
        result = ppi_mean(scores[labels:], scores[:labels], truth[:labels])
        covered += result.low <= rate <= result.high
    assert covered / 1000 >= FLOOR


def test_a_good_judge_narrows_the_interval_and_a_useless_one_does_no_harm() -> None:
    rng = np.random.default_rng(6)
    truth = drawn(1100, 0.6, rng)
    good, coin = judged(truth, rng, 0.97, 0.97), rng.integers(0, 2, 1100).astype(float)
    alone = ppi_mean(np.full(1000, 0.5), np.full(100, 0.5), truth[:100])
    assert alone.weight == 0
    assert alone.estimate == pytest.approx(truth[:100].mean())
    narrow, same = (ppi_mean(f[100:], f[:100], truth[:100]) for f in (good, coin))
    assert narrow.high - narrow.low < 0.7 * (alone.high - alone.low)
    assert same.high - same.low == pytest.approx(alone.high - alone.low, rel=0.05)


@pytest.mark.parametrize("reference", [[1] * 10, [0] * 10, [0.5] * 10])
def test_equal_labels_give_an_interval_with_width(reference: list[float]) -> None:
    result = ppi_mean([1, 0, 0.5], [1, 0] * 5, reference)
    assert 0 <= result.low <= result.estimate <= result.high <= 1
    assert result.high - result.low > 0.2


SCORES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=30)
LABELLED = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=60
)


@given(SCORES, LABELLED)
def test_corrections_are_in_range_or_refused(scores: list[float], pairs: list[tuple[float, float]]) -> None:
    labelled, reference = zip(*pairs, strict=True)
    for function in (ppi_mean, rogan_gladen):
        try:
            result = function(scores, labelled, reference)
        except UnusableScores:
            continue
        assert 0 <= result.low <= result.estimate <= result.high <= 1


@pytest.mark.parametrize(
    ("scores", "labelled", "reference"),
    [
        ([], [1], [1]),
        ([1], [], []),
        ([1], [1, 0], [1]),
        ([math.nan], [1], [1]),
        ([1], [2], [1]),
        ([1], [1] * 9, [1] * 9),
    ],
)
def test_unusable_input_is_refused(scores: list[float], labelled: list[float], reference: list[float]) -> None:
    for function in (ppi_mean, rogan_gladen):
        with pytest.raises(UnusableScores):
            function(scores, labelled, reference)
