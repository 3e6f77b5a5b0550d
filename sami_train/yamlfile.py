"""YAML read with line numbers, so that a validation error can name file, line and field.

Numbers are read as people write them: `5e-7` is one, and what YAML 1.1 counts in other systems without a word (010 is 8,
1:30 is 90, 0b11 is 3) is text, and so are dates; a field that takes a number then says so.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml
from pydantic import BaseModel, ValidationError

from sami_train.data import decoded, read_bytes
from sami_train.errors import Problems, UserError, nearest

Location = tuple[str | int, ...]

NAME_PATTERN = r"^[a-z0-9]+(-[a-z0-9]+)*$"
"""Of names that become parts of ids and of file names; `told` says it in words."""
MOST_COPIES = 10_000
"""Values that the aliases of a file may stand for, in all: nested aliases grow without end."""


@dataclass(frozen=True)
class LinedDocument:
    """A YAML document and the line on which each of its values (or keys) stands, by its path inside the document."""

    path: Path
    data: Any
    lines: dict[Location, int] = field(default_factory=dict)

    def where(self, location: Location) -> str:
        """``file:line`` of the nearest enclosing place that exists."""
        for end in range(len(location), -1, -1):
            if location[:end] in self.lines:
                return f"{self.path}:{self.lines[location[:end]]}"
        return str(self.path)


class _Loader(yaml.SafeLoader):
    """The safe loader, with decimal and hexadecimal numbers and without dates."""


_TAG = "tag:yaml.org,2002:"
_TEXT = f"{_TAG}str"
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, regexp) for tag, regexp in known if tag not in {f"{_TAG}{kind}" for kind in ("int", "float", "timestamp")}
    ]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_INT = r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)"
_FLOAT = (
    r"[-+]?(?:(?:[0-9][0-9_]*)?\.[0-9][0-9_]*|[0-9][0-9_]*\.)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
for _kind, _pattern in (("int", _INT), ("float", _FLOAT)):
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(f"^(?:{_pattern})$"), list("-+.0123456789"))


class Dumper(yaml.SafeDumper):
    """The safe dumper, with quotes around text that `read_yaml` would take for a number (the commit 12e4567, say)."""


Dumper.add_implicit_resolver(f"{_TAG}float", re.compile(f"^(?:{_INT}|{_FLOAT})$"), list("-+.0123456789"))


def read_yaml(path: Path, what: str = "file", *, text_keys: bool = True) -> LinedDocument:
    """Read one YAML file. Raises UserError when it is missing or unreadable, and as `parse_yaml` does."""
    return parse_yaml(decoded(read_bytes(path, what), path, what), path, text_keys=text_keys)


def parse_yaml(text: str, path: Path, *, text_keys: bool = True) -> LinedDocument:
    """Parse YAML text.

    Args:
        text: the document.
        path: only names it in messages.
        text_keys: whether every key has to be text.

    Raises:
        UserError: it is not YAML, has a key twice, or (`text_keys`) one that YAML reads as a number or as true or false; or its
            aliases stand for more than `MOST_COPIES` values.
    """
    lines: dict[Location, int] = {(): 1}
    data = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            _Collector(path, lines, text_keys).collect(node)
            data = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: this is not valid YAML ({error.problem}); fix that line") from None
    except RecursionError:
        raise UserError(f"{path}: this is not valid YAML (it is nested too deep); fix the file") from None
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: this is not valid YAML ({reason}); fix the file") from None
    return LinedDocument(path, data, lines)


class _Collector:
    """Takes down the lines of a document's values, and what is wrong with its keys and characters."""

    def __init__(self, path: Path, lines: dict[Location, int], text_keys: bool) -> None:
        self.path, self.lines, self.text_keys = path, lines, text_keys
        self.problems: list[str] = []
        self.seen: set[int] = set()
        self.copies = 0

    def collect(self, node: yaml.Node) -> None:
        """Raises UserError for what is wrong."""
        self._collect(node, ())
        if self.problems:
            raise Problems(*self.problems)

    def _collect(self, node: yaml.Node, location: Location) -> None:
        line = node.start_mark.line + 1
        self.copies += id(node) in self.seen
        if self.copies > MOST_COPIES:
            raise UserError(
                f"{self.path}:{line}: the aliases of this file stand for more than {MOST_COPIES:,} values; write them out"
            )
        self.seen.add(id(node))
        self.lines.setdefault(location, line)
        if isinstance(node, yaml.ScalarNode):
            self._check_characters(node)
        elif isinstance(node, yaml.MappingNode):
            names: set[str] = set()
            for key, value in node.value:
                name = str(key.value)
                place = f"{self.path}:{key.start_mark.line + 1}"
                if name in names:
                    self.problems.append(f"{place}: the key '{name}' stands twice; keep one of them")
                elif self.text_keys and isinstance(key, yaml.ScalarNode) and key.tag not in (_TEXT, f"{_TAG}merge"):
                    self.problems.append(f"{place}: the key {name} is not read as text; put it into quotes")
                names.add(name)
                self.lines[(*location, name)] = key.start_mark.line + 1
                self._collect(value, (*location, name))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self._collect(value, (*location, index))

    def _check_characters(self, node: yaml.ScalarNode) -> None:
        """Join the halves of a character that were written as two escapes; one half alone is a problem."""
        try:
            if not node.value.isascii():
                node.value = node.value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            place = f"{self.path}:{node.start_mark.line + 1}"
            self.problems.append(f"{place}: this text has half of a character (an escape such as \\ud83d); fix it")


class Problem(NamedTuple):
    """One thing that is wrong with a document: where, as its own data have it, and a sentence with file, line and field."""

    location: Location
    sentence: str
    kind: str
    """As pydantic calls it."""


def problems(
    error: ValidationError, document: LinedDocument, model: type[BaseModel], hints: Mapping[str, str] | None = None
) -> list[Problem]:
    """All that pydantic found, each place once; what only follows from a misspelt key is left out.

    Args:
        error: what pydantic raised.
        document: the document that was validated, for the places.
        model: what it was validated as, for the nearest names.
        hints: by a field's name what to do when it is missing.
    """
    every = error.errors(include_url=False)
    misspelt = {
        (*problem["loc"][:-1], close[0])
        for problem in every
        if problem["type"] == "extra_forbidden"
        and (
            close := difflib.get_close_matches(
                str(problem["loc"][-1]), _field_names(model, problem["loc"][:-1]), 1, 0.5
            )
        )
    }
    found: dict[Location, Problem] = {}
    for problem in every:
        place = problem["loc"]
        is_counted = problem["type"] == "too_short" and any(p["loc"][: len(place)] == place != p["loc"] for p in every)
        if is_counted or (problem["type"] == "missing" and place in misspelt):
            continue  # pydantic counts items that are sound
        location = _real(problem["loc"], document, is_missing=problem["type"] == "missing")
        sentence = _sentence(problem, location, document, model, hints or {})
        found.setdefault(location, Problem(location, sentence, problem["type"]))
    return list(found.values())


def all_problems(error: ValidationError, document: LinedDocument, model: type[BaseModel]) -> Problems:
    """The error to raise for a document that is not as it should be."""
    return Problems(*(problem.sentence for problem in problems(error, document, model)))


def _sentence(
    problem: Mapping[str, Any],
    location: Location,
    document: LinedDocument,
    model: type[BaseModel],
    hints: Mapping[str, str],
) -> str:
    shown = ".".join(str(part) for part in location)
    where = document.where(location)
    kind, value = problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        return f"{where}: unknown key '{shown}'; {nearest(str(location[-1]), _field_names(model, problem['loc'][:-1]))}"
    if kind == "missing":
        return f"{where}: '{shown}' is missing; {hints.get(str(location[-1]), 'add it')}"
    if kind == "literal_error" and isinstance(value, str):
        expected = [part.strip("' ") for part in str(problem["ctx"]["expected"]).replace(" or ", ", ").split(",")]
        return f"{where}: '{shown}' cannot be '{value}'; {nearest(value, expected)}"
    if not shown:  # several fields do not fit together
        return f"{document.path}: {told(problem)}"
    is_told = isinstance(value, dict | list) or kind in ("value_error", "string_too_short")
    return f"{where}: '{shown}': {told(problem)}{'' if is_told else f' (it is {as_written(value)})'}"


_TOLD = {
    "a list, such as [a, b]": ("tuple_type", "list_type", "set_type"),
    "a mapping of fields (field: value)": ("dict_type", "mapping_type", "model_type", "model_attributes_type"),
    "text; put it into quotes": ("string_type",),
    "text without half characters": ("string_unicode",),
    "an integer": ("int_type", "int_parsing", "int_from_float"),
    "a number": ("float_type", "float_parsing"),
    "true or false": ("bool_type", "bool_parsing"),
    "null": ("none_required",),
}
_WORDS = {kind: words for words, kinds in _TOLD.items() for kind in kinds}


def told(problem: Mapping[str, Any]) -> str:
    """What is wrong, in the words of people who write YAML or JSON, of one of pydantic's errors."""
    kind, ctx = problem["type"], problem.get("ctx", {})
    if kind == "missing":
        return "it is missing; add it"
    if kind in ("too_short", "too_long"):
        least = kind == "too_short"
        n = ctx["min_length" if least else "max_length"]
        return f"must have at {'least' if least else 'most'} {n} item{'' if n == 1 else 's'}"
    if kind == "string_too_short":
        return "must not be empty" if ctx["min_length"] == 1 else f"must have at least {ctx['min_length']} characters"
    if kind == "string_pattern_mismatch" and ctx["pattern"] == NAME_PATTERN:
        return "must be a name of a-z, 0-9 and single '-' between them"
    if kind in _WORDS:
        return f"must be {_WORDS[kind]}"
    message = str(problem["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    return message[:1].lower() + message[1:]


def as_written(value: object) -> str:
    """A value as a file has it: true, not True; at most 80 characters."""
    written = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return written if len(written) <= 80 else f"{written[:80]}..."


def _real(location: Location, document: LinedDocument, *, is_missing: bool) -> Location:
    """Drop the names of union branches that pydantic puts into a location but the document does not have.

    With `is_missing` its last part is a field that the document does not have.
    """
    kept: list[str | int] = []
    node = document.data
    for index, part in enumerate(location):
        if isinstance(node, dict) and (part in node or (is_missing and index == len(location) - 1)):
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        else:
            continue
        kept.append(part)
    return tuple(kept)


def _field_names(model: type[BaseModel], location: Location) -> list[str]:
    """The names of the fields that are allowed at a place inside `model`, as far as its annotations tell."""

    def models_in(annotation: object) -> list[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return [annotation]
        return [m for arg in get_args(annotation) for m in models_in(arg)]

    current = [model]
    for part in location:
        steps = [m.model_fields[part].annotation for m in current if isinstance(part, str) and part in m.model_fields]
        if steps:
            current = [m for s in steps for m in models_in(s)]
    return [f.alias or name for m in current for name, f in m.model_fields.items()]
