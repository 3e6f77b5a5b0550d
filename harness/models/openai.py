"""Models behind OpenAI's interface: OpenAI itself, and servers that speak its protocol (vLLM, llama.cpp and others)."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from harness.models._api import Answer, ApiBackend, RequestError, check_base_url, count, decoded, resolve_key
from harness.models.base import FinishReason, Sampling
from sami_train.errors import MissingPackage
from sami_train.prompts import Prompt, Style

KEY_VARIABLE = "OPENAI_API_KEY"
_MAX_STOPS = 4  # what the interface takes; the answer is cut at the others afterwards


class OpenAIBackend(ApiBackend):
    """`style` chat asks for chat completions, `style` completion for the older completions."""

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
            import openai
        except ImportError:
            raise MissingPackage("openai", extra="openai") from None
        base_url = check_base_url(base_url or os.environ.get("OPENAI_BASE_URL") or None, name)
        key = resolve_key(api_key, variable=KEY_VARIABLE, base_url=base_url, name=name)
        client = openai.OpenAI(api_key=key, base_url=base_url, max_retries=max_retries, timeout=timeout_s)
        super().__init__(
            name, style, sdk=openai, client=client, key=key, variable=KEY_VARIABLE, connections=max_connections
        )
        self._model = model
        # OpenAI's newer models refuse `max_tokens` in chats; other servers may know nothing else.
        is_openai = base_url is None or urlsplit(base_url).hostname == "api.openai.com"
        self._chat_limit = "max_completion_tokens" if is_openai else "max_tokens"

    def _ask(self, prompt: Prompt, sampling: Sampling) -> Answer:
        options: dict[str, Any] = {"model": self._model, "temperature": sampling.temperature, "seed": sampling.seed}
        if sampling.top_p != 1.0:
            options["top_p"] = sampling.top_p
        if sampling.stop:
            options["stop"] = list(sampling.stop[:_MAX_STOPS])
        if self.style == "chat":
            options[self._chat_limit] = sampling.max_new_tokens
            if sampling.json_schema is not None:
                schema = {"name": "answer", "strict": True, "schema": dict(sampling.json_schema)}
                options["response_format"] = {"type": "json_schema", "json_schema": schema}
            raw = self._client.chat.completions.with_raw_response.create(messages=prompt.chat, **options)
        else:
            options["max_tokens"] = sampling.max_new_tokens
            raw = self._client.completions.with_raw_response.create(prompt=prompt.text, **options)
        return read_answer(decoded(raw), self.style)


def read_answer(body: Any, style: Style) -> Answer:
    """The answer in a decoded response. Raises RequestError when it is not there or was withheld."""
    try:
        choice = body["choices"][0]
        said = choice["message"] if style == "chat" else choice
        text = said["content" if style == "chat" else "text"]
        refusal = said.get("refusal")
        reason = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise RequestError("malformed", "the answer has no 'choices' with a text") from None
    if reason == "content_filter" or (refusal and not text):
        raise RequestError("refused_request", f"the provider withheld the answer: {refusal or reason}")
    if text is not None and not isinstance(text, str):
        raise RequestError("malformed", f"the answer's text is of type {type(text).__name__}")
    usage = body.get("usage")
    finish: FinishReason = "length" if reason == "length" else "stop"
    return Answer(
        text or "",
        finish,
        count(usage, "prompt_tokens"),
        count(usage, "completion_tokens"),
        usage if isinstance(usage, dict) else {},
    )
