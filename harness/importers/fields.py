"""What one row of a file of responses says: its query, its responses, its constitution, its model.

A query is all of what the model was asked. A prompt in several fields is joined where a convention says how (Alpaca's
instruction and input), and refused with the fields' names elsewhere: a part of a prompt is another query.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from sami_train.data import message_text
from sami_train.errors import UserError, nearest

Row = dict[str, Any]

QUERY_FIELDS = ("query", "post", "question", "instruction", "prompt", "input")
CONTEXT_FIELDS = (
    "system", "system_prompt", "context", "passage", "document", "article", "background", "history", "premise", "choices",
)  # fmt: skip
"""Fields that hold a part of the prompt beside those of `QUERY_FIELDS`."""
RESPONSE_FIELDS = ("response", "answer", "output", "completion", "summary", "text")
MODEL_FIELDS = ("generator", "model", "model_name", "model_id")
MESSAGES = ("messages", "conversation")


def query(row: Row, where: str, named: str | None, not_query: str | None = None) -> tuple[str, str]:
    """The field that holds a row's query, and the query's text.

    Args:
        row: the fields to look in.
        where: file and row, for messages.
        named: the field, or several with commas between them, to be joined with blank lines; None looks for it.
        not_query: a field that is something else (the response), whatever its name.

    Raises:
        UserError: there is no text, or other fields hold parts of the prompt too.
    """
    if named is not None:
        names = [named] if named in row else [name.strip() for name in named.split(",")]
        for name in names:
            if name not in row:
                raise UserError(f"{where}: there is no field '{name}' (--query-field); {nearest(name, row)}")
    else:
        filled = [name for name in QUERY_FIELDS if name != not_query and _is_filled(row.get(name))]
        known = [name for name in filled if isinstance(row[name], str) or _is_chat(row[name])]
        if not known:
            why = f"'{filled[0]}' is not a text" if filled else f"a text in {', '.join(QUERY_FIELDS[:4])}, ..."
            raise UserError(f"{where}: there is no query in this row ({why}); name its field with --query-field")
        names = ["instruction", "input"] if known[0] == "instruction" and "input" in known else known[:1]
    texts = [text for name in names if (text := _said(row[name], where, name, ("user", "human")))]
    found = "\n\n".join(texts)
    if not found:
        raise UserError(f"{where}: the query is empty; fix or delete this row")
    if named is None:
        _refuse_others(row, where, names, found, not_query)
    return names[0], found


def _refuse_others(row: Row, where: str, names: Sequence[str], found: str, not_query: str | None) -> None:
    """Raise UserError where other fields hold text of the prompt that the query has not."""
    others = [name for name in (*CONTEXT_FIELDS, *QUERY_FIELDS) if name not in (*names, not_query)]
    other = next((n for n in others if _is_filled(row.get(n)) and str(row[n]).strip() != found), None)
    if other is not None:
        kept = ",".join(names)
        both = f"join the two with --query-field {other},{kept}, or " if isinstance(row[other], str) else ""
        raise UserError(
            f"{where}: '{other}' is a part of the prompt too; {both}take '{names[0]}' without it with --query-field {kept}"
        )


def argument(row: Row, where: str) -> str | None:
    """The prompt that lm-evaluation-harness sent, None where a row has none.

    Arguments are lists, or in newer versions objects with numbered names; a chat is a list of messages, or its JSON.
    """
    found = row.get("arguments")
    while isinstance(found, list | dict) and found and not _is_chat(found):
        found = found[0] if isinstance(found, list) else next(iter(found.values()))
    if isinstance(found, str) and found.lstrip().startswith("[{"):
        try:
            chat = json.loads(found)
        except (ValueError, RecursionError):
            chat = None
        found = chat if _is_chat(chat) else found
    return _said(found, where, "arguments", ("user", "human")) or None if found else None


def responses(row: Row, where: str, named: str | None) -> list[str]:
    """The responses of a row: one, or none where it is null. Raises UserError where it is not clear which field it is."""
    if named is not None and named not in row:
        raise UserError(f"{where}: there is no field '{named}' (--response-field); {nearest(named, row)}")
    names = [named] if named is not None else [name for name in RESPONSE_FIELDS if name in row]
    if not names:
        raise UserError(
            f"{where}: there is no response in this row ({', '.join(RESPONSE_FIELDS[:4])}, ...); "
            "name its field with --response-field"
        )
    other = next((name for name in names[1:] if row[name] != row[names[0]]), None)
    if other is not None:
        raise UserError(
            f"{where}: '{names[0]}' and '{other}' may both be the response; name its field with --response-field"
        )
    if row[names[0]] is None:
        return []
    return [_said(row[names[0]], where, names[0], ("assistant", "gpt"), "--response-field")]


def samples(row: Row, where: str, named: str | None) -> tuple[str, list[str]]:
    """The field that a row of lm-evaluation-harness has its responses in, and these, all repeats: what the model wrote.

    Only where that was not kept, what a filter made of it. Raises UserError for samples that are not texts.
    """
    if named is not None and named not in row:
        raise UserError(f"{where}: there is no field '{named}' (--response-field); {nearest(named, row)}")
    name = named or ("resps" if row.get("resps") else "filtered_resps")
    found = row.get(name) or []
    items = found if isinstance(found, list) else [found]
    flat = [text for item in items for text in (item if isinstance(item, list) else [item])]
    if not all(isinstance(text, str) for text in flat):
        raise UserError(
            f"{where}: these samples are no texts (log-likelihoods of given choices?); only generated texts can be judged"
        )
    return name, flat


def unfolded(row: Row) -> Row:
    """A row whose chat is in one field (messages), with its prompt and its last message as fields of their own."""
    name = next((name for name in MESSAGES if _is_chat(row.get(name))), None)
    if name is None or any(_is_filled(row.get(field)) for field in QUERY_FIELDS):
        return row
    chat = row[name]
    if len(chat) > 1 and chat[-1].get("role") == "assistant" and not any(field in row for field in RESPONSE_FIELDS):
        return {**row, "prompt": chat[:-1], "response": chat[-1:]}
    return {**row, "prompt": chat}


def constitution(row: Row, where: str) -> tuple[str, ...] | None:
    """The principles that a row's response was written under, None where it says none."""
    found = row.get("constitution", row.get("principles"))
    if found is None:
        return None
    lines = found.splitlines() if isinstance(found, str) else found
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise UserError(f"{where}: a constitution is a text, or a list of sentences; fix it")
    return sentences(lines) or None


def sentences(lines: Iterable[str]) -> tuple[str, ...]:
    """A numbered list of principles as its sentences."""
    return tuple(re.sub(r"^\d+[.)]\s+", "", line.strip()) for line in lines if line.strip())


def model_field(rows: Iterable[Any]) -> str | None:
    """The field in which rows name their model, None where none does."""
    known = {name for row in rows if isinstance(row, dict) for name in MODEL_FIELDS if row.get(name)}
    return next((name for name in MODEL_FIELDS if name in known), None)


def _said(value: object, where: str, name: str, roles: Sequence[str], option: str = "--query-field") -> str:
    """The text in a field: as it is, or in the only message of a chat. Raises UserError for anything else."""
    if isinstance(value, list) and _is_chat(value):
        if len(value) != 1 or value[0]["role"] not in roles:
            said = ", ".join(str(message["role"]) for message in value[:5])
            raise UserError(
                f"{where}: '{name}' is a chat of {len(value)} messages ({said}), and only one of the {roles[0]} can be read; "
                f"write it as one text, or name another field with {option}"
            )
        value = message_text(value[0]["content"])
    if value is None and option == "--query-field":
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: '{name}' is not a text; fix it, or name another field with {option}")
    return value.strip() if option == "--query-field" else value


def _is_filled(value: object) -> bool:
    return bool(value.strip() if isinstance(value, str) else value)


def _is_chat(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and "role" in item and "content" in item for item in value)
    )
