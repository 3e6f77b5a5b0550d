"""Locks between processes. The operating system lets go of them when their process ends, however it ends."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from harness.store.files import make_folder, write_all, writing
from sami_train.errors import UserError


class RunLock:
    """One process at a time in a run folder: `with RunLock(folder): ...`.

    The lock is on the file `.lock` in the folder. What is written there only tells the second process about the
    first: a file that a killed process left behind blocks nobody.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        self._handle: int | None = None

    def __enter__(self) -> Self:
        with writing(self.path):
            handle = _open(self.path)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                owner = {"pid": os.getpid(), "host": os.uname().nodename, "started": _now()}
                os.ftruncate(handle, 0)
                write_all(handle, json.dumps(owner).encode())
            except BlockingIOError as error:
                os.close(handle)
                raise UserError(
                    f"{self.path.parent} is in use by {self._owner()}; wait for it to end, stop it, or choose "
                    "another run folder"
                ) from error
            except BaseException:
                os.close(handle)
                raise
        self._handle = handle
        _held.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            with suppress(OSError):
                os.ftruncate(self._handle, 0)
        self._close()

    def _close(self) -> None:
        handle, self._handle = self._handle, None
        _held.discard(self)
        if handle is not None:
            os.close(handle)

    def _owner(self) -> str:
        try:
            owner = json.loads(self.path.read_bytes())
            return f"process {owner['pid']} on {owner['host']}, started {owner['started']}"
        except (OSError, ValueError, TypeError, KeyError):
            return "another process that has just started"


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock on the file `path`, after waiting for those who hold it."""
    with writing(path):
        handle = _open(path)
    try:
        with writing(path):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _open(path: Path) -> int:
    make_folder(path.parent)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


_held: set[RunLock] = set()


def _let_go_in_child() -> None:
    """A forked worker shares its parent's lock, and would keep the folder shut after the parent was killed."""
    for lock in list(_held):
        lock._close()


os.register_at_fork(after_in_child=_let_go_in_child)
