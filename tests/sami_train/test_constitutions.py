"""Where principle sets are found: by the name that they give themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from sami_train.constitutions import list_principle_sets, load_principle_set
from sami_train.errors import UserError

SET = """\
name: {name}
principles:
  - {{id: short, task: dialogue, split: {split}, definition: Be short., antithesis: Ramble on.}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "mine"
    place.mkdir()
    return place


def test_a_set_goes_by_its_name_and_not_by_its_file(folder: Path) -> None:
    (folder / "version-7.yaml").write_text(SET.format(name="brief", split="learned"))
    assert load_principle_set("brief", [folder]).file == folder / "version-7.yaml"
    assert "version-7" not in list_principle_sets([folder])


def test_yaml_without_principles_is_no_set(folder: Path) -> None:
    (folder / "run.yaml").write_text("name: a-run\nprinciple: {sets: [verifiable]}\n")
    (folder / "list.yml").write_text("- 1\n")
    assert list_principle_sets([folder]) == list_principle_sets()


def test_a_set_that_cannot_be_read_is_listed_by_its_file_and_says_why(folder: Path) -> None:
    (folder / "broken.yaml").write_text("name: [\n")
    (folder / "nameless.yaml").write_text("principles: []\n")
    assert {"broken", "nameless"} <= list_principle_sets([folder]).keys()
    with pytest.raises(UserError, match=r"broken\.yaml:2: this is not valid YAML"):
        load_principle_set("broken", [folder])
    with pytest.raises(UserError, match=r"'name' is missing"):
        load_principle_set("nameless", [folder])


def test_two_sets_of_one_name_in_a_folder_are_told(folder: Path) -> None:
    for file in ("a.yaml", "b.yaml"):
        (folder / file).write_text(SET.format(name="brief", split="learned"))
    with pytest.raises(UserError, match=r"b\.yaml: a set named 'brief' is in .*a\.yaml too; rename one"):
        list_principle_sets([folder])


def test_an_edited_file_is_read_again(folder: Path) -> None:
    file = folder / "a.yaml"
    file.write_text(SET.format(name="brief", split="learned"))
    assert "brief" in list_principle_sets([folder])
    file.write_text(SET.format(name="short-ones", split="learned"))
    assert "short-ones" in list_principle_sets([folder])
    assert "brief" not in list_principle_sets([folder])


@pytest.mark.parametrize("written", ["held_out", "held-out"])
def test_a_split_is_read_as_it_is_printed(folder: Path, written: str) -> None:
    (folder / "a.yaml").write_text(SET.format(name="brief", split=written))
    assert load_principle_set("brief", [folder]).principles[0].split == "held_out"
