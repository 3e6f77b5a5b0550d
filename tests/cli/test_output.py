"""Where the output goes: to a pipe, to a full disk; and the ways to ask for help and the version."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FULL = Path("/dev/full")


def command(*arguments: str, stdout: int | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "PYTHONUNBUFFERED")}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        stdout=subprocess.PIPE if stdout is None else stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={**kept, **environment},
        timeout=60,
    )


@pytest.mark.parametrize("arguments", [("ls", "recipes"), ("ls", "judges"), ("principles", "lint")], ids=" ".join)
def test_piped_lines_are_not_wrapped(arguments: tuple[str, ...]) -> None:
    said = command("harness", *arguments)
    assert all(line[0] != " " for line in said.stdout.splitlines() if line), "a wrapped cell goes on below blanks"
    assert len(said.stdout.splitlines()) == len([line for line in said.stdout.splitlines() if line.strip()]) + (
        arguments[1] == "judges"
    )


def test_a_line_above_a_sample_is_not_as_wide_as_a_pipe() -> None:
    said = command("harness", "principles", "sample", "verifiable", "-n", "1")
    assert max(map(len, said.stdout.splitlines()[:1])) <= 100


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("harness", "ls", "presets"),
        ("harness", "ls", "presets", "--json"),
        ("harness", "validate", "smoke"),
        ("harness", "--help"),
        ("harness", "--version"),
        ("sami_train", "list"),
        ("sami_train", "--help"),
        ("sami_train", "show", "--help"),
    ],
    ids=" ".join,
)
def test_a_full_disk_behind_the_output_is_one_sentence(arguments: tuple[str, ...], unbuffered: str) -> None:
    with FULL.open("w") as full:
        said = command(*arguments, stdout=full.fileno(), PYTHONUNBUFFERED=unbuffered)
    name = arguments[0].replace("_", "-")
    assert said.stderr == (
        f"{name}: the output cannot be written (No space left on device); make room, or send it elsewhere\n"
    )
    assert said.returncode == 1


@pytest.mark.parametrize("option", ["-V", "--version"])
@pytest.mark.parametrize("module", ["harness", "sami_train"])
def test_both_commands_print_their_version(module: str, option: str) -> None:
    said = command(module, option)
    assert said.stdout.startswith(f"{module.replace('_', '-')} ")
    assert said.returncode == 0


@pytest.mark.parametrize(
    ("asked", "same"),
    [
        (("harness", "help"), ("harness", "--help")),
        (("harness", "help", "run"), ("harness", "run", "--help")),
        (("harness", "help", "judge", "validate"), ("harness", "judge", "validate", "--help")),
        (("sami_train", "help"), ("sami_train", "--help")),
        (("sami_train", "help", "plan"), ("sami_train", "plan", "--help")),
    ],
    ids=" ".join,
)
def test_help_is_a_verb_too(asked: tuple[str, ...], same: tuple[str, ...]) -> None:
    said = command(*asked)
    assert said.returncode == 0
    assert said.stdout == command(*same).stdout


def test_help_for_an_unknown_verb_names_the_nearest() -> None:
    said = command("harness", "help", "rnu")
    assert said.stderr == "harness: there is no verb 'rnu'; did you mean 'run'?\n"
