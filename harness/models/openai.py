"""Models behind OpenAI's interface: OpenAI itself, and servers that speak its protocol (vLLM, llama.cpp and others)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from harness.models._api import ApiBackend
from harness.models._replies import (
    Answer,
    Ended,
    RequestError,
    as_dict,
    count,
    failure,
    known_id,
    odd_shape,
    parsed_lines,
    raise_error_in,
    text_of_parts,
)
from harness.models.base import FinishReason, Sampling
from sami_train.prompts import Prompt, Style

_UPLOAD_S = 900  # for the file of a batch, up or down
_MAX_STOPS = 4  # what the interface takes; the answer is cut at the others afterwards


class OpenAIBackend(ApiBackend):
    """`style` chat asks for chat completions, `style` completion for the older completions."""

    package = "openai"
    client = "OpenAI"
    batch_requests = 50_000
    batch_bytes = 200_000_000

    optional = (
        "response_format", "reasoning_effort", "chat_template_kwargs", "top_p", "temperature", "seed", "stop",
    )  # fmt: skip
    counts = ("prompt_tokens", "completion_tokens")
    limits = ("max_tokens", "max_completion_tokens")

    @property
    def _chat_limit(self) -> str:
        """OpenAI's newer models refuse `max_tokens` in chats; other servers may know nothing else."""
        is_openai = self._base_url is None or urlsplit(self._base_url).hostname == "api.openai.com"
        return self.family.limit or ("max_completion_tokens" if is_openai else "max_tokens")

    def _full_body(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        options: dict[str, Any] = {"model": self._model, "temperature": sampling.temperature, "seed": sampling.seed}
        if sampling.top_p != 1.0:
            options["top_p"] = sampling.top_p
        if sampling.stop:
            options["stop"] = list(sampling.stop[:_MAX_STOPS])
        if self.style == "chat":
            options[self._chat_limit] = sampling.max_new_tokens
            if (wanted := sampling.reasoning) is not None and self.family.reasoning == "template":
                options["chat_template_kwargs"] = {"enable_thinking": wanted != "none"}
            elif wanted is not None and (effort := self.family.none if wanted == "none" else wanted):
                options["reasoning_effort"] = effort
            elif wanted is not None and not self.family.reasoning:
                options["reasoning_effort"] = wanted
            if sampling.json_schema is not None:
                schema = {"name": "answer", "strict": True, "schema": dict(sampling.json_schema)}
                options["response_format"] = {"type": "json_schema", "json_schema": schema}
            return {**options, "messages": prompt.chat}
        return {**options, "max_tokens": sampling.max_new_tokens, "prompt": prompt.text}

    def _post(self, client: Any, body: Mapping[str, Any]) -> Any:
        interface = client.chat.completions if self.style == "chat" else client.completions
        # The rest in the body, because versions of the SDK differ in the arguments that they have.
        named = {name: value for name, value in body.items() if name in ("model", "messages", "prompt")}
        rest = {name: value for name, value in body.items() if name not in named}
        return interface.with_raw_response.create(**named, extra_body=rest)

    def _read(self, body: Any) -> Answer:
        return read_answer(body, self.style)

    # Batches: a file of requests goes up, a file of answers and one of errors come down

    def _batch_line(self, custom_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return {"custom_id": custom_id, "method": "POST", "url": self._endpoint, "body": body}

    @property
    def _endpoint(self) -> str:
        return "/v1/chat/completions" if self.style == "chat" else "/v1/completions"

    def _batch_prepare(self, lines: Sequence[bytes]) -> Any:
        file = ("requests.jsonl", b"\n".join(lines) + b"\n", "application/jsonl")
        return known_id(self._client().files.create(file=file, purpose="batch", timeout=_UPLOAD_S).id)

    def _batch_create(self, prepared: Any, token: str) -> str:
        made = self._client().batches.create(
            input_file_id=prepared, endpoint=self._endpoint, completion_window="24h", metadata={"harness": token}
        )
        return known_id(made.id)

    def _batch_find(self, token: str, n: int, since: float) -> str | None:
        for batch in self._client().batches.list(limit=100).data:  # the latest ones
            if isinstance(batch.metadata, dict) and batch.metadata.get("harness") == token:
                return known_id(batch.id)
        return None

    def _batch_ended(self, batch: str) -> Ended | None:
        found = self._client().batches.retrieve(batch)
        problems = found.errors.data if found.errors else None
        said = problems[0].message if problems else None
        others = {
            "completed": RequestError("malformed", "the batch has no result of this request"),
            "expired": RequestError("expired", "the batch expired before its turn"),
            "cancelled": RequestError("canceled", "the batch was canceled"),
            "failed": RequestError("refused_request", f"the batch failed: {said or 'no reason given'}"),
        }.get(found.status)
        if others is None:
            return None
        code = str(problems[0].code) if problems else ""
        if found.status == "failed" and (code == "token_limit_exceeded" or "nqueued token" in str(said)):
            return Ended(iter(()), RequestError("rate_limit", str(others)), too_many=True)
        files = [known_id(file) for file in (found.output_file_id, found.error_file_id) if file]
        return Ended((_batch_result(line) for file in files for line in self._file_lines(file)), others)

    def _file_lines(self, file: str) -> Iterator[Any]:
        return parsed_lines(self._client().files.content(file, timeout=_UPLOAD_S).content)


def _batch_result(line: dict[str, Any]) -> tuple[str, Any]:
    """The custom id of a line of results, and the body of its answer or why there is none."""
    response = as_dict(line.get("response"))
    error = as_dict(line.get("error"))
    status, body = response.get("status_code"), response.get("body")
    custom_id = str(line.get("custom_id"))
    if status == 200:
        return custom_id, body
    inner = as_dict(as_dict(body).get("error")) or error
    message = str(inner.get("message") or "no reason given")
    if error.get("code") in ("batch_expired", "batch_cancelled"):
        return custom_id, RequestError("expired" if error["code"] == "batch_expired" else "canceled", message)
    return custom_id, failure(status or "server", f"HTTP {status}: {message}", inner.get("param"))


def read_answer(body: Any, style: Style) -> Answer:
    """The answer in a decoded response. Raises RequestError when it is not there or was withheld."""
    try:
        choice = body["choices"][0]
        raise_error_in(choice)
        said = choice["message"] if style == "chat" else choice
        text = said.get("content") if style == "chat" else said["text"]
        refusal, reason = said.get("refusal"), choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise odd_shape("the answer has no 'choices' with a text") from None
    thoughts = [said.get(field) for field in ("reasoning_content", "reasoning")]
    reasoning = next((thought for thought in thoughts if isinstance(thought, str)), "")
    if reason == "content_filter" or (refusal and not text):
        raise RequestError("refused_request", f"the provider withheld the answer: {refusal or reason}")
    if text is not None and not isinstance(text, str):
        text, more = text_of_parts(text)
        reasoning = reasoning or more
    finish: FinishReason = "length" if reason == "length" else "stop"
    usage = body.get("usage")
    n_prompt, n = count(usage, "prompt_tokens"), count(usage, "completion_tokens")
    return Answer(text or "", finish, n_prompt, n, reasoning)
