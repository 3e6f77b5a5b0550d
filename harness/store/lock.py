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
from typing import Any, Self

from harness.store.files import make_folder, write_all, writing
from sami_train.errors import UserError


class RunLock:
    """One process at a time in a run folder: `with RunLock(folder): ...`.

    The lock is on the folder itself and on the file `.lock` in it, so that nobody gets in when that file is deleted. What
    is written there tells the second process about the first: a file that a killed process left behind blocks nobody, one
    of a process that lives blocks also where locks have no effect, as on some network file systems.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        self._handles: list[int] = []

    def __enter__(self) -> Self:
        with writing(self.path):
            try:
                self._take()
                owner = {
                    "pid": os.getpid(),
                    "host": os.uname().nodename,
                    "started": _now(),
                    "clock": _clock(os.getpid()),
                }
                os.ftruncate(self._handles[0], 0)
                write_all(self._handles[0], json.dumps(owner).encode())
            except BlockingIOError as error:
                self._close()
                raise UserError(
                    f"{self.path.parent} is in use by {self._described()}; wait for it to end, stop it, or choose "
                    "another run folder"
                ) from error
            except BaseException:
                self._close()
                raise
        _held.add(self)
        return self

    def _take(self) -> None:
        """Lock the file that is at the path now, and its folder. Raises BlockingIOError where another process has it."""
        while True:
            handle = _open(self.path)
            self._handles = [handle]
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(handle, self.path):
                break
            self._close()  # deleted between opening and locking: another process may have made and locked a new one
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
        self._handles.append(folder)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass  # NFS locks no folders
        owner = self._owner()
        same_host = owner.get("host") == os.uname().nodename
        if same_host and owner.get("clock") and owner["clock"] == _clock(owner.get("pid")):
            raise BlockingIOError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handles:
            with suppress(OSError):
                os.ftruncate(self._handles[0], 0)
        self._close()

    def _close(self) -> None:
        handles, self._handles = self._handles, []
        _held.discard(self)
        for handle in handles:
            os.close(handle)

    def _owner(self) -> dict[str, Any]:
        """What the process that has the lock, or had it last, wrote."""
        try:
            owner = json.loads(self.path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return owner if isinstance(owner, dict) else {}

    def _described(self) -> str:
        owner = self._owner()
        if not {"pid", "host", "started"} <= owner.keys():
            return "another process that has just started"
        return f"process {owner['pid']} on {owner['host']}, started {owner['started']}"


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _clock(pid: object) -> str | None:
    """When a process of this machine began, in the system's own count; None where there is no such process, or no such count."""
    if not isinstance(pid, int):
        return None
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError, UnicodeDecodeError):
        return None


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
