"""What the results of a run are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from harness.judges.llm import Order
from harness.protocols import CORRECTED, Protocol
from harness.rows import Likelihood, Verdict
from harness.stats import StopRule

Kind = Literal["win_rate", "steerability", "swapped"]
WhyNotCounted = Literal["rules", "responses"]
"""rules: the verdicts are on the planned responses, and were judged by other rules; responses: they may be on others."""
LengthKey = tuple[str, str, str, str, int]
"""(model, task, query_id, constitution_id, epoch)"""


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
    lengths: Mapping[LengthKey, int]
    """Length of each response, in words."""
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
