"""The benchmark harness: do models follow principles, and did training help?

`harness.run("quickstart")` runs a specification; `harness.stats` holds the estimators. Everything heavy is imported on
first use, so that `import harness` and the command's help cost nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from harness import stats
    from harness.runner import RunOutcome
    from harness.spec import Spec

    __version__: str

__all__ = ["__version__", "run", "stats"]


def run(
    spec: Spec | str | Path, *, console: Console | None = None, quiet: bool = False, cache: bool = True
) -> RunOutcome:
    """Run a specification (a `Spec`, a preset's name or a file) and return its results and its folder.

    See `harness.runner.run`. The module has another name than this function, so that importing it leaves the function.
    """
    from harness import runner

    return runner.run(spec, console=console, quiet=quiet, cache=cache)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("sami-harness")
        except PackageNotFoundError:  # a copy of the sources that was never installed
            return "0+unknown"
    if name == "stats":
        from importlib import import_module

        return import_module("harness.stats")
    raise AttributeError(f"module 'harness' has no attribute '{name}'")
