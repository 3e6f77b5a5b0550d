"""What a task is made of: its specification, what a loader hands over, and what the rest of the harness gets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sami_train.data import Query
from sami_train.errors import UserError

BUNDLED = "bundled"
HUB = "hub"

Part = Literal["train", "evaluation"]
Subset = Literal["helpful-base", "harmless-base", "both"]


class OutOfReach(UserError):
    """A task's data are on a hub that cannot be reached, and not in its cache here."""


class TaskSpec(BaseModel):
    """Where the queries of one task come from, and how many of them are used."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    """The registered name: hh-rlhf, tldr, or one that another package adds."""
    source: str = BUNDLED
    """`bundled` (the samples that come with the harness), `hub`, or a path: a local copy of the hub's folder, or a
    .jsonl or .json file."""
    subset: Subset | None = None
    """hh-rlhf only: which of its two sets; None means both."""
    train_source: str | None = None
    """Another source for the training queries; None takes them from `source`."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Evaluation queries: the first so many; None takes all (the paper: 250)."""
    train_limit: Annotated[int, Field(ge=1)] | None = None
    """Training queries: the first so many; None takes all."""
    revision: str | None = None
    """The hub's revision (branch, tag or commit); None takes the task's usual one."""

    @model_validator(mode="after")
    def _fits(self) -> TaskSpec:
        if self.task == "tldr" and self.subset is not None:
            raise ValueError("'subset' belongs to the task hh-rlhf; tldr has none, so leave it out")
        if self.revision is not None and HUB not in (self.source, self.train_source):
            raise ValueError("'revision' names a revision of the hub; set source: hub or leave it out")
        return self


class TaskParts(Protocol):
    """What a loader returns. `load_task` drops duplicates and overlap and applies the limits, for all loaders alike."""

    @property
    def kind(self) -> str:
        """dialogue or summarization"""

    @property
    def train(self) -> Sequence[Query]: ...

    @property
    def evaluation(self) -> Sequence[Query]: ...

    @property
    def source(self) -> str:
        """Where the queries come from, in words."""

    @property
    def dropped(self) -> Mapping[str, int]:
        """Rows that the loader itself left out, by reason."""


@dataclass(frozen=True)
class LoadedParts:
    """A plain `TaskParts`."""

    kind: str
    train: Sequence[Query]
    evaluation: Sequence[Query]
    source: str
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskData:
    """The queries of one task, ready to use: no duplicates, no training query that is also evaluated."""

    name: str
    """The name that the run gives the task."""
    kind: str
    """dialogue or summarization"""
    train: tuple[Query, ...]
    evaluation: tuple[Query, ...]
    source: str
    """Where the queries come from, in words."""
    hash: str
    """Of the ids and texts used, both parts."""
    dropped: dict[str, int]
    """Rows left out, by part and reason ("evaluation: duplicate text"); only reasons that occurred."""

    @property
    def evaluation_hash(self) -> str:
        """Of the evaluation queries alone: what generations and verdicts depend on."""
        return hash_queries(self.evaluation)

    @property
    def train_hash(self) -> str:
        """Of the training queries alone: what training depends on."""
        return hash_queries(self.train)


def hash_queries(*parts: Sequence[Query]) -> str:
    """A hash of the ids and texts of the queries, in their order."""
    content = [[[query.id, query.task, query.text] for query in part] for part in parts]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
