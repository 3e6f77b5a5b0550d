"""The folder that an import writes: it holds one import, and nothing is touched there that no import wrote."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from harness.store.files import read_json, write_atomic, write_json, writing
from sami_train.errors import UserError

RECORD = "import.json"
"""What came from where; under `files` the name of every file that the import wrote, under `verb` which import it was."""

Verb = Literal["responses", "sami-paper"]
"""Of `harness import`."""


def write_import(folder: Path, verb: Verb, files: Mapping[str, str], about: Mapping[str, Any]) -> dict[str, Any]:
    """Write an import in the place of the one before it: of that, files that are not written again are removed.

    Args:
        folder: where to write; made where it is missing.
        verb: which import this is.
        files: text by name, with ``/`` between folders.
        about: what else `import.json` says.

    Returns:
        The content of `import.json`: that of `record`, and under `removed` the names of the files that were removed.

    Raises:
        UserError: an import of another kind is there, or a file in the way that no import wrote (nothing is changed then);
            or the disk refuses.
    """
    before = imported(folder, verb)
    content = record(verb, files, about)
    named = content["files"]
    strange = next((name for name in named if name not in before and (folder / name).exists()), None)
    if strange is not None:
        raise UserError(
            f"{folder}: '{strange}' is there, and {RECORD} has it in no list of imported files; name another folder with -o, or "
            "empty this one"
        )
    write_json(
        folder / RECORD, record(verb, before.union(named), {})
    )  # whatever stops us now, the files are known as ours
    content["removed"] = _remove(folder, before.difference(named))
    for name, text in files.items():
        write_atomic(folder / name, text)
    write_json(folder / RECORD, content)
    return content


def record(verb: Verb, files: Iterable[str], about: Mapping[str, Any]) -> dict[str, Any]:
    """`about` with the verb and the names of an import's `files`, that of `import.json` among them."""
    return {**about, "verb": verb, "files": sorted({*files, RECORD})}


def imported(folder: Path, verb: Verb) -> set[str]:
    """The names of the files that an earlier import wrote into a folder; none where there was none.

    Raises UserError when that was an import of another kind, or when its `import.json` cannot be read.
    """
    file = folder / RECORD
    found = read_json(file) if file.is_file() else {}
    if not isinstance(found, dict) or not isinstance(found.get("files"), list):
        return set()
    if found.get("verb") != verb:
        raise UserError(f"{folder}: this folder holds an import of another kind; name another one with -o")
    return {name for name in found["files"] if isinstance(name, str)}


def to_json(content: object) -> str:
    """Indented JSON, as `harness.store.write_json` writes it."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _remove(folder: Path, names: Iterable[str]) -> list[str]:
    """Remove files, and folders that are empty then; the names of those that were there. Nothing outside is touched."""
    top = folder.resolve()
    removed = []
    for name in sorted(names):
        path = folder / name
        with writing(path):
            if not path.is_file() or not path.resolve().is_relative_to(top):
                continue
            path.unlink()
        removed.append(name)
        with suppress(OSError):  # the first that is not empty
            for parent in path.parents[: len(Path(name).parents) - 1]:
                parent.rmdir()
    return removed
