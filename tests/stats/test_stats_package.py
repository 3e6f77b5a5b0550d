"""The package's surface: every name it lists is there, and importing it loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

import harness.stats


@pytest.mark.parametrize("name", harness.stats.__all__)
def test_every_listed_name_is_there(name: str) -> None:
    found = getattr(harness.stats, name)
    assert getattr(found, "__name__", name) == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="win_rat"):
        harness.stats.win_rat  # noqa: B018


def test_importing_it_loads_neither_numpy_nor_scipy() -> None:
    script = "import sys, harness.stats; assert not {'numpy', 'scipy'} & {name.split('.')[0] for name in sys.modules}"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_win_rate_loads_no_more_of_scipy_than_its_special_functions() -> None:
    script = "import sys; from harness.stats import win_rate; win_rate([1, 0]); assert 'scipy.stats' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
