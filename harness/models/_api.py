"""What the API back ends share: many requests in flight at once, tried again with patience, typed errors, and a key that
is never shown.

The SDKs' own repeats are off: each would wait for itself alone. Here all requests share one pace (see `_pace`), and each is
tried a limited number of times. A field that a model refuses by its name is left out of all later requests.
"""

from __future__ import annotations

import importlib
import itertools
import os
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from harness.models._http import PLACEHOLDER_KEY, check_base_url, http_client, resolve_key, variables_of
from harness.models._http import is_loopback as is_loopback
from harness.models._pace import LONGEST_PAUSE_S, Pace, retry_after
from harness.models._pool import as_they_finish
from harness.models._replies import (
    Answer,
    Ended,
    RequestError,
    checked_usage,
    clean,
    cut_at,
    decoded,
    error_reason,
    failure,
    masked,
    provider_message,
    raise_error_in,
    summed,
    was_sent,
)
from harness.models.base import Budget, Completion, Request, Sampling, most_tokens
from harness.models.families import family_of
from harness.models.reasoning import split_reasoning
from sami_train.errors import MissingPackage, UserError
from sami_train.prompts import Prompt, Style

_CONNECTIONS_PER_CLIENT = 32  # the HTTP libraries look through all connections of a client for each request
_REFUSAL = re.compile(
    r"support|unknown|unrecogni[sz]ed|unexpected|not permitted|extra|deprecated|allowed|cannot|can't|instead|only|invalid"
    r"|must be|may not|no longer|does not|default",
    re.IGNORECASE,
)
_UNKNOWN = re.compile(r"support|unknown|unrecogni|not permitted|extra|deprecated", re.IGNORECASE)
_OUT_OF_RANGE = re.compile(
    r"too (?:large|small|high|low)|less than|greater than|at (?:most|least)|between|range|exceed|maximum", re.IGNORECASE
)

TRIES_OF_A_STRANGER = 4
"""Tries of a request that reaches nobody, at an address that never answered: a wrong port is told within seconds."""

_T = TypeVar("_T")


class ApiBackend(ABC):
    """A model behind an HTTP interface. A subclass says what to ask for (`_body`), how (`_post`), and how to `_read` it.

    Prompts are sent whole: only the provider can count its tokens, so `max_prompt_tokens` is not enforced here, and a
    prompt that is too long comes back as `refused_request`. `usage` holds the tokens as the provider counts them,
    `latency_s`, the seconds from the first try to the answer, and `tries` where there were several.

    Args:
        name: what messages call it.
        model: what the provider calls it.
        base_url: another server's address; None: the environment's, or the provider's own.
        api_key: None: the environment's.
        max_connections: requests in flight at most; fewer while the provider is overloaded.
        max_retries: tries after the first one.
        timeout_s: seconds for one try, from connecting to the answer's last byte.

    Raises:
        MissingPackage: the SDK is not installed.
        UserError: there is no key, or the address is none.
    """

    package: ClassVar[str]
    """The SDK, which is the extra that installs it, too; the environment's variables begin with its name."""
    client: ClassVar[str]
    """The SDK's class of clients."""
    batch_requests: ClassVar[int]
    batch_bytes: ClassVar[int]
    optional: ClassVar[tuple[str, ...]]
    """Fields of a request that can be left out; of two that a model refuses together the first is."""
    limits: ClassVar[tuple[str, ...]] = ()
    """The names that the limit of tokens may have, where there are several."""
    counts: ClassVar[tuple[str, str]]
    """The fields of `usage` with the tokens of prompts and of answers."""
    budget: Budget | None = None

    def __init__(
        self,
        name: str,
        model: str,
        style: Style,
        base_url: str | None = None,
        api_key: str | None = None,
        max_connections: int = 8,
        max_retries: int = 6,
        timeout_s: float = 60,
    ) -> None:
        try:
            sdk = importlib.import_module(self.package)
        except ImportError:
            raise MissingPackage(self.package, extra=self.package) from None
        if max_connections < 1:
            raise UserError(f"model '{name}': 'max_connections' is {max_connections}; it must be at least 1")
        self.name = name
        self.style = style
        self.has_answered = False
        """Whether any request of this model was answered."""
        self.left_out: dict[str, str] = {}
        """Fields that the model refused, which its requests leave out, with what the provider said."""
        self._notes: list[str] = []
        self._told: list[str] = []
        self._limit: str | None = None
        self._learning = threading.Lock()
        self.family = family_of(f"{self.package}/{model}")
        self._model = model
        self._sdk = sdk
        self._timeout_s = timeout_s
        self._variable, address = variables_of(self.package)
        self._base_url = check_base_url(base_url or os.environ.get(address) or None, name)
        self._key = resolve_key(api_key, variable=self._variable, base_url=self._base_url, name=name)
        self._connections = max_connections
        self._retries = max_retries
        n = -(-max_connections // _CONNECTIONS_PER_CLIENT)
        self._clients = [self._open_client(-(-max_connections // n), timeout_s) for _ in range(n)]
        self._next_client = itertools.cycle(self._clients)
        self._of_thread = threading.local()

    def _open_client(self, connections: int, timeout_s: float) -> Any:
        """The SDK's client, without its own repeats."""
        return getattr(self._sdk, self.client)(
            api_key=self._key,
            base_url=self._base_url,
            max_retries=0,
            timeout=timeout_s,
            http_client=http_client(self._sdk, connections, timeout_s),
        )

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, *, done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[Completion]]:
        """Completions as they arrive, in any order.

        Without those that the budget does not allow: see `budget`. Raises UserError when the provider does not accept the
        key, when the account is out of credit, and when it asks for a pause of more than ten minutes.
        """
        return self._answers(self._todo(requests, sampling, done), sampling)

    def generate_in_batches(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        *,
        done: AbstractSet[str],
        folder: Path,
        say: Callable[[str], None],
    ) -> Iterator[list[Completion]]:
        """As `generate`, through the provider's batch interface (see `_batch.in_batches`)."""
        from harness.models._batch import in_batches

        return in_batches(self, self._todo(requests, sampling, done), sampling, folder, say)

    def take_notes(self) -> list[str]:
        """What the user should be told that nobody has asked for yet."""
        with self._learning:
            notes, self._notes = self._notes, []
        return notes

    def close(self) -> None:
        """Close the connections."""
        for client in self._clients:
            client.close()

    @abstractmethod
    def _full_body(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        """The request's JSON with every field that is wanted."""

    def _body(self, prompt: Prompt, sampling: Sampling, *, learned: bool = True) -> dict[str, Any]:
        """The request's JSON; without `learned` as it would be had the model refused nothing."""
        body = {name: value for name, value in self._full_body(prompt, sampling).items() if name not in sampling.omit}
        if learned:
            body = {name: value for name, value in body.items() if name not in self.left_out}
            if self._limit in self.limits and (sent := next((n for n in self.limits if n in body), None)):
                body = {(self._limit if name == sent else name): value for name, value in body.items()}
        body |= sampling.extra
        return {name: value for name, value in body.items() if name not in sampling.extra or value is not None}

    @abstractmethod
    def _post(self, client: Any, body: Mapping[str, Any]) -> Any:
        """The SDK's raw response to a body."""

    @abstractmethod
    def _read(self, body: Any) -> Answer:
        """The answer in a decoded response. Raises RequestError when it is not there or was withheld."""

    @abstractmethod
    def _batch_line(self, custom_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """A request of a batch."""

    @abstractmethod
    def _batch_prepare(self, lines: Sequence[bytes]) -> Any:
        """What `_batch_create` takes: the requests themselves, or the id of a file with them."""

    @abstractmethod
    def _batch_create(self, prepared: Any, token: str) -> str:
        """Hand a batch in; its id."""

    @abstractmethod
    def _batch_find(self, token: str, n: int, since: float) -> str | None:
        """The id of a batch of `n` requests with this token, handed in after a time, if the provider has one."""

    @abstractmethod
    def _batch_ended(self, batch: str) -> Ended | None:
        """The results of a batch; None while it is under way."""

    def _client(self) -> Any:
        """The client of this thread."""
        if not hasattr(self._of_thread, "client"):
            self._of_thread.client = next(self._next_client)
        return self._of_thread.client

    def _todo(self, requests: Sequence[Request], sampling: Sampling, done: AbstractSet[str]) -> list[Request]:
        if sampling.json_schema is not None and self.style != "chat":
            raise UserError(f"model '{self.name}': JSON of a schema needs 'style: chat'; a completion has none")
        todo = [request for request in requests if request.id not in done]
        for request in todo:
            if request.prompt.style != self.style:
                raise UserError(
                    f"model '{self.name}': its style is '{self.style}', but the prompt of '{request.id}' is a "
                    f"{request.prompt.style} prompt; set the model's 'style' to match"
                )
        omitted = [name for name in self._full_body(todo[0].prompt, sampling) if name in sampling.omit] if todo else []
        if omitted and omitted != self._told:
            self._notes.append(
                f"{self.name}: {' and '.join(omitted)} left out of its requests, as is set for this model"
            )
            self._told = omitted
        return todo

    def _answers(self, todo: list[Request], sampling: Sampling) -> Iterator[list[Completion]]:
        pace = Pace(self._connections)
        try:
            yield from as_they_finish(todo, lambda one: self._complete(one, sampling, pace), self._connections)
        finally:
            pace.stop()

    def _complete(self, request: Request, sampling: Sampling, pace: Pace) -> Completion | None:
        """The answer to a request, or its failure; None when it may not be made."""
        started = time.perf_counter()
        usages: list[dict[str, Any]] = []
        try:
            answer, tries = self._patiently(lambda: self._paid(request, sampling, usages), pace)
            made = self._completion(request, sampling, answer)
        except _NotAllowed as stop:
            if stop.problem is None:
                return None
            made, tries = self._failure(request, stop.problem), stop.problem.tries
        except RequestError as error:
            made, tries = self._failure(request, error), error.tries
        about: dict[str, Any] = {"latency_s": round(time.perf_counter() - started, 3)}
        if tries > 1:
            about["tries"] = tries
        return replace(made, usage={**summed(usages), **self._about(request.prompt, sampling), **about})

    def _paid(self, request: Request, sampling: Sampling, usages: list[dict[str, Any]]) -> Answer:
        """One try within the budget, again without each field that the model refuses; adds what was paid to `usages`.

        Raises _NotAllowed when the budget does not allow it.
        """
        sampling = self.sampled(request, sampling)
        while True:
            reserved = self.budget.reserve(self.name, request.prompt, sampling) if self.budget is not None else 0.0
            if reserved is None:
                raise _NotAllowed
            body = self._body(request.prompt, sampling)
            cost: dict[str, Any] = {}
            try:
                answered = decoded(self._post(self._client(), body))
                cost = self._cost(answered, request.prompt, sampling)
                return self._read_checked(answered)
            except Exception as error:  # noqa: BLE001 - what is no request error is raised again
                problem = error if isinstance(error, RequestError) else self._typed(error)
                if problem.may_be_paid:
                    cost = self._most(request.prompt, sampling)
                if not self._learn(
                    {name: value for name, value in body.items() if name not in sampling.extra}, problem
                ):
                    raise problem from None
            finally:
                if self.budget is not None:
                    self.budget.settle(self.name, reserved, cost)
                if cost:
                    usages.append(cost)

    def _read_checked(self, body: Any) -> Answer:
        """The answer in a decoded body. Raises RequestError where it is not there, UserError where none will be."""
        try:
            raise_error_in(body)
        except RequestError as problem:
            self._check_account(problem.status, str(problem))
            raise
        return self._read(body)

    def _cost(self, body: Any, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        """The usage that a body tells. What it does not tell counts for the most that it can be, except beside an error."""
        usage = checked_usage(body.get("usage")) if isinstance(body, dict) else {}
        untold = [name for name in self.counts if type(usage.get(name)) is not int]
        if untold and not (isinstance(body, dict) and body.get("error")):
            most = self._most(prompt, sampling)
            usage |= {name: most[name] for name in (*untold, "estimated")}
        return usage

    def _most(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        """The usage of a request that is known to have been made, and of which no count came back."""
        return {**dict(zip(self.counts, most_tokens(prompt, sampling), strict=True)), "estimated": True}

    def _about(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        """What a row's usage says of the request besides tokens: the fields that were left out."""
        wanted = self._full_body(prompt, sampling)
        left_out = [name for name in wanted if name in sampling.omit or name in self.left_out]
        return {"left_out": left_out} if left_out else {}

    def _completion(self, request: Request, sampling: Sampling, answer: Answer) -> Completion:
        """Raises RequestError for an answer without text."""
        thought, said, is_closed = split_reasoning(answer.text)
        text, was_cut = cut_at(said, sampling.stop)
        if not text.strip():
            if answer.finish_reason == "length" or not is_closed:
                what = f"there is no answer within {sampling.max_new_tokens:,} tokens; raise max_new_tokens"
                raise RequestError("truncated", f"{what}, or ask for less reasoning")
            raise RequestError("empty", f"the answer has no text (finish reason: {answer.finish_reason})")
        self.has_answered = True
        reasoning = "\n\n".join(part for part in (answer.reasoning.strip(), thought) if part)
        return Completion(
            id=request.id,
            text=f"{request.prompt.prefill.lstrip()}{masked(text, self._secret)}",
            finish_reason="stop" if was_cut else answer.finish_reason,
            prompt=request.prompt.text,
            n_prompt_tokens=answer.n_prompt_tokens,
            n_tokens=answer.n_tokens,
            reasoning=masked(reasoning, self._secret),
        )

    def _failure(self, request: Request, problem: RequestError) -> Completion:
        message = f"{problem.reason}: {clean(str(problem), self._secret)}"
        return Completion(request.id, "", "error", request.prompt.text, 0, 0, error=message)

    @property
    def _secret(self) -> str:
        """The key, which is kept out of what others read; empty where there is none."""
        return "" if self._key == PLACEHOLDER_KEY else self._key

    def sampled(self, request: Request, sampling: Sampling) -> Sampling:
        """`sampling` with the seed of the request's sample."""
        return replace(sampling, seed=sampling.seed + request.sample) if request.sample else sampling

    def _learn(self, body: Mapping[str, Any], problem: RequestError) -> bool:
        """Whether a refusal names a field of `body` without which, or under another name, it is worth asking again.

        `body` has the fields that the user did not set in `extra`. Later requests leave the field out. A value out of range
        is the user's to change.
        """
        said = str(problem)
        if problem.status not in (400, 422) or _OUT_OF_RANGE.search(said):
            return False

        def is_named(field: str) -> bool:
            names_it = re.search(rf"(?<![\w]){field}(?![\w])", said) and _REFUSAL.search(said)
            return field in body and (problem.field == field or bool(names_it))

        with self._learning:
            for old, new in zip(self.limits, self.limits[::-1], strict=True):
                if is_named(old) and self._limit in (None, new) and (new in said or _UNKNOWN.search(said)):
                    if self._limit is None:
                        self._notes.append(
                            f"{self.name}: the limit of tokens is sent as {new}; the model refuses {old}"
                        )
                    self._limit = new
                    return True
            field = next((name for name in self.optional if is_named(name)), None)
            if field is None:
                return False
            if field not in self.left_out:
                self.left_out[field] = clean(said, self._secret)
                self._notes.append(f"{self.name}: {field} is left out; the model refuses it ({self.left_out[field]})")
            return True

    def _patiently(self, ask: Callable[[], _T], pace: Pace) -> tuple[_T, int]:
        """What `ask` gives, and at which try. Raises RequestError when it failed for good."""
        problem: RequestError | None = None
        for tries in itertools.count(1):
            with pace.turn() as began:
                try:
                    found = ask()
                except RequestError as error:
                    problem = error
                except _NotAllowed:
                    raise _NotAllowed(problem) from None
                except Exception as error:  # noqa: BLE001 - what is no request error is raised again
                    problem = self._typed(error)
                else:
                    pace.answered()
                    return found, tries
            problem.tries = tries
            if problem.overloaded:
                pace.overloaded(began, problem.retry_after_s)
            if not problem.again or tries > self._retries or tries >= (problem.most_tries or tries + 1):
                raise problem
            pace.wait(tries, problem.retry_after_s)
        raise AssertionError

    def _typed(self, error: Exception) -> RequestError:
        """The error of an SDK as a typed failure. Raises UserError for what no later request could do better."""
        status = getattr(error, "status_code", None) if isinstance(error, self._sdk.APIStatusError) else None
        self._check_account(status, str(getattr(error, "code", "")))
        reason = error_reason(self._sdk, error)
        if reason is None:
            raise error
        said = provider_message(error)
        if not isinstance(status, int):
            problem = RequestError(reason, said)
            problem.may_be_paid = was_sent(error)
            if reason == "malformed" and "DecodingError" in type(error.__cause__).__name__:
                problem.most_tries = 2
            elif reason == "connection" and not problem.may_be_paid and not self.has_answered:
                problem.most_tries = TRIES_OF_A_STRANGER
            return problem
        headers = error.response.headers  # type: ignore[attr-defined]
        if 300 <= status < 400:
            place = clean(headers.get("location", "elsewhere"), self._secret)
            raise UserError(
                f"model '{self.name}': the server sends its requests on to {place} (HTTP {status}), which is not followed; "
                "if you trust that address, set base_url to it"
            ) from None
        inner = getattr(error, "body", None)
        inner = inner.get("error", inner) if isinstance(inner, dict) else None
        problem = failure(status, f"HTTP {status}: {said}", inner.get("param") if isinstance(inner, dict) else None)
        problem.retry_after_s = pause = retry_after(headers)
        problem.again &= headers.get("x-should-retry") != "false"
        if problem.again and pause is not None and pause > LONGEST_PAUSE_S:
            wanted = f"{pause / 60:,.0f} minutes" if pause < 1e8 else "more than a year"
            raise UserError(
                f"model '{self.name}': the provider asks for a pause of {wanted} (HTTP {status}); "
                "run the same command again after it"
            ) from None
        return problem

    def _check_account(self, status: int | None, code: str) -> None:
        """Raises UserError where the key is refused or the account is empty: no later request could do better."""
        if status in (401, 403):
            raise UserError(
                f"model '{self.name}': the provider does not accept the API key (HTTP {status}); "
                f"check {self._variable} and what the key is allowed to use"
            ) from None
        if status == 402 or "insufficient_quota" in code:
            raise UserError(
                f"model '{self.name}': the account has no credit left (HTTP {status}); "
                "add some and run the same command again"
            ) from None


class _NotAllowed(Exception):
    """The budget allows no further try; `problem` is that of the last one, None where there was none."""

    def __init__(self, problem: RequestError | None = None) -> None:
        super().__init__()
        self.problem = problem
