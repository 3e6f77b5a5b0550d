"""The rows a run is made of: one JSON object a line, checked when it is made and again when it is read.

Every row has an `id`, which names its place in the run and stays the same when a failed row is tried again, and a
`fingerprint`, which is the hash of everything that decides its content (`harness.store.fingerprint`).

What comes back from a read equals what was written. To keep that true, text from a model loses its lone surrogates
(half characters, which UTF-8 cannot hold) when the row is made, and numbers that are not finite are refused.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    model_validator,
)

from sami_train.text import whole_characters


def _plain_json(value: dict[str, Any]) -> dict[str, Any]:
    """`value` as a JSON reader will see it: tuples become lists; NaN and types JSON has no word for are refused."""
    plain: dict[str, Any] = json.loads(whole_characters(json.dumps(value, allow_nan=False, ensure_ascii=False)))
    return plain


Text = Annotated[str, AfterValidator(whole_characters)]
JsonObject = Annotated[dict[str, Any], AfterValidator(_plain_json)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Row(_Record):
    """What `RowFile` and `SharedRows` need of a row."""

    id: str
    """Unique in its file. A later row with the same id replaces the earlier one."""
    fingerprint: str
    """Hash of all that decides the content of this row, and of nothing else."""


class RowOnTexts(Row):
    """A row that says something of responses."""

    texts: list[str] = []
    """`text_hash` of each of them, in the order of its unit; empty where there was none, and in rows of earlier versions."""


def text_hash(text: str) -> str:
    """The first 16 hex digits of the SHA-256 of a response's text."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


class Generation(Row):
    """One answer of one model to one query under one constitution."""

    model: str
    task: str
    query_id: str
    constitution_id: str
    principle_set: str
    split: str
    """Which principles: "learned" or "held_out"."""
    epoch: NonNegativeInt = 0
    """Number of the sample for this query and constitution, from 0."""
    prompt_hash: str
    prompt: Text
    """The prompt exactly as the model got it, chat template included."""
    text: Text
    """The answer; empty when `finish_reason` is "error", or when reasoning was wanted and no answer followed it."""
    reasoning: Text = ""
    """What the model wrote before its answer, where reasoning was wanted."""
    tail: Text = ""
    """What followed the answer where it ran on with its own prompt; no part of the answer."""
    finish_reason: Literal["stop", "length", "error"]
    n_prompt_tokens: NonNegativeInt
    """Length of the prompt, in tokens of this model."""
    n_tokens: NonNegativeInt
    """Length of the answer, reasoning included, in tokens of this model."""
    truncated: bool
    """Whether the prompt was cut to fit the context window."""
    error: Text | None = None
    """What went wrong; None unless `finish_reason` is "error"."""
    usage: JsonObject = {}
    """Tokens that an API model used, by kind, as its provider counts them."""

    @model_validator(mode="after")
    def _error_is_told(self) -> Self:
        if (self.finish_reason == "error") != (self.error is not None):
            raise ValueError('`error` is set exactly when `finish_reason` is "error"')
        return self


class Verdict(RowOnTexts):
    """What one judge said about one pair of answers, seen in one order."""

    judge: str
    kind: Literal["win_rate", "steerability", "swapped"]
    """swapped: the responses of a win rate, judged by a constitution that neither model was given."""
    a: str
    """The first of the pair: a model, whatever the order in which the judge saw the two."""
    b: str
    """The second of the pair."""
    task: str
    query_id: str
    constitution_id: str
    """The constitution that `a` answered under."""
    judged_by: str | None = None
    """The constitution that was judged by, where it is another one (kind "swapped") or a part; None: `constitution_id`."""
    principle_set: str
    split: str
    """Which principles: "learned" or "held_out"."""
    epoch: NonNegativeInt = 0
    """Number of the sample that was judged, from 0."""
    repeat: NonNegativeInt = 0
    """Number of the judging of this sample, from 0."""
    order: Literal["ab", "ba"]
    """The order in which the judge saw the answers."""
    outcome: Literal["a", "b", "tie", "unscored"]
    """The better of the pair, by its name in `a` and `b`, not by its place in the judge's prompt."""
    reason: Text | None = None
    """Why there is no score; None unless `outcome` is "unscored"."""
    raw: Text
    """The judge's answer, word for word; empty for a judge that does not write."""
    details: JsonObject
    """What the judge measured, by name; depends on the judge."""
    usage: JsonObject
    """Tokens the judge used, by kind, as its provider counts them."""
    latency_s: NonNegativeFloat
    """Time from the request to the verdict, in seconds."""

    @model_validator(mode="after")
    def _reason_is_told(self) -> Self:
        if (self.outcome == "unscored") != (self.reason is not None):
            raise ValueError('`reason` is set exactly when `outcome` is "unscored"')
        return self


class Likelihood(RowOnTexts):
    """How likely one model finds each of C responses to one query under each of C constitutions."""

    model: str
    task: str
    query_id: str
    principle_set: str
    split: str
    """Which principles: "learned" or "held_out"."""
    constitution_ids: list[str]
    """The C constitutions; response j was written under constitution j."""
    logprob_sums: list[list[float]]
    """C x C, row = constitution, column = response: log-probability of the response, in nats, summed over tokens."""
    n_tokens: list[NonNegativeInt]
    """Length of each of the C responses, in tokens of this model."""

    @model_validator(mode="after")
    def _is_square(self) -> Self:
        size = len(self.constitution_ids)
        if len(self.n_tokens) != size or [len(row) for row in self.logprob_sums] != [size] * size:
            raise ValueError(f"{size} constitutions need a {size} x {size} `logprob_sums` and {size} `n_tokens`")
        return self


class Relevance(RowOnTexts):
    """How likely a scorer finds one response after its own query and after other queries of its task."""

    model: str
    """The model that wrote the response."""
    task: str
    query_id: str
    constitution_id: str
    principle_set: str
    split: str
    """Which principles: "learned" or "held_out"."""
    epoch: NonNegativeInt = 0
    scorer: str
    """The model that scored."""
    others: list[str]
    """Ids of the other queries."""
    logprobs: list[float] | None
    """Mean log-probability of the response per token, in nats: after its own query, then after each of the others; None for
    a response of which nothing is left to score."""

    @model_validator(mode="after")
    def _one_for_each_query(self) -> Self:
        if self.logprobs is not None and len(self.logprobs) != 1 + len(self.others):
            raise ValueError(f"{len(self.others)} other queries need {1 + len(self.others)} `logprobs`")
        return self


class Manifest(_Record):
    """How one stage of a run came about. The stage is finished when `finished` is set and `failed` is 0."""

    stage: str
    fingerprint: str
    inputs: JsonObject
    """What the fingerprint was made from."""
    versions: dict[str, str]
    """Version by package (`harness.store.environment`)."""
    git: str | None = None
    """Revision of the harness's working tree; None outside a git repository."""
    dirty: bool | None = None
    """Whether tracked files differed from that revision; None outside a git repository."""
    seeds: dict[str, int]
    """Seed by what it seeds."""
    device: str | None = None
    """What the models ran on, for example "cuda:0 NVIDIA H200"; None for a stage without a model."""
    engine: str | None = None
    """The back end, for example "transformers"; None for a stage without a model."""
    started: AwareDatetime
    finished: AwareDatetime | None = None
    """None while the stage runs, and when it was interrupted."""
    expected: NonNegativeInt
    """Rows the plan asks for."""
    done: NonNegativeInt
    """Rows there are, without the failed ones."""
    failed: NonNegativeInt
    """Rows that ended in an error; the next run tries them again."""
