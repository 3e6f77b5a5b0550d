"""One import in a folder: another replaces it, and touches nothing else."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import harness.importers.folder
from harness.importers.folder import RECORD, imported, write_import
from sami_train.errors import UserError

FIRST = {"a.txt": "a", "deep/er/b.txt": "b", "deep/c.txt": "c"}


def contents(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != RECORD)
    return {file.relative_to(folder).as_posix(): file.read_text() for file in files}


def test_an_import_replaces_the_one_before_and_leaves_other_files(tmp_path: Path) -> None:
    first = write_import(tmp_path, "responses", FIRST, {"model": "one"})
    assert (first["model"], first["removed"]) == ("one", [])
    assert list(first["files"]) == ["a.txt", "deep/c.txt", "deep/er/b.txt"]
    (tmp_path / "deep/mine.txt").write_text("mine")
    second = write_import(tmp_path, "responses", {"a.txt": "new", "d.txt": "d"}, {"model": "two"})
    assert second["removed"] == ["deep/c.txt", "deep/er/b.txt"]
    assert contents(tmp_path) == {"a.txt": "new", "d.txt": "d", "deep/mine.txt": "mine"}
    assert not (tmp_path / "deep/er").exists()
    assert json.loads((tmp_path / RECORD).read_text()) == second


def test_a_file_of_the_users_own_is_never_written_over(tmp_path: Path) -> None:
    write_import(tmp_path, "responses", FIRST, {})
    (tmp_path / "d.txt").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"'d\.txt' is there and is not as an import wrote it"):
        write_import(tmp_path, "responses", {"d.txt": "d"}, {})
    assert contents(tmp_path) == before
    assert imported(tmp_path, "responses").keys() == FIRST.keys()


def test_an_import_of_another_kind_is_not_replaced(tmp_path: Path) -> None:
    write_import(tmp_path, "responses", FIRST, {})
    with pytest.raises(UserError, match="an import of another kind"):
        write_import(tmp_path, "sami-paper", {"a.txt": "new"}, {})
    assert contents(tmp_path) == FIRST


def test_a_stopped_import_is_known_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_import(tmp_path, "responses", {"old.txt": "old"}, {})
    real = harness.importers.folder.write_atomic

    def full(path: Path, text: str) -> None:
        if path.name == "b.txt":
            raise UserError("the disk is full")
        real(path, text)

    monkeypatch.setattr(harness.importers.folder, "write_atomic", full)
    with pytest.raises(UserError, match="full"):
        write_import(tmp_path, "responses", FIRST, {})
    monkeypatch.undo()
    write_import(tmp_path, "responses", {"e.txt": "e"}, {})
    assert contents(tmp_path) == {"e.txt": "e"}


def test_a_record_that_was_tampered_with_removes_nothing_outside(tmp_path: Path) -> None:
    folder, outside = tmp_path / "out", tmp_path / "outside"
    for place in (folder, outside / "empty"):
        place.mkdir(parents=True)
    (outside / "x.txt").write_text("x")
    (folder / "link").symlink_to(outside)
    names = ["../outside/x.txt", str(outside / "x.txt"), "link/x.txt", "../outside/empty/y.txt", "", ".", "\0"]
    known = [hashlib.sha256(b"x").hexdigest()]
    (folder / RECORD).write_text(
        json.dumps({"verb": "responses", "files": {**dict.fromkeys(names, known), "b.txt": 7}})
    )
    assert write_import(folder, "responses", {"a.txt": "a"}, {})["removed"] == []
    assert (outside / "x.txt").is_file()
    assert (outside / "empty").is_dir()


def test_what_the_user_changed_or_put_in_a_folders_place_stays(tmp_path: Path) -> None:
    write_import(tmp_path, "responses", FIRST, {})
    (tmp_path / "a.txt").write_text("changed")
    with pytest.raises(UserError, match=r"'a\.txt' is there and is not as an import wrote it"):
        write_import(tmp_path, "responses", FIRST, {})
    assert write_import(tmp_path, "responses", {"e.txt": "e"}, {})["removed"] == ["deep/c.txt", "deep/er/b.txt"]
    assert contents(tmp_path) == {"a.txt": "changed", "e.txt": "e"}
    (tmp_path / "deep").write_text("mine")
    with pytest.raises(UserError, match="'deep' is there"):
        write_import(tmp_path, "responses", {"deep/c.txt": "c"}, {})
    assert contents(tmp_path) == {"a.txt": "changed", "deep": "mine", "e.txt": "e"}


def test_a_file_of_the_imports_own_can_become_a_folder(tmp_path: Path) -> None:
    write_import(tmp_path, "responses", {"deep": "a file"}, {})
    write_import(tmp_path, "responses", FIRST, {})
    assert contents(tmp_path) == FIRST


def test_a_record_that_lists_no_files_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text("{}")
    with pytest.raises(UserError, match="does not say which files were imported"):
        write_import(tmp_path, "responses", FIRST, {})
