"""Manifests: how a stage came about, on which packages, at which revision."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from harness.rows import Manifest
from harness.store.files import first_problem, reading, write_atomic
from sami_train.errors import UserError

_PACKAGES = {  # name in the manifest: name on PyPI
    "harness": "sami-harness",
    "torch": "torch",
    "transformers": "transformers",
    "datasets": "datasets",
    "numpy": "numpy",
    "scipy": "scipy",
    "pydantic": "pydantic",
}


def read_manifest(path: Path) -> Manifest | None:
    """The manifest in the file `path`, None where there is no such file."""
    with reading(path):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise UserError(
            f"{path} is not a valid manifest ({first_problem(error)}); restore it, or delete it and run the same "
            "command again"
        ) from error


def write_manifest(path: Path, manifest: Manifest) -> None:
    write_atomic(path, manifest.model_dump_json(indent=2) + "\n")


def environment() -> dict[str, str]:
    """Version by package, and of Python; packages that are not installed are left out."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version()}
    for name, distribution in _PACKAGES.items():
        try:
            versions[name] = version(distribution)
        except PackageNotFoundError:
            continue
    return versions


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """Revision of the git repository around `folder`, and whether tracked files differ from it; None for unknown.

    Asked once per folder and process: a run is described by the code it started with.
    """
    return _git_state(folder.resolve())


@cache
def _git_state(folder: Path) -> tuple[str | None, bool | None]:
    revision = _git(folder, "rev-parse", "HEAD")
    if revision is None:
        return None, None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return revision, None if changes is None else bool(changes)


def _git(folder: Path, *arguments: str) -> str | None:
    import subprocess

    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            check=True,
            text=True,
            timeout=30,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
