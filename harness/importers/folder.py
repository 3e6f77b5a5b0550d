"""The folder that an import writes: it holds one import, and nothing is touched there that no import wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from harness.store.files import read_json, write_atomic, write_json, writing
from sami_train.errors import UserError

RECORD = "import.json"
"""What came from where; under `files` the SHA-256 of every file that the import wrote, under `verb` which import it was."""

Verb = Literal["responses", "sami-paper"]
"""Of `harness import`."""
Files = dict[str, list[str]]
"""By a file's name the hashes of what an import wrote there: one, or two while an import replaces another."""


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
        UserError: an import of another kind is there, or a file in the way that no import wrote, or that was changed since (nothing
            is changed then); or the disk refuses.
    """
    before = imported(folder, verb)
    for name in files:
        _check_free(folder, name, before)
    content = record(verb, files, about)
    both = {name: [*before.get(name, ()), *content["files"].get(name, ())] for name in {*before, *files}}
    write_json(folder / RECORD, {"verb": verb, "files": both})  # whatever stops us now, the files are known as ours
    content["removed"] = _remove(folder, {name: hashes for name, hashes in before.items() if name not in files})
    for name, text in files.items():
        write_atomic(folder / name, text)
    write_json(folder / RECORD, content)
    return content


def record(verb: Verb, files: Mapping[str, str], about: Mapping[str, Any]) -> dict[str, Any]:
    """`about` with the verb and the hashes of an import's `files` (text by name)."""
    return {**about, "verb": verb, "files": {name: [_hash(text.encode())] for name, text in sorted(files.items())}}


def imported(folder: Path, verb: Verb) -> Files:
    """The files that an earlier import wrote into a folder; none where there was none.

    Raises UserError when that was an import of another kind, or when its `import.json` cannot be read or is none.
    """
    file = folder / RECORD
    if not file.is_file():
        return {}
    found = read_json(file)
    files = found.get("files") if isinstance(found, dict) else None
    if not isinstance(files, dict):
        raise UserError(
            f"{file}: this does not say which files were imported; name another folder with -o, or empty this one"
        )
    if found.get("verb") != verb:
        raise UserError(f"{folder}: this folder holds an import of another kind; name another one with -o")
    return {name: hashes for name, hashes in files.items() if isinstance(hashes, list)}


def to_json(content: object) -> str:
    """Indented JSON, as `harness.store.write_json` writes it."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _check_free(folder: Path, name: str, before: Files) -> None:
    """Raises UserError where something stands in a file's place, or in that of a folder above it, that is not as imported."""
    path = folder / name
    places = [path, *path.parents[: len(Path(name).parents) - 1]]
    strange = next(
        (p for p in places if (p.exists() if p == path else p.is_file()) and not _is_ours(p, folder, before)), None
    )
    if strange is not None:
        raise UserError(
            f"{folder}: '{strange.relative_to(folder)}' is there and is not as an import wrote it; name another folder with -o, "
            "or move it away"
        )


def _is_ours(path: Path, folder: Path, before: Files) -> bool:
    """Whether a file is as an earlier import wrote it."""
    hashes = before.get(path.relative_to(folder).as_posix(), ())
    with writing(path):
        return bool(hashes) and path.is_file() and _hash(path.read_bytes()) in hashes


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _remove(folder: Path, files: Files) -> list[str]:
    """Remove files that are as they were written, and folders that are empty then; the names of those that were there.

    Nothing outside is touched.
    """
    top = folder.resolve()
    removed = []
    for name in sorted(files):
        path = folder / name
        with writing(path):
            inside = "\0" not in name and path.is_file() and path.resolve().is_relative_to(top)
            if not inside or not _is_ours(path, folder, files):
                continue
            path.unlink()
        removed.append(name)
        with suppress(OSError):  # the first that is not empty
            for parent in path.parents[: len(Path(name).parents) - 1]:
                parent.rmdir()
    return removed
