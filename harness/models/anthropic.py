"""Models behind Anthropic's messages interface."""

from __future__ import annotations

import os
from typing import Any

from harness.models._api import Answer, ApiBackend, RequestError, check_base_url, count, decoded, resolve_key
from harness.models.base import FinishReason, Sampling
from sami_train.errors import MissingPackage, UserError
from sami_train.prompts import Prompt, Style

KEY_VARIABLE = "ANTHROPIC_API_KEY"


class AnthropicBackend(ApiBackend):
    """Chat only: the interface has no completions. It has no seed either, so equal requests may differ."""

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
        if style != "chat":
            raise UserError(f"model '{name}': Anthropic's interface has no style '{style}'; set 'style: chat'")
        try:
            import anthropic
        except ImportError:
            raise MissingPackage("anthropic", extra="anthropic") from None
        base_url = check_base_url(base_url or os.environ.get("ANTHROPIC_BASE_URL") or None, name)
        key = resolve_key(api_key, variable=KEY_VARIABLE, base_url=base_url, name=name)
        client = anthropic.Anthropic(api_key=key, base_url=base_url, max_retries=max_retries, timeout=timeout_s)
        super().__init__(
            name, style, sdk=anthropic, client=client, key=key, variable=KEY_VARIABLE, connections=max_connections
        )
        self._model = model

    def _ask(self, prompt: Prompt, sampling: Sampling) -> Answer:
        system = "\n\n".join(m["content"] for m in prompt.chat if m["role"] == "system")
        options: dict[str, Any] = {"system": system} if system else {}
        # It refuses blank ones; the answer is cut at those afterwards.
        if stops := [stop for stop in sampling.stop if stop.strip()]:
            options["stop_sequences"] = stops
        # In the body, because newer SDKs have no such arguments and older ones take it there, too.
        extra: dict[str, Any] = {"temperature": sampling.temperature}
        if sampling.top_p != 1.0:
            extra["top_p"] = sampling.top_p
        if sampling.json_schema is not None:
            extra["output_config"] = {"format": {"type": "json_schema", "schema": dict(sampling.json_schema)}}
        raw = self._client.messages.with_raw_response.create(
            model=self._model,
            messages=[m for m in prompt.chat if m["role"] != "system"],
            max_tokens=sampling.max_new_tokens,
            extra_body=extra,
            **options,
        )
        return read_answer(decoded(raw))


def read_answer(body: Any) -> Answer:
    """The answer in a decoded response. Raises RequestError when it is not there or was withheld."""
    try:
        text = "".join(block["text"] for block in body["content"] if block["type"] == "text")
        reason = body.get("stop_reason")
    except (KeyError, TypeError, AttributeError):
        raise RequestError("malformed", "the answer has no 'content' with a text") from None
    if reason == "refusal":
        raise RequestError("refused_request", "the provider withheld the answer: refusal")
    usage = body.get("usage")
    finish: FinishReason = "length" if reason in ("max_tokens", "model_context_window_exceeded") else "stop"
    return Answer(
        text,
        finish,
        count(usage, "input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"),
        count(usage, "output_tokens"),
        usage if isinstance(usage, dict) else {},
    )
