"""The cache: rows that one run made and another run may take instead of making them again.

The cache saves time and is never needed. Where it is corrupt, full or not writable, a run says so in the log and
goes on.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic

from harness.store.files import writing
from harness.store.lock import exclusive
from harness.store.row_file import CorruptRowsError, RowFile, RowT
from sami_train.errors import UserError

_log = logging.getLogger(__name__)


class SharedRows(Generic[RowT]):
    """The rows under one (kind, key), in `cache/<kind>/<key>.jsonl`; any number of processes may use it at once."""

    def __init__(self, kind: str, key: str, row_type: type[RowT], folder: Path | None = None) -> None:
        """`folder` is the cache, by default `cache_folder()`."""
        place = (folder or cache_folder()) / _checked(kind)
        self.path = place / f"{_checked(key)}.jsonl"
        self._lock = place / f"{key}.lock"
        self._row_type = row_type

    def take(self, fingerprints: set[str]) -> list[RowT]:
        """The rows with these fingerprints that are there, one each. Their ids are those of the run that gave them."""
        if not fingerprints:
            return []
        found: dict[str, RowT] = {}
        with self._tolerant(), exclusive(self._lock):
            found = self._read()
        return [row for name, row in found.items() if name in fingerprints]

    def give(self, rows: Iterable[RowT]) -> None:
        """Add those rows whose fingerprint is not there yet. Give only rows that did not fail.

        Reads the whole file, so give rows by the batch.
        """
        with self._tolerant(), exclusive(self._lock):
            there = self._read()
            new: dict[str, RowT] = {}
            for row in rows:
                if row.fingerprint not in there:
                    new.setdefault(row.fingerprint, row)
            with RowFile(self.path, self._row_type) as file:
                file.append(new.values())

    def _read(self) -> dict[str, RowT]:
        """Row by fingerprint. A corrupt file is put aside, and nothing is there."""
        try:
            return {row.fingerprint: row for row in RowFile(self.path, self._row_type).rows()}
        except CorruptRowsError as error:
            aside = self._put_aside()
            _log.warning("a file of the cache is not usable and was renamed to %s: %s", aside.name, error)
            return {}

    def _put_aside(self) -> Path:
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.corrupt-{number}")).exists():
            number += 1
        with writing(aside):
            return self.path.rename(aside)

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            _log.warning("going on without the cache: %s", error)


def cache_folder() -> Path:
    """HARNESS_CACHE where it is set, else `sami-harness` in the user's cache folder."""
    if chosen := os.environ.get("HARNESS_CACHE"):
        return Path(chosen).expanduser()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))  # the XDG specification has relative paths ignored
    try:
        return (base if base.is_absolute() else Path.home() / ".cache") / "sami-harness"
    except RuntimeError as error:
        raise UserError("the home folder is not known; set HARNESS_CACHE to a folder for the cache") from error


def _checked(name: str) -> str:
    """`name`, once it is sure that it names one file in the folder it is put in."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", name) or name in {".", ".."}:
        raise UserError(f"{name!r} cannot name rows in the cache; use 1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-'")
    return name
