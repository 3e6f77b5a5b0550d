"""Queries: what a model is asked, read from JSON files. All files of rows that people bring are read here."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sami_train.errors import UserError, nearest

TEXT_FIELDS = {"query": "dialogue", "post": "summarization"}
"""The field that holds a row's text, and the kind of task that it marks."""
PARTS = ("train", "evaluation")
"""What a row's `part` may be."""

_UNPACK = "unpack it, and name the file inside"
_CONVERT = "convert it to JSON lines (one object a line)"
_OTHER_KINDS = (
    (b"PAR1", "a Parquet file", _CONVERT),
    (b"PK\x03\x04", "a ZIP archive or a spreadsheet", _UNPACK),
    (b"\x1f\x8b", "compressed with gzip", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", _UNPACK),
    (b"BZh", "compressed with bzip2", _UNPACK),
    (b"\xfd7zXZ", "compressed with xz", _UNPACK),
)
"""How files of other kinds begin, what they are, and what to do."""


@dataclass(frozen=True)
class Query:
    """One thing to answer (dialogue) or to summarize (summarization). `id` is stable across runs and machines."""

    id: str
    text: str
    task: str
    intent: str = ""
    """The id of the principle that the query is about (helpful, harmless), empty where it is not known."""
    where: str = field(default="", compare=False, repr=False)
    """File and row that it comes from, for messages."""

    @property
    def not_to_copy(self) -> tuple[str, ...]:
        """The text of the query that no response should repeat: all of it in dialogue. A summary may well copy its post."""
        return (self.text,) if self.task == "dialogue" else ()


def read_bytes(path: Path, what: str = "data file", *, pipe: bool = False) -> bytes:
    """The content of a regular file, or with `pipe` of a pipe. Raises UserError for a device, a folder or no file."""
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or (pipe and stat.S_ISFIFO(mode))):
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise UserError(f"{path}: this {what} is {kind}; name a file")
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such {what}; check the name") from None
    except OSError as error:
        raise UserError(f"{path}: this {what} cannot be read ({error.strerror}); make it readable") from None


def decoded(data: bytes, path: Path, what: str = "data file") -> str:
    """The text of a file. Raises UserError that says what the file is where it is of another kind."""
    for start, kind, advice in _OTHER_KINDS:
        if data.startswith(start):
            raise UserError(f"{path}: this {what} is {kind}; {advice}")
    if path.suffix.lower() in (".csv", ".tsv"):
        raise UserError(f"{path}: this {what} is a {path.suffix[1:].upper()} table; {_CONVERT}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: this {what} is not UTF-8 text; save it as UTF-8") from None


def parse_json(text: str, path: Path, line: int | None, *, advice: str = "fix or delete it") -> Any:
    """The value of JSON text, of one line of a file or (`line` None) of all of it. Raises UserError with line and reason."""
    where, this = (f"{path}:{line}", "this line") if line is not None else (str(path), "this file")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = where if line is not None else f"{path}:{error.lineno}"
        raise UserError(f"{place}: {this} is not JSON ({error.msg}, column {error.colno}); {advice}") from None
    except RecursionError:
        raise UserError(f"{where}: {this} is nested too deep to be read; {advice}") from None
    except ValueError:  # of int(), the only other one
        raise UserError(f"{where}: {this} has a number of too many digits; {advice}") from None


def read_objects(path: Path, what: str = "data file") -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and object of every row of a file: one a line, or all in one JSON list (always so in a .json file).

    Raises UserError naming file and row for anything else, and for half of a character, written as an escape: it is not text.
    """
    text = decoded(read_bytes(path, what), path, what)
    for where, row in _values(text, path, what):
        if not isinstance(row, dict):
            raise UserError(f"{where}: this row is not a JSON object; fix or delete it")
        try:
            if "\\u" in text:
                json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{where}: this row has half of a character (an escape such as \\ud83d without its other half); fix or delete it"
            ) from None
        except RecursionError:
            raise UserError(f"{where}: this row is nested too deep to be read; fix or delete it") from None
        yield where, row


def _values(text: str, path: Path, what: str) -> Iterator[tuple[str, Any]]:
    is_json = path.suffix == ".json"
    if is_json or text.lstrip().startswith("["):
        advice = "fix it, or name it .jsonl if each line is a row" if is_json else "fix it"
        rows = parse_json(text, path, None, advice=advice)
        if not isinstance(rows, list):
            raise UserError(f"{path}: a .json {what} holds one list of rows; fix it, or write one row a line as .jsonl")
        for number, row in enumerate(rows, start=1):
            yield f"{path}: item {number}", row
        return
    for number, line in enumerate(re.split(r"\r\n?|\n", text), start=1):
        if line.strip():
            yield f"{path}:{number}", parse_json(line, path, number)


def row_id(row: dict[str, Any], where: str, name: str = "id") -> str | None:
    """A row's id as text, None where it has none. Raises UserError unless it is a text or a whole number."""
    found = row.get(name)
    if found is not None and (isinstance(found, bool) or not isinstance(found, str | int)):
        raise UserError(f"{where}: '{name}' must be a text or a whole number; fix it")
    return None if found in (None, "") else str(found)


def row_part(row: dict[str, Any], where: str) -> str | None:
    """A row's part, None where it says none. Raises UserError for one that is not known."""
    part = row.get("part")
    if part is not None and part not in PARTS:
        raise UserError(f"{where}: 'part' cannot be '{part}'; {nearest(str(part), PARTS)}")
    return None if part is None else str(part)


def message_text(content: object) -> str | None:
    """The text of a chat message's content: a text, or a list of parts that are all text; None for anything else."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in parts]
    return "".join(texts) if all(isinstance(text, str) for text in texts) else None  # type: ignore[arg-type]


def read_queries(path: Path, *, part: str | None = None, prefix: str = "") -> list[Query]:
    """Queries of a file of rows with a field `query` (dialogue) or `post` (summarization), and optionally `id`, `part`, `intent`.

    Rows without an id get one from their content. Rows of another part than the one asked for are left out; rows that say
    no part belong to every part. Duplicate texts are dropped, the first stays.
    """
    queries: list[Query] = []
    for where, row in read_objects(path):
        if part is not None and row.get("part") not in (None, part):
            continue
        name = next((f for f in TEXT_FIELDS if f in row), None)
        if name is None or not isinstance(row[name], str) or not row[name].strip():
            raise UserError(f"{where}: a data row needs a non-empty text 'query' (dialogue) or 'post' (summarization)")
        text, intent = row[name].strip(), row.get("intent") or ""
        if not isinstance(intent, str):
            raise UserError(f"{where}: 'intent' must be a text, the id of a principle; fix or delete it")
        identity = row_id(row, where) or content_id(text, prefix)
        queries.append(Query(identity, text, TEXT_FIELDS[name], intent, where))
    return without_duplicates(queries, str(path))


def without_duplicates(queries: Iterable[Query], where: str) -> list[Query]:
    """Drop queries whose text (white space folded) came before. Raises UserError when one id names two texts."""
    by_text: dict[str, Query] = {}
    by_id: dict[str, Query] = {}
    for query in queries:
        key = " ".join(query.text.split())
        if key in by_text:
            continue
        if (known := by_id.setdefault(query.id, query)) is not query:
            also = f" (the other is {known.where})" if known.where else ""
            raise UserError(
                f"{query.where or where}: the id '{query.id}' names two different texts{also}; give each its own"
            )
        by_text[key] = query
    return list(by_text.values())


def content_id(text: str, prefix: str = "") -> str:
    """A stable id from the text itself (white space folded)."""
    import hashlib

    digest = hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:12]
    return f"{prefix}-{digest}" if prefix else digest
