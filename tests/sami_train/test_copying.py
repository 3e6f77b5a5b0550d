"""Copied text, against an oracle that tries every window of words."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sami_train.constitutions import load_principle_set
from sami_train.copying import LEAST, copied_share, copied_spans, tokens_of_own_words, without_copied

SOURCE = "Quote what somebody said and put quotation marks around it."


def is_cjk(character: str) -> bool:
    blocks = ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF))
    return any(first <= ord(character) <= last for first, last in blocks)


def words(text: str) -> list[tuple[str, int, int]]:
    """The words of a text with their places, character by character."""
    found: list[tuple[str, int, int]] = []
    joins = False
    for place, character in enumerate(text):
        if not character.isalnum() and not is_cjk(character):
            joins = False
        elif joins and not is_cjk(character):
            found[-1] = (found[-1][0] + character, found[-1][1], place + 1)
        else:
            found.append((character, place, place + 1))
            joins = not is_cjk(character)
    return [(word.casefold(), start, end) for word, start, end in found]


def naive_spans(response: str, sources: list[str], least: int) -> list[tuple[int, int]]:
    """Every window of words, of every length, looked for in every place of every source."""
    said = words(response)
    copied: set[int] = set()
    for i in range(len(said)):
        for j in range(i + least, len(said) + 1):
            window = [word for word, _, _ in said[i:j]]
            for source in sources:
                known = [word for word, _, _ in words(source)]
                if any(known[k : k + len(window)] == window for k in range(len(known))):
                    copied |= set(range(i, j))
    spans = []
    for place in sorted(copied):
        if place - 1 not in copied:
            start = end = place
        end = place
        if place + 1 not in copied:
            first, last = said[start][1], said[end][2]
            while first and not response[first - 1].isalnum() and not response[first - 1].isspace():
                first -= 1
            while last < len(response) and not response[last].isalnum() and not response[last].isspace():
                last += 1
            spans.append((first, last))
    return spans


pieces = st.sampled_from(
    ["a", "B", "b", "c", "don't", "7", "猫", "が", "한국", "ß", "_", " ", "  ", "\n", ", ", '"', ".", "(", "!"]
)
texts = st.lists(pieces, max_size=40).map("".join)
spaced = st.lists(st.sampled_from(["a", "b", "A", "c."]), max_size=25).map(" ".join)


@given(texts | spaced, st.lists(texts | spaced, max_size=3), st.integers(1, 5))
def test_the_spans_are_those_of_every_window(response: str, sources: list[str], least: int) -> None:
    spans = copied_spans(response, sources, least)
    assert spans == naive_spans(response, sources, least)
    rest, place = "", 0
    for start, end in spans:
        assert place <= start < end, "in order and apart"
        rest += response[place:start] + " "
        place = end
    assert without_copied(response, sources, least) == rest + response[place:]
    inside = [any(a <= start < b for a, b in spans) for _, start, _ in words(response)]
    assert copied_share(response, sources, least) == pytest.approx(sum(inside) / len(inside) if inside else 0)


@given(st.text(max_size=80))
def test_a_text_copies_itself_whole_and_nothing_without_sources(text: str) -> None:
    long_enough = len(words(text)) >= LEAST
    assert copied_share(text, [text]) == (1 if long_enough else 0)
    assert copied_spans(text, []) == []
    assert without_copied(text, [""]) == text


@pytest.mark.parametrize(
    "response",
    [
        SOURCE,
        SOURCE.upper(),
        "quote, what somebody: said! And (put) quotation marks... around it",
        "Quote what\nsomebody said\n\nand put quotation\tmarks around it.",
        f'"{SOURCE}"',
        f"  «{SOURCE}» ",
    ],
)
def test_case_marks_and_line_breaks_make_no_difference(response: str) -> None:
    assert copied_share(response, [SOURCE]) == 1
    assert without_copied(response, [SOURCE]).strip() == ""


def test_the_marks_that_touch_a_copy_go_with_it_and_others_stay() -> None:
    response = 'He said: "Put quotation marks around it!" (so they say)'
    assert without_copied(response, [SOURCE]) == "He said:   (so they say)"
    assert without_copied('He said: " put quotation marks around it " twice', [SOURCE]) == 'He said: "   " twice'


def test_three_words_are_no_copy_and_four_are() -> None:
    assert copied_spans("I said and put down", [SOURCE]) == []
    response = "He said and put quotation on it"
    assert [response[a:b] for a, b in copied_spans(response, [SOURCE])] == ["said and put quotation"]


def test_a_copy_does_not_reach_over_two_sources() -> None:
    assert copied_spans("one two three four", ["one two", "three four"]) == []
    assert copied_spans("one two three four", ["one two three four five"]) == [(0, 18)]


def test_words_are_whole_and_characters_of_chinese_and_japanese_are_words() -> None:
    assert copied_spans("a cat sat on them", ["a cat sat on the mat"]) == [(0, 12)]
    assert copied_spans("categories of things here", ["cat of things here"]) == []
    assert copied_spans("彼は猫が好きです。", ["犬は猫が好きだ。"]) == [(1, 6)]


def test_no_principle_of_the_shipped_sets_is_left_when_it_is_copied() -> None:
    for name in ("verifiable", "diverse", "dialogue", "summarization"):
        for principle in load_principle_set(name).principles:
            for side in (principle.definition, principle.antithesis):
                if len(words(side)) >= LEAST:
                    assert (
                        without_copied(f"As asked: {side}", [principle.definition, principle.antithesis])
                        == "As asked:  "
                    )


def calls(text: str) -> int:
    """Functions, of Python and of C, that are called to take the copies out of a text and to count them."""
    count = 0

    def counted(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        without_copied(text, [SOURCE])
        copied_share(text, [SOURCE])
    finally:
        sys.setprofile(None)
    return count


def test_work_grows_with_the_text_and_not_with_its_square() -> None:
    """A million characters in which every second stretch is a copy: four times the text, four times the calls."""
    unit = f"{SOURCE} And then he left. "
    n = 1_000_000 // len(unit)
    short, long = calls(unit * (n // 4)), calls(unit * n)
    assert long < 4.1 * short
    assert len(copied_spans(unit * n, [SOURCE])) == n


# --- Words


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["The", " best", " fo", "od", " is", " pro", "se", "."], [0, 1, 0, 0, 1, 0, 0, 1]),
        (["THE", "  food"], [0, 0]),
        ([" foods", " therefore"], [1, 1]),
        (["the", "ory"], [1, 1]),
        (["pros", "e, the", " end"], [0, 0, 1]),
        ([], []),
        ([""], [1]),
    ],
)
def test_pieces_with_a_part_in_a_word_of_a_source(pieces: list[str], expected: list[int]) -> None:
    assert tokens_of_own_words(pieces, ["the Food?", "running prose"]) == tuple(map(bool, expected))


@given(
    st.lists(st.text(alphabet="ab ,", max_size=4), max_size=12),
    st.lists(st.sampled_from(["a", "ab", "bb"]), max_size=2),
)
@example(["a", "", "b"], ["ab"])
def test_how_a_text_is_cut_into_pieces_makes_no_difference_to_its_words(pieces: list[str], sources: list[str]) -> None:
    """Character by character: a piece counts where none of its characters is part of such a word."""
    text = "".join(pieces)
    single = tokens_of_own_words(list(text), sources)
    place = 0
    for piece, own in zip(pieces, tokens_of_own_words(pieces, sources), strict=True):
        assert own == all(single[place : place + len(piece)])
        place += len(piece)
