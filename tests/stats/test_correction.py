"""Corrections for judge error: exact recovery, the published formulas written out, simulation, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.stats import (
    Labels,
    Part,
    UnusableScores,
    pooled,
    post_stratified,
    ppi_mean,
    rogan_gladen,
    win_rate,
    worth_in_labels,
)
from harness.stats.winrate import interval, variance_of_mean

FLOOR = 0.935 - 2 * math.sqrt(0.05 * 0.95 / 1000)
"""What 1,000 simulated samples may show of an interval that covers 93.5%."""


def judged(
    truth: np.ndarray,
    rng: np.random.Generator,
    sensitivity: float = 0.9,
    specificity: float = 0.8,
    ties: float = 0.1,
) -> np.ndarray:
    """A judge who errs, and answers one in ten with a tie."""
    chance = np.where(
        truth == 1, sensitivity, np.where(truth == 0, 1 - specificity, (sensitivity + 1 - specificity) / 2)
    )
    return np.where(rng.random(truth.size) < ties, 0.5, rng.random(truth.size) < chance)


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
    """100 labels with another share of wins than the 250 scored queries."""
    rng = np.random.default_rng(3)
    covered, raw = 0, []
    for _ in range(1000):
        reference = drawn(100, 0.5, rng)
        result = rogan_gladen(judged(drawn(250, rate, rng), rng, ties=0), judged(reference, rng, ties=0), reference)
        covered += result.low <= rate <= result.high
        raw.append(result.raw)
    assert covered / 1000 >= FLOOR
    assert np.mean(raw) != pytest.approx(rate, abs=0.01)


@pytest.mark.parametrize(
    ("labelled", "reference", "sentence"),
    [
        ([1, 0] * 20, [1] * 20 + [0] * 20, "better than a coin"),
        ([0] * 20 + [1] * 20, [1] * 20 + [0] * 20, "better than a coin"),
        ([1] * 40, [1] * 31 + [0] * 9, "31 and 9"),
        ([0.5] * 40, [1] * 20 + [0] * 20, "40 scores and 0 labels are ties"),
        ([1] * 40, [0.5] * 30 + [0.25] * 10, "0 scores and 40 labels are ties"),
    ],
)
def test_rogan_gladen_refuses_a_judge_that_tells_nothing_too_few_labels_and_ties(
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
    smoothed = (y.sum() + 1) / 102
    variance = weight**2 * variance_of_mean(s) + (y - weight * f).var() / 100 + smoothed * (1 - smoothed) / 100**2
    assert (result.low, result.high) == pytest.approx(interval(result.estimate, variance, 99, 0.95))


@pytest.mark.parametrize(("rate", "labels"), [(0.5, 50), (0.77, 50), (0.95, 50), (0.95, 200)])
def test_they_cover_whatever_the_judge(rate: float, labels: int) -> None:
    rng = np.random.default_rng(5)
    covered = np.zeros(2)
    for _ in range(1000):
        truth = drawn(250 + labels, rate, rng)
        scores = judged(truth, rng, specificity=0.3)
        results = [correct(scores[labels:], scores[:labels], truth[:labels]) for correct in (ppi_mean, post_stratified)]
        covered += [r.low <= rate <= r.high for r in results]
    assert (covered / 1000 >= FLOOR).all()


def test_post_stratification_is_its_definition() -> None:
    rng = np.random.default_rng(7)
    truth = drawn(300, 0.65, rng, ties=0.2)
    scores = judged(truth, rng)
    s, f, y = scores[80:], scores[:80], truth[:80]
    estimate = variance = 0.0
    for value in (0, 0.5, 1):
        share, labels = np.mean(scores == value), y[f == value]
        estimate += share * labels.mean()
        variance += share**2 * labels.var() / labels.size
    variance += sum(np.mean(scores == v) * (y[f == v].mean() - estimate) ** 2 for v in (0, 0.5, 1)) / 300
    smoothed = (y.sum() + 1) / 82
    variance += smoothed * (1 - smoothed) / 80**2
    result = post_stratified(s, f, y)
    assert (result.estimate, result.levels) == (pytest.approx(estimate), 3)
    assert (result.low, result.high) == pytest.approx(interval(estimate, variance, 77, 0.95))


@pytest.mark.parametrize(
    ("labelled", "scores", "levels"),
    [
        ([1] * 20 + [0] * 20, [1, 0, 0.5], 2),  # no label where the judge ties: with the wins or the losses
        ([1] * 20 + [0.9] * 4 + [0] * 20, [1], 2),  # four labels, nearest to the wins
        ([1] * 36 + [0] * 4, [1, 0], 1),
        ([1] * 10, [0], 1),
    ],
)
def test_levels_with_few_labels_are_merged(labelled: list[float], scores: list[float], levels: int) -> None:
    reference = [1, 0] * (len(labelled) // 2)
    result = post_stratified(scores, labelled, reference)
    assert result.levels == levels
    if levels == 1:
        assert result.estimate == pytest.approx(np.mean(reference))


def test_probabilities_are_put_into_ten_bins_of_equal_counts() -> None:
    rng = np.random.default_rng(8)
    scores = rng.random(1200)
    truth = (rng.random(1200) < scores**3).astype(float)  # what the judge means by 1/2 is no half
    result = post_stratified(scores[300:], scores[:300], truth[:300])
    straight = ppi_mean(scores[300:], scores[:300], truth[:300])
    assert result.levels == 10
    assert result.low < truth.mean() < result.high
    assert result.high - result.low < straight.high - straight.low


def test_a_judge_that_says_one_thing_leaves_the_labels_alone() -> None:
    reference = [1.0] * 30 + [0.0] * 20
    result, alone = post_stratified([1] * 100, [1] * 50, reference), win_rate(reference)
    assert (result.estimate, result.low, result.high) == pytest.approx((alone.estimate, alone.low, alone.high))


# --- Strata


def test_strata_are_weighted_by_their_queries() -> None:
    """Weights 1/4 and 3/4; the reach of each stratum times its weight, squared and added."""
    estimate, low, high = pooled([Part(50, 0.9, 0.8, 0.95), Part(150, 0.5, 0.42, 0.58)])
    assert estimate == pytest.approx(0.6)
    assert low == pytest.approx(0.6 - math.hypot(0.1 / 4, 0.08 * 3 / 4))
    assert high == pytest.approx(0.6 + math.hypot(0.05 / 4, 0.08 * 3 / 4))


def test_one_stratum_is_itself_and_none_is_refused() -> None:
    assert pooled([Part(50, 0.9, 0.8, 0.95)]) == pytest.approx((0.9, 0.8, 0.95))
    with pytest.raises(UnusableScores, match="at least one"):
        pooled([])


def test_strata_labelled_unequally_are_corrected_where_one_pool_is_not() -> None:
    """An easy task with nearly all labels and a good judge, a hard one with few and a poor judge; truth (0.9 + 0.4) / 2."""
    rng = np.random.default_rng(9)
    covered = np.zeros(2)
    for _ in range(300):
        parts, alone, labelled, labels = [], [], [], []
        for rate, n_labels, sensitivity in ((0.9, 160, 0.95), (0.4, 40, 0.6)):
            truth = drawn(200, rate, rng)
            scores = judged(truth, rng, sensitivity, sensitivity)
            found = post_stratified(scores[n_labels:], scores[:n_labels], truth[:n_labels])
            parts.append(Part(200, found.estimate, found.low, found.high))
            for side, values in ((alone, scores[n_labels:]), (labelled, scores[:n_labels]), (labels, truth[:n_labels])):
                side.extend(values)
        together = post_stratified(alone, labelled, labels)
        _, low, high = pooled(parts)
        covered += [low <= 0.65 <= high, together.low <= 0.65 <= together.high]
    assert covered[0] / 300 >= 0.935 - 2 * math.sqrt(0.05 * 0.95 / 300)
    assert covered[1] / 300 < 0.5


# --- What verdicts are worth


def test_a_perfect_judges_verdicts_are_labels_and_a_coins_are_nothing() -> None:
    rng = np.random.default_rng(10)
    truth = drawn(200, 0.6, rng)
    perfect = worth_in_labels([Labels(truth, truth, 1000)])
    assert (perfect.labels, perfect.low, perfect.high) == pytest.approx((1000, 1000, 1000))
    coins = [worth_in_labels([Labels(rng.integers(0, 2, 200), truth, 1000)]) for _ in range(40)]
    assert np.mean([coin.low == 0 for coin in coins]) >= 0.9
    assert np.median([coin.labels for coin in coins]) < 2


def test_the_worth_is_how_many_labels_give_the_same_variance() -> None:
    """A judge whose verdict explains a quarter of the labels' variance: r^2 = 1/4, in numbers by hand."""
    labelled, reference = [1] * 200 + [0] * 200, [1] * 150 + [0] * 50 + [1] * 50 + [0] * 150
    result = worth_in_labels([Labels(labelled, reference, 1200)])
    corrected = 0.75 / 400 + 0.25 / 1600
    assert result.labels == pytest.approx(1 / corrected - 400, rel=0.02)
    assert result.low < result.labels < result.high
    assert (result.n_labelled, result.n_verdicts) == (400, 1200)


def test_the_worths_interval_covers() -> None:
    """The same judge, drawn: 100 labels and 1,000 verdicts are worth 29 labels."""
    rng = np.random.default_rng(11)
    truth = 1 / (0.75 / 100 + 0.25 / 1100) - 100
    covered = 0
    for seed in range(300):
        said = rng.integers(0, 2, 100)
        reference = np.where(rng.random(100) < 0.75, said, 1 - said)
        found = worth_in_labels([Labels(said, reference, 1000)], seed=seed)
        covered += found.low <= truth <= found.high
    assert covered / 300 >= 0.935 - 2 * math.sqrt(0.05 * 0.95 / 300)


def test_strata_of_one_kind_are_worth_what_they_are_together() -> None:
    rng = np.random.default_rng(12)
    said = rng.integers(0, 2, 4000)
    reference = np.where(rng.random(4000) < 0.8, said, 1 - said)
    whole = worth_in_labels([Labels(said, reference, 4000)])
    halves = worth_in_labels([Labels(said[:2000], reference[:2000], 2000), Labels(said[2000:], reference[2000:], 2000)])
    assert halves.labels == pytest.approx(whole.labels, rel=0.01)


@pytest.mark.parametrize(
    ("strata", "sentence"),
    [
        ([], "labels that differ"),
        ([Labels([1] * 10, [1] * 10, 5)], "labels that differ"),
        ([Labels([1] * 9, [1] * 9, 5)], "at least 10"),
        ([Labels([1] * 10, [1] * 11, 5)], "same length"),
    ],
)
def test_a_worth_that_cannot_be_told_is_refused(strata: list[Labels], sentence: str) -> None:
    with pytest.raises(UnusableScores, match=sentence):
        worth_in_labels(strata)


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


@pytest.mark.parametrize(
    ("name", "agreement", "most"),
    [
        ("claude-opus-4-20250514_vs_gemini-2.5-flash_gpt-4o-mini", 0.615, 20),
        ("claude-opus-4-20250514_vs_gemini-2.5-pro_gpt-5.2", 0.659, 30),
        ("claude-opus-4-20250514_vs_qwen3-235b-a22b-no-thinking_gpt-5.2", 0.462, 5),
    ],
)
def test_what_judges_of_arena_battles_are_worth(root: Path, name: str, agreement: float, most: float) -> None:
    """A person's choice and a judge's of the same battle: a thousand verdicts are worth at most this many labels."""
    file = root.parent / f"shared/data/verdicts/arena-judges/{name}.json"
    if not file.is_file():
        pytest.skip("the battles are not here")
    rows = [row for row in json.loads(file.read_text()) if row["judge_pick"] in ("A", "B")]
    swapped = np.array([row["model_a"] > row["model_b"] for row in rows])
    people = np.array([row["human_winner"] == "model_a" for row in rows]) != swapped
    judge = np.array([row["judge_pick"] == "A" for row in rows]) != swapped
    assert np.mean(people == judge) == pytest.approx(agreement, abs=0.001)
    found = worth_in_labels([Labels(judge, people, 1000)])
    assert found.low < 1
    assert found.labels < found.high < most
