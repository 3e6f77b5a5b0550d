"""Signs that a model runs away from its base, as sentences.

The contrast can be raised without end by responses that nobody would write: longer and longer ones, or ones that the base finds
ever less likely. The paper calls the end of that gibberish (Fränken et al., NeurIPS 2024). The signs come before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sami_train.config import Limits

Sign = Literal["length_ratio", "kl", "logps_drop", "relevance_drop"]

LENGTH = "completions/mean_length"
KL = "kl"
LOGPS = "logps/diagonal"
RELEVANCE = "completions/relevance"
ADVICE = (
    "Training on from here tends to end in gibberish (Fränken et al., NeurIPS 2024): "
    "lower learning_rate, take fewer batches (batches_at_start, batch_increment), or raise beta."
)


@dataclass(frozen=True)
class Alarm:
    """A measurement beyond its limit, in the limit's unit; `sentence` is for people."""

    sign: Sign
    value: float
    limit: float
    sentence: str


def alarms(limits: Limits, *, base: Mapping[str, float], now: Mapping[str, float]) -> list[Alarm]:
    """Compare a model with its base.

    Args:
        limits: a limit of None is not looked at.
        base: what was measured of the base: "completions/mean_length" (tokens of the evaluation's sampled responses),
            "completions/relevance" (their mean, in [0, 1]) and "logps/diagonal" (mean, nats per token). Any may be missing; its
            sign is then not looked at.
        now: the same of the model in training, and "kl" (nats per token).

    Returns:
        The signs beyond their limits, at most one of each. A value that is not a number is beyond every limit.
    """
    found = [
        _length(limits.length_ratio, base, now),
        _kl(limits.kl, now),
        _logps(limits.logps_drop, base, now),
        _relevance(limits.relevance_drop, base, now),
    ]
    return [alarm for alarm in found if alarm is not None]


def _length(limit: float | None, base: Mapping[str, float], now: Mapping[str, float]) -> Alarm | None:
    if limit is None or LENGTH not in base or LENGTH not in now:
        return None
    before, after = base[LENGTH], now[LENGTH]
    limit = max(limit, 1 / limit)
    ratio = after / before if before else (after * math.inf if after else 1.0)
    if math.isnan(ratio):
        return _not_a_number("length_ratio", "the mean length of the sampled responses", limit)
    if 1 / limit <= ratio <= limit:
        return None
    what = f"{after:.4g} tokens on average, {ratio:.2f} times the base's {before:.4g}"
    bounds = f"the limits are {1 / limit:.2f} and {limit:.2f}"
    verb = "longer" if ratio > 1 else "shorter"
    return Alarm("length_ratio", ratio, limit, f"Responses grow {verb}: {what} ({bounds}). {ADVICE}")


def _kl(limit: float | None, now: Mapping[str, float]) -> Alarm | None:
    if limit is None or KL not in now:
        return None
    value = now[KL]
    if math.isnan(value):
        return _not_a_number("kl", "the KL to the base", limit)
    if value <= limit:
        return None
    sentence = f"The model leaves its base: the KL on response tokens is {value:.3g} nats per token (limit {limit:g})."
    return Alarm("kl", value, limit, f"{sentence} {ADVICE}")


def _logps(limit: float | None, base: Mapping[str, float], now: Mapping[str, float]) -> Alarm | None:
    if limit is None or LOGPS not in base or LOGPS not in now:
        return None
    before, after = base[LOGPS], now[LOGPS]
    drop = before - after
    if math.isnan(drop):
        return _not_a_number("logps_drop", "the mean log-probability of responses under their own constitution", limit)
    if drop <= limit:
        return None
    sentence = (
        "Responses become unlikely even under their own constitution: their mean log-probability fell from "
        f"{before:.3g} to {after:.3g} nats per token, by {drop:.3g} (limit {limit:g})."
    )
    return Alarm("logps_drop", drop, limit, f"{sentence} {ADVICE}")


def _relevance(limit: float | None, base: Mapping[str, float], now: Mapping[str, float]) -> Alarm | None:
    if limit is None or RELEVANCE not in base or RELEVANCE not in now:
        return None
    before, after = base[RELEVANCE], now[RELEVANCE]
    if before - after <= limit:
        return None
    sentence = (
        f"Responses depend less on their query: their mean relevance fell from {before:.2f} to {after:.2f}, by "
        f"{before - after:.2f} (limit {limit:g}; 0.5 is chance)."
    )
    return Alarm("relevance_drop", before - after, limit, f"{sentence} {ADVICE}")


def _not_a_number(sign: Sign, what: str, limit: float) -> Alarm:
    return Alarm(sign, math.nan, limit, f"The model is broken: {what} is not a number. {ADVICE}")
