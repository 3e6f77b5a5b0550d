"""Puts requests to models on given terms, comparisons to the model of an LLM judge, and reads what comes back: for runs, and
for `harness judge validate`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from harness.costs import Allowance, CostLimitReached
from harness.judges.llm import CHOICES, Comparison, Judgement, LLMJudge
from harness.models._api import ApiBackend
from harness.models._batch import open_requests
from harness.models.base import Backend, Completion, LocalBackend, Request, Sampling
from harness.models.reasoning import without_reasoning
from sami_train.errors import UserError
from sami_train.prompts import Prompt
from sami_train.text import counted

CHOICE_ROWS = 16
"""Judgements that come together from a judge whose probabilities are read."""
TOO_LONG = Judgement("unscored", "prompt_too_long")
"""Of a prompt that does not fit the model even without its query."""


Generate = Callable[[Sequence[Request], Sampling, AbstractSet[str]], Iterator[list[Completion]]]


@dataclass(frozen=True)
class Terms:
    """On which terms API models are asked: one by one or in batches, and for how many dollars at most. `say` tells of batches."""

    batch: bool = False
    allowance: Allowance | None = None
    say: Callable[[str], None] = lambda _: None

    def answers(
        self,
        backend: Backend,
        requests: Sequence[Request],
        sampling: Sampling,
        done: AbstractSet[str],
        *,
        what: str,
        folder: Path,
        repeat: int = 0,
    ) -> Iterator[list[Completion]]:
        """What a model says to the requests that are not `done`. Of a model that is behind no API these terms say nothing.

        Args:
            what: is asked for, in messages.
            folder: where its batches are written down; each `repeat` has a folder of its own, beside it.

        What a model thought before its answer is in a completion's `reasoning` and no part of its text.

        Raises:
            CostLimitReached: after the last answer that the limit allows.
            UserError: requests are in a batch that was handed in before, and this is to ask one by one; or the first requests of
                an API model all failed alike.
        """
        for batch in self._asked(backend, requests, sampling, done, what, folder, repeat):
            yield [without_reasoning(made) for made in batch]

    def _asked(
        self,
        backend: Backend,
        requests: Sequence[Request],
        sampling: Sampling,
        done: AbstractSet[str],
        what: str,
        folder: Path,
        repeat: int,
    ) -> Iterator[list[Completion]]:
        if not isinstance(backend, ApiBackend):
            yield from backend.generate(requests, sampling, done=done)
            return
        if repeat:
            folder = folder.with_name(f"{folder.name}--repeat-{repeat}")
        if self.batch:
            answers = backend.generate_in_batches(requests, sampling, done=done, folder=folder, say=self.say)
        elif n := open_requests(folder):
            raise UserError(
                f"{folder}: {counted(n, 'request')} in a batch at the provider; run again with --batch to wait for it, "
                "or delete that folder to ask and pay for them again"
            )
        else:
            answers = backend.generate(requests, sampling, done=done)
        failures = _Failures(backend, what, len(requests), bool(done))
        for batch in answers:
            yield batch
            for sentence in backend.take_notes():
                self.say(sentence)
            failures.add(batch)
        if self.allowance is not None and self.allowance.exhausted:
            raise CostLimitReached(
                f"stopped at --max-cost {self.allowance.limit:g}: ${self.allowance.spent:,.4f} are spent, and the next "
                f"request of '{what}' could pass it; run the same command with a higher limit to go on"
            )


class _Failures:
    """Ends a stage whose first requests all fail alike, so that the rest is not sent, and paid for, in vain."""

    def __init__(self, backend: ApiBackend, what: str, n: int, has_rows: bool) -> None:
        self._backend, self._what, self._n = backend, what, n
        self._goes_on = has_rows
        self._seen: list[str] = []

    def add(self, batch: Sequence[Completion]) -> None:
        """Raises UserError when these are the last that are needed to tell."""
        if self._goes_on or self._backend.has_answered:
            return
        self._seen += [made.error for made in batch if made.error is not None]
        if not self._seen:
            return
        first, kinds = self._seen[0], {_shape(error) for error in self._seen}
        is_whole = len(self._seen) == self._n and first.partition(":")[0] in _PERMANENT
        if len(kinds) == 1 and (len(self._seen) >= FAILURES_ALIKE or is_whole):
            raise UserError(
                f"model '{self._backend.name}': the first {counted(len(self._seen), 'request')} of '{self._what}' failed alike "
                f"({first}); fix that and run the same command again, what is there is kept"
            )


def _shape(error: str) -> str:
    """An error without what differs from request to request: numbers and ids."""
    return re.sub(r"\b(?=\w*\d)[\w-]+\b", "#", error)


FAILURES_ALIKE = 8
"""Requests that failed alike, and none that was answered, after which a stage ends."""
_PERMANENT = ("refused_request", "truncated")
"""Why requests fail that will fail again; a stage of fewer than `FAILURES_ALIKE` ends when all do."""
ONE_BY_ONE = Terms()


class Asked(NamedTuple):
    """One comparison judged: seconds from the request to the verdict, and tokens by kind as the provider counts them."""

    id: str
    judgement: Judgement
    latency_s: float = 0.0
    usage: dict[str, Any] | None = None


def ask(
    backend: Backend,
    judges: Mapping[str, LLMJudge],
    comparisons: Sequence[Comparison],
    sampling: Sampling,
    *,
    missing: AbstractSet[str],
    generate: Generate | None = None,
) -> Iterator[list[Asked]]:
    """Judgements of the `missing` ones of `comparisons`, as they come, in batches that are made of all of them.

    Args:
        backend: the judge's model.
        judges: the judge of each comparison, by the comparison's id; all of one form.
        comparisons: those that need a model's word (see `LLMJudge.without_asking`).
        sampling: how a judge that writes does so.
        missing: ids of those that are still to be judged. What is there already changes nothing about the others.
        generate: how the model is asked for texts (requests, sampling, ids that are done); None: `backend.generate`.
    """
    if not missing:
        return
    control: Sequence[str] = getattr(backend, "control_tokens", tuple)()
    prompts = {c.id: judges[c.id].prompt(c, control) for c in comparisons}
    if judges[comparisons[0].id].form == "choice":
        yield from _choices(cast(LocalBackend, backend), judges, comparisons, prompts, missing)
    else:
        ways = generate or (lambda requests, sampling, done: backend.generate(requests, sampling, done=done))
        yield from _texts(backend, judges, comparisons, prompts, sampling, missing, ways)


def _choices(
    backend: LocalBackend,
    judges: Mapping[str, LLMJudge],
    comparisons: Sequence[Comparison],
    prompts: Mapping[str, Prompt],
    missing: AbstractSet[str],
) -> Iterator[list[Asked]]:
    for start in range(0, len(comparisons), CHOICE_ROWS):
        chunk = comparisons[start : start + CHOICE_ROWS]
        if missing.isdisjoint(c.id for c in chunk):
            continue
        began = time.monotonic()
        letters = CHOICES[judges[chunk[0].id].style]
        found = backend.choice_probabilities([prompts[c.id] for c in chunk], letters)
        latency = (time.monotonic() - began) / len(chunk)
        yield [
            Asked(c.id, TOO_LONG if first == second == 0 else judges[c.id].read_choice(c, first, second), latency)
            for c, (first, second) in zip(chunk, found, strict=True)
            if c.id in missing
        ]


def _texts(
    backend: Backend,
    judges: Mapping[str, LLMJudge],
    comparisons: Sequence[Comparison],
    prompts: Mapping[str, Prompt],
    sampling: Sampling,
    missing: AbstractSet[str],
    generate: Generate,
) -> Iterator[list[Asked]]:
    if isinstance(backend, LocalBackend):
        room = min(sampling.max_prompt_tokens, backend.prompt_room(sampling.max_new_tokens))
        sampling = replace(sampling, max_prompt_tokens=room)
        fitting = {i for i, prompt in prompts.items() if backend.fits(prompt, room)}
        yield [Asked(c.id, TOO_LONG) for c in comparisons if c.id in missing and c.id not in fitting]
        comparisons = [c for c in comparisons if c.id in fitting]
    by_id = {c.id: c for c in comparisons}
    requests = [Request(i, prompts[i]) for i in by_id]
    if missing.isdisjoint(by_id):
        return
    for batch in generate(requests, sampling, by_id.keys() - missing):
        rows = []
        for made in (one for one in batch if one.id in missing):
            judgement = judges[made.id].read_text(
                by_id[made.id], made.text, truncated=made.finish_reason == "length", error=made.error
            )
            if made.reasoning:
                judgement = replace(judgement, details={**judgement.details, "reasoning": made.reasoning})
            usage = dict(made.usage)
            rows.append(Asked(made.id, judgement, float(usage.pop("latency_s", 0.0)), usage))
        yield rows
