"""What the API back ends share: many requests in flight at once, tried again with patience, typed errors, and a key that
is never shown.

The SDKs' own repeats are off: each would wait for itself alone. Here all requests share one pace (see `_pace`), and each is
tried a limited number of times.
"""

from __future__ import annotations

import importlib
import ipaddress
import itertools
import json
import math
import os
import queue
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

from harness.models._pace import LONGEST_PAUSE_S, Pace, retry_after
from harness.models.base import Budget, Completion, FinishReason, Request, Sampling
from sami_train.errors import MissingPackage, UserError
from sami_train.prompts import Prompt, Style

Reason = Literal[
    "rate_limit",
    "timeout",
    "connection",
    "server_error",
    "refused_request",
    "malformed",
    "empty",
    "expired",
    "canceled",
]
"""Why a request failed; the last two come of batches only."""

PLACEHOLDER_KEY = "no-key-needed"
"""What a server on the loopback gets when no key is set: the SDKs refuse to start without one."""

_MESSAGE_LIMIT = 300  # characters of an error message that are kept
_TRIED_AGAIN = ("rate_limit", "timeout", "connection", "server_error", "malformed")
_OVERLOADED = (429, 503, 529)
_CONNECTIONS_PER_CLIENT = 32  # the HTTP libraries look through all connections of a client for each request

_T = TypeVar("_T")


class Answer(NamedTuple):
    """What a provider answered, in the terms of `Completion`."""

    text: str
    finish_reason: FinishReason
    n_prompt_tokens: int
    n_tokens: int
    usage: dict[str, Any]


class RequestError(Exception):
    """A request that failed for good: why, in a word, and what the provider said."""

    def __init__(self, reason: Reason, message: str, usage: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.usage = usage or {}
        self.tries = 1
        self.again = reason in _TRIED_AGAIN
        self.overloaded = False
        self.retry_after_s: float | None = None


class Ended(NamedTuple):
    """A batch that is over: each request's answer, or why it has none, by custom id; and why others have none."""

    found: Iterator[tuple[str, Any]]
    """(custom id, the decoded body of an answer or a RequestError)"""
    others: RequestError


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
        self._model = model
        self._sdk = sdk
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

    def close(self) -> None:
        """Close the connections."""
        for client in self._clients:
            client.close()

    @abstractmethod
    def _body(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        """The request's JSON."""

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
        return todo

    def _answers(self, todo: list[Request], sampling: Sampling) -> Iterator[list[Completion]]:
        pace = Pace(self._connections)
        try:
            yield from as_they_finish(todo, lambda one: self._complete(one, sampling, pace), self._connections)
        finally:
            pace.stop()

    def _complete(self, request: Request, sampling: Sampling, pace: Pace) -> Completion | None:
        """The answer to a request, or its failure; None when it may not be made."""
        reserved = self.budget.reserve(self.name, request.prompt, sampling) if self.budget is not None else 0.0
        if reserved is None:
            return None
        started = time.perf_counter()
        body = self._body(request.prompt, sampling)
        try:
            answer, tries = self._patiently(lambda: self._read(decoded(self._post(self._client(), body))), pace)
            made = self._completion(request, sampling, answer)
        except RequestError as error:
            made, tries = self._failure(request, error), error.tries
        if self.budget is not None:
            self.budget.settle(self.name, reserved, made.usage)
        latency = {"latency_s": round(time.perf_counter() - started, 3)}
        return replace(made, usage={**made.usage, **latency, **({"tries": tries} if tries > 1 else {})})

    def _completion(self, request: Request, sampling: Sampling, answer: Answer) -> Completion:
        """Raises RequestError for an answer without text."""
        text, was_cut = cut_at(answer.text, sampling.stop)
        if not text.strip():
            what = f"the answer has no text (finish reason: {answer.finish_reason})"
            raise RequestError("empty", what, answer.usage)
        return Completion(
            id=request.id,
            text=f"{request.prompt.prefill.lstrip()}{text}",
            finish_reason="stop" if was_cut else answer.finish_reason,
            prompt=request.prompt.text,
            n_prompt_tokens=answer.n_prompt_tokens,
            n_tokens=answer.n_tokens,
            usage=answer.usage,
        )

    def _failure(self, request: Request, problem: RequestError) -> Completion:
        message = f"{problem.reason}: {clean(str(problem), self._key)}"
        return Completion(request.id, "", "error", request.prompt.text, 0, 0, error=message, usage=dict(problem.usage))

    def _patiently(self, ask: Callable[[], _T], pace: Pace) -> tuple[_T, int]:
        """What `ask` gives, and at which try. Raises RequestError when it failed for good."""
        for tries in itertools.count(1):
            problem: RequestError
            with pace.turn() as began:
                try:
                    found = ask()
                except RequestError as error:
                    problem = error
                except Exception as error:  # noqa: BLE001 - what is no request error is raised again
                    problem = self._typed(error)
                else:
                    pace.answered()
                    return found, tries
            problem.tries = tries
            if problem.overloaded:
                pace.overloaded(began, problem.retry_after_s)
            if not problem.again or tries > self._retries:
                raise problem
            pace.wait(tries, problem.retry_after_s)
        raise AssertionError

    def _typed(self, error: Exception) -> RequestError:
        """The error of an SDK as a typed failure. Raises UserError for what no later request could do better."""
        status = getattr(error, "status_code", None) if isinstance(error, self._sdk.APIStatusError) else None
        if status in (401, 403):
            raise UserError(
                f"model '{self.name}': the provider does not accept the API key (HTTP {status}); "
                f"check {self._variable} and what the key is allowed to use"
            ) from None
        if status == 402 or getattr(error, "code", None) == "insufficient_quota":
            raise UserError(
                f"model '{self.name}': the account has no credit left (HTTP {status}); "
                "add some and run the same command again"
            ) from None
        reason = error_reason(self._sdk, error)
        if reason is None:
            raise error
        said = provider_message(error)
        problem = RequestError(reason, f"HTTP {status}: {said}" if isinstance(status, int) else said)
        if status is not None:
            headers = error.response.headers  # type: ignore[attr-defined]
            problem.overloaded = status in _OVERLOADED
            problem.retry_after_s = pause = retry_after(headers)
            problem.again &= headers.get("x-should-retry") != "false"
            if problem.again and pause is not None and pause > LONGEST_PAUSE_S:
                raise UserError(
                    f"model '{self.name}': the provider asks for a pause of {pause / 60:,.0f} minutes (HTTP {status}); "
                    "run the same command again after it"
                ) from None
        return problem


def http_client(sdk: Any, connections: int, timeout_s: float) -> Any:
    """An HTTP client as the SDK makes its own, with room for `connections`, whose answers end after `timeout_s`.

    The HTTP libraries' own timeouts begin again with each byte, so that an answer that trickles in would never end.
    """
    limits = type(sdk.DEFAULT_CONNECTION_LIMITS)
    http = importlib.import_module(limits.__module__.partition(".")[0])  # httpx, or what has taken its place

    class Bounded(http.SyncByteStream):  # type: ignore[name-defined, misc]
        def __init__(self, stream: Any, deadline: float) -> None:
            self._stream, self._deadline = stream, deadline

        def __iter__(self) -> Iterator[bytes]:
            for chunk in self._stream:
                if time.monotonic() > self._deadline:
                    raise http.ReadTimeout("the answer did not end in time")
                yield chunk

        def close(self) -> None:
            self._stream.close()

    def begun(request: Any) -> None:
        seconds = request.extensions.get("timeout", {}).get("read") or timeout_s
        request.extensions["deadline"] = time.monotonic() + seconds

    def answering(response: Any) -> None:
        response.stream = Bounded(response.stream, response.request.extensions["deadline"])

    return sdk.DefaultHttpxClient(
        limits=limits(max_connections=connections, max_keepalive_connections=connections),
        timeout=timeout_s,
        event_hooks={"request": [begun], "response": [answering]},
    )


def as_they_finish(
    requests: Sequence[Request], complete: Callable[[Request], Completion | None], connections: int
) -> Iterator[list[Completion]]:
    """Run `complete` on `connections` threads and yield what is ready, in batches of whatever has arrived.

    A request for which `complete` gives None is passed over. At most 2 x `connections` requests are ahead of the
    consumer, so that stopping loses little of what was paid for. An exception of `complete` is raised here, after what
    had already finished. The threads are daemons: an interrupted run does not wait for slow answers.
    """
    waiting = iter(requests)
    take = threading.Lock()
    stop = threading.Event()
    room = threading.Semaphore(2 * connections)
    finished: queue.SimpleQueue[Completion | BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        while True:
            room.acquire()
            with take:
                request = None if stop.is_set() else next(waiting, None)
            if request is None:
                return
            try:
                finished.put(complete(request))
            except BaseException as error:  # noqa: BLE001 - carried over to the consumer's thread
                finished.put(error)
                return

    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(connections, len(requests)))]
    for worker in workers:
        worker.start()
    left = len(requests)
    try:
        while left:
            batch: list[Completion] = []
            failure: BaseException | None = None
            item = finished.get()
            while True:
                room.release()
                if isinstance(item, BaseException):
                    failure = failure or item
                else:
                    left -= 1
                    batch += [item] if item is not None else []
                try:
                    item = finished.get_nowait()
                except queue.Empty:
                    break
            if failure:
                stop.set()
            if batch:
                yield batch
            if failure:
                raise failure
    finally:
        stop.set()
        for _ in workers:
            room.release()


def error_reason(sdk: Any, error: Exception) -> Reason | None:
    """What kind of failure an SDK's exception is (both SDKs name theirs alike); None for what is no failed request."""
    status = getattr(error, "status_code", None)
    if isinstance(error, sdk.APIStatusError) and isinstance(status, int):
        known: dict[int, Reason] = {429: "rate_limit", 408: "timeout", 409: "server_error"}
        return known.get(status, "server_error" if status >= 500 else "refused_request")
    if isinstance(error, sdk.APITimeoutError):
        return "timeout"
    if isinstance(error, sdk.APIConnectionError):
        return "connection"
    if isinstance(error, (sdk.APIError, json.JSONDecodeError, UnicodeError)):  # an answer of another shape, or no text
        return "malformed"
    if type(error).__module__.split(".")[0].startswith("http"):  # httpx, whose errors pass through while a body is read
        return "timeout" if "Timeout" in type(error).__name__ else "connection"
    return None


def provider_message(error: Exception) -> str:
    """What the provider said, without the wrapping."""
    body = getattr(error, "body", None)
    inner = body.get("error", body) if isinstance(body, dict) else None
    said = inner.get("message") if isinstance(inner, dict) else None
    cause = f" ({error.__cause__})" if error.__cause__ is not None and str(error.__cause__) else ""
    return str(said) if said else f"{error}{cause}"


def clean(message: str, key: str) -> str:
    """`message` on one line, short, and without the key or anything that looks like one."""
    message = re.sub(r"\bsk-[\w*.-]{4,}", "[key]", message.replace(key, "[key]"))
    message = " ".join(message.split())
    return message if len(message) <= _MESSAGE_LIMIT else message[: _MESSAGE_LIMIT - 1] + "…"


def cut_at(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """`text` up to the first of `stops`, and whether one was there. Providers take only some stop strings."""
    ends = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    return (text[: min(ends)], True) if ends else (text, False)


def variables_of(package: str) -> tuple[str, str]:
    """The environment's variables of a provider's key and of another server's address, as its SDK names them."""
    return f"{package.upper()}_API_KEY", f"{package.upper()}_BASE_URL"


def resolve_key(given: str | None, *, variable: str, base_url: str | None, name: str) -> str:
    """The key to use: the given one, else the environment's; a placeholder for a server on the loopback.

    Raises UserError naming the variable when there is no key, or when it is not one (spaces inside).
    """
    key = (given or os.environ.get(variable, "")).strip()
    if not key and base_url and is_loopback(base_url):
        return PLACEHOLDER_KEY
    if not key:
        raise UserError(f"model '{name}': there is no API key; set the environment variable {variable}")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"model '{name}': the API key has characters that no key has; check {variable}")
    return key


def check_base_url(base_url: str | None, name: str) -> str | None:
    """`base_url` unchanged. Raises UserError when it is no HTTP address."""
    if base_url is not None and not (base_url.startswith(("http://", "https://")) and urlsplit(base_url).hostname):
        raise UserError(
            f"model '{name}': 'base_url' is '{base_url}'; write it as http://host:port/v1 or https://host/v1"
        )
    return base_url


def is_loopback(base_url: str) -> bool:
    """Whether an address is this machine's own."""
    host = urlsplit(base_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def decoded(raw: Any) -> Any:
    """The JSON of an SDK's raw response. Raises RequestError when it is none."""
    return parsed(raw.http_response.content)


def parsed(data: bytes) -> Any:
    """JSON without NaN and its like. Raises RequestError when it is none."""
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise RequestError("malformed", f"the answer is not JSON ({error})") from None


def _finite(text: str) -> float:
    """A number of an answer. NaN and the infinities are no JSON, and no row takes them."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is no finite number")
    return number


def parsed_lines(data: bytes) -> Iterator[Any]:
    """The objects of JSON lines; what is none of them is passed over."""
    for line in data.split(b"\n"):
        try:
            found = parsed(line) if line.strip() else None
        except RequestError:
            continue
        if isinstance(found, dict):
            yield found


def as_dict(value: Any) -> dict[str, Any]:
    """An object of an answer; an empty one in the place of anything else."""
    return value if isinstance(value, dict) else {}


def known_id(value: Any) -> str:
    """An id that a provider gave, which becomes a part of addresses. Raises RequestError when it is none."""
    if not isinstance(value, str) or not re.fullmatch(r"[\w-]{1,200}", value, re.ASCII):
        raise RequestError("malformed", "the answer has no id")
    return value


def answer_of_status(status: Any, message: str) -> RequestError:
    """The failure of a request of a batch, by its HTTP status."""
    if status == 429:
        return RequestError("rate_limit", message)
    is_refusal = isinstance(status, int) and 400 <= status < 500
    return RequestError("refused_request" if is_refusal else "server_error", message)


def count(usage: Any, *fields: str) -> int:
    """The sum of the token counts in `fields`; one that is missing counts nothing."""
    values = [usage.get(field) for field in fields] if isinstance(usage, dict) else []
    return sum(v for v in values if isinstance(v, int) and v > 0)
