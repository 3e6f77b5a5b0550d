"""Standard output as both commands write to it: where that fails (a full disk), a sentence."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO, cast

from sami_train.errors import UserError


class OutputError(UserError):
    """Standard output cannot be written."""


class _Output:
    """A stream whose failures are OutputErrors, which nobody on the way takes for something else."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._told():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._told():
            self._stream.flush()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())  # or Python fails once more, at its end
            raise OutputError(
                f"the output cannot be written ({error.strerror}); make room, or send it elsewhere"
            ) from None


@contextmanager
def checked_output() -> Iterator[None]:
    """Standard output raises OutputError inside where it cannot be written."""
    with redirect_stdout(cast(TextIO, _Output(sys.stdout))):
        yield
        sys.stdout.flush()
