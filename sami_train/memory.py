"""Memory that is free and still held."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable


def give_back() -> None:
    """Give freed memory of the heap back to the operating system, where the C library is glibc; does nothing elsewhere.

    glibc keeps what lies between pieces in use: after steps on rows of many lengths more than the step itself holds.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim(3), or None."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
