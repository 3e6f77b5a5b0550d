"""Queries: what a model is asked, read from JSON-lines files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sami_train.errors import UserError

TEXT_FIELDS = {"query": "dialogue", "post": "summarization"}
"""The field that holds a row's text, and the kind of task that it marks."""


@dataclass(frozen=True)
class Query:
    """One thing to answer (dialogue) or to summarize (summarization). `id` is stable across runs and machines."""

    id: str
    text: str
    task: str
    intent: str = ""
    """The id of the principle that the query is about (helpful, harmless), empty where it is not known."""


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of every non-empty line. Raises UserError naming file and line for anything else."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    if "\\u" in line:
                        json.dumps(
                            row, ensure_ascii=False
                        ).encode()  # half of a character, written as an escape, is no text
                except (ValueError, RecursionError):
                    raise UserError(f"{path}:{number}: this line is not JSON; mend or delete it") from None
                if not isinstance(row, dict):
                    raise UserError(f"{path}:{number}: this line is not a JSON object; mend or delete it")
                yield number, row
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such data file; check the name") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: this data file is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: this data file cannot be read ({error.strerror})") from None


def read_queries(path: Path, *, part: str | None = None, prefix: str = "") -> list[Query]:
    """Queries of a JSON-lines file with a field `query` (dialogue) or `post` (summarization), and optionally `id`, `part`,
    `intent`.

    Rows without an id get one from their content. Rows of another part than the one asked for are left out; rows that say
    no part belong to every part. Duplicate texts are dropped, the first stays.
    """
    queries: list[Query] = []
    for number, row in read_jsonl(path):
        if part is not None and row.get("part", part) != part:
            continue
        field = next((f for f in TEXT_FIELDS if f in row), None)
        if field is None or not isinstance(row[field], str) or not row[field].strip():
            raise UserError(
                f"{path}:{number}: a data row needs a non-empty text 'query' (dialogue) or 'post' (summarization)"
            )
        text, intent = row[field].strip(), row.get("intent") or ""
        if not isinstance(intent, str):
            raise UserError(f"{path}:{number}: 'intent' must be a text, the id of a principle; fix or delete it")
        queries.append(Query(str(row.get("id") or content_id(text, prefix)), text, TEXT_FIELDS[field], intent))
    return without_duplicates(queries, str(path))


def without_duplicates(queries: Iterable[Query], where: str) -> list[Query]:
    """Drop queries whose text (white space folded) came before. Raises UserError when one id names two texts."""
    by_text: dict[str, Query] = {}
    ids: dict[str, str] = {}
    for query in queries:
        key = " ".join(query.text.split())
        if key in by_text:
            continue
        if query.id in ids:
            raise UserError(f"{where}: the id '{query.id}' names two different texts; give each its own")
        ids[query.id] = key
        by_text[key] = query
    return list(by_text.values())


def content_id(text: str, prefix: str = "") -> str:
    """A stable id from the text itself (white space folded)."""
    import hashlib

    digest = hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:12]
    return f"{prefix}-{digest}" if prefix else digest
