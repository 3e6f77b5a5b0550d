"""What the API back ends share: many requests in flight at once, typed errors, and a key that is never shown.

The providers' SDKs repeat what can be repeated (429, 5xx, broken connections) and wait as `Retry-After` says; what
comes here has failed for good.
"""

from __future__ import annotations

import ipaddress
import json
import math
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from harness.models.base import Completion, FinishReason, Request, Sampling
from sami_train.errors import UserError
from sami_train.prompts import Prompt, Style

Reason = Literal["rate_limit", "timeout", "connection", "server_error", "refused_request", "malformed", "empty"]

PLACEHOLDER_KEY = "no-key-needed"
"""What a server on the loopback gets when no key is set: the SDKs refuse to start without one."""

_MESSAGE_LIMIT = 300  # characters of an error message that are kept


class Answer(NamedTuple):
    """What a provider answered, in the terms of `Completion`."""

    text: str
    finish_reason: FinishReason
    n_prompt_tokens: int
    n_tokens: int
    usage: dict[str, Any]


class RequestError(Exception):
    """A request that failed for good: why, in a word, and what the provider said."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ApiBackend:
    """A model behind an HTTP interface. A subclass opens the SDK's client and says how to `_ask` for one answer.

    Prompts are sent whole: only the provider can count its tokens, so `max_prompt_tokens` is not enforced here, and a
    prompt that is too long comes back as `refused_request`. `usage` holds the tokens as the provider counts them and
    `latency_s`, the seconds from the first try to the answer.
    """

    def __init__(
        self, name: str, style: Style, *, sdk: Any, client: Any, key: str, variable: str, connections: int
    ) -> None:
        if connections < 1:
            raise UserError(f"model '{name}': 'max_connections' is {connections}; it must be at least 1")
        self.name = name
        self.style = style
        self._sdk = sdk
        self._client = client
        self._key = key
        self._variable = variable
        self._connections = connections

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, *, done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[Completion]]:
        """Completions as they arrive, in any order. Raises UserError when the provider does not accept the key."""
        if sampling.json_schema is not None and self.style != "chat":
            raise UserError(f"model '{self.name}': JSON of a schema needs 'style: chat'; a completion has none")
        todo = [request for request in requests if request.id not in done]
        for request in todo:
            if request.prompt.style != self.style:
                raise UserError(
                    f"model '{self.name}': its style is '{self.style}', but the prompt of '{request.id}' is a "
                    f"{request.prompt.style} prompt; set the model's 'style' to match"
                )
        return as_they_finish(todo, lambda request: self._complete(request, sampling), self._connections)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _ask(self, prompt: Prompt, sampling: Sampling) -> Answer:
        raise NotImplementedError

    def _complete(self, request: Request, sampling: Sampling) -> Completion:
        started = time.perf_counter()
        problem: RequestError
        try:
            answer = self._ask(request.prompt, sampling)
            text, was_cut = cut_at(answer.text, sampling.stop)
            if not text.strip():
                raise RequestError("empty", f"the answer has no text (finish reason: {answer.finish_reason})")
            return Completion(
                id=request.id,
                text=text,
                finish_reason="stop" if was_cut else answer.finish_reason,
                prompt=request.prompt.text,
                n_prompt_tokens=answer.n_prompt_tokens,
                n_tokens=answer.n_tokens,
                usage={**answer.usage, "latency_s": round(time.perf_counter() - started, 3)},
            )
        except RequestError as error:
            problem = error
        except Exception as error:  # noqa: BLE001 - one request must not end the run; what is no request error is raised again
            problem = self._typed(error)
        message = f"{problem.reason}: {clean(str(problem), self._key)}"
        usage = {"latency_s": round(time.perf_counter() - started, 3)}
        return Completion(request.id, "", "error", request.prompt.text, 0, 0, error=message, usage=usage)

    def _typed(self, error: Exception) -> RequestError:
        """The error of an SDK as a typed failure. Raises UserError for a key that is refused."""
        status = getattr(error, "status_code", None)
        if isinstance(error, self._sdk.APIStatusError) and status in (401, 403):
            raise UserError(
                f"model '{self.name}': the provider does not accept the API key (HTTP {status}); "
                f"check {self._variable} and what the key is allowed to use"
            ) from None
        reason = error_reason(self._sdk, error)
        if reason is None:
            raise error
        said = provider_message(error)
        return RequestError(reason, f"HTTP {status}: {said}" if isinstance(status, int) else said)


def as_they_finish(
    requests: Sequence[Request], complete: Callable[[Request], Completion], connections: int
) -> Iterator[list[Completion]]:
    """Run `complete` on `connections` threads and yield what is ready, in batches of whatever has arrived.

    At most 2 x `connections` requests are ahead of the consumer, so that stopping loses little of what was paid for. An
    exception of `complete` is raised here, after what had already finished. The threads are daemons: an interrupted run
    does not wait for slow answers.
    """
    waiting = iter(requests)
    take = threading.Lock()
    stop = threading.Event()
    room = threading.Semaphore(2 * connections)
    finished: queue.SimpleQueue[Completion | BaseException] = queue.SimpleQueue()

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
                    batch.append(item)
                try:
                    item = finished.get_nowait()
                except queue.Empty:
                    break
            left -= len(batch)
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
        return {429: "rate_limit", 408: "timeout"}.get(status, "server_error" if status >= 500 else "refused_request")  # type: ignore[return-value]
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
    try:
        return raw.http_response.json(parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise RequestError("malformed", f"the answer is not JSON ({error})") from None


def _finite(text: str) -> float:
    """A number of an answer. NaN and the infinities are no JSON, and no row takes them."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is no finite number")
    return number


def count(usage: Any, *fields: str) -> int:
    """The sum of the token counts in `fields`; one that is missing counts nothing."""
    values = [usage.get(field) for field in fields] if isinstance(usage, dict) else []
    return sum(v for v in values if isinstance(v, int) and v > 0)
