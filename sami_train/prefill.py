"""Responses that go on from a beginning which their prompt ended with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sami_train.errors import UserError
from sami_train.generation import Encoded, Generated, with_beginning


def with_prefill(tokenizer: Any, generated: Generated, prefill: str) -> Generated:
    """A response with what its prompt ended with (`prefill`) in front, as text and as tokens.

    One in which nothing was generated stays empty.

    Raises:
        UserError: see `prefill_ids`.
    """
    if not prefill or not generated.text:
        return generated
    ids = prefill_ids(tokenizer, generated.prompt, prefill)
    begun = str(tokenizer.decode(ids, skip_special_tokens=True))
    whole = str(tokenizer.decode([*ids, *generated.ids], skip_special_tokens=True))
    gap = whole[len(begun) : len(whole) - len(whole[len(begun) :].lstrip())]
    return replace(generated, text=f"{begun}{gap}{generated.text}".strip(), ids=[*ids, *generated.ids])


def prefill_ids(tokenizer: Any, prompt: Encoded, prefill: str) -> list[int]:
    """The tokens of a prompt that its `prefill` is made of: its last ones.

    Raises:
        UserError: a token reaches from the prompt into the prefill, so that a training prompt would not end where it begins.
    """
    before = tokenizer(prompt.text.removesuffix(prefill), add_special_tokens=False).input_ids
    ids = with_beginning(tokenizer, list(before))
    if prompt.ids[: len(ids)] != ids:
        raise UserError(
            f"the template's prefill {prefill!r} and the text before it share a token of this model; begin the prefill with a "
            "space, or leave it out"
        )
    return prompt.ids[len(ids) :]
