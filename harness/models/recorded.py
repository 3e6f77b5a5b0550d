"""A model whose answers exist already: made elsewhere, brought in by `harness import`, and looked up instead of written.

A folder `recorded/FOLDER` holds `responses.jsonl`, a `RecordedAnswer` a line (the file itself may be named, too). An answer
belongs to a query by its text, white space folded (an id alone could name another text elsewhere), and to a constitution
by its sentences in any order. An answer without a constitution is one under every constitution. What is not there is an
error of that query alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from harness.models.base import Asked, Completion, Request, Sampling
from harness.rows import Text
from sami_train.data import read_objects
from sami_train.errors import UserError
from sami_train.text import expanded
from sami_train.yamlfile import told

PREFIX = "recorded/"
FILE = "responses.jsonl"
BATCH = 256
"""Answers handed over together."""


def _not_empty(text: str) -> str:
    if not text:
        raise ValueError("it is empty")
    return text


class RecordedAnswer(BaseModel):
    """One answer to one query. Several with the same query and constitution are its repeats (epochs), in their order."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    query: Annotated[Text, AfterValidator(_not_empty)]
    query_id: Text | None = None
    constitution: tuple[Text, ...] | None = None
    """The sentences it was written under, without numbers; None: it stands for any."""
    text: Text
    """The answer; it may be empty."""
    finish_reason: Literal["stop", "length"] = "stop"
    source: Text = ""
    """File and row that it comes from."""


def answers_file(path: str) -> Path:
    """The file behind `recorded/FOLDER` (or behind the folder alone). Raises UserError when there is none."""
    place = expanded(path.removeprefix(PREFIX))
    file = place / FILE if place.is_dir() else place
    if not file.is_file():
        raise UserError(
            f"there are no recorded answers at '{place}'; name a folder that 'harness import' wrote (it holds {FILE})"
        )
    return file


def answers_fingerprint(path: str) -> str:
    """The hash of the recorded answers, wherever they lie. Raises UserError when they cannot be read."""
    file = answers_file(path)
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()[:32]
    except OSError as error:
        raise UserError(
            f"{file}: these recorded answers cannot be read ({error.strerror}); make them readable"
        ) from None


def read_answers(file: Path) -> list[RecordedAnswer]:
    """The recorded answers of a file. Raises UserError naming file, line and field for what is none."""
    answers = []
    for where, row in read_objects(file):
        try:
            answers.append(RecordedAnswer.model_validate(row))
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in problem["loc"])
            raise UserError(
                f"{where}: this is no recorded answer ('{field}': {told(problem)}); fix the row or import again"
            ) from None
    return answers


class RecordedBackend:
    """Satisfies `Backend`. Sampling is as it was when the answers were made: what a run asks for changes nothing."""

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        self._by_query: dict[str, list[RecordedAnswer]] = {}
        self._ids: set[str | None] = set()
        for answer in read_answers(answers_file(path)):
            self._by_query.setdefault(folded(answer.query), []).append(answer)
            self._ids.add(answer.query_id)

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, *, done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[Completion]]:
        """The recorded answers. Their prompt is not known and left empty; `n_tokens` counts words."""
        todo = [request for request in requests if request.id not in done]
        for start in range(0, len(todo), BATCH):
            yield [self._complete(request) for request in todo[start : start + BATCH]]

    def close(self) -> None:
        """Nothing is held."""

    def _complete(self, request: Request) -> Completion:
        if request.asked is None:
            raise UserError(
                f"model '{self.name}': recorded answers are answers to a run's queries and nothing else; name another model"
            )
        found = self._find(request.asked)
        if isinstance(found, str):
            return Completion(request.id, "", "error", "", 0, 0, error=f"missing_response: {found}")
        return Completion(request.id, found.text, found.finish_reason, "", 0, len(found.text.split()))

    def _find(self, asked: Asked) -> RecordedAnswer | str:
        """The answer, or why there is none."""
        answers = self._by_query.get(folded(asked.query))
        if not answers:
            is_known = asked.query_id in self._ids
            return (
                "the answer with this query's id is to another text"
                if is_known
                else "no answer to this query is recorded"
            )
        wanted = sentences(asked.principles)
        under = [a for a in answers if a.constitution is not None and sentences(a.constitution) == wanted]
        under = under or [a for a in answers if a.constitution is None]
        if not under:
            return f"{len(answers)} answers to this query are recorded, none under this constitution"
        if asked.epoch >= len(under):
            return f"{len(under)} answers are recorded, and this is epoch {asked.epoch + 1}"
        return under[asked.epoch]


def folded(text: str) -> str:
    """`text` with its white space folded."""
    return " ".join(text.split())


def sentences(lines: Sequence[str]) -> tuple[str, ...]:
    """A constitution's sentences in a fixed order, white space folded, numbers at their beginning left out."""
    return tuple(sorted(re.sub(r"^\s*\d+[.)]\s+", "", folded(line)) for line in lines if line.strip()))
