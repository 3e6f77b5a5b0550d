"""Exit codes, and the errors that carry them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sami_train.errors import UserError

EXIT_CODES = """\
  0    done
  1    the run failed
  2    bad usage, or an invalid specification
  3    finished, but below a demanded quality, or stopped at a limit of cost
  130  stopped with Ctrl-C; the same command goes on"""


class RunError(UserError):
    """A run that was well specified and failed all the same: exit code 1."""


class QualityError(UserError):
    """Finished, but below a demanded quality, or stopped at a limit of cost: exit code 3."""


@contextmanager
def running() -> Iterator[None]:
    """What goes wrong inside is a run that failed, or one that stopped at its limit of cost."""
    from harness.costs import CostLimitReached, InvalidCosts

    try:
        yield
    except InvalidCosts:
        raise
    except CostLimitReached as error:
        raise QualityError(str(error)) from error
    except UserError as error:
        raise RunError(str(error)) from error
