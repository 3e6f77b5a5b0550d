"""Append-only rows, one JSON object a line, that survive a kill, a full disk and a loss of power."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

from pydantic import ValidationError

from harness.rows import Row
from harness.store.files import first_problem, make_folder, reading, sync_folder, write_all, writing
from sami_train.errors import UserError

RowT = TypeVar("RowT", bound=Row)

_SYNC_EVERY_S = 1.0
_CHUNK_BYTES = 1 << 16


class CorruptRowsError(UserError):
    """A line that is whole and yet not a row: something other than a `RowFile` changed the file."""


class RowFile(Generic[RowT]):
    """The rows in one file. One process writes (see `RunLock`), from as many threads as it likes; any may read.

    Rows are with the operating system when `append` returns, so a killed process loses none of them. They are on the
    disk about a second later, or when the file is closed, so a machine that loses power may lose the last ones.
    """

    def __init__(self, path: Path, row_type: type[RowT]) -> None:
        self.path = path
        self._row_type = row_type
        self._lock = threading.Lock()
        self._handle: int | None = None
        self._synced_at = -_SYNC_EVERY_S
        self._unsynced = False

    def read(self) -> dict[str, RowT]:
        """Row by id; the last one where an id comes more than once. Empty where there is no file."""
        return {row.id: row for row in self.rows()}

    def rows(self) -> Iterator[RowT]:
        """Every row in the order of the file, without a torn last line."""
        with reading(self.path):
            try:
                file = self.path.open("rb")
            except FileNotFoundError:
                return
            with file:
                for number, line in enumerate(file, start=1):
                    if line.endswith(b"\n") and not line.isspace():
                        yield self._parse(line, number)

    def append(self, rows: Iterable[RowT]) -> None:
        """Add `rows`, all of them or, where the disk refuses, none."""
        data = b"".join(row.model_dump_json().encode("utf-8") + b"\n" for row in rows)
        if not data:
            return
        with self._lock, writing(self.path):
            if self._handle is None:
                self._open()
            assert self._handle is not None
            end = os.fstat(self._handle).st_size
            self._unsynced = True
            try:
                write_all(self._handle, data)
            except BaseException:
                with suppress(OSError):
                    os.ftruncate(self._handle, end)
                    os.fsync(self._handle)
                self._release()  # the next append opens again, and so repairs what could not be cut off here
                raise
            if time.monotonic() - self._synced_at >= _SYNC_EVERY_S:
                self._sync()

    def close(self) -> None:
        """Put everything on the disk. A later append opens the file again."""
        with self._lock, writing(self.path):
            if self._handle is not None:
                try:
                    self._sync()
                finally:
                    self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _parse(self, line: bytes, number: int) -> RowT:
        try:
            return self._row_type.model_validate_json(line)
        except ValidationError as error:
            raise CorruptRowsError(
                f"{self.path}:{number} is not a valid {self._row_type.__name__} row ({first_problem(error)}); "
                "restore it or delete that line, everything else is kept"
            ) from error

    def _open(self) -> None:
        """Open for append, and cut off the line that an interrupted write left torn."""
        make_folder(self.path.parent)
        is_new = not self.path.exists()
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            end = _end_of_last_line(handle)
            if end < os.fstat(handle).st_size:
                os.ftruncate(handle, end)
            if is_new:
                sync_folder(self.path.parent)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle

    def _sync(self) -> None:
        assert self._handle is not None
        if self._unsynced:
            os.fsync(self._handle)
            self._unsynced = False
        self._synced_at = time.monotonic()

    def _release(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


def _end_of_last_line(handle: int) -> int:
    """Offset in bytes just after the last newline."""
    end = os.fstat(handle).st_size
    while end > 0:
        start = max(0, end - _CHUNK_BYTES)
        newline = os.pread(handle, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
