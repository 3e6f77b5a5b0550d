"""Files that are whole or absent, and one sentence to the user when the operating system refuses."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sami_train.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP}


def write_atomic(path: Path, text: str) -> None:
    """Put `text` into `path` so that a reader, and a machine that loses power, sees the old content or the new."""
    data = text.encode("utf-8")
    temporary = path.with_name(f".tmp-{secrets.token_hex(8)}")
    with writing(path):
        make_folder(path.parent)
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                write_all(handle, data)
                os.fsync(handle)
            finally:
                os.close(handle)
            os.replace(temporary, path)  # noqa: PTH105 - reads better beside the other calls on handles
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)


def write_json(path: Path, obj: object) -> None:
    """Put `obj` into `path` as indented JSON. ValueError for NaN, which JSON has no word for: write None instead."""
    write_atomic(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The content of the JSON file `path`."""
    with reading(path):
        data = path.read_bytes()
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); restore it or delete it") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says while `path` is written into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise UserError(
                f"the disk is full while writing {path}; free some space and run the same command again, "
                "finished rows are kept"
            ) from error
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; make it writable or choose another folder "
            "and run the same command again, finished rows are kept"
        ) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the operating system says while `path` is read into a UserError."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}; check the path") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; make it readable") from error


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong with a JSON object, and in which field."""
    problem = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in problem["loc"])
    return f"{field}: {problem['msg']}" if field else problem["msg"]


def make_folder(folder: Path) -> None:
    """Make `folder` and those above it where they are missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is a file") from error


def write_all(handle: int, data: bytes) -> None:
    """One os.write, and more only where the operating system took a part of it."""
    left = memoryview(data)
    while left:
        left = left[os.write(handle, left) :]


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a loss of power, where its file system can do that."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(handle)
