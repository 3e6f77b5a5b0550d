"""Memory given back to the operating system."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest

from sami_train.memory import give_back


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_free_memory_between_pieces_in_use_is_given_back():
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    pieces = [libc.malloc(100_000) for _ in range(2_000)]  # below the size that is mapped by itself
    for piece in pieces:
        ctypes.memset(piece, 1, 100_000)
    for piece in pieces[:-1]:  # the last one keeps the top of the heap where it is
        libc.free(piece)
    held = resident()
    give_back()
    assert resident() < held - 150_000_000
    libc.free(pieces[-1])


def test_nothing_happens_where_the_c_library_cannot(monkeypatch):
    monkeypatch.setattr("sami_train.memory._trim", lambda: None)
    give_back()


def test_other_systems_are_left_alone(monkeypatch):
    from sami_train import memory

    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory._trim.__wrapped__() is None
