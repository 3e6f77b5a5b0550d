"""Tells a model's reasoning from its answer, where a server gives both in one text."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import NamedTuple

from harness.models.base import Completion

_CLOSE = re.compile(r"</(?:think|thinking|thought|seed:think)\s*>|\[/THINK\]|<channel\|>", re.IGNORECASE)
_OPEN = re.compile(r"\s*(?:<(?:think|thinking|thought|seed:think)\s*>|\[THINK\]|<\|channel>thought)", re.IGNORECASE)
_HARMONY = re.compile(r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>")
_HARMONY_END = re.compile(r"<\|(?:end|return|call)\|>.*", re.DOTALL)
# The marks that the parts above are made of, and no more: they are taken off what is kept as reasoning.
_MARKS = re.compile(rf"{_OPEN.pattern}|{_CLOSE.pattern}|<\|(?:start|end|channel|message|return)\|>", re.IGNORECASE)


class Split(NamedTuple):
    """A text in its two parts; `is_closed` is false where the reasoning never ended, so that there is no answer."""

    reasoning: str
    answer: str
    is_closed: bool


def split_reasoning(text: str) -> Split:
    """What stands before the last end of a block of reasoning, and the answer after it.

    The beginning of the block may be missing, because some chat templates put it into the prompt. Of text in OpenAI's Harmony
    channels the channel `final` is the answer. A text without any such mark is all answer, word for word.
    """
    if channels := list(_HARMONY.finditer(text)):
        last = channels[-1]
        if last.group(1) != "final":
            return Split(_bare(text), "", False)
        return Split(_bare(text[: last.start()]), _HARMONY_END.sub("", text[last.end() :]).strip(), True)
    end = 0
    for mark in _CLOSE.finditer(text):
        end = mark.end()
    answer = text[end:]
    if _OPEN.match(answer):
        return Split(_bare(text), "", False)
    return Split(_bare(text[:end]), answer.lstrip(), True) if end else Split("", text, True)


def without_reasoning(made: Completion) -> Completion:
    """A completion whose text is its answer alone; one whose reasoning never ended has no text and was cut."""
    found = split_reasoning(made.text)
    if found.answer == made.text:
        return made
    reasoning = "\n\n".join(part for part in (made.reasoning, found.reasoning) if part)
    finish = made.finish_reason if found.is_closed else "length"
    return replace(made, text=found.answer, reasoning=reasoning, finish_reason=finish)


def _bare(text: str) -> str:
    return _MARKS.sub("", text).strip()
