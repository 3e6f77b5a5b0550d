"""Responses made elsewhere, in the formats that others write, as recorded answers that a run judges like its own.

jsonl        rows with a query (query, post, question, instruction, prompt) and a response (response, answer, output, ...),
             optionally id, constitution or principles, model; one a line, or in one JSON list; chats of one message each, too
alpaca-eval  AlpacaEval's model_outputs.json: a list of {instruction, output, generator}
lm-eval      the samples_*.jsonl of lm-evaluation-harness: {doc, arguments, resps, filtered_resps}
sami         the SAMI authors' responses: {"constitution": {"0": ...}, "question": {...}, "response": {...}}

What single rows say is read in `fields.py`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from harness.importers import fields
from harness.importers.folder import imported, write_import
from harness.models.recorded import FILE, RecordedAnswer, folded, sentences
from sami_train.constitutions import TaskKind
from sami_train.data import content_id, decoded, parse_json, read_bytes, row_id
from sami_train.errors import UserError
from sami_train.text import whole_characters

Format = Literal["jsonl", "alpaca-eval", "lm-eval", "sami"]
FORMATS: tuple[str, ...] = get_args(Format)
WHAT = "file of responses"
TASK_NAMES: dict[str, str] = {"dialogue": "hh-rlhf", "summarization": "tldr"}
"""The task that reads a file of queries of this kind."""

_POST = re.compile(r"\s*POST:\s*")


@dataclass
class Responses:
    """What a file holds."""

    format: str
    model: str | None
    """The model's name, where the file says one."""
    kind: TaskKind
    answers: dict[str, list[RecordedAnswer]]
    """By part of the file: one, called "", except where a file answers two sets of queries."""
    sha256: str
    queries: dict[str, dict[str, Asked]] = field(default_factory=dict)
    """By part the queries, those without a response included, by their folded text."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows that hold no response, by reason."""
    ids: dict[tuple[str, str], Asked] = field(default_factory=dict)
    """By part and id the query that has it."""
    cut: int = 0
    """Queries whose first word `POST:`, which belongs to the prompt of a summary, was left off."""

    @property
    def n(self) -> int:
        return sum(map(len, self.answers.values()))

    @property
    def repeats(self) -> int:
        """Responses to a query, under a constitution, that another response before them is to."""
        places = {
            (part, folded(a.query), sentences(a.constitution or ()))
            for part, answers in self.answers.items()
            for a in answers
        }
        return self.n - len(places)


@dataclass(frozen=True)
class Choice:
    """What the user has said about a file; None where the file decides."""

    format: Format | None = None
    kind: TaskKind | None = None
    model: str | None = None
    query_field: str | None = None
    response_field: str | None = None


class Asked(NamedTuple):
    """One query of a file: its text, its id where it has one, and the row that has it first."""

    text: str
    id: str | None
    where: str


class _Said(NamedTuple):
    """What one row says. Several texts are repeats; a query without any is one that the model did not answer."""

    where: str
    part: str
    field: str
    query: str
    texts: list[str]
    id: str | None = None
    constitution: tuple[str, ...] | None = None


def read_responses(path: Path, choice: Choice | None = None) -> Responses:
    """Read a file of responses. Raises UserError naming file and row for what cannot be read."""
    choice = choice or Choice()
    data = read_bytes(path, WHAT, pipe=True)
    rows = _parse(decoded(data, path, WHAT), path)
    format = choice.format or _detect(rows, path)
    found = Responses(format, choice.model, choice.kind or "dialogue", {}, hashlib.sha256(data).hexdigest())
    if format == "sami":
        said = list(_sami(rows, path, found))
    elif isinstance(rows, dict):
        raise UserError(
            f"{path}: the format '{format}' has a list of rows, and this is one object; name another --format"
        )
    else:
        for where, row in rows:
            if not isinstance(row, dict):
                raise UserError(f"{where}: this row is not a JSON object; fix or delete it")
        if format == "lm-eval":
            said = list(_samples(rows, choice, found))
        else:
            said = list(_plain(_of_one_model(rows, path, choice, found), choice, found))
    is_post = [row.field == "post" or _POST.match(row.query) is not None for row in said]
    if choice.kind is None and 2 * sum(is_post) > len(said):
        found.kind = "summarization"
    for row in said:
        _add(row, found, path)
    if not found.n:
        why = ", ".join(f"{n} {reason}" for reason, n in found.left_out.items() if n)
        raise UserError(f"{path}: there are no responses in it{f' ({why})' if why else ''}; name another file")
    return found


def _add(row: _Said, found: Responses, path: Path) -> None:
    """Add a row's query and responses. Raises UserError when its id is that of another query."""
    query = whole_characters(row.query)
    if found.kind == "summarization" and (head := _POST.match(query)) and query[head.end() :]:
        query = query[head.end() :]
        found.cut += 1
    queries = found.queries.setdefault(row.part, {})
    asked = Asked(query, row.id and whole_characters(row.id), row.where)
    if queries.setdefault(folded(query), asked) is asked and asked.id is not None:
        other = found.ids.setdefault((row.part, asked.id), asked)
        if other is not asked:
            raise UserError(
                f"{row.where}: the id '{asked.id}' is that of another query too ({other.where}); give each query its own id, or "
                "leave the ids out"
            )
    if not row.texts:
        found.left_out["without a response"] += 1
    found.answers.setdefault(row.part, []).extend(
        RecordedAnswer(
            query=query,
            query_id=asked.id,
            constitution=row.constitution,
            text=text,
            source=row.where.replace(str(path), path.name, 1),
        )
        for text in row.texts
    )


def write_answers(found: Responses, folder: Path, *, model: str, file: str, overwrite: bool = False) -> dict[str, Any]:
    """Write `responses.jsonl`, `queries.jsonl` (one for each part) and `import.json`; give back the content of the last.

    Raises UserError when the folder holds an import already and `overwrite` is false, and as `write_import` does.
    """
    if imported(folder, "responses") and not overwrite:
        raise UserError(
            f"{folder}: there are imported responses already; name another folder with -o, or add --overwrite"
        )
    files, about = answer_files(found, model=model, file=file)
    return write_import(folder, "responses", files, about)


def answer_files(found: Responses, *, model: str, file: str) -> tuple[dict[str, str], dict[str, Any]]:
    """The texts of `responses.jsonl` and of `queries.jsonl` (one for each part), by name, and what `import.json` says of them."""
    lines = [a.model_dump_json(exclude_none=True) for answers in found.answers.values() for a in answers]
    queries = {
        f"queries-{part}.jsonl" if part else "queries.jsonl": _queries(asked.values(), found.kind)
        for part, asked in found.queries.items()
    }
    about = {
        "model": model,
        "format": found.format,
        "file": whole_characters(file),
        "sha256": found.sha256,
        "task": found.kind,
        "responses": found.n,
        "repeats": found.repeats,
        "queries": {name: len(rows) for name, rows in queries.items()},
        "left_out": {reason: n for reason, n in sorted(found.left_out.items()) if n},
        "cut": found.cut,
    }
    return {name: "".join(f"{row}\n" for row in rows) for name, rows in {FILE: lines, **queries}.items()}, about


def _queries(queries: Iterable[Asked], kind: TaskKind) -> list[str]:
    """Queries as the lines of a task's `source`, those without a response too: a model is charged for what it left out."""
    name = "post" if kind == "summarization" else "query"
    return [
        json.dumps(
            {"id": asked.id or content_id(asked.text, TASK_NAMES[kind]), name: asked.text, "part": "evaluation"},
            ensure_ascii=False,
        )
        for asked in queries
    ]


def slug(name: str) -> str:
    """A name as a folder's or a model's: letters, digits, `.`, `_` and `-`, 60 at most; never a path."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-_")[:60].strip(".-_") or "responses"


# --- Files and formats

_List = list[tuple[str, Any]]
"""(where it stands, row)"""
_Rows = _List | dict[str, Any]
"""Rows, or the one object that a file holds."""


def _parse(text: str, path: Path) -> _Rows:
    """The rows of a file: one JSON list, one object, or a row a line."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        if not text.strip():
            return []
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        if text.lstrip().startswith("[") or not any(map(_is_object, dict(lines).values())):
            parse_json(text, path, None)  # a list, or one object over several lines: it says where it breaks
        return [(f"{path}:{number}", parse_json(line, path, number)) for number, line in lines]
    if isinstance(whole, list):
        return [(f"{path}: item {number}", row) for number, row in enumerate(whole, start=1)]
    if isinstance(whole, dict):
        is_table = bool(whole) and all(isinstance(value, dict) for value in whole.values())
        return whole if is_table else [(f"{path}:1", whole)]
    raise UserError(f"{path}: a file of responses holds rows, and this is a single value; name another file")


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _detect(rows: _Rows, path: Path) -> Format:
    if isinstance(rows, dict):
        if any(key.startswith("response") for key in rows):
            return "sami"
    elif rows and isinstance(rows[0][1], dict):
        first = rows[0][1]
        if "doc" in first and ("resps" in first or "filtered_resps" in first):
            return "lm-eval"
        if {"instruction", "output"} <= first.keys():
            return "alpaca-eval"
        if any(name in first for name in (*fields.QUERY_FIELDS, *fields.RESPONSE_FIELDS, *fields.MESSAGES)):
            return "jsonl"
    elif not rows:
        raise UserError(f"{path}: there are no responses in it; name another file")
    raise UserError(f"{path}: this file is in no format known here; say which with --format ({', '.join(FORMATS)})")


def _plain(rows: _List, choice: Choice, found: Responses) -> Iterator[_Said]:
    """Rows with a query and a response each."""
    is_jsonl = found.format == "jsonl"
    for where, raw in rows:
        row = fields.unfolded(raw)
        name, query = fields.query(row, where, choice.query_field, choice.response_field)
        texts = fields.responses(row, where, choice.response_field)
        identity = (row_id(row, where, "query_id") or row_id(row, where)) if is_jsonl else None
        yield _Said(where, "", name, query, texts, identity, fields.constitution(row, where) if is_jsonl else None)


def _of_one_model(rows: _List, path: Path, choice: Choice, found: Responses) -> _List:
    """The rows of one model, where rows name theirs. Raises UserError when there are several and none was chosen."""
    name = fields.model_field(row for _, row in rows)
    if name is None:
        return rows
    models = sorted({str(row[name]) for _, row in rows if row.get(name)})
    if len(models) > 1 and choice.model not in models:
        raise UserError(
            f"{path}: it holds the outputs of {len(models)} models ('{name}': {', '.join(models[:5])}); name one with --model"
        )
    wanted = str(choice.model) if choice.model in models else models[0]
    found.model = choice.model or wanted
    taken = [(where, row) for where, row in rows if row.get(name) and str(row[name]) == wanted]
    unnamed = sum(not row.get(name) for _, row in rows)
    found.left_out += Counter({"without a model's name": unnamed, "another model's": len(rows) - len(taken) - unnamed})
    return taken


def _samples(rows: _List, choice: Choice, found: Responses) -> Iterator[_Said]:
    """Samples of lm-evaluation-harness, which writes each once for every filter; what the model wrote is taken once."""
    first: str | None = None
    filters: dict[str, str] = {}
    for where, row in rows:
        chosen = str(row.get("filter"))
        first = chosen if first is None else first
        doc = row["doc"] if isinstance(row.get("doc"), dict) else row
        prompt = None if choice.query_field else fields.argument(row, where)
        name, query = ("", prompt) if prompt else fields.query(doc, where, choice.query_field)
        source, texts = fields.samples(row, where, choice.response_field)
        if source == "filtered_resps":
            if chosen != first:
                found.left_out["another filter's"] += 1
                continue
        elif filters.setdefault(json.dumps([row.get("doc_id"), query, texts]), chosen) != chosen:
            found.left_out["of a response that another filter has too"] += 1
            continue
        yield _Said(where, "", name, query, texts)


def _sami(rows: _Rows, path: Path, found: Responses) -> Iterator[_Said]:
    """Columns by number of the query: constitution, and question and response, or several (question_helpful, ...)."""
    if not isinstance(rows, dict) or not all(isinstance(column, dict) for column in rows.values()):
        raise UserError(
            f"{path}: the format 'sami' is an object of columns (constitution, question, response); "
            "name another --format"
        )
    constitutions = rows.get("constitution", {})
    for part in [name.removeprefix("response").lstrip("_") for name in rows if name.startswith("response")]:
        tail = f"_{part}" if part else ""
        questions = rows.get(f"question{tail}", rows.get("question"))
        if questions is None:
            raise UserError(f"{path}: there is a column 'response{tail}' and no 'question{tail}'; fix the file")
        for number, text in rows[f"response{tail}"].items():
            where = f"{path}: 'response{tail}' {number}"
            question, constitution = questions.get(number), constitutions.get(number)
            if not isinstance(question, str) or not question.strip():
                found.left_out["without a question"] += 1
                continue
            under = fields.sentences(constitution.splitlines()) if isinstance(constitution, str) else ()
            texts = [text] if isinstance(text, str) else []
            yield _Said(where, slug(part) if part else "", "", question.strip(), texts, None, under or None)
