"""Responses made elsewhere, in the formats that others write, as recorded answers that a run judges like its own.

jsonl        rows with a query (query, post, question, instruction, prompt) and a response (response, answer, output, ...),
             optionally id, constitution or principles; one a line, or in one JSON list
alpaca-eval  AlpacaEval's model_outputs.json: a list of {instruction, output, generator}
lm-eval      the samples_*.jsonl of lm-evaluation-harness: {doc, arguments, resps, filtered_resps}
sami         the SAMI authors' responses: {"constitution": {"0": ...}, "question": {...}, "response": {...}}
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from harness.importers.folder import imported, write_import
from harness.models.recorded import FILE, RecordedAnswer, folded
from harness.store.files import reading
from sami_train.constitutions import TaskKind
from sami_train.data import content_id
from sami_train.errors import UserError, nearest

Format = Literal["jsonl", "alpaca-eval", "lm-eval", "sami"]
FORMATS: tuple[str, ...] = get_args(Format)
QUERY_FIELDS = ("query", "post", "question", "instruction", "prompt", "input")
RESPONSE_FIELDS = ("response", "answer", "output", "completion", "summary", "text")
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
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows that hold no response, by reason."""

    @property
    def n(self) -> int:
        return sum(map(len, self.answers.values()))


@dataclass(frozen=True)
class Choice:
    """What the user has said about a file; None where the file decides."""

    format: Format | None = None
    kind: TaskKind | None = None
    model: str | None = None
    query_field: str | None = None
    response_field: str | None = None


def read_responses(path: Path, choice: Choice | None = None) -> Responses:
    """Read a file of responses. Raises UserError naming file and row for what cannot be read."""
    choice = choice or Choice()
    with reading(path):
        data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: this file of responses is not UTF-8 text; save it as UTF-8") from None
    rows = _parse(text, path)
    format = choice.format or _detect(rows, path)
    sha256 = hashlib.sha256(data).hexdigest()
    if format == "sami":
        return _sami(rows, path, choice, sha256)
    if isinstance(rows, dict):
        raise UserError(
            f"{path}: the format '{format}' has a list of rows, and this is one object; name another --format"
        )
    found = Responses(format, choice.model, choice.kind or "dialogue", {"": []}, sha256)
    wanted = _one_model(rows, path, choice) if format == "alpaca-eval" else None
    kinds: Counter[TaskKind] = Counter()
    filters: set[str] = set()
    for where, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{where}: this row is not a JSON object; mend or delete it")
        if wanted is not None and row.get("generator") != wanted:
            found.left_out["another model's"] += 1
            continue
        if format == "lm-eval":
            filters = filters or {str(row.get("filter"))}
            if str(row.get("filter")) not in filters:
                found.left_out["another filter's"] += 1
                continue
        name, query = _query(row, where, format, choice)
        kinds["summarization" if name == "post" or _POST.match(query) else "dialogue"] += 1
        texts = _texts(row, where, format, choice)
        if not texts:
            found.left_out["without a response"] += 1
        identity = _id(row, where) if format == "jsonl" else None
        constitution = _constitution(row, where) if format == "jsonl" else None
        for answer in texts:
            found.answers[""].append(
                RecordedAnswer(
                    query=_POST.sub("", query, count=1) if _POST.match(query) else query,
                    query_id=identity,
                    constitution=constitution,
                    text=answer,
                    source=where.replace(str(path), path.name, 1),
                )
            )
    if choice.kind is None and kinds:
        found.kind = kinds.most_common(1)[0][0]
    if wanted is not None and found.model is None:
        found.model = wanted or None
    return _with_answers(found, path)


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
        f"queries-{part}.jsonl" if part else "queries.jsonl": _queries(answers, found.kind)
        for part, answers in found.answers.items()
    }
    about = {
        "model": model,
        "format": found.format,
        "file": file,
        "sha256": found.sha256,
        "task": found.kind,
        "responses": found.n,
        "queries": {name: len(rows) for name, rows in queries.items()},
        "left_out": {reason: n for reason, n in sorted(found.left_out.items()) if n},
    }
    return {name: "".join(f"{row}\n" for row in rows) for name, rows in {FILE: lines, **queries}.items()}, about


def _queries(answers: Sequence[RecordedAnswer], kind: TaskKind) -> list[str]:
    """The queries of the answers, each once, as the lines of a task's `source`."""
    texts: dict[str, tuple[str, str]] = {}
    for answer in answers:
        identity = answer.query_id or content_id(answer.query, TASK_NAMES[kind])
        texts.setdefault(folded(answer.query), (identity, answer.query))
    name = "post" if kind == "summarization" else "query"
    return [json.dumps({"id": i, name: text, "part": "evaluation"}, ensure_ascii=False) for i, text in texts.values()]


def slug(name: str) -> str:
    """A name as a folder's or a model's: letters, digits, `.`, `_` and `-`, 60 at most; never a path."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-_")[:60].strip(".-_") or "responses"


# --- Files and formats

_Rows = list[tuple[str, Any]] | dict[str, Any]
"""(where it stands, row), or the one object that a file holds."""


def _parse(text: str, path: Path) -> _Rows:
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return list(_lines(text, path))
    if isinstance(whole, list):
        return [(f"{path}: item {number}", row) for number, row in enumerate(whole, start=1)]
    if isinstance(whole, dict):
        is_table = bool(whole) and all(isinstance(value, dict) for value in whole.values())
        return whole if is_table else [(f"{path}:1", whole)]
    raise UserError(f"{path}: a file of responses holds rows, and this is a single value; name another file")


def _lines(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"{path}:{number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}:{number}: this line is not JSON ({error}); mend or delete it") from None


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
        if any(name in first for name in QUERY_FIELDS) or any(name in first for name in RESPONSE_FIELDS):
            return "jsonl"
    elif not rows:
        raise UserError(f"{path}: there are no responses in it; name another file")
    raise UserError(f"{path}: this file is in no format known here; say which with --format ({', '.join(FORMATS)})")


def _with_answers(found: Responses, path: Path) -> Responses:
    if not found.n:
        why = ", ".join(f"{n} {reason}" for reason, n in found.left_out.items() if n)
        raise UserError(f"{path}: there are no responses in it{f' ({why})' if why else ''}; name another file")
    return found


def _query(row: dict[str, Any], where: str, format: str, choice: Choice) -> tuple[str, str]:
    """The field that holds the query, and its text."""
    holder = row["doc"] if format == "lm-eval" and isinstance(row.get("doc"), dict) else row
    name = choice.query_field or next((name for name in QUERY_FIELDS if holder.get(name)), None)
    if choice.query_field is not None and choice.query_field not in holder:
        raise UserError(
            f"{where}: there is no field '{choice.query_field}' (--query-field); {nearest(choice.query_field, holder)}"
        )
    query = holder.get(name) if name is not None else _argument(row) if format == "lm-eval" else None
    if not isinstance(query, str) or not query.strip():
        fields = ", ".join(QUERY_FIELDS[:4])
        raise UserError(
            f"{where}: there is no query in this row (a text in {fields}, ...); name its field with --query-field"
        )
    return name or "", query.strip()


def _argument(row: dict[str, Any]) -> Any:
    """The prompt that lm-evaluation-harness sent: arguments are lists, or in newer versions objects with numbered names."""
    found = row.get("arguments")
    while isinstance(found, list | dict) and found:
        found = found[0] if isinstance(found, list) else next(iter(found.values()))
    return found


def _texts(row: dict[str, Any], where: str, format: str, choice: Choice) -> list[str]:
    """The responses of a row: one, several repeats (lm-eval), or none where it is null."""
    if format == "lm-eval":
        found = row.get("filtered_resps") or row.get("resps") or []
        items = found if isinstance(found, list) else [found]
        flat = [text for item in items for text in (item if isinstance(item, list) else [item])]
        if not all(isinstance(text, str) for text in flat):
            raise UserError(
                f"{where}: these samples are no texts (log-likelihoods of given choices?); only generated texts can be judged"
            )
        return flat
    if choice.response_field is not None and choice.response_field not in row:
        raise UserError(
            f"{where}: there is no field '{choice.response_field}' (--response-field); {nearest(choice.response_field, row)}"
        )
    name = choice.response_field or next((name for name in RESPONSE_FIELDS if name in row), None)
    if name is None:
        raise UserError(
            f"{where}: there is no response in this row ({', '.join(RESPONSE_FIELDS[:4])}, ...); "
            "name its field with --response-field"
        )
    text = row[name]
    if text is None:
        return []
    if not isinstance(text, str):
        raise UserError(f"{where}: '{name}' is not a text; mend it, or name the field with --response-field")
    return [text]


def _id(row: dict[str, Any], where: str) -> str | None:
    found = row.get("query_id", row.get("id"))
    if found is not None and not isinstance(found, str | int):
        raise UserError(f"{where}: the id must be a text or a whole number; mend it")
    return None if found in (None, "") else str(found)


def _constitution(row: dict[str, Any], where: str) -> tuple[str, ...] | None:
    found = row.get("constitution", row.get("principles"))
    if found is None:
        return None
    lines = found.splitlines() if isinstance(found, str) else found
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise UserError(f"{where}: a constitution is a text, or a list of sentences; mend it")
    return _sentences(lines) or None


def _sentences(lines: Sequence[str]) -> tuple[str, ...]:
    """A numbered list of principles as its sentences."""
    return tuple(re.sub(r"^\d+[.)]\s+", "", line.strip()) for line in lines if line.strip())


def _one_model(rows: list[tuple[str, Any]], path: Path, choice: Choice) -> str | None:
    """The generator whose rows are taken; None where no row names one."""
    names = sorted({str(row["generator"]) for _, row in rows if isinstance(row, dict) and row.get("generator")})
    if choice.model is not None and choice.model in names:
        return choice.model
    if len(names) > 1:
        raise UserError(
            f"{path}: it holds the outputs of {len(names)} models ({', '.join(names[:5])}); name one with --model"
        )
    return names[0] if names else None


def _sami(rows: _Rows, path: Path, choice: Choice, sha256: str) -> Responses:
    """Columns by number of the query: constitution, and question and response, or several (question_helpful, ...)."""
    if not isinstance(rows, dict) or not all(isinstance(column, dict) for column in rows.values()):
        raise UserError(
            f"{path}: the format 'sami' is an object of columns (constitution, question, response); "
            "name another --format"
        )
    parts = [name.removeprefix("response").lstrip("_") for name in rows if name.startswith("response")]
    found = Responses("sami", choice.model, choice.kind or "dialogue", {}, sha256)
    constitutions = rows.get("constitution", {})
    for part in parts:
        tail = f"_{part}" if part else ""
        questions = rows.get(f"question{tail}", rows.get("question"))
        if questions is None:
            raise UserError(f"{path}: there is a column 'response{tail}' and no 'question{tail}'; mend the file")
        for number, text in rows[f"response{tail}"].items():
            where = f"{path}: 'response{tail}' {number}"
            question, constitution = questions.get(number), constitutions.get(number)
            if not isinstance(text, str) or not isinstance(question, str) or not question.strip():
                found.left_out["without a question or a response"] += 1
                continue
            if choice.kind is None and _POST.match(question):
                found.kind = "summarization"
            under = _sentences(constitution.splitlines()) if isinstance(constitution, str) else ()
            query = _POST.sub("", question, count=1) if _POST.match(question) else question
            found.answers.setdefault(slug(part) if part else "", []).append(
                RecordedAnswer(
                    query=query.strip(),
                    constitution=under or None,
                    text=text,
                    source=where.replace(str(path), path.name, 1),
                )
            )
    return _with_answers(found, path)
