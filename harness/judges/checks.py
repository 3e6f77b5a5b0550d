"""Checkers: programs that score how far a text shows a surface feature, from 0 (not at all) to 1 (fully).

A principle names its checker in YAML (``check: {name: word_count, at_most: 25}``). Score 1 is the principle's
definition, 0 its antithesis, 0.5 neither. Every checker reads the text alone, in linear time, and is safe on any text.

A text can show the absence of a feature by saying nothing. So one rule holds for every checker, those of other packages
included: a text without any word (empty, blank, only marks or emoji) scores 0.5, and below `FULL_WEIGHT_WORDS` words
the score is drawn towards 0.5 in proportion.

Another package adds a checker through the entry-point group ``harness.checks``: the name is the check's, the value a
function ``(text: str, **options) -> float``. The word lists of the shipped checkers are English.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, wraps
from itertools import islice
from pathlib import Path
from typing import Concatenate, ParamSpec

from sami_train.constitutions import Check
from sami_train.errors import UserError, nearest
from sami_train.yamlfile import as_written

Checker = Callable[..., float]
"""``(text, **options) -> float`` in [0, 1]."""

ENTRY_POINT_GROUP = "harness.checks"
FULL_WEIGHT_WORDS = 3
"""From this many words on a score counts in full; a text of none scores 0.5 whatever the checker."""

_SHIPPED: dict[str, Checker] = {}
_P = ParamSpec("_P")


def score(check: Check, text: str) -> float:
    """How far `text` follows the check: 1 like the definition, 0 like the antithesis.

    Raises:
        UserError: the check's name or one of its options is unknown or out of range.
    """
    checker = _with_known_options(check)
    try:
        return checker(text, **check.options)
    except (TypeError, ValueError) as error:
        values = [item for value in check.options.values() for item in (value if isinstance(value, list) else [value])]
        quotes = "; put words such as yes, no and on into quotes" if any(isinstance(v, bool) for v in values) else ""
        raise UserError(
            f"check '{check.name}' cannot run with the options {as_written(check.options)}: {error}{quotes}"
        ) from error


def weight(text: str) -> float:
    """How far a text's score counts, in [0, 1]: 0 without any word, 1 from `FULL_WEIGHT_WORDS` words on."""
    return sum(1 for _ in islice(_words(text), FULL_WEIGHT_WORDS)) / FULL_WEIGHT_WORDS


def check(name: str) -> Checker:
    """The checker of that name, shipped or from another package. Raises UserError with the nearest name."""
    if name in _SHIPPED and name not in _entry_points():
        return _SHIPPED[name]
    if name in _entry_points():
        return _load(name, tuple(sys.path))
    raise UserError(f"there is no check named '{name}'; {nearest(name, list_checks())}")


def list_checks() -> list[str]:
    """The names of all checkers, sorted; those of other packages are named without being loaded."""
    return sorted({*_SHIPPED, *_entry_points()})


def validate_check(check: Check) -> None:
    """Raise UserError unless the check exists, takes exactly these options, and they have usable values."""
    score(check, "Three plain words, and 1 more for the trial.")


def _with_known_options(spec: Check) -> Checker:
    """The checker, after its option names are found to fit its signature."""
    checker = check(spec.name)
    known, required, takes_any = _options_of(checker)
    for option in spec.options:
        if option not in known and not takes_any:
            hint = nearest(option, known) if known else "it takes no options"
            raise UserError(f"check '{spec.name}' has no option '{option}'; {hint}")
    missing = [option for option in required if option not in spec.options]
    if missing:
        raise UserError(f"check '{spec.name}' needs the option '{missing[0]}'; add it next to the check's name")
    return checker


@lru_cache(maxsize=256)
def _options_of(checker: Checker) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """Names of all options, names of those without a default, and whether any other name is taken too."""
    parameters = list(inspect.signature(checker).parameters.values())[1:]
    named = [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = tuple(p.name for p in named if p.default is p.empty)
    return tuple(p.name for p in named), required, any(p.kind is p.VAR_KEYWORD for p in parameters)


# --- checkers of other packages


def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return _find_entry_points(tuple(sys.path))


@lru_cache(maxsize=8)
def _find_entry_points(search_path: tuple[str, ...]) -> dict[str, importlib.metadata.EntryPoint]:
    """The checkers that installed packages offer, by name. Cached per sys.path, since this reads the disk."""
    found: dict[str, importlib.metadata.EntryPoint] = {}
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        if entry.name in _SHIPPED:
            raise UserError(
                f"the package '{_package(entry)}' offers a check named '{entry.name}', which is a name of a shipped "
                "check; rename it there or uninstall the package"
            )
        if entry.name in found:
            raise UserError(
                f"the packages '{_package(found[entry.name])}' and '{_package(entry)}' both offer a check named "
                f"'{entry.name}'; uninstall one of them"
            )
        found[entry.name] = entry
    return found


def code_of(name: str) -> str | None:
    """The hash of the code behind another package's check: its version, and the files of its top-level module.

    None for a shipped check. The version alone does not change with a package that is edited where it is installed.
    """
    return _code_hash(name, tuple(sys.path)) if name in _entry_points() else None


@lru_cache(maxsize=256)
def _code_hash(name: str, search_path: tuple[str, ...]) -> str:
    entry = _find_entry_points(search_path)[name]
    digest = hashlib.sha256(f"{entry.value}\0{entry.dist.version if entry.dist else ''}".encode())
    spec = importlib.util.find_spec(entry.module.partition(".")[0])
    roots = [Path(place) for place in (spec.submodule_search_locations or [spec.origin or ""])] if spec else []
    for root in roots:
        files = (
            sorted(f for f in root.rglob("*") if f.is_file() and "__pycache__" not in f.parts)
            if root.is_dir()
            else [root]
        )
        for file in files:
            digest.update(f"\0{file.relative_to(root)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:32]


@lru_cache(maxsize=256)
def _load(name: str, search_path: tuple[str, ...]) -> Checker:
    """Import a checker of another package, and guard it so that its faults are reported under the package's name."""
    entry = _find_entry_points(search_path)[name]
    where = f"the check '{name}' of the package '{_package(entry)}'"
    try:
        function = entry.load()
        parameters = inspect.signature(function).parameters
    except Exception as error:  # whatever a foreign module raises at import is its fault, and said so
        raise UserError(f"{where} cannot be loaded ({_said(error)}); repair or uninstall the package") from error
    if not parameters:
        raise UserError(f"{where} takes no argument; it must be a function (text, **options) -> float")

    @wraps(function)
    def guarded(text: str, /, **options: object) -> float:
        try:
            value = float(function(text, **options))
        except Exception as error:
            raise UserError(f"{where} failed with the options {options} ({_said(error)})") from error
        if not 0.0 <= value <= 1.0:  # also refuses nan
            raise UserError(f"{where} gave the score {value}; a score lies between 0 and 1")
        return value

    return _grounded(guarded)


def _package(entry: importlib.metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.module


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


# --- the shipped checkers


def _grounded(function: Callable[Concatenate[str, _P], float]) -> Callable[Concatenate[str, _P], float]:
    """The rule of the module's docstring: hardly any words, hardly any evidence for either side."""

    @wraps(function)
    def grounded(text: str, /, *args: _P.args, **options: _P.kwargs) -> float:
        return 0.5 + weight(text) * (function(text, *args, **options) - 0.5)

    return grounded


def _shipped(function: Callable[Concatenate[str, _P], float]) -> Callable[Concatenate[str, _P], float]:
    """Register a checker under its function's name, with the rule for texts of few words."""
    grounded = _grounded(function)
    _SHIPPED[function.__name__] = grounded
    return grounded


@_shipped
def ends_with_question(text: str) -> float:
    """1 if the last sentence is a question, 0.5 if only an earlier one is, 0 if none is."""
    marks = [mark for _, mark in _sentences(text)]
    if not marks:
        return 0.0
    if "?" in marks[-1]:
        return 1.0
    return 0.5 if any("?" in mark for mark in marks) else 0.0


@_shipped
def exclamations(text: str) -> float:
    """The share of finished sentences that end in an exclamation mark; plain questions are left out of the count."""
    marks = [mark for _, mark in _sentences(text) if mark]
    counted = [mark for mark in marks if "!" in mark or "?" not in mark]
    return sum("!" in mark for mark in counted) / len(counted) if counted else 0.0


@_shipped
def opens_with(text: str, *, phrases: str | Sequence[str], within: int = 12) -> float:
    """1 if the text opens with one of the phrases, 0.5 if one begins among the first `within` words, else 0."""
    pattern = _phrase_pattern(_as_phrases(phrases))
    _above_zero("within", within)
    opening = _folded(text[:OPENING_CHARACTERS])
    found = pattern.search(opening)
    if found is None:
        return 0.0
    words_before = sum(1 for _ in _words(opening[: found.start()]))
    if words_before == 0:
        return 1.0
    return 0.5 if words_before < within else 0.0


@_shipped
def word_count(text: str, *, at_most: float, zero_at: float) -> float:
    """1 up to `at_most` words, falling evenly to 0 at `zero_at` words. A word of over 20 letters counts as several."""
    _above_zero("at_most", at_most)
    _above_zero("zero_at", zero_at)
    if zero_at <= at_most:
        raise ValueError(f"zero_at ({zero_at}) must be above at_most ({at_most})")
    count = sum(math.ceil(len(word) / LONGEST_WORD) for word in _words(text))
    return _clamped((zero_at - count) / (zero_at - at_most))


@_shipped
def numbered_list(text: str, *, full_at: float = 3) -> float:
    """The number of lines that start with a number and a stop or bracket, up to `full_at` such lines."""
    return _ramp(sum(1 for line in _lines(text) if _NUMBERED.match(line) and _has_word(_unmarked(line))), full_at)


@_shipped
def bullet_points(text: str, *, full_at: float = 3) -> float:
    """The number of lines that start with a dash, star or bullet and then say something, up to `full_at` such lines."""
    return _ramp(sum(1 for line in _lines(text) if _BULLET.match(line) and _has_word(line)), full_at)


@_shipped
def first_person(text: str, *, full_at: float = 2) -> float:
    """How often I, me, my, mine or myself stands in the text, up to `full_at` times."""
    return _ramp(_count(_FIRST_PERSON, text), full_at)


@_shipped
def second_person(text: str, *, full_at: float = 2) -> float:
    """How often you, your, yours, yourself or yourselves stands in the text, up to `full_at` times."""
    return _ramp(_count(_SECOND_PERSON, text), full_at)


@_shipped
def contains_phrase(text: str, *, phrases: str | Sequence[str], full_at: float = 1) -> float:
    """How often one of the phrases stands in the text as whole words, in any case, up to `full_at` times."""
    return _ramp(_count(_phrase_pattern(_as_phrases(phrases)), _folded(text)), full_at)


@_shipped
def digits(text: str, *, full_at: float = 1) -> float:
    """How many numbers are written in digits, up to `full_at`. The numbering of a list does not count, nor does B12."""
    return _ramp(sum(_count(_NUMBER, _unmarked(line)) for line in _lines(text)), full_at)


@_shipped
def lower_case(text: str, *, zero_at: float = 0.05) -> float:
    """1 if no word has a capital, falling to 0 where the share `zero_at` of words has one; 0.5 in a caseless script."""
    _above_zero("zero_at", zero_at)
    cased = [word for word in _words(text) if word.lower() != word.upper()]
    if not cased:
        return 0.5
    return _clamped(1 - sum(word != word.lower() for word in cased) / len(cased) / zero_at)


@_shipped
def title_line(text: str, *, at_most: float = 10) -> float:
    """1 if a heading, or a line of up to `at_most` words without a closing mark, stands above more text.

    0.5 if that line closes in a colon, an exclamation or a question mark. A list item is no title.
    """
    _above_zero("at_most", at_most)
    lines = list(islice((line for line in _lines(text) if _has_word(line)), 2))
    if len(lines) < 2 or sum(1 for _ in _words(lines[0])) > at_most:
        return 0.0
    first = lines[0].rstrip()
    if first.startswith("#") or (first.startswith("**") and first.endswith("**")):
        return 1.0
    if _NUMBERED.match(first) or _BULLET.match(first):
        return 0.0
    last = first.rstrip("*_\"'”’)] \t")[-1:]
    return 0.0 if last in ".,;…-" else 0.5 if last in ":!?" else 1.0


@_shipped
def quotations(text: str, *, full_at: float = 1) -> float:
    """How many phrases stand between double quotation marks, up to `full_at`. Marks around nothing do not count."""
    return _ramp(sum(1 for found in _QUOTED.finditer(text) if _has_word(found.group())), full_at)


@_shipped
def parentheses(text: str, *, full_at: float = 1) -> float:
    """How many remarks stand in round brackets, up to `full_at`. List numbering like (1) does not count."""
    remarks = (found.group() for line in _lines(text) for found in _BRACKETED.finditer(_unmarked(line)))
    return _ramp(sum(1 for remark in remarks if _has_word(remark)), full_at)


# --- reading a text. Each pattern is linear on any text: runs are possessive or of bounded length.

LONGEST_WORD = 20
"""Letters after which `word_count` counts a further word, so that a long run of letters is not one short answer."""
OPENING_CHARACTERS = 2_000
"""How much of a text `opens_with` reads."""

_NO_SPACES = "぀-ヿ㐀-䶿一-鿿豈-﫿"  # Japanese and Chinese letters: each counts as a word
_WORD = re.compile(rf"[{_NO_SPACES}]|[^\W_{_NO_SPACES}]++(?:['’\-][^\W_{_NO_SPACES}]++)*+")
_ALNUM = re.compile(r"[^\W_]")
_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’»)\]*_]*+(?=\s|$)")
_WIDE_MARKS = str.maketrans({"。": ". ", "！": "! ", "？": "? "})
_NUMBERED = re.compile(r"[*_]{0,2}\(?\d{1,3}(?:[.):][*_]{0,2}|[*_]{1,2}[.):])(?:\s+|$|(?=[^\W\d_]))")
_BULLET = re.compile(r"[-*+•‣●▪◦–—]\s")
_FIRST_PERSON = re.compile(r"\b(?:I|i(?!\.e\b)|me|my|mine|myself|Me|My|Mine|Myself|MY|ME)\b")
_SECOND_PERSON = re.compile(r"\b(?:you|your|yours|yourself|yourselves)\b", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.,])\d[\d.,]*+")
_QUOTED = re.compile(r'"[^"\n]{1,400}"|“[^”“]{1,400}”|„[^“”„]{1,400}[“”]|«[^»«]{1,400}»')
_BRACKETED = re.compile(r"\([^()]{1,400}\)|（[^（）]{1,400}）")


def _words(text: str) -> Iterator[str]:
    return (found.group() for found in _WORD.finditer(text))


def _has_word(text: str) -> bool:
    return _ALNUM.search(text) is not None


def _lines(text: str) -> Iterator[str]:
    """The lines, without leading blanks and quotation signs (>)."""
    return (line.lstrip(" \t>") for line in text.splitlines())


def _unmarked(line: str) -> str:
    """The line without the number that opens a list item."""
    return _NUMBERED.sub("", line, count=1) if _NUMBERED.match(line) else line


def _sentences(text: str) -> Iterator[tuple[str, str]]:
    """Each sentence that has a word, and its closing mark: a run of . ! ? …, or "" where the line ends without one."""
    for line in _lines(text.translate(_WIDE_MARKS)):
        rest, start = _unmarked(line), 0
        for end in _END.finditer(rest):
            if _has_word(rest[start : end.start()]):
                yield rest[start : end.start()], end.group()
            start = end.end()
        if _has_word(rest[start:]):
            yield rest[start:], ""


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _as_phrases(phrases: str | Sequence[str]) -> tuple[str, ...]:
    listed = (phrases,) if isinstance(phrases, str) else tuple(phrases)
    if not listed or not all(isinstance(phrase, str) and _has_word(phrase) for phrase in listed):
        raise ValueError("phrases must be one or more pieces of text")
    return listed


@lru_cache(maxsize=256)
def _phrase_pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
    """One of the phrases as whole words, for a text that went through `_folded`."""
    return re.compile(rf"(?<!\w)(?:{'|'.join(re.escape(_folded(phrase)) for phrase in phrases)})(?!\w)")


def _count(pattern: re.Pattern[str], text: str) -> int:
    return sum(1 for _ in pattern.finditer(text))


def _ramp(count: int, full_at: float) -> float:
    """0 for none, growing evenly to 1 at `full_at`."""
    _above_zero("full_at", full_at)
    return _clamped(count / full_at)


def _clamped(value: float) -> float:
    return min(1.0, max(0.0, value))


def _above_zero(option: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{option} must be a number above 0, not {value!r}")
