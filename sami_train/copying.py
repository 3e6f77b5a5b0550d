"""Text that a response copies from its constitution: found, measured and taken out.

A copy of a principle says everything about the constitution and nothing about whether it is followed, so that a program
which looks for a feature finds it in the principle's own words. Copied text therefore does not count (`without_copied`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

LEAST = 4
"""Consecutive words, at least, that make a copy. Three in a row ("the end of") happen by chance."""

_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
REPEATS = 0.5
"""Share of a response's words, copied from its query, from which it repeats the query."""

_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")
"""A run of letters and digits; a Chinese or Japanese character is a word."""


def copied_spans(response: str, sources: Sequence[str], least: int = LEAST) -> list[tuple[int, int]]:
    """The stretches of `response` that copy one of `sources`, as (start, end) in characters, in order and apart.

    A copy is `least` or more consecutive words that stand consecutively in one source. Case, punctuation and line breaks
    make no difference. A stretch includes the marks that touch its words, such as quotation marks and the full stop.
    """
    known = {run for source in sources for run in _runs([word for word, _, _ in _words(source)], least)}
    words = list(_words(response))
    copied = [False] * len(words)
    for place, run in enumerate(_runs([word for word, _, _ in words], least)):
        if run in known:
            copied[place : place + least] = [True] * least
    spans: list[tuple[int, int]] = []
    for place, (_, start, end) in enumerate(words):
        if not copied[place]:
            continue
        if place and copied[place - 1]:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return [_with_marks(response, start, end) for start, end in spans]


def without_copied(response: str, sources: Sequence[str], least: int = LEAST) -> str:
    """`response` with a blank in the place of every stretch that copies one of `sources`."""
    parts, place = [], 0
    for start, end in copied_spans(response, sources, least):
        parts += [response[place:start], " "]
        place = end
    return "".join([*parts, response[place:]])


def copied_share(response: str, sources: Sequence[str], least: int = LEAST) -> float:
    """The share of the words of `response`, in [0, 1], that stand in copied stretches; 0 for a response without words."""
    words, kept = (sum(1 for _ in _words(text)) for text in (response, without_copied(response, sources, least)))
    return (words - kept) / words if words else 0.0


def tokens_of_own_words(pieces: Sequence[str], sources: Sequence[str]) -> tuple[bool, ...]:
    """Of the pieces that make up a text, which have no part in a word that stands anywhere in `sources`.

    Stricter than a copied stretch: every such word is left out, wherever it stands. Case makes no difference.
    """
    known = {word for source in sources for word, _, _ in _words(source)}
    found = [(start, end) for word, start, end in _words("".join(pieces)) if word in known]
    ends = list(itertools.accumulate(map(len, pieces)))
    places = zip([0, *ends], ends, strict=False)
    return tuple(not any(max(begin, start) < min(end, stop) for start, stop in found) for begin, end in places)


def _words(text: str) -> Iterator[tuple[str, int, int]]:
    return ((found.group().casefold(), found.start(), found.end()) for found in _WORD.finditer(text))


def _runs(words: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    return (tuple(words[place : place + length]) for place in range(len(words) - length + 1))


def _with_marks(text: str, start: int, end: int) -> tuple[int, int]:
    """The stretch and the marks that touch it."""
    while start and _is_mark(text[start - 1]):
        start -= 1
    while end < len(text) and _is_mark(text[end]):
        end += 1
    return start, end


def _is_mark(character: str) -> bool:
    return not (character.isspace() or character.isalnum())
