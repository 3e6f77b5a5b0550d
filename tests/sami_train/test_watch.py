"""Measurements beyond their limits become sentences; everything else stays quiet."""

from __future__ import annotations

import math

import pytest

from sami_train.config import Limits
from sami_train.watch import Alarm, alarms

LIMITS = Limits(length_ratio=1.5, kl=0.5, logps_drop=0.5, relevance_drop=0.25)
BASE = {"completions/mean_length": 100.0, "logps/diagonal": -1.0, "completions/relevance": 0.75}


def only(limits: Limits, **now: float) -> Alarm:
    found = alarms(limits, base=BASE, now={NAMES[sign]: value for sign, value in now.items()})
    assert len(found) == 1
    return found[0]


NAMES = {
    "length": "completions/mean_length",
    "kl": "kl",
    "logps": "logps/diagonal",
    "relevance": "completions/relevance",
}


def test_a_model_near_its_base_raises_nothing() -> None:
    now = {"completions/mean_length": 149.0, "kl": 0.49, "logps/diagonal": -1.49, "loss": 0.3}
    assert alarms(LIMITS, base=BASE, now=now) == []


def test_a_value_at_its_limit_is_not_beyond_it() -> None:
    now = {"completions/mean_length": 150.0, "kl": 0.5, "logps/diagonal": -1.5, "completions/relevance": 0.5}
    assert alarms(LIMITS, base=BASE, now=now) == []


def test_all_signs_come_in_the_order_of_the_limits() -> None:
    now = {"completions/mean_length": 151.0, "kl": 0.51, "logps/diagonal": -1.51, "completions/relevance": 0.49}
    found = alarms(LIMITS, base=BASE, now=now)
    assert [alarm.sign for alarm in found] == ["length_ratio", "kl", "logps_drop", "relevance_drop"]
    assert [alarm.value for alarm in found] == pytest.approx([1.51, 0.51, 0.51, 0.26])
    assert [alarm.limit for alarm in found] == [1.5, 0.5, 0.5, 0.25]


def test_relevance_is_watched_downwards() -> None:
    assert "fell from 0.75 to 0.40, by 0.35 (limit 0.25; 0.5 is chance)" in only(LIMITS, relevance=0.4).sentence
    assert alarms(LIMITS, base=BASE, now={"completions/relevance": 1.0}) == []
    assert alarms(LIMITS, base={}, now={"completions/relevance": 0.0}) == []
    assert alarms(LIMITS, base=BASE, now={}) == []


@pytest.mark.parametrize(("length", "word"), [(160.0, "longer"), (60.0, "shorter")])
def test_length_is_watched_both_ways(length: float, word: str) -> None:
    alarm = only(LIMITS, length=length)
    assert alarm.value == pytest.approx(length / 100)
    assert word in alarm.sentence
    assert f"{length:.0f} tokens" in alarm.sentence
    assert "the base's 100" in alarm.sentence


@pytest.mark.parametrize("length", [67.0, 100.0, 149.0])
def test_a_length_limit_below_one_means_the_same_as_its_inverse(length: float) -> None:
    assert alarms(Limits(length_ratio=1 / 1.5), base=BASE, now={"completions/mean_length": length}) == []


def test_silence_and_endless_text_are_beyond_any_ratio() -> None:
    assert only(LIMITS, length=0.0).value == 0.0
    silent = {"completions/mean_length": 0.0}
    assert alarms(LIMITS, base=silent, now=silent) == []
    assert alarms(LIMITS, base=silent, now={"completions/mean_length": 3.0})[0].value == math.inf


def test_log_probabilities_are_watched_downwards_only() -> None:
    assert alarms(LIMITS, base=BASE, now={"logps/diagonal": -0.1}) == []
    alarm = only(LIMITS, logps=-2.25)
    assert alarm.value == pytest.approx(1.25)
    assert "from -1 to -2.25 nats per token, by 1.25 (limit 0.5)" in alarm.sentence


@pytest.mark.parametrize("sign", ["length", "kl", "logps"])
def test_what_is_not_a_number_always_alarms(sign: str) -> None:
    alarm = only(Limits(length_ratio=1e9, kl=1e9, logps_drop=1e9), **{sign: math.nan})
    assert math.isnan(alarm.value)
    assert "not a number" in alarm.sentence


@pytest.mark.parametrize(("sign", "value"), [("kl", math.inf), ("logps", -math.inf), ("length", math.inf)])
def test_what_is_infinite_alarms(sign: str, value: float) -> None:
    assert math.isinf(only(LIMITS, **{sign: value}).value)


def test_a_limit_of_null_is_not_looked_at() -> None:
    now = {"completions/mean_length": math.nan, "kl": math.nan, "logps/diagonal": math.nan}
    assert alarms(Limits(), base=BASE, now=now) == []


def test_what_was_not_measured_is_not_looked_at() -> None:
    assert alarms(LIMITS, base=BASE, now={}) == []
    assert alarms(LIMITS, base={}, now={"completions/mean_length": 900.0, "logps/diagonal": -9.0}) == []
    assert [a.sign for a in alarms(LIMITS, base={}, now={"kl": 2.0})] == ["kl"]


def test_every_sentence_says_what_to_do() -> None:
    for alarm in (
        only(LIMITS, length=500.0),
        only(LIMITS, kl=3.0),
        only(LIMITS, logps=-9.0),
        only(LIMITS, kl=math.nan),
    ):
        for word in ("gibberish", "learning_rate", "batches", "beta"):
            assert word in alarm.sentence
        assert "\n" not in alarm.sentence
