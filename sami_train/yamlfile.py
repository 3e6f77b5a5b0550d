"""YAML read with line numbers, so that a validation error can name file, line and field."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from sami_train.errors import UserError, nearest

Location = tuple[str | int, ...]


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
    """The safe loader, with numbers like 5e-7 read as numbers (YAML 1.1 takes them for text)."""


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_FLOAT = re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")
for _first in "-+0123456789":
    _Loader.yaml_implicit_resolvers.setdefault(_first, []).insert(0, ("tag:yaml.org,2002:float", _FLOAT))


def read_yaml(path: Path, what: str = "file") -> LinedDocument:
    """Read one YAML file. Raises UserError when it is missing, unreadable, not YAML, or has a key twice."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such {what}; check the name") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: this {what} is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: this {what} cannot be read ({error.strerror}); check its permissions") from None
    return parse_yaml(text, path)


def parse_yaml(text: str, path: Path) -> LinedDocument:
    """Parse YAML text; `path` only names it in messages."""
    lines: dict[Location, int] = {(): 1}
    data = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            _collect_lines(node, (), lines, path)
            data = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: this is not valid YAML ({error.problem}); mend that line") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: this is not valid YAML ({reason}); mend the file") from None
    return LinedDocument(path, data, lines)


def _collect_lines(node: yaml.Node, location: Location, lines: dict[Location, int], path: Path) -> None:
    lines.setdefault(location, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                raise UserError(f"{path}:{key.start_mark.line + 1}: the key '{name}' stands twice; keep one of them")
            seen.add(name)
            lines[(*location, name)] = key.start_mark.line + 1
            _collect_lines(value, (*location, name), lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _collect_lines(value, (*location, index), lines, path)


def first_problem(error: ValidationError, document: LinedDocument, model: type[BaseModel]) -> str:
    """One sentence for the first thing pydantic found: file, line, field, what is wrong, the nearest valid name."""
    problem = error.errors(include_url=False)[0]
    location: Location = tuple(problem["loc"])
    shown = ".".join(str(part) for part in _real(location, document))
    where = document.where(_real(location, document))
    kind, value = problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        known = _field_names(model, location[:-1])
        return f"{where}: unknown key '{shown}'; {nearest(str(location[-1]), known)}"
    if kind == "missing":
        return f"{where}: '{shown}' is missing; add it"
    message = str(problem["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if kind == "literal_error" and isinstance(value, str):
        expected = [part.strip("' ") for part in str(problem["ctx"]["expected"]).replace(" or ", ", ").split(",")]
        return f"{where}: '{shown}' cannot be '{value}'; {nearest(value, expected)}"
    if not shown:  # several fields do not fit together
        return f"{document.path}: {message}"
    got = "" if isinstance(value, dict | list) or kind == "value_error" else f" (it is {value!r})"
    return f"{where}: '{shown}': {message}{got}"


def _real(location: Location, document: LinedDocument) -> Location:
    """Drop the names of union branches that pydantic puts into a location but the document does not have."""
    kept: list[str | int] = []
    node = document.data
    for index, part in enumerate(location):
        if isinstance(node, dict) and (part in node or index == len(location) - 1):
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
