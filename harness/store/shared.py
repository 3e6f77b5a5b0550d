"""The cache: rows and folders that one run made and another run may take instead of making them again.

The cache saves time and is never needed. Where it is corrupt, full, not writable or open to other users, a run says so in the log
and goes on. Everything in it lies beside its hash, and what does not have that hash any more is not taken.
"""

from __future__ import annotations

import grp
import hashlib
import logging
import os
import pwd
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, Self

from pydantic import ValidationError, model_validator

from harness.rows import Row
from harness.store.files import read_json, write_json, writing
from harness.store.lock import exclusive
from harness.store.row_file import CorruptRowsError, RowFile, RowT
from sami_train.errors import UserError
from sami_train.files import cache_folder

_log = logging.getLogger(__name__)


class _Sealed(Row):
    """A row of any kind as it was given."""

    content: str
    """The row as JSON."""
    sha256: str
    """Of the fingerprint and the content."""

    @classmethod
    def of(cls, row: Row) -> Self:
        content = row.model_dump_json()
        return cls(
            id=row.id, fingerprint=row.fingerprint, content=content, sha256=_sha256(f"{row.fingerprint}\n{content}")
        )

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.sha256 != _sha256(f"{self.fingerprint}\n{self.content}"):
            raise ValueError("the row is not what was put there")
        return self


class SharedRows(Generic[RowT]):
    """The rows under one (kind, key), in `cache/<kind>/<key>.jsonl`; any number of processes may use it at once."""

    def __init__(self, kind: str, key: str, row_type: type[RowT], folder: Path | None = None) -> None:
        """`folder` is the cache, by default `cache_folder()`."""
        self._place = (folder or cache_folder()) / _checked(kind)
        self.path = self._place / f"{_checked(key)}.jsonl"
        self._lock = self._place / f"{key}.lock"
        self._row_type = row_type

    def take(self, fingerprints: set[str]) -> list[RowT]:
        """The rows with these fingerprints that are there, one each. Their ids are those of the run that gave them."""
        found: dict[str, _Sealed] = {}
        with _tolerant():
            _require_own(self._place)
            try:
                found = self._read() if fingerprints else {}
            except CorruptRowsError:
                with exclusive(self._lock):
                    found = self._read_or_put_aside()
        rows = (self._opened(sealed) for name, sealed in found.items() if name in fingerprints)
        return [row for row in rows if row is not None]

    def give(self, rows: Iterable[RowT]) -> None:
        """Add those rows whose fingerprint is not there yet. Give only rows that did not fail.

        Reads the whole file, so give rows by the batch.
        """
        with _tolerant():
            _make_own(self._place)
            with exclusive(self._lock):
                there = self._read_or_put_aside()
                new: dict[str, _Sealed] = {}
                for row in rows:
                    if row.fingerprint not in there:
                        new.setdefault(row.fingerprint, _Sealed.of(row))
                with RowFile(self.path, _Sealed) as file:
                    file.append(new.values())

    def _opened(self, sealed: _Sealed) -> RowT | None:
        """The row, None where another version gave it in another form."""
        try:
            row = self._row_type.model_validate_json(sealed.content)
        except ValidationError:
            return None
        return row if row.fingerprint == sealed.fingerprint else None

    def _read(self) -> dict[str, _Sealed]:
        """Row by fingerprint. Needs no lock: rows are appended whole, and a torn last line is left out."""
        return {row.fingerprint: row for row in RowFile(self.path, _Sealed).rows()}

    def _read_or_put_aside(self) -> dict[str, _Sealed]:
        """As `_read`. A corrupt file is put aside, and nothing is there."""
        try:
            return self._read()
        except CorruptRowsError as error:
            aside = _put_aside(self.path)
            _log.warning("a file of the cache is not usable and was renamed to %s: %s", aside.name, error)
            return {}


class SharedFolder:
    """The folder under one (kind, key), in `cache/<kind>/<key>/`. It is given whole, once, and taken as a copy."""

    CONTENTS = "contents.json"
    """SHA-256 by path, of every other file."""

    def __init__(self, kind: str, key: str, folder: Path | None = None) -> None:
        """`folder` is the cache, by default `cache_folder()`."""
        self._place = (folder or cache_folder()) / _checked(kind)
        self.path = self._place / _checked(key)

    def take(self, target: Path) -> bool:
        """Put a copy in the place of `target`, file by file what was given. False where there is none, or none that is whole."""
        work = target.with_name(f".{target.name}-{secrets.token_hex(4)}-being-copied")
        with _tolerant():
            _require_own(self._place)
            if not (self.path / self.CONTENTS).is_file():
                return False
            _require_own(self.path)
            try:
                with writing(work):
                    _copy(self.path, work)
                if _hashes(work) != read_json(self.path / self.CONTENTS):
                    aside = _put_aside(self.path)
                    _log.warning(
                        "%s of the cache is not what was put there and was renamed to %s", self.path, aside.name
                    )
                    return False
                with writing(target):
                    (work / self.CONTENTS).unlink()
                    shutil.rmtree(target, ignore_errors=True)
                    work.rename(target)
                return True
            finally:
                shutil.rmtree(work, ignore_errors=True)
        return False

    def give(self, source: Path) -> None:
        """Put a copy of `source` there, unless there is one."""
        work = self._place / f".{self.path.name}-{secrets.token_hex(4)}"
        with _tolerant():
            _make_own(self._place)
            if self.path.exists():
                return
            try:
                with writing(work):
                    _copy(source, work)
                write_json(work / self.CONTENTS, _hashes(work))
                if not self.path.exists():
                    with writing(self.path):
                        work.rename(self.path)
            finally:
                shutil.rmtree(work, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    """Copy a folder's files; raises OSError. Locks and what is being written do not belong to it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.lock", ".*-being-written"))
    except shutil.Error as error:
        raise OSError(str(error.args[0][0][2])) from error


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 by path of the files in a folder, `SharedFolder.CONTENTS` left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (name := path.relative_to(folder).as_posix()) != SharedFolder.CONTENTS:
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _put_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    with writing(aside):
        return path.rename(aside)


@contextmanager
def _tolerant() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        _log.warning("going on without the cache: %s", error)
    except OSError as error:
        _log.warning("going on without the cache: %s", error)


def _require_own(place: Path) -> None:
    """Raise UserError where others than this user and root can write in the cache: what lies there may be anybody's."""
    for folder in (place.parent, place):
        if not folder.is_dir():
            return
        state = folder.stat()
        by_group = state.st_mode & 0o020 and not _is_own_group(state.st_gid)
        if state.st_uid not in (0, os.geteuid()) or state.st_mode & 0o002 or by_group:
            raise UserError(
                f"other users can write in {folder}; take that right away (chmod go-w), or set HARNESS_CACHE to a folder "
                "of your own"
            )


def _is_own_group(group: int) -> bool:
    """Whether a group is the user's private one, of the user's name, by which many systems let the owner's group write."""
    try:
        return grp.getgrgid(group).gr_name == pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return False


def _make_own(place: Path) -> None:
    """Make a folder of the cache that nobody else can write in. Raises UserError where one is there that others can."""
    with writing(place):
        place.parent.parent.mkdir(parents=True, exist_ok=True)
        for folder in (place.parent, place):
            folder.mkdir(mode=0o700, exist_ok=True)
    _require_own(place)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _checked(name: str) -> str:
    """`name`, once it is sure that it names one file in the folder it is put in."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", name) or name in {".", ".."}:
        raise UserError(f"{name!r} cannot name rows in the cache; use 1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-'")
    return name
