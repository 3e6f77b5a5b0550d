"""The trainer's small files: JSON written whole or not at all, and rows appended a line at a time."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sami_train.errors import UserError


def cache_folder() -> Path:
    """HARNESS_CACHE where it is set, else `sami-harness` in the user's cache folder."""
    if chosen := os.environ.get("HARNESS_CACHE"):
        return Path(chosen).expanduser()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))  # the XDG specification has relative paths ignored
    try:
        return (base if base.is_absolute() else Path.home() / ".cache") / "sami-harness"
    except RuntimeError as error:
        raise UserError("the home folder is not known; set HARNESS_CACHE to a folder for the cache") from error


def write_json(path: Path, value: object) -> None:
    """Write JSON under a temporary name and rename it. Raises UserError when the disk refuses."""
    work = path.with_name(f".{path.name}.tmp")
    try:
        with work.open("w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, indent=1, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        work.replace(path)
    except OSError as error:
        work.unlink(missing_ok=True)
        raise _cannot_write(path, error) from None


def append_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows as lines, flushed and synced. A torn last line left by a kill is cut off first."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if not text:
        return
    try:
        with path.open("ab") as file:
            end = _whole_length(path)
            file.truncate(end)
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _cannot_write(path, error) from None


def replace_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Put other rows in the place of a file's, all at once. Raises UserError when the disk refuses."""
    work = path.with_name(f".{path.name}.tmp")
    work.unlink(missing_ok=True)
    append_rows(work, rows)
    try:
        work.touch()
        work.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, none where there is no file; a torn last line is left out.

    Raises:
        UserError: a line in the middle is damaged (file and line).
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path}: this file cannot be read ({error.strerror})") from None
    rows = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            raise UserError(
                f"{path}:{number}: this row is damaged; delete that line and run again, the rest is kept"
            ) from None
    return rows


def _whole_length(path: Path) -> int:
    content = path.read_bytes()
    return len(content) if content.endswith(b"\n") else content.rfind(b"\n") + 1


def _cannot_write(path: Path, error: OSError) -> UserError:
    what = "free some space" if error.errno in _FULL else "make it writable"
    return UserError(f"{path}: cannot be written ({error.strerror}); {what} and run again, finished work is kept")


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is no file. Raises UserError when it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path}: this file cannot be read ({error.strerror}); make it readable") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: this file is damaged; delete it and run again, the rest is kept") from None
    return value if isinstance(value, dict) else None
