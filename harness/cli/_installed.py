"""What is installed and what is missing, with the command that installs it: shared by `ls` and `doctor`."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from sami_train.models import Embedded

DISTRIBUTION = "sami-harness"
CONVERT = "harness convert-models"


@dataclass(frozen=True)
class Engine:
    """A way to run models: the form of its model paths, the package it needs, and the variable with its API key."""

    name: str
    path: str
    what: str
    package: str
    extra: str | None = None
    key: str | None = None

    @property
    def version(self) -> str | None:
        """The installed version; None when the package is missing."""
        return version_of(self.package)

    @property
    def install(self) -> str:
        return f"pip install '{DISTRIBUTION}[{self.extra}]'" if self.extra else f"pip install {self.package}"


ENGINES = (
    Engine("transformers", "FOLDER or ORG/NAME[@REVISION]", "in this process, CPU or GPU", "transformers"),
    Engine("recorded", "recorded/FOLDER", "answers made elsewhere, from 'harness import'", DISTRIBUTION),
    Engine("openai", "openai/NAME", "OpenAI, or with base_url a server like it", "openai", "openai", "OPENAI_API_KEY"),
    Engine("anthropic", "anthropic/NAME", "Anthropic", "anthropic", "anthropic", "ANTHROPIC_API_KEY"),
)


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def requirements() -> list[Requirement]:
    """What the harness itself needs, from its own metadata; the optional extras are left out."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    needs = [Requirement(line) for line in lines]
    return [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]


def is_installed(model: Embedded) -> bool:
    """Whether the packages that hold an embedded model's weights are there."""
    return all(importlib.util.find_spec(package) is not None for package in model.packages)


def converted_folder(model: Embedded) -> Path:
    """Where `sami_train.models.local_folder` puts a converted model."""
    from sami_train.files import cache_folder
    from sami_train.models import CONVERSION

    return cache_folder() / "models" / f"{model.name}-{CONVERSION}"


def is_converted(model: Embedded) -> bool:
    """Whether an embedded model has been converted into the cache."""
    return (converted_folder(model) / "config.json").is_file()
