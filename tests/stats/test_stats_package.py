"""The package's surface: every name it lists is there, and importing it loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

import harness.stats


@pytest.mark.parametrize("name", harness.stats.__all__)
def test_every_listed_name_is_there(name: str) -> None:
    assert getattr(harness.stats, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="win_rat"):
        harness.stats.win_rat  # noqa: B018


def test_importing_it_loads_neither_numpy_nor_scipy_and_a_win_rate_no_scipy() -> None:
    script = (
        "import sys, harness.stats; assert 'numpy' not in sys.modules;"
        "harness.stats.win_rate([1, 0] * 10); assert 'scipy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
