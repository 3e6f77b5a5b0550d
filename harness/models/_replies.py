"""What a provider sends, made safe to keep: decoded JSON, token counts, typed failures, messages without keys."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from harness.models.base import FinishReason

Reason = Literal[
    "rate_limit",
    "timeout",
    "connection",
    "server_error",
    "refused_request",
    "malformed",
    "empty",
    "truncated",
    "expired",
    "canceled",
]
"""Why a request failed; the last two come of batches only."""

_MESSAGE_LIMIT = 300  # characters of an error message that are kept
_TRIED_AGAIN = ("rate_limit", "timeout", "connection", "server_error", "malformed")
_OVERLOADED = (429, 503, 529)
_SHORTEST_KEY = 8  # characters; what is shorter is a word that a server takes for a key, and may stand in any text
_MOST = 2**53  # no count of tokens is above it, and JSON readers keep every whole number up to it


class Answer(NamedTuple):
    """What a provider answered, in the terms of `Completion`."""

    text: str
    finish_reason: FinishReason
    n_prompt_tokens: int
    n_tokens: int
    reasoning: str = ""


class RequestError(Exception):
    """A request that failed for good: why, in a word, and what the provider said."""

    def __init__(self, reason: Reason, message: str, *, status: int | None = None, field: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.status = status
        self.field = field
        """The field of the request that the provider names as the cause."""
        self.tries = 1
        self.again = reason in _TRIED_AGAIN
        self.most_tries: int | None = None
        """Tries after which it is not tried again, whatever is allowed; None: as many as are allowed."""
        self.overloaded = False
        self.retry_after_s: float | None = None
        self.may_be_paid = False
        """Whether the provider may have charged for it without telling how much."""


class Ended(NamedTuple):
    """A batch that is over: each request's answer, or why it has none, by custom id; and why others have none."""

    found: Iterator[tuple[str, Any]]
    """(custom id, the decoded body of an answer or a RequestError)"""
    others: RequestError
    too_many: bool = False
    """Whether the provider took none of it, because more is under way than the account may have."""


def failure(status: Any, message: str, field: Any = None) -> RequestError:
    """A failed request by its HTTP status, or by a code or type that stands for one."""
    text = str(status).lower()
    number = int(text) if re.fullmatch(r"[1-5]\d\d", text) else None
    known: dict[int, Reason] = {429: "rate_limit", 408: "timeout", 409: "server_error"}
    if number is not None:
        reason = known.get(number, "server_error" if number >= 500 else "refused_request")
    elif "rate_limit" in text:
        reason, number = "rate_limit", 429
    elif "timeout" in text:
        reason = "timeout"
    elif any(word in text for word in ("overloaded", "unavailable")):
        reason, number = "server_error", 503
    elif any(word in text for word in ("server", "internal", "api_error")):
        reason = "server_error"
    else:
        reason = "refused_request"
    problem = RequestError(reason, message, status=number, field=field if isinstance(field, str) else None)
    problem.overloaded = number in _OVERLOADED
    return problem


def odd_shape(message: str) -> RequestError:
    """The failure of an answer that is JSON of another shape: a server that has it once mostly has it always."""
    problem = RequestError("malformed", message)
    problem.most_tries = 2
    return problem


def raise_error_in(body: Any) -> None:
    """Raises RequestError for an object in the place of an answer that tells of an error, whatever the HTTP status was."""
    error = body.get("error") if isinstance(body, dict) else None
    if not error:
        return
    told = as_dict(error)
    said = str(told.get("message") or (error if isinstance(error, str) else "no reason given"))
    codes = [str(value) for name in ("code", "status", "type") if (value := told.get(name)) not in (None, "")]
    numbers = [code for code in codes if re.fullmatch(r"[45]\d\d", code)]
    code = (numbers or [" ".join(codes)])[0] or "server"
    raise failure(code, f"{code}: {said}" if codes else said, told.get("param"))


def error_reason(sdk: Any, error: Exception) -> Reason | None:
    """What kind of failure an SDK's exception is (both SDKs name theirs alike); None for what is no failed request."""
    status = getattr(error, "status_code", None)
    if isinstance(error, sdk.APIStatusError) and isinstance(status, int):
        return failure(status, "").reason
    if any("DecodingError" in type(one).__name__ for one in (error, error.__cause__)):
        return "malformed"
    if isinstance(error, sdk.APITimeoutError):
        return "timeout"
    if isinstance(error, sdk.APIConnectionError):
        return "connection"
    if isinstance(error, (sdk.APIError, json.JSONDecodeError, UnicodeError)):  # an answer of another shape, or no text
        return "malformed"
    if type(error).__module__.split(".")[0].startswith("http"):  # httpx, whose errors pass through while a body is read
        return "timeout" if "Timeout" in type(error).__name__ else "connection"
    return None


def was_sent(error: Exception) -> bool:
    """Whether a request without an answer had reached the server."""
    names = {type(one).__name__ for one in (error, error.__cause__)}
    return names.isdisjoint(("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"))


def provider_message(error: Exception) -> str:
    """What the provider said, without the wrapping."""
    body = getattr(error, "body", None)
    inner = body.get("error", body) if isinstance(body, dict) else None
    said = inner.get("message") if isinstance(inner, dict) else None
    cause = f" ({error.__cause__})" if error.__cause__ is not None and str(error.__cause__) else ""
    return str(said) if said else f"{error}{cause}"


def masked(text: str, key: str) -> str:
    """`text` without the key."""
    return text.replace(key, "[key]") if len(key) >= _SHORTEST_KEY else text


def clean(message: str, key: str) -> str:
    """`message` on one line, short, and without the key, anything that looks like one, or a password in an address."""
    message = re.sub(r"\bsk-[\w*.-]{4,}", "[key]", masked(message, key))
    message = " ".join(re.sub(r"://[^/@\s]{1,200}@", "://[password]@", message).split())
    return message if len(message) <= _MESSAGE_LIMIT else message[: _MESSAGE_LIMIT - 1] + "…"


def cut_at(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """`text` up to the first of `stops`, and whether one was there. Providers take only some stop strings."""
    ends = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    return (text[: min(ends)], True) if ends else (text, False)


def decoded(raw: Any) -> Any:
    """The JSON of an SDK's raw response. Raises RequestError when it is none."""
    return parsed(raw.http_response.content)


def parsed(data: bytes) -> Any:
    """JSON without NaN and its like. Raises RequestError when it is none."""
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        problem = RequestError("malformed", f"the answer is not JSON ({error})")
        problem.may_be_paid = True
        raise problem from None


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


def text_of_parts(content: Any) -> tuple[str, str]:
    """The text and the reasoning in a list of parts: those of type text, and those of other types that hold text.

    Raises RequestError when it is not a list of parts.
    """
    if not isinstance(content, list) or not all(isinstance(part, dict) and "type" in part for part in content):
        raise odd_shape(f"the answer's text is of type {type(content).__name__}")
    texts, thoughts = [], []
    for part in content:
        if part["type"] in ("text", "output_text"):
            if not isinstance(part.get("text"), str):
                raise odd_shape(f"a part of the answer's text is of type {type(part.get('text')).__name__}")
            texts.append(part["text"])
        elif part["type"] in ("thinking", "reasoning"):
            thoughts.append(_thought(part.get(part["type"], part.get("text"))))
    return "".join(texts), "".join(thoughts)


def _thought(value: Any) -> str:
    """The text of reasoning: itself, or in parts of its own."""
    if isinstance(value, list):
        return "".join(_thought(as_dict(part).get("text")) for part in value)
    return value if isinstance(value, str) else ""


# --- Token counts


def checked_usage(value: Any) -> dict[str, Any]:
    """What a row keeps of a provider's `usage`: names, whole numbers of at least 0, short words, and objects of them."""
    return _checked(value, depth=2)


def _checked(value: Any, depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, one in list(as_dict(value).items())[:50]:
        if len(name) > 60:
            continue
        if isinstance(one, dict):
            if depth and (inner := _checked(one, depth - 1)):
                found[name] = inner
        elif isinstance(one, str):
            if len(one) <= 60:
                found[name] = one
        elif isinstance(one, int | float) and 0 <= one < _MOST:
            found[name] = one
    return found


def summed(usages: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The usage of several tries: whole numbers are added, of all else the last counts."""
    total: dict[str, Any] = {}
    for usage in usages:
        for name, value in usage.items():
            before = total.get(name)
            if isinstance(value, dict):
                total[name] = summed([before if isinstance(before, dict) else {}, value])
            elif type(value) is int and type(before) is int:
                total[name] = before + value
            else:
                total[name] = value
    return total


def count(usage: Any, *fields: str) -> int:
    """The sum of the token counts in `fields`; one that is missing counts nothing."""
    values = [usage.get(field) for field in fields] if isinstance(usage, dict) else []
    return sum(v for v in values if type(v) is int and 0 < v < _MOST)
