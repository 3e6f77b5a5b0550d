"""Models behind Anthropic's messages interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from harness.models._api import ApiBackend
from harness.models._pace import Pace
from harness.models._replies import (
    Answer,
    Ended,
    Reason,
    RequestError,
    as_dict,
    clean,
    count,
    known_id,
    odd_shape,
    parsed,
    parsed_lines,
    text_of_parts,
)
from harness.models.base import FinishReason, Sampling
from harness.models.families import thinking
from sami_train.errors import UserError
from sami_train.prompts import Prompt, Style

_CLOCKS_DIFFER_S = 120
_UPLOAD_S = 900  # for the requests of a batch, and for its results
_BATCH_ERRORS: dict[str, Reason] = {"rate_limit_error": "rate_limit", "timeout_error": "timeout"}


class AnthropicBackend(ApiBackend):
    """Chat only: the interface has no completions. It has no seed either, so equal requests may differ."""

    package = "anthropic"
    client = "Anthropic"
    batch_requests = 100_000
    batch_bytes = 256_000_000
    optional = ("output_config", "thinking", "top_p", "temperature", "stop_sequences")
    counts = ("input_tokens", "output_tokens")

    def __init__(self, name: str, model: str, style: Style, **options: Any) -> None:
        if style != "chat":
            raise UserError(f"model '{name}': Anthropic's interface has no style '{style}'; set 'style: chat'")
        super().__init__(name, model, style, **options)

    def _full_body(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        options: dict[str, Any] = {
            "model": self._model,
            "messages": [m for m in prompt.chat if m["role"] != "system"],
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
        }
        if system := "\n\n".join(m["content"] for m in prompt.chat if m["role"] == "system"):
            options["system"] = system
        # It refuses blank ones; the answer is cut at those afterwards.
        if stops := [stop for stop in sampling.stop if stop.strip()]:
            options["stop_sequences"] = stops
        if sampling.top_p != 1.0:
            options["top_p"] = sampling.top_p
        output: dict[str, Any] = {}
        if sampling.json_schema is not None:
            output["format"] = {"type": "json_schema", "schema": dict(sampling.json_schema)}
        if sampling.reasoning == "none":
            if self.family.none != "":  # where it does not reason unasked, nothing is said
                options["thinking"] = {"type": "disabled"}
        elif sampling.reasoning is not None and self.family.reasoning == "budget":
            options["thinking"] = {
                "type": "enabled",
                "budget_tokens": thinking(f"anthropic/{self._model}", sampling.reasoning),
            }
        elif sampling.reasoning is not None:
            options["thinking"], output["effort"] = {"type": "adaptive"}, sampling.reasoning
        return {**options, "output_config": output} if output else options

    def _post(self, client: Any, body: Mapping[str, Any]) -> Any:
        # The rest in the body, because versions of the SDK differ in the arguments that they have.
        named = {name: value for name, value in body.items() if name in ("model", "messages", "max_tokens")}
        rest = {name: value for name, value in body.items() if name not in named}
        return client.messages.with_raw_response.create(**named, extra_body=rest, timeout=self._timeout_s)

    def _read(self, body: Any) -> Answer:
        return read_answer(body)

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """The length of each prompt in tokens, as the provider counts them; it asks nothing for that."""
        pace = Pace(self._connections)

        def number(prompt: Prompt) -> int:
            body = self._body(prompt, Sampling(1, 1))
            wanted = {name: value for name, value in body.items() if name in ("model", "messages", "system")}
            found, _ = self._patiently(lambda: self._client().messages.count_tokens(**wanted), pace)
            return int(found.input_tokens)

        try:
            with ThreadPoolExecutor(self._connections) as pool:
                return list(pool.map(number, prompts))
        except RequestError as error:
            raise UserError(
                f"model '{self.name}': the provider does not count tokens ({clean(str(error), self._secret)}); "
                "leave --count-tokens out"
            ) from error

    # Batches

    def _batch_line(self, custom_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return {"custom_id": custom_id, "params": body}

    def _batch_prepare(self, lines: Sequence[bytes]) -> Any:
        return [parsed(line) for line in lines]

    def _batch_create(self, prepared: Any, token: str) -> str:
        return known_id(self._client().messages.batches.create(requests=prepared, timeout=_UPLOAD_S).id)

    def _batch_find(self, token: str, n: int, since: float) -> str | None:
        """By number and time, for the interface keeps no name of ours; a wrong one would have none of our results."""
        for batch in self._client().messages.batches.list(limit=100).data:  # the latest ones
            counts = batch.request_counts
            total = counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
            if total == n and batch.created_at.timestamp() >= since - _CLOCKS_DIFFER_S:
                return known_id(batch.id)
        return None

    def _batch_ended(self, batch: str) -> Ended | None:
        client = self._client()
        if client.messages.batches.retrieve(batch).processing_status != "ended":
            return None
        response = client.messages.batches.with_raw_response.results(batch, timeout=_UPLOAD_S).http_response
        lines = parsed_lines(response.read())
        return Ended(map(_batch_result, lines), RequestError("malformed", "the batch has no result of this request"))


def _batch_result(line: dict[str, Any]) -> tuple[str, Any]:
    """The custom id of a line of results, and the message or why there is none."""
    result = as_dict(line.get("result"))
    custom_id, kind = str(line.get("custom_id")), result.get("type")
    if kind == "succeeded":
        return custom_id, result.get("message")
    if kind in ("expired", "canceled"):
        return custom_id, RequestError(kind, f"the request {'expired' if kind == 'expired' else 'was canceled'}")
    outer = as_dict(result.get("error"))
    said = as_dict(outer.get("error")) or outer
    error, message = str(said.get("type")), str(said.get("message") or "no reason given")
    refused = error in ("invalid_request_error", "not_found_error", "permission_error", "request_too_large")
    reason = "refused_request" if refused else _BATCH_ERRORS.get(error, "server_error")
    return custom_id, RequestError(reason, f"{error}: {message}", status=400 if refused else None)


def read_answer(body: Any) -> Answer:
    """The answer in a decoded response. Raises RequestError when it is not there or was withheld."""
    if not isinstance(body, dict) or "content" not in body:
        raise odd_shape("the answer has no 'content' with a text")
    text, reasoning = text_of_parts(body["content"])
    reason, usage = body.get("stop_reason"), body.get("usage")
    if reason == "refusal":
        raise RequestError("refused_request", "the provider withheld the answer: refusal")
    finish: FinishReason = "length" if reason in ("max_tokens", "model_context_window_exceeded") else "stop"
    n_prompt = count(usage, "input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    return Answer(text, finish, n_prompt, count(usage, "output_tokens"), reasoning)
