"""What the results of a run are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from harness.judges.llm import Order
from harness.protocols import CORRECTED, Protocol
from harness.rows import Likelihood, Verdict
from harness.stats import StopRule

Kind = Literal["win_rate", "steerability", "swapped"]
WhyNotCounted = Literal["rules", "responses"]
"""rules: the verdicts are on the planned responses, and were judged by other rules; responses: they may be on others."""


class ResponseKey(NamedTuple):
    """The place of a response in a run."""

    model: str
    task: str
    principle_set: str
    split: str
    query_id: str
    constitution_id: str
    epoch: int


class Facts(NamedTuple):
    """What one response is, whatever it says."""

    words: int
    copied: float = 0.0
    """Share of its words, in [0, 1], that are copied from its constitution."""
    ran_on: bool = False
    """It went on with its own prompt and was cut there."""
    cut: bool = False
    """It ended at the token limit."""
    repeats_query: float = 0.0
    """Share of its words, in [0, 1], that are copied from its query; 0 in summarization, where that is the task."""
    digest: str = ""
    """Equal for equal texts, blanks aside."""
    style: Mapping[str, float] = MappingProxyType({})
    """`harness.style.style_counts`."""
    shortened: bool = False
    """Its query was shortened to fit the prompt's limit."""


class ExpectedPair(NamedTuple):
    """A pair of answers that the plan has judged, in each of `orders`; verdicts are looked for by these fields."""

    judge: str
    kind: Kind
    a: str
    b: str
    """For steerability the same model as `a`."""
    task: str
    principle_set: str
    split: str
    query_id: str
    constitution_id: str
    """The one that `a` answered under."""
    epoch: int
    orders: tuple[Order, ...]
    """"ab" and "ba", or "ab" alone for a judge to whom the order makes no difference."""
    repeats: int = 1
    """How often the judge was asked, in each order."""
    judged_by: str | None = None
    """The constitution that was judged by, where it is another one; None: `constitution_id`."""

    @property
    def place(self) -> tuple[Any, ...]:
        """The fields by which a verdict is found."""
        return self[:-3]

    def response(self, side: Literal["a", "b"]) -> ResponseKey:
        """The response of a model of the pair. (That of `b` in a contrast has the opposite constitution.)"""
        return ResponseKey(
            getattr(self, side),
            self.task,
            self.principle_set,
            self.split,
            self.query_id,
            self.constitution_id,
            self.epoch,
        )


class NotCounted(NamedTuple):
    """How many verdicts of a judge on a pair of models lie in the places of planned ones that are missing."""

    why: WhyNotCounted
    judge: str
    kind: Kind
    a: str
    b: str
    n: int


@dataclass(frozen=True)
class ScoreInputs:
    """All that the results are made of. Verdicts of pairs that are not `expected` are left out."""

    name: str
    description: str
    spec_fingerprint: str
    level: float
    """Confidence level of every interval, for example 0.95."""
    max_unscored: float
    """Share of the expected verdicts, in [0, 1], above which the run fails its own standard."""
    models: dict[str, Any]
    """Model by name; models are listed in this order."""
    judges: dict[str, dict[str, Any]]
    """{"kind", "model"} by name; judges are listed in this order."""
    verdicts: Iterable[Verdict]
    facts: Mapping[ResponseKey, Facts]
    """Of each response."""
    likelihoods: Iterable[Likelihood]
    training: dict[str, Any]
    """The trainer's summary by model."""
    expected: Sequence[ExpectedPair]
    protocol: Protocol = CORRECTED
    kinds: Mapping[str, str] = field(default_factory=dict)
    """Kind by task: dialogue (where nothing is said) or summarization; some protocols tell them apart."""
    seed: int = 0
    """Of the order that is drawn where a protocol takes one of two."""
    not_counted: Sequence[NotCounted] = ()
    """Verdicts that are there besides `verdicts`: the results tell of them, and take nothing from them."""
    rule: StopRule | None = None
    """By which intervals and p values hold where n was not fixed before (`harness.stats.sequential_rate`)."""
    unfinished: bool = False
    """Whether verdicts are still to be made."""
    relevance: Mapping[ResponseKey, tuple[str, float]] = field(default_factory=dict)
    """Scorer and relevance, in [0, 1], of each response that was scored."""
