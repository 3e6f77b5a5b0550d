"""What a model back end is: the few calls that the rest of the harness makes of any model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from sami_train.prompts import Prompt

FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True)
class Asked:
    """What a prompt was made from, for a back end that looks an answer up instead of writing one."""

    query_id: str
    query: str
    principles: tuple[str, ...]
    """The constitution's sentences, in the order the prompt shows them."""
    epoch: int
    """Number of the sample, from 0."""


@dataclass(frozen=True)
class Request:
    """One thing to generate. `id` comes back with the completion."""

    id: str
    prompt: Prompt
    asked: Asked | None = None
    """None for what is no answer to a run's query: a judge's prompt, a principle writer's."""

    @property
    def sample(self) -> int:
        """Number of the sample, from 0. An API model samples each with a seed of its own."""
        return self.asked.epoch if self.asked is not None else 0


@dataclass(frozen=True)
class Sampling:
    """How to generate. `max_new_tokens` and `max_prompt_tokens` in tokens; temperature 0 is greedy.

    With `json_schema` the answer's text is JSON of that schema (API models in chat style only). The providers want an
    object whose properties are all in `required`, and `additionalProperties` false.

    The last three are of API models: `omit` names fields that a request leaves out (temperature, top_p, seed, stop),
    `reasoning` is none, low, medium, high or a number of tokens (None: as the model does by itself), and `extra` are
    further fields of the request's JSON; a field whose value there is None is left out.
    """

    max_new_tokens: int
    max_prompt_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    json_schema: Mapping[str, Any] | None = field(default=None, hash=False)
    omit: tuple[str, ...] = ()
    reasoning: str | int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def settings(self) -> dict[str, Any]:
        """What enters fingerprints: every field, those from `json_schema` on only where they are set."""
        optional = ("json_schema", "omit", "reasoning", "extra")
        return {
            name: value for name, value in vars(self).items() if name not in optional or value not in (None, (), {})
        }


def most_tokens(prompt: Prompt, sampling: Sampling) -> tuple[int, int]:
    """The most tokens that a request can take, of input and of output: a token for each byte of the prompt.

    No tokenizer of bytes or of characters makes more tokens than there are bytes; 16 a message and 64 more are for what
    the provider puts around them, and a schema counts twice with 512 for its explanation.
    """
    texts = [message["content"] for message in prompt.chat] if prompt.style == "chat" else [prompt.text]
    size = 64 + sum(16 + len(text.encode("utf-8", "replace")) for text in texts)
    if sampling.json_schema is not None:
        size += 512 + 2 * len(str(dict(sampling.json_schema)).encode())
    return size, sampling.max_new_tokens


@dataclass(frozen=True)
class Completion:
    """What came back for a request: text without the stop string, or an error (never both).

    `truncated` says that the prompt's body was shortened to fit `max_prompt_tokens`; `prompt` is the text as sent.
    `reasoning` is what the model thought before its answer; it is no part of `text`.
    """

    id: str
    text: str
    finish_reason: FinishReason
    prompt: str
    n_prompt_tokens: int
    n_tokens: int
    truncated: bool = False
    error: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    reasoning: str = ""


class Budget(Protocol):
    """What may still be spent. Used from many threads."""

    def reserve(self, model: str, prompt: Prompt, sampling: Sampling, *, batch: bool = False) -> float | None:
        """Put aside the most that a request can cost, in dollars; None when it may not be made.

        Waits for answers under way, which may cost less than was put aside for them; not for those of batches.
        """
        ...

    def commit(self, model: str, prompt: Prompt, sampling: Sampling) -> float:
        """Put aside the most that a request of a batch can cost that was made already."""
        ...

    def settle(self, model: str, reserved: float, usage: Mapping[str, Any]) -> None:
        """Give back what was put aside, and count what the request did cost."""
        ...


class Backend(Protocol):
    """A model that is open for use."""

    name: str

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, *, done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[Completion]]:
        """Completions, a batch at a time. Batches are composed from all `requests`; one whose ids are all in `done` is skipped.

        A request that fails for good comes back as a Completion with `error`; it never raises for a single request.
        """
        ...

    def close(self) -> None:
        """Free what the model holds."""
        ...


@runtime_checkable
class LocalBackend(Backend, Protocol):
    """A back end whose probabilities can be read, and whose tokens can be counted."""

    def choice_probabilities(self, prompts: Sequence[Prompt], choices: tuple[str, ...]) -> list[tuple[float, ...]]:
        """For each prompt, the probability of each choice as the continuation, normalised over the choices.

        A prompt that is too long for the model gets zeros.
        """
        ...

    def prompt_room(self, max_new_tokens: int) -> int:
        """Tokens that a prompt may have, so that it and a response of `max_new_tokens` fit the model's context."""
        ...

    def fits(self, prompt: Prompt, max_tokens: int) -> bool:
        """Whether a prompt has at most `max_tokens` tokens once its body is shortened."""
        ...
