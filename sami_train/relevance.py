"""Does a response depend on its query? The share of other queries under which a language model finds it less likely.

A model that follows principles and answers nothing says the same to every query: its relevance is one half, which is chance.
The scorer sees the query alone, without principles, and is another model than the one that wrote the response, which would
find its own habits likely everywhere.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from sami_train.copying import without_copied
from sami_train.data import Query
from sami_train.generation import context_length, encode_prompt, prompt_room
from sami_train.logprobs import reliable_logprobs
from sami_train.prompts import BODY, Prompt, Style

CHANCE = 0.5
OTHERS = 4
"""Other queries that a response is held against."""


def other_queries(ids: Sequence[str], query_id: str, count: int, seed: int) -> list[str]:
    """`count` queries other than `query_id`, drawn from `ids`; all of them where there are fewer."""
    rest = sorted(set(ids) - {query_id})
    return random.Random(f"relevance-{seed}-{query_id}").sample(rest, min(count, len(rest)))


def query_prompt(query: str, style: Style) -> Prompt:
    """What the scorer reads before the response: the query, and nothing else."""
    body = query.replace("\x00", "")
    return (
        Prompt("chat", (("user", BODY),), body)
        if style == "chat"
        else Prompt("completion", (("text", f"{BODY}\n\n"),), body)
    )


def responding_text(response: str, query: Query) -> str:
    """What of a response is scored: in dialogue without the stretches that it copies from its query, which anything fits."""
    return without_copied(response, query.not_to_copy)


def mean_logprobs(
    model: Any, tokenizer: Any, queries: Sequence[str], responses: Sequence[str], style: Style, max_prompt_tokens: int
) -> list[list[float] | None]:
    """For each response its mean log-probability per token, in nats, after each query; None for a response without tokens.

    Shapes: R responses, Q queries give R lists of Q. Queries are shortened to `max_prompt_tokens`, and both to the model's context:
    a response to half of it where the two do not fit.

    Raises:
        UserError: the model's log-probabilities are not finite.
    """
    context = context_length(model.config)
    ids = [list(tokenizer(text, add_special_tokens=False).input_ids) if text.strip() else [] for text in responses]
    if context is not None:
        room = max(context // 2, context - max_prompt_tokens)
        ids = [tokens[:room] for tokens in ids]
        max_prompt_tokens = prompt_room(model.config, max(map(len, ids), default=0), max_prompt_tokens)
    prompts = [encode_prompt(tokenizer, query_prompt(q, style), max_prompt_tokens).ids for q in queries]
    there = [n for n, tokens in enumerate(ids) if tokens]
    found: list[list[float] | None] = [None] * len(responses)
    if there:
        matrix = reliable_logprobs(model, prompts, [ids[n] for n in there])
        for column, n in enumerate(there):
            found[n] = [float(value) for value in matrix[:, column]]
    return found


def relevance(logprobs: Sequence[float] | None) -> float:
    """The share, in [0, 1], of the other queries under which the response is less likely than under its own, which comes first.

    Equal ones count half; a response without tokens depends on nothing and has `CHANCE`.
    """
    if logprobs is None or len(logprobs) < 2:
        return CHANCE
    own, *others = logprobs
    return sum(1.0 if own > other else 0.5 if own == other else 0.0 for other in others) / len(others)
